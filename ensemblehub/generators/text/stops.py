"""Stop strings in a stream: text that may begin one is held back until it is decided.

Works on tokens inside an engine and on pieces where several engines write one answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Generic, TypeVar, cast

from ensemblehub.schema import Finish, Piece, Token

Written = TypeVar("Written", Token, Piece)


class StoppedBy(str):
    """The finish reason "stop" of a text that a stop string ended, with that string."""

    string: str

    def __new__(cls, string: str) -> StoppedBy:
        reason = super().__new__(cls, "stop")
        reason.string = string
        return reason

    @classmethod
    def finish(cls, string: str) -> Finish:
        """The reason for a stop string, as a finish reason."""
        return cast(Finish, cls(string))


class StopFilter(Generic[Written]):
    """Passes written text on up to the first stop string.

    Attributes:
        stopped: whether there was one.
        finish: the finish reason of a text that ends here, which names the stop string.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(string for string in stop if string)
        self._held: list[Written] = []
        self.stopped = False
        self.finish: Finish = "stop"

    @property
    def holding(self) -> bool:
        """Whether text is held back."""
        return bool(self._held)

    def push(self, written: Written) -> list[Written]:
        """Take what was written; return what may be shown.  Sets `stopped` at a stop string."""
        if not self._stop:
            return [written]
        self._held.append(written)
        text = "".join(held.text for held in self._held)
        found = [at for at in (text.find(string) for string in self._stop) if at >= 0]
        if found:
            self.stopped = True
            first = min(found)
            self.finish = StoppedBy.finish(next(stop for stop in self._stop if text.startswith(stop, first)))
            return self._cut(first)
        return self._release(len(text) - overlap(text, self._stop))

    def flush(self) -> list[Written]:
        """Return the text still held back, at the end of the answer."""
        held, self._held = self._held, []
        return held

    def _release(self, limit: int) -> list[Written]:
        position = count = 0
        while count < len(self._held) and position + len(self._held[count].text) <= limit:
            position += len(self._held[count].text)
            count += 1
        while count and _begins(self._held[count - 1]):
            count -= 1  # its bytes are cut off with the character that it begins
        released, self._held = self._held[:count], self._held[count:]
        return released

    def _cut(self, limit: int) -> list[Written]:
        """All that is held, the texts cut to `limit` characters in all."""
        cut = []
        for written in self.flush():
            cut.append(_shortened(written, limit))
            limit -= len(cut[-1].text)
        return cut


def overlap(text: str, strings: Sequence[str]) -> int:
    """Length of the longest end of `text` that begins one of `strings` without completing it."""
    longest = min(max(map(len, strings), default=0) - 1, len(text))
    lengths = (n for n in range(longest, 0, -1) if any(part.startswith(text[-n:]) for part in strings))
    return next(lengths, 0)


def _begins(written: Token | Piece) -> bool:
    """Whether it is the start of a character that is not complete."""
    return isinstance(written, Token) and written.part is not None and not written.text


def _shortened(written: Written, limit: int) -> Written:
    """The first `limit` characters; a token that is cut off has no bytes of its own either."""
    changes: dict[str, Any] = {"text": written.text[:limit]}
    if isinstance(written, Token):
        changes |= {} if 0 < limit >= len(written.text) else {"part": None}
        return replace(written, **changes)
    tokens, left = list[Token](), limit
    for token in written.tokens:
        tokens.append(_shortened(token, left))
        left -= len(tokens[-1].text)
    return replace(written, **changes, tokens=tuple(tokens))
