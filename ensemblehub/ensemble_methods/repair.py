"""Keeping a draft up to the first line that a model finds improbable, and writing it anew from there on."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from itertools import accumulate, pairwise

from ensemblehub.cost import UsageLedger
from ensemblehub.ensemble_methods.candidates import Candidate, geometric_mean
from ensemblehub.generators.base import Engine
from ensemblehub.generators.text.stops import StopFilter, overlap
from ensemblehub.schema import Cost, Piece, Request, Sampling, ScoredToken


def likely_length(request: Request, text: str, tokens: Sequence[ScoredToken], objection: float) -> int | None:
    """The number of characters before the first improbable line of `text`; None if there is none.

    A blank text has nothing that could be kept: 0.

    Args:
        tokens: of `text`, as scored behind the request.
        objection: geometric mean probability of a line's tokens below which it is improbable.
    """
    if not text.strip():
        return 0
    begun = len(request.prefix)
    known = [(token.start - begun, token.logprob) for token in tokens if token.logprob is not None]
    for start, end in pairwise(accumulate(map(len, text.splitlines(keepends=True)), initial=0)):
        line = [logprob for at, logprob in known if max(at, 0) in range(start, end)]
        if line and geometric_mean(line) < objection:
            return start
    return None


def kept_part(draft: Candidate, characters: int, most: int, ledger: UsageLedger) -> Piece:
    """The first characters of a draft as a part of the answer; the rest is recorded as discarded.

    Args:
        most: tokens of the answer; a part that has as many is all of it, and its `finish` is "length".
    """
    text, stays = "", 0
    for token in draft.tokens:
        text += token.text
        stays += len(text) <= characters
    tokens = draft.tokens[:stays]
    part = replace(draft.answer, text=draft.text[:characters], tokens=tokens, finish=None, round=1)
    part = part.cut(most)
    _discard_rest(draft, part, ledger)
    return part if part.length < most else replace(part, finish="length")


def kept_whole(draft: Candidate, most: int, ledger: UsageLedger) -> Piece:
    """A draft as the answer, of at most `most` tokens; the rest is recorded as discarded."""
    part = draft.answer.cut(most)
    _discard_rest(draft, part, ledger)
    return part


async def continued(
    kept: Piece, request: Request, engine: Engine, ledger: UsageLedger
) -> AsyncGenerator[Piece, None]:
    """A kept part of a draft, and what an engine writes behind it, as the answer to a request."""
    asked = request.after(kept.text, kept.length)
    if overlap(kept.text, request.sampling.stop):  # the engine sees no string that begins in the kept part
        asked = replace(asked, sampling=replace(asked.sampling, stop=()))

    async def parts() -> AsyncGenerator[Piece, None]:
        if kept.text:
            yield kept
        async with aclosing(engine.stream(asked, ledger.meter("answer"))) as pieces:
            async for piece in pieces:
                yield replace(piece, round=2)

    async with aclosing(limited(parts(), request.sampling)) as pieces:
        async for piece in pieces:
            yield piece


async def limited(pieces: AsyncGenerator[Piece, None], sampling: Sampling) -> AsyncGenerator[Piece, None]:
    """The parts of one answer, up to its end, a stop string or `max_tokens` in all; closes `pieces`."""
    held, left = StopFilter[Piece](sampling.stop), sampling.max_tokens
    async with aclosing(pieces):
        async for piece in pieces:
            part = piece.cut(left)
            left -= part.length
            shown = held.push(replace(part, finish=None))
            finish = held.finish if held.stopped else part.finish or (None if left else "length")
            if finish:
                shown += held.flush()
                shown[-1] = replace(shown[-1], finish=finish)
            for each in shown:
                yield each
            if finish:
                return


def _discard_rest(draft: Candidate, part: Piece, ledger: UsageLedger) -> None:
    if unused := len(draft.tokens) - len(part.tokens):
        ledger.add(draft.engine.name, "propose", Cost(discarded_tokens=unused))
