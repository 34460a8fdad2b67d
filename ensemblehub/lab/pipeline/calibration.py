"""Choosing one threshold per level on calibration data, for a stated objective, and where to give up.

Searches the whole grid of candidates over collected outcomes (`cascade.py`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal, Self, get_args

import numpy as np
from numpy.typing import ArrayLike

from ensemblehub.ensemble_methods.output_aggregation.tandem_options import CALIBRATED
from ensemblehub.errors import ConfigError, did_you_mean
from ensemblehub.lab.pipeline.cascade import Bools, Floats, Indices, Outcomes, expectation, replay

AimName = Literal["max-accuracy", "budget", "min-accuracy"]
BudgetUnit = Literal["share", "usd", "tflops"]
ALWAYS, NEVER = 0.0, 1.01  # thresholds that every and no probability reaches
QUANTILES = 20  # threshold candidates per level, besides never, and candidates to give up below
CONFIDENCE = 0.9  # one-sided, of `min-accuracy`
SMOOTHINGS = 2
FOLDS = 5


@dataclass(frozen=True)
class Objective:
    """What thresholds are chosen for.

    `max-accuracy`; `budget`: most accurate at a mean cost of a question of at most `value`; `min-accuracy`:
    cheapest with an accuracy of at least `value`.

    Attributes:
        unit: of a budget: the mentor's own cost, US dollars, or TFLOPs.
    """

    name: AimName = "max-accuracy"
    value: float | None = None
    unit: BudgetUnit = "share"

    def __post_init__(self) -> None:
        if self.name not in get_args(AimName):
            raise ConfigError(did_you_mean(self.name, get_args(AimName), "aim"))
        if (self.value is None) != (self.name == "max-accuracy"):
            problem = "needs a number, NAME:X" if self.value is None else "takes no number"
            raise ConfigError(f"aim {self.name!r} {problem}")
        most = math.inf if self.name == "budget" else 1
        if self.value is not None and not (0 < self.value <= most and math.isfinite(self.value)):
            raise ConfigError(f"aim {self.name!r} cannot be {self.value}")

    @classmethod
    def parse(cls, text: str) -> Self:
        """`max-accuracy`, `budget:SHARE`, `budget:$DOLLARS`, `budget:NUMBERTFLOPs` or `min-accuracy:VALUE`.

        Raises:
            ConfigError: something else.
        """
        name, colon, value = text.partition(":")
        number = value
        unit: BudgetUnit = "share"
        if name == "budget" and value.startswith("$"):
            number, unit = value[1:], "usd"
        elif name == "budget" and value.lower().endswith("tflops"):
            number, unit = value[: -len("tflops")], "tflops"
        try:
            return cls(name, float(number) if colon else None, unit)  # type: ignore[arg-type]
        except ValueError as error:
            raise ConfigError(f"aim {text!r}: {value!r} is not a number") from error

    def __str__(self) -> str:
        return self.name if self.value is None else f"{self.name}:{self.amount(self.value)}"

    def amount(self, value: float, digits: str = "g") -> str:
        """An amount in the budget's unit."""
        before, after = {"share": ("", ""), "usd": ("$", ""), "tflops": ("", "TFLOPs")}[self.unit]
        return f"{before}{value:{digits}}{after}"

    def mentor_amount(self, outcomes: Outcomes) -> float:
        """What the mentor costs by itself, in the budget's unit.

        Raises:
            ConfigError: the outcomes' costs are in another unit.
        """
        if self.unit == "share":
            return 1.0
        if (self.unit == "usd") != (outcomes.unit == "usd"):
            raise ConfigError(f"the budget of {self.amount(self.value or 0)} is for costs in another unit")
        return float(outcomes.mentor_cost.mean()) / (1e12 if self.unit == "tflops" else 1.0)


@dataclass(frozen=True)
class Calibrated:
    """What was chosen, and what it brings on the calibration data (see `cascade.expectation`).

    Attributes:
        thresholds, give_up: the probabilities that suffice and those below which the mentor is stopped, by
            level, each (L,).
    """

    thresholds: Floats
    give_up: Floats
    expected: dict[str, Any]


def calibrate(outcomes: Outcomes, aim: Objective, give_up: ArrayLike = 0.0) -> Calibrated:
    """The thresholds that serve the aim best, from the whole grid of candidates (`Grid`).

    Accuracies are compared after smoothing over neighbouring thresholds, so that a peak made by a few
    questions does not win over a plateau; costs are not smoothed, so a budget holds on the calibration data.
    Each give-up limit is smoothed by itself: where none gains anything, the thresholds are those without.
    `min-accuracy` asks that the lower end of a one-sided 90 % interval reaches the value; where none does,
    the most accurate thresholds are taken if they reach it themselves.  Equal accuracies: the cheapest.

    Args:
        give_up: probabilities below which the mentor is stopped, (L,); NaN where they are chosen, too.

    Raises:
        ConfigError: no thresholds serve the aim; names the best that can be had.
    """
    thresholds, below = search(outcomes, aim, give_up)
    expected = expectation(outcomes.giving_up(below), thresholds)
    return Calibrated(thresholds, below, expected | _cross_validated(outcomes, aim, give_up))


def search(outcomes: Outcomes, aim: Objective, give_up: ArrayLike) -> Floats:
    """The thresholds and give-up limits of `calibrate`, (2, L), without what they bring."""
    grid = Grid.of(outcomes, give_up)
    accuracy, cost = grid.surface(outcomes)
    smooth = np.stack([smoothed(part) for part in accuracy])
    best = _choose(accuracy, smooth, cost, aim, outcomes)
    return np.asarray(grid.limits([best])[0])


def _cross_validated(outcomes: Outcomes, aim: Objective, give_up: ArrayLike) -> dict[str, float | None]:
    """Accuracy and cost on questions that thresholds were not chosen on; None where a fold misses the aim."""
    fold = np.arange(len(outcomes.cost)) % FOLDS
    correct, cost = list[Bools](), list[Floats]()
    try:
        for index in range(min(FOLDS, len(fold) - 1)):
            thresholds, below = search(outcomes.part(fold != index), aim, give_up)
            unseen = replay(outcomes.part(fold == index).giving_up(below), thresholds)
            correct.append(unseen.correct)
            cost.append(unseen.cost)
    except ConfigError:
        correct.clear()
    if not correct:
        return {"cross_validated_accuracy": None, "cross_validated_cost": None}
    share = np.concatenate(cost).mean() / outcomes.mentor_cost.mean()
    return {
        "cross_validated_accuracy": float(np.concatenate(correct).mean()),
        "cross_validated_cost": float(share),
    }


def _choose(accuracy: Floats, smooth: Floats, cost: Floats, aim: Objective, outcomes: Outcomes) -> int:
    """Flat index into the grid."""
    allowed, value = np.ones(cost.shape, bool), aim.value or 0.0
    if aim.name == "budget":
        amount = cost / outcomes.mentor_cost.mean() * aim.mentor_amount(outcomes)
        allowed = amount <= value
        if not allowed.any():
            raise ConfigError(
                f"no thresholds keep the budget of {aim.amount(value)}: "
                f"the cheapest cost {aim.amount(amount.min(), '.3g')}"
            )
    if aim.name == "min-accuracy":
        surely = _lower_end(smooth, len(outcomes.cost)) >= value
        if surely.any():
            return int(np.where(surely, cost, np.inf).argmin())
        if accuracy.max() < value:
            raise ConfigError(
                f"no thresholds reach an accuracy of {value:g}: the best is {accuracy.max():.4f}"
            )
        allowed = accuracy >= value
    # Sums of floats differ in their last digits; accuracies that close are equal.
    equal = allowed & (smooth >= smooth[allowed].max() - 1e-9)
    return int(np.where(equal, cost, np.inf).argmin())


def _lower_end(accuracy: Floats, n: int) -> Floats:
    """Lower end of Wilson's one-sided interval, element by element."""
    z = NormalDist().inv_cdf(CONFIDENCE)
    spread = z * np.sqrt(accuracy * (1 - accuracy) / n + z * z / (4 * n * n))
    return np.asarray((accuracy + z * z / (2 * n) - spread) / (1 + z * z / n))


@dataclass(frozen=True)
class Grid:
    """Combinations of thresholds and give-up limits to choose from.

    Wherever the mentor may be stopped it is stopped below one and the same probability: of L levels, the
    grid would else have 2·L axes instead of L + 1, and be too large from four levels on.

    Attributes:
        give_up: probabilities below which the mentor is stopped, by level, (G, L).
        thresholds: candidates of every level, ascending.
    """

    give_up: Floats
    thresholds: list[Floats]

    @classmethod
    def of(cls, outcomes: Outcomes, give_up: ArrayLike = 0.0) -> Self:
        """The grid for these outcomes; `give_up`, (L,), is NaN where the limit is to be chosen."""
        stated = np.broadcast_to(np.asarray(give_up, np.float64), outcomes.heard.shape[1:])
        free = np.isnan(stated)
        said = candidates(outcomes.heard[:, free]) if free.any() else np.empty(0)
        tried = np.unique(np.minimum([0.0, *said], 1.0))
        thresholds = [candidates(column) for column in outcomes.heard.T]
        return cls(np.where(free, tried[:, None], stated), thresholds)

    def surface(self, outcomes: Outcomes) -> tuple[Floats, Floats]:
        """Mean accuracy and cost of every combination, each of shape (G, candidates of every level)."""
        parts = [surface(outcomes.giving_up(below), self.thresholds) for below in self.give_up]
        accuracy, cost = zip(*parts, strict=True)
        return np.stack(accuracy), np.stack(cost)

    def limits(self, places: Sequence[int] | Indices) -> Floats:
        """Thresholds and give-up limits of S combinations by their index in the flat surface, (S, 2, L)."""
        shape = (len(self.give_up), *map(len, self.thresholds))
        first, *others = np.unravel_index(np.asarray(places), shape)
        thresholds = [tried[at] for tried, at in zip(self.thresholds, others, strict=True)]
        return np.stack([np.stack(thresholds, axis=1), self.give_up[first]], axis=1)


def candidates(probabilities: Floats, quantiles: int = QUANTILES) -> Floats:
    """Thresholds worth trying at one level: always, midpoints between neighbours at quantiles, never."""
    said = probabilities[probabilities >= 0]
    distinct = np.unique(said)
    if not len(distinct):
        return np.array([NEVER])
    wanted = np.quantile(said, np.arange(1, quantiles) / quantiles, method="higher")
    above = np.searchsorted(distinct, np.unique(wanted))
    # Between two probabilities rather than on one: a live probability may differ in its last digit.
    between = (distinct[above[above > 0] - 1] + distinct[above[above > 0]]) / 2
    return np.concatenate([[ALWAYS], between, [NEVER]])


def surface(outcomes: Outcomes, grids: list[Floats]) -> tuple[Floats, Floats]:
    """Mean accuracy and mean cost of every combination of thresholds, each of shape (len(grid) per level).

    A question stops at level l under thresholds (j_0 … j_l) if its probability lies below j_k at all k < l
    and not below j_l: sums over a histogram of the questions, cumulated upwards along the first l axes and
    downwards along the last.  No combination is replayed by itself.
    """
    heard = outcomes.heard
    reached = [
        np.searchsorted(grid, column, side="right") for grid, column in zip(grids, heard.T, strict=True)
    ]
    _, right, cost = outcomes.unanswered()
    sums = []
    for stopping, otherwise in zip(outcomes.stopped(), (right, cost), strict=True):
        total = _cumulated(reached, grids, otherwise, len(grids))
        for level in range(len(grids)):
            part = _cumulated(reached[: level + 1], grids[: level + 1], stopping[:, level], level)
            total = total + part.reshape(part.shape + (1,) * (len(grids) - level - 1))
        sums.append(total / len(heard))
    return sums[0], sums[1]


def _cumulated(reached: list[Indices], grids: list[Floats], weights: Floats, below: int) -> Floats:
    """Sum of `weights` over questions below the threshold on the first `below` axes, not below on others."""
    shape = tuple(len(grid) + 1 for grid in grids)
    places = np.ravel_multi_index(tuple(reached), shape)
    table = np.bincount(places, weights, int(np.prod(shape))).reshape(shape)
    for axis in range(len(shape)):
        if axis < below:  # threshold j is missed by those that reached at most j of the ascending thresholds
            table = np.take(table.cumsum(axis), np.arange(shape[axis] - 1), axis)
        else:
            table = np.take(np.flip(np.flip(table, axis).cumsum(axis), axis), np.arange(1, shape[axis]), axis)
    return np.asarray(table)


def smoothed(values: Floats) -> Floats:
    """Means over neighbours, weights 1, 2, 1 along every axis and the edges repeated, `SMOOTHINGS` times."""
    for axis in SMOOTHINGS * list(range(values.ndim)):
        index = np.arange(values.shape[axis])
        before = np.take(values, np.maximum(index - 1, 0), axis)
        after = np.take(values, np.minimum(index + 1, index[-1]), axis)
        values = (before + 2 * values + after) / 4
    return values


def limits_of(give_up: Mapping[str, float | str] | None, levels: Sequence[str]) -> Floats:
    """A Tandem's `give_up` at these levels, (L,): 0 where there is none, NaN where it is `calibrated`.

    Raises:
        ConfigError: it is to be calibrated at a level that is not judged.
    """
    stated = give_up or {}
    if idle := [level for level, limit in stated.items() if limit == CALIBRATED and level not in levels]:
        raise ConfigError(
            f"`give_up` is `calibrated` at {idle[0]!r}, but only {', '.join(levels)} are judged"
        )
    limits = [stated.get(level, 0.0) for level in levels]
    return np.array([np.nan if limit == CALIBRATED else limit for limit in limits], np.float64)


def by_level(
    levels: Sequence[str], thresholds: Floats, give_up: Floats
) -> tuple[dict[str, float], dict[str, float]]:
    """Thresholds, and the give-up limits above 0, each by level."""
    found = dict(zip(levels, map(float, thresholds), strict=True))
    return found, {level: float(limit) for level, limit in zip(levels, give_up, strict=True) if limit}
