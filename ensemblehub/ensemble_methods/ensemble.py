"""The only place that joins the parts: engines, a selection and an aggregation become an `Ensemble`."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ensemblehub import registry
from ensemblehub.config import Config, DebugSection, ModelSpec, RewardSpec, StrategySpec
from ensemblehub.cost import Ledger
from ensemblehub.ensemble_methods.base import Aggregation, ScoringAggregation, Selection, check_together
from ensemblehub.errors import RequestError
from ensemblehub.generators.base import Engine
from ensemblehub.schema import Chat, Choice, Event, Message, Piece, Request, Result, Sampling, Verdict, merged
from ensemblehub.scorers.base import Scorer
from ensemblehub.scorers.pool import Pool


class Ensemble:
    """Engines that answer together.

    Use it as an async context manager, or call `load` and `close`.  Capabilities and roles are checked
    when it is made, before any weights load.

    Raises:
        ConfigError: a role or capability is missing.
    """

    def __init__(self, engines: Sequence[Engine], selection: Selection, aggregation: Aggregation) -> None:
        self.engines, self.selection, self.aggregation = list(engines), selection, aggregation
        self.sampling, self.debug = Sampling(), DebugSection()
        check_together(self.engines, selection, aggregation)

    @classmethod
    def from_config(cls, config: Config | str | Path) -> Ensemble:
        """Build from a configuration or the path of a YAML file; loads no weights."""
        config = config if isinstance(config, Config) else Config.read(Path(config))
        engines = [engine_of(config, spec) for spec in config.model_specs]
        selection, aggregation = selection_of(config), aggregation_of(config)
        if isinstance(aggregation, ScoringAggregation):
            scorers = [scorer_of(config, spec, engines) for spec in config.reward_specs]
            aggregation = aggregation.judged_by(pool_of(config, scorers))
        config.warn()
        with config.within("ensemble"):
            ensemble = cls(engines, selection, aggregation)
        ensemble.sampling, ensemble.debug = config.ensemble.generation.sampling(ensemble.context), config.debug
        return ensemble

    async def load(self) -> None:
        """Load the weights of every engine and scorer."""
        await asyncio.gather(*(part.load() for part in self._parts))

    async def close(self) -> None:
        """Free every engine and scorer."""
        await asyncio.gather(*(part.close() for part in self._parts))

    @property
    def _parts(self) -> tuple[Engine | Scorer, ...]:
        scorers = self.aggregation.scorers.scorers if isinstance(self.aggregation, ScoringAggregation) else ()
        return (*self.engines, *scorers)

    @property
    def context(self) -> int:
        """The shortest context among the engines, in tokens; 0 where none is known."""
        return min((engine.card.context for engine in self.engines if engine.card.context), default=0)

    async def __aenter__(self) -> Ensemble:
        await self.load()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def stream(self, request: Request | str, ledger: Ledger | None = None) -> AsyncGenerator[Event, None]:
        """Answer piece by piece; closing the iterator stops every model.

        Args:
            request: a request, or a question as plain text, generated as the configuration says.
            ledger: takes the bill as it grows.
        """
        ask, ledger, written, started = self._request(request), ledger or Ledger(), list[Event](), time.perf_counter()
        if self.debug.show_input_details:
            _show("request", **asdict(ask))
        meter = ledger.meter("select")
        chosen = await self.selection.select(ask, self.engines, meter)
        if not chosen:
            raise RequestError("the selection chose no engine for this request")
        if chosen != self.engines:
            yield Choice("models", tuple(engine.name for engine in chosen))
        async with aclosing(self.aggregation.run(ask, chosen, meter)) as events:
            async for event in events:
                yield event
                written.append(event)
        if self.debug.show_output_details:
            result = fold(written, ledger, time.perf_counter() - started)
            spent = [asdict(line) for line in result.spent]
            _show("result", id=ask.id, text=result.text, finish=result.finish, choices=result.choices, spent=spent)

    async def answer(self, request: Request | str) -> Result:
        """The whole answer: the stream, folded, with its bill."""
        ledger, started = Ledger(), time.perf_counter()
        events: list[Event] = []
        async with aclosing(self.stream(request, ledger)) as stream:
            async for event in stream:
                events.append(event)
        return fold(events, ledger, time.perf_counter() - started)

    def _request(self, request: Request | str) -> Request:
        return Request(Chat((Message("user", request),)), self.sampling) if isinstance(request, str) else request


def fold(events: Sequence[Event], ledger: Ledger, seconds: float) -> Result:
    """A stream's events and its ledger as one record."""
    pieces = merged(event for event in events if isinstance(event, Piece))
    verdicts = tuple(event for event in events if isinstance(event, Verdict))
    choices = tuple(event for event in events if isinstance(event, Choice))
    return Result(pieces, verdicts, ledger.spent, seconds, choices)


def engine_of(config: Config, spec: ModelSpec) -> Engine:
    """One engine of the configuration, without its weights."""
    place = ("model_specs", config.model_specs.index(spec))
    with config.within(*place, "engine"):
        kind = registry.lookup(registry.ENGINES, spec.engine, "engine")
    with config.within(*place):
        options = registry.build(kind.options, config.options(spec), f"model {spec.name!r}", ModelSpec.model_fields)
        engine: Engine = kind(spec.name, options)
        return engine


def selection_of(config: Config) -> Selection:
    """The configured selection."""
    selection: Selection = _strategy(config, "model_selection", registry.SELECTIONS, config.selection, "selection")
    return selection


def aggregation_of(config: Config) -> Aggregation:
    """The configured aggregation, without scorers."""
    spec = config.aggregation
    aggregation: Aggregation = _strategy(config, "output_aggregation", registry.AGGREGATIONS, spec, "aggregation")
    return aggregation


def pool_of(config: Config, scorers: Sequence[Scorer]) -> Pool:
    """The configured scorers with their weights."""
    weights = tuple(spec.weight for spec in config.reward_specs)
    return Pool(tuple(scorers), weights, config.ensemble.score_normalization)


def scorer_of(config: Config, spec: RewardSpec, engines: Sequence[Engine]) -> Scorer:
    """One scorer of the configuration, without its weights."""
    place = ("reward_specs", config.reward_specs.index(spec))
    with config.within(*place, "engine"):
        kind = registry.lookup(registry.SCORERS, spec.engine, "scorer")
    with config.within(*place):
        options = registry.build(kind.options, spec.options, f"scorer {spec.name!r}", RewardSpec.model_fields)
        scorer: Scorer = kind(spec.name, options, engines)
        return scorer


def _strategy(config: Config, key: str, table: dict[str, str], spec: StrategySpec, what: str) -> Any:
    with config.within("ensemble", f"{key}_method"):
        kind = registry.lookup(table, spec.method, what)
    with config.within("ensemble", f"{key}_params"):
        return registry.build(kind, spec.params, f"{what} {spec.method!r}")


def _show(what: str, **details: Any) -> None:
    print(json.dumps({what: details}, ensure_ascii=False, default=str), file=sys.stderr, flush=True)
