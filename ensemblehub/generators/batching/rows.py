"""The rows that the scheduler computes: one that writes, one that is only read, one that is stepped by hand.

A row has two sides.  The worker thread computes (`ready`, `accept`, `conclude` run through the row's
event loop); the request's own coroutine waits and reads.  A row knows its ids and its reader; it knows
neither model nor cache.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ensemblehub.errors import EngineError
from ensemblehub.generators.base import Vocabulary
from ensemblehub.generators.batching.prefix_cache import Readings
from ensemblehub.generators.batching.sampling import Choice
from ensemblehub.generators.text.detokenizer import TextFlow, alternatives
from ensemblehub.schema import Finish, Sampling, Token

Top = tuple[tuple[int, float], ...]  # (id, logprob), most likely first
Lines = NDArray[np.float32]


@dataclass(eq=False)
class Row:
    """One sequence: its ids, how far it is computed and what that cost.

    Attributes:
        ids: prompt and written tokens.
        prompt: length of the prompt.
        computed: the keys and values of so many tokens lie in `slot`.
        cached: how many of them came from the prefix cache.
        seconds: this row's share of the model's time.
        closed: its reader has left.
        done: nothing is left to compute.
        tail: after how many of the last ids the next token's distribution is wanted.
    """

    ids: list[int]
    loop: asyncio.AbstractEventLoop
    wake: Callable[[], None]
    whole: ClassVar[bool] = False  # whether the predictions of all tokens are wanted
    slot: int = -1
    computed: int = 0
    cached: int = 0
    seconds: float = 0.0
    readings: Readings = field(default_factory=Readings)
    closed: bool = False
    done: bool = False
    error: EngineError | None = None
    tail: int = 1

    def __post_init__(self) -> None:
        self.prompt = len(self.ids)
        self._news = asyncio.Event()
        self.ended = asyncio.Event()

    @property
    def pending(self) -> int:
        """Tokens yet to compute."""
        return len(self.ids) - self.computed

    @property
    def read(self) -> int:
        """Tokens of the prompt that were read so far."""
        return min(self.prompt, self.computed)

    def ready(self) -> bool:
        """Whether to compute this row in the next step."""
        return not self.done and self.pending > 0

    def conclude(self) -> None:
        """Tell the reader that the row has left the scheduler (runs in the reader's loop)."""
        self.ended.set()
        self._news.set()

    async def leave(self) -> None:
        """Stop computing the row, and wait until it has stopped."""
        self.closed = True
        self.wake()
        await self.ended.wait()


class ReadRow(Row):
    """A prompt of which every token's prediction is wanted."""

    whole = True

    async def result(self) -> Readings:
        """The readings of all tokens.

        Raises:
            EngineError: the model failed.
        """
        await self.ended.wait()
        if self.error is not None:
            raise self.error
        return self.readings


@dataclass(eq=False)
class WriteRow(Row):
    """An answer that is being written.

    Attributes:
        end: ids that end the answer.
        lookahead: tokens that may be written beyond those that were taken.
    """

    sampling: Sampling = field(default_factory=Sampling)
    end: frozenset[int] = frozenset()
    vocabulary: Vocabulary = field(kw_only=True)
    lookahead: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.choice = Choice(self.sampling, self.ids[:], self.end)
        self._flow = TextFlow(self.vocabulary, self.sampling.stop)
        self._shown = self.taken = 0  # tokens handed over by the worker, and taken by the reader
        self._waiting = False
        self._mail: list[Token] = []
        self._finish: Finish | None = None

    @property
    def written(self) -> int:
        """Tokens written so far, read or not."""
        return len(self.ids) - self.prompt

    def ready(self) -> bool:
        """A row whose reader lags behind waits for it."""
        ahead = self._shown - self.taken
        return super().ready() and (
            not self.written or ahead < self.lookahead or (self._waiting and ahead == 0)
        )

    def accept(
        self, index: int, logprob: float, entropy: float, best: tuple[int, float], top: Top
    ) -> Callable[[], None]:
        """Take the chosen token; returns what hands it to the reader."""
        self.readings.learn(len(self.ids), [logprob], [entropy], [best])
        self.ids.append(index)
        self.choice.wrote(index)
        ended = index in self.end
        text = "" if ended else self._flow.text(index)
        part, likeliest = self.vocabulary.part(index), alternatives(self.vocabulary, top)
        tokens = self._flow.push(Token(text, index, logprob, entropy, likeliest, part))
        finish: Finish | None = "stop" if ended or self._flow.stopped else None
        if finish is None and self.written >= self.sampling.max_tokens:
            finish = "length"
        if finish is not None:
            tokens += self._flow.flush()
            self.done = True
        self._shown += len(tokens)
        return lambda: self._deliver(tokens, finish)

    def _deliver(self, tokens: list[Token], finish: Finish | None) -> None:
        if tokens or finish:
            self._mail += tokens
            self._finish = finish
            self._news.set()

    async def take(self) -> tuple[tuple[Token, ...], Finish | None]:
        """All tokens that wait, at least one or the finish.

        Raises:
            EngineError: the model failed.
        """
        while not self._mail and self._finish is None:
            if self.error is not None:
                raise self.error
            self._news.clear()
            self._waiting = True
            self.wake()
            await self._news.wait()
        self._waiting = False
        tokens, self._mail = tuple(self._mail), []
        self.taken += len(tokens)
        self.wake()
        return tokens, self._finish


@dataclass(eq=False)
class StepRow(Row):
    """A row that a decoder steps: it is computed when it is asked.

    Attributes:
        logprobs: the distributions after the last `tail` ids, (tail, vocabulary); None until they are computed.
    """

    asked: bool = False
    logprobs: Lines | None = None
    _lines: list[Lines] = field(default_factory=list)

    def ready(self) -> bool:
        """Only an asked row is computed."""
        return self.asked and super().ready()

    def change(self, append: Sequence[int], drop: int, tail: int = 1) -> None:
        """Drop and append ids; runs between steps, when the worker leaves the row alone."""
        if drop:
            del self.ids[-drop:]
        self.ids.extend(append)
        if drop or append:
            self.logprobs, self._lines = None, []
        elif self.logprobs is not None:
            self.logprobs = self.logprobs[-tail:]
        self.tail = tail
        self.computed = min(
            self.computed, len(self.ids) - max(len(append), 1 if self.logprobs is None else 0)
        )
        if drop:
            self.readings = self.readings.head(len(self.ids) - len(append))

    def answer(self, lines: Lines) -> Callable[[], None]:
        """Take the distributions after the ids just computed; returns what hands the whole to the reader."""
        self._lines.append(lines)
        if self.pending:
            return lambda: None
        self.asked = False
        logprobs, self._lines = np.concatenate(self._lines) if len(self._lines) > 1 else lines, []

        def deliver() -> None:
            self.logprobs = logprobs
            self._news.set()

        return deliver

    async def distributions(self) -> Lines:
        """The logprobs after each of the last `tail` ids, (tail, vocabulary).

        Raises:
            EngineError: the model failed.
        """
        if self.logprobs is None and self.error is None:
            self._news.clear()
            self.asked = True
            self.loop.call_soon(
                self.wake
            )  # after the others that ask in this turn of the loop: one pass for all
            await self._news.wait()
        if self.logprobs is None:
            raise self.error or EngineError("the row was closed")
        return self.logprobs
