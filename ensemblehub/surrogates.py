"""Halves of UTF-16 surrogate pairs, which JSON and YAML escapes can hold and no encoding of text can.

Two halves that belong together are one character; a half alone becomes U+FFFD.  Standard library only.
"""

from __future__ import annotations


def whole(text: str) -> str:
    """Return the text with surrogate pairs joined and unpaired halves replaced by U+FFFD."""
    if not has_halves(text):
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def joined(text: str) -> str:
    """Return the text with surrogate pairs joined; unpaired halves stay."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")


def has_halves(text: str) -> bool:
    """Return whether the text contains surrogates, paired or not."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


class Joiner:
    """Joins pairs whose halves come in different parts of a stream.

    Attributes:
        held: the first half of a pair whose second has not come yet.
    """

    def __init__(self) -> None:
        self.held = ""

    def add(self, text: str) -> str:
        """Take a part; return what can be shown."""
        text, self.held = self.held + text, ""
        if text and "\ud800" <= text[-1] <= "\udbff":
            text, self.held = text[:-1], text[-1]
        return whole(text)

    def end(self) -> str:
        """What is left at the end of the stream: U+FFFD where a second half never came."""
        held, self.held = self.held, ""
        return whole(held)
