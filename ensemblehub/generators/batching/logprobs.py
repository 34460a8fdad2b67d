"""Logprobs, entropies and top tokens of logits, in nats."""

from __future__ import annotations

import math

import torch

_CACHED = 2**18  # float32 numbers of an intermediate result that stays in a CPU's cache
TopTokens = tuple[tuple[int, float], ...]  # (id, logprob), most probable first


def readings_of(
    logits: torch.Tensor, targets: torch.Tensor
) -> tuple[list[float], list[float], list[tuple[int, float]]]:
    """How well `targets` (tokens,) were predicted by float32 logits (tokens, vocabulary).

    Returns:
        their logprobs, the entropies, and the id and logprob of each most probable token.
    """
    logprobs = list[float]()
    entropies = list[float]()
    best = list[tuple[int, float]]()
    for part, wanted in zip(torch.split(logits, 256), torch.split(targets, 256), strict=True):
        lines = part.log_softmax(-1)
        logprobs += lines.gather(-1, wanted[:, None]).squeeze(-1).tolist()
        entropies += entropy(lines).tolist()
        highest, ids = lines.max(-1)
        best += zip(ids.tolist(), highest.tolist(), strict=True)
    return logprobs, entropies, best


def entropy(logprobs: torch.Tensor) -> torch.Tensor:
    """Entropy of each line of logprobs (lines, vocabulary); impossible tokens add nothing."""
    parts = torch.split(logprobs, max(1, _CACHED // logprobs.shape[-1]))
    return torch.cat([-part.exp().mul_(part.clamp(min=-1e4)).sum(-1) for part in parts])


def top_tokens(logprobs: torch.Tensor, count: int) -> TopTokens:
    """The `count` most probable tokens of one line of logprobs, without impossible ones."""
    if not count:
        return ()
    values, indices = logprobs.topk(min(count, logprobs.shape[-1]))
    pairs = zip(indices.tolist(), values.tolist(), strict=True)
    return tuple((index, value) for index, value in pairs if value > -math.inf)
