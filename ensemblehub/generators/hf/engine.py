"""The Hugging Face engine: any decoder-only causal language model that transformers runs.

Requests of all kinds become rows of one scheduler (`hf_scheduler`), which batches them; this file turns
requests into rows, rows into pieces, and bills each row once.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator, Iterable, Sequence
from functools import cached_property
from typing import Any, ClassVar

from ensemblehub.cost import UsageMeter
from ensemblehub.errors import ConfigError, EngineError, MissingExtraError, RequestError
from ensemblehub.generators.base import Decoder, Distribution, Engine, Footprint, Vocabulary
from ensemblehub.generators.text.rendering import Rendered, Renderer
from ensemblehub.schema import Alternative, Capability, Piece, Request, Scored, ScoredToken

try:
    from ensemblehub.generators.batching.prefix_cache import Readings
    from ensemblehub.generators.batching.rows import ReadRow, Row, StepRow, WriteRow
    from ensemblehub.generators.batching.scheduler import Scheduler
    from ensemblehub.generators.hf import loading as hf_loading
    from ensemblehub.generators.hf.architectures import Support, support_of
    from ensemblehub.generators.hf.loading import HFOptions
    from ensemblehub.generators.hf.model import Model
    from ensemblehub.generators.text.detokenizer import alternatives, vocabulary_of
except ModuleNotFoundError as error:
    raise MissingExtraError(f"{error.name} is not installed: pip install 'ensemblehub[hf]'") from error

__all__ = ["HFEngine", "HFOptions"]

log = logging.getLogger(__name__)


class HFEngine(Engine):
    """A transformers model with continuous batching and a prefix cache.

    The card is there at once; tokenizer and weights are loaded when first needed.

    Raises:
        ConfigError: the model's configuration cannot be read or run.
    """

    options: ClassVar[type] = HFOptions
    capabilities: frozenset[Capability] = frozenset({"prefix", "logprobs", "score", "decode"})
    _support = Support("sdpa")

    def __init__(self, name: str, options: HFOptions) -> None:
        self.name, self.settings = name, options
        self._config = hf_loading.config_of(options)
        self._support = self._supported()
        self.info = hf_loading.info_of(options, self._config)
        self._scheduler: Scheduler | None = None
        self._closed = False
        self._lock = threading.Lock()

    def _supported(self) -> Support:
        """How the model's architecture is run.

        Raises:
            ConfigError: it is not.
        """
        try:
            return support_of(self._config, self.settings.attn_implementation)
        except ConfigError as error:
            raise ConfigError(f"{self.settings.path}: {error}") from error

    @cached_property
    def model(self) -> str:
        return hf_loading.identity(self.settings)

    @property
    def notes(self) -> tuple[str, ...]:
        return (self._support.note,) if self._support.note else ()

    @property
    def footprint(self) -> Footprint:
        return hf_loading.footprint_of(self.settings, self._config, self.info)

    def describe(self) -> str:
        """One line: where and how the model runs."""
        device = hf_loading.device_of(self.settings)
        dtype = str(hf_loading.dtype_of(self.settings, self._config)).removeprefix("torch.")
        kind = {"none": "not quantised"}.get(
            self.settings.quantization, f"quantised to {self.settings.quantization}"
        )
        return f"{self.name}: {self.settings.path} on {device}, {dtype}, {kind}, {self.info.parameters:,} parameters"

    async def load(self) -> None:
        """Load the weights on the engine's own thread.

        Raises:
            ConfigError: they cannot be loaded.
            EngineError: the engine was closed.
        """
        await asyncio.shield(asyncio.wrap_future(self._started().loaded))

    async def close(self) -> None:
        """End the engine's thread and free the model; rows still running fail."""
        with self._lock:
            scheduler, self._scheduler, self._closed = self._scheduler, None, True
        if scheduler is not None:
            await asyncio.to_thread(scheduler.stop)

    @property
    def tokenizer(self) -> Renderer:
        return self._renderer

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """What the model's token ids mean."""
        end = hf_loading.end_ids(self.settings.path, self._config, self._config.get_text_config())
        return vocabulary_of(self._renderer.tokenizer, self.info.vocabulary, end | self._renderer.ends)

    def count(self, request: Request) -> int:
        """Length of the rendered prompt in tokens."""
        return len(self.render(request).ids)

    def render(self, request: Request) -> Rendered:
        """The request's prompt and prefix as token ids with their origins."""
        return self._renderer(request, self.name)

    def encode(self, text: str) -> list[int]:
        """Token ids of `text` in the middle of an answer, special tokens taken literally."""
        return self._renderer.inside(text)

    async def _asked(self, request: Request) -> tuple[Request, tuple[int, ...], frozenset[int]]:
        """The request as it fits the context, the prompt's ids and those that end the answer, once the model is loaded.

        Raises:
            CapabilityError, ContextOverflowError, RequestError: it cannot be answered.
        """
        self.offers(request)
        sampling = request.sampling
        if sampling.max_tokens < 1:
            raise RequestError(f"max_tokens must be at least 1, not {sampling.max_tokens}")
        ids = self._fitting(request, sampling.required)
        self.knows(sampling.logit_bias)
        await self.load()
        end = frozenset() if sampling.ignore_eos else self.vocabulary.end
        return self.fitted(request, len(ids)), ids, end | frozenset(sampling.stop_token_ids)

    async def stream(self, request: Request, meter: UsageMeter) -> AsyncGenerator[Piece, None]:
        request, ids, end = await self._asked(request)
        row = WriteRow(
            *self._row(ids),
            sampling=request.sampling,
            end=end,
            vocabulary=self.vocabulary,
            lookahead=self.settings.lookahead,
        )
        self._started().submit(row)
        try:
            while True:
                tokens, finish = await row.take()
                text = "".join(token.text for token in tokens)
                yield Piece(text, self.name, meter.purpose, tokens, finish)
                if finish is not None:
                    break
        finally:
            try:
                await row.leave()
            finally:
                self._bill(row, meter, row.written, row.written - row.taken)

    async def score(self, request: Request, meter: UsageMeter) -> Scored:
        self._fitting(request, 0)
        rendered = self.render(request)
        await self.load()
        row = ReadRow(*self._row(rendered.ids))
        self._started().submit(row)
        try:
            readings = await row.result()
        finally:
            try:
                await row.leave()
            finally:
                self._bill(row, meter)
        return _scored(rendered, readings, self.vocabulary)

    def decoder(self, request: Request, meter: UsageMeter) -> HFDecoder:
        return HFDecoder(self, self._fitting(request, 0), meter)

    def _row(self, ids: Sequence[int]) -> tuple[list[int], asyncio.AbstractEventLoop, Any]:
        return list(ids), asyncio.get_running_loop(), self._started().wake

    def _started(self) -> Scheduler:
        with self._lock:
            if self._closed:
                raise EngineError(f"{self.name} is closed", self.name)
            if self._scheduler is None:
                self._scheduler = Scheduler(
                    self.name,
                    self._load,
                    batch_rows=self.settings.batch_rows,
                    prefix_cache_tokens=self.settings.prefix_cache_tokens,
                )
            return self._scheduler

    def _load(self) -> Model:
        """All that takes long, on the engine's thread."""
        self.vocabulary  # noqa: B018  # computed once and kept
        if self._support.note:
            log.warning("%s: %s", self.name, self._support.note)
        model = Model(hf_loading.load_network(self.settings, self._config, kernel=self._support.kernel))
        if not self._support.known:
            model.compare()
        return model

    @cached_property
    def _renderer(self) -> Renderer:
        return Renderer(hf_loading.tokenizer_of(self.settings), self.settings.enable_thinking)

    def _fitting(self, request: Request, written: int) -> tuple[int, ...]:
        ids = self.render(request).ids
        self.fits(len(ids), written)
        self.knows(ids)
        if not ids:
            raise RequestError(f"{self.name}: the prompt is empty")
        return ids

    def knows(self, ids: Iterable[int]) -> None:
        """Check that ids are in the vocabulary, lest they fail a step that others share.

        Raises:
            RequestError: one is not.
        """
        for index in ids:
            if not 0 <= index < self.info.vocabulary:
                raise RequestError(f"{self.name}: there is no token id {index}")

    def _bill(
        self, row: Row, meter: UsageMeter, written: int = 0, discarded: int = 0, given: int = 0
    ) -> None:
        meter.record(
            self.name,
            self.info,
            prompt_tokens=row.read + given,
            cached_tokens=row.cached,
            completion_tokens=written,
            discarded_tokens=discarded,
            seconds=row.seconds,
            ids=row.ids,
        )


def _scored(rendered: Rendered, readings: Readings, vocabulary: Vocabulary) -> Scored:
    logprobs: list[float | None] = [None, *readings.logprobs[1:]]
    entropies: list[float | None] = [None, *readings.entropies[1:]]
    likeliest: list[tuple[Alternative, ...]] = [
        (),
        *(alternatives(vocabulary, [one]) for one in readings.best[1:]),
    ]
    bests = [top[0].logprob if top else None for top in likeliest]
    tokens = zip(rendered.ids, rendered.origins, logprobs, entropies, bests, likeliest, strict=True)
    return Scored(
        tuple(
            ScoredToken(
                at.text,
                index,
                logprob,
                entropy,
                at.message,
                at.start,
                at.end,
                best,
                top,
                vocabulary.part(index),
            )
            for index, at, logprob, entropy, best, top in tokens
        )
    )


class HFDecoder(Decoder):
    """One row that a token-level method steps.

    Billed as written are the ids it appended and the token chosen from its last distribution, as if the engine
    had written them; what was dropped is billed as discarded.
    """

    def __init__(self, engine: HFEngine, ids: Sequence[int], meter: UsageMeter) -> None:
        self.vocabulary = engine.vocabulary
        self._engine, self._ids, self._meter = engine, ids, meter
        self._row: StepRow | None = None
        self._written = self._dropped = 0
        self._closed = False

    async def step(self, append: Sequence[int] = (), drop: int = 0) -> Distribution:
        return Distribution((await self._distributions(append, drop, 1))[-1])

    async def read(self, append: Sequence[int], drop: int = 0) -> list[Distribution]:
        if not append:
            raise RequestError("there is nothing to read")
        return list(map(Distribution, await self._distributions(append, drop, len(append))))

    def encode(self, text: str) -> list[int]:
        return self._engine.encode(text)

    async def _distributions(self, append: Sequence[int], drop: int, tail: int) -> Any:
        if self._closed or (self._row and self._row.asked and not self._row.done):
            raise RequestError("the decoder is closed" if self._closed else "the last step is not over")
        row = self._row or await self._join()
        kept = len(row.ids) - drop
        if drop < 0 or kept < row.prompt:
            raise RequestError(f"cannot drop {drop} tokens: {len(row.ids) - row.prompt} were appended")
        self._engine.fits(kept, len(append))
        self._engine.knows(append)
        row.change(append, drop, tail)
        self._written += len(append)
        self._dropped += drop
        try:
            return await row.distributions()
        except asyncio.CancelledError:
            await row.leave()  # so that all it computed is billed
            raise

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._row is not None:
            self._row.closed = True
            self._row.wake()
            chosen = 1 if self._row.logprobs is not None else 0
            self._engine._bill(
                self._row, self._meter, self._written + chosen - self.given, self._dropped, self.given
            )

    async def _join(self) -> StepRow:
        await self._engine.load()
        self._row = StepRow(*self._engine._row(self._ids))
        self._engine._started().submit(self._row)
        return self._row
