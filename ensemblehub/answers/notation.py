r"""What a written answer says: LaTeX without its noise, lists, brackets, matrices, inequalities.

Reads notation; knows no algebra and decides no equality.  Numbers, units and words are in `quantities.py`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

OPEN, CLOSE = "([{", ")]}"

# -- noise -------------------------------------------------------------------------------------------------

_UNICODE = {
    "−": "-",
    "–": "-",
    "×": r"\times ",
    "·": r"\cdot ",
    "⋅": r"\cdot ",
    "÷": "/",
    "π": r"\pi ",
    "θ": r"\theta ",
    "∞": r"\infty ",
    "≤": r"\le ",
    "≥": r"\ge ",
    "≠": r"\ne ",
    "±": r"\pm ",
    "∪": r"\cup ",
    "∩": r"\cap ",
    "∈": r"\in ",
    "∅": r"\emptyset ",
    "√": r"\sqrt",
    "²": "^2",
    "³": "^3",
    "½": r"\frac{1}{2}",
    "¼": r"\frac{1}{4}",
    "¾": r"\frac{3}{4}",
    "⅓": r"\frac{1}{3}",
    "⅔": r"\frac{2}{3}",
    "\u00a0": " ",
    "\u202f": " ",
    "\u2009": " ",
    "’": "'",
    "ℝ": r"\mathbb{R}",
    "º": "°",
    "≈": r"\approx ",
    "∙": r"\cdot ",
    "•": r"\cdot ",
    "⁄": "/",
    "∓": r"\mp ",
    "ⅈ": "i",
    "ⅇ": "e",
    "⟨": r"\langle ",
    "⟩": r"\rangle ",
    "∛": r"\sqrt[3]",
    "\u2007": " ",
    "\u200b": "",
    "\ufeff": "",
    "∖": r"\setminus ",
    "α": r"\alpha ",
    "β": r"\beta ",
    "φ": r"\phi ",
    "λ": r"\lambda ",
    "∠": r"\angle ",
    "∣": "|",
}
_REPLACED = [
    (re.compile(pattern), by)
    for pattern, by in (
        (r"(?<=\d)(?:,\s*\\!\s*|\{,\})(?=\d)", ""),  # 10,\!080 and 1{,}000
        (r"(?<=\d)\\[,;: ](?=\d{3}(?!\d))", ""),  # 1\,000
        (r"\\(?:left|right|[bB]igg?[lrm]?|displaystyle|textstyle|limits|rm|bf|it)(?![a-zA-Z])\.?", ""),
        (r"(?:(?<!\\)\\(?:[,!;:> ]|q?quad(?![a-zA-Z])|[hv]space\{[^{}]*\}|h?phantom\{[^{}]*\})|~|\s)+", " "),
        (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
        (r"\^\s*\{?\s*\\circ\s*\}?|\\degrees?(?![a-zA-Z])|\^\s*\{?\s*°\s*\}?", "°"),
        (r"\\%", "%"),
        (r"\\le(?:q|qslant)?(?![a-zA-Z])|<=", r"\\le "),
        (r"\\ge(?:q|qslant)?(?![a-zA-Z])|>=", r"\\ge "),
        (r"\\lt(?![a-zA-Z])", "<"),
        (r"\\gt(?![a-zA-Z])", ">"),
        (r"\\neq?(?![a-zA-Z])", r"\\ne "),
        (r"\\lbrace(?![a-zA-Z])", r"\\{"),
        (r"\\rbrace(?![a-zA-Z])", r"\\}"),
        (r"\\(?:varnothing|emptyset)(?![a-zA-Z])|\\\{\s*\\\}", r"\\emptyset"),
        (r"(?<![a-zA-Z\\])[iI]nfinity", r"\\infty"),
        (r"(?<![a-zA-Z\\])\+\s*\\infty", r"\\infty"),
        (r"\\(?:text)?color\s*\{[a-z]+\}|\\underline(?=\s*\{)", ""),
        (r"\\langle(?![a-zA-Z])", "("),
        (r"\\rangle(?![a-zA-Z])", ")"),
        (r"\\(?:mathbb|Bbb)\s*\{?\s*R\s*\}?", r"(-\\infty,\\infty)"),
        (r"\\(?:mathbb|Bbb)\s*\{?\s*([A-Z])\s*\}?", r"\\mathbb{\1}"),
        (r"(?<=\d)\s*\^?\s*\{?\s*(?:\\text\{\s*)?(?:st|nd|rd|th)\b\s*\}?\s*\}?", ""),  # 3rd, 3^{\text{rd}}
        (r"\\[lc]?dots[bcmio]?(?![a-zA-Z])|…|\.{3,}", r"\\ldots "),
        (r"\\text\{\s*\}|\s+", " "),
    )
]
_FRACTION = re.compile(
    r"\\frac\s*(?!\s*\{[^{}]*\}\s*\{)(\{[^{}]*\}|\d|[a-zA-Z]|\\[a-zA-Z]+)\s*(\{|\d|[a-zA-Z]|\\[a-zA-Z]+)"
)
_ROOT = re.compile(r"\\sqrt\s*(\d+(?:\.\d+)?|[a-zA-Z]|\\pi(?![a-z]))")
_MATHS = re.compile(r"^(?:\$+|\\\(|\\\[)(.*?)(?:\$+|\\\)|\\\])$", re.DOTALL)
_INLINE = re.compile(
    r"\$([^$\s](?:[^$]*[^$\s])?)\$(?!\d)|\\\((.{1,400}?)\\\)"
)  # as Pandoc tells formulas from money
_BOLD = re.compile(r"(?<![\w)\]}*])\*\*(?=[^\s*])(.+?)(?<=[^\s*])\*\*(?![\w(*])")


def cleaned(text: str) -> str:
    """An answer without what carries no meaning: dollars, sizes, spacing, a final stop;
    one name for each command.
    """
    text = _without_stop(text)
    while (inside := _MATHS.match(text)) and "$" not in inside[1].replace("\\$", ""):
        text = inside[1].strip()
    text = _BOLD.sub(r"\1", _INLINE.sub(lambda found: f" {found[1] or found[2]} ", text))
    for character, by in _UNICODE.items():
        text = text.replace(character, by)
    text = _STYLED.sub(
        lambda found: unicodedata.normalize("NFKC", found[0]), _SUPERSCRIPTS.sub(_raised, text)
    )
    text = upright(plain(text))
    for pattern, by in _REPLACED:
        text = pattern.sub(by, text)
    for _ in range(3):  # braces that only group
        text = group.inside if (group := bracketed(text, _GROUP)) and group.inside else text
    text = _FRACTION.sub(_braced_fraction, text)
    text = _ROOT.sub(r"\\sqrt{\1}", text)
    return _without_stop(text.strip(" ,;:"))


def _without_stop(text: str) -> str:
    return re.sub(r"(?<!\.)\.\s*$", "", text.strip()).strip()


def _braced_fraction(found: re.Match[str]) -> str:
    r"""``\frac43`` and ``\frac9{19}`` with all their braces."""
    top, bottom = found[1], found[2]
    top = top if top.startswith("{") else f"{{{top}}}"
    return rf"\frac{top}{bottom}" if bottom == "{" else rf"\frac{top}{{{bottom}}}"


def squeezed(text: str) -> str:
    """Without spaces, but for those that end a command or stand between digits."""
    kept = re.sub(r"(\\[a-zA-Z]+)\s+(?=[a-zA-Z])|(?<=\d)\s+(?=\d)", lambda found: f"{found[1] or ''}\0", text)
    return re.sub(r"\s+", "", kept).replace("\0", " ")


# -- plain-text mathematics --------------------------------------------------------------------------------

_DIGITS_ABOVE = "⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺"
_STYLED = re.compile("[\U0001d400-\U0001d7ff\uff01-\uff5e]")  # letters and digits of other fonts and widths
_SUPERSCRIPTS = re.compile(f"[{_DIGITS_ABOVE}]+")
_PLAIN: list[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]] = [
    (re.compile(pattern), by)
    for pattern, by in (
        (r"(?<=[\w)\]}])\s*\*\*\s*(?=[\w({\\+-])", "^"),  # x**2
        (r"(?<![a-zA-Z\\])cbrt\s*(?=[\d(])|\\cbrt(?![a-zA-Z])", r"\\sqrt[3]"),
        (r"(?<!\\)sqrt(?=\s*[\d({\[\\a-z])", r"\\sqrt"),
        (r"(?<![a-zA-Z\\])abs\(([^()]*)\)", r"|\1|"),
        (r"(?<![a-zA-Z\\])frac(?=\s*\{)", r"\\frac"),
        (r"(?<![a-zA-Z\\])Pi(?![a-zA-Z])", "pi"),
        (r"(?<![a-zA-Z\\])(pi|theta|alpha|beta)(?![a-zA-Z])", r"\\\1 "),
        (r"(?<![\w\\.])(\d*\.?\d+)[eE]([+-]?\d{1,3})(?![\w.])", r"\1\\times 10^{\2}"),
        (r"(?<![a-zA-Z\\])pi(?=(?:sqrt|\\)|[a-z](?![a-z]))", r"\\pi "),
        (
            r"(?<![a-zA-Z\\])(arcsin|arccos|arctan|sinh|cosh|tanh|sin|cos|tan|cot|sec|csc|log|ln|exp)(?=\s*[\d(^_\\])",
            r"\\\1",
        ),
        (r"(?<![a-zA-Z\\])(sin|cos|tan|cot|sec|csc|log|ln|exp)(?=\s+[a-z](?![a-zA-Z]))", r"\\\1"),
        (r"\+\s*/?\s*-(?=\s*[\d\\(a-z])", r"\\pm "),
        (r"(?<![a-zA-Z\\])(?:inf|oo)(?![a-zA-Z])", r"\\infty "),
        (r"!=", r"\\ne "),
        (r"\\imath(?![a-zA-Z])", "i"),
        (r"(?<![a-zA-Z])([aApP])\.\s?([mM])(?![a-zA-Z])\.?", r"\1\2"),  # 10:30 a.m.
        (
            r"\^\s*([+-]?\d{2,})(?![\d.])|\^\s*([+-]\s*\d)(?!\d)",
            lambda found: f"^{{{found[1] or found[2]}}}",
        ),  # 2^10
        (r"\{\s*([^{}]*?)\s*\\choose\s*([^{}]*?)\s*\}", r"\\binom{\1}{\2}"),
    )
]


def plain(text: str) -> str:
    r"""Plain-text mathematics as LaTeX: ``sqrt(3)/2``, ``2pi``, ``x**2``, ``e^(2x)``."""
    for pattern, by in _PLAIN:
        text = pattern.sub(by, text)
    return _braced(_braced(text, re.compile(r"\\sqrt(?:\[\d+\])?\s*(?=\()")), re.compile(r"\^\s*(?=\()"))


def _braced(text: str, before: re.Pattern[str]) -> str:
    """With braces for the brackets that follow what matches; those that do not close stay."""
    parts, start = list[str](), 0
    for found in before.finditer(text):
        if found.start() >= start and (end := _closing(text, found.end())):
            parts += [text[start : found.end()], "{", _braced(text[found.end() + 1 : end], before), "}"]
            start = end + 1
    return "".join(parts) + text[start:]


def _closing(text: str, start: int) -> int:
    """Where the bracket at `start` closes; 0 if it does not."""
    depth = 0
    for position in range(start, len(text)):
        depth += (text[position] in OPEN) - (text[position] in CLOSE)
        if depth == 0:
            return position
    return 0


def _raised(found: re.Match[str]) -> str:
    digits = "".join("0123456789-+"[_DIGITS_ABOVE.index(character)] for character in found[0])
    return f"^{{{digits}}}"


# -- upright letters ---------------------------------------------------------------------------------------

_FONT = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt|normal|up)?|[mh]box|math(?:rm|bf|it|sf|tt|normal|up)|boldsymbol|bm|operatorname\*?|"
    r"(?:rm|bf|it)(?=\s*\{))(?![a-zA-Z])\s*(?:(\\[a-zA-Z]+|[a-zA-Z\d](?![a-zA-Z]))|(?=\{))"
)
_FUNCTION = re.compile(
    r"(?:arc)?(?:sin|cos|tan|cot|sec|csc)|(?:sin|cos|tan)h|log|ln|lg|exp|gcd|lcm|max|min|det|deg|arg"
)
_MATHS_INSIDE = re.compile(r"[\\^=+*/<>|]|[-−]\s*[\d\\]|^\s*[-−]|_")
_QUANTITY = re.compile(
    r"\s*([-+]?\s*\(?\\?[$€£]?[\d.,/\s]*\d[\d.,/\s]*\)?\s*)(%?°?)\s*([A-Za-z][A-Za-z .'/-]*)?"
)
_TWO_WORDS = re.compile(r"[a-zA-Z]{2,}\s+[a-zA-Z]{2,}|^(?:and|or)\b")
_AFTER_NUMBER = re.compile(r"[\d}]\s*(?:\\[,;:! ]\s*|~)*$")
_UNIT_LETTERS = "mshgLlJNWVKACF"


def upright(text: str) -> str:
    r"""Letters and mathematics in ``\text``, ``\mathrm``, ``\operatorname`` ... as what they are; words as
    ``\text``.

    A number and its unit come apart (``\text{18 dollars}``: ``18 \text{dollars}``); e, i and d are the
    constants.
    """
    parts, start = list[str](), 0
    for found in _FONT.finditer(text):
        end = found.end() if found[1] else _closing(text, found.end()) + 1
        if found.start() >= start and end > 1:
            inside = found[1] or text[found.end() + 1 : end - 1]
            parts += [text[start : found.start()], _upright(inside, text[: found.start()])]
            start = end
    return "".join(parts) + text[start:]


def _upright(inside: str, before: str) -> str:
    inside = re.sub(r"(?<!\\)\\[,;: ](?=\s*[a-zA-Z])|~", " ", inside)  # \text{18\,dollars}
    inside = upright(inside) if "\\" in inside else inside
    word = inside.strip()
    if len(word) == 1 and word.isalpha():
        return (
            rf"\text{{{inside}}}"
            if word in _UNIT_LETTERS and _AFTER_NUMBER.search(before[-12:])
            else f" {word} "
        )
    if _FUNCTION.fullmatch(word):
        return rf"\{word} "
    if re.fullmatch(r"\(?[A-Z]\)?", word):
        return word
    if re.search(r"\d", word) and (quantity := _QUANTITY.fullmatch(inside)):
        unit = rf"\text{{{quantity[3]}}}" if quantity[3] else ""
        return f" {quantity[1]}{quantity[2]}{unit} "
    maths = re.search(r"[{}]|\\[a-zA-Z]|^[^a-zA-Z]+$", inside) or (
        _MATHS_INSIDE.search(word) and not _TWO_WORDS.search(word)
    )
    return f" {inside} " if maths else rf"\text{{{inside}}}"


# -- structure ---------------------------------------------------------------------------------------------


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


_GROUPED = re.compile(r"(?<![\d,.])\d{1,3}(?:,\d{3})+(?![\d,])")


def elements(text: str, inside: bool = False) -> list[str]:
    """The parts of a list: by comma, semicolon, "and" and "or"; one part where it is none.

    `1,200` is one number, but two `inside` brackets.
    """
    if not inside:
        text = _GROUPED.sub(lambda found: found[0].replace(",", ""), text)
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
_GROUP = re.compile(r"(\{)(.*?)(\})", re.DOTALL)


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
    """The cells of a matrix, row by row; None where it is none."""
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
    """Whether it has an equals sign."""
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
