"""The table of a pair: every method on the same questions, with the full ledger and the paper's formula.

`summary.json` is a list of rows, one per method; the Markdown table and the Pareto plot are drawn from it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import FiniteFloat

from ensemblehub.artifacts import write_atomically
from ensemblehub.cost import paper_flops
from ensemblehub.errors import MissingExtraError
from ensemblehub.lab import metrics
from ensemblehub.lab.pipeline import calibration
from ensemblehub.lab.pipeline.evaluate import TandemRun
from ensemblehub.lab.pipeline.records import Collected, Run
from ensemblehub.tandem.insights import LEVEL_0

COLUMNS = (
    "method",
    "n",
    "accuracy",
    "difference",
    "mentor_tokens",
    "intern_tokens",
    "tflops",
    "tflops_paper",
    "cost_vs_mentor",
    "cost_vs_concise",
    "leak_share",
    "truncated_share",
    "judging_share",
)


@dataclass(frozen=True)
class Answered:
    """One method's outcome on every question: arrays of shape (questions,)."""

    method: str
    correct: NDArray[np.float64]  # share of draws that are right; 0 or 1 but for random_mix
    mentor_tokens: NDArray[np.float64]
    intern_tokens: NDArray[np.float64]
    flops: NDArray[np.float64]
    paper: NDArray[np.float64]
    seconds: NDArray[np.float64]
    leak: NDArray[np.float64]
    truncated: NDArray[np.float64]
    judging: NDArray[np.float64]
    levels: dict[str, float]


def fixed(collected: Collected, method: str, name: str) -> Answered:
    """A method that answers every question the same way, from collected runs."""
    return of_runs(collected, method, [row.runs[name] for row in collected.rows], {name: len(collected.rows)})


def of_runs(collected: Collected, method: str, runs: Sequence[Run], levels: dict[str, float]) -> Answered:
    """A method from its run on every question of `collected`."""
    mentor, intern = collected.info("mentor"), collected.info("intern")

    def column(value: Callable[[Run], float]) -> NDArray[np.float64]:
        return np.array([value(run) for run in runs], float)

    return Answered(
        method,
        column(lambda run: run.correct),
        column(lambda run: run.mentor_tokens),
        column(lambda run: run.intern_tokens),
        column(lambda run: run.flops(mentor, intern)),
        column(lambda run: _paper(collected, run.mentor_tokens, run.intern_tokens, run.intern_read > 0)),
        column(lambda run: run.seconds),
        column(lambda run: run.leak),
        column(lambda run: run.finish == "length"),
        np.zeros(len(runs)),
        levels,
    )


def _paper(collected: Collected, mentor_tokens: float, intern_tokens: float, intern_rides: bool) -> float:
    mentor, intern = collected.info("mentor").active, collected.info("intern").active
    return paper_flops(mentor, mentor_tokens, intern if intern_rides else 0, intern_tokens)


def tandem(collected: Collected, rides: Sequence[TandemRun], name: str = "tandem") -> Answered:
    """Tandem as it ran live."""

    def column(value: Callable[[TandemRun], float]) -> NDArray[np.float64]:
        return np.array([value(ride) for ride in rides], float)

    return Answered(
        name,
        column(lambda ride: ride.correct),
        column(lambda ride: ride.mentor_tokens),
        column(lambda ride: ride.intern_tokens),
        column(lambda ride: ride.flops),
        column(lambda ride: _paper(collected, ride.mentor_tokens, ride.intern_tokens, True)),
        column(lambda ride: ride.seconds),
        column(lambda ride: ride.leak),
        column(lambda ride: ride.finish == "length"),
        column(lambda ride: ride.judging_flops),
        dict(Counter(ride.chosen for ride in rides)),
    )


def random_mix(collected: Collected, shares: dict[str, float]) -> Answered:
    """Levels drawn at random with `shares`: every column is its expectation, question by question."""
    parts = [(shares[level], fixed(collected, "", level)) for level in shares]

    def mean(name: str) -> NDArray[np.float64]:
        return np.asarray(sum(share * getattr(part, name) for share, part in parts), float)

    names = (
        "correct",
        "mentor_tokens",
        "intern_tokens",
        "flops",
        "paper",
        "seconds",
        "leak",
        "truncated",
        "judging",
    )
    counts = {level: share * len(collected.rows) for level, share in shares.items()}
    return Answered("random_mix", **{name: mean(name) for name in names}, levels=counts)


def oracle(collected: Collected) -> Answered:
    """The cheapest level that answers right, or the cheapest of all; a bound, not a method."""
    mentor, intern = collected.info("mentor"), collected.info("intern")
    correct = np.array([[row.runs[level].correct for level in collected.levels] for row in collected.rows])
    cost = np.array(
        [[row.runs[level].flops(mentor, intern) for level in collected.levels] for row in collected.rows]
    )
    names = [list(collected.levels)[index] for index in calibration.oracle(correct, cost)]
    runs = [row.runs[name] for row, name in zip(collected.rows, names, strict=True)]
    return of_runs(collected, "oracle", runs, dict(Counter(names)))


def methods(collected: Collected, rides: Sequence[TandemRun]) -> list[Answered]:
    """Every row of the table, Tandem last."""
    live = tandem(collected, rides)
    shares = {level: count / len(rides) for level, count in live.levels.items() if level in collected.levels}
    total = sum(shares.values())
    mixed = (
        [random_mix(collected, {level: share / total for level, share in shares.items()})] if shares else []
    )
    return [
        fixed(collected, "intern", LEVEL_0),
        fixed(collected, "mentor", "mentor"),
        fixed(collected, "mentor_concise", "mentor_concise"),
        *(fixed(collected, f"fixed_{level}", level) for level in collected.levels if level != LEVEL_0),
        *mixed,  # none where the mentor answered everything itself
        oracle(collected),
        live,
    ]


def summary(
    task: str, answered: Sequence[Answered], steps: Sequence[int], against: str = "mentor"
) -> list[dict[str, Any]]:
    """The rows of `summary.json`; accuracies and shares are fractions, compute is TFLOPs per question.

    Args:
        steps: per question; the leak share is over questions of two steps or more (0 steps: unknown, counted).
        against: the method that differences are taken to; costs are shares of the mentor's.
    """
    deep = np.array([count != 1 for count in steps])
    by_name = {one.method: one for one in answered}
    mentor, concise = by_name["mentor"], by_name["mentor_concise"]
    return [_row(task, one, mentor, concise, by_name[against], deep) for one in answered]


def _row(
    task: str, one: Answered, mentor: Answered, concise: Answered, other: Answered, deep: NDArray[np.bool_]
) -> dict[str, Any]:
    low, high = metrics.wilson_interval(float(one.correct.sum()), len(one.correct))
    difference = metrics.paired_bootstrap(one.correct, other.correct)
    return {
        "method": one.method,
        "task": task,
        "n": len(one.correct),
        "accuracy": float(one.correct.mean()),
        "accuracy_low": low,
        "accuracy_high": high,
        "difference": float((one.correct - other.correct).mean()),
        "difference_low": difference[0],
        "difference_high": difference[1],
        "mentor_tokens": float(one.mentor_tokens.mean()),
        "intern_tokens": float(one.intern_tokens.mean()),
        "tflops": float(one.flops.mean()) / 1e12,
        "tflops_paper": float(one.paper.mean()) / 1e12,
        "cost_vs_mentor": float(one.flops.sum() / mentor.flops.sum()),
        "cost_vs_concise": float(one.flops.sum() / concise.flops.sum()),
        "levels": {level: round(count, 1) for level, count in one.levels.items()},
        "leak_share": float(one.leak[deep].mean()) if deep.any() else 0.0,
        "truncated_share": float(one.truncated.mean()),
        "judging_share": float(one.judging.sum() / one.flops.sum()),
        "seconds": float(one.seconds.mean()),
    }


def markdown(
    rows: Sequence[dict[str, Any]], footnotes: Sequence[str] = (), columns: Sequence[str] = COLUMNS
) -> str:
    """The table as Markdown; what a row lacks is a dash."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(_cell(row, column) for column in columns) + " |" for row in rows]
    return "\n".join(lines) + "\n\n" + "\n\n".join(footnotes) + "\n"


def _cell(row: dict[str, Any], column: str) -> str:
    if column == "accuracy" and "accuracy_low" in row:
        return f"{row['accuracy']:.2%} [{row['accuracy_low']:.2%}, {row['accuracy_high']:.2%}]"
    if column == "difference" and "difference_low" in row:
        return f"{100 * row['difference']:+.2f} [{100 * row['difference_low']:+.2f}, {100 * row['difference_high']:+.2f}]"
    value = row.get(column)
    if value is None:
        return "–"
    if column.startswith("paper"):
        return f"{value:g}"
    if column.startswith("tflops"):
        return f"{value * 1e3:.3f} GFLOPs" if value < 1 else f"{value:.2f}"
    if column.endswith("share"):
        return f"{value:.1%}"
    return (
        f"{value:.3f}"
        if column.startswith("cost")
        else f"{value:.1f}"
        if isinstance(value, float)
        else str(value)
    )


def pyplot() -> Any:
    """Matplotlib's pyplot, drawing to files that are the same every time.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise MissingExtraError("plots need matplotlib: pip install 'ensemblehub[eval]'") from error
    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "ensemblehub"
    from matplotlib import pyplot as plt

    return plt


def plot(rows: Sequence[dict[str, Any]], folder: Path, title: str) -> list[Path]:
    """Accuracy against cost, as PNG and SVG.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(8, 5.2))
    for row in rows:
        x, y = row["cost_vs_mentor"], 100 * row["accuracy"]
        bars = [[y - 100 * row["accuracy_low"]], [100 * row["accuracy_high"] - y]]
        style = {"tandem": ("*", "C3", 14), "mentor": ("s", "C0", 8), "oracle": ("x", "0.6", 8)}
        marker, color, size = style.get(row["method"], ("o", "C7", 6))
        axes.errorbar(x, y, bars, fmt=marker, color=color, markersize=size, capsize=2, linewidth=1)
        axes.annotate(
            row["method"].replace("_", " "),
            (x, y),
            xytext=(7, -14 if row["method"] == "tandem" else 5),
            textcoords="offset points",
            fontsize=9,
        )
    axes.set(
        xlabel="cost against the mentor alone (full ledger)",
        ylabel="accuracy, % (95 % interval)",
        title=title,
    )
    axes.grid(alpha=0.3)
    paths = [folder / "pareto.png", folder / "pareto.svg"]
    for path in paths:
        figure.savefig(
            path, dpi=150, bbox_inches="tight", metadata={"Date": None} if path.suffix == ".svg" else None
        )
    plt.close(figure)
    return paths


@dataclass(frozen=True)
class Checks:
    """What `evaluate` found out besides (`checks.json`).

    Attributes:
        reproduced: how many of the `checked` questions' baselines a live run wrote again, by method.
        rides: timed one at a time; over them wall time against engines' time, and judging's share of the former.
        grading: what is to be said of how answers were graded.
    """

    checked: int
    reproduced: dict[str, int]
    rides: int
    wall_over_engine_seconds: FiniteFloat
    judging_share_of_wall: FiniteFloat
    grading: str = ""


def notes(collected: Collected, checks: Checks | None, against: str = "the mentor alone") -> list[str]:
    """What stands below the table: conditions, what differences are taken to, and what was checked."""
    header = collected.header
    lines = [
        f"n = {len(collected.rows)} questions of `{header['task']}` ({header['split']}), mentor `{header['mentor']}`, "
        f"intern `{header['intern']}`, temperature {header['temperature']}, at most {header['max_tokens']} answer "
        f"tokens. Accuracy with Wilson 95 % interval; difference to {against} in points with paired-bootstrap "
        "95 % interval. Costs are full ledgers, cold (no prefix shared between questions); tflops_paper counts output "
        "tokens only; leak_share is over questions of two steps or more. random_mix draws Tandem's levels at random; "
        "oracle knows the answers and is a bound."
    ]
    if checks:
        same = ", ".join(f"{name} {count}" for name, count in checks.reproduced.items())
        ratio, share = checks.wall_over_engine_seconds, checks.judging_share_of_wall
        lines += [
            f"Baselines run again live on {checks.checked} questions wrote the same text: {same}.",
            f"One ride at a time ({checks.rides} rides): wall time {ratio:.3f} times the engines' own time, "
            f"judging {share:.1%} of it.",
        ]
    if checks and checks.grading:
        lines.append(checks.grading)
    return lines


def write(folder: Path, rows: list[dict[str, Any]], footnotes: Sequence[str], title: str) -> str:
    """Write `summary.json`, `table.md` and the plot; returns the table."""
    table = f"# {title}\n\n{markdown(rows, footnotes)}"
    write_atomically(folder / "summary.json", json.dumps(rows, indent=1) + "\n")
    write_atomically(folder / "table.md", table)
    plot(rows, folder, title)
    return table
