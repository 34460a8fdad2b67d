"""A weighted pool of scorers.  Knows how scores of different scales are put together."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ensemblehub.cost import UsageMeter
from ensemblehub.errors import EngineError
from ensemblehub.schema import Request
from ensemblehub.scorers.base import Scorer, together

Normalization = Literal["none", "minmax", "standard"]


@dataclass(frozen=True)
class Pool:
    """Scorers and their weights.

    Attributes:
        scorers, weights: one weight per scorer, above 0.
        normalization: what is done to each scorer's scores, over the texts of one call that it judges, before
            the weighted mean: nothing (`none`), scaling to 0..1 (`minmax`), or to mean 0 and population standard
            deviation 1 (`standard`).  Scores that are all equal, as that of a single text, say nothing of which
            text is better: they become 0.5 and 0.
    """

    scorers: tuple[Scorer, ...] = ()
    weights: tuple[float, ...] = ()
    normalization: Normalization = "none"

    async def score(
        self, request: Request, texts: Sequence[str], meter: UsageMeter, authors: Sequence[str] = ()
    ) -> list[float]:
        """The weighted mean of the scorers' scores, one per text.

        Args:
            authors: `Engine.model` of each text's writer, where a scorer shall not judge its own text.  A text
                is judged, and its mean taken, by the scorers that did not write it; a text that only its own
                writer could judge is judged by all.

        Raises:
            EngineError: a scorer failed, or gave something else than one finite number per text.
        """
        writers: Sequence[str | None] = authors or [None] * len(texts)
        own = [[scorer.model == writer for scorer in self.scorers] for writer in writers]
        judges = [[not mine or all(row) for mine in row] for row in own]
        columns = [
            [index for index, row in zip(range(len(texts)), judges, strict=True) if row[number]]
            for number in range(len(self.scorers))
        ]
        scores = await together(
            self._judged(scorer, request, [texts[index] for index in column], meter)
            for scorer, column in zip(self.scorers, columns, strict=True)
        )
        totals, shares = [0.0] * len(texts), [0.0] * len(texts)
        for weight, column, given in zip(self.weights, columns, scores, strict=True):
            for index, score in zip(column, given, strict=True):
                totals[index] += weight * score
                shares[index] += weight
        return [total / share for total, share in zip(totals, shares, strict=True)]

    async def _judged(
        self, scorer: Scorer, request: Request, texts: Sequence[str], meter: UsageMeter
    ) -> list[float]:
        """One scorer's normalised scores."""
        if not texts:
            return []
        scores = await scorer.score(request, texts, meter)
        if len(scores) != len(texts) or not all(map(math.isfinite, scores)):
            raise EngineError(f"scorer {scorer.name!r} gave {scores} for {len(texts)} texts")
        return normalized(scores, self.normalization)

    async def load(self) -> None:
        """Load every scorer."""
        await together(scorer.load() for scorer in self.scorers)

    async def close(self) -> None:
        """Free every scorer."""
        await together(scorer.close() for scorer in self.scorers)


def normalized(scores: Sequence[float], how: Normalization) -> list[float]:
    """Scores of one scorer on the scale that `Pool.normalization` names."""
    low, high = min(scores), max(scores)
    if how == "none":
        return list(scores)
    if low == high:
        return [0.5 if how == "minmax" else 0.0] * len(scores)
    if how == "minmax":
        return [(score - low) / (high - low) for score in scores]
    mean, deviation = statistics.fmean(scores), statistics.pstdev(scores)
    return [(score - mean) / deviation for score in scores]
