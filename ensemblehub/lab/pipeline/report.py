"""The table of a pair: every method on the same questions, with all costs and those of the paper's formula.

`summary.json` is a list of rows, one per method; the Markdown table and the Pareto plot are drawn from it.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import FiniteFloat

from ensemblehub.artifacts import content_of, parsed, write_atomically
from ensemblehub.lab import metrics
from ensemblehub.lab.markdown import table
from ensemblehub.lab.metrics import paper_flops
from ensemblehub.lab.pipeline import cascade
from ensemblehub.lab.pipeline.evaluate import TandemRun
from ensemblehub.lab.pipeline.records import Collected, Run
from ensemblehub.lab.plots import Point, accuracy_against_cost
from ensemblehub.tandem.insights import LEVEL_0

METHOD_COLUMNS = ("method", "n", "accuracy", "difference", "mentor_tokens", "intern_tokens", "tflops")
SHARES = ("leak_share", "truncated_share", "judging_share")
COLUMNS = (*METHOD_COLUMNS, "tflops_paper", "cost_vs_mentor", "cost_vs_concise", *SHARES)
BY_FLOPS = ("tflops", "tflops_paper", "cost_vs_mentor", "cost_vs_concise", "judging_share")
# What tables and plots show for the mentor's two runs and for a column's key.
LABELS = {"mentor": "mentor (thinking)", "mentor_concise": "mentor (no thinking)"}
HEADERS = {"cost_vs_concise": "cost_vs_no_thinking"}
# How runs are measured: by column of `MethodRuns`.
COUNTED: dict[str, Callable[[Run | TandemRun], float]] = {
    "correct": lambda run: run.correct,
    "mentor_tokens": lambda run: run.mentor_tokens,
    "intern_tokens": lambda run: run.intern_tokens,
    "seconds": lambda run: run.seconds,
    "leak": lambda run: run.leak,
    "truncated": lambda run: run.finish == "length",
}
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class MethodRuns:
    """One method's outcome on every question: arrays of shape (questions,).

    Attributes:
        correct: share of draws that are right; 0 or 1 except for mixes.
        levels: number of questions answered from each level.
    """

    method: str
    levels: dict[str, float]
    correct: Floats
    mentor_tokens: Floats
    intern_tokens: Floats
    flops: Floats
    paper: Floats
    seconds: Floats
    leak: Floats
    truncated: Floats
    judging: Floats


def fixed(collected: Collected, method: str, name: str) -> MethodRuns:
    """A method that answers every question the same way, from collected runs."""
    return of_runs(collected, method, [row.runs[name] for row in collected.rows], {name: len(collected.rows)})


def of_runs(collected: Collected, method: str, runs: Sequence[Run], levels: dict[str, float]) -> MethodRuns:
    """A method from its run on every question of `collected`."""
    mentor, intern = collected.info("mentor"), collected.info("intern")
    flops = [run.flops(mentor, intern) for run in runs]
    paper = [
        paper_flops(
            mentor.active, run.mentor_tokens, intern.active if run.intern_read else 0, run.intern_tokens
        )
        for run in runs
    ]
    return _method(method, levels, runs, flops, paper, [0.0] * len(runs))


def tandem(collected: Collected, runs: Sequence[TandemRun], name: str = "tandem") -> MethodRuns:
    """Tandem as it ran live."""
    mentor, intern = collected.info("mentor").active, collected.info("intern").active
    paper = [paper_flops(mentor, run.mentor_tokens, intern, run.intern_tokens) for run in runs]
    levels = dict[str, float](Counter(run.chosen for run in runs))
    return _method(
        name, levels, runs, [run.flops for run in runs], paper, [run.judging_flops for run in runs]
    )


def _method(
    method: str,
    levels: dict[str, float],
    runs: Sequence[Run | TandemRun],
    flops: Sequence[float],
    paper: Sequence[float],
    judging: Sequence[float],
) -> MethodRuns:
    columns = {name: np.array([value(run) for run in runs], float) for name, value in COUNTED.items()}
    columns |= {"flops": np.array(flops), "paper": np.array(paper), "judging": np.array(judging)}
    return MethodRuns(method, levels, **columns)


def random_mix(collected: Collected, shares: dict[str, float]) -> MethodRuns:
    """Levels drawn at random with `shares`, at whatever that costs."""
    return _mixed("random_mix", [(share, fixed(collected, level, level)) for level, share in shares.items()])


def equal_cost_mix(models: Sequence[MethodRuns], than: MethodRuns) -> MethodRuns | None:
    """The most accurate random mix of `models` at another method's cost; None where none costs that, or the cost
    of one is unknown.
    """
    points = [(runs.flops.mean(), runs.correct.mean()) for runs in models]
    shares = cascade.best_shares(points, float(than.flops.mean()))
    if shares is None or not all(cost for cost, _ in points):
        return None
    return _mixed("equal_cost_mix", [pair for pair in zip(shares, models, strict=True) if pair[0]])


def _mixed(method: str, parts: Sequence[tuple[float, MethodRuns]]) -> MethodRuns:
    """Methods drawn at random with their shares: every column is its expectation, question by question."""
    columns = {
        name: np.asarray(sum(share * vars(runs)[name] for share, runs in parts), float)
        for name in (*COUNTED, "flops", "paper", "judging")
    }
    counts = {runs.method: share * len(runs.correct) for share, runs in parts}
    return MethodRuns(method, counts, **columns)


def oracle(collected: Collected) -> MethodRuns:
    """The cheapest level that answers right, or the cheapest of all; a bound, not a method."""
    mentor, intern = collected.info("mentor"), collected.info("intern")
    correct = np.array([[row.runs[level].correct for level in collected.levels] for row in collected.rows])
    cost = [[row.runs[level].flops(mentor, intern) for level in collected.levels] for row in collected.rows]
    names = [list(collected.levels)[index] for index in cascade.oracle(correct, cost)]
    runs = [row.runs[name] for row, name in zip(collected.rows, names, strict=True)]
    return of_runs(collected, "oracle", runs, dict(Counter(names)))


def methods(collected: Collected, runs: Sequence[TandemRun]) -> list[MethodRuns]:
    """Every row of the table, Tandem last."""
    live = tandem(collected, runs)
    shares = {level: count / len(runs) for level, count in live.levels.items() if level in collected.levels}
    total = sum(shares.values())
    mixed = (
        [random_mix(collected, {level: share / total for level, share in shares.items()})] if shares else []
    )
    models = [
        fixed(collected, "intern", LEVEL_0),
        *(fixed(collected, name, name) for name in ("mentor", "mentor_concise")),
    ]
    equal = equal_cost_mix(models, live)
    return [
        *models,
        *(fixed(collected, f"fixed_{level}", level) for level in collected.levels if level != LEVEL_0),
        *mixed,  # none where the mentor answered everything itself
        *([equal] if equal else []),
        oracle(collected),
        live,
    ]


def summary(
    task: str, answered: Sequence[MethodRuns], steps: Sequence[int], against: str = "mentor"
) -> list[dict[str, Any]]:
    """The rows of `summary.json`; accuracies and shares are fractions, compute is TFLOPs per question.

    What counts FLOPs (`BY_FLOPS`) is None where the size of the mentor or of the intern is unknown.

    Args:
        steps: per question; the leak share is over questions of two steps or more (0 steps: unknown,
            counted).
        against: the method that differences are taken to; costs are shares of the mentor's.
    """
    deep = np.array([count != 1 for count in steps])
    by_name = {runs.method: runs for runs in answered}
    mentor = float(by_name["mentor"].flops.sum()) or math.nan
    concise = float(by_name.get("mentor_concise", by_name["mentor"]).flops.sum()) or math.nan
    is_known = all(by_name[name].flops.any() for name in ("mentor", "intern") if name in by_name)
    rows = []
    for runs in answered:
        low, high = metrics.wilson_interval(float(runs.correct.sum()), len(runs.correct))
        difference_low, difference_high = metrics.paired_bootstrap(runs.correct, by_name[against].correct)
        row = {
            "method": runs.method,
            "task": task,
            "n": len(runs.correct),
            "accuracy": float(runs.correct.mean()),
            "accuracy_low": low,
            "accuracy_high": high,
            "difference": float((runs.correct - by_name[against].correct).mean()),
            "difference_low": difference_low,
            "difference_high": difference_high,
            "mentor_tokens": float(runs.mentor_tokens.mean()),
            "intern_tokens": float(runs.intern_tokens.mean()),
            "tflops": float(runs.flops.mean()) / 1e12,
            "tflops_paper": float(runs.paper.mean()) / 1e12,
            "cost_vs_mentor": float(runs.flops.sum() / mentor),
            "cost_vs_concise": float(runs.flops.sum() / concise),
            "levels": {level: round(count, 1) for level, count in runs.levels.items()},
            "leak_share": float(runs.leak[deep].mean()) if deep.any() else 0.0,
            "truncated_share": float(runs.truncated.mean()),
            "judging_share": float(runs.judging.sum()) / (float(runs.flops.sum()) or math.nan),
            "seconds": float(runs.seconds.mean()),
        }
        rows.append(row if is_known else row | dict.fromkeys(BY_FLOPS))
    return rows


def markdown(
    rows: Sequence[dict[str, Any]], footnotes: Sequence[str] = (), columns: Sequence[str] = COLUMNS
) -> str:
    """Return the table as Markdown; a missing value is a dash."""
    cells = ([_cell(row, column) for column in columns] for row in labelled(rows))
    header = [HEADERS.get(column, column) for column in columns]
    return f"{table(header, cells)}\n\n" + "\n\n".join(footnotes) + "\n"


def labelled(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows with methods as they are shown; the mentor's runs get labels where both are present."""
    both = LABELS.keys() <= {row.get("method") for row in rows}
    return [{**row, "method": LABELS.get(row["method"], row["method"])} if both else row for row in rows]


def _cell(row: dict[str, Any], column: str) -> str:
    value = row.get(column)
    if value is None:
        return "–"
    if isinstance(value, dict):
        return ", ".join(f"{LABELS.get(name, name)} {part:g}" for name, part in value.items())
    low, high = row.get(f"{column}_low"), row.get(f"{column}_high")
    if column == "accuracy" and low is not None:
        return f"{value:.2%} [{low:.2%}, {high:.2%}]"
    if column.startswith(("difference", "over ")) and low is not None and high is not None:
        return f"{100 * value:+.2f} [{100 * low:+.2f}, {100 * high:+.2f}]"
    if column.startswith("cost") and low is not None and high is not None:
        return f"{value:.3f} [{low:.3f}, {high:.3f}]"
    if column.startswith("paper"):
        return f"{value:g}"
    if column.startswith("tflops"):
        return f"{value * 1e3:.3f} GFLOPs" if value < 1 else f"{value:.2f}"
    if column.endswith("share"):
        return f"{value:.1%}"
    if column == "usd":
        return f"{value:.6f}" if value else "–"
    if column in ("wall", "seconds") and isinstance(value, float):
        return f"{value:.3g}"
    if column.startswith("pass@"):
        return f"{value:.2%}"
    if column.startswith("cost"):
        return f"{value:.3f}"
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def plot(rows: Sequence[dict[str, Any]], folder: Path, title: str) -> list[Path]:
    """Accuracy against cost, as PNG and SVG."""
    styles = {"tandem": ("*", "C3", 14), "mentor": ("s", "C0", 8), "oracle": ("x", "0.6", 8)}
    points = [
        Point(
            shown["method"].replace("_", " "),
            row["cost_vs_mentor"],
            row["accuracy"],
            row["accuracy_low"],
            row["accuracy_high"],
            *styles.get(row["method"], ("o", "C7", 6)),
        )
        for row, shown in zip(rows, labelled(rows), strict=True)
    ]
    paths = [folder / "pareto.png", folder / "pareto.svg"]
    accuracy_against_cost(points, paths, "cost as a share of the mentor's (every call counted)", title)
    return paths


@dataclass(frozen=True)
class ReplayCheck:
    """The judge replayed on the collected runs, against the live runs of the same questions.

    Attributes:
        checked: number of questions.
        levels, correct, texts: on how many of them replay and live run chose the same level, are both right
            or both wrong, and have the same text.
        flops: of all replayed answers as a multiple of those of the live runs; None where these are unknown.
    """

    checked: int
    levels: int
    correct: int
    texts: int
    flops: FiniteFloat | None


@dataclass(frozen=True)
class Checks:
    """Additional measurements of `evaluate` (`checks.json`).

    Attributes:
        checked: number of questions whose baselines were run again.
        reproduced: by method, number of these questions for which the live run wrote the collected text.
        timed: number of runs timed one at a time; the two ratios below are measured on them.
        wall_over_engine_seconds: wall time as a multiple of the engines' own time.
        judging_share_of_wall: share of wall time spent on judging.
        grading: a note on how answers were graded.
        replay: the judge replayed against the live runs; None where it was not.
    """

    checked: int
    reproduced: dict[str, int]
    timed: int
    wall_over_engine_seconds: FiniteFloat
    judging_share_of_wall: FiniteFloat
    grading: str = ""
    replay: ReplayCheck | None = None


def read_checks(folder: Path) -> Checks | None:
    """The checks that `evaluate` left in a folder; None where there are none.

    Raises:
        ArtifactError: the file is damaged.
    """
    path, again = folder / "checks.json", "run `ensemblehub evaluate`, or remove it"
    if not path.exists():
        return None
    content = content_of(path, again)
    if isinstance(content, dict) and "rides" in content:  # the former name
        content = {**content, "timed": content.pop("rides")}
    return parsed(Checks, content, path, again)


def notes(collected: Collected, checks: Checks | None, against: str = "the mentor") -> list[str]:
    """Return the notes below a table: conditions, the baseline of differences, and checks."""
    header = collected.header
    lines = [
        f"n = {len(collected.rows)} questions of `{header['task']}` ({header['split']}), mentor "
        f"`{header['mentor']}`, intern `{header['intern']}`, temperature {header['temperature']}, at most "
        f"{header['max_tokens']} answer tokens. Accuracy with Wilson 95 % interval; difference to {against} in "
        "points with paired-bootstrap 95 % interval. Costs count every call, without prefixes shared between "
        "questions; tflops_paper counts output tokens only; leak_share is over questions of two steps or more. "
        "random_mix draws the levels that Tandem answered from at random, in the same shares, at the cost in its line, "
        "not at Tandem's; equal_cost_mix, where there is one, is the most accurate random mix of the single models at "
        "the cost of the last line. oracle knows the answers and is a bound."
    ]
    if checks:
        same = ", ".join(f"{LABELS.get(name, name)} {count}" for name, count in checks.reproduced.items())
        ratio, share = checks.wall_over_engine_seconds, checks.judging_share_of_wall
        lines += [
            f"Baselines run again live on {checks.checked} questions wrote the same text: {same}.",
            f"One run at a time ({checks.timed} runs): wall time {ratio:.3f} times the engines' own time, "
            f"judging {share:.1%} of it.",
        ]
    if checks and (found := checks.replay):
        lines.append(
            f"The judge replayed on the collected runs of all {found.checked} questions, against Tandem live: the same "
            f"level on {found.levels}, equally right on {found.correct}, the same text on {found.texts}"
            + (f"; {found.flops:.4f} times the FLOPs." if found.flops is not None else ".")
        )
    if checks and checks.grading:
        lines.append(checks.grading)
    return lines


def write(
    folder: Path,
    rows: list[dict[str, Any]],
    footnotes: Sequence[str],
    title: str,
    columns: Sequence[str] = COLUMNS,
) -> str:
    """Write `summary.json`, `table.md` and, where costs are known, the plot; returns the table."""
    text = f"# {title}\n\n{markdown(rows, footnotes, columns)}"
    write_atomically(folder / "summary.json", json.dumps(rows, indent=1) + "\n")
    write_atomically(folder / "table.md", text)
    if all(row["cost_vs_mentor"] is not None for row in rows):
        plot(rows, folder, title)
    return text
