"""Choosing the next token of one row."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import numpy as np

from ensemblehub.generators.numpy.model import Array, log_softmax
from ensemblehub.schema import Sampling


class TokenChooser:
    """Chooses the tokens of one answer, by its sampling options and its own generator.

    Args:
        prompt: ids of the prompt (for the repetition penalty).
        end: ids that `min_tokens` forbids.
    """

    def __init__(self, sampling: Sampling, prompt: Sequence[int], end: frozenset[int]) -> None:
        self._sampling = sampling
        self._prompt = frozenset(prompt)
        self._end = sorted(end)
        self._written = Counter[int]()
        seed = random.getrandbits(63) if sampling.seed is None else sampling.seed
        self._generator = np.random.default_rng(seed % 2**63)

    def choose(self, logits: Array) -> int:
        """The next id, from logits (vocabulary,), which are changed."""
        self._adjust(logits)
        chosen = int(logits.argmax()) if self._sampling.temperature == 0 else self._drawn(logits)
        self._written[chosen] += 1
        return chosen

    def _adjust(self, logits: Array) -> None:
        sampling = self._sampling
        for index, bias in sampling.logit_bias.items():
            logits[index] += bias
        if sampling.repetition_penalty != 1:
            seen = sorted(self._prompt.union(self._written))
            scores, penalty = logits[seen], sampling.repetition_penalty
            logits[seen] = np.where(scores < 0, scores * penalty, scores / penalty)
        for index, count in self._written.items():
            logits[index] -= sampling.presence_penalty + sampling.frequency_penalty * count
        if self._written.total() < sampling.min_tokens:
            logits[self._end] = -np.inf

    def _drawn(self, logits: Array) -> int:
        """Draw an id among those that min-p, then top-k, then top-p leave."""
        sampling = self._sampling
        probabilities = np.exp(log_softmax(logits.astype(np.float64) / sampling.temperature))
        order = np.argsort(-probabilities, kind="stable")
        ordered = probabilities[order]
        ordered[ordered < sampling.min_p * ordered[0]] = 0
        if sampling.top_k > 0:
            ordered[sampling.top_k :] = 0
        ordered /= ordered.sum()
        ordered[1:][np.cumsum(ordered)[:-1] >= sampling.top_p] = 0
        cumulated = np.cumsum(ordered)
        drawn = np.searchsorted(cumulated, self._generator.random() * cumulated[-1], "right")
        return int(order[min(drawn, np.count_nonzero(ordered) - 1)])
