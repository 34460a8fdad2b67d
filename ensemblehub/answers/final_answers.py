r"""Where a text states its final answer: boxes, "the answer is", "A:", `####`, `<answer>`; the last mark
wins.

Finds text; what it means is in `answers.py`.  Every search takes time proportional to the length of the text.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

LONGEST_STATEMENT = 2000  # characters after a mark in which its answer is looked for
MOST_MARKS = 200  # marks of one kind that are looked at, from the last one back


@dataclass(frozen=True)
class Mark:
    """An answer as it is written, and where in the text its mark begins."""

    start: int
    answer: str


def final_answer(text: str) -> str | None:
    r"""The answer that the text marks last, or None if it marks none.

    Marks are ``\boxed{...}`` (several that are joined by commas, "and" or "or" are one answer), "the answer
    is" and its like, "Answer:", a line that begins with "A:", "####" and ``<answer>``.  Text before
    ``</think>`` is ignored.
    """
    text = text.rpartition("</think>")[2]
    marks = [mark for find in (_boxed, _phrased, _labelled, _hashed, _tagged) if (mark := find(text))]
    return max(marks, key=lambda mark: mark.start).answer if marks else None


# -- boxes -------------------------------------------------------------------------------------------------

_BRACE = re.compile(r"\\(?:boxed|fbox|framebox)(?![a-zA-Z])\s*\{?|\\.|[{}]", re.DOTALL)
_UNBRACED = re.compile(r"(?:[^$\n\\]|\\[^)\]]){1,60}")
_SPACE = r"(?:[\s$]|\\[()\[\],;: ]|\\q?quad(?![a-z]))*"
_UNIT = (
    r"(?:\^?\{?\\circ\}?|\\?%|°|\\(?:text|mbox|mathrm)\s*\{[^{}]*\}(?:\^\{?[23]\}?)?|"
    r"(?:square |cubic )?(?:units?|degrees?|inch(?:es)?|feet|ft|[cmk]?m|meters?|miles?|dollars?|cents?|seconds?|"
    r"minutes?|hours?|days?|years?|points?|percent))"
)
_WORD = r"(?:\\(?:text|mbox|mathrm|textrm)\s*\{\s*)?(?:or|and)\b\s*\}?"
_NAME = r"(?:\\?[A-Za-z]+(?:_\{?\w{1,9}\}?)?(?:\([a-z]\))?|\([a-z](?:,\s?[a-z]){1,3}\))"
_JOINT = re.compile(
    rf"{_SPACE}(?:{_UNIT}{_SPACE}){{0,2}}(?:,{_SPACE}{_WORD}|,|;|{_WORD}){_SPACE}(?:({_NAME})\s*=)?{_SPACE}"
)
_NAMED = re.compile(rf"(?:^|\$|\\[(\[]|[a-z,.:;]\s)\s*({_NAME})\s*=[\s$]*$")


@dataclass
class _Box:
    start: int
    inside: int
    end: int
    after: int


def last_boxed(text: str) -> str | None:
    r"""The content of the last complete ``\boxed{...}``, ``\fbox`` or ``\framebox``, braces balanced; or
    None.

    Without braces (``\boxed 7``) it is what follows up to a dollar or the end of the line.  Boxes that are
    joined by commas, "and" or "or" are one list (``$y=\boxed{-7}$ or $y=\boxed{7}$``: ``-7, 7``).
    """
    boxes = _boxes(text)
    return _joined(text, boxes) if boxes else None


def _boxed(text: str) -> Mark | None:
    boxes = _boxes(text)
    while boxes and boxes[-1].inside == boxes[-1].end:
        boxes.pop()  # the form, not an answer: "in \boxed{}"
    return Mark(boxes[-1].start, _joined(text, boxes)) if boxes else None


def _boxes(text: str) -> list[_Box]:
    """The complete boxes, in the order in which they begin."""
    boxes, opened = list[_Box](), list[_Box | None]()
    if not (first := re.search(r"\\(?:boxed|fbox|framebox)", text)):
        return []
    for token in _BRACE.finditer(text, first.start()):
        written = token[0]
        if written == "}":
            if opened and (box := opened.pop()):
                box.end, box.after = token.start(), token.end()
        elif written[-1] == "{" and written[:2] != r"\{":
            opened.append(_Box(token.start(), token.end(), -1, -1) if len(written) > 1 else None)
            if opened[-1]:
                boxes.append(opened[-1])
        elif len(written) > 2 and (content := _UNBRACED.match(text, token.end())):
            end = content.end() - content[0].endswith(".")
            boxes.append(_Box(token.start(), content.start(), end, content.end()))
    return [_trimmed(text, box) for box in boxes if box.end >= 0]


def _trimmed(text: str, box: _Box) -> _Box:
    """Without the spaces at both ends of its content."""
    while box.inside < box.end and text[box.inside].isspace():
        box.inside += 1
    while box.end > box.inside and text[box.end - 1].isspace():
        box.end -= 1
    return box


def _joined(text: str, boxes: list[_Box]) -> str:
    """The content of the last box, with those of the boxes that are joined to it."""
    first = len(boxes) - 1
    while first and len(boxes) - first < MOST_MARKS and _joint(text, boxes[first - 1], boxes[first]):
        first -= 1
    group = boxes[first:]
    contents = [text[box.inside : box.end] for box in group]
    names = [_name(text, box) for box in group]
    if len(set(names)) > 1:
        contents = [
            f"{name} = {content}" if name else content for name, content in zip(names, contents, strict=True)
        ]
    return ", ".join(dict.fromkeys(contents))


def _joint(text: str, box: _Box, following: _Box) -> bool:
    """Whether two boxes are one answer: "3 or 4", "x = 3, y = 4"; not "x + 2 = 5, x = 3"."""
    if not 0 < following.start - box.after <= 80:
        return False
    joint = _JOINT.fullmatch(text, box.after, following.start)
    return joint is not None and (not joint[1] or bool(_name(text, box)))


def _name(text: str, box: _Box) -> str:
    """What the box is said to be: ``x`` in ``x = \boxed{3}``."""
    found = _NAMED.search(text[max(0, box.start - 30) : box.start])
    return re.sub(r"\s", "", found[1]) if found else ""


# -- phrases and labels ------------------------------------------------------------------------------------

_ASIDE = (
    r"(?:\s{0,4},?\s{0,4}\(?(?:to|in|for|of|from|as|on|at|that|which|therefore|then|thus|rounded)\b"
    r"[^.:=\n<>]{0,80}?)?"
)
_IS = r"(?:is|are|was|equals|becomes|(?:would|will|should|must|has\s+to|turns\s+out\s+to)\s+be|comes\s+out\s+to)"
_ANSWER = re.compile(r"(?<![a-zA-Z])(?:answers?|ans\b\.?|final\s+results?)(?![a-zA-Z])", re.IGNORECASE)
_STATES = re.compile(
    rf"[*_`\"')\]]{{0,4}}"
    rf"(?:{_ASIDE}\s{{1,4}}{_IS}(?![a-zA-Z])(?!\s+not\b|n't)\s*:?|\s{{0,4}}(?:[:：≈→⇒—]|=>?|->|\\Rightarrow))",
    re.IGNORECASE,
)
_HEADING = re.compile(
    r"^[ \t>]{0,8}(?:(?:#{1,6}[ \t]*|\*{2,3}|__)(?:the\s)?(?:final\s)?|(?:the\s)?final\s)(?:answer|result)[*_: \t]*$",
    re.IGNORECASE | re.MULTILINE,
)
_CONDITION = re.compile(r"\b(?:if|whether|unless|suppose|assume|assuming|check|once)\s+(?:[a-z]+\s+){0,4}$")
_LABEL = re.compile(r"^[ \t>*_]{0,8}A[*_]{0,3}:", re.MULTILINE)
_OPTIONS = re.compile(r"[^\n]*\n+[ \t>*_]*B[*_]*:")
_HASHES = re.compile(r"####")
_TAG = re.compile(r"<(?:final_?)?answer>", re.IGNORECASE)


def _phrased(text: str) -> Mark | None:
    found = [mark.end() for mark in _HEADING.finditer(text)]
    for word in list(_ANSWER.finditer(text))[-MOST_MARKS:]:
        states = _STATES.match(text, word.end())
        if states and not _CONDITION.search(text[max(0, word.start() - 40) : word.start()].lower()):
            found.append(states.end())
    return _last(text, sorted(found), _statement)


def _labelled(text: str) -> Mark | None:
    found = [mark.end() for mark in _LABEL.finditer(text)]
    return _last(
        text, [end for end in found[-MOST_MARKS:] if not _OPTIONS.match(text, end, end + 400)], _value
    )


def _hashed(text: str) -> Mark | None:
    return _last(text, [mark.end() for mark in _HASHES.finditer(text)], _value)


def _tagged(text: str) -> Mark | None:
    return _last(text, [mark.end() for mark in _TAG.finditer(text)], _statement)


def _last(text: str, ends: list[int], read: Callable[[str], str | None]) -> Mark | None:
    """The last of these marks that an answer follows."""
    for end in reversed(ends[-MOST_MARKS:]):
        if answer := read(text[end : end + LONGEST_STATEMENT]):
            return Mark(end, answer)
    return None


# -- what follows a mark -----------------------------------------------------------------------------------

_ENDS = re.compile(r"</(?:final_?)?answer>|</s>|<\||\[/?INST\]|<answer>", re.IGNORECASE)
_CALCULATION = re.compile(r"<<[^<>\n]*>>")  # of GSM8K
_LEAD = re.compile(r"(?:[\s:：>≈`\"“_*]|\\approx(?![a-z])|=(?!=))*")
_DISPLAY = re.compile(r"(\$\$)(.+?)\$\$|(\\\[)(.+?)\\\]|(\$)\n(.+?)\$|(```)\w*\n(.+?)```", re.DOTALL)
_SENTENCE = re.compile(r"[.?!]+(?=[*_\"'”)\]]*(?:$|\s+(?![a-z=+<>≈*/\-^\\]|\d)))|[.?](?=\s)")
_REASON = re.compile(
    r"\s+[–—]\s+(?=[a-z]{2,}).*|[;:]\s+(?!and\b|or\b)[a-z]{2,}\b.*|\s+\((?!mod)[a-zA-Z][a-zA-Z\s,-]+\)$|"
    r",?\s+(?:because|since|which)\b.*|,\s+(?:as|so|not|but|where|i\.e\.|given|rather|or about)\b.*"
)
_FILLER = re.compile(
    r"(?:therefore|thus|hence|simply|just|exactly|approximately|about|roughly|around|indeed|clearly|then|now|also|"
    r"equal\s+to|given\s+by|a\s+total\s+of)[,:\s]+|(?:the\s+)?(?:option|choice|number|value|letter)\s+(?=\W{0,3}[A-Z\d]\b)",
    re.IGNORECASE,
)
_VALUE = re.compile(
    r"[-+−±≤≥<>]?\s*(?:[\d.$\\(\[{√π∞€£¥½¼¾⅓⅔]|[A-Za-z](?![A-Za-z'’])|(?:sqrt|pi|US\$)\b)|sqrt|pi\b|[a-z]+\("
)
_STEP = re.compile(r"\d{1,2}[.)]\s+[A-Za-z*]")  # of a numbered heading or list
_ARTICLE = re.compile(r"(?:[Aa]|I)\s+[a-z]{2}")
_ORNAMENT = re.compile("[\u2600-\u27bf\U0001f000-\U0001faff]")
_NO_ANSWER = re.compile(
    r"(?:not|in|as|see|above|below|here|correct|right|wrong|incorrect|valid|invalid|verified|confirmed|consistent|"
    r"reasonable|plausible|unique|helpful|clear|unclear|known|unknown|obvious|final|complete|ready|also|same|the same|"
    r"expected|given|this|what|reached|found|obtained|done|boxed|shown|provided|going|always|still|let|first|"
    r"to|based|of|from|because|since|when|if|for|by|already|indeed|likely|probably|independent|worth)\b",
    re.IGNORECASE,
)
_HEDGED = re.compile(
    r"\b(?:not|no|less|more|fewer|greater|than|least|most|between|range|or|over|under)\b|n't", re.IGNORECASE
)
_STRESSED = re.compile(r"\*\*([^*\n]+)\*\*")
_FORMULA = re.compile(r"\$([^$]+)\$|\\\(((?:(?!\\\)).)+)\\\)")
_AMOUNT = re.compile(
    r"\$[^$\n]{1,200}\$(?!\d)|\\\(.{1,200}?\\\)|[-−]?[$€£]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:/\d+)?(?:\s?%)?"
)


def _statement(text: str) -> str | None:
    """The answer that follows "the answer is": a value, a few words,
    or the one value that a sentence names.
    """
    written, rest = _sentence(text)
    if not written or _NO_ANSWER.match(written):
        return None
    if _VALUE.match(written) and not _ARTICLE.match(written):
        return None if "\n" in text[: text.find(written)] and _STEP.match(text.lstrip()) else written
    if not re.search(r"[\d$\\]", written):
        return written if len(written.split()) <= 6 else None
    return None if rest or _HEDGED.search(written) else _amount(written)


def _value(text: str) -> str | None:
    """The value that follows "A:" or "####"; None where none does."""
    written, _ = _sentence(text)
    plausible = _VALUE.match(written) and not _ARTICLE.match(written)
    return written if plausible and not _STEP.match(text.lstrip(" #*")) else None


def _amount(sentence: str) -> str | None:
    """The one value that a sentence names: what is bold, else the only number or formula."""
    stressed = _STRESSED.findall(sentence)
    if len(stressed) == 1 and re.search(r"\d", stressed[0]):
        return str(stressed[0]).strip()
    amounts = list(dict.fromkeys(_AMOUNT.findall(sentence)))
    return amounts[0] if len(amounts) == 1 else None


def _sentence(text: str) -> tuple[str, str]:
    """The first sentence or display formula, without emphasis, full stop and reasons;
    and the rest of its line.
    """
    text = _CALCULATION.sub("", _ENDS.split(text, maxsplit=1)[0])
    lead = _LEAD.match(text)
    text = text[lead.end() :] if lead else text
    if display := _DISPLAY.match(text):
        return next(part for part in display.groups()[1::2] if part).strip(), ""
    line = text.partition("\n")[0]
    end = _SENTENCE.search(line)
    written, rest = (line[: end.start()], line[end.end() :].strip(" *_")) if end else (line, "")
    written = _bare(_REASON.sub("", _bare(written)))
    while filler := _FILLER.match(written):
        written = _bare(written[filler.end() :])
    formula = _FORMULA.fullmatch(written)
    return (formula[1] or formula[2]).strip() if formula else written, rest


def _bare(text: str) -> str:
    """Without spaces, emphasis, quotes, ornaments, brackets that close nothing, and a final stop."""
    text = _ORNAMENT.sub("", text).strip(' \t`"“”_').rstrip(".:;,! \t")
    while text.startswith("**") and (text.endswith("**") or text.count("**") == 1):
        text = text[2:].removesuffix("**").strip()
    if re.search(r"(?<!\^)\*$", text) and (text.count("**") % 2 or not text.endswith("**")):
        text = text.rstrip("*").rstrip(".:;,! \t")
    for _ in range(3):
        if text.endswith((")", "]", "}")) and len(re.findall(r"[(\[{]", text)) < len(
            re.findall(r"[)\]}]", text)
        ):
            text = text[:-1].strip(' \t`"“”_')
    return text
