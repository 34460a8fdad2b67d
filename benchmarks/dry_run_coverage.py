"""How often the intervals of `bench --dry-run` hold the total of a whole run.

    python -m benchmarks.dry_run_coverage --choose FOLDER... --check FOLDER... [--draws 1000]

Every cell of every result folder is a whole run; its pilots are drawn from its own answers: at random, and also
every N-th one from each beginning, as a dry run takes them (in the order of `questions.jsonl`, else in that of the
answers).  Pilots in which a model was never called that the whole run calls are left out, as `bench --dry-run` says
so.  Cells where fewer than a quarter of the pilots remain are left out altogether.  `all called` is the share that
remains, `of all pilots` what is held with those left out.  Dollars are those of `PRICES`.  The level of Student's t
was chosen on the folders of --choose, at random pilots, and is checked on those of --check.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.dry_run import drawn, held, ordered
from ensemblehub.lab.bench.forecast import LEVEL, forecasts
from ensemblehub.lab.bench.rows import AnswerRow, journals
from ensemblehub.lab.markdown import table

PRICES = {"mentor": (1.0, 3.0), "intern": (0.1, 0.3)}  # dollars per million tokens read, written
LEVELS = (0.95, 0.96, 0.97)
SIZES = (10, 20)
HEADER = [
    "folder",
    "cells",
    "pilot",
    "all called",
    "figure",
    f"held at {LEVELS[0]}",
    "width",
    f"held at {LEVEL}",
]
HEADER += ["width", "every N-th", "of all pilots", "lowest cell"]


@dataclass(frozen=True)
class Share:
    """What the pilots of one size say of one figure of a cell.

    Attributes:
        held, width: By level of t; widths are means over pilots, as shares of the total.
        even: The share of evenly spread pilots that hold the total at `LEVEL`; nan where none called all models.
        all: The share of all random pilots.
    """

    held: dict[float, float]
    width: dict[float, float]
    even: float
    all: float


def dollars(row: AnswerRow) -> float:
    """What the models of an answer cost at `PRICES`."""
    tokens = ((PRICES[line["engine"]], line) for line in row.usage if line["engine"] in PRICES)
    return sum(
        read * line["prompt_tokens"] + written * line["completion_tokens"] for (read, written), line in tokens
    )


def figures(rows: Sequence[AnswerRow]) -> dict[str, list[float]]:
    """The columns whose totals are predicted."""
    named = {"tokens read": "read", "tokens written": "written", "compute": "flops"}
    return {title: [getattr(row, name) for row in rows] for title, name in named.items()} | {
        "dollars": [dollars(row) for row in rows]
    }


def calling(rows: Sequence[AnswerRow], pilots: NDArray[np.int64]) -> NDArray[np.int64]:
    """The pilots that call every model that any row calls."""
    called = np.asarray([[name in {line["engine"] for line in row.usage} for name in PRICES] for row in rows])
    return pilots[(called[pilots].any(1) == called.any(0)).all(1)]


def evenly(count: int, size: int) -> NDArray[np.int64]:
    """Pilots as a dry run spreads them, from each beginning."""
    places = np.linspace(0, count - 1, size).astype(int)
    return (places + np.arange(count // size)[:, None]) % count


def share_of(
    values: Sequence[float], every: NDArray[np.int64], random: NDArray[np.int64], even: NDArray[np.int64]
) -> Share:
    """What these pilots say of one figure."""
    known = np.asarray(values, float)

    def width(level: float) -> float:
        _, low, high = forecasts(known[random], len(known), level)
        return float(np.mean(high - low) / known.sum())

    return Share(
        {level: held(values, random, level) for level in LEVELS},
        {level: width(level) for level in LEVELS},
        held(values, even) if len(even) else float("nan"),
        held(values, every),
    )


def measured(folder: Path, draws: int) -> dict[int, tuple[float, dict[str, list[Share]]]]:
    """Per size of pilot: the share of pilots that call all models, and the shares of every cell by figure."""
    cells = [ordered(folder, path) for path in journals(folder).values()]
    found = {}
    for size in SIZES:
        shares: dict[str, list[Share]] = defaultdict(list)
        called = []
        for rows in cells:
            every = drawn(len(rows), size, draws)
            random = calling(rows, every)
            called.append(len(random) / draws)
            if len(random) < draws / 4:  # too few to tell a share of
                continue
            even = calling(rows, evenly(len(rows), size))
            for title, values in figures(rows).items():
                shares[title].append(share_of(values, every, random, even))
        found[size] = (float(np.mean(called)), dict(shares))
    return found


def lines(folder: Path, found: dict[int, tuple[float, dict[str, list[Share]]]]) -> Iterator[list[str]]:
    """The lines of a folder's table."""
    for size, (called, shares) in found.items():
        for title, cells in shares.items():
            yield [
                f"{folder.parent.name}/{folder.name}",
                str(len(cells)),
                str(size),
                f"{called:.0%}",
                title,
                *(
                    text
                    for level in (LEVELS[0], LEVEL)
                    for text in (
                        f"{mean(cells, level):.1%}",
                        f"{np.mean([c.width[level] for c in cells]):.2f}",
                    )
                ),
                f"{np.nanmean([cell.even for cell in cells]):.1%}",
                f"{np.mean([cell.all for cell in cells]):.1%}",
                f"{min(cell.held[LEVEL] for cell in cells):.0%}",
            ]


def mean(cells: Sequence[Share], level: float) -> float:
    """The mean share over cells at a level."""
    return float(np.mean([cell.held[level] for cell in cells]))


def main() -> None:
    """Print the table by folder and figure, and the summary by half, level and size."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for flag in ("--choose", "--check"):
        parser.add_argument(flag, type=Path, nargs="+", required=True, metavar="FOLDER")
    parser.add_argument("--draws", type=int, default=1000, help="random pilots of each size and cell")
    given = parser.parse_args()
    summary, made = [], []
    for half in ("choose", "check"):
        all_found = {folder: measured(folder, given.draws) for folder in getattr(given, half)}
        for size in SIZES:
            folders = [
                [cell for cells in found[size][1].values() for cell in cells] for found in all_found.values()
            ]
            told = [f"{np.mean([mean(cells, level) for cells in folders]):.1%}" for level in LEVELS]
            summary.append([half, str(size), *told])
        for folder, found in all_found.items():
            made += lines(folder, found)
    print(table(("folders to", "pilot", *(f"held at {level}" for level in LEVELS)), summary))
    print("\n(means over folders of the means over their cells and figures)\n")
    print(table(HEADER, made))


if __name__ == "__main__":
    main()
