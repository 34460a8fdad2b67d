"""Writing in turns: engines continue one text, one after the other, each for some tokens.

A strategy says who writes next; what belongs to the answer as a whole is kept here: its length, stop
strings that span turns, seeds, and its end.  Each turn asks the engine to continue the text so far
(`Request.prefix`), so an engine that keeps its KV computes only what is new to it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import Annotated, ClassVar

from annotated_types import Ge

from ensemblehub.cost import UsageLedger
from ensemblehub.ensemble_methods.base import Aggregation, Granularity
from ensemblehub.errors import ContextOverflowError, RequestError
from ensemblehub.generators.base import Engine
from ensemblehub.generators.text.stops import StopFilter
from ensemblehub.results import joined
from ensemblehub.schema import Capability, Event, Finish, Piece, Purpose, Request, TokenIds


@dataclass(frozen=True)
class EngineTurn:
    """The next writer and its limits.

    Attributes:
        tokens: how many at most; None: to the end of the answer.
        until: strings that the text does not hold yet; the turn ends behind the first of them.
    """

    engine: Engine
    tokens: int | None = None
    until: tuple[str, ...] = ()


@dataclass
class SoFar:
    """The text written so far.

    Attributes:
        text: the whole answer, with what the request gave of it.
        tokens: how many were written; a piece whose engine tells none counts as one.
        turns: those that are over.
    """

    text: str
    tokens: int = 0
    turns: list[Piece] = field(default_factory=list)

    @property
    def rounds(self) -> int:
        """Number of completed turns."""
        return len(self.turns)

    @property
    def repeats(self) -> int:
        """Number of latest consecutive turns with the same text."""
        return sum(1 for _ in takewhile(lambda turn: turn.text == self.turns[-1].text, reversed(self.turns)))

    def add(self, piece: Piece) -> None:
        """Take a piece of the turn that is being written."""
        self.text += piece.text
        self.tokens += piece.length

    def completes(self, marks: Sequence[str], piece: Piece) -> bool:
        """Return whether the latest `piece` completed one of `marks` in the text."""
        return any(mark in self.text[-(len(piece.text) + len(mark) - 1) :] for mark in marks if piece.text)


@dataclass(frozen=True)
class Segments(Aggregation):
    """An aggregation whose engines write in turns.

    Attributes:
        max_tokens: of the whole answer, where that is less than the request's own.
        max_rounds: turns after which the answer ends.
        max_repeat: number of identical turns in a row that ends the answer, 0 for none; no limit where the
            request ignores the end of text.
    """

    granularity: ClassVar[Granularity] = "segment"
    requires: ClassVar[frozenset[Capability]] = frozenset({"prefix"})

    max_tokens: Annotated[int, Ge(1)] | None = None
    max_rounds: Annotated[int, Ge(1)] = 500
    max_repeat: Annotated[int, Ge(0)] = 3

    def limited(self, request: Request) -> Request:
        """The request with this aggregation's own limit of tokens."""
        limit = min(request.sampling.max_tokens, self.max_tokens or request.sampling.max_tokens)
        return replace(request, sampling=replace(request.sampling, max_tokens=limit))

    def written(
        self,
        request: Request,
        engines: Sequence[Engine],
        ledger: UsageLedger,
        following: Callable[[SoFar], EngineTurn],
    ) -> AsyncGenerator[Event, None]:
        """The answer of engines that write one after the other; see `in_rounds`.

        Args:
            following: who writes next.

        Raises:
            ContextOverflowError, RequestError: see `refuse`; raised before the first piece.
        """
        request, so_far = self.limited(request), SoFar(request.prefix)
        refuse(request, engines)

        def write(shown: Request) -> AsyncGenerator[Event, None] | Finish:
            turn = following(so_far)
            asked = ask(shown, turn, so_far)
            if asked.sampling.max_tokens < 1:  # the text takes more tokens of this engine than of its writers
                return "length"
            return write_turn(turn, asked, so_far, ledger)

        return self.in_rounds(request, so_far, write)

    async def in_rounds(
        self,
        request: Request,
        so_far: SoFar,
        write: Callable[[Request], AsyncGenerator[Event, None] | Finish],
    ) -> AsyncGenerator[Event, None]:
        """The answer, each piece with its turn in `round`, the last one with `finish`.

        An engine's end of text ends the answer.  Presence and frequency penalties see earlier turns as part
        of the prompt.

        Args:
            so_far: takes every piece before the stream of its turn goes on.
            write: the stream of the next turn, or how the answer ends; it gets the request to ask, which has
                no stop strings while the start of one is held back: an engine would see only a later one.

        Raises:
            ContextOverflowError: no turn was written.
        """
        held = StopFilter[Piece](request.sampling.stop)
        unstopped = replace(request, sampling=replace(request.sampling, stop=()))
        finish: Finish | None = None
        while finish is None:
            stream = write(unstopped if held.holding else request)
            if isinstance(stream, str):
                finish = stream
                break
            parts: list[Piece] = []
            async with aclosing(stream) as events:
                async for event in events:
                    if not isinstance(event, Piece):
                        yield event
                        continue
                    left = request.sampling.max_tokens - so_far.tokens
                    if event.length and left < 1:
                        break
                    event = event.cut(left)
                    ended = event.finish
                    parts.append(replace(event, finish=None, round=so_far.rounds + 1))
                    so_far.add(event)
                    for shown in held.push(parts[-1]):
                        yield shown
                    if held.stopped:
                        break
            if parts:
                so_far.turns.append(joined(parts))
                stopped = held.finish if held.stopped else ended if ended == "stop" else None
                finish = stopped or self.cut(request, so_far)
        if not so_far.turns:
            raise ContextOverflowError(
                f"{ContextOverflowError.WORDS} exceeded: "
                "the question leaves no room to write in that of any engine"
            )
        for shown in held.flush():
            yield shown
        yield replace(so_far.turns[-1], text="", tokens=(), finish=finish)

    def cut(self, request: Request, so_far: SoFar) -> Finish | None:
        """Return whether the answer is truncated after a turn."""
        repeated = 0 < self.max_repeat <= so_far.repeats and not request.sampling.ignore_eos
        over = so_far.tokens >= request.sampling.max_tokens or so_far.rounds >= self.max_rounds
        return "length" if over or repeated else None


async def write_turn(
    turn: EngineTurn, asked: Request, so_far: SoFar, ledger: UsageLedger, purpose: Purpose = "answer"
) -> AsyncGenerator[Piece, None]:
    """The pieces of one turn, up to the first of its marks.

    Args:
        so_far: the caller adds every piece to it before it takes the next.
    """
    async with aclosing(turn.engine.stream(asked, ledger.meter(purpose))) as pieces:
        async for piece in pieces:
            yield piece
            if so_far.completes(turn.until, piece):
                break


def ask(request: Request, turn: EngineTurn, so_far: SoFar) -> Request:
    """What the engine of a turn is asked: to continue the text, with a seed of the turn's own."""
    continued = replace(request, prefix=so_far.text, written=(*request.written, *so_far.turns))
    left = request.sampling.max_tokens - so_far.tokens
    sampling = replace(
        request.sampling,
        max_tokens=min(left, turn.tokens or left, room(turn.engine, continued, left)),
        min_tokens=max(0, request.sampling.min_tokens - so_far.tokens),
    )
    return replace(continued, sampling=sampling).seeded("round", so_far.rounds + 1, turn.engine.name)


def room(engine: Engine, request: Request, wanted: int) -> int:
    """Return how many of `wanted` tokens fit the engine's context after the request."""
    read = engine.count(request)
    return wanted if read is None or not engine.info.context else min(wanted, engine.info.context - read)


def refuse(request: Request, engines: Sequence[Engine]) -> None:
    """Refuse a request that these engines cannot answer in turns, before any of them is called.

    Raises:
        ContextOverflowError: prompt and answer do not fit the context of an engine.
        RequestError: see `refuse_ids`.
    """
    refuse_ids(request, engines)
    for engine in engines:
        engine.fits(engine.count(request), request.sampling.required)


def refuse_ids(request: Request, engines: Sequence[Engine]) -> None:
    """Refuse a request for no token, or with token ids that several models would read.

    Raises:
        RequestError: names the option.
    """
    sampling = request.sampling
    if sampling.max_tokens < 1:
        raise RequestError(f"max_tokens must be at least 1, not {sampling.max_tokens}")
    ids = isinstance(request.prompt, TokenIds) or sampling.logit_bias or sampling.stop_token_ids
    if ids and len(engines) > 1:
        raise RequestError(
            "token ids (as prompt, logit_bias or stop_token_ids) mean other things to other models"
        )
