r"""What a written answer says: LaTeX without its noise, lists, brackets, matrices, inequalities.

Reads notation; knows no algebra and decides no equality.  Numbers, units and words are in `quantities.py`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

# -- noise -------------------------------------------------------------------------------------------------
from ensemblehub.answers.structure import BRACES, CLOSE, OPEN, bracketed

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
    text = _BOLD.sub(r"\1", undelimited(_without_stop(text)))
    for character, by in _UNICODE.items():
        text = text.replace(character, by)
    text = _STYLED.sub(
        lambda found: unicodedata.normalize("NFKC", found[0]), _SUPERSCRIPTS.sub(_raised, text)
    )
    text = upright(plain(text))
    for pattern, by in _REPLACED:
        text = pattern.sub(by, text)
    for _ in range(3):  # braces that only group
        text = group.inside if (group := bracketed(text, BRACES)) and group.inside else text
    text = _FRACTION.sub(_braced_fraction, text)
    text = _ROOT.sub(r"\\sqrt{\1}", text)
    return _without_stop(text.strip(" ,;:"))


def undelimited(text: str) -> str:
    """A text without the dollars or the backslashed brackets around its formulas."""
    while (inside := _MATHS.match(text)) and "$" not in inside[1].replace("\\$", ""):
        text = inside[1].strip()
    return _INLINE.sub(lambda found: f" {found[1] or found[2]} ", text)


def _without_stop(text: str) -> str:
    return re.sub(r"(?<!\.)\.\s*$", "", text.strip()).strip()


def _braced_fraction(found: re.Match[str]) -> str:
    r"""``\frac43`` and ``\frac9{19}`` with all their braces."""
    top, bottom = found[1], found[2]
    top = top if top.startswith("{") else f"{{{top}}}"
    return rf"\frac{top}{bottom}" if bottom == "{" else rf"\frac{top}{{{bottom}}}"


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
