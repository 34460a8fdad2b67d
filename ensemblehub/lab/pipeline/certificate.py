"""Certified settings: Learn-then-Test by fixed-sequence testing over one path of settings.

Angelopoulos, Bates, Candès, Jordan, Lei, "Learn then Test", arXiv:2110.01052.  The settings of a path are
tested from the safest to the boldest until one fails; every setting before it keeps the promise, all of them
at once with the promised confidence, so the cheapest may be taken.  The path must not depend on the tested
questions.

Any strategy with a threshold is certified from four arrays (`Settings`).  MAPIE (1.6) gives the same p-values
and the same settings for `lost-correct` (a test compares them), but tests only paths that it orders itself,
has no signed loss and does not say how many questions would do; what it would save is the ten lines of
`p_values`.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ensemblehub.errors import ConfigError, MissingExtraError, did_you_mean
from ensemblehub.lab import metrics
from ensemblehub.tandem.certificate import percent

Loss = Literal["lost-correct", "net"]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

CAP = 0.75  # share of the capital that one bet may lose
PRIOR = 0.25  # variance that bets assume before the first question
EXACTLY = 100_000  # questions above which the number for gains and losses is that of the normal limit
DOUBLING = [2**power for power in range(5, 24)]  # numbers tried first below
SIZES = np.unique(np.geomspace(1, 10**7, 20_000).astype(int))  # numbers of questions tried by `needed`


@dataclass(frozen=True)
class Promise:
    """At most `max_loss` of all questions are lost, with `confidence`.

    Attributes:
        loss: `lost-correct`: the mentor is right and the answer is wrong; `net`: these less those where only
            the answer is right, so that gains count.
    """

    max_loss: float
    confidence: float = 0.95
    loss: Loss = "lost-correct"

    def __post_init__(self) -> None:
        if self.loss not in get_args(Loss):
            raise ConfigError(did_you_mean(self.loss, get_args(Loss), "loss"))
        for name, value in (("max_loss", self.max_loss), ("confidence", self.confidence)):
            if not 0 < value < 1:
                raise ConfigError(f"{name} lies between 0 and 1, not at {value:g}")

    @property
    def error(self) -> float:
        """The probability with which the promise may be broken."""
        return 1 - self.confidence

    def __str__(self) -> str:
        return f"{self.loss} at most {self.max_loss} with confidence {self.confidence}"

    @property
    def measured(self) -> str:
        """What a share is the share of."""
        if self.loss == "net":
            return "of the questions net of those gained"
        return "of the questions (the mentor right, the answer wrong)"


@dataclass(frozen=True)
class Settings:
    """What S settings of a path, safest first, bring on n questions.

    Attributes:
        mentor_correct, mentor_cost: of the mentor by itself, (n,).
        correct, cost: of the answer at every setting, (n, S); costs in any one unit.
    """

    mentor_correct: Bools
    mentor_cost: Floats
    correct: Bools
    cost: Floats

    def losses(self, loss: Loss) -> Floats:
        """The loss of every question at every setting, (n, S): 0 or 1; with `net` also −1."""
        mentor = self.mentor_correct[:, None]
        if loss == "net":
            return mentor.astype(np.float64) - self.correct
        return (mentor & ~self.correct).astype(np.float64)

    @property
    def shares(self) -> Floats:
        """The mean cost of every setting as a share of the mentor's, (S,)."""
        return np.asarray(self.cost.mean(axis=0) / self.mentor_cost.mean())


def p_values(losses: Floats, promise: Promise) -> Floats:
    """Of the hypotheses that a setting loses more than promised, (S,), from losses (n, S).

    Exact binomial for `lost-correct`, betting for `net`.

    Raises:
        MissingExtraError: scipy is not installed.
    """
    if promise.loss == "net":
        return betting_p_values(losses, promise.max_loss, promise.error)
    return _at_most(losses.sum(axis=0), len(losses), promise.max_loss)


def betting_p_values(losses: Floats, bound: float, error: float) -> Floats:
    """p-values of the hypotheses that means are at least `bound`, (S,), for losses (n, S) from −1 to 1.

    A gambler bets on smaller losses; by Ville's inequality, capital that would reach 1/p has a probability of
    at most p where the hypothesis holds.  Bets are the predictable plug-in of Waudby-Smith and Ramdas,
    "Estimating means of bounded random variables by betting", JRSS B 86 (2024).
    """
    count = np.arange(1, len(losses) + 1)[:, None]
    mean = losses.cumsum(axis=0) / (count + 1)
    variance = (PRIOR + ((losses - mean) ** 2).cumsum(axis=0)) / (count + 1)
    known = np.concatenate([np.full((1, losses.shape[1]), PRIOR), variance[:-1]])
    bets = np.minimum(np.sqrt(2 * math.log(1 / error) / (len(losses) * known)), CAP / (1 - bound))
    capital = np.log1p(bets * (bound - losses)).cumsum(axis=0)
    return np.asarray(np.exp(-np.maximum(capital.max(axis=0), 0)))


def kept(losses: Floats, promise: Promise) -> int:
    """How many settings of the path, from the safest on, keep the promise."""
    failed = p_values(losses, promise) > promise.error
    return int(failed.argmax()) if failed.any() else len(failed)


def fewest(promise: Promise) -> int:
    """The number of tested questions below which nothing is certified, whatever is answered.

    For `lost-correct`, where none is lost; for `net`, where all are gained at the largest bet.
    """
    bound = promise.max_loss
    growth = math.log1p(CAP * (1 + bound) / (1 - bound)) if promise.loss == "net" else -math.log1p(-bound)
    return math.ceil(-math.log(promise.error) / growth)


def certified(settings: Settings, promise: Promise) -> int:
    """Index of the cheapest setting that keeps the promise.

    Raises:
        ConfigError: none that costs less than the mentor does; says how many questions would show that
            one does, that no number would, or that too few were asked to tell.
    """
    losses, shares = settings.losses(promise.loss), settings.shares
    count = kept(losses, promise)
    if count and shares[:count].min() < 1:
        return int(shares[:count].argmin())
    raise ConfigError(_refusal(losses, shares, promise))


def _refusal(losses: Floats, shares: Floats, promise: Promise) -> str:
    """Why no setting that saves something is certified, in one line."""
    n = len(losses)
    if not (shares < 1).any():
        return "no setting costs less than the mentor alone: there is nothing to certify"
    path = range(int((shares < 1).argmax()) + 1)  # up to the safest that saves; each has to be certified
    sizes = [needed(losses[:, index], promise) for index in path]
    ends = [_interval(losses[:, index], promise) for index in path]
    hardest = max(path, key=lambda index: (ends[index][0] > promise.max_loss, sizes[index] or math.inf))
    promised = percent(promise.max_loss, 2)
    lost, size, (low, high) = f"{losses[:, hardest].mean():.2%}", sizes[hardest], ends[hardest]
    if size is None:
        none_would = f"no number of questions would certify {promised}"
        untold = f"so few questions do not tell whether more would certify {promised}"
        return (
            f"not certified: the safest setting that saves anything is seen to lose {lost} "
            f"{promise.measured} ({low:.2%} to {high:.2%}, n = {n:,}); "
            f"{none_would if low > promise.max_loss else untold}"
        )
    more = max(size, n + 1)
    digits = 10 ** max(0, len(str(more)) - 2)  # rounded up to two digits
    return (
        f"not certified: {n:,} questions are too few for {promised} with "
        f"{percent(promise.confidence, 0)} confidence where {lost} {promise.measured} are lost; "
        f"about {-(-more // digits) * digits:,} would do"
    )


def _interval(losses: Floats, promise: Promise) -> tuple[float, float]:
    """95 % interval of the mean of losses, (n,)."""
    if promise.loss == "net":
        return metrics.paired_bootstrap(losses, 0.0)
    return metrics.wilson_interval(float(losses.sum()), len(losses))


def needed(losses: Floats, promise: Promise) -> int | None:
    """Number of questions that certify a setting which goes on losing as in `losses`, (n,); None: no number.

    With so many, a setting with this rate of loss is certified in half to two thirds of all cases.
    """
    mean = float(losses.mean())
    if mean >= promise.max_loss:
        return None
    if promise.loss == "net":
        return _net_needed(losses, promise)
    enough = _at_most(np.ceil(mean * SIZES), SIZES, promise.max_loss) <= promise.error
    return int(SIZES[enough.argmax()]) if enough.any() else None


def _net_needed(losses: Floats, promise: Promise) -> int:
    """The same for gains and losses: what the bets make of these questions, evenly mixed, over and over."""
    _, at, counts = np.unique(losses, return_inverse=True, return_counts=True)
    rank = np.zeros(len(losses))
    for index, count in enumerate(counts):
        rank[at == index] = (np.arange(count) + 0.5) / count
    mixed = losses[rank.argsort(kind="stable")]

    def certifies(n: int) -> bool:
        return kept(np.resize(mixed, (n, 1)), promise) == 1

    # the capital of many small bets grows as 1 / n of this
    gap = promise.max_loss - float(losses.mean())
    size = 2 * math.log(1 / promise.error) * float(losses.var()) / gap**2
    if size > EXACTLY:
        return math.ceil(size)
    most = next(n for n in DOUBLING if certifies(n))
    below = np.unique(np.geomspace(most // 2, most, 24).astype(int))
    return int(below[bisect_left(below, True, key=certifies)])


def _at_most(count: NDArray[Any], n: NDArray[Any] | int, share: float) -> Floats:
    """The probability of at most `count` of `n` where each has the probability `share`."""
    try:
        from scipy.stats import binom
    except ImportError as error:
        raise MissingExtraError("certificates need scipy: pip install 'ensemblehub[eval]'") from error
    return np.asarray(binom.cdf(count, n, share))
