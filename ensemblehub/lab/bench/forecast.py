"""`ensemblehub bench --dry-run`: what a whole run would take, from a pilot of a few questions."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ensemblehub.inference import clock
from ensemblehub.lab.bench.answers import Bench, Errors, Questions
from ensemblehub.lab.bench.cells import Cell
from ensemblehub.lab.bench.rows import ANSWERS, AnswerRow
from ensemblehub.lab.bench.run import check_folder, check_samples, locked
from ensemblehub.lab.bench.summary import CostUnit, is_known
from ensemblehub.lab.markdown import table
from ensemblehub.terminal import flops_text

LEVEL = 0.96  # of Student's t: as answers' lengths are skewed, it holds 95 % (results/dry_run/coverage.md)
FIGURES = ("read", "written", "flops", "usd")
HEADER = ("method", "pilot", "answers", "read", "written", "compute", "dollars", "time")


@dataclass(frozen=True)
class Forecast:
    """A total over all answers, with its 95 % prediction interval."""

    total: float
    low: float
    high: float


def forecast(known: Sequence[float] | NDArray[np.float64], count: int, level: float = LEVEL) -> Forecast:
    """The total of `count` values of which some are known, drawn alike.

    The unknown ones are predicted by the mean of the known, with Student's t for the spread of that mean
    and of theirs.  The interval is one of the logarithm (delta method): lengths of answers are skewed to the
    right, and an interval of equal sides ends too low.

    Args:
        known: at least two, or all; none negative.
        level: of Student's t, in (0, 1).
    """
    return Forecast(*(float(row[0]) for row in forecasts(np.asarray([known], float), count, level)))


def forecasts(known: NDArray[np.float64], count: int, level: float = LEVEL) -> NDArray[np.float64]:
    """`forecast` for every row of `known`: totals, lower and upper ends, (3, rows)."""
    from scipy import stats

    n, left = known.shape[1], count - known.shape[1]
    done, mean = known.sum(1), known.mean(1)
    if not left:
        return np.asarray([done, done, done])
    spread = known.std(1, ddof=1) / np.where(mean, mean, 1) * np.sqrt(1 / n + 1 / left)
    factor = np.exp(stats.t.ppf((1 + level) / 2, n - 1) * spread)
    return np.asarray([done + left * mean, done + left * mean / factor, done + left * mean * factor])


def elapsed(walls: Sequence[float], at_once: int) -> float:
    """Seconds from the first answer's begin to the last one's end: begun in this order, `at_once` in progress."""
    ends = [0.0] * at_once
    for wall in walls:
        heapq.heapreplace(ends, ends[0] + wall)
    return max(ends)


def question_sums(values: Sequence[float], samples: int) -> NDArray[np.float64]:
    """The sum of every question's samples; samples of a question are alike, so its sum is what is drawn.

    Args:
        values: of the first sample of every question, then of the second, and so on.
    """
    return np.asarray(np.reshape(values, (samples, -1)).sum(0), float)


def forecast_time(walls: Sequence[float], count: int, at_once: int, samples: int = 1) -> Forecast:
    """Seconds that `count` answers take, `at_once` in progress, of which the first took `walls` each.

    A pilot has fewer answers in progress than the run, throughout or while the last ones end, and how much faster
    more of them would be depends on the engine.  At best answers do not slow each other down: the rest take
    as long as the pilot's, `at_once` of them at a time.  At worst they share the engine: the rest come at the
    pilot's rate.  The interval reaches from one to the other, each with its prediction interval; the total is
    their geometric mean.

    Args:
        walls: of at least two questions, or all, in seconds, in the order in which the answers were begun.
        samples: answers to a question, see `question_sums`.
    """
    work = forecast(question_sums(walls, samples), count // samples)
    done, took = sum(walls), elapsed(walls, at_once)
    best, worst = 1 / at_once, took / done if done else 0.0
    mean = float(np.sqrt(best * worst))
    bounds = ((work.total, mean), (work.low, best), (work.high, worst))
    return Forecast(*(took + (value - done) * share for value, share in bounds))


def dry_run(
    cells: Sequence[Cell],
    questions: Questions,
    folder: Path,
    pilot: int,
    force: bool = False,
    errors: Errors = "stop",
) -> str:
    """Answer `pilot` questions, spread evenly, and tell what all would take; the answers are kept for the
    run.

    Args:
        pilot: at least two; where there are no more questions than that, the table says what they took.

    Returns:
        A table: tokens computed and generated, compute, dollars and wall time of all answers.

    Raises:
        ArtifactError: Another bench writes into the folder, or it holds other questions.
    """
    count, names = len(questions.asks), [cell.file for cell in cells]
    chosen = np.unique(np.linspace(0, len(questions.items) - 1, min(pilot, len(questions.items))).astype(int))
    part = replace(questions, items=[questions.items[at] for at in chosen])
    check_samples(cells, questions.samples)
    lines, notes = [], []
    with locked(folder):
        check_folder(folder, names, questions)
        running = Bench(part, folder / ANSWERS, force, errors)
        for cell in cells:
            rows = running.answered(cell)
            lines.append(_line(cell, rows, questions))
            alone = cell.config.aggregation.method == "single"  # calls one of its members
            models = [] if alone else [spec.name for spec in cell.config.members]
            notes += unseen(cell.name, models, rows)
    if len(part.asks) == count:
        note = (
            "The pilot answered all questions, so nothing is predicted (kept: the run without --dry-run reports on "
            "them). Time is that of answering, without loading and grading."
        )
        return f"{table(HEADER, lines)}\n\n{note}\n"
    note = (
        f"Of {count} answers, from the pilot's (kept: the run without --dry-run goes on from them), with "
        "95 % prediction intervals. Time is that of answering, without loading and grading, where the engines stay "
        "as busy otherwise; its interval allows for a pilot with fewer answers in progress than the run, and is the "
        "narrower, the more often the pilot holds `experiment.concurrency`."
    )
    return "\n\n".join([table(HEADER, lines), note, *notes]) + "\n"


def unseen(name: str, models: Sequence[str], rows: Sequence[AnswerRow]) -> list[str]:
    """What the intervals of a cell leave out: the models that no answer of its pilot called."""
    called = {line["engine"] for row in rows for line in row.usage}
    idle = [model for model in models if model not in called]
    if not idle:
        return []
    asked = len({row.question for row in rows})
    share = 1 - 0.05 ** (1 / asked)  # of a larger share of the questions, 95 % of pilots have one
    return [
        f"{name}: none of its {len(rows)} answers called {' or '.join(idle)}. Up to {share:.0%} of all may, and "
        "the intervals leave that out: take a larger pilot."
    ]


def _line(cell: Cell, rows: Sequence[AnswerRow], questions: Questions) -> list[str]:
    samples, count = questions.samples, len(questions.asks)
    sums = {name: question_sums([getattr(row, name) for row in rows], samples) for name in FIGURES}
    figures = {name: forecast(values, len(questions.items)) for name, values in sums.items()}
    priced = {spec.name for spec in cell.config.members if cell.config.options(spec).get("price")}
    units: tuple[CostUnit, ...] = ("flops", "usd")
    known = {unit for unit in units if is_known(unit, rows, priced) and figures[unit].total}
    at_once = cell.config.experiment.concurrency
    time = forecast_time([row.wall for row in rows], count, at_once, samples)

    def told(found: Forecast, text: Callable[[float], str]) -> str:
        interval = f" [{text(found.low)}, {text(found.high)}]" if len(rows) < count else ""
        return text(found.total) + interval

    return [
        cell.name,
        str(len(rows)),
        str(count),
        told(figures["read"], "{:,.0f}".format),
        told(figures["written"], "{:,.0f}".format),
        told(figures["flops"], flops_text) if "flops" in known else "–",
        told(figures["usd"], "{:.4f}".format) if "usd" in known else "–",
        told(time, clock),
    ]
