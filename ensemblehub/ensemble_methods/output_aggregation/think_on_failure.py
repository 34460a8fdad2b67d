"""`think_on_failure`: a model answers without thinking; where that answer is not accepted, it thinks.

Lu et al., "Prolonged Reasoning Is Not All You Need: Certainty-Based Adaptive Routing for Efficient LLM/MLLM
Reasoning" (CAR), arXiv 2505.15154: the short answer is kept where its perplexity is low, else the model
reasons at length.  Ours: a threshold on the geometric mean probability of the short answer's tokens (the
inverse of that perplexity) in place of two Gaussians fitted to right and wrong answers; any other criterion
of `acceptance_named`; and a model that was not trained for it, switched by its chat template.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import ClassVar

from ensemblehub.cost import UsageLedger
from ensemblehub.ensemble_methods.escalation import Escalation
from ensemblehub.ensemble_methods.roles import by_name, largest
from ensemblehub.errors import ConfigError, RequestError
from ensemblehub.generators.base import Engine
from ensemblehub.schema import Capability, Chat, Event, Request


@dataclass(frozen=True)
class ThinkOnFailure(Escalation):
    """The answer without thinking where it is accepted, else the answer after thinking.

    The answer after thinking is asked for as the request came; one that turns thinking off is answered by
    `small` at once.

    Requires a chat template with the switch `enable_thinking`, and `logprobs` of `small` where `accept`
    reads them.

    Use when the model is often right without thinking, and its tokens' probability shows where not: on
    built-in math 88.8 % at 0.366 of the thinking mentor's cost (87.5 %), and 88.1 % at 0.604 with 3 of
    1,000 answers wrong that the mentor has right.  Not when its answers without thinking are the better
    ones, as the built-in mentor's programs (82.1 %; 80.3 % with this).

    Attributes:
        large: the engine that thinks, by name; the largest by default.
        small: the one that answers without thinking; by default the same.
        accept, threshold, lost: when the answer without thinking is given, as for `cascade`.
    """

    min_engines: ClassVar[int] = 1

    def pair(self, engines: Sequence[Engine]) -> tuple[Engine, Engine]:
        large = largest(engines, self.large, "think_on_failure: large")
        small = by_name(engines, self.small, "think_on_failure: small") if self.small else large
        if self.small and large is small:
            raise ConfigError(f"think_on_failure: large and small are both {large.name!r}; leave out small")
        return large, small

    async def run(
        self, request: Request, engines: Sequence[Engine], ledger: UsageLedger
    ) -> AsyncGenerator[Event, None]:
        large, small = self.pair(engines)
        first = self.first_request(request)
        if first == request:
            events: AsyncGenerator[Event, None] = small.stream(request, ledger.meter("answer"))
        elif large is small and await asyncio.to_thread(large.same_prompt, first, request):
            raise RequestError(
                f"{large.name!r} is asked alike with and without thinking: its chat template or API has no "
                "switch `enable_thinking`, or its options turn it off"
            )
        else:
            events = super().run(request, engines, ledger)
        async with aclosing(events):
            async for event in events:
                yield event

    def first_request(self, request: Request) -> Request:
        if not isinstance(request.prompt, Chat):
            raise RequestError("think_on_failure needs a chat: a raw prompt has no switch for thinking")
        return replace(request, prompt=replace(request.prompt, thinking=False))

    def answerers(self, engines: Sequence[Engine], capability: Capability) -> Sequence[Engine]:
        if capability == "tools" and not self.criterion.reads_tokens:
            return ()  # no other criterion sees a call
        return tuple(dict.fromkeys(self.pair(engines)))
