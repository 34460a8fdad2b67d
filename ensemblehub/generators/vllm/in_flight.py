"""Requests inside vLLM: its engine on a thread of its own, and what a request has written so far."""

from __future__ import annotations

import asyncio
import itertools
import math
import os
import threading
import time
from collections import deque
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeVar

import numpy as np

from ensemblehub.cost import UsageMeter
from ensemblehub.errors import ConfigError, EngineError, RequestError, one_line
from ensemblehub.generators.base import Vocabulary
from ensemblehub.generators.batching.callbacks import LoopCallbacks
from ensemblehub.generators.batching.prefix_cache import TokenReadings
from ensemblehub.generators.entropies import entropy_of
from ensemblehub.generators.text.detokenizer import AnswerWriter, alternatives
from ensemblehub.schema import Alternative, Finish, ModelInfo, Sampling, Token

SETTINGS = {
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",  # nothing is reported to anyone
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # a process with threads does not fork well
}
_STARTING = threading.Lock()  # while it starts, vLLM measures how much memory is free
T = TypeVar("T")


class VLLMWorker:
    """vLLM's engine, on a thread with an event loop of its own, whichever loop asks.

    Attributes:
        loaded: done when vLLM has started.
    """

    def __init__(self, name: str, arguments: Mapping[str, Any]) -> None:
        for key, value in SETTINGS.items():
            os.environ.setdefault(key, value)
        self.name = name
        self._arguments = dict(arguments)
        self._loop = asyncio.new_event_loop()
        self._numbers = itertools.count()
        self._callbacks = LoopCallbacks()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name=f"ensemblehub-{name}", daemon=True
        )
        self._thread.start()
        self.llm: Any = None
        self.loaded = self.run(self._start())

    def run(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Run a coroutine on this thread."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def notify(self, loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> None:
        """Set an event of a reader's loop, together with all others of this step; called on this thread."""
        if not self._callbacks:
            self._loop.call_soon(self._callbacks.hand_over)
        self._callbacks.add(loop, event.set)

    def request_id(self) -> str:
        """A name for the next request."""
        return f"{self.name}-{next(self._numbers)}"

    def failure(self, error: Exception) -> EngineError | RequestError:
        """The error of a failed request: vLLM refuses it, or failed."""
        from vllm import exceptions

        reason = one_line(error.__cause__ or error)
        if isinstance(error, (ValueError, getattr(exceptions, "VLLMClientError", ValueError))):
            return RequestError(f"{self.name}: {reason}")
        return EngineError(f"{self.name}: vLLM failed: {reason}", self.name)

    async def unload(self) -> None:
        """Let vLLM sleep: weights move to the host's memory, requests stop where they are.

        Their keys and values are gone, and computed again after `reload`.
        """
        await asyncio.shield(asyncio.wrap_future(self.run(self.llm.sleep(level=1, mode="keep"))))

    async def reload(self) -> None:
        """Wake vLLM; what was requested goes on."""
        await asyncio.shield(asyncio.wrap_future(self.run(self.llm.wake_up())))

    async def stop(self) -> None:
        """Stop vLLM and end the thread; requests that still run fail."""
        with suppress(Exception):  # it may have failed to start
            await asyncio.shield(asyncio.wrap_future(self.loaded))
        await asyncio.shield(asyncio.wrap_future(self.run(self._end())))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _start(self) -> None:
        try:
            from vllm.engine.arg_utils import AsyncEngineArgs
            from vllm.v1.engine.async_llm import AsyncLLM

            with _STARTING:
                self.llm = AsyncLLM.from_engine_args(AsyncEngineArgs(**self._arguments))
            await self._warm()
        except Exception as error:
            reason = one_line(error)
            raise ConfigError(f"{self.name}: vLLM cannot start: {reason}") from error

    async def _warm(self) -> None:
        """Compute logprobs once: vLLM compiles for them at the first request."""
        from vllm import SamplingParams

        prompt = {"prompt_token_ids": [0] * min(64, self.llm.model_config.max_model_len - 2)}
        params = SamplingParams(
            max_tokens=2, logprobs=1, prompt_logprobs=1, detokenize=False, ignore_eos=True
        )
        async for _ in self.llm.generate(prompt, params, self.request_id()):
            pass

    async def _end(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        llm, self.llm = self.llm, None
        if llm is not None:
            llm.shutdown()


class InFlightRequest:
    """One request in vLLM, which runs at vLLM's pace; its reader waits in an event loop of its own.

    Attributes:
        cached: tokens of the prompt that the prefix cache held.
        written: tokens that vLLM wrote, taken or not.
        taken: written tokens that the reader took.
        seconds: from when it was asked until it ended.
        prompt_logprobs: vLLM's logprobs of the prompt, where they were asked for.
        refused: vLLM computed nothing of it.
    """

    def __init__(self, worker: VLLMWorker, ids: Sequence[int], params: Any) -> None:
        self.ids = list(ids)
        self.cached = self.written = self.taken = 0
        self.seconds = 0.0
        self.prompt_logprobs: Any = None
        self.refused = False
        self._worker = worker
        self._name = worker.request_id()
        self._params = params
        self._leaving = False
        self._started = time.perf_counter()
        self._ended = worker.run(self._run())

    async def ended(self) -> None:
        """Wait until it has ended.

        Raises:
            EngineError: vLLM failed.
            RequestError: vLLM refuses the request.
        """
        await asyncio.shield(asyncio.wrap_future(self._ended))

    async def leave(self) -> None:
        """Stop writing, and wait until it has stopped."""
        self._leaving = True
        if not self._ended.done():
            self._worker.run(self._abort())
            with suppress(EngineError, RequestError):
                await self.ended()

    def record(self, engine: str, info: ModelInfo, meter: UsageMeter) -> None:
        """Record its usage unless vLLM refused it; until then the prompt counts as read (estimated)."""
        if self.refused:
            return
        meter.record(
            engine,
            info,
            prompt_tokens=len(self.ids),
            cached_tokens=self.cached,
            completion_tokens=self.written,
            discarded_tokens=self.written - self.taken,
            seconds=self.seconds,
            estimated=not self.written,
            ids=self.ids,
        )

    async def _abort(self) -> None:
        await self._worker.llm.abort(self._name)

    async def _run(self) -> None:
        prompt = {"prompt_token_ids": self.ids}
        try:
            async for output in self._worker.llm.generate(prompt, self._params, self._name):
                self.cached = output.num_cached_tokens or self.cached
                self.prompt_logprobs = output.prompt_logprobs or self.prompt_logprobs
                for answer in output.outputs:
                    self.written += len(answer.token_ids)
                    self._accept(answer.token_ids, answer.logprobs or ())
                if self._leaving:
                    await self._abort()
        except asyncio.CancelledError as error:
            raise EngineError(f"{self._worker.name} is closed", self._worker.name) from error
        except EngineError:
            await self._abort()
            raise
        except Exception as error:
            failure = self._worker.failure(error)
            self.refused = isinstance(failure, RequestError)
            raise failure from error
        finally:
            self.seconds = time.perf_counter() - self._started

    def _accept(self, ids: Sequence[int], logprobs: Sequence[Mapping[int, Any]]) -> None:
        """Take tokens just written."""


class InFlightReading(InFlightRequest):
    """A prompt that is read; vLLM writes one token after it.

    Args:
        top_k: number of top tokens from which entropies are taken; None takes all.
    """

    def __init__(self, worker: VLLMWorker, ids: Sequence[int], top_k: int | None) -> None:
        from vllm import SamplingParams

        self._whole = top_k is None
        count = -1 if top_k is None else top_k
        params = SamplingParams(
            max_tokens=1, temperature=0.0, prompt_logprobs=count, flat_logprobs=True, detokenize=False
        )
        super().__init__(worker, ids, params)

    async def result(self) -> TokenReadings:
        """Return the scores of every token from vLLM's flat logprobs.

        Each line of them has the prompt's token first, then the top tokens, most probable first.
        """
        await self.ended()
        lines = self.prompt_logprobs
        readings, ids = TokenReadings(), lines.token_ids
        values = np.asarray(lines.logprobs, np.float64)
        for start, end in list(zip(lines.start_indices, lines.end_indices, strict=True))[1:]:
            entropy = entropy_of(values[start + 1 : end], self._whole)
            best = (int(ids[start + 1]), float(values[start + 1]))
            readings.learn(len(readings), [float(values[start])], [entropy], [best])
        return readings


class InFlightAnswer(InFlightRequest):
    """An answer that is being written.

    Every token is handed over by itself, however far vLLM is ahead, so that a reader stops where it means to.
    """

    def __init__(
        self,
        worker: VLLMWorker,
        ids: Sequence[int],
        params: Any,
        sampling: Sampling,
        end: frozenset[int],
        vocabulary: Vocabulary,
    ) -> None:
        self._top = sampling.top_logprobs
        self._vocabulary = vocabulary
        self._writer = AnswerWriter(vocabulary, sampling, end)
        self._parts: deque[tuple[tuple[Token, ...], Finish | None]] = deque()
        self._changed = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        super().__init__(worker, ids, params)
        self._ended.add_done_callback(self._wake)

    async def take(self) -> tuple[tuple[Token, ...], Finish | None]:
        """The next token, or some that end together, and how the answer ended.

        Raises:
            EngineError: vLLM failed.
            RequestError: vLLM refuses the request.
        """
        while not self._parts:
            self._changed.clear()
            if self._ended.done() and not self._parts:
                self._ended.result()
                raise EngineError(f"{self._worker.name}: vLLM ended early", self._worker.name)
            if not self._parts:
                await self._changed.wait()
        tokens, finish = self._parts.popleft()
        self.taken += len(tokens)
        return tokens, finish

    def _accept(self, ids: Sequence[int], logprobs: Sequence[Mapping[int, Any]]) -> None:
        for index, line in zip(ids, logprobs, strict=True):
            if not self._leaving:
                self._write(index, line)

    def _write(self, index: int, line: Mapping[int, Any]) -> None:
        logprob = line[index].logprob
        if math.isnan(logprob):
            name = self._worker.name
            raise EngineError(f"{name}: vLLM failed: its logits are not numbers (NaN)", name)
        top, entropy = self._ranked(line) if self._top else ((), None)
        tokens, finish = self._writer.write(index, logprob, entropy, top)
        if finish is not None:
            self._leaving = True  # tokens written beyond are not part of the answer
        if tokens or finish:
            self._parts.append((tuple(tokens), finish))
            self._worker.notify(self._loop, self._changed)

    def _ranked(self, line: Mapping[int, Any]) -> tuple[tuple[Alternative, ...], float | None]:
        """The top tokens, as many as were asked for, and the entropy where all of them are known."""
        pairs = [(index, entry.logprob) for index, entry in line.items()]
        ranked = sorted(pairs, key=lambda pair: -pair[1])
        whole = len(ranked) >= len(self._vocabulary.tokens)
        entropy = entropy_of([value for _, value in ranked], whole=True) if whole else None
        return alternatives(self._vocabulary, ranked[: self._top]), entropy

    def _wake(self, _: Future[None]) -> None:
        """Tell the reader that it has ended; the worker's thread may have ended, too."""
        with suppress(RuntimeError):  # the reader's loop has ended
            self._loop.call_soon_threadsafe(self._changed.set)
