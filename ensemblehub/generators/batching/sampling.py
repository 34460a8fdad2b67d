"""Sampling the next token of every row of a step at once.

Randomness is one uniform number per token from the row's own seeded generator, looked up in the
cumulative distribution: a row draws the same token whoever shares its step.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from ensemblehub.schema import Sampling


class TokenGrammar(Protocol):
    """What the tokens of one answer keep to; followed on the scheduler's thread.

    Attributes:
        error: why no further token can be chosen; empty while one can.
    """

    error: str

    def forbidden(self, size: int) -> torch.Tensor:
        """Which of the first `size` ids may not come next, as booleans on the CPU."""

    def consume(self, index: int) -> bool:
        """Take the next token; True where nothing may follow."""


@dataclass(eq=False)
class TokenSampler:
    """Chooses the tokens of one row, by its sampling options, its own generator and what it has written.

    Attributes:
        prompt: ids of the prompt (for the repetition penalty).
        end: ids that `min_tokens` forbids.
    """

    sampling: Sampling
    prompt: Sequence[int]
    end: frozenset[int]
    written: Counter[int] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        seed = random.getrandbits(63) if self.sampling.seed is None else self.sampling.seed
        self._generator = torch.Generator().manual_seed(seed % 2**63)
        self._uniforms: list[float] = []
        self._seen = set(self.prompt) if self.sampling.repetition_penalty != 1.0 else set()
        self._penalised = bool(self.sampling.presence_penalty or self.sampling.frequency_penalty)

    def uniform(self) -> float:
        """The next number in [0, 1) of the row's own generator."""
        if not self._uniforms:
            self._uniforms = torch.rand(64, generator=self._generator).tolist()[::-1]
        return self._uniforms.pop()

    def wrote(self, index: int) -> None:
        """Remember a written token."""
        self.written[index] += 1
        if self._seen:
            self._seen.add(index)

    @property
    def adjusts(self) -> bool:
        """Whether the next logits are changed by biases, penalties or `min_tokens`."""
        return bool(self._forbidden() or self._seen or self._penalised or self.sampling.logit_bias)

    def adjust(self, logits: torch.Tensor) -> None:
        """Change one row's logits (vocabulary,) in place."""
        sampling = self.sampling
        for index, bias in sampling.logit_bias.items():
            logits[index] += bias
        if self._seen:
            seen = torch.tensor(sorted(self._seen), device=logits.device)
            scores, penalty = logits[seen], sampling.repetition_penalty
            logits[seen] = torch.where(scores < 0, scores * penalty, scores / penalty)
        if self._penalised and self.written:
            ids = torch.tensor(list(self.written), device=logits.device)
            counts = torch.tensor(list(self.written.values()), device=logits.device)
            logits[ids] -= sampling.presence_penalty + sampling.frequency_penalty * counts
        if forbidden := self._forbidden():
            logits[torch.tensor(sorted(forbidden), device=logits.device)] = float("-inf")

    def _forbidden(self) -> frozenset[int]:
        least = self.sampling.min_tokens
        return self.end if least and self.written.total() < least else frozenset()


def restricted(
    grammars: Sequence[TokenGrammar | None], logits: torch.Tensor, logprobs: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and logprobs (rows, vocabulary) with what each row's grammar forbids impossible."""
    bound = [index for index, grammar in enumerate(grammars) if grammar is not None]
    if not bound:
        return logits, logprobs
    masks = [grammar.forbidden(logits.shape[-1]) for grammar in grammars if grammar is not None]
    forbidden = torch.stack(masks).to(logits.device)
    if len(bound) == len(grammars):  # copies less
        logits = logits.masked_fill(forbidden, float("-inf"))
        return logits, logits.log_softmax(-1)
    allowed = logits[bound].masked_fill(forbidden, float("-inf"))
    rows = torch.tensor(bound, device=logits.device)
    return logits.index_copy(0, rows, allowed), logprobs.index_copy(0, rows, allowed.log_softmax(-1))


def choose(samplers: Sequence[TokenSampler], logits: torch.Tensor) -> torch.Tensor:
    """The next id of each row, (rows,), from logits (rows, vocabulary) in float32."""
    if any(sampler.adjusts for sampler in samplers):
        logits = logits.clone()
        for sampler, row in zip(samplers, logits, strict=True):
            if sampler.adjusts:
                sampler.adjust(row)
    chosen = logits.argmax(-1)
    warm = [index for index, sampler in enumerate(samplers) if sampler.sampling.temperature > 0]
    if warm:
        rows = torch.tensor(warm, device=logits.device)
        chosen[rows] = _draw([samplers[index] for index in warm], logits[rows])
    return chosen


def _draw(samplers: Sequence[TokenSampler], logits: torch.Tensor) -> torch.Tensor:
    temperature = logits.new_tensor([[sampler.sampling.temperature] for sampler in samplers])
    probabilities = torch.softmax(logits / temperature, -1)
    if any(sampler.sampling.limits for sampler in samplers):
        probabilities = _limited([sampler.sampling for sampler in samplers], probabilities)
    cumulated = probabilities.cumsum(-1)
    total = cumulated[:, -1:]
    target = logits.new_tensor([[sampler.uniform()] for sampler in samplers]) * total
    target = torch.minimum(target, torch.nextafter(total, torch.zeros_like(total)))
    # NaN probabilities give an id beyond the last; the caller sees the NaN in its logprob
    return torch.searchsorted(cumulated, target, right=True).squeeze(-1).clamp(max=logits.shape[-1] - 1)


def _limited(samplings: Sequence[Sampling], probabilities: torch.Tensor) -> torch.Tensor:
    """Zero the probabilities that min-p, then top-k, then top-p exclude; the top token always stays."""
    size, device = probabilities.shape[-1], probabilities.device
    ordered, order = probabilities.sort(stable=True, dim=-1, descending=True)
    min_p = torch.tensor([[sampling.min_p] for sampling in samplings], device=device, dtype=ordered.dtype)
    ordered = ordered.masked_fill(ordered < min_p * ordered[:, :1], 0.0)
    top_k = torch.tensor(
        [[sampling.top_k if sampling.top_k > 0 else size] for sampling in samplings], device=device
    )
    ordered = ordered.masked_fill(torch.arange(size, device=device) >= top_k, 0.0)
    ordered = ordered / ordered.sum(-1, keepdim=True)
    top_p = torch.tensor([[sampling.top_p] for sampling in samplings], device=device, dtype=ordered.dtype)
    out = ordered.cumsum(-1) - ordered >= top_p
    out[:, 0] = False
    return torch.zeros_like(probabilities).scatter_(-1, order, ordered.masked_fill(out, 0.0))
