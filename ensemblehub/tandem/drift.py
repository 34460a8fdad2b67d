"""A sequential test of whether a judge's scores still come from the distribution that was certified.

A conformal test martingale (Vovk, Gammerman, Shafer, "Algorithmic Learning in a Random World", 2nd ed., ch.
8): every score gets a p-value among all seen so far, the reference included, and a gambler bets against their
being uniform (the Simple Jumper).  While scores and reference are exchangeable, the capital exceeds c times
the stake at any time of a period with a probability of at most 1/c.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

BINS = 100
BETS = (-1.0, 0.0, 1.0)  # on small, on any, on large p-values
JUMP = 0.01  # share of the capital that changes its bet before every score
RATE = 0.01  # of false alarms, in a period
PERIOD = 10_000  # scores, after which the test begins anew


def bin_of(score: float) -> int:
    """The bin of a score from 0 to 1."""
    return min(max(int(score * BINS), 0), BINS - 1)


def histogram(scores: Sequence[float]) -> list[int]:
    """The number of scores in every bin."""
    counts = [0] * BINS
    for score in scores:
        counts[bin_of(score)] += 1
    return counts


class DriftTest:
    """Tests one score after another against a reference.

    Attributes:
        alarmed: the capital has exceeded the stake `1 / rate` times.
    """

    def __init__(self, reference: Sequence[int], rate: float = RATE, seed: int = 0) -> None:
        """Start with a `histogram` of reference scores; at most `rate` of all periods has a false alarm."""
        self.reference = reference
        self.rate = rate
        self.alarmed = False
        self._random = random.Random(seed)  # splits ties
        self._seen = 0
        self._capital = list[float]()
        self._counts = list[int]()
        self._begin()

    @property
    def evidence(self) -> float:
        """The capital over the stake."""
        return sum(self._capital)

    def add(self, score: float) -> bool:
        """Test a score; returns whether it raises the first alarm."""
        if self._seen == PERIOD:
            self._begin()
        self._seen += 1
        off = self._p_value(bin_of(score)) - 0.5
        moved = JUMP * self.evidence / len(BETS)
        self._capital = [
            ((1 - JUMP) * part + moved) * (1 + bet * off)
            for part, bet in zip(self._capital, BETS, strict=True)
        ]
        first = self.evidence >= 1 / self.rate and not self.alarmed
        self.alarmed |= first
        return first

    def _begin(self) -> None:
        self._counts = list(self.reference)
        self._capital = [1 / len(BETS)] * len(BETS)
        self._seen = 0

    def _p_value(self, place: int) -> float:
        """The share of scores so far, this one included, that are larger, ties split at random."""
        larger = sum(self._counts[place + 1 :])
        self._counts[place] += 1
        return (larger + self._random.random() * self._counts[place]) / sum(self._counts)
