"""Final answers of mathematics: finding them in a text, and whether two are equal.

Knows no benchmark.  Equality is decided by text and exact numbers first and by `math_verify` (extra
`eval`) only where that does not settle it.
"""

from __future__ import annotations

import logging
import re
from fractions import Fraction
from typing import Any

from ensemblehub.errors import MissingExtraError

LONGEST_ANSWER = 400  # characters that are given to symbolic algebra
_PHRASE = re.compile(r"the\s+(?:final\s+)?answer\s+is\s*:?\s*", re.IGNORECASE)
_BOXED = re.compile(r"\\(?:boxed|fbox|framebox)(?![a-zA-Z])\s*")
_HASHES = re.compile(r"####[ \t]*([^\n]+)")
_NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)")
_RATIO = re.compile(r"([+-]?\d+)/(\d+)|([+-]?)\\frac\{(\d+)\}\{(\d+)\}")
_THOUSANDS = re.compile(r"[+-]?\d{1,3}(?:,\d{3})+(?:\.\d*)?")
# Powers of large exponents, towers of powers, and factorials of large numbers would not end in time.
_EXPLOSIVE = re.compile(r"\^\s*\{?\s*[+-]?\d{4,}|\d\s*\^\s*\{?\s*\d+\s*\^|\^\s*\{?\s*\d+\s*\^|\*\*|\d{3,}\s*!|!\s*!")


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
    r"""The last ``\boxed{...}``, else what the last "the answer is" says, else what follows the last ``####``.

    What stands before ``</think>`` is no answer.  "The answer is" reaches to the end of its line or sentence.
    """
    text = text.rpartition("</think>")[2]
    boxed = last_boxed(text)
    if boxed is not None:
        return boxed
    phrases = list(_PHRASE.finditer(text))
    if phrases:
        line = text[phrases[-1].end() :].partition("\n")[0]
        sentence = re.split(r"\.(?:\s|$)", line, maxsplit=1)[0]
        return sentence.strip(" \t.*$:") or None
    hashes = _HASHES.findall(text)
    return hashes[-1].strip(" \t.*$") or None if hashes else None


def equal_answers(gold: str, answer: str) -> bool:
    """Whether two mathematical answers mean the same; safe in any thread.

    Texts, integers, decimals and fractions are compared directly.  The rest goes to `math_verify`, which
    has no time limit off the main thread; so expressions over `LONGEST_ANSWER` characters, and powers and
    factorials too large to work out, are compared as texts only.  (A deadline in a process of its own is
    to come; until then a short but costly expression can take long.)

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
    if any(len(text) > LONGEST_ANSWER or _EXPLOSIVE.search(text) for text in (left, right)):
        return False
    return _verified(gold, answer)


def _plain(text: str) -> str:
    """The text without what carries no meaning: dollars, spacing, sizes, text commands, a final stop."""
    text = text.strip().strip("$").strip()
    text = re.sub(r"\\(?:left|right|[,!;: ]|quad|displaystyle)(?![a-zA-Z])", "", text)
    text = re.sub(r"\\[dt]frac", r"\\frac", text)
    text = re.sub(r"\\(?:text|mbox|textbf|mathrm)\s*\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"\^\s*(?:\\circ|\{\\circ\})", "", text).replace("\\$", "").replace("\\%", "").rstrip("%")
    text = re.sub(r"\s+", "", text).rstrip(".")
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


def _verified(gold: str, answer: str) -> bool:
    try:
        import math_verify
    except ImportError as error:
        raise MissingExtraError("comparing these answers needs math-verify: pip install 'ensemblehub[eval]'") from error

    def parsed(text: str) -> Any:
        return math_verify.parse(f"\\boxed{{{text.strip().strip('$')}}}", parsing_timeout=None)

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns of the missing time limit at every call
    return bool(math_verify.verify(parsed(gold), parsed(answer), timeout_seconds=None))
