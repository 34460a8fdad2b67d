"""Complete answers of several engines, written concurrently, for aggregations that decide between them."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Coroutine, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar

from annotated_types import Ge

from ensemblehub.concurrency import together
from ensemblehub.cost import UsageLedger
from ensemblehub.ensemble_methods.base import Aggregation, Granularity
from ensemblehub.ensemble_methods.turns import refuse_ids
from ensemblehub.generators.base import Engine
from ensemblehub.schema import Cost, Finish, Piece, Request, Token


@dataclass(eq=False)
class Candidate:
    """An engine's answer to a request, possibly incomplete.

    Attributes:
        name: the engine's name, with `#` and the number of the sample where each engine writes several.
        usage: its usage so far, added to the request's ledger when the engine's stream ends.
    """

    engine: Engine
    request: Request
    name: str
    pieces: list[Piece] = field(default_factory=list)
    usage: UsageLedger = field(default_factory=UsageLedger)

    @property
    def finished(self) -> bool:
        """Whether the candidate is complete."""
        return self.finish is not None

    @property
    def finish(self) -> Finish | None:
        """Why it ended; None while it is incomplete."""
        return self.pieces[-1].finish if self.pieces else None

    @property
    def whole(self) -> bool:
        """Whether it came to its own end: complete, and not cut off by a limit."""
        return self.finish not in (None, "length")

    @property
    def text(self) -> str:
        """The generated text, without the request's prefix."""
        return "".join(piece.text for piece in self.pieces)

    @property
    def reply(self) -> str:
        """The reply with the request's prefix, without reasoning before `</think>`."""
        return (self.request.prefix + self.text).rpartition("</think>")[2].strip()

    @property
    def tokens(self) -> tuple[Token, ...]:
        """The tokens of the generated text."""
        return tuple(token for piece in self.pieces for token in piece.tokens)

    @property
    def logprob(self) -> float | None:
        """Mean log-probability of its tokens, in nats; None where that of one is unknown or not finite."""
        known = [token.logprob for token in self.tokens if token.logprob is not None]
        known = [logprob for logprob in known if math.isfinite(logprob)]
        return math.fsum(known) / len(known) if known and len(known) == len(self.tokens) else None

    @property
    def answer(self) -> Piece:
        """The complete text as one piece of the ensemble's answer."""
        return Piece(self.text, self.engine.name, "answer", self.tokens, self.finish)

    @property
    def given(self) -> list[Piece]:
        """The complete text as the ensemble's answer: one piece, or all of them where they call tools."""
        if any(piece.tool_calls for piece in self.pieces):
            return [replace(piece, purpose="answer") for piece in self.pieces]
        return [self.answer]

    def write(self, ledger: UsageLedger) -> Coroutine[Any, Any, None]:
        """Let the engine write it to its end; cancelling stops the engine.

        What others write from this call on counts as not known, however soon they end.
        """
        self.usage = ledger.branch()
        return self._write(ledger)

    async def _write(self, ledger: UsageLedger) -> None:
        try:
            async with aclosing(self.engine.stream(self.request, self.usage.meter("propose"))) as pieces:
                async for piece in pieces:
                    self.pieces.append(piece)
        finally:
            ledger.join(self.usage)

    def discard(self, ledger: UsageLedger) -> None:
        """Record its tokens as discarded."""
        written = self.usage.total
        unused = written.completion_tokens - written.discarded_tokens
        if unused:
            ledger.add(self.engine.name, "propose", Cost(discarded_tokens=unused))


@dataclass(frozen=True)
class CompleteAnswers(Aggregation):
    """An aggregation of complete answers, of which it needs at least two.

    Attributes:
        samples: answers per engine; one at temperature 0, where all are the same.
    """

    granularity: ClassVar[Granularity] = "response"
    samples: Annotated[int, Ge(1)] = 1

    @property
    def min_engines(self) -> int:  # type: ignore[override]  # with several samples one engine is enough
        return 2 if self.samples == 1 else 1


def drafts(request: Request, engines: Iterable[Engine], samples: int) -> list[Candidate]:
    """Create `samples` empty candidates per engine, each with its own seed.

    At temperature 0 all samples of an engine would be the same, so each writes one.

    Raises:
        RequestError: see `refuse_ids`.
    """
    engines = list(engines)
    refuse_ids(request, engines)
    if request.sampling.temperature == 0:
        samples = 1
    return [
        Candidate(
            engine,
            request.seeded("sample", engine.name, number),
            f"{engine.name}#{number}" if samples > 1 else engine.name,
        )
        for engine in engines
        for number in range(1, samples + 1)
    ]


async def write_all(candidates: Sequence[Candidate], ledger: UsageLedger) -> None:
    """Generate all candidates concurrently; the first failure cancels the others and is raised unchanged."""
    await together(candidate.write(ledger) for candidate in candidates)


async def arriving(candidates: Sequence[Candidate], ledger: UsageLedger) -> AsyncGenerator[Candidate, None]:
    """Generate all candidates concurrently and yield each when it is complete; closing cancels the others."""
    writing = {asyncio.ensure_future(candidate.write(ledger)): candidate for candidate in candidates}
    waiting = set(writing)
    try:
        while waiting:
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()  # a failure is raised as it is
                yield writing[task]
    finally:
        for task in writing:
            task.cancel()
        await asyncio.gather(*writing, return_exceptions=True)


def geometric_mean(logprobs: Sequence[float]) -> float:
    """Geometric mean probability of tokens, at least one."""
    return math.exp(math.fsum(logprobs) / len(logprobs))
