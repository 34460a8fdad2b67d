"""What a cell has to beat: random mixes of trivial cells at its own cost, and an oracle over them.

A random mix sends each question to one of two cells by chance, so that it reaches every point on the line
between their (cost, accuracy).  The best mixes of several cells are the upper concave hull of their points.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ensemblehub.errors import ArtifactError
from ensemblehub.lab import metrics
from ensemblehub.lab.bench.report import CellAnswers
from ensemblehub.lab.bench.summary import CostUnit, shares
from ensemblehub.lab.pipeline import cascade

UNITS: dict[str, CostUnit] = {"cold_flops": "flops", "usd": "usd"}  # costs that may be unknown


@dataclass(frozen=True)
class Mix:
    """The best random mix at a cell's cost; accuracies are fractions.

    Attributes:
        difference: Of the cell to the mix, paired; `low` and `high` its 95 % interval with the mix as given.
    """

    accuracy: float
    difference: float
    low: float
    high: float

    def __str__(self) -> str:
        points = [100 * value for value in (self.difference, self.low, self.high)]
        return f"{self.accuracy:.1%}, {{:+.1f}} [{{:+.1f}}, {{:+.1f}}]".format(*points)


def single_models(cells: Sequence[CellAnswers]) -> list[CellAnswers]:
    """The cells in which one model answers alone."""
    return [cell for cell in cells if _aggregation(cell) == ("single", "")]


def fixed_levels(cells: Sequence[CellAnswers]) -> list[CellAnswers]:
    """The cells in which Tandem's level is the same for every question; with a `draft` it is not."""
    return [cell for cell in cells if _aggregation(cell) == ("tandem", "fixed")]


def _aggregation(cell: CellAnswers) -> tuple[str, str]:
    """A cell's method, and the kind of its judge, or of a draft's."""
    found = cell.settings.get("aggregation", {})
    params = found.get("params", {})
    judge = params.get("draft") or params.get("judge", "")
    return found.get("method", ""), str(judge).partition(":")[0]


def best_mix(cell: CellAnswers, parts: Sequence[CellAnswers]) -> Mix | None:
    """The best random mix of `parts` at the cost of `cell`, over its questions; None where none costs that."""
    key = _cost([cell, *parts])
    right = [shares(part.rows) for part in parts]
    points = [
        (_mean(part, key), float(np.mean(list(of.values())))) for part, of in zip(parts, right, strict=True)
    ]
    found = cascade.best_shares(points, _mean(cell, key))
    if found is None:
        return None
    own = shares(cell.rows)
    mixed = found @ [[of[name] for name in own] for of in right]
    mine = np.array(list(own.values()))
    return Mix(float(mixed.mean()), float((mine - mixed).mean()), *metrics.paired_bootstrap(mine, mixed))


def oracle(parts: Sequence[CellAnswers]) -> CellAnswers:
    """The cheapest of `parts` that is right, answer by answer, or the cheapest of all; a bound, no method.

    Raises:
        ArtifactError: They have not answered the same questions.
    """
    key, rows = _cost(parts), [{row.id: row for row in part.rows} for part in parts]
    if any(found.keys() != rows[0].keys() for found in rows):
        names = ", ".join(part.name for part in parts)
        raise ArtifactError(f"{names} have not answered the same questions: an oracle over them needs that")
    answers = [[found[name] for found in rows] for name in rows[0]]
    chosen = cascade.oracle(
        [[row.correct for row in line] for line in answers],
        [[getattr(row, key) for row in line] for line in answers],
    )
    picked = [line[at] for line, at in zip(answers, chosen, strict=True)]
    engines = {name: of for part in parts for name, of in part.settings.get("engines", {}).items()}
    settings = parts[0].settings | {"engines": engines}
    return replace(
        parts[0], name="oracle", settings=settings, rows=picked, path=parts[0].path.with_name("oracle")
    )


def _cost(cells: Sequence[CellAnswers]) -> str:
    """What costs are compared in: the first that is known of all cells, else the tokens generated."""
    known = (key for key, unit in UNITS.items() if all(cell.knows(unit) for cell in cells))
    return next((key for key in known if any(_mean(cell, key) for cell in cells)), "written")


def _mean(cell: CellAnswers, key: str) -> float:
    return float(np.mean([getattr(row, key) for row in cell.rows]))
