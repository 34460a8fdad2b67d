"""The ledger: every engine call is billed here, whoever asked for it.

Engines report what they computed; this module knows what it costs.  It knows no strategy.  Beside the
ledger stands the paper's formula, which counts output tokens only.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field

from ensemblehub.schema import Cost, ModelInfo, Purpose, Usage, UsageLine


@dataclass
class UsageLedger:
    """What one request has spent so far, call by call."""

    calls: list[UsageLine] = field(default_factory=list)
    _computed: dict[str, list[Sequence[int]]] = field(default_factory=dict, repr=False)

    def reused(self, engine: str, ids: Sequence[int], cached: int) -> int:
        """How many of `cached` leading tokens this request had computed itself, in an earlier call of the engine.

        Args:
            ids: the tokens of this call, read and written; kept for the calls that follow.
        """
        earlier = self._computed.setdefault(engine, [])
        common = max((_common(ids, other, cached) for other in earlier), default=0)
        earlier.append(ids)
        return common

    def add(self, engine: str, purpose: Purpose, cost: Cost) -> None:
        """Bill one call."""
        self.calls.append(UsageLine(engine, purpose, cost))

    @property
    def usage(self) -> Usage:
        """Usage by engine and purpose, in order of first use."""
        lines: dict[tuple[str, Purpose], Cost] = {}
        for call in self.calls:
            lines[call.engine, call.purpose] = lines.get((call.engine, call.purpose), Cost()) + call.cost
        return Usage(tuple(UsageLine(engine, purpose, cost) for (engine, purpose), cost in lines.items()))

    @property
    def total(self) -> Cost:
        """The sum of all calls."""
        return sum((call.cost for call in self.calls), Cost())

    def meter(self, purpose: Purpose) -> UsageMeter:
        """A meter to hand to engine calls made for `purpose`."""
        return UsageMeter(self, purpose)


@dataclass(frozen=True)
class UsageMeter:
    """Goes into every engine call; remembers what the call is for."""

    ledger: UsageLedger
    purpose: Purpose

    def record(
        self,
        engine: str,
        info: ModelInfo,
        *,
        prompt_tokens: int,
        cached_tokens: int = 0,
        completion_tokens: int = 0,
        discarded_tokens: int = 0,
        seconds: float = 0.0,
        usd: float | None = None,
        estimated: bool = False,
        ids: Sequence[int] | None = None,
    ) -> Cost:
        """Bill one engine call; called once per call, in `finally`.

        FLOPs are those of the forward passes computed: positions `cached_tokens` to `prompt_tokens - 1` for
        the prefill, one per written token but the last for decoding (the prefill yields the first token).

        Args:
            ids: the tokens read and written.  They tell what of `cached_tokens` an earlier request had computed;
                without them, the lengths of the calls bound it.
        """
        written_from = prompt_tokens
        tokens = range(prompt_tokens + completion_tokens) if ids is None else ids
        reused = self.ledger.reused(engine, tokens, cached_tokens)
        cost = Cost(
            prompt_tokens,
            cached_tokens,
            completion_tokens,
            discarded_tokens,
            prefill_flops=info.flops(cached_tokens, prompt_tokens),
            decode_flops=info.flops(written_from, written_from + max(0, completion_tokens - 1)),
            usd=dollars(info, prompt_tokens, cached_tokens, completion_tokens) if usd is None else usd,
            seconds=seconds,
            calls=1,
            estimated=estimated,
            spared_flops=info.flops(reused, cached_tokens),
        )
        self.ledger.add(engine, self.purpose, cost)
        return cost


def _common(one: Sequence[int], other: Sequence[int], most: int) -> int:
    """Length of the common start of two sequences, at most `most`."""
    most = min(most, len(one), len(other))
    if one[:most] == other[:most]:
        return most
    return bisect_left(range(1, most + 1), True, key=lambda length: one[:length] != other[:length])


def dollars(info: ModelInfo, prompt_tokens: int, cached_tokens: int, completion_tokens: int) -> float:
    """Price of a call in US dollars; 0 where the card has no price."""
    if info.price is None:
        return 0.0
    cached_price = info.price.prompt if info.price.cached is None else info.price.cached
    fresh = prompt_tokens - cached_tokens
    return (
        fresh * info.price.prompt + cached_tokens * cached_price + completion_tokens * info.price.completion
    ) / 1e6


def paper_flops(
    mentor_parameters: float, mentor_tokens: float, intern_parameters: float, intern_tokens: float
) -> float:
    """The paper's cost of one question in FLOPs: `2 (θ_L L_L + θ_S (L_L + L_S))`.

    Reconstructed from Table 1 (its lengths reproduce its TFLOPs only with the factor 2): the intern is
    charged for reading the insight once and for its own output; prompts, attention and judging are free.
    """
    return 2.0 * (mentor_parameters * mentor_tokens + intern_parameters * (mentor_tokens + intern_tokens))
