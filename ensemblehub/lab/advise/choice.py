"""Which strategy is best at an aim, how sure that is, and how many questions more would tell."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ensemblehub.lab.advise.strategy import Changes, Floats, Strategy
from ensemblehub.lab.metrics import paired_bootstrap
from ensemblehub.lab.pipeline.calibration import BudgetUnit, Objective

Aim = Literal["accuracy", "cost"]
FOLDS = 5
FEWEST = 20  # questions before the answer may be called clear
ALPHA = 0.05
BETS = np.linspace(0.05, 0.95, 10)  # fractions of the capital that are staked
POWER = 0.8  # of the test that "more questions" speaks of


@dataclass(frozen=True)
class Criterion:
    """What the user wants.

    Attributes:
        aim: `accuracy`: the most accurate at a mean cost of at most `budget`; `cost`: the cheapest that loses
            at most `margin` against the mentor.
        margin: accuracy that may be lost, as a fraction.
        unit: of the budget: the mentor's own mean cost, or US dollars or TFLOPs a question.
    """

    aim: Aim
    budget: float = 1.0
    margin: float = 0.015
    unit: BudgetUnit = "share"

    def __str__(self) -> str:
        if self.aim == "cost":
            return f"the cheapest that loses at most {100 * self.margin:g} points against the mentor"
        amount = Objective("budget", self.budget, self.unit).amount(self.budget)
        most = f"{amount} of the mentor's cost" if self.unit == "share" else f"{amount} a question"
        return f"the most accurate at no more than {most}"

    def share(self, mentor: Evaluated) -> float:
        """The budget as a share of the mentor's own mean cost."""
        if self.unit == "share":
            return self.budget
        return self.budget * (1e12 if self.unit == "tflops" else 1.0) / float(mentor.cost.mean())

    def best(self, correct: Floats, cost: Floats, mentor: Evaluated) -> int:
        """Index of the best of several (n, T) by their means; where none is allowed, the nearest to it."""
        accuracy, price = correct.mean(axis=0), cost.mean(axis=0) / mentor.cost.mean()
        if self.aim == "accuracy":
            allowed = price <= self.share(mentor) + 1e-9
            keys = (price, -accuracy) if allowed.any() else (-accuracy, price)
        else:
            allowed = accuracy >= mentor.correct.mean() - self.margin - 1e-9
            keys = (-accuracy, price) if allowed.any() else (price, -accuracy)
        allowed = allowed if allowed.any() else np.ones(len(price), bool)
        order = np.lexsort(keys)
        return int(next(at for at in order if allowed[at]))

    def allows(self, outcome: Evaluated, mentor: Evaluated) -> bool:
        """Whether a strategy's means keep the budget, or the margin."""
        if self.aim == "accuracy":
            return bool(outcome.cost.mean() <= (self.share(mentor) + 1e-9) * mentor.cost.mean())
        return bool(outcome.correct.mean() >= mentor.correct.mean() - self.margin - 1e-9)


@dataclass(frozen=True)
class Evaluated:
    """A strategy with a setting chosen for every question on other questions, each (n,).

    Attributes:
        setting, changes: chosen on all questions: what would be configured.
        before: right or wrong, where the setting was chosen on earlier questions only.
    """

    name: str
    single: bool
    setting: str
    changes: Changes
    correct: Floats
    cost: Floats
    before: Floats


def outcomes(strategies: Sequence[Strategy], criterion: Criterion) -> list[Evaluated]:
    """Every strategy with settings chosen for the criterion, cross-validated; the first is the mentor."""
    first = strategies[0]
    mentor = Evaluated(
        first.name, True, *first.settings[0], first.correct[:, 0], first.cost[:, 0], first.correct[:, 0]
    )
    return [mentor, *(_outcome(strategy, criterion, mentor) for strategy in strategies[1:])]


def _outcome(strategy: Strategy, criterion: Criterion, mentor: Evaluated) -> Evaluated:
    n, row = len(strategy.correct), np.arange(len(strategy.correct))
    middle = len(strategy.settings) // 2

    def chosen(known: NDArray[np.bool_]) -> int:
        if not known.any():
            return middle
        theirs = Evaluated("", True, "", {}, mentor.correct[known], mentor.cost[known], mentor.before[known])
        return criterion.best(strategy.correct[known], strategy.cost[known], theirs)

    fold, block = row % FOLDS, row // 10
    other = {int(at): chosen(fold != at) if n > FOLDS else middle for at in np.unique(fold)}
    earlier = {int(at): chosen(block < at) for at in np.unique(block)}
    setting, changes = strategy.settings[chosen(np.ones(n, bool))]
    own = np.array([other[int(at)] for at in fold])
    before = np.array([earlier[int(at)] for at in block])
    return Evaluated(
        strategy.name,
        strategy.single,
        setting,
        changes,
        strategy.correct[row, own],
        strategy.cost[row, own],
        strategy.correct[row, before],
    )


def recommended(found: Sequence[Evaluated], criterion: Criterion) -> Evaluated:
    """The outcome to use.

    The best single model by the criterion's means, unless a strategy pays: for `accuracy`, one that is more
    accurate with the lower end of a 90 % interval above 0; for `cost`, one that keeps the margin and costs
    less, the upper end of a 95 % interval below 0.
    """
    mentor = found[0]
    allowed = [outcome for outcome in found if criterion.allows(outcome, mentor)]
    singles = [outcome for outcome in allowed if outcome.single] or [min(found, key=_cost)]
    if criterion.aim == "accuracy":
        best = max(singles, key=lambda outcome: (outcome.correct.mean(), -_cost(outcome)))
        others = [other for other in allowed if not other.single and _surely_better(other, best)]
        return max(others, key=lambda outcome: (outcome.correct.mean(), -_cost(outcome)), default=best)
    best = min(singles, key=_cost)
    others = [other for other in allowed if not other.single and _surely_cheaper(other, best)]
    return min(others, key=_cost, default=best)


def _cost(outcome: Evaluated) -> float:
    return float(outcome.cost.mean())


def _surely_better(outcome: Evaluated, best: Evaluated) -> bool:
    gain = outcome.correct - best.correct
    spread = gain.std(ddof=1) / math.sqrt(len(gain)) if len(gain) > 1 else math.inf
    return bool(gain.mean() > NormalDist().inv_cdf(0.95) * spread and gain.mean() > 0)


def _surely_cheaper(outcome: Evaluated, best: Evaluated) -> bool:
    return paired_bootstrap(outcome.cost, best.cost)[1] < 0


def rivals(
    found: Sequence[Evaluated], chosen: Evaluated, criterion: Criterion
) -> list[tuple[Evaluated, Floats]]:
    """What would have to be ruled out, with the differences in [-1, 1] whose mean is above 0 if it is.

    For `accuracy`, everything in the budget: it is less accurate.  For `cost`, everything cheaper: it loses
    more than the margin; and the choice itself, which must keep the margin, unless it is the mentor.
    """
    mentor = found[0]
    if criterion.aim == "accuracy":
        others = [other for other in found if other is not chosen and criterion.allows(other, mentor)]
        return [(other, chosen.before - other.before) for other in others]
    scale = 1 + criterion.margin
    cheaper = [other for other in found if other is not chosen and _cost(other) < _cost(chosen)]
    claims = [(other, (mentor.before - other.before - criterion.margin) / scale) for other in cheaper]
    if chosen is not mentor:
        claims.append((chosen, (chosen.before - mentor.before + criterion.margin) / scale))
    return claims


def is_clear(found: Sequence[Evaluated], chosen: Evaluated, criterion: Criterion) -> bool:
    """Whether there are rivals, enough questions, and all rivals are ruled out, at any time with an error
    of at most 5 %.

    Every claim is tested by betting (Waudby-Smith & Ramdas 2024, "Estimating means of bounded random
    variables by betting"): the capital of a gambler who stakes on a mean above 0 exceeds 1 / alpha with
    probability alpha at most if the mean is 0 or less, whenever one looks.  Alpha is divided by the number
    of pairs that could be compared.  Settings are those chosen on earlier questions, so that every bet is
    placed before its outcome.
    """
    claims = rivals(found, chosen, criterion)
    if not claims or len(chosen.correct) < FEWEST:
        return False
    pairs = max(1, len(found) * (len(found) - 1))
    return all(capital(differences) >= pairs / ALPHA for _, differences in claims)


def capital(differences: Iterable[float]) -> float:
    """The gambler's capital, from 1, averaged over fixed stakes; differences lie in [-1, 1]."""
    steps = np.asarray(list(differences), float)[:, None]
    return float(np.exp(np.log1p(BETS * steps).sum(axis=0)).mean())


def questions_needed(differences: Floats) -> int | None:
    """How many questions tell the mean from 0, at 5 % two-sided with 80 % power; None: no difference."""
    mean, spread = float(differences.mean()), float(differences.std(ddof=1)) if len(differences) > 1 else 0.0
    if not mean or not spread:
        return None
    normal = NormalDist()
    z = normal.inv_cdf(1 - ALPHA / 2) + normal.inv_cdf(POWER)
    return math.ceil((z * spread / mean) ** 2)
