"""The thread that computes the rows of a numpy engine, and the calls that ask it."""

from __future__ import annotations

import asyncio
import queue
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import Future

import numpy as np

from ensemblehub.cost import UsageMeter
from ensemblehub.errors import EngineError, one_line
from ensemblehub.generators.base import Vocabulary
from ensemblehub.generators.batching.model_thread import ModelThread
from ensemblehub.generators.batching.prefix_cache import PrefixCache, TokenReadings
from ensemblehub.generators.numpy.model import Array, KeysValues, NumpyModel, entropies, log_softmax
from ensemblehub.generators.numpy.sampling import TokenChooser
from ensemblehub.generators.text.detokenizer import AnswerWriter, alternatives
from ensemblehub.schema import Finish, ModelInfo, Sampling, Token


class NumpyCall(ABC):
    """One prompt inside the model; computed only when its reader asks, so an unread answer pauses."""

    whole = False  # whether the predictions of all tokens are returned

    def __init__(self, ids: Sequence[int], worker: NumpyWorker) -> None:
        self.ids = list(ids)
        self.prompt = len(self.ids)
        self.computed = self.cached = self.taken = 0
        self.seconds = 0.0
        self.left = False
        self.kv: KeysValues | None = None
        self.readings = TokenReadings()
        self.worker = worker

    @abstractmethod
    def accept(self, logits: Array) -> None:
        """Take the logits of the tokens just computed; runs on the worker's thread."""

    async def leave(self) -> None:
        """Stop computing, and wait until it has stopped."""
        self.left = True
        await self.worker.ask(self)

    def record(self, engine: str, info: ModelInfo, meter: UsageMeter) -> None:
        """Record what was read and written."""
        written = len(self.ids) - self.prompt
        meter.record(
            engine,
            info,
            prompt_tokens=min(self.prompt, self.computed),
            cached_tokens=self.cached,
            completion_tokens=written,
            discarded_tokens=written - self.taken,
            seconds=self.seconds,
            ids=self.ids,
            reading=self.whole,
        )


class NumpyReading(NumpyCall):
    """A prompt that is read."""

    whole = True

    def accept(self, logits: Array) -> None:
        first = self.computed - len(logits) + 1
        targets = self.ids[first : self.computed + 1]
        lines = log_softmax(logits)[: len(targets)]
        ids = lines.argmax(-1)
        own = lines[np.arange(len(targets)), targets].tolist()
        best = list(zip(ids.tolist(), lines.max(-1).tolist(), strict=True))
        self.readings.learn(first, own, entropies(lines).tolist(), best)

    async def result(self) -> TokenReadings:
        """How well each token was predicted."""
        await self.worker.ask(self)
        return self.readings


class NumpyAnswer(NumpyCall):
    """An answer that is being written."""

    def __init__(
        self,
        ids: Sequence[int],
        worker: NumpyWorker,
        sampling: Sampling,
        end: frozenset[int],
        vocabulary: Vocabulary,
    ) -> None:
        super().__init__(ids, worker)
        self._chooser = TokenChooser(sampling, ids, end)
        self._writer = AnswerWriter(vocabulary, sampling, end)
        self._vocabulary, self._top = vocabulary, sampling.top_logprobs
        self._tokens = list[Token]()
        self._finish: Finish | None = None

    def accept(self, logits: Array) -> None:
        line = log_softmax(logits[-1])
        index = self._chooser.choose(logits[-1])
        spread, best = float(entropies(line)), int(line.argmax())
        order = np.argsort(-line, kind="stable")[: self._top] if self._top else ()
        top = alternatives(self._vocabulary, [(int(other), float(line[other])) for other in order])
        self.readings.learn(len(self.ids), [float(line[index])], [spread], [(best, float(line[best]))])
        self.ids.append(index)
        self._tokens, self._finish = self._writer.write(index, float(line[index]), spread, top)

    async def take(self) -> tuple[tuple[Token, ...], Finish | None]:
        """The next tokens, at least one or the finish."""
        self._tokens = []
        while not self._tokens and self._finish is None:
            await self.worker.ask(self)
        self.taken += len(self._tokens)
        return tuple(self._tokens), self._finish


class NumpyWorker(ModelThread[NumpyModel]):
    """Computes what is asked at the same time in one forward pass; calls that leave fill the prefix cache."""

    def __init__(self, name: str, load: Callable[[], NumpyModel], cache_tokens: int) -> None:
        super().__init__(name, load)
        self._cache = PrefixCache(cache_tokens)
        self._inbox = queue.SimpleQueue[tuple[NumpyCall, Future[None]] | None]()
        self._thread.start()

    async def ask(self, call: NumpyCall) -> None:
        """Compute what a call has yet to compute, or let it leave.

        Raises:
            EngineError: the model failed, or the engine is closed.
        """
        done: Future[None] = Future()
        with self._lock:
            if self._closed:
                if call.left:
                    return
                raise self._closed_error()
            self._inbox.put((call, done))
        await asyncio.shield(asyncio.wrap_future(done))

    async def stop(self) -> None:
        """End the thread once the current pass is over; calls still waiting fail."""
        self._close("is closed")
        self._inbox.put(None)  # behind all that was accepted
        await self._wait_for_end()

    def _work(self) -> None:
        ended = False
        while not ended:
            asked = [self._inbox.get()]
            while not self._inbox.empty():
                asked.append(self._inbox.get())
            ended = None in asked
            waiting = [item for item in asked if item is not None]
            self._compute([item for item in waiting if not item[0].left], ended)
            for call, done in waiting:
                if call.left and not done.done():
                    self._keep(call)
                    done.set_result(None)

    def _compute(self, asked: Sequence[tuple[NumpyCall, Future[None]]], ended: bool) -> None:
        """One forward pass over what the calls have yet to compute."""
        try:
            if ended and asked:
                raise self._closed_error()
            self._pass([call for call, _ in asked])
        except Exception as error:  # whatever the model raises
            failure = EngineError(f"{self.name}: the model failed: {one_line(error)}", self.name)
            for _, done in asked:
                done.set_exception(error if isinstance(error, EngineError) else failure)
            return
        for _, done in asked:
            done.set_result(None)

    def _pass(self, calls: Sequence[NumpyCall]) -> None:
        started = time.perf_counter()
        rows, pending = [], []
        for call in calls:
            kv = call.kv = call.kv or self._recalled(call)
            if fresh := call.ids[call.computed :]:
                rows.append((kv, call.computed, fresh))
                pending.append(call)
        if not rows:
            return
        lines = self._model.forward(rows, [call.whole for call in pending])
        share = (time.perf_counter() - started) / sum(len(ids) for _, _, ids in rows)
        for call, (_, _, ids), logits in zip(pending, rows, lines, strict=True):
            call.computed = len(call.ids)
            call.seconds += share * len(ids)
            call.accept(logits)

    def _recalled(self, call: NumpyCall) -> KeysValues:
        """A row that starts from the longest prefix that was computed before."""
        kv, match = self._model.empty(), self._cache.longest(call.ids, read=call.whole)
        if match.entry is not None:
            call.readings = match.entry.readings.head(match.length)
            call.computed = call.cached = match.reusable(len(call.ids), call.whole)
            kv.reserve(call.computed)
            kv.store[:, :, :, : call.computed] = match.entry.kv[:, :, :, : call.computed]
        return kv

    def _keep(self, call: NumpyCall) -> None:
        length, kv = call.computed, call.kv
        if kv is not None:
            self._cache.put(call.ids[:length], call.readings, lambda: kv.store[:, :, :, :length].copy())
