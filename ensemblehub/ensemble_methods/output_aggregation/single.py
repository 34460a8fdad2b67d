"""`single`: one engine answers alone, the baseline of every table."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import ClassVar

from ensemblehub.cost import Meter
from ensemblehub.ensemble_methods.base import Aggregation, Granularity, by_name
from ensemblehub.generators.base import Engine
from ensemblehub.schema import Event, Request


@dataclass(frozen=True)
class Single(Aggregation):
    """One engine answers alone.

    Attributes:
        engine: its name; the first engine when omitted.
    """

    granularity: ClassVar[Granularity] = "response"
    engine: str | None = None

    async def run(self, request: Request, engines: Sequence[Engine], meter: Meter) -> AsyncGenerator[Event, None]:
        engine = by_name(engines, self.engine, "single") if self.engine else engines[0]
        async with aclosing(engine.stream(request, meter.ledger.meter("answer"))) as answer:
            async for piece in answer:
                yield piece
