"""Folding a stream of events into a result."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from ensemblehub.cost import UsageLedger
from ensemblehub.schema import Choice, Event, Piece, Result, Verdict


async def attempt(
    stream: AsyncGenerator[Event, None],
    ledger: UsageLedger,
    on_event: Callable[[Event], object] | None = None,
) -> tuple[Result, Exception | None]:
    """Fold a stream into a result, and close it; an error ends it and is returned beside what came before.

    Args:
        on_event: Called with every event as it comes.
    """
    started = time.perf_counter()
    seen: list[Event] = []
    failure = None
    try:
        async with aclosing(stream) as events:
            async for event in events:
                seen.append(event)
                if on_event:
                    on_event(event)
    except Exception as error:
        failure = error
    return fold(seen, ledger, time.perf_counter() - started), failure


async def collect(
    stream: AsyncGenerator[Event, None],
    ledger: UsageLedger,
    on_event: Callable[[Event], object] | None = None,
) -> Result:
    """Fold a stream into a result, and close it; errors are raised. See `attempt`."""
    result, failure = await attempt(stream, ledger, on_event)
    if failure:
        raise failure
    return result


def fold(events: Sequence[Event], ledger: UsageLedger, seconds: float) -> Result:
    """The result of a stream that has ended: its events and its usage."""
    return Result(
        merged(event for event in events if isinstance(event, Piece)),
        tuple(event for event in events if isinstance(event, Verdict)),
        ledger.usage,
        seconds,
        tuple(event for event in events if isinstance(event, Choice)),
    )


def attribution(result: Result) -> dict[str, Any]:
    """The visible pieces of a result with their engines; `length` in tokens."""
    segments = [
        {
            "round": number,
            "model": piece.engine,
            "purpose": piece.purpose,
            "text": piece.text,
            "length": len(piece.tokens),
        }
        for number, piece in enumerate((each for each in result.pieces if each.visible and each.text), 1)
    ]
    summary = " → ".join(f"[R{segment['round']:02}:{segment['model']}]" for segment in segments)
    return {"summary": summary, "segments": segments}


def authors(result: Result) -> dict[str, list[str]]:
    """The engines that wrote the visible insight and the visible answer, in order."""
    shown = [piece for piece in result.pieces if piece.visible and (piece.text or piece.tool_calls)]
    return {
        purpose: list(dict.fromkeys(piece.engine for piece in shown if piece.purpose == purpose))
        for purpose in ("insight", "answer")
    }


def merged(pieces: Iterable[Piece]) -> tuple[Piece, ...]:
    """Join neighbouring pieces of one engine, purpose, index, visibility and round."""
    groups: list[list[Piece]] = []
    for piece in pieces:
        last = groups[-1][-1] if groups else None
        if last is not None and _author(last) == _author(piece) and last.finish is None:
            groups[-1].append(piece)
        else:
            groups.append([piece])
    return tuple(map(joined, groups))


def joined(group: Sequence[Piece]) -> Piece:
    """Pieces of one engine and purpose as one."""
    return replace(
        group[-1],
        text="".join(piece.text for piece in group),
        tokens=tuple(token for piece in group for token in piece.tokens),
        tool_calls=tuple(call for piece in group for call in piece.tool_calls),
    )


def _author(piece: Piece) -> tuple[str, str, int, bool, int]:
    return piece.engine, piece.purpose, piece.index, piece.visible, piece.round
