"""`distribution`: next-token distributions are mixed by a chosen mean, over all tokens or the likeliest ones.

The union of the members' top k is that of UniTE: Yao et al., "Determine-Then-Ensemble: Necessity of Top-k
Union for Large Language Model Ensembling", ICLR 2025.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ensemblehub.ensemble_methods import mixing
from ensemblehub.ensemble_methods.mixing import Mixer
from ensemblehub.ensemble_methods.token_level import Member, TokenLevel
from ensemblehub.ensemble_methods.union_vocabulary import Probabilities
from ensemblehub.errors import ConfigError
from ensemblehub.generators.base import Engine

_MEANS: dict[str, Mixer] = {"mean": mixing.mean, "geometric": mixing.geometric, "max": mixing.maximum}


@dataclass(frozen=True)
class DistributionMixture(TokenLevel):
    """Every token is chosen from one distribution of all engines, whatever their tokenizers.

    Attributes:
        weights: by engine name, 1 where omitted; an engine of weight 0 is not asked.
        every: ensemble every `token`, or only where the engines' likeliest tokens are `disputed`.
        draft: tokens the first engine drafts at a time for `disputed`.
        method: weighted arithmetic `mean`, `geometric` mean (what one engine cannot write is excluded), or the
            `max` of the weighted probabilities.
        top_k: mix only the tokens that are among the k likeliest of an engine, renormalised (UniTE; the paper
            takes 10).  A token that another engine lacks has there the probability of the first token by which
            that engine would write it.  0 mixes all tokens.
    """

    method: Literal["mean", "geometric", "max"] = "mean"
    top_k: int = 0

    def mix(self, members: Sequence[Member], parts: Sequence[Probabilities]) -> Probabilities:
        weights = [member.weight for member in members]
        if not self.top_k:
            return _MEANS[self.method](parts, weights)
        entries = np.unique(np.concatenate([_likeliest(part, self.top_k) for part in parts]))
        few = [_among(entries, member, part) for member, part in zip(members, parts, strict=True)]
        mixed = np.zeros_like(parts[0])
        mixed[entries] = _MEANS[self.method](few, weights)
        return mixed

    def check(self, engines: Sequence[Engine]) -> None:
        super().check(engines)
        if self.top_k < 0:
            raise ConfigError(f"distribution: top_k must be at least 0, not {self.top_k}")


def _likeliest(part: Probabilities, count: int) -> NDArray[np.intp]:
    """The `count` likeliest entries (k,); those without mass are never among them."""
    if count >= len(part):
        return np.flatnonzero(part)
    entries = np.argpartition(part, -count)[-count:]
    return entries[part[entries] > 0]


def _among(entries: NDArray[np.intp], member: Member, part: Probabilities) -> Probabilities:
    """A member's probabilities of `entries`, renormalised."""
    few = part[entries]
    for at in np.flatnonzero(few == 0):
        first = member.first_entry(int(entries[at]))
        few[at] = 0.0 if first is None else part[first]
    few /= max(few.sum(), np.finfo(np.float32).tiny)
    return few
