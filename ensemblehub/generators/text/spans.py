"""Positions of message contents and of tokens in a rendered text."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice, pairwise
from operator import attrgetter, itemgetter
from typing import Any, NamedTuple

from ensemblehub.errors import RequestError

Place = tuple[int, int]  # first character and the one behind the last
_PRIVATE = range(0xE000, 0xF8FF)  # characters that stand for nothing
_start = attrgetter("start")


@dataclass(frozen=True)
class Origin:
    """Where a token comes from: message (None: the template), character span in it, and its text."""

    message: int | None
    start: int
    end: int
    text: str


@dataclass(frozen=True)
class TextSpan:
    """Characters `start` to `end` of the rendered text are those of a message from `offset` on."""

    message: int
    start: int
    end: int
    offset: int = 0

    def part(self, start: int, end: int) -> TextSpan:
        """Characters `start` to `end` of the message, as far as they are shown here."""
        moved = self.start - self.offset
        first = min(max(start + moved, self.start), self.end)
        last = min(max(end + moved, self.start), self.end)
        return TextSpan(self.message, first, last, max(start, self.offset))


class TokenSpan(NamedTuple):
    """A token: its id, the characters it stands for, and its text."""

    id: int
    start: int
    end: int
    text: str


class SpecialTokenMask:
    """Placeholders for the special tokens in what users write, while a template renders it.

    However often and wherever a template shows a message, each of its special tokens is found again.

    Args:
        special: matches special tokens.
        texts: what will be hidden or shown; none of its characters is used in placeholders.
    """

    def __init__(self, special: re.Pattern[str], texts: Iterable[str]) -> None:
        used = set().union(*texts)
        self._open, self._close = islice((chr(code) for code in _PRIVATE if chr(code) not in used), 2)
        self._special = special
        self._hidden: list[str] = []
        self._placeholder = re.compile(f"{self._open}([0-9]+){self._close}")

    def hide(self, text: str) -> str:
        """The text with a placeholder for each special token."""
        return self._special.sub(self._hide, text)

    def _hide(self, match: re.Match[str]) -> str:
        self._hidden.append(match.group())
        return f"{self._open}{len(self._hidden) - 1}{self._close}"

    def show(self, text: str) -> tuple[str, list[Place]]:
        """The text with its special tokens back, and where they stand."""
        shown, end = "", 0
        places: list[Place] = []
        for match in self._placeholder.finditer(text):
            token = self._hidden[int(match.group(1))]
            shown += text[end : match.start()] + token
            places.append((len(shown) - len(token), len(shown)))
            end = match.end()
        return shown + text[end:], places

    def remains(self, text: str) -> bool:
        """Whether a part of a placeholder is left in a text."""
        return self._open in text or self._close in text


def marks_for(contents: Sequence[str]) -> list[str]:
    """Return a placeholder for each content; empty if the content is empty."""
    return [f"\ue000{index}\ue001" if content else "" for index, content in enumerate(contents)]


def spans_in_frame(text: str, frame: Sequence[str], contents: Sequence[str]) -> tuple[TextSpan, ...] | None:
    """Where the contents stand if the template puts them, as they are or stripped, into its frame."""
    spans = []
    position = len(frame[0])
    for index, (content, behind) in enumerate(zip(contents, frame[1:], strict=True)):
        shown, offset = content, 0
        if not text.startswith(content + behind, position):
            shown, offset = _stripped(content)
        end = position + len(shown)
        if text[position:end].strip() != content.strip() or not text.startswith(behind, end):
            return None
        spans.append(TextSpan(index, position, end, offset))
        position = end + len(behind)
    return tuple(spans) if text.startswith(frame[0]) and position == len(text) else None


def spans_by_search(text: str, contents: Sequence[str]) -> tuple[TextSpan, ...]:
    """Where the contents stand, looked for one after the other; those not found are left out."""
    spans, position = [], 0
    for index, content in enumerate(contents):
        for shown, offset in ((content, 0), _stripped(content)):
            at = text.find(shown, position) if shown else -1
            if at >= 0:
                position = at + len(shown)
                spans.append(TextSpan(index, at, position, offset))
                break
    return tuple(spans)


def _stripped(content: str) -> tuple[str, int]:
    """The content without white space around it, and how much stood before it."""
    return content.strip(), len(content) - len(content.lstrip())


def segments(length: int, literal: Sequence[Place]) -> list[tuple[int, int, bool]]:
    """(start, end, taken literally) of the parts to tokenise one by one."""
    parts, position = [], 0
    for start, end in literal:
        parts += [(position, start, False), (start, end, True)]
        position = end
    parts.append((position, length, False))
    return [part for part in parts if part[0] < part[1] or part[0] == 0 == length]


def literal_places(
    controls: Iterable[TokenSpan], guarded: Sequence[TextSpan], literal: Sequence[Place]
) -> list[Place]:
    """`literal`, and where control tokens came of what `guarded` spans say.

    Where a control token came of a place that is taken literally already, the place is cut in two: some
    tokenizers have the word in their vocabulary.

    Raises:
        RequestError: the place is one character.
    """
    shown, places = shown_spans(guarded), set(literal)
    halved: dict[Place, list[int]] = {}
    for token in controls:
        index = bisect_right(literal, token.start, key=itemgetter(0)) - 1
        if index < 0 or literal[index][1] < token.end:
            places |= set(_overlaps(token, shown))
        elif token.end - token.start < 2:
            raise RequestError(f"{token.text!r} cannot be plain text: to the tokenizer it is a control token")
        else:
            halved.setdefault(literal[index], []).append(token.start + 1)
    for place, middles in halved.items():
        places.remove(place)
        places |= set(pairwise((place[0], *middles, place[1])))
    return sorted(places)


def _overlaps(token: TokenSpan, shown: Sequence[TextSpan]) -> Iterator[Place]:
    """What a token covers of each of these spans, which are in the order of the text."""
    for index in range(max(0, bisect_right(shown, token.start, key=_start) - 1), len(shown)):
        span = shown[index]
        if span.start >= token.end:
            return
        if token.start < span.end:
            yield max(token.start, span.start), min(token.end, span.end)


def without(text: str, places: Iterable[Place]) -> str:
    """The text with a line feed for what stands in some places."""
    edges = [0, *(edge for place in places for edge in place), len(text)]
    return "\n".join(text[start:end] for start, end in zip(edges[::2], edges[1::2], strict=True))


def token_spans(encoded: Any, text: str, moved: int = 0) -> list[TokenSpan]:
    """The tokens of an encoding that begins at character `moved` of a text."""
    tokens = []
    for index, (low, high), name in zip(encoded.ids, encoded.offsets, encoded.tokens, strict=True):
        start, end = low + moved, high + moved
        tokens.append(TokenSpan(index, start, end, text[start:end] if end > start >= 0 else name))
    return tokens


def shown_spans(spans: Iterable[TextSpan]) -> list[TextSpan]:
    """The spans that show something, in the order of the text."""
    return sorted((span for span in spans if span.start < span.end), key=_start)


def origin_of(token: TokenSpan, spans: Sequence[TextSpan]) -> Origin:
    """A token belongs to the message of its first character (an empty one to the template).

    Args:
        spans: as `shown_spans` gives them.
    """
    index = bisect_right(spans, token.start, key=_start) - 1
    if index < 0 or token.start >= spans[index].end or token.end <= token.start:
        return Origin(None, token.start, token.end, token.text)
    span = spans[index]
    moved = span.offset - span.start
    return Origin(span.message, token.start + moved, min(token.end, span.end) + moved, token.text)


def in_a_row(texts: Sequence[str], message: int, start: int = 0) -> list[Origin]:
    """Origins of tokens that follow each other from character `start` of a message on."""
    ends = accumulate(map(len, texts), initial=start)
    return [Origin(message, end, end + len(text), text) for text, end in zip(texts, ends, strict=False)]
