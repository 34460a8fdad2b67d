"""Folding a stream of events into a result."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from ensemblehub.cost import UsageLedger
from ensemblehub.schema import Choice, Event, Piece, Result, Verdict


async def collect(
    events: AsyncIterator[Event], ledger: UsageLedger, on_event: Callable[[Event], object] | None = None
) -> Result:
    """Fold a stream into a result; `on_event` is called with every event as it comes."""
    started, seen = time.perf_counter(), list[Event]()
    async for event in events:
        seen.append(event)
        if on_event:
            on_event(event)
    return fold(seen, ledger, time.perf_counter() - started)


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


def merged(pieces: Iterable[Piece]) -> tuple[Piece, ...]:
    """Join neighbouring pieces of one engine, purpose, index, visibility and round."""
    groups: list[list[Piece]] = []
    for piece in pieces:
        last = groups[-1][-1] if groups else None
        if last is not None and _author(last) == _author(piece) and last.finish is None:
            groups[-1].append(piece)
        else:
            groups.append([piece])
    return tuple(map(_joined, groups))


def _joined(group: Sequence[Piece]) -> Piece:
    return replace(
        group[-1],
        text="".join(piece.text for piece in group),
        tokens=tuple(token for piece in group for token in piece.tokens),
        tool_calls=tuple(call for piece in group for call in piece.tool_calls),
    )


def _author(piece: Piece) -> tuple[str, str, int, bool, int]:
    return piece.engine, piece.purpose, piece.index, piece.visible, piece.round
