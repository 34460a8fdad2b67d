"""The rows that the scheduler computes: one that is written, one that is read, one that is stepped by hand.

A row has two sides.  The worker thread computes; what it hands over (callbacks) runs in the event loop of
the request's own coroutine, which waits and reads.  A row knows its ids and its reader; it knows neither
model nor cache.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ensemblehub.cost import UsageMeter
from ensemblehub.errors import EngineError
from ensemblehub.generators.base import Vocabulary
from ensemblehub.generators.batching.logprobs import TopTokens
from ensemblehub.generators.batching.prefix_cache import TokenReadings
from ensemblehub.generators.batching.sampling import TokenGrammar, TokenSampler
from ensemblehub.generators.text.detokenizer import AnswerWriter, alternatives
from ensemblehub.schema import Finish, ModelInfo, Sampling, Token

LogprobLines = NDArray[np.float32]


@dataclass(eq=False)
class ModelRow:
    """One sequence: its ids, how far it is computed and what that cost.

    Attributes:
        ids: prompt and written tokens.
        prompt: length of the prompt.
        computed: number of tokens whose keys and values lie in `slot`.
        cached: how many of them came from the prefix cache.
        reread: tokens that were computed again, since the model was unloaded in between.
        taken: number of written tokens that the reader took.
        seconds: this row's share of the model's time.
        closed: its reader has left.
        done: nothing is left to compute.
        tail: number of trailing positions whose next-token distributions are returned.
    """

    ids: list[int]
    loop: asyncio.AbstractEventLoop
    wake: Callable[[], None]
    whole: ClassVar[bool] = False  # whether the predictions of all tokens are returned
    slot: int = -1
    computed: int = 0
    cached: int = 0
    reread: int = 0
    taken: int = 0
    seconds: float = 0.0
    readings: TokenReadings = field(default_factory=TokenReadings)
    closed: bool = False
    done: bool = False
    error: EngineError | None = None
    tail: int = 1

    def __post_init__(self) -> None:
        self.prompt = len(self.ids)
        self._changed = asyncio.Event()
        self.ended = asyncio.Event()

    @property
    def pending(self) -> int:
        """Tokens yet to compute."""
        return len(self.ids) - self.computed

    @property
    def written(self) -> int:
        """Tokens written so far, taken or not."""
        return len(self.ids) - self.prompt

    def ready(self) -> bool:
        """Whether to compute this row in the next step."""
        return not self.done and self.pending > 0

    def begins(self, other: ModelRow, count: int) -> bool:
        """Whether another row can start from this one's first `count` tokens, once they are computed."""
        known = self.whole or not other.whole or len(self.readings) >= count
        return known and len(self.ids) >= count and self.ids[:count] == other.ids[:count]

    @property
    def flaw(self) -> str:
        """Why a logprob is NaN."""
        return "its logits are not numbers (NaN)"

    @property
    def lent(self) -> int:
        """Tokens computed that stay as they are, whatever the reader does: those of the prompt."""
        return min(self.computed, self.prompt)

    def conclude(self) -> None:
        """Tell the reader that the row has left the scheduler (runs in the reader's loop)."""
        self.ended.set()
        self._changed.set()

    async def leave(self) -> None:
        """Stop computing the row, and wait until it has stopped."""
        self.closed = True
        self.wake()
        await self.ended.wait()

    def record(self, engine: str, info: ModelInfo, meter: UsageMeter) -> None:
        """Record what the row has read and written."""
        self._record(engine, info, meter, 0, self.written, self.written - self.taken)

    def _record(
        self, engine: str, info: ModelInfo, meter: UsageMeter, given: int, written: int, discarded: int
    ) -> None:
        meter.record(
            engine,
            info,
            prompt_tokens=min(self.prompt, self.computed) + self.reread + given,
            cached_tokens=self.cached,
            completion_tokens=written,
            discarded_tokens=discarded,
            seconds=self.seconds,
            ids=self.ids,
            reading=self.whole,
        )


class ReadRow(ModelRow):
    """A prompt that is read: the predictions of all its tokens are returned."""

    whole = True

    async def result(self) -> TokenReadings:
        """The readings of all tokens.

        Raises:
            EngineError: the model failed.
        """
        await self.ended.wait()
        if self.error is not None:
            raise self.error
        return self.readings


@dataclass(eq=False)
class WriteRow(ModelRow):
    """An answer that is being written.

    Attributes:
        end: ids that end the answer.
        lookahead: tokens that may be written beyond those that were taken.
        grammar: what the tokens keep to; None leaves the model free.  Their logprobs are then of the
            distribution among the tokens that it allows.
    """

    sampling: Sampling = field(default_factory=Sampling)
    end: frozenset[int] = frozenset()
    vocabulary: Vocabulary = field(kw_only=True)
    lookahead: int = 0
    grammar: TokenGrammar | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.sampler = TokenSampler(self.sampling, self.ids[:], self.end)
        self._writer = AnswerWriter(self.vocabulary, self.sampling, self.end)
        self._delivered = 0  # tokens handed over by the worker
        self._waiting = False
        self._tokens: list[Token] = []
        self._finish: Finish | None = None

    def ready(self) -> bool:
        """A row pauses while its reader lags behind."""
        ahead = self._delivered - self.taken
        return super().ready() and (
            not self.written or ahead < self.lookahead or (self._waiting and ahead == 0)
        )

    @property
    def flaw(self) -> str:
        return (self.grammar.error if self.grammar else "") or super().flaw

    def accept(
        self, index: int, logprob: float, entropy: float, best: tuple[int, float], top: TopTokens
    ) -> Callable[[], None]:
        """Append the chosen token; return the callback that hands it to the reader."""
        if self.grammar is None:  # readings are of the model's own distribution
            self.readings.learn(len(self.ids), [logprob], [entropy], [best])
        last = self.grammar is not None and self.grammar.consume(index)
        self.ids.append(index)
        self.sampler.wrote(index)
        shown = alternatives(self.vocabulary, top)
        tokens, finish = self._writer.write(index, logprob, entropy, shown, last)
        self.done = self.done or finish is not None
        self._delivered += len(tokens)
        return lambda: self._deliver(tokens, finish)

    def _deliver(self, tokens: list[Token], finish: Finish | None) -> None:
        if tokens or finish:
            self._tokens += tokens
            self._finish = finish
            self._changed.set()

    async def take(self) -> tuple[tuple[Token, ...], Finish | None]:
        """All tokens that wait, at least one or the finish.

        Raises:
            EngineError: the model failed.
        """
        while not self._tokens and self._finish is None:
            if self.error is not None:
                raise self.error
            self._changed.clear()
            self._waiting = True
            self.wake()
            await self._changed.wait()
        self._waiting = False
        tokens, self._tokens = tuple(self._tokens), []
        self.taken += len(tokens)
        self.wake()
        return tokens, self._finish


@dataclass(eq=False)
class StepRow(ModelRow):
    """A row that a decoder steps; it is computed only when asked.

    The appended ids and the token chosen from the last distribution count as completion tokens, as if the
    engine had written them; dropped ids count as discarded.

    Attributes:
        logprobs: distributions after the last `tail` ids, (tail, vocabulary); None until computed.
        appended, dropped: ids that were appended, and dropped again.
    """

    asked: bool = False
    logprobs: LogprobLines | None = None
    appended: int = 0
    dropped: int = 0
    _parts: list[LogprobLines] = field(default_factory=list)

    def ready(self) -> bool:
        """Only an asked row is computed."""
        return self.asked and super().ready()

    def change(self, append: Sequence[int], drop: int, tail: int = 1) -> None:
        """Drop and append ids; runs between steps, when the worker leaves the row alone."""
        if drop:
            del self.ids[-drop:]
        self.ids.extend(append)
        self.appended += len(append)
        self.dropped += drop
        if drop or append:
            self.logprobs, self._parts = None, []
        elif self.logprobs is not None:
            self.logprobs = self.logprobs[-tail:]
        self.tail = tail
        recomputed = max(len(append), 1 if self.logprobs is None else 0)
        self.computed = min(self.computed, len(self.ids) - recomputed)
        if drop:
            self.readings = self.readings.head(len(self.ids) - len(append))

    def answer(self, lines: LogprobLines) -> Callable[[], None]:
        """Take the distributions after the ids just computed; return the callback that delivers them all."""
        self._parts.append(lines)
        if self.pending:
            return lambda: None
        self.asked = False
        logprobs = np.concatenate(self._parts) if len(self._parts) > 1 else lines
        self._parts = []

        def deliver() -> None:
            self.logprobs = logprobs
            self._changed.set()

        return deliver

    async def distributions(self) -> LogprobLines:
        """The logprobs after each of the last `tail` ids, (tail, vocabulary).

        Raises:
            EngineError: the model failed.
        """
        if self.logprobs is None and self.error is None:
            self._changed.clear()
            self.asked = True
            # woken after the others that ask in this turn of the loop: one pass for all
            self.loop.call_soon(self.wake)
            await self._changed.wait()
        if self.logprobs is None:
            raise self.error or EngineError("the row was closed")
        return self.logprobs

    def record_steps(self, engine: str, info: ModelInfo, meter: UsageMeter, given: int) -> None:
        """Record the steps; the first `given` appended ids belong to the prompt."""
        chosen = 1 if self.logprobs is not None else 0
        self._record(engine, info, meter, given, self.appended + chosen - given, self.dropped)
