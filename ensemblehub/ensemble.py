"""`AsyncEnsemble`: engines, a selection and an aggregation that answer together.

`Ensemble` in `ensemblehub.client` has the same methods for programs without an event loop.
"""

from __future__ import annotations

import asyncio
import copy
import json
import logging
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal, overload

from ensemblehub import builtin, configured, registry
from ensemblehub.concurrency import for_each
from ensemblehub.config import Config
from ensemblehub.config.sections import DebugSection, Generation
from ensemblehub.cost import UsageLedger
from ensemblehub.ensemble_methods.base import Aggregation, Selection, check_together, name_of
from ensemblehub.ensemble_methods.model_selection.all import All
from ensemblehub.ensemble_methods.output_aggregation.single import Single
from ensemblehub.ensemble_methods.roles import require
from ensemblehub.ensemble_methods.turns import SoFar
from ensemblehub.errors import ConfigError, EngineError, RequestError
from ensemblehub.generators.base import Engine
from ensemblehub.questions import Conversation, Question, changed, is_conversation, prompt_of
from ensemblehub.results import collect, fold
from ensemblehub.schema import (
    Choice,
    Event,
    Piece,
    Request,
    Result,
    Sampling,
    Scored,
)
from ensemblehub.scorers.base import Scorer

log = logging.getLogger(__name__)

Model = str | Mapping[str, Any] | Engine
CONCURRENCY = 64  # requests of one list that are answered at the same time


class AsyncEnsemble:
    """Language models that answer together.

    Args:
        models: Hub ids, folders, `.gguf` files, `MODEL:URL` of an OpenAI-compatible API, entries of
            `model_specs` as in a configuration file, or engines.
        selection: Name of a selection, or a selection.
        aggregation: Name of an aggregation, or an aggregation.
        scorers: Entries of `reward_specs` as in a configuration file, for aggregations that use scorers.

    Weights are loaded by `async with`, by `load`, or when they are first needed.

    Raises:
        ConfigError: A name or an option is unknown, or a role or a capability is missing; raised before
            weights are loaded.
    """

    def __init__(
        self,
        models: Sequence[Model],
        selection: str | Selection = "all",
        aggregation: str | Aggregation = "single",
        *,
        scorers: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self.engines = configured.engines_of(models)
        self.selection: Selection = configured.strategy(
            registry.SELECTIONS, selection, Selection, "selection"
        )
        self.aggregation: Aggregation = configured.strategy(
            registry.AGGREGATIONS, aggregation, Aggregation, "aggregation"
        )
        if scorers:
            self.aggregation = self.aggregation.with_scorers(configured.scorers_of(scorers, self.engines))
        self.sampling = Sampling(fit_context=True)
        self.generation = Generation()
        self.debug = DebugSection()
        self.on_error: Literal["fail", "drop"] = "fail"
        check_together(self.engines, self.selection, self.aggregation)

    @classmethod
    def from_config(
        cls, config: Config | str | Path, engines: Sequence[Engine] = (), scorers: Sequence[Scorer] = ()
    ) -> AsyncEnsemble:
        """Build the ensemble of a configuration, or of a YAML file; loads no weights.

        Args:
            engines, scorers: Engines and scorers of the configuration that exist already.
        """
        config = config if isinstance(config, Config) else Config.read(Path(config))
        made = {engine.name: engine for engine in engines}
        members = [made.get(spec.name) or configured.engine_of(config, spec) for spec in config.members]
        selection, aggregation = configured.selection_of(config), configured.aggregation_of(config)
        if aggregation.uses_scorers:
            judges = scorers or [configured.scorer_of(config, spec, members) for spec in config.reward_specs]
            aggregation = aggregation.with_scorers(configured.pool_of(config, judges))
        config.warn()
        with config.within("ensemble"):
            ensemble = cls(members, selection, aggregation)
        ensemble.configure(config)
        return ensemble

    @classmethod
    def tandem(cls, mentor: Model, intern: Model, **options: Any) -> AsyncEnsemble:
        """A large mentor that writes insights, and a small intern that answers.

        Args:
            mentor, intern: Models, as for the constructor.
            options: Options of `Tandem`, such as `judge`, `levels` and `profile`; by default those of the
                built-in pair where both models are built in.
        """
        if all(isinstance(model, str) and model.startswith("builtin:") for model in (mentor, intern)):
            options = Config.read(builtin.CONFIG).aggregation.params | options
        entries = [configured.entry(model, name) for name, model in (("mentor", mentor), ("intern", intern))]
        ensemble = cls(entries)
        names = dict(zip(("mentor", "intern"), (engine.name for engine in ensemble.engines), strict=True))
        kind = registry.lookup(registry.AGGREGATIONS, "tandem", "aggregation")
        return ensemble.with_aggregation(registry.build(kind, {**options, **names}, "tandem"))

    def configure(self, config: Config) -> None:
        """Take generation defaults, error handling and debugging from a configuration."""
        self.generation, self.debug = config.ensemble.generation, config.debug
        self.sampling, self.on_error = self.generation.sampling(self.context), config.ensemble.on_error

    def with_aggregation(self, aggregation: Aggregation) -> AsyncEnsemble:
        """Return this ensemble with another aggregation that uses the same scorers.

        Raises:
            ConfigError: The aggregation cannot work with these engines.
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
        """Shortest context among the engines, in tokens; 0 if none is known."""
        return min((engine.info.context for engine in self.engines if engine.info.context), default=0)

    async def __aenter__(self) -> AsyncEnsemble:
        await self.load()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @overload
    async def generate(
        self,
        question: Question,
        *,
        on_event: Callable[[Event], object] | None = None,
        **sampling: Any,
    ) -> Result: ...

    @overload
    async def generate(
        self,
        question: Sequence[str | Request],
        *,
        on_event: Callable[[Event], object] | None = None,
        **sampling: Any,
    ) -> list[Result]: ...

    async def generate(
        self, question: Any, *, on_event: Callable[[Event], object] | None = None, **sampling: Any
    ) -> Any:
        """Answer a question, or a list of questions together.

        Args:
            question: A question, a conversation, a prompt or a request; a list of them gives a list of
                results in its order.
            on_event: Called with every event as it comes.
            sampling: Fields of `Sampling`, such as `temperature` and `max_tokens`.

        Raises:
            RequestError: A sampling field is unknown or wrong, or the request cannot be answered.
            EngineError: A model failed; of a list, the other requests are cancelled.
        """
        if isinstance(question, Sequence) and not isinstance(question, str) and not is_conversation(question):
            requests = [self.request(each, **sampling) for each in question]
            return await for_each(requests, lambda each: self._result(each, on_event), limit=CONCURRENCY)
        return await self._result(self.request(question, **sampling), on_event)

    async def chat(
        self, messages: Conversation, *, on_event: Callable[[Event], object] | None = None, **sampling: Any
    ) -> Result:
        """Continue a conversation: messages in the form of OpenAI's API, as for `generate`."""
        return await self._result(self.request(messages, **sampling), on_event)

    async def stream(
        self, question: Question, ledger: UsageLedger | None = None, **sampling: Any
    ) -> AsyncGenerator[Event, None]:
        """Answer as a stream of events; closing the stream stops every model.

        Args:
            question: A question, a conversation, a prompt or a request.
            ledger: Receives the usage as it grows.
            sampling: Fields of `Sampling`.
        """
        request, ledger = self.request(question, **sampling).spending(0), ledger or UsageLedger()
        chosen = await self.selection.select(request, self.engines, ledger)
        if not chosen:
            raise RequestError("the selection chose no engine for this request")
        if chosen != self.engines:
            yield Choice("models", tuple(engine.name for engine in chosen))
        async with aclosing(self._attempts(request, chosen, ledger)) as events:
            async for event in self._logged(request, events, ledger) if self.debug.shows else events:
                yield event

    async def stream_text(self, question: Question, **sampling: Any) -> AsyncGenerator[str, None]:
        """Answer as a stream of text: the visible pieces of the answer alone."""
        async with aclosing(self.stream(question, **sampling)) as events:
            async for event in events:
                if isinstance(event, Piece) and event.answer_text:
                    yield event.answer_text

    async def log_likelihood(
        self, request: Request, ledger: UsageLedger | None = None, context: int | None = None
    ) -> AsyncGenerator[Event | Scored, None]:
        """Yield the log-likelihood of a raw prompt, then its continuation; see `Aggregation.log_likelihood`.

        Raises:
            RequestError: The selection may drop the engine in whose tokens the prompt is read, or see there.
        """
        if self.selection.min_engines(self.engines) < len(self.engines):
            raise RequestError(f"{name_of(self.selection)} may drop models, so there is no log-likelihood")
        ledger = ledger or UsageLedger()
        async with aclosing(
            self.aggregation.log_likelihood(request, self.engines, ledger, context)
        ) as events:
            async for event in events:
                yield event

    def request(self, question: Question, **sampling: Any) -> Request:
        """The request for a question, with the ensemble's sampling and changes to it.

        Raises:
            RequestError: A message or a sampling field is wrong.
        """
        if isinstance(question, Request):
            return replace(question, sampling=changed(question.sampling, sampling))
        return Request(prompt_of(question), changed(self.sampling, sampling))

    async def _result(self, request: Request, on_event: Callable[[Event], object] | None) -> Result:
        ledger = UsageLedger()
        return await collect(self.stream(request, ledger), ledger, on_event)

    async def _attempts(
        self, request: Request, chosen: list[Engine], ledger: UsageLedger
    ) -> AsyncGenerator[Event, None]:
        """Run the aggregation; with `on_error: drop`, run it again without an engine that failed."""
        aggregation = self.aggregation
        while True:
            written = {"answer": SoFar(""), "insight": SoFar("")}
            try:
                async with aclosing(aggregation.run(request, chosen, ledger)) as events:
                    async for event in events:
                        yield event
                        if isinstance(event, Piece) and event.visible and event.purpose in written:
                            written[event.purpose].add(event)
                return
            except EngineError as error:
                left = [engine for engine in chosen if engine.name != error.engine]
                if self.on_error == "fail" or not left or len(left) == len(chosen):
                    raise
                log.warning("%s; it is dropped", error)
                names = tuple(engine.name for engine in left)
                yield Choice("models", names, (), f"dropped {error.engine}: {error}")
                chosen, aggregation = left, _working(self.aggregation, left)
                tokens = sum(part.tokens for part in written.values())
                request = _rest(request, written["answer"], left).spending(tokens)

    async def _logged(
        self, request: Request, events: AsyncIterator[Event], ledger: UsageLedger
    ) -> AsyncGenerator[Event, None]:
        """Pass events on, and print request and result to standard error as `debug` asks."""
        started, seen = time.perf_counter(), list[Event]()
        if self.debug.show_input_details:
            _print("request", asdict(request))
        async for event in events:
            seen.append(event)
            yield event
        if self.debug.show_output_details:
            _print("result", fold(seen, ledger, time.perf_counter() - started).to_dict() | {"id": request.id})


def _working(aggregation: Aggregation, engines: Sequence[Engine]) -> Aggregation:
    """The aggregation, or the first engine alone where it cannot work with these engines."""
    try:
        check_together(engines, All(), aggregation)
    except ConfigError:
        return Single()
    return aggregation


def _rest(request: Request, answer: SoFar, engines: Sequence[Engine]) -> Request:
    """The request that remains after a part of the answer.

    Raises:
        CapabilityError: An engine cannot continue a text.
    """
    if not answer.text:
        return request
    for engine in engines:
        require(engine, frozenset({"prefix"}), "going on behind a failed engine")
    return request.after(answer.text, answer.tokens)


def _print(what: str, details: dict[str, Any]) -> None:
    print(json.dumps({what: details}, ensure_ascii=False, default=str), file=sys.stderr, flush=True)
