"""Engines whose model runs in this process: what they share, and those that the scheduler batches.

A request is rendered with the model's own tokenizer, so token ids and origins are the same whatever computes
them.
"""

from __future__ import annotations

import asyncio
import threading
from abc import abstractmethod
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from concurrent.futures import Future
from functools import cached_property
from typing import Any, Generic, Protocol, TypeVar

from ensemblehub.cost import UsageMeter
from ensemblehub.errors import EngineError, RequestError
from ensemblehub.generators.base import Decoder, Distribution, Engine, Vocabulary
from ensemblehub.generators.batching.local_model import LocalModel, SchedulingOptions
from ensemblehub.generators.batching.prefix_cache import TokenReadings
from ensemblehub.generators.batching.rows import LogprobLines, ModelRow, ReadRow, StepRow, WriteRow
from ensemblehub.generators.batching.scheduler import Scheduler
from ensemblehub.generators.structure.answer import StructuredAnswer
from ensemblehub.generators.structure.grammar_answer import GrammarAnswer, GrammarAnswers
from ensemblehub.generators.text.detokenizer import alternatives, vocabulary_of
from ensemblehub.generators.text.rendering import Rendered, Renderer
from ensemblehub.generators.text.spans import Origin
from ensemblehub.schema import (
    Capability,
    Finish,
    ModelInfo,
    Piece,
    Request,
    Scored,
    ScoredToken,
    Token,
)


class ModelWorker(Protocol):
    """Computes on a thread of its own."""

    loaded: Future[Any]  # done when the model is there

    async def stop(self) -> None:
        """End the thread and free the model; what still runs fails.

        Starts no thread, so it works while the interpreter shuts down.
        """


class ModelCall(Protocol):
    """One prompt inside the model."""

    async def leave(self) -> None:
        """Stop computing, and wait until it has stopped."""

    def record(self, engine: str, info: ModelInfo, meter: UsageMeter) -> None:
        """Record what was computed."""


class WritingCall(ModelCall, Protocol):
    """An answer that is being written."""

    async def take(self) -> tuple[tuple[Token, ...], Finish | None]:
        """The next tokens, and how the answer ended."""


class ReadingCall(ModelCall, Protocol):
    """A prompt that is read."""

    async def result(self) -> TokenReadings:
        """How well each token was predicted."""


Ids = tuple[int, ...]
W = TypeVar("W", bound=ModelWorker)
C = TypeVar("C", bound=WritingCall)
S = TypeVar("S", bound=StructuredAnswer)
R = TypeVar("R", bound=ModelRow)


class LocalEngine(Engine, Generic[W, C, S]):
    """An engine with the model's own tokenizer and a worker, both made when first needed.

    Attributes:
        scored_tokens: tokens that the model has to write after a prompt it reads.
    """

    scored_tokens = 0

    def __init__(self, name: str, info: ModelInfo, thinking: bool | None) -> None:
        self.name = name
        self.info = info
        self._thinking = thinking
        self._worker: W | None = None
        self._closed = False
        self._lock = threading.Lock()

    @abstractmethod
    def _tokenizer(self) -> Any:
        """Load the model's tokenizer."""

    @abstractmethod
    def _end_ids(self) -> frozenset[int]:
        """Ids that end an answer by the model's files."""

    @abstractmethod
    def _start(self) -> W:
        """Start the worker, which loads the model."""

    @abstractmethod
    def _write(self, request: Request, ids: Ids, end: frozenset[int], structure: S | None) -> C:
        """Start writing an answer to the prompt `ids`, which ends at an id of `end`."""

    @abstractmethod
    def _structure(self, request: Request, ids: Ids, end: frozenset[int]) -> S | None:
        """What the request's `tools` and `response_format` ask for, which takes a while to compile.

        Raises:
            RequestError: it cannot be honoured.
            MissingExtraError: a library for it is not installed.
        """

    @abstractmethod
    def _read(self, ids: tuple[int, ...]) -> ReadingCall:
        """Start reading a prompt."""

    async def load(self) -> None:
        """Load the model on the worker's thread.

        Raises:
            ConfigError: it cannot be loaded.
            EngineError: the engine was closed.
        """
        await asyncio.shield(asyncio.wrap_future(self._started().loaded))

    async def close(self) -> None:
        """End the worker and free the model; requests still running fail."""
        with self._lock:
            worker, self._worker = self._worker, None
            self._closed = True
        if worker is not None:
            await worker.stop()

    def _started(self) -> W:
        with self._lock:
            if self._closed:
                raise EngineError(f"{self.name} is closed", self.name)
            if self._worker is None:
                self._worker = self._start()
            return self._worker

    @cached_property
    def _renderer(self) -> Renderer:
        return Renderer(self._tokenizer(), self._thinking)

    @property
    def tokenizer(self) -> Renderer:
        return self._renderer

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """What the model's token ids mean."""
        end = self._end_ids() | self._renderer.ends
        return vocabulary_of(self._renderer.tokenizer, self.info.vocabulary, end)

    def count(self, request: Request) -> int:
        return len(self.render(request).ids)

    def same_prompt(self, first: Request, second: Request) -> bool:
        return self.render(first).ids == self.render(second).ids

    def render(self, request: Request) -> Rendered:
        """The request's prompt and prefix as token ids with their origins."""
        return self._renderer(request, self.name)

    async def stream(self, request: Request, meter: UsageMeter) -> AsyncGenerator[Piece, None]:
        self.offers(request)
        sampling = request.sampling
        if sampling.max_tokens < 1:
            raise RequestError(f"max_tokens must be at least 1, not {sampling.max_tokens}")
        ids = self.fitting(request, sampling.required).ids
        self.knows(sampling.logit_bias)
        await self.load()
        end = frozenset() if sampling.ignore_eos else self.vocabulary.end
        end |= frozenset(sampling.stop_token_ids)
        structure = None
        if request.extra:
            structure = await asyncio.to_thread(self._structure, request, ids, end)
        call = self._write(self.fitted(request, len(ids)), ids, end, structure)
        try:
            finish: Finish | None = None
            while finish is None:
                tokens, finish = await call.take()
                text = "".join(token.text for token in tokens)
                piece = Piece(text, self.name, meter.purpose, tokens, finish)
                yield structure.piece(piece) if structure else piece
        finally:
            await self._leave(call, meter)

    async def score(self, request: Request, meter: UsageMeter) -> Scored:
        rendered = self.fitting(request, self.scored_tokens)
        await self.load()
        call = self._read(rendered.ids)
        try:
            readings = await call.result()
        finally:
            await self._leave(call, meter)
        return _scored(rendered, readings, self.vocabulary)

    async def _leave(self, call: ModelCall, meter: UsageMeter) -> None:
        try:
            await call.leave()
        finally:
            call.record(self.name, self.info, meter)

    def fitting(self, request: Request, written: int) -> Rendered:
        """The rendered request, if it and `written` more tokens fit the context.

        Raises:
            ContextOverflowError: they do not.
            RequestError: the prompt is empty or has unknown ids.
        """
        rendered = self.render(request)
        self.fits(len(rendered.ids), written)
        self.knows(rendered.ids)
        if not rendered.ids:
            raise RequestError(f"{self.name}: the prompt is empty")
        return rendered

    def knows(self, ids: Iterable[int]) -> None:
        """Reject out-of-vocabulary ids before they fail a shared batch.

        Raises:
            RequestError: an id is not in the vocabulary.
        """
        for index in ids:
            if not 0 <= index < self.info.vocabulary:
                raise RequestError(f"{self.name}: there is no token id {index}")


def _scored(rendered: Rendered, readings: TokenReadings, vocabulary: Vocabulary) -> Scored:
    def scored(
        index: int, at: Origin, logprob: float | None, entropy: float | None, best: tuple[int, float] | None
    ) -> ScoredToken:
        top = alternatives(vocabulary, [best] if best else [])
        highest, part = best[1] if best else None, vocabulary.part(index)
        return ScoredToken(at.text, index, logprob, entropy, at.message, at.start, at.end, highest, top, part)

    predictions = (readings.logprobs, readings.entropies, readings.best)
    known = ((None, *values[1:]) for values in predictions)  # nothing predicts the first token
    return Scored(tuple(map(scored, rendered.ids, rendered.origins, *known)))


class ScheduledEngine(LocalEngine[Scheduler, WriteRow, GrammarAnswer]):
    """An engine over the row scheduler: continuous batching, pausing and a prefix cache."""

    capabilities: frozenset[Capability] = frozenset(
        {"prefix", "logprobs", "score", "decode", "response_format"}
    )

    def __init__(self, name: str, info: ModelInfo, options: SchedulingOptions) -> None:
        if options.tool_parser:
            self.capabilities = self.capabilities | {"tools"}
        super().__init__(name, info, options.enable_thinking)
        self._scheduling = options

    @abstractmethod
    def _load(self) -> LocalModel:
        """Load the model; runs on the worker's thread."""

    def _start(self) -> Scheduler:
        options = self._scheduling
        return Scheduler(
            self.name,
            self._loaded,
            batch_rows=options.batch_rows,
            prefix_cache_tokens=options.prefix_cache_tokens,
        )

    def _loaded(self) -> LocalModel:
        self.vocabulary  # noqa: B018  # computed once and kept
        return self._load()

    def _write(
        self,
        request: Request,
        ids: tuple[int, ...],
        end: frozenset[int],
        structure: GrammarAnswer | None,
    ) -> WriteRow:
        row = WriteRow(
            *self._row(ids),
            sampling=request.sampling,
            end=end,
            vocabulary=self.vocabulary,
            lookahead=self._scheduling.lookahead,
            grammar=structure.grammar if structure else None,
        )
        return self._submitted(row)

    def _read(self, ids: tuple[int, ...]) -> ReadRow:
        return self._submitted(ReadRow(*self._row(ids)))

    def _structure(self, request: Request, ids: Ids, end: frozenset[int]) -> GrammarAnswer | None:
        return self._answers(request, end)

    @cached_property
    def _answers(self) -> GrammarAnswers:
        parser = self._scheduling.tool_parser
        return GrammarAnswers(self.name, self.vocabulary, parser, self._renderer.inside)

    async def step_row(self, ids: tuple[int, ...]) -> StepRow:
        """A row that is stepped by hand, once the model is loaded."""
        await self.load()
        return self._submitted(StepRow(*self._row(ids)))

    def _submitted(self, row: R) -> R:
        self._started().submit(row)
        return row

    def _row(self, ids: Sequence[int]) -> tuple[list[int], asyncio.AbstractEventLoop, Callable[[], None]]:
        return list(ids), asyncio.get_running_loop(), self._started().wake

    def decoder(self, request: Request, meter: UsageMeter) -> RowDecoder:
        return RowDecoder(self, self.fitting(request, 0).ids, meter)


class RowDecoder(Decoder):
    """Steps one row of a scheduled engine."""

    def __init__(self, engine: ScheduledEngine, ids: tuple[int, ...], meter: UsageMeter) -> None:
        self.vocabulary = engine.vocabulary
        self._engine = engine
        self._ids = ids
        self._meter = meter
        self._row: StepRow | None = None
        self._closed = False

    async def step(self, append: Sequence[int] = (), drop: int = 0) -> Distribution:
        return Distribution((await self._distributions(append, drop, 1))[-1])

    async def read(self, append: Sequence[int], drop: int = 0) -> list[Distribution]:
        if not append:
            raise RequestError("there is nothing to read")
        return list(map(Distribution, await self._distributions(append, drop, len(append))))

    def encode(self, text: str) -> list[int]:
        return self._engine.tokenizer.inside(text)

    async def _distributions(self, append: Sequence[int], drop: int, tail: int) -> LogprobLines:
        if self._closed or (self._row and self._row.asked and not self._row.done):
            raise RequestError("the decoder is closed" if self._closed else "the last step is not over")
        if self._row is None:
            self._row = await self._engine.step_row(self._ids)
        row = self._row
        kept = len(row.ids) - drop
        if drop < 0 or kept < row.prompt:
            raise RequestError(f"cannot drop {drop} tokens: {row.written} were appended")
        self._engine.fits(kept, len(append))
        self._engine.knows(append)
        row.change(append, drop, tail)
        try:
            return await row.distributions()
        except asyncio.CancelledError:
            await row.leave()  # so that everything it computed is recorded
            raise

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._row is not None:
            self._row.closed = True
            self._row.wake()
            self._row.record_steps(self._engine.name, self._engine.info, self._meter, self.given)
