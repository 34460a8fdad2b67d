"""Where the contents of messages stand in what a chat template makes of them.

Knows texts; knows neither tokenizers nor models.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

from ensemblehub.errors import RequestError

Place = tuple[int, int]  # first character and the one behind the last
_PRIVATE = range(0xE000, 0xF8FF)  # characters that stand for nothing


@dataclass(frozen=True)
class Origin:
    """Where a token comes from: message (None: the template), character span in it, and its text."""

    message: int | None
    start: int
    end: int
    text: str


@dataclass(frozen=True)
class Span:
    """Characters `start` to `end` of the rendered text are those of a message from `offset` on."""

    message: int
    start: int
    end: int
    offset: int = 0

    def part(self, start: int, end: int) -> Span:
        """Characters `start` to `end` of the message, as far as they are shown here."""
        moved = self.start - self.offset
        return Span(
            self.message,
            min(max(start + moved, self.start), self.end),
            min(max(end + moved, self.start), self.end),
            max(start, self.offset),
        )


class Cut(NamedTuple):
    """A token: its id, the characters it stands for, and its text."""

    id: int
    start: int
    end: int
    text: str


class Veil:
    """Stands in for the special tokens in what users write, while a template shows it.

    However often and wherever a template shows a message, each of its special tokens is found again.

    Args:
        special: matches special tokens.
        texts: what will be hidden or shown, whose characters are left alone.
    """

    def __init__(self, special: re.Pattern[str], texts: Iterable[str]) -> None:
        used = set().union(*texts)
        self._open, self._close = [chr(code) for code in _PRIVATE if chr(code) not in used][:2]
        self._special, self._hidden = special, list[str]()
        self._stand_in = re.compile(f"{self._open}([0-9]+){self._close}")

    def hide(self, text: str) -> str:
        """The text with a stand-in for each special token."""
        return self._special.sub(self._hide, text)

    def _hide(self, match: re.Match[str]) -> str:
        self._hidden.append(match.group())
        return f"{self._open}{len(self._hidden) - 1}{self._close}"

    def show(self, text: str) -> tuple[str, list[Place]]:
        """The text with its special tokens back, and where they stand."""
        parts, places, end, length = list[str](), list[Place](), 0, 0
        for match in self._stand_in.finditer(text):
            before, token = text[end : match.start()], self._hidden[int(match.group(1))]
            parts += [before, token]
            length += len(before) + len(token)
            places.append((length - len(token), length))
            end = match.end()
        return "".join([*parts, text[end:]]), places

    def remains(self, text: str) -> bool:
        """Whether a part of a stand-in is left in a text."""
        return self._open in text or self._close in text


def marks_for(contents: Sequence[str]) -> list[str]:
    """A text to stand in the place of each content; empty where the content is."""
    return [f"\ue000{index}\ue001" if content else "" for index, content in enumerate(contents)]


def spans_in_frame(text: str, frame: Sequence[str], contents: Sequence[str]) -> tuple[Span, ...] | None:
    """Where the contents stand if the template puts them, as they are or stripped, into its frame."""
    spans, position = [], 0
    for index, content in enumerate(contents):
        position += len(frame[index])
        stripped = content.strip()
        shown = content if text.startswith(content + frame[index + 1], position) else stripped
        offset = 0 if shown is content else len(content) - len(content.lstrip())
        spans.append(Span(index, position, position + len(shown), offset))
        position += len(shown)
    rebuilt = "".join(head + text[span.start : span.end] for head, span in zip(frame, spans, strict=False))
    whole = rebuilt + frame[-1] == text
    exact = all(text[span.start : span.end].strip() == contents[span.message].strip() for span in spans)
    return tuple(spans) if whole and exact else None


def spans_by_search(text: str, contents: Sequence[str]) -> tuple[Span, ...]:
    """Where the contents stand, looked for one after the other; those not found are left out."""
    spans, position = [], 0
    for index, content in enumerate(contents):
        for shown, offset in ((content, 0), (content.strip(), len(content) - len(content.lstrip()))):
            at = text.find(shown, position) if shown else -1
            if at >= 0:
                spans.append(Span(index, at, at + len(shown), offset))
                position = at + len(shown)
                break
    return tuple(spans)


def segments(length: int, literal: Sequence[Place]) -> list[tuple[int, int, bool]]:
    """(start, end, taken literally) of the parts to tokenise one by one."""
    parts, position = [], 0
    for start, end in literal:
        parts += [(position, start, False), (start, end, True)]
        position = end
    parts.append((position, length, False))
    return [part for part in parts if part[0] < part[1] or part[0] == 0 == length]


def literal_places(controls: Iterable[Cut], guarded: Sequence[Span], literal: Sequence[Place]) -> list[Place]:
    """`literal`, and where control tokens came of what `guarded` spans say.

    Where a control token came of a place that is taken literally already, the place is cut in two: some tokenizers have
    the word in their vocabulary.

    Raises:
        RequestError: the place is one character.
    """
    shown, places = shown_spans(guarded), set(literal)
    halved: dict[Place, list[int]] = {}
    for one in controls:
        index = bisect_right(literal, one.start, key=_first) - 1
        if index < 0 or literal[index][1] < one.end:
            places |= set(_overlaps(one, shown))
        elif one.end - one.start < 2:
            raise RequestError(f"{one.text!r} cannot be plain text: to the tokenizer it is a control token")
        else:
            halved.setdefault(literal[index], []).append(one.start + 1)
    for place, middles in halved.items():
        places.remove(place)
        places |= set(pairwise((place[0], *middles, place[1])))
    return sorted(places)


def _overlaps(one: Cut, shown: Sequence[Span]) -> Iterator[Place]:
    """What a token covers of each of these spans, which are in the order of the text."""
    index = max(0, bisect_right(shown, one.start, key=_start) - 1)
    while index < len(shown) and shown[index].start < one.end:
        if one.start < shown[index].end:
            yield max(one.start, shown[index].start), min(one.end, shown[index].end)
        index += 1


def _first(place: Place) -> int:
    return place[0]


def without(text: str, places: Iterable[Place]) -> str:
    """The text with a line feed for what stands in some places."""
    parts, position = list[str](), 0
    for start, end in places:
        parts.append(text[position:start])
        position = end
    return "\n".join([*parts, text[position:]])


def cuts(encoded: Any, text: str, moved: int = 0) -> list[Cut]:
    """The tokens of an encoding that begins at character `moved` of a text."""
    tokens = []
    for index, (low, high), name in zip(encoded.ids, encoded.offsets, encoded.tokens, strict=True):
        start, end = low + moved, high + moved
        tokens.append(Cut(index, start, end, text[start:end] if end > start >= 0 else name))
    return tokens


def shown_spans(spans: Iterable[Span]) -> list[Span]:
    """The spans that show something, in the order of the text."""
    return sorted((span for span in spans if span.start < span.end), key=_start)


def origin_of(start: int, end: int, text: str, spans: Sequence[Span]) -> Origin:
    """A token belongs to the message that its first character is of (an empty one to the template).

    Args:
        spans: as `shown_spans` gives them.
    """
    index = bisect_right(spans, start, key=_start) - 1
    if index < 0 or start >= spans[index].end or end <= start:
        return Origin(None, start, end, text)
    span = spans[index]
    moved = span.offset - span.start
    return Origin(span.message, start + moved, min(end, span.end) + moved, text)


def _start(span: Span) -> int:
    return span.start


def in_a_row(texts: Sequence[str], message: int, start: int = 0) -> list[Origin]:
    """Origins of tokens that follow each other from character `start` of a message on."""
    ends = accumulate(map(len, texts), initial=start)
    return [Origin(message, end, end + len(text), text) for text, end in zip(texts, ends, strict=False)]
