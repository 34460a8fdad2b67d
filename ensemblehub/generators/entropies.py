"""Entropies from logprobs: of a whole distribution, or a lower bound from its top tokens.

A judge trained on one kind must not be used with the other, so a model whose entropies are bounds says so in
its name.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def entropy_of(logprobs: Any, whole: bool) -> float:
    """Entropy of a distribution in nats.

    Args:
        whole: whether `logprobs` are of all tokens; the missing ones count as one token, a lower bound.
    """
    values = np.asarray(logprobs, np.float64)
    shares = np.exp(values)
    rest = 0.0 if whole else 1.0 - float(shares.sum())
    tail = rest * np.log(rest) if rest > 0 else 0.0
    return float(-(shares[shares > 0] * values[shares > 0]).sum() - tail)


def bounded(model: str, top_k: int) -> str:
    """The name of a model whose entropies are bounds from its `top_k` top tokens."""
    return f"{model} (entropy of the {top_k} likeliest)"
