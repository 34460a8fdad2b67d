"""The only place that joins the parts: engines, a selection and an aggregation become an `Ensemble`."""

from __future__ import annotations

import asyncio
import copy
import json
import logging
import sys
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

from ensemblehub import registry
from ensemblehub.config import Config
from ensemblehub.config.sections import DebugSection, Generation, ModelSpec, RewardSpec, StrategySpec
from ensemblehub.cost import UsageLedger
from ensemblehub.ensemble_methods.base import Aggregation, Selection, check_together, name_of
from ensemblehub.ensemble_methods.model_selection.all import All
from ensemblehub.ensemble_methods.output_aggregation.single import Single
from ensemblehub.ensemble_methods.roles import require
from ensemblehub.ensemble_methods.turns import SoFar
from ensemblehub.errors import ConfigError, EngineError, RequestError
from ensemblehub.generators.base import Engine
from ensemblehub.schema import (
    Chat,
    Choice,
    Event,
    Message,
    Piece,
    Request,
    Result,
    Sampling,
    Scored,
    Verdict,
    merged,
)
from ensemblehub.scorers.base import Scorer
from ensemblehub.scorers.pool import Pool

log = logging.getLogger(__name__)


class AsyncEnsemble:
    """Engines that answer together.

    Use it as an async context manager, or call `load` and `close`.  Capabilities and roles are checked
    when it is made, before any weights load.

    Raises:
        ConfigError: a role or capability is missing.
    """

    def __init__(self, engines: Sequence[Engine], selection: Selection, aggregation: Aggregation) -> None:
        self.engines, self.selection, self.aggregation = list(engines), selection, aggregation
        self.sampling, self.generation, self.debug = Sampling(), Generation(), DebugSection()
        self.on_error: Literal["fail", "drop"] = "fail"
        check_together(self.engines, selection, aggregation)

    @classmethod
    def from_config(
        cls, config: Config | str | Path, engines: Sequence[Engine] = (), scorers: Sequence[Scorer] = ()
    ) -> AsyncEnsemble:
        """Build from a configuration or the path of a YAML file; loads no weights.

        Args:
            engines, scorers: those of the configuration, where they exist already.
        """
        config = config if isinstance(config, Config) else Config.read(Path(config))
        made = {engine.name: engine for engine in engines}
        members = [made.get(spec.name) or engine_of(config, spec) for spec in config.members]
        selection, aggregation = selection_of(config), aggregation_of(config)
        if aggregation.uses_scorers:
            judges = scorers or [scorer_of(config, spec, members) for spec in config.reward_specs]
            aggregation = aggregation.with_scorers(pool_of(config, judges))
        config.warn()
        with config.within("ensemble"):
            ensemble = cls(members, selection, aggregation)
        ensemble.configure(config)
        return ensemble

    def configure(self, config: Config) -> None:
        """Generate, and deal with failing engines, as a configuration says."""
        self.generation, self.debug = config.ensemble.generation, config.debug
        self.sampling, self.on_error = self.generation.sampling(self.context), config.ensemble.on_error

    def varied(self, aggregation: Aggregation) -> AsyncEnsemble:
        """The same with another aggregation, asking the same scorers.

        Raises:
            ConfigError: it cannot work with these engines.
        """
        aggregation = aggregation.with_scorers(self.aggregation.scorers)
        check_together(self.engines, self.selection, aggregation)
        other = copy.copy(self)
        other.aggregation = aggregation
        return other

    async def load(self) -> None:
        """Load the weights of every engine and scorer."""
        await asyncio.gather(*(part.load() for part in self._parts))

    async def close(self) -> None:
        """Free every engine and scorer."""
        await asyncio.gather(*(part.close() for part in self._parts))

    @property
    def _parts(self) -> tuple[Engine | Scorer, ...]:
        return (*self.engines, *self.aggregation.scorers.scorers)

    @property
    def context(self) -> int:
        """The shortest context among the engines, in tokens; 0 where none is known."""
        return min((engine.info.context for engine in self.engines if engine.info.context), default=0)

    async def __aenter__(self) -> AsyncEnsemble:
        await self.load()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def stream(
        self, request: Request | str, ledger: UsageLedger | None = None
    ) -> AsyncGenerator[Event, None]:
        """Answer piece by piece; closing the iterator stops every model.

        Args:
            request: a request, or a question as plain text, generated as the configuration says.
            ledger: takes the bill as it grows.
        """
        ask, ledger, written, started = (
            self._request(request),
            ledger or UsageLedger(),
            list[Event](),
            time.perf_counter(),
        )
        if self.debug.show_input_details:
            _show("request", **asdict(ask))
        chosen = await self.selection.select(ask, self.engines, ledger)
        if not chosen:
            raise RequestError("the selection chose no engine for this request")
        if chosen != self.engines:
            yield Choice("models", tuple(engine.name for engine in chosen))
        async with aclosing(self._attempts(ask, chosen, ledger)) as events:
            async for event in events:
                yield event
                if self.debug.show_output_details:
                    written.append(event)
        if self.debug.show_output_details:
            result = fold(written, ledger, time.perf_counter() - started)
            spent = [asdict(line) for line in result.usage.lines]
            _show(
                "result",
                id=ask.id,
                text=result.text,
                finish=result.finish,
                choices=result.choices,
                spent=spent,
            )

    async def _attempts(
        self, request: Request, chosen: list[Engine], ledger: UsageLedger
    ) -> AsyncGenerator[Event, None]:
        """The answer; where failing engines are to be dropped, the others go on behind what is written."""
        aggregation, so_far, thoughts = self.aggregation, SoFar(""), SoFar("")
        while True:
            try:
                async with aclosing(aggregation.run(request, chosen, ledger)) as events:
                    async for event in events:
                        yield event
                        if isinstance(event, Piece) and event.visible:
                            parts = {"answer": so_far, "insight": thoughts}
                            parts.get(event.purpose, SoFar("")).add(event)
                return
            except EngineError as error:
                left = [engine for engine in chosen if engine.name != error.engine]
                if self.on_error == "fail" or not left or len(left) == len(chosen):
                    raise
                log.warning("%s; it is dropped", error)
                yield Choice(
                    "models", tuple(engine.name for engine in left), (), f"dropped {error.engine}: {error}"
                )
                chosen, aggregation = left, fitting(self.aggregation, left)
                request = rest(request, so_far, left).spending(so_far.tokens + thoughts.tokens)
                so_far, thoughts = SoFar(""), SoFar("")

    async def echo(
        self, request: Request, ledger: UsageLedger | None = None, context: int | None = None
    ) -> AsyncGenerator[Event | Scored, None]:
        """Every token's log-likelihood, then the answer behind it: see `Aggregation.echo`.

        Raises:
            RequestError: the selection may drop the engine whose tokens the positions are, or as `Aggregation.echo`.
        """
        if self.selection.min_engines(self.engines) < len(self.engines):
            raise RequestError(f"{name_of(self.selection)} may drop models, so there is no log-likelihood")
        ledger = ledger or UsageLedger()
        async with aclosing(
            self.aggregation.log_likelihood(request, self.engines, ledger, context)
        ) as events:
            async for event in events:
                yield event

    async def generate(self, request: Request | str) -> Result:
        """The whole answer: the stream, folded, with its bill."""
        ledger, started = UsageLedger(), time.perf_counter()
        events: list[Event] = []
        async with aclosing(self.stream(request, ledger)) as stream:
            async for event in stream:
                events.append(event)
        return fold(events, ledger, time.perf_counter() - started)

    def _request(self, request: Request | str) -> Request:
        return (
            Request(Chat((Message("user", request),)), self.sampling) if isinstance(request, str) else request
        )


def fitting(aggregation: Aggregation, engines: Sequence[Engine]) -> Aggregation:
    """The aggregation, or the first engine alone where it cannot work with these."""
    try:
        check_together(engines, All(), aggregation)
    except ConfigError:
        return Single()
    return aggregation


def rest(request: Request, so_far: SoFar, engines: Sequence[Engine]) -> Request:
    """What is left to ask once `so_far` is written.

    Raises:
        CapabilityError: one of `engines` cannot continue a text.
    """
    if not so_far.text:
        return request
    for engine in engines:
        require(engine, frozenset({"prefix"}), "going on behind a failed engine")
    sampling = request.sampling
    left = max(1, sampling.max_tokens - so_far.tokens)
    low = max(0, sampling.min_tokens - so_far.tokens)
    return replace(
        request.continued(so_far.text), sampling=replace(sampling, max_tokens=left, min_tokens=low)
    )


def fold(events: Sequence[Event], ledger: UsageLedger, seconds: float) -> Result:
    """A stream's events and its ledger as one record."""
    pieces = merged(event for event in events if isinstance(event, Piece))
    verdicts = tuple(event for event in events if isinstance(event, Verdict))
    choices = tuple(event for event in events if isinstance(event, Choice))
    return Result(pieces, verdicts, ledger.usage, seconds, choices)


def attribution(result: Result) -> dict[str, Any]:
    """Who wrote what, in order; `length` in tokens."""
    pieces = [piece for piece in result.pieces if piece.visible and piece.text]
    segments = [
        {
            "round": index,
            "model": one.engine,
            "purpose": one.purpose,
            "text": one.text,
            "length": len(one.tokens),
        }
        for index, one in enumerate(pieces, 1)
    ]
    return {
        "summary": " → ".join(f"[R{one['round']:02}:{one['model']}]" for one in segments),
        "segments": segments,
    }


def engine_of(config: Config, spec: ModelSpec) -> Engine:
    """One engine of the configuration, without its weights."""
    place = ("model_specs", config.model_specs.index(spec))
    with config.within(*place, "engine"):
        kind = registry.lookup(registry.ENGINES, spec.engine, "engine")
    with config.within(*place):
        options = registry.build(
            kind.options, config.options(spec), f"model {spec.name!r}", ModelSpec.model_fields
        )
        engine: Engine = kind(spec.name, options)
        return engine


def selection_of(config: Config) -> Selection:
    """The configured selection."""
    selection: Selection = _strategy(
        config, "model_selection", registry.SELECTIONS, config.selection, "selection"
    )
    return selection


def aggregation_of(config: Config) -> Aggregation:
    """The configured aggregation, without scorers."""
    spec = config.aggregation
    aggregation: Aggregation = _strategy(
        config, "output_aggregation", registry.AGGREGATIONS, spec, "aggregation"
    )
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
