"""A weighted pool of scorers whose scales may differ."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ensemblehub.concurrency import together
from ensemblehub.cost import UsageMeter
from ensemblehub.errors import EngineError
from ensemblehub.schema import Request
from ensemblehub.scorers.base import Scorer

Normalization = Literal["none", "minmax", "standard"]


@dataclass(frozen=True)
class Pool:
    """Scorers and their weights.

    Attributes:
        scorers, weights: one weight per scorer, above 0.
        normalization: applied to each scorer's scores, over the texts of one call that it judges, before the
            weighted mean: none (`none`), scaling to 0..1 (`minmax`), or to mean 0 and population standard
            deviation 1 (`standard`).  Scores that are all equal, as that of a single text, do not tell texts
            apart: they become 0.5 and 0.
    """

    scorers: tuple[Scorer, ...] = ()
    weights: tuple[float, ...] = ()
    normalization: Normalization = "none"

    async def score(
        self, request: Request, texts: Sequence[str], meter: UsageMeter, authors: Sequence[str] = ()
    ) -> list[float]:
        """The weighted mean of the scorers' scores, one per text.

        Args:
            authors: `Engine.model` of each text's author, where a scorer shall not judge its own text.  A
                text is judged by the scorers that did not write it, or by all where none is left.

        Raises:
            EngineError: a scorer failed, or did not return one finite number per text.
        """
        columns = [self._judged(scorer, authors, len(texts)) for scorer in self.scorers]
        scores = await together(
            self._scores(scorer, request, [texts[index] for index in column], meter)
            for scorer, column in zip(self.scorers, columns, strict=True)
        )
        totals = [0.0] * len(texts)
        shares = [0.0] * len(texts)
        for weight, column, given in zip(self.weights, columns, scores, strict=True):
            for index, score in zip(column, given, strict=True):
                totals[index] += weight * score
                shares[index] += weight
        return [total / share for total, share in zip(totals, shares, strict=True)]

    def _judged(self, scorer: Scorer, authors: Sequence[str], count: int) -> list[int]:
        """Indices of the texts that a scorer judges."""
        only = {other.model for other in self.scorers} == {scorer.model}
        return [index for index in range(count) if only or not authors or authors[index] != scorer.model]

    async def _scores(
        self, scorer: Scorer, request: Request, texts: Sequence[str], meter: UsageMeter
    ) -> list[float]:
        """A scorer's normalized scores."""
        if not texts:
            return []
        scores = await scorer.score(request, texts, meter)
        if len(scores) != len(texts) or not all(map(math.isfinite, scores)):
            raise EngineError(f"scorer {scorer.name!r} gave {scores} for {len(texts)} texts")
        return normalized(scores, self.normalization)


def normalized(scores: Sequence[float], how: Normalization) -> list[float]:
    """Return a scorer's scores on the scale of `Pool.normalization`."""
    if how == "none":
        return list(scores)
    low, high = min(scores), max(scores)
    if low == high:
        return [0.5 if how == "minmax" else 0.0] * len(scores)
    if how == "minmax":
        return [(score - low) / (high - low) for score in scores]
    mean, deviation = statistics.fmean(scores), statistics.pstdev(scores)
    return [(score - mean) / deviation for score in scores]
