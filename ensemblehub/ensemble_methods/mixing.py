"""Mixing distributions over one union vocabulary, and choosing from the mixture."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ensemblehub.ensemble_methods.union_vocabulary import TINY, Probabilities
from ensemblehub.errors import EngineError
from ensemblehub.schema import Sampling

Mixer = Callable[[Sequence[Probabilities], Sequence[float]], Probabilities]


def mean(parts: Sequence[Probabilities], weights: Sequence[float]) -> Probabilities:
    """Weighted arithmetic mean."""
    total = sum(weights)
    mixed: Probabilities = parts[0] * np.float32(weights[0] / total)
    for part, weight in zip(parts[1:], weights[1:], strict=True):
        mixed += part * np.float32(weight / total)
    return mixed


def geometric(parts: Sequence[Probabilities], weights: Sequence[float]) -> Probabilities:
    """Weighted geometric mean; what one of them cannot write has no mass."""
    with np.errstate(divide="ignore"):
        mixed = np.log(parts[0]) * np.float32(weights[0] / sum(weights))
        for part, weight in zip(parts[1:], weights[1:], strict=True):
            mixed += np.log(part) * np.float32(weight / sum(weights))
    return _normal(np.exp(mixed, out=mixed))


def maximum(parts: Sequence[Probabilities], weights: Sequence[float]) -> Probabilities:
    """The largest weighted probability of each entry."""
    mixed = parts[0] * np.float32(weights[0])
    for part, weight in zip(parts[1:], weights[1:], strict=True):
        np.maximum(mixed, part * np.float32(weight), out=mixed)
    return _normal(mixed)


def entropy(part: Probabilities) -> float:
    """Entropy in nats."""
    likely = part[part > 0]
    return -float(np.dot(likely, np.log(likely)))


def top_entries(part: Probabilities, count: int) -> NDArray[np.intp]:
    """The `count` most probable entries in any order, (k,); those without mass are left out."""
    if count >= len(part):
        return np.flatnonzero(part)
    entries = np.argpartition(part, -count)[-count:]
    return entries[part[entries] > 0]


def top_alternatives(part: Probabilities, count: int) -> tuple[tuple[int, float], ...]:
    """The `count` most probable entries with mass and their logprobs, most probable first."""
    if not count:
        return ()
    entries = top_entries(part, count)
    ordered = entries[np.argsort(-part[entries], kind="stable")]
    return tuple((int(entry), float(np.log(part[entry]))) for entry in ordered)


def choose(mixed: Probabilities, sampling: Sampling, uniform: float) -> int:
    """The most probable entry, or with a temperature the one that `uniform`, in [0, 1), draws.

    Temperature, then min-p, then top-k, then top-p; the top entry always stays.

    Raises:
        EngineError: no entry has any mass.
    """
    best = int(mixed.argmax())
    if not mixed[best] > 0:
        raise EngineError("no token is left that the engines could write")
    if sampling.temperature == 0:
        return best
    candidates = np.flatnonzero(mixed)
    weights = np.log(mixed[candidates].astype(np.float64)) / sampling.temperature
    weights = np.exp(weights - weights.max())
    if sampling.min_p > 0:
        probable = weights >= sampling.min_p  # the top entry weighs 1
        candidates = candidates[probable]
        weights = weights[probable]
    if sampling.top_k > 0 or sampling.top_p < 1:
        order = np.argsort(-weights, kind="stable")[: sampling.top_k or None]
        ahead = np.cumsum(weights[order]) - weights[order]
        order = np.sort(order[: max(1, int(np.count_nonzero(ahead < sampling.top_p * weights[order].sum())))])
        candidates, weights = candidates[order], weights[order]
    cumulated = np.cumsum(weights)
    drawn = np.searchsorted(cumulated, uniform * cumulated[-1], side="right")
    return int(candidates[min(int(drawn), len(candidates) - 1)])


def _normal(mixed: Probabilities) -> Probabilities:
    mixed /= max(mixed.sum(), TINY)
    return mixed
