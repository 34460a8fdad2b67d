"""Rebuild tables from recorded runs: `python -m benchmarks.readme [--rebuild] [--data mbpp.jsonl]`.

Those of the README and of `results/qwen_coder/README.md`.  A table stands between `<!-- table: FOLDER -->` and
`<!-- end -->`, and is written from the `summary.json` of that folder.  `--rebuild` first replays, for those of the
README, every policy, threshold and judge over the recorded runs, which asks no model, and compares the figures with
the committed ones.  The Qwen2.5-Coder table needs the public file of MBPP and the headers of both models
(`ensemblehub pull qwen-coder`) for that; without `--data` it is written from the summary alone.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any

from ensemblehub.lab.markdown import table

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
QWEN = "results/qwen_coder"
Row = Mapping[str, Any]
Rows = Mapping[str, Row]


@dataclass(frozen=True)
class Rival:
    """A row of a README's table that is measured in another result folder.

    Attributes:
        file: a Markdown table with its accuracy, paired difference to the mentor and cost.
        name: the first cell of its row there.
        cells: columns of that table that the row shows, in order; None is a dash.
    """

    label: str
    file: str
    name: str
    cells: tuple[str | None, ...]

    def row(self) -> list[str]:
        """The row in the form of a README's table."""
        lines = (ROOT / self.file).read_text().splitlines()
        head, *rows = [_split(line) for line in lines if line.startswith("| ")]
        found = next(dict(zip(head, row, strict=True)) for row in rows if row[0] == self.name)
        return [self.label, *(_quoted(found[column]) if column else "–" for column in self.cells)]


def _split(line: str) -> list[str]:
    return [cell.strip() for cell in line[1:-1].split("|")]


def _quoted(text: str) -> str:
    """A cell of a result's table as a README writes it: `51.20% [45.03%, 57.33%]` is 51.2 % (45.0–57.3)."""
    numbers = re.findall(r"[+-]?\d+(?:\.\d+)?", text)
    if "%" in text:
        first, *rest = [percent(float(number) / 100) for number in numbers]
        return f"{first} %" + (f" ({'–'.join(rest)})" if rest else "")
    if len(numbers) == 3:
        first, low, high = [percent(float(number) / 100, "+.1f") for number in numbers]
        return f"{first} ({low} to {high})".replace("-", "−")
    return text


@dataclass(frozen=True)
class Table:
    """A table of the README.

    Attributes:
        title: the sentence above it, with `{n}`.
        methods: what the table calls each method of the summary; one in bold is the table's subject.
        columns: header and text of a cell, from its row and all rows.
        rivals: rows of other result folders, last.
        report: arguments of `ensemblehub report` that rebuild it; none: it is not rebuilt.
    """

    title: str
    methods: Mapping[str, str]
    columns: Mapping[str, Callable[[Row, Rows], str]]
    report: tuple[str, ...] = ()
    needs_data: bool = False
    rivals: tuple[Rival, ...] = ()

    def text(self, rows: Rows) -> str:
        """The title and the table in Markdown."""
        lines = []
        for method, label in self.methods.items():
            cells = [cell(rows[method], rows) for cell in self.columns.values()]
            bold = "**" if label.startswith("**") else ""
            lines.append([label, *(f"{bold}{cell}{bold}" for cell in cells)])
        lines += [rival.row() for rival in self.rivals]
        title = self.title.format(n=f"{rows['mentor']['n']:,}")
        return f"{title}\n\n{table(['', *self.columns], lines)}".replace("|  |", "| |")


def percent(value: float, form: str = ".1f") -> str:
    """A share in per cent, halves rounded up."""
    return f"{(Decimal(str(round(value, 6))) * 100).quantize(Decimal('0.1'), ROUND_HALF_UP):{form}}"


def accuracy(row: Row, rows: Rows) -> str:
    """Accuracy with its 95 % interval."""
    low, high = percent(row["accuracy_low"]), percent(row["accuracy_high"])
    return f"{percent(row['accuracy'])} % ({low}–{high})"


def difference(row: Row, rows: Rows) -> str:
    """Paired difference to the mentor in points, with its 95 % interval."""
    if row["method"] == "mentor":
        return ""
    columns = ("difference", "difference_low", "difference_high")
    mean, low, high = (percent(row[column], "+.1f") for column in columns)
    return f"{mean} ({low} to {high})".replace("-", "−")


def tokens(row: Row, rows: Rows) -> str:
    """Tokens written by each model."""
    return f"{row['mentor_tokens']:.0f} + {row['intern_tokens']:.0f}"


def figure(column: str, form: str) -> Callable[[Row, Rows], str]:
    """A number of the summary."""

    def cell(row: Row, rows: Rows) -> str:
        return f"{row[column]:{form}}"

    return cell


def share(column: str, digits: int, of: str = "mentor") -> Callable[[Row, Rows], str]:
    """A cost as a share of another method's."""

    def cell(row: Row, rows: Rows) -> str:
        return "1" if row["method"] == of else f"{row[column] / rows[of][column]:.{digits}f}"

    return cell


JUDGES = ("logistic", "mlp", "entropy", "perplexity", "insight_first", "intern_or_mentor")
TABLES = {
    "results/qwen_coder/tandem_mbpp": Table(
        "Qwen2.5-Coder-Instruct 1.5B (mentor) and 0.5B (intern), 4 bits, on {n} test questions of MBPP, the "
        "makers' prompt:",
        {
            "intern": "intern",
            "mentor": "mentor",
            "fixed_low": "always 16 tokens of insight",
            "fixed_medium": "always 32",
            "fixed_high": "always 64",
            "logistic": "**Tandem, level 0 first**",
        },
        {
            "accuracy (95 % interval)": accuracy,
            "against the mentor, points": difference,
            "tokens written, mentor + intern": tokens,
            "cost, every call": share("tflops", 2),
            "cost, the paper's formula": share("tflops_paper", 2),
        },
        (
            "-c",
            "results/qwen_coder/tandem.yaml",
            *(flag for name in JUDGES for flag in ("--replay", f"results/qwen_coder/judges/{name}")),
        ),
        needs_data=True,
        rivals=(
            Rival(
                "a cascade by the tests in the question",
                "results/qwen_coder/advise_mbpp/advice.md",
                "cascade by shown tests",
                ("accuracy", "difference", None, "cost_vs_mentor", None),
            ),
        ),
    ),
    "results/builtin_math": Table(
        "On {n} test questions of the built-in pair, everything counted (prompts, judging, attention, discarded "
        "tokens):",
        {
            "intern": "intern",
            "mentor": "mentor (thinking)",
            "mentor_concise": "mentor (no thinking)",
            "fixed_high": "always the high level",
            "random_mix": "the same levels at random, at less cost",
            "equal_cost_mix": "single models at random, at Tandem's cost",
            "tandem": "**Tandem, live**",
        },
        {
            "accuracy (95 % interval)": accuracy,
            "against the mentor, points": difference,
            "cost against mentor (thinking)": share("tflops", 3),
            "against mentor (no thinking)": share("tflops", 3, "mentor_concise"),
        },
        ("-c", "examples/builtin_tandem.yaml"),
        rivals=(
            Rival(
                "a cascade before the mentor (no thinking), on 1,000",
                "results/rivals/builtin_math/against_mentor.md",
                "cascade 0.985 (no thinking) against mentor",
                ("accuracy", "difference, points [95 %]", "FLOPs, times", None),
            ),
        ),
    ),
}

METHODS = {
    "intern": "intern",
    "mentor": "mentor",
    "fixed_low": "always 16 tokens",
    "fixed_medium": "always 32",
    "fixed_high": "always 64",
    "random_mix": "the logistic judge's levels at random",
    "oracle": "oracle over the levels, a bound",
    "logistic": "logistic judge, level 0 first",
    "mlp": "mlp, level 0 first",
    "entropy": "entropy rule, level 0 first",
    "perplexity": "perplexity rule, level 0 first",
    "insight_first": "logistic judge, from 16 tokens on",
    "intern_or_mentor": "intern or mentor by the judge, no insight",
}
COLUMNS: Mapping[str, Callable[[Row, Rows], str]] = {
    "right (95 % interval)": accuracy,
    "difference to the mentor": difference,
    "tokens, mentor + intern": tokens,
    "TFLOPs": figure("tflops", ".2f"),
    "cost, every call": share("tflops", 2),
    "cost, the paper's formula": share("tflops_paper", 2),
    "engine seconds": figure("seconds", ".1f"),
}
OF_QWEN = {
    f"{QWEN}/tandem_mbpp": Table("`tandem_mbpp/`, {n} questions:", METHODS, COLUMNS),
    f"{QWEN}/tandem_mbpp_plus": Table("`tandem_mbpp_plus/`, {n} questions:", METHODS, COLUMNS),
    f"{QWEN}/tandem_humaneval": Table("`tandem_humaneval/`, {n} questions:", METHODS, COLUMNS),
    f"{QWEN}/tandem_gsm8k": Table("`tandem_gsm8k/`, {n} questions:", METHODS, COLUMNS),
}
FILES = {README: TABLES, ROOT / QWEN / "README.md": OF_QWEN}


def summary(folder: Path) -> Rows:
    """The rows of a result folder by method."""
    return {row["method"]: row for row in json.loads((folder / "summary.json").read_text())}


def with_tables(text: str, tables: Mapping[str, Table]) -> str:
    """A text with its tables written anew."""

    def block(found: re.Match[str]) -> str:
        return f"{found[1]}\n{tables[found[2]].text(summary(ROOT / found[2]))}\n{found[3]}"

    return re.sub(r"(<!-- table: (\S+) -->)\n.*?\n(<!-- end -->)", block, text, flags=re.DOTALL)


def rebuild(name: str, data: Path | None) -> None:
    """Replay a folder's recorded runs in a copy.

    Raises:
        SystemExit: the figures differ from the committed ones.
    """
    asked = TABLES[name]
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(shutil.copytree(ROOT / name, Path(scratch) / "copy"))
        (copy / "summary.json").unlink()
        given = ("--data", str(data)) if data and asked.needs_data else ()
        command = [sys.executable, "-m", "ensemblehub", "report", *asked.report, *given]
        subprocess.run(
            [*command, "-s", f"experiment.results={copy}"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL
        )
        if (copy / "summary.json").read_text() != (ROOT / name / "summary.json").read_text():
            sys.exit(f"{name}: the recorded runs give other figures than summary.json")
    print(f"{name}: rebuilt from the recorded runs, equal")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.readme",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rebuild", action="store_true", help="replay the recorded runs and compare first")
    parser.add_argument("--data", type=Path, help="mbpp.jsonl in its public form")
    options = parser.parse_args()
    for name, asked in TABLES.items() if options.rebuild else ():
        if asked.needs_data and not options.data:
            print(f"{name}: not rebuilt, needs --data")
        else:
            rebuild(name, options.data)
    for file, tables in FILES.items():
        file.write_text(with_tables(file.read_text(), tables))


if __name__ == "__main__":
    main()
