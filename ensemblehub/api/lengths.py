"""Lengths of prompts in tokens, without tokenizing a prompt that is far too long."""

from __future__ import annotations

import json
from collections.abc import Sequence

from ensemblehub.api.reading import beside
from ensemblehub.errors import ContextOverflowError
from ensemblehub.generators.base import Engine
from ensemblehub.schema import Request, Text, TokenIds

_LARGE = 20_000  # characters of prompts whose tokens are counted beside the event loop
_SLICE = 16_384  # characters that are tokenised at a time where a prompt is perhaps too long
_SEAM = 8  # tokens by which a cut may change their number


async def prompt_lengths(engine: Engine, requests: Sequence[Request], most: int, written: int) -> list[int]:
    """Return the number of tokens of each prompt for an engine; 0 if it cannot count.

    Args:
        written: tokens that are asked for, for the message.

    Raises:
        ContextOverflowError: a prompt has more than `most` tokens.
        RequestError: as `Engine.count`.
    """
    if sum(len(_words(request)) for request in requests) > _LARGE:
        return await beside(_counted, engine, requests, most, written)
    return _counted(engine, requests, most, written)


def _counted(engine: Engine, requests: Sequence[Request], most: int, written: int) -> list[int]:
    found = []
    for request in requests:
        prompt = request.prompt
        if not isinstance(prompt, TokenIds):
            _refuse_early(engine, _words(request), most)
        length = len(prompt.ids) if isinstance(prompt, TokenIds) else engine.count(request) or 0
        if length > most:
            raise ContextOverflowError.of(engine.name, most, length, written)
        found.append(length)
    return found


def _refuse_early(engine: Engine, text: str, most: int) -> None:
    """Refuse a text that has more than `most` tokens for sure, once so many are counted."""
    if len(text) <= 4 * most + _SLICE:
        return
    tokenizer, tokens = engine.tokenizer, 0
    for start in range(0, len(text), _SLICE):
        part = text[start : start + _SLICE]
        known = engine.count(Request(Text(part))) if tokenizer is None else len(tokenizer.encode(part, False))
        tokens += (known or 0) - _SEAM
        if tokens > most:
            raise ContextOverflowError.beyond(engine.name, most, tokens)


def _words(request: Request) -> str:
    """The text of a request, with a line break for what the template puts between messages."""
    prompt = request.prompt
    if isinstance(prompt, TokenIds):
        return ""
    parts = [request.prefix, json.dumps(request.extra) if request.extra else ""]
    if isinstance(prompt, Text):
        return "\n".join(part for part in (prompt.text, *parts) if part)
    said = (part for message in prompt.messages for part in (message.content, message.extra))
    return "\n".join(part for part in (*said, *parts) if part)
