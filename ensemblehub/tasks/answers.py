"""Final answers of mathematics: finding them in a text, and whether two are equal.

Knows no benchmark.  Equality is decided by text and exact numbers first and by `math_verify` (extra
`eval`) only where that does not settle it.
"""

from __future__ import annotations

import re
from fractions import Fraction

from ensemblehub.tasks import symbolic

LONGEST_ANSWER = 400  # characters that are given to symbolic algebra
_PHRASE = re.compile(r"the\s+(?:final\s+)?answer\s+is\s*:?\s*", re.IGNORECASE)
_HASHES = re.compile(r"^####[ \t]*", re.MULTILINE)
_BOXED = re.compile(r"\\(?:boxed|fbox|framebox)(?![a-zA-Z])\s*")
_NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d{1,3})?")
_RATIO = re.compile(r"([+-]?\d+)/(\d+)|([+-]?)\\frac\{(\d+)\}\{(\d+)\}")
_THOUSANDS = re.compile(r"[+-]?\d{1,3}(?:,\d{3})+(?:\.\d*)?")


def last_boxed(text: str) -> str | None:
    r"""The content of the last complete ``\boxed{...}``, ``\fbox`` or ``\framebox``, braces balanced; or None.

    Without braces (``\boxed 7``) it is what follows up to a dollar or the end of the line.
    """
    for found in reversed(list(_BOXED.finditer(text))):
        if text[found.end() : found.end() + 1] == "{":
            content = _braced(text, found.end())
        else:
            content = re.split(r"[$\n]", text[found.end() :], maxsplit=1)[0].strip().rstrip(".") or None
        if content is not None:
            return content.strip()
    return None


def _braced(text: str, start: int) -> str | None:
    """What stands between the brace at `start` and the one that closes it."""
    depth, position = 0, start
    while position < len(text):
        character = text[position]
        if character == "\\":
            position += 1  # an escaped brace is not a brace
        elif character == "{":
            depth += 1
        elif character == "}":
            depth -= 1
            if depth == 0:
                return text[start + 1 : position]
        position += 1
    return None


def final_answer(text: str) -> str | None:
    r"""The last ``\boxed{...}``, else the rest of the line after the last "the answer is" or GSM8K's ``####``.

    None if none of them is there.  What stands before ``</think>`` is no answer.
    """
    text = text.rpartition("</think>")[2]
    boxed = last_boxed(text)
    if boxed is not None:
        return boxed
    phrases = list(_PHRASE.finditer(text)) or list(_HASHES.finditer(text))
    if not phrases:
        return None
    line = text[phrases[-1].end() :].partition("\n")[0]
    sentence = re.split(r"\.(?:\s|$)", line, maxsplit=1)[0]
    return sentence.strip(" \t.*$:") or None


def equal_answers(gold: str, answer: str) -> bool:
    """Whether two mathematical answers mean the same; safe in any thread, bounded in time and memory.

    Texts, integers, decimals and fractions are compared here; the rest by `math_verify` in a process of its own
    (`symbolic.py`).  What cannot be compared in time, or is over `LONGEST_ANSWER` characters, is not equal.

    Deliberately equal: values in any form (1/2, 0.5, an unreduced fraction), a number with and without a unit, sets in
    any order, `x = 5` and 5.  Deliberately not: 50 % and 0.5, tuples in another order, open and closed intervals.

    Raises:
        MissingExtraError: `math_verify` is needed and not installed.
    """
    left, right = _plain(gold), _plain(answer)
    if left == right:
        return bool(left)
    if not left or not right:
        return False
    numbers = _number(left), _number(right)
    if numbers[0] is not None and numbers[1] is not None:
        return numbers[0] == numbers[1]
    if any(len(text) > LONGEST_ANSWER for text in (left, right)):
        return False
    return symbolic.equal(gold, answer)


def _plain(text: str) -> str:
    """The text without what carries no meaning: dollars, spacing, sizes, text commands, a final stop."""
    text = text.strip().strip("$").strip()
    text = re.sub(r"\\(?:left|right)\.", "", text).replace(r"\varnothing", r"\emptyset")
    text = re.sub(r"\\(?:left|right|[,!;: ]|quad|displaystyle)(?![a-zA-Z])", "", text)
    text = re.sub(r"\\[dt]frac", r"\\frac", text)
    text = re.sub(r"\\(?:text|mbox|textbf|mathrm)\s*\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"\^\s*(?:\\circ|\{\\circ\})", "", text).replace("\\$", "").replace("\\%", "").rstrip("%")
    text = re.sub(r"\s+", "", text).rstrip(".")
    text = re.sub(r"\((\d+)\)", r"\1", text) if text[1:-1].isdigit() else text  # (073), as AIME's solutions box it
    return text.replace(",", "") if _THOUSANDS.fullmatch(text) else text


def _number(text: str) -> Fraction | None:
    """The exact value of an integer, a decimal or a fraction of integers; None for anything else."""
    if len(text) > LONGEST_ANSWER:
        return None
    if _NUMBER.fullmatch(text):
        return Fraction(text)
    ratio = _RATIO.fullmatch(text)
    if not ratio:
        return None
    top, bottom = (ratio[1], ratio[2]) if ratio[2] else (f"{ratio[3]}{ratio[4]}", ratio[5])
    return Fraction(int(top), int(bottom)) if int(bottom) else None
