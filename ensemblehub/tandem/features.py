"""Features of the judge: 16 statistics of the intern's perplexity and entropy.

The same functions compute them when collecting and when serving (paper: eight statistics each).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ensemblehub.errors import RequestError
from ensemblehub.schema import ScoredToken, Token

Vector = NDArray[np.float64]

PERPLEXITY_CAP = 1000.0
TREND_WINDOW = 20
STATISTICS = ("mean", "std", "median", "max", "min", "p25", "p75", "trend")
FEATURE_NAMES = tuple(f"{kind}_{statistic}" for kind in ("perplexity", "entropy") for statistic in STATISTICS)


def sequences(tokens: Sequence[ScoredToken | Token]) -> tuple[Vector, Vector]:
    """Per-token perplexity (exp of −logprob, at most 1,000) and entropy (nats), each (tokens,).

    Tokens without a prediction (the first of a prompt) are left out.

    Raises:
        RequestError: no token has one, or a token has no entropy.
    """
    read = [token for token in tokens if token.logprob is not None]
    if not read:
        raise RequestError("there is nothing to judge: the question is empty")
    if any(token.entropy is None for token in read):
        raise RequestError("the intern's engine gives logprobs without entropies, and the judge needs both")
    logprobs, entropies = np.array([(token.logprob, token.entropy) for token in read], np.float64).T
    capped = -logprobs >= np.log(PERPLEXITY_CAP)  # tested before exp, which would overflow
    return np.where(capped, PERPLEXITY_CAP, np.exp(np.where(capped, 0.0, -logprobs))), entropies


def features(perplexity: Vector, entropy: Vector) -> Vector:
    """The 16 features of `FEATURE_NAMES`, (16,)."""
    return np.concatenate([_statistics(perplexity), _statistics(entropy)])


def _statistics(values: Vector) -> Vector:
    low, median, high = np.percentile(values, [25, 50, 75])
    return np.array(
        [values.mean(), values.std(), median, values.max(), values.min(), low, high, _trend(values)],
        np.float64,
    )


def _trend(values: Vector) -> float:
    """Mean of the last 20 minus mean of the first 20; of the halves under 40 values; 0 for a single one."""
    if len(values) < 2:
        return 0.0
    window = TREND_WINDOW if len(values) >= 2 * TREND_WINDOW else len(values) // 2
    last = values[-window:] if len(values) >= 2 * TREND_WINDOW else values[window:]
    return float(last.mean() - values[:window].mean())
