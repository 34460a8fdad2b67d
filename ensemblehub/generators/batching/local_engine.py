"""Engines whose model runs in this process, whatever computes it.

A request is rendered with the model's own tokenizer, so token ids and origins are the same whatever computes
them.
"""

from __future__ import annotations

import asyncio
import threading
from abc import abstractmethod
from collections.abc import AsyncGenerator, Iterable
from concurrent.futures import Future
from functools import cached_property
from itertools import takewhile
from typing import Any, Generic, Protocol, TypeVar

from ensemblehub.cost import UsageMeter
from ensemblehub.errors import EngineError, RequestError
from ensemblehub.generators.base import Engine, Vocabulary
from ensemblehub.generators.batching.prefix_cache import TokenReadings
from ensemblehub.generators.structure.answer import StructuredAnswer
from ensemblehub.generators.text.detokenizer import alternatives, vocabulary_of
from ensemblehub.generators.text.rendering import Rendered, Renderer
from ensemblehub.generators.text.spans import Origin
from ensemblehub.schema import Finish, ModelInfo, Piece, Request, Scored, ScoredToken, Token


class ModelWorker(Protocol):
    """Computes on a thread of its own."""

    loaded: Future[Any]  # done when the model is there

    async def stop(self) -> None:
        """End the thread and free the model; what still runs fails.

        Starts no thread, so it works while the interpreter shuts down.
        """


class UnloadableWorker(ModelWorker, Protocol):
    """A worker that can free its model and keep its calls."""

    async def unload(self) -> None:
        """Free the model; calls stop between two tokens, and go on after `reload`."""

    async def reload(self) -> None:
        """Load the model again; after an error it can be tried again."""


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
U = TypeVar("U", bound=UnloadableWorker)
C = TypeVar("C", bound=WritingCall)
S = TypeVar("S", bound=StructuredAnswer)


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

    @property
    def thinking(self) -> bool | None:
        return self._thinking

    def count(self, request: Request) -> int:
        return len(self.render(request).ids)

    def same_prompt(self, first: Request, second: Request) -> bool:
        return self.render(first).ids == self.render(second).ids

    def shared_prompt(self, first: Request, second: Request) -> int:
        pairs = zip(self.render(first).ids, self.render(second).ids, strict=False)
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))

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


class UnloadableEngine(LocalEngine[U, C, S]):
    """An engine whose model can be unloaded while its streams stay open."""

    _is_unloaded = False

    def prepare_swap(self) -> None:
        """There is nothing to prepare."""

    async def load(self) -> None:
        """Load the model on the worker's thread, also again after `unload`."""
        if self._is_unloaded:
            await self._started().reload()
            self._is_unloaded = False
        await super().load()

    async def unload(self) -> None:
        if self._worker is not None and not self._closed:
            self._is_unloaded = True
            await self._worker.unload()


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
