"""The only place that joins the parts: engines, a selection and an aggregation become an `Ensemble`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

from ensemblehub import registry
from ensemblehub.config import Config, ModelSpec, StrategySpec
from ensemblehub.cost import Ledger
from ensemblehub.ensemble_methods.base import Aggregation, Selection
from ensemblehub.errors import RequestError
from ensemblehub.generators.base import Engine
from ensemblehub.schema import Chat, Event, Message, Piece, Request, Result, Verdict, merged


class Ensemble:
    """Engines that answer together.

    Use it as an async context manager, or call `load` and `close`.  Capabilities and roles are checked
    when it is made, before any weights load.

    Raises:
        ConfigError: a role or capability is missing.
    """

    def __init__(self, engines: Sequence[Engine], selection: Selection, aggregation: Aggregation) -> None:
        self.engines, self.selection, self.aggregation = list(engines), selection, aggregation
        aggregation.check(self.engines)

    @classmethod
    def from_config(cls, config: Config | str | Path) -> Ensemble:
        """Build from a configuration or the path of a YAML file; loads no weights."""
        config = config if isinstance(config, Config) else Config.read(Path(config))
        engines = [_engine(spec) for spec in config.model_specs]
        selection = _strategy(registry.SELECTIONS, config.selection, "selection")
        aggregation = _strategy(registry.AGGREGATIONS, config.aggregation, "aggregation")
        return cls(engines, selection, aggregation)

    async def load(self) -> None:
        """Load every engine's weights."""
        await asyncio.gather(*(engine.load() for engine in self.engines))

    async def close(self) -> None:
        """Free every engine."""
        await asyncio.gather(*(engine.close() for engine in self.engines))

    async def __aenter__(self) -> Ensemble:
        await self.load()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def stream(self, request: Request | str, ledger: Ledger | None = None) -> AsyncGenerator[Event, None]:
        """Answer piece by piece; closing the iterator stops every model.

        Args:
            request: a request, or a question as plain text.
            ledger: takes the bill as it grows.
        """
        ask = _request(request)
        meter = (ledger or Ledger()).meter("select")
        chosen = await self.selection.select(ask, self.engines, meter)
        if not chosen:
            raise RequestError("the selection chose no engine for this request")
        async with aclosing(self.aggregation.run(ask, chosen, meter)) as events:
            async for event in events:
                yield event

    async def answer(self, request: Request | str) -> Result:
        """The whole answer: the stream, folded, with its bill."""
        ledger, started = Ledger(), time.perf_counter()
        events: list[Event] = []
        async with aclosing(self.stream(request, ledger)) as stream:
            async for event in stream:
                events.append(event)
        return fold(events, ledger, time.perf_counter() - started)


def fold(events: Sequence[Event], ledger: Ledger, seconds: float) -> Result:
    """A stream's events and its ledger as one record."""
    pieces = merged(event for event in events if isinstance(event, Piece))
    verdicts = tuple(event for event in events if isinstance(event, Verdict))
    return Result(pieces, verdicts, ledger.spent, seconds)


def _request(request: Request | str) -> Request:
    return Request(Chat((Message("user", request),))) if isinstance(request, str) else request


def _engine(spec: ModelSpec) -> Engine:
    kind = registry.lookup(registry.ENGINES, spec.engine, "engine")
    engine: Engine = kind(spec.name, registry.build(kind.options, spec.options, f"model {spec.name!r}"))
    return engine


def _strategy(table: dict[str, str], spec: StrategySpec, what: str) -> Any:
    kind = registry.lookup(table, spec.method, what)
    return registry.build(kind, spec.params, f"{what} {spec.method!r}")
