"""The cascade of levels, replayed on collected outcomes: what thresholds would have brought.

Everything is arithmetic; nothing runs a model. Costs are in any one unit (FLOPs, seconds, dollars), the same
for all arrays.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ensemblehub.lab import metrics

Fallback = Literal["best", "last", "mentor"]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Indices = NDArray[np.int64]

MENTOR = -1  # the level of an answer that the mentor wrote itself


@dataclass(frozen=True)
class Outcomes:
    """What every level would have brought, for n questions and L levels in the order they are visited.

    Attributes:
        probabilities: the judge's, (n, L).
        correct: the intern answers right from that level, (n, L).
        cost: of answering from that level without a judge: all work up to there and the answer, (n, L).
        judging: of having judged the levels up to and including that one, beyond what an answer from it
            needs anyway, (n, L).
        reached: the part of `cost` that is spent on reaching the level, whoever answers: the mentor's
            insight and the intern's reading up to there, (n, L).  An answer from an earlier level pays it
            too.
        mentor_correct, mentor_cost: of the mentor answering by itself, (n,).
        visited: False where a run does not stop at that level, because the mentor had already ended,
            (n, L); the first level is always visited, and none after one that is not.
        fallback: who answers when no level suffices: the level with the highest probability, the last
            visited one, or the mentor.
        unit: of all costs.
        drafted: the first level's probability is of the intern's draft, on a scale of its own; the draft is
            in `reached` there, and in `judging` at the other levels.
        again: the part of `judging` that only an answer from the level costs: reading the last token of its
            prompt once more, (n, L); None where that costs nothing.
    """

    probabilities: Floats
    correct: Bools
    cost: Floats
    judging: Floats
    reached: Floats
    mentor_correct: Bools
    mentor_cost: Floats
    visited: Bools
    fallback: Fallback = "best"
    unit: Literal["flops", "usd"] = "flops"
    drafted: bool = False
    again: Floats | None = None

    def part(self, mask: Bools) -> Outcomes:
        """The same for the questions where `mask` holds."""
        arrays: dict[str, Any] = {
            name: value[mask] for name, value in vars(self).items() if isinstance(value, np.ndarray)
        }
        return replace(self, **arrays)

    @property
    def heard(self) -> Floats:
        """The probabilities, −1 where no run has one, so that no threshold is met there."""
        return np.where(self.visited, self.probabilities, -1.0)

    def giving_up(self, below: ArrayLike) -> Outcomes:
        """The same where the mentor is stopped at the first level whose probability lies below `below`, (L,).

        Levels after it are not visited; whether the one where it stops suffices is for its threshold to say.
        """
        lost = self.heard < np.asarray(below, np.float64)
        return replace(self, visited=self.visited & (np.cumsum(lost, axis=1) - lost == 0))

    def ends(self, thresholds: ArrayLike) -> Indices:
        """Index of the level at which a run stops, or else of the last that it visits, (n,)."""
        heard = self.heard
        stops = heard >= np.asarray(thresholds, np.float64)
        return np.asarray(np.where(stops.any(axis=1), stops.argmax(axis=1), (heard >= 0).sum(axis=1) - 1))

    def stopped(self) -> tuple[Floats, Floats]:
        """Whether right (1 or 0) and the whole cost when a run stops at a level, each (n, L)."""
        return self.correct.astype(np.float64), self.cost + self.judging

    def unanswered(self) -> tuple[Indices, Floats, Floats]:
        """Level, whether right and the whole cost of a question where no level suffices, each (n,)."""
        heard, row = self.heard, np.arange(len(self.heard))
        last = (heard >= 0).sum(axis=1) - 1
        again = np.zeros_like(self.judging) if self.again is None else self.again
        spent = self.reached[row, last] + self.judging[row, last] - again[row, last]
        if self.fallback == "mentor":
            return np.full(len(row), MENTOR), self.mentor_correct.astype(np.float64), spent + self.mentor_cost
        if self.drafted:  # insights are compared with each other; the draft stands where there is none
            heard[:, 0] = -0.5
        level = heard.argmax(axis=1) if self.fallback == "best" else last
        whole = self.cost[row, level] - self.reached[row, level] + again[row, level] + spent
        return level, self.correct[row, level].astype(np.float64), whole


@dataclass(frozen=True)
class Replay:
    """The cascade replayed, each (n,): level index (−1: the mentor's own answer), whole cost, rightness."""

    chosen: Indices
    cost: Floats
    correct: Bools


def replay(outcomes: Outcomes, thresholds: ArrayLike) -> Replay:
    """Visit the levels in order and stop at the first whose probability reaches its threshold, shape (L,)."""
    enough = outcomes.heard >= np.asarray(thresholds, np.float64)
    stops, row = enough.any(axis=1), np.arange(len(enough))
    first = enough.argmax(axis=1)
    right, cost = outcomes.stopped()
    level, right_otherwise, cost_otherwise = outcomes.unanswered()
    return Replay(
        np.where(stops, first, level),
        np.where(stops, cost[row, first], cost_otherwise),
        np.where(stops, right[row, first], right_otherwise) > 0,
    )


def expectation(outcomes: Outcomes, thresholds: ArrayLike) -> dict[str, Any]:
    """Mean accuracy and cost of a replay with 95 % bootstrap intervals, and the share of every level.

    The intervals are of the thresholds as given; that they were chosen on the same data is not in them.
    """
    run, shares = replay(outcomes, thresholds), {}
    for level in np.unique(run.chosen):
        shares["mentor" if level == MENTOR else str(level)] = float((run.chosen == level).mean())
    mentor = float(outcomes.mentor_cost.mean())
    accuracy = metrics.paired_bootstrap(run.correct, 0.0)
    cost = metrics.paired_bootstrap(run.cost / mentor, 0.0)
    return {
        "accuracy": float(run.correct.mean()),
        "accuracy_interval": list(accuracy),
        "cost_vs_mentor": float(run.cost.mean()) / mentor,
        "cost_interval": list(cost),
        "mentor_accuracy": float(outcomes.mentor_correct.mean()),
        "shares": shares,
    }


def oracle(correct: ArrayLike, cost: ArrayLike) -> Indices:
    """The cheapest right level of every question, or the cheapest of all; (n, L) twice to indices (n,)."""
    price = np.asarray(cost, np.float64)
    right = np.asarray(correct, bool)
    allowed = right | ~right.any(axis=1, keepdims=True)
    return np.asarray(np.where(allowed, price, np.inf).argmin(axis=1))


def random_mix(correct: ArrayLike, cost: ArrayLike, shares: ArrayLike) -> tuple[float, float]:
    """Expected accuracy and mean cost of levels drawn at random with `shares` (L,), questions regardless."""
    weights = np.asarray(shares, np.float64)
    by_level = [np.asarray(values, np.float64).mean(axis=0) for values in (correct, cost)]
    accuracy, price = (float(means @ weights / weights.sum()) for means in by_level)
    return accuracy, price


def best_shares(points: ArrayLike, cost: float) -> Floats | None:
    """Shares (k,) of the best random mix of `points` (k, 2), costs and accuracies, at a mean of `cost`.

    None where no mix costs that: all points cost more, or all less.
    """
    costs, values = np.asarray(points, np.float64).T
    found, best = None, -np.inf
    for left in np.flatnonzero(costs <= cost):
        for right in np.flatnonzero(costs >= cost):
            width = costs[right] - costs[left]
            share = (cost - costs[left]) / width if width else float(values[right] > values[left])
            value = (1 - share) * values[left] + share * values[right]
            if value > best:
                found, best = np.zeros(len(costs)), value
                found[left] += 1 - share
                found[right] += share
    return found
