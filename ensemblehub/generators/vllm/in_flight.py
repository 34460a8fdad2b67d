"""Requests inside vLLM: its engine on a thread of its own, and what a request has written so far.

Knows vLLM; knows neither prompts nor bills.
"""

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

from ensemblehub.errors import ConfigError, EngineError, RequestError, one_line
from ensemblehub.generators.base import Vocabulary
from ensemblehub.generators.entropies import entropy_of
from ensemblehub.generators.text.detokenizer import TextFlow, alternatives
from ensemblehub.schema import Alternative, Finish, Sampling, Token

SETTINGS = {
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",  # nothing is reported to anyone
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # a process with threads does not fork well
}
Written = tuple[tuple[Token, ...], Finish | None]
T = TypeVar("T")


class Host:
    """vLLM's engine, on a thread with an event loop of its own, whichever loop asks.

    Attributes:
        loaded: done when vLLM has started.
    """

    def __init__(self, name: str, arguments: Mapping[str, Any]) -> None:
        for key, value in SETTINGS.items():
            os.environ.setdefault(key, value)
        self.name, self._arguments = name, dict(arguments)
        self._loop = asyncio.new_event_loop()
        self._numbers = itertools.count()
        self._news: dict[asyncio.AbstractEventLoop, list[asyncio.Event]] = {}
        self._thread = threading.Thread(
            target=self._loop.run_forever, name=f"ensemblehub-{name}", daemon=True
        )
        self._thread.start()
        self.llm: Any = None
        self.loaded = self.run(self._start())

    def run(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Run a coroutine on this thread."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def tell(self, loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> None:
        """Set an event of a reader's loop, together with all others of this step; called on this thread."""
        if not self._news:
            self._loop.call_soon(self._hand_over)
        self._news.setdefault(loop, []).append(event)

    def _hand_over(self) -> None:
        news, self._news = self._news, {}
        for loop, events in news.items():
            with suppress(RuntimeError):  # the reader's loop has ended
                loop.call_soon_threadsafe(_set_all, events)

    def number(self) -> str:
        """A name for the next request."""
        return f"{self.name}-{next(self._numbers)}"

    def failure(self, error: Exception) -> EngineError | RequestError:
        """What the reader of a failed request is told: that vLLM refuses it, or that it failed."""
        from vllm import exceptions

        reason = one_line(error.__cause__ or error)
        if isinstance(error, (ValueError, getattr(exceptions, "VLLMClientError", ValueError))):
            return RequestError(f"{self.name}: {reason}")
        return EngineError(f"{self.name}: vLLM failed: {reason}", self.name)

    def stop(self) -> None:
        """Stop vLLM and end the thread; requests that still run fail."""
        with suppress(Exception):  # it may have failed to start
            self.loaded.result()
        self.run(self._end()).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _start(self) -> None:
        try:
            from vllm.engine.arg_utils import AsyncEngineArgs
            from vllm.v1.engine.async_llm import AsyncLLM

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
        async for _ in self.llm.generate(prompt, params, self.number()):
            pass

    async def _end(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        llm, self.llm = self.llm, None
        if llm is not None:
            llm.shutdown()


class Flight:
    """One request in vLLM.  It runs on the host's thread, at vLLM's pace; its reader waits in a loop of its own.

    Attributes:
        cached: tokens of the prompt that the prefix cache held.
        written: tokens that vLLM wrote, read or not; `taken` those that were read.
        seconds: from when it was asked until it ended.
        read: vLLM's logprobs of the prompt, where they were asked for.
        refused: vLLM computed nothing of it.
    """

    def __init__(self, host: Host, ids: Sequence[int], params: Any) -> None:
        self.ids = list(ids)
        self.cached = self.written = self.taken = 0
        self.seconds = 0.0
        self.read: Any = None
        self.refused = False
        self._host, self._name, self._params = host, host.number(), params
        self._leaving = False
        self._started = time.perf_counter()
        self._ended = host.run(self._fly())

    async def landed(self) -> None:
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
            self._host.run(self._abort())
            with suppress(EngineError, RequestError):
                await self.landed()

    async def _abort(self) -> None:
        await self._host.llm.abort(self._name)

    async def _fly(self) -> None:
        prompt = {"prompt_token_ids": self.ids}
        try:
            async for output in self._host.llm.generate(prompt, self._params, self._name):
                self.cached = output.num_cached_tokens or self.cached
                self.read = output.prompt_logprobs or self.read
                for answer in output.outputs:
                    self.written += len(answer.token_ids)
                    self._accept(answer.token_ids, answer.logprobs or ())
                if self._leaving:
                    await self._abort()
        except asyncio.CancelledError as error:
            raise EngineError(f"{self._host.name} is closed", self._host.name) from error
        except EngineError:
            await self._abort()
            raise
        except Exception as error:
            failure = self._host.failure(error)
            self.refused = isinstance(failure, RequestError)
            raise failure from error
        finally:
            self.seconds = time.perf_counter() - self._started

    def _accept(self, ids: Sequence[int], logprobs: Sequence[Mapping[int, Any]]) -> None:
        """Take tokens just written."""


class WriteFlight(Flight):
    """An answer that is being written.

    Every token is a piece of its own, however far vLLM is ahead, so that a reader stops where it means to.
    """

    def __init__(
        self,
        host: Host,
        ids: Sequence[int],
        params: Any,
        sampling: Sampling,
        end: frozenset[int],
        vocabulary: Vocabulary,
    ) -> None:
        self._sampling, self._end, self._vocabulary = sampling, end, vocabulary
        self._flow = TextFlow(vocabulary, sampling.stop)
        self._count = 0
        self._mail: deque[Written] = deque()
        self._news, self._loop = asyncio.Event(), asyncio.get_running_loop()
        super().__init__(host, ids, params)
        self._ended.add_done_callback(self._wake)

    async def take(self) -> Written:
        """The next token, or some that end together, and how the answer ended.

        Raises:
            EngineError: vLLM failed.
            RequestError: vLLM refuses the request.
        """
        while not self._mail:
            self._news.clear()
            if self._ended.done() and not self._mail:
                self._ended.result()
                raise EngineError(f"{self._host.name}: vLLM ended early", self._host.name)
            if not self._mail:
                await self._news.wait()
        tokens, finish = self._mail.popleft()
        self.taken += len(tokens)
        return tokens, finish

    def _accept(self, ids: Sequence[int], logprobs: Sequence[Mapping[int, Any]]) -> None:
        for index, line in zip(ids, logprobs, strict=True):
            if self._leaving:
                return
            self._write(index, line)

    def _write(self, index: int, line: Mapping[int, Any]) -> None:
        if math.isnan(line[index].logprob):
            raise EngineError(
                f"{self._host.name}: vLLM failed: its logits are not numbers (NaN)", self._host.name
            )
        self._count += 1
        ended = index in self._end
        text = "" if ended else self._flow.text(index)
        top, entropy = self._ranked(line) if self._sampling.top_logprobs else ((), None)
        part = self._vocabulary.part(index)
        tokens = self._flow.push(Token(text, index, line[index].logprob, entropy, top, part))
        finish: Finish | None = "stop" if ended or self._flow.stopped else None
        if finish is None and self._count >= self._sampling.max_tokens:
            finish = "length"
        if finish is not None:
            tokens += self._flow.flush()
            self._leaving = True  # what is written beyond is not the answer's
        if tokens or finish:
            self._mail.append((tuple(tokens), finish))
            self._tell()

    def _ranked(self, line: Mapping[int, Any]) -> tuple[tuple[Alternative, ...], float | None]:
        """The likeliest tokens, as many as were asked for, and the entropy where all of them are known."""
        ranked = sorted(((one, entry.logprob) for one, entry in line.items()), key=lambda pair: -pair[1])
        whole = len(ranked) >= len(self._vocabulary.tokens)
        entropy = entropy_of([value for _, value in ranked], whole=True) if whole else None
        return alternatives(self._vocabulary, ranked[: self._sampling.top_logprobs]), entropy

    def _wake(self, _: Future[None]) -> None:
        """Tell the reader that it has ended; the host's thread may have ended, too."""
        with suppress(RuntimeError):  # the reader's loop has ended
            self._loop.call_soon_threadsafe(self._news.set)

    def _tell(self) -> None:
        self._host.tell(self._loop, self._news)


def _set_all(events: Sequence[asyncio.Event]) -> None:
    for event in events:
        event.set()
