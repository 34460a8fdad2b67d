"""Rebuild figures from recorded runs: `python -m benchmarks.readme [--rebuild] [--data FOLDER]`.

The tables of the README and of `results/qwen_coder/README.md`.  A table stands between `<!-- table: FOLDER -->` and
`<!-- end -->`, and is written from the `summary.json` of that folder.  `--rebuild` first makes the result files that
the README quotes again, replaying every policy, threshold and judge over the recorded runs, which asks no model,
and compares them with the committed ones; the published scores have no recording.
Those of Qwen2.5-Coder need the public files mbpp.jsonl, humaneval.jsonl and gsm8k_test.jsonl in `--data`, and the
headers of both models (`ensemblehub pull qwen-coder`); without `--data` they are taken as they are.
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
from ensemblehub.lab.pipeline.replayed import OVER_MIX

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
        found = cells_of(self.file, self.name)
        return [self.label, *(_quoted(found[column]) if column else "–" for column in self.cells)]


def cells_of(file: str, name: str) -> dict[str, str]:
    """The cells of a Markdown table's row by the heads of their columns; `name` is its first cell."""
    lines = (ROOT / file).read_text().splitlines()
    head, *rows = [
        [cell.strip() for cell in line[1:-1].split("|")] for line in lines if line.startswith("| ")
    ]
    return next(dict(zip(head, row, strict=True)) for row in rows if row[0] == name)


def _quoted(text: str) -> str:
    """A cell of a result's table as a README writes it: `51.20% [45.03%, 57.33%]` is 51.2 % (45.0–57.3)."""
    numbers = re.findall(r"[+-]?\d+(?:\.\d+)?", text)
    if "%" in text:
        first, *rest = [percent(float(number) / 100) for number in numbers]
        return f"{first} %" + (f" ({'–'.join(rest)})" if rest else "")
    if len(numbers) == 3 and text[0] in "+-":
        first, low, high = [percent(float(number) / 100, "+.1f") for number in numbers]
        return f"{first} ({low} to {high})".replace("-", "−")
    return numbers[0] if numbers else text  # of a cost without its interval


@dataclass(frozen=True)
class Table:
    """A table of the README.

    Attributes:
        title: the sentence above it, with `{n}`.
        methods: what the table calls each method of the summary; one in bold is the table's subject.
        columns: header and text of a cell, from its row and all rows.
        rivals: rows of other result folders, last.
    """

    title: str
    methods: Mapping[str, str]
    columns: Mapping[str, Callable[[Row, Rows], str]]
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


def difference(row: Row, rows: Rows, column: str = "difference") -> str:
    """Paired difference in points, by default to the mentor, with its 95 % interval."""
    if row["method"] == "mentor" or column not in row:
        return ""
    mean, low, high = (percent(row[name], "+.1f") for name in (column, f"{column}_low", f"{column}_high"))
    return f"{mean} ({low} to {high})".replace("-", "−")


def over_mix(row: Row, rows: Rows) -> str:
    """Paired difference to the best random mix of the two models at the row's cost, where one costs that."""
    return difference(row, rows, OVER_MIX)


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
        rivals=(
            Rival(
                "a cascade by the tests in the question, on 499",
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
        rivals=(
            Rival(
                "a cascade before the mentor (no thinking), on 1,000",
                "results/rivals/builtin_math/against_mentor.md",
                "cascade 0.985 (no thinking) against mentor",
                ("accuracy", "difference, points [95 %]", "FLOPs, times", None),
            ),
            Rival(
                "the mentor, thinking where it is unsure, on 1,000",
                "results/rivals/builtin_math/against_mentor.md",
                "think on failure 0.98 against mentor",
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
    "perfect_cascade": "the intern where it is right, else the mentor",
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
DRAFTED = {
    "draft": "draft, then insights: for accuracy",
    "draft_half": "draft, then insights: for half of the mentor's cost",
    "draft_or_mentor": "draft, then the mentor: for 0.8 of its cost",
    "draft_or_mentor_90": "draft, then the mentor: for 0.9 of its cost",
}
JUDGED = {
    "judged": DRAFTED["draft"],
    "judged_budget_70": "draft, then insights: for 0.7 of the mentor's cost",
    "judged_or_mentor": DRAFTED["draft_or_mentor"],
    "judged_or_mentor_90": DRAFTED["draft_or_mentor_90"],
}
WITH_DRAFTS = {**{f"draft_{task}": DRAFTED for task in ("mbpp", "humaneval", "gsm8k")}, "judged_mbpp": JUDGED}
BASELINES = ("intern", "mentor", "fixed_low", "fixed_medium", "fixed_high", "oracle", "perfect_cascade")
OF_QWEN = {
    **{
        f"{QWEN}/{folder}": Table(
            f"`{folder}/`, {{n}} questions:",
            {method: METHODS[method] for method in BASELINES} | drafted,
            {
                "right (95 % interval)": accuracy,
                "difference to the mentor": difference,
                "tokens, mentor + intern": tokens,
                "cost, every call": share("tflops", 2),
                "to a random mix of the two at that cost": over_mix,
            },
        )
        for folder, drafted in WITH_DRAFTS.items()
    },
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

    return re.sub(r"(<!-- table: (\S+) -->)\n.*?(<!-- end -->)", block, text, flags=re.DOTALL)


@dataclass(frozen=True)
class Recorded:
    """A result file that a command makes again from recorded runs.

    Attributes:
        file: the file, in a folder that holds the recorded runs.
        command: arguments of `ensemblehub`; {copy} is a copy of the folder, {data} that of the public files.
        printed: the command prints the file.
        module: what is run in place of `ensemblehub`.
        beside: a file that is copied to the others.
    """

    file: str
    command: str
    printed: bool = False
    module: str = "ensemblehub"
    beside: str = ""

    def rebuild(self, data: Path | None) -> None:
        """Make the file anew in a copy of what git keeps of its folder.

        Raises:
            SystemExit: it differs from the committed one.
            subprocess.CalledProcessError: the command fails.
        """
        committed = ROOT / self.file
        with tempfile.TemporaryDirectory() as scratch:
            copy = Path(scratch) / committed.parent.name
            for name in _tracked(committed.parent) - {committed}:
                place = copy / name.relative_to(committed.parent)
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(name, place)
            if self.beside:
                shutil.copy(ROOT / self.beside, copy)
            command = [part.format(copy=copy, data=data) for part in self.command.split()]
            out = subprocess.PIPE if self.printed else subprocess.DEVNULL
            done = subprocess.run(
                [sys.executable, "-m", self.module, *command], cwd=ROOT, check=True, stdout=out, text=True
            )
            made = done.stdout if self.printed else (copy / committed.name).read_text()
        if made != committed.read_text():
            sys.exit(f"{self.file}: the recorded runs give other figures")
        print(f"{self.file}: rebuilt from the recorded runs, equal")


def _tracked(folder: Path) -> set[Path]:
    """A folder's files without what later commands left there, such as a judge that `calibrate` wrote."""
    listed = ["git", "ls-files", "-z", str(folder)]
    found = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return {ROOT / name for name in found.split("\0") if name}


JUDGES = ("logistic", "mlp", "entropy", "perplexity", "insight_first", "intern_or_mentor")
REPLAYED, OF_DRAFTS, OF_JUDGED = (
    f"report -c {QWEN}/tandem.yaml " + " ".join(f"--replay {QWEN}/judges/{name}" for name in names)
    for names in (JUDGES, DRAFTED, JUDGED)
)
RECORDED = (
    Recorded(
        "results/builtin_math/summary.json",
        "report -c examples/builtin_tandem.yaml -s experiment.results={copy}",
    ),
    Recorded(
        "results/builtin_math/calibrated.txt",  # in docs/judges.md
        "calibrate --max-loss 0.04 --set ensemble.output_aggregation_params.fallback=mentor "
        "--set experiment.results={copy}",
        printed=True,
    ),
    Recorded(
        "results/builtin_code_draft/summary.json",
        "report -c results/builtin_code_draft/draft.yaml -s experiment.results={copy}",
    ),
    Recorded(
        "results/builtin_code_draft/calibrated.txt",  # judge/certificate.json as `calibrate` prints it
        "calibrate --max-loss 0.03 -c results/builtin_code_draft/draft.yaml -s experiment.results={copy} "
        "-s ensemble.output_aggregation_params.judge={copy}/judge",
        printed=True,
    ),
    Recorded("results/rivals/certified.md", "", printed=True, module="benchmarks.certified_rivals"),
    *(
        Recorded(
            f"results/rivals/builtin_{task}/against_{base}.md",
            f"compare --mixes {{copy}}/answers/{base}.jsonl.gz {{copy}}",
            printed=True,
        )
        for task, base in (
            ("math", "mentor"),
            ("math", "tandem_high"),
            ("code", "mentor"),
            ("code", "tandem_low"),
        )
    ),
)
OF_QWEN_DATA = (
    ("mbpp", "mbpp.jsonl", "test", ""),
    ("humaneval", "humaneval.jsonl", "all", ""),
    ("gsm8k", "gsm8k_test.jsonl", "test", " --prompt plain"),
)
OF_DATA = (
    *(
        Recorded(
            f"{QWEN}/tandem_{task}/summary.json",
            f"{REPLAYED} --dataset {task} --data {{data}}/{file} --split {split} -s experiment.results={{copy}}{more}",
        )
        for task, file, split, more in OF_QWEN_DATA
    ),
    *(
        Recorded(
            f"{QWEN}/draft_{task}/summary.json",
            f"{OF_DRAFTS} --dataset {task} --data {{data}}/{file} --split {split} "
            f"-s experiment.results={{copy}} -s ensemble.output_aggregation_params.draft=logprob{more}",
        )
        for task, file, split, more in OF_QWEN_DATA
    ),
    Recorded(
        f"{QWEN}/judged_mbpp/summary.json",
        f"{OF_JUDGED} --dataset mbpp --data {{data}}/mbpp.jsonl --split test -s experiment.results={{copy}} "
        f"-s ensemble.output_aggregation_params.draft={QWEN}/judges/of_drafts",
    ),
    *(
        Recorded(
            f"{QWEN}/advise_{task}/{folder}advice.md",
            f"advise -c {QWEN}/tandem.yaml --all --samples 0 --aim {aim} --out {{copy}} --task {task} --n {count} "
            f"--data {{data}}/{file} --split {split} --collected {QWEN}/draft_{task}/collected{more}",
            beside=f"{QWEN}/advise_{task}/recorded.jsonl.gz",
        )
        for aim, folder in (("accuracy", ""), ("cost", "cost/"))
        for (task, file, split, more), count in zip(OF_QWEN_DATA, (500, 164, 400), strict=True)
    ),
)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.readme",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--rebuild", action="store_true", help="make the result files again and compare first"
    )
    parser.add_argument("--data", type=Path, help="the folder of the public files")
    options = parser.parse_args()
    if options.rebuild:
        for recorded in (*RECORDED, *(OF_DATA if options.data else ())):
            recorded.rebuild(options.data)
        if not options.data:
            print(f"{QWEN}: not rebuilt, needs --data")
    for file, tables in FILES.items():
        file.write_text(with_tables(file.read_text(), tables))


if __name__ == "__main__":
    main()
