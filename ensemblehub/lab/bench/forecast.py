"""`ensemblehub bench --dry-run`: what a whole run would take, from a pilot of a few questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ensemblehub.inference import clock
from ensemblehub.lab.bench.answers import Bench, Errors, Questions
from ensemblehub.lab.bench.cells import Cell
from ensemblehub.lab.bench.rows import ANSWERS, AnswerRow
from ensemblehub.lab.bench.run import check_folder, check_samples, locked
from ensemblehub.lab.markdown import table
from ensemblehub.terminal import flops_text

FIGURES = ("read", "written", "flops", "usd", "wall")
HEADER = ("method", "pilot", "answers", "read", "written", "compute", "dollars", "time")


@dataclass(frozen=True)
class Forecast:
    """A total over all answers, with its 95 % prediction interval."""

    total: float
    low: float
    high: float


def forecast(known: Sequence[float], count: int) -> Forecast:
    """The total of `count` values of which some are known, drawn alike.

    The unknown ones are predicted by the mean of the known, with Student's t for the spread of that mean
    and of theirs.  The interval is one of the logarithm (delta method): lengths of answers are skewed to the
    right, and an interval of equal sides ends too low.

    Args:
        known: at least two, none negative.
    """
    from scipy import stats

    values = np.asarray(known, float)
    n, left, done, mean = len(values), count - len(values), float(values.sum()), float(values.mean())
    spread = float(values.std(ddof=1)) / mean * np.sqrt(1 / n + 1 / left) if left and mean else 0.0
    factor = float(np.exp(stats.t.ppf(0.975, n - 1) * spread))
    return Forecast(done + left * mean, done + left * mean / factor, done + left * mean * factor)


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

    Returns:
        A table: tokens computed and generated, compute, dollars and wall time of all answers.

    Raises:
        ArtifactError: Another bench writes into the folder, or it holds other questions.
    """
    count, names = len(questions.asks), [cell.file for cell in cells]
    chosen = np.unique(np.linspace(0, len(questions.items) - 1, min(pilot, len(questions.items))).astype(int))
    part = replace(questions, items=[questions.items[at] for at in chosen])
    check_samples(cells, questions.samples)
    lines = []
    with locked(folder):
        check_folder(folder, names, questions)
        running = Bench(part, folder / ANSWERS, force, errors)
        for cell in cells:
            lines.append(_line(cell, running.answered(cell), count))
    note = (
        f"Of {count} answers, from the pilot's (kept: the run without --dry-run goes on from them), with "
        "95 % prediction intervals. Time is that of answering, as many questions at once as in the pilot: a "
        "pilot that is smaller than `experiment.concurrency` tells more than a whole run takes."
    )
    return f"{table(HEADER, lines)}\n\n{note}\n"


def _line(cell: Cell, rows: Sequence[AnswerRow], count: int) -> list[str]:
    figures = {name: forecast([getattr(row, name) for row in rows], count) for name in FIGURES}
    at_once = min(len(rows), cell.config.experiment.concurrency)

    def told(name: str, text: str) -> str:
        found = figures[name]
        return f"{found.total:{text}} [{found.low:{text}}, {found.high:{text}}]"

    flops, wall = figures["flops"], figures["wall"]
    compute = [flops_text(value) for value in (flops.total, flops.low, flops.high)]
    times = [clock(value / at_once) for value in (wall.total, wall.low, wall.high)]
    return [
        cell.name,
        str(len(rows)),
        str(count),
        told("read", ",.0f"),
        told("written", ",.0f"),
        "{} [{}, {}]".format(*compute) if flops.total else "–",
        told("usd", ".4f") if figures["usd"].total else "–",
        "{} [{}, {}]".format(*times),
    ]
