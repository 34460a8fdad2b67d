"""Complete answers of the members, written at the same time: what response-level aggregations decide between."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from ensemblehub.concurrency import together
from ensemblehub.cost import UsageLedger
from ensemblehub.ensemble_methods.turns import refuse_ids
from ensemblehub.generators.base import Engine
from ensemblehub.schema import Cost, Piece, Request


@dataclass(eq=False)
class Candidate:
    """One answer of one engine to a request, as far as it has been written.

    Attributes:
        name: the engine's name, with `#` and the number of the sample where each engine writes several.
        bill: what it has cost so far; the request's ledger gets it as soon as the engine's stream ends.
    """

    engine: Engine
    request: Request
    name: str
    pieces: list[Piece] = field(default_factory=list)
    bill: UsageLedger = field(default_factory=UsageLedger)

    @property
    def finished(self) -> bool:
        """Whether it is complete."""
        return bool(self.pieces) and self.pieces[-1].finish is not None

    @property
    def text(self) -> str:
        """What the engine wrote, without the request's prefix."""
        return "".join(piece.text for piece in self.pieces)

    @property
    def reply(self) -> str:
        """The whole reply with the request's prefix; what stands before `</think>` is no part of it."""
        return (self.request.prefix + self.text).rpartition("</think>")[2].strip()

    @property
    def answer(self) -> Piece:
        """The text as the ensemble's answer, in one piece: it is not being written any more."""
        tokens = tuple(token for piece in self.pieces for token in piece.tokens)
        return Piece(self.text, self.engine.name, "answer", tokens, self.pieces[-1].finish)

    async def write(self, ledger: UsageLedger) -> None:
        """Let the engine write it to its end; cancelling stops the engine."""
        try:
            async with aclosing(self.engine.stream(self.request, self.bill.meter("propose"))) as pieces:
                async for piece in pieces:
                    self.pieces.append(piece)
        finally:
            ledger.calls.extend(self.bill.calls)

    def discard(self, ledger: UsageLedger) -> None:
        """Bill what it wrote as tokens that nobody used."""
        written = self.bill.total
        unused = written.completion_tokens - written.discarded_tokens
        if unused:
            ledger.add(self.engine.name, "propose", Cost(discarded_tokens=unused))


def drafts(request: Request, engines: Iterable[Engine], samples: int) -> list[Candidate]:
    """`samples` empty candidates per engine, engine by engine, each with a seed of its own.

    At temperature 0 all samples of an engine would be the same, so each writes one.

    Raises:
        RequestError: the request speaks in token ids, which several models would read.
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
    """Write all candidates at the same time; the first failure ends the others and is raised as it is."""
    await together(candidate.write(ledger) for candidate in candidates)


async def arriving(candidates: Sequence[Candidate], ledger: UsageLedger) -> AsyncGenerator[Candidate, None]:
    """Write all candidates at the same time and yield each as it is finished; closing ends the others."""
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


def least_engines(samples: int) -> int:
    """Engines without which there would be one candidate only, and nothing to decide."""
    return 2 if samples == 1 else 1
