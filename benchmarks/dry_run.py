"""What `bench --dry-run` predicts beside what the whole run took.

    python -m benchmarks.dry_run PILOT FULL --pilot 20

PILOT is the result folder of `bench --dry-run 20`, FULL that of the run without it; they may be of different days
and machines.  `held` is the share of random pilots of that size, drawn from the whole run's own answers, whose interval
holds its total.  Times are left out: they are those of a machine and of what else it did.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ensemblehub.lab.bench.forecast import forecast
from ensemblehub.lab.bench.rows import AnswerRow, journals, read_rows
from ensemblehub.lab.markdown import table
from ensemblehub.terminal import flops_text

FIGURES = {"tokens read": "read", "tokens written": "written", "compute": "flops"}
DRAWS = 2000
HEADER = ("method", "figure", "predicted [95 %]", "whole run", "inside", "held")


def held(values: Sequence[float], size: int) -> float:
    """The share of random pilots of `size` whose interval holds the sum of `values`."""
    random, total = np.random.default_rng(0), sum(values)
    known = np.asarray(values, float)
    found = (forecast(random.choice(known, size, replace=False), len(known)) for _ in range(DRAWS))
    return float(np.mean([one.low <= total <= one.high for one in found]))


def lines(name: str, pilot: Sequence[AnswerRow], whole: Sequence[AnswerRow]) -> list[list[str]]:
    """A line of the table per figure."""
    made = []
    for title, column in FIGURES.items():
        known, values = ([getattr(row, column) for row in rows] for rows in (pilot, whole))
        found, total = forecast(known, len(whole)), sum(values)
        told = flops_text if column == "flops" else "{:,.0f}".format
        made.append(
            [
                name,
                title,
                f"{told(found.total)} [{told(found.low)}, {told(found.high)}]",
                told(total),
                "yes" if found.low <= total <= found.high else "no",
                f"{held(values, len(pilot)):.1%}",
            ]
        )
    return made


def main() -> None:
    """Print the table of all cells whose pilot is complete."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pilots", type=Path, metavar="PILOT")
    parser.add_argument("whole", type=Path, metavar="FULL")
    parser.add_argument("--pilot", type=int, default=10, help="answers of a complete pilot")
    given = parser.parse_args()
    full, made, notes = journals(given.whole), [], []
    for name, path in journals(given.pilots).items():
        pilot, whole = (read_rows(at)[1] for at in (path, full[name]))
        if len(pilot) < given.pilot:
            notes.append(f"{name}: {len(pilot)} of {given.pilot} answers; those that end first are short.")
            continue
        made += lines(name, list(pilot.values()), list(whole.values()))
        same = sum(whole[key].text == row.text for key, row in pilot.items())
        notes.append(f"{name}: {len(pilot)} of {len(whole)} questions, {same} answered in the same words.")
    print(table(HEADER, made), *notes, sep="\n\n")


if __name__ == "__main__":
    main()
