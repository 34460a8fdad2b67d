"""The structure of a written answer: lists, brackets, matrices, equations, intervals and plus-minus."""

from __future__ import annotations

import re
from dataclasses import dataclass

OPEN, CLOSE = "([{", ")]}"


def squeezed(text: str) -> str:
    """Return the text without spaces, except those that end a command or separate digits."""
    kept = re.sub(r"(\\[a-zA-Z]+)\s+(?=[a-zA-Z])|(?<=\d)\s+(?=\d)", lambda found: f"{found[1] or ''}\0", text)
    return re.sub(r"\s+", "", kept).replace("\0", " ")


def split_top(text: str, separator: str) -> list[str]:
    """The parts of a text between matches of a pattern that stand in no bracket;
    brackets need not be of one kind.
    """
    pattern = re.compile(separator)
    parts = list[str]()
    depth = 0
    start = 0
    position = 0
    while position < len(text):
        found = pattern.match(text, position) if depth == 0 else None
        if found and found.end() > position:
            parts.append(text[start:position].strip())
            start = position = found.end()
            continue
        if text[position] == "\\" and text[position + 1 : position + 2] not in ("{", "}"):
            position += 2  # the name of a command
            continue
        depth += (text[position] in OPEN) - (text[position] in CLOSE)
        position += 1
    return [*parts, text[start:].strip()]


_LIST = r",\s*(?:\\text\{\s*)?(?:and|or)\b\s*\}?|;|,|\\text\{\s*(?:and|or)\s*\}|(?<=[\s\d}])(?:and|or)(?=[\s\d\\-])"
THOUSANDS = re.compile(r"[+-]?\d{1,3}(?:,\d{3})+(?:\.\d+)?")


BRACESED = re.compile(r"(?<![\d,.])\d{1,3}(?:,\d{3})+(?![\d,])")


def elements(text: str, inside: bool = False) -> list[str]:
    """Split a list at commas, semicolons, "and" and "or"; a text that is no list is one part.

    `1,200` is one number, but two `inside` brackets.
    """
    if not inside:
        text = BRACESED.sub(lambda found: found[0].replace(",", ""), text)
    if words := re.fullmatch(r"\\text\s*\{([^{}]*)\}", text):
        return [
            rf"\text{{{part}}}" for part in re.split(r"\s+(?:and|or)\s+|\s*,\s*", words[1].strip()) if part
        ] or [text]
    return [part for part in split_top(text, _LIST) if part] or [text]


@dataclass(frozen=True)
class Bracketed:
    """A text in one pair of brackets.

    Attributes:
        opening, closing: ``(``, ``[`` or ``\\{``, and what ends it.
    """

    opening: str
    inside: str
    closing: str


_BRACKETS = re.compile(r"(\\\{|[(\[])(.*?)(\\\}|[)\]])", re.DOTALL)
BRACES = re.compile(r"(\{)(.*?)(\})", re.DOTALL)


def bracketed(text: str, kind: re.Pattern[str] = _BRACKETS) -> Bracketed | None:
    """What stands in brackets, if all of the text does and they close at its very end."""
    found = kind.fullmatch(text)
    if not found:
        return None
    depth, position = 0, 0
    while position < len(text):
        if text[position] == "\\" and text[position + 1 : position + 2] not in ("{", "}"):
            position += 2
            continue
        depth += (text[position] in OPEN) - (text[position] in CLOSE)
        position += 1
        if depth == 0 and 1 < position < len(text):
            return None
    return Bracketed(found[1], found[2].strip(), found[3]) if depth == 0 else None


_MATRIX = re.compile(
    r"\\begin\s*\{(?:[pbB]|small)?(?:matrix|array)\}(?:\s*\{[lcr|\s]*\})?(.*?)\\end\s*\{(?:[pbB]|small)?(?:matrix|array)\}",
    re.DOTALL,
)


def matrix(text: str) -> list[list[str]] | None:
    """Return the cells of a matrix by row, or None if the text is no matrix."""
    found = (
        _MATRIX.fullmatch(text) or ((inner := bracketed(text)) and _MATRIX.fullmatch(inner.inside)) or None
    )
    if not found:
        return None
    rows = [row for row in re.split(r"\\\\(?:\[[^\]]*\])?", found[1]) if row.strip()]
    return [[cell.strip() for cell in split_top(row, "&")] for row in rows]


# -- relations ---------------------------------------------------------------------------------------------

_NAME = re.compile(r"(?:\\[A-Za-z]+(?![A-Za-z])|[A-Za-z'\s{}_(),]|(?<=[_{\d])\d)+")
_FUNCTIONS = re.compile(
    r"\\(?:frac|sqrt|pi|sin|cos|tan|cot|sec|csc|log|ln|exp|cdot|times|infty|pm|mp|cup|cap|text)(?![a-zA-Z])"
)


def assigned(text: str) -> tuple[str, str]:
    r"""The name and the value of ``x = 5``, ``f(x) = x^2`` and ``x \in [0,1]``;
    an empty name where none is given.
    """
    parts = split_top(text, r"=|\\in(?![a-z])|:=")
    if (
        len(parts) == 2
        and parts[1]
        and _NAME.fullmatch(parts[0])
        and not _FUNCTIONS.search(parts[0].replace("\\text", ""))
    ):
        return squeezed(parts[0]), parts[1]
    return "", text


def is_equation(text: str) -> bool:
    """Return whether the text contains an equals sign."""
    return len(split_top(text, r"(?<![<>!])=")) > 1


_ENDS = {"<": (")", "("), r"\le": ("]", "["), ">": ("(", ")"), r"\ge": ("[", "]")}


def as_interval(text: str) -> tuple[str, str] | None:
    """The variable and the interval that an inequality of one letter describes;
    None where it is no such thing.
    """
    signs = re.findall(r"\\le(?![a-z])|\\ge(?![a-z])|<|>", text)
    parts = split_top(text, r"\\le(?![a-z])|\\ge(?![a-z])|<|>")
    if len(signs) != len(parts) - 1 or not all(parts):
        return None
    letter = re.compile(r"[a-zA-Z]|\\theta")
    if len(parts) == 2:
        if letter.fullmatch(parts[1]):
            parts, signs = parts[::-1], [_turned(signs[0])]
        if not letter.fullmatch(parts[0]) or re.search(
            rf"(?<![a-zA-Z\\]){re.escape(parts[0])}(?![a-zA-Z])", parts[1]
        ):
            return None
        end = _ENDS[signs[0]]
        if signs[0] in ("<", r"\le"):
            return parts[0], rf"(-\infty,{parts[1]}{end[0]}"
        return parts[0], rf"{end[0]}{parts[1]},\infty)"
    if len(parts) == 3 and letter.fullmatch(parts[1]):
        if signs[0] in (">", r"\ge"):
            parts, signs = parts[::-1], [_turned(sign) for sign in signs[::-1]]
        if all(sign in ("<", r"\le") for sign in signs):
            return parts[1], f"{_ENDS[signs[0]][1]}{parts[0]},{parts[2]}{_ENDS[signs[1]][0]}"
    return None


def _turned(sign: str) -> str:
    return {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le"}[sign]


def plus_minus(text: str) -> list[str]:
    r"""``a \pm b`` as both of its values; other texts alone."""
    inner = bracketed(text)
    if not re.search(r"\\(?:pm|mp)(?![a-z])", text) or (
        inner and len(elements(inner.inside, inside=True)) > 1
    ):
        return [text]
    return [
        re.sub(r"\\mp(?![a-z])", other, re.sub(r"\\pm(?![a-z])", sign, text))
        .strip()
        .removeprefix("+")
        .strip()
        for sign, other in (("+", "-"), ("-", "+"))
    ]
