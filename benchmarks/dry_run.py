"""What `bench --dry-run` predicts beside what the whole run took.

    python -m benchmarks.dry_run FULL --pilot 20 [--concurrency 32]
    python -m benchmarks.dry_run FULL PILOT --pilot 20

FULL is the result folder of a run that went on from its dry run: the first 20 answers of each journal are the
pilot.  Its time, of answering alone, follows from the `wall` of the answers and from how many were in progress.
PILOT is the folder of a dry run of another day or machine; times are left out then.  `held` is the share of random
pilots of that size, drawn from the whole run's own answers, whose interval holds its total.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ensemblehub.board import kept_questions
from ensemblehub.inference import clock
from ensemblehub.lab.bench.forecast import LEVEL, Forecast, elapsed, forecast, forecast_time, forecasts
from ensemblehub.lab.bench.rows import AnswerRow, journals, read_rows
from ensemblehub.lab.markdown import table
from ensemblehub.terminal import flops_text

FIGURES = {"tokens read": "read", "tokens written": "written", "compute": "flops", "dollars": "usd"}
TEXTS: dict[str, Callable[[float], str]] = {"flops": flops_text, "usd": "{:.4f}".format}
DRAWS = 2000
HEADER = ("method", "figure", "predicted [95 %]", "whole run", "inside", "held")


def held(values: Sequence[float], pilots: NDArray[np.int64], level: float = LEVEL) -> float:
    """The share of pilots whose interval holds the sum of `values`, but for rounding.

    Args:
        pilots: Places of the answers of a pilot in each row.
    """
    known, total = np.asarray(values, float), float(sum(values))
    _, low, high = forecasts(known[pilots], len(known), level)
    return float(np.mean((low * (1 - 1e-9) <= total) & (total <= high * (1 + 1e-9))))


def drawn(count: int, size: int, draws: int = DRAWS) -> NDArray[np.int64]:
    """Random pilots of `size` answers out of `count`, a row each, the same ones in every call."""
    return np.random.default_rng(0).random((draws, count)).argsort(1)[:, :size]


def ordered(folder: Path, path: Path) -> list[AnswerRow]:
    """A cell's rows in the order of the questions, where the folder keeps them."""
    rows = read_rows(path)[1]
    order = kept_questions(folder / "questions.jsonl") or rows
    return [rows[key] for key in order if key in rows]


def lines(name: str, pilot: Sequence[AnswerRow], whole: Sequence[AnswerRow]) -> list[list[str]]:
    """A line of the table per figure."""
    made, pilots = [], drawn(len(whole), len(pilot))
    for title, column in FIGURES.items():
        known, values = ([getattr(row, column) for row in rows] for rows in (pilot, whole))
        if total := sum(values):
            text = TEXTS.get(column, "{:,.0f}".format)
            made.append(_line(name, title, forecast(known, len(whole)), total, text))
            made[-1].append(f"{held(values, pilots):.1%}")
    return made


def time_line(name: str, pilot: Sequence[AnswerRow], whole: Sequence[AnswerRow], at_once: int) -> list[str]:
    """The line of the time: of the pilot, and of the answers after it, both in the order of the questions."""
    known = {row.id for row in pilot}
    walls, rest = ([row.wall for row in whole if (row.id in known) == first] for first in (True, False))
    took = elapsed(walls, at_once) + elapsed(rest, at_once)
    return [*_line(name, "time", forecast_time(walls, len(whole), at_once), took, clock), "–"]


def _line(name: str, title: str, found: Forecast, total: float, text: Callable[[float], str]) -> list[str]:
    told = f"{text(found.total)} [{text(found.low)}, {text(found.high)}]"
    return [name, title, told, text(total), "yes" if found.low <= total <= found.high else "no"]


def main() -> None:
    """Print the table of all cells whose pilot is complete."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("whole", type=Path, metavar="FULL")
    parser.add_argument("pilots", type=Path, metavar="PILOT", nargs="?")
    parser.add_argument("--pilot", type=int, default=10, help="answers of a complete pilot")
    parser.add_argument("--concurrency", type=int, default=32, help="answers that were in progress")
    given = parser.parse_args()
    full, made, notes = journals(given.whole), [], []
    for name, path in journals(given.pilots or given.whole).items():
        found, whole = (read_rows(at)[1] for at in (path, full[name]))
        pilot = found if given.pilots else dict(list(whole.items())[: given.pilot])
        if len(pilot) < given.pilot:
            notes.append(f"{name}: {len(pilot)} of {given.pilot} answers; those that end first are short.")
            continue
        rows = list(pilot.values()), list(whole.values())
        made += lines(name, *rows)
        if not given.pilots:
            made.append(time_line(name, rows[0], ordered(given.whole, path), given.concurrency))
            continue
        same = sum(whole[key].text == row.text for key, row in pilot.items())
        notes.append(f"{name}: {len(pilot)} of {len(whole)} questions, {same} answered in the same words.")
    print(table(HEADER, made), *notes, sep="\n\n")


if __name__ == "__main__":
    main()
