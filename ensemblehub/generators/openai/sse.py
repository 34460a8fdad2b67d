"""A parser for server-sent events: https://html.spec.whatwg.org/multipage/server-sent-events.html.

Handles a byte order mark, lines that end in CR, LF or CRLF, data of several lines, comments and other fields.  For
servers that omit the blank line, data that is complete JSON ends where the next data begins, and an unfinished event
at the end of the stream counts.  Linear in the input, and bounded in what it keeps.  Knows no HTTP and no JSON schema.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

DONE = "[DONE]"
_LINE_END = re.compile(rb"\r\n|\r|\n")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class ServerEvent:
    """One event: the name of its kind, `message` where none is given, and its data."""

    kind: str
    data: str


class EventParser:
    """Turns the bytes of a stream into events.

    Args:
        most: bytes between two events at most, comments and blank lines included.
    """

    def __init__(self, most: int) -> None:
        self._most, self._size = most, 0
        self._line, self._after_cr, self._begun = bytearray(), False, False
        self._kind, self._data = "", list[str]()

    def feed(self, part: bytes) -> Iterator[ServerEvent]:
        """The events that a part of the stream completes.

        Raises:
            ValueError: an event is larger than allowed.
        """
        for line in self._lines(part):
            self._grow(len(line) + 1)
            if line or self._data or self._kind:
                yield from self._take(line)
        if self._size + len(self._line) > self._most:
            self._grow(len(self._line))

    def end(self) -> Iterator[ServerEvent]:
        """What is left when the stream is over."""
        yield from self._take(self._first(bytes(self._line)))
        yield from self._dispatch()

    def _grow(self, count: int) -> None:
        self._size += count
        if self._size > self._most:
            raise ValueError(f"an event of more than {self._most} bytes")

    def _lines(self, part: bytes) -> Iterator[bytes]:
        if not part:
            return
        if self._after_cr and part.startswith(b"\n"):
            part = part[1:]
        self._after_cr = part.endswith(b"\r")
        *lines, rest = _LINE_END.split(part)
        if lines:
            yield self._first(bytes(self._line) + lines[0])
            self._line.clear()
            yield from lines[1:]
        self._line += rest

    def _first(self, line: bytes) -> bytes:
        """A line without the byte order mark that may begin the stream."""
        begun, self._begun = self._begun, True
        return line if begun else line.removeprefix(_BYTE_ORDER_MARK)

    def _take(self, line: bytes) -> Iterator[ServerEvent]:
        if not line:
            yield from self._dispatch()
        if line.startswith(b":"):
            return
        name, _, value = line.decode(errors="replace").partition(":")
        value = value.removeprefix(" ")
        if name == "event":
            self._kind = value
        elif name == "data":
            if len(self._data) == 1 and _complete(self._data[0]):
                yield from self._dispatch()
            self._data.append(value)

    def _dispatch(self) -> Iterator[ServerEvent]:
        data = "\n".join(self._data).strip()
        if data:
            yield ServerEvent(self._kind or "message", data)
            self._size = 0
        self._kind, self._data = "", []


def _complete(data: str) -> bool:
    """Whether a line of data is an event by itself."""
    if data.strip() == DONE:
        return True
    if not (data.lstrip().startswith("{") and data.rstrip().endswith("}")):
        return False
    try:
        json.loads(data)
    except (ValueError, RecursionError):
        return False
    return True
