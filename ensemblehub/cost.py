"""The ledger: every engine call is billed here, whoever asked for it.

Engines report what they computed; this module knows what it costs.  It knows no strategy.  Beside the
ledger stands the paper's formula, which counts output tokens only.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ensemblehub.schema import Card, Cost, Purpose, Spent


@dataclass
class Ledger:
    """What one request has spent so far, call by call."""

    calls: list[Spent] = field(default_factory=list)

    def add(self, engine: str, purpose: Purpose, cost: Cost) -> None:
        """Bill one call."""
        self.calls.append(Spent(engine, purpose, cost))

    @property
    def spent(self) -> tuple[Spent, ...]:
        """The bill by engine and purpose, in the order in which they first appeared."""
        lines: dict[tuple[str, Purpose], Cost] = {}
        for call in self.calls:
            lines[call.engine, call.purpose] = lines.get((call.engine, call.purpose), Cost()) + call.cost
        return tuple(Spent(engine, purpose, cost) for (engine, purpose), cost in lines.items())

    @property
    def total(self) -> Cost:
        """The sum of all calls."""
        return sum((call.cost for call in self.calls), Cost())

    def meter(self, purpose: Purpose) -> Meter:
        """A meter to hand to engine calls made for `purpose`."""
        return Meter(self, purpose)


@dataclass(frozen=True)
class Meter:
    """Goes into every engine call; remembers what the call is for."""

    ledger: Ledger
    purpose: Purpose

    def record(
        self,
        engine: str,
        card: Card,
        *,
        prompt_tokens: int,
        cached_tokens: int = 0,
        completion_tokens: int = 0,
        discarded_tokens: int = 0,
        seconds: float = 0.0,
        usd: float | None = None,
        estimated: bool = False,
    ) -> Cost:
        """Bill one engine call; called once per call, in `finally`.

        FLOPs are those of the forward passes computed: positions `cached_tokens` to `prompt_tokens - 1` for
        the prefill, one per written token but the last for decoding (the prefill yields the first token).
        """
        written_from = prompt_tokens
        cost = Cost(
            prompt_tokens,
            cached_tokens,
            completion_tokens,
            discarded_tokens,
            prefill_flops=card.flops(cached_tokens, prompt_tokens),
            decode_flops=card.flops(written_from, written_from + max(0, completion_tokens - 1)),
            usd=dollars(card, prompt_tokens, cached_tokens, completion_tokens) if usd is None else usd,
            seconds=seconds,
            calls=1,
            estimated=estimated,
        )
        self.ledger.add(engine, self.purpose, cost)
        return cost


def dollars(card: Card, prompt_tokens: int, cached_tokens: int, completion_tokens: int) -> float:
    """Price of a call in US dollars; 0 where the card has no price."""
    if card.price is None:
        return 0.0
    cached_price = card.price.prompt if card.price.cached is None else card.price.cached
    fresh = prompt_tokens - cached_tokens
    return (fresh * card.price.prompt + cached_tokens * cached_price + completion_tokens * card.price.completion) / 1e6


def paper_flops(
    mentor_parameters: float, mentor_tokens: float, intern_parameters: float, intern_tokens: float
) -> float:
    """The paper's cost of one question in FLOPs: `2 (θ_L L_L + θ_S (L_L + L_S))`.

    Reconstructed from Table 1 (its lengths reproduce its TFLOPs only with the factor 2): the intern is
    charged for reading the insight once and for its own output; prompts, attention and judging are free.
    """
    return 2.0 * (mentor_parameters * mentor_tokens + intern_parameters * (mentor_tokens + intern_tokens))
