"""`single`: one engine answers alone, the baseline of every table."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import ClassVar

from ensemblehub.cost import UsageLedger
from ensemblehub.ensemble_methods.base import Aggregation, Granularity
from ensemblehub.ensemble_methods.output_aggregation.distribution import DistributionMixture
from ensemblehub.ensemble_methods.roles import by_name, require
from ensemblehub.errors import RequestError
from ensemblehub.generators.base import Engine
from ensemblehub.schema import Capability, Event, Request, Scored


@dataclass(frozen=True)
class Single(Aggregation):
    """A single engine answers.

    Use when one model is good enough for what it costs, and as the baseline of everything else.  Not when
    `ensemblehub advise` finds a strategy that is as good for less on your questions.

    Attributes:
        engine: its name; the first engine when omitted.
    """

    granularity: ClassVar[Granularity] = "response"
    engine: str | None = None

    def run(
        self, request: Request, engines: Sequence[Engine], ledger: UsageLedger
    ) -> AsyncGenerator[Event, None]:
        return self.chosen(engines).stream(request, ledger.meter("answer"))

    async def log_likelihood(
        self, request: Request, engines: Sequence[Engine], ledger: UsageLedger, context: int | None = None
    ) -> AsyncGenerator[Event | Scored, None]:
        engine = self.chosen(engines)
        most = request.sampling.top_logprobs
        if most > 1 and "decode" not in engine.capabilities:
            raise RequestError(f"{engine.name} gives one alternative per token of a prompt, not {most}")
        if most > 1:
            async with aclosing(DistributionMixture().log_likelihood(request, [engine], ledger)) as events:
                async for event in events:
                    yield event
            return
        require(engine, frozenset({"score"}), "a log-likelihood")
        yield await engine.score(request, ledger.meter("score"))
        if request.sampling.max_tokens:
            async with aclosing(self.run(request, engines, ledger)) as answer:
                async for event in answer:
                    yield event

    def reader(self, engines: Sequence[Engine]) -> Engine:
        return self.chosen(engines)

    def answerers(self, engines: Sequence[Engine], capability: Capability) -> Sequence[Engine]:
        return (self.chosen(engines),)

    def chosen(self, engines: Sequence[Engine]) -> Engine:
        """The engine that answers."""
        return by_name(engines, self.engine, "single") if self.engine else engines[0]

    def roles(self, engines: Sequence[Engine]) -> tuple[Engine, ...]:
        return (self.chosen(engines),) if self.engine else ()
