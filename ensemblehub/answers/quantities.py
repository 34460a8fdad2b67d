"""Numbers, units, bases and words in an answer, as `notation.cleaned` leaves it.

Reads text; knows no algebra and decides no equality.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction

from ensemblehub.answers.structure import THOUSANDS

_UNITS = {
    "°": "degree",
    "deg": "degree",
    "%": "percent",
    "pct": "percent",
    "$": "dollar",
    "usd": "dollar",
    "buck": "dollar",
    "¢": "cent",
    "in": "inch",
    "inches": "inch",
    "ft": "foot",
    "feet": "foot",
    "mi": "mile",
    "yd": "yard",
    "mm": "millimeter",
    "cm": "centimeter",
    "m": "meter",
    "km": "kilometer",
    "metre": "meter",
    "kilometre": "kilometer",
    "centimetre": "centimeter",
    "sec": "second",
    "s": "second",
    "min": "minute",
    "h": "hour",
    "hr": "hour",
    "g": "gram",
    "kg": "kilogram",
    "lb": "pound",
    "oz": "ounce",
    "mph": "mile per hour",
    "l": "liter",
    "ml": "milliliter",
    "rad": "radian",
    "sq": "square",
    "euros": "euro",
    "€": "euro",
    "£": "pound",
    "men": "man",
    "women": "woman",
    "people": "person",
    "children": "child",
}
_KNOWN = {
    *_UNITS.values(),
    "unit",
    "day",
    "week",
    "month",
    "year",
    "mile",
    "dollar",
    "cent",
    "percent",
    "degree",
    "radian",
    "cubic",
    "square",
    "pound",
    "euro",
    "way",
    "time",
    "hour",
    "minute",
    "second",
    "celsius",
    "fahrenheit",
} - {"mile per hour"} | {"mile", "hour"}
_FILL = {
    "of",
    "in",
    "the",
    "a",
    "an",
    "at",
    "on",
    "each",
    "every",
    "all",
    "total",
    "altogether",
    "per",
    "for",
    "unit",
}
_POWER = r"(?:\s*\^\s*\{?\s*(-?[1-3])\s*\}?)?"
_TEXT_UNIT = re.compile(
    rf"(.*?)\s*(?:\\text\{{([^{{}}]*)\}}{_POWER}|(?<=[\d}}\s)])([A-Za-z][A-Za-z /',-]+){_POWER})\s*",
    re.DOTALL,
)
_SCALES = {"C": ("celsius",), "F": ("fahrenheit",)}
_LOOSE = {
    "dollar",
    "cent",
    "euro",
    "pound",
    "degree",
    "time",
    "way",
}  # "18 dollars" is also "18 dollars per day"
_NO_UNIT = frozenset(
    (
        *(
            "or",
            "and",
            "not",
            "no",
            "if",
            "mod",
            "more",
            "less",
            "fewer",
            "than",
            "least",
            "most",
            "over",
            "out",
            "to",
        ),
        *("plus", "minus", "dozen", "half", "about", "approximately"),
    )
)
FLOAT_ERROR = Fraction(1, 10**14)  # relative, of floating-point numbers
_DIMENSIONS = {"2": "square", "3": "cubic"}
_SIGN_UNIT = re.compile(r"(.*?)\s*(°|%|¢|€|£)\s*([CF])?", re.DOTALL)
_MONEY = re.compile(r"([+-]?)\s*(?:\\\$|\$|€|£|US\\?\$)\s*(.+)", re.DOTALL)


def unit_apart(text: str) -> tuple[str, frozenset[str]]:
    r"""The text without its unit, and the words of the unit in one form (``5 \text{ cm}^2``: 5,
    centimeter).
    """
    units: set[str] = set()
    if money := _MONEY.fullmatch(text):
        text = money[1] + money[2]
        units.add("dollar" if "$" in money[0] else "euro" if "€" in money[0] else "pound")
    for _ in range(3):
        if sign := _SIGN_UNIT.fullmatch(text):
            text = sign[1]
            units |= {_UNITS.get(sign[2], sign[2]), *_SCALES.get(sign[3] or "", ())}
        elif (found := _TEXT_UNIT.fullmatch(text)) and (words := _unit_words(found)):
            text = found[1]
            units |= words
        else:
            break
    return text.strip(), frozenset(units)


def radians(text: str) -> str:
    """Degrees of an angle in a trigonometric function as radians."""
    if not re.search(r"\\(?:sin|cos|tan|cot|sec|csc)(?![a-z])", text):
        return text
    return re.sub(r"(\d+(?:\.\d+)?)\s*°", r"(\\frac{\1 \\pi}{180})", text)


def without(text: str, units: frozenset[str]) -> str:
    """Without letters at its end that are one of these units: 5m,
    where the other answer says that m is one.
    """
    found = re.fullmatch(r"(.*\d)\s*([A-Za-z]+)(?:\^\{?[23]\}?)?", text)
    unit = _singular(found[2]) if found else ""
    return found[1] if found and unit in units and not conflict(frozenset({unit}), units) else text


_FACTORS = {
    "percent": Fraction(1, 100),
    "hundred": Fraction(100),
    "thousand": Fraction(1000),
    "million": Fraction(10**6),
    "billion": Fraction(10**9),
    "trillion": Fraction(10**12),
}


def factor(units: frozenset[str]) -> Fraction:
    """Return the factor that these words stand for: 1/100 for "percent", 1 without such a word."""
    return math.prod((_FACTORS[word] for word in units & _FACTORS.keys()), start=Fraction(1))


def conflict(unit: frozenset[str], other: frozenset[str]) -> bool:
    """Return whether two units contradict each other.

    None, and "units", go with any.  Measures must be the same, but for a rate of money; other words have to
    share one ("marbles" and "blue marbles").
    """
    unit, other = unit - _FILL, other - _FILL
    known, given = unit & _KNOWN, other & _KNOWN
    if known and given:
        return known != given and not (known & given & _LOOSE and (known <= given or given <= known))
    return bool(unit and other) and not unit & other


def _unit_words(found: re.Match[str]) -> set[str]:
    """The words of a unit and its power: any that are marked as text,
    and bare ones that are no product of letters.
    """
    number = found[1]
    marked = found[2]
    bare = found[4]
    words = re.findall(r"[A-Za-z]+", marked if marked is not None else bare)
    if _NO_UNIT & set(words):
        return set()
    if not {"sq", "square", "cubic", "cu"} & set(words) and len(words) > 1:
        words = [word for word in words if word not in _FILL]  # "in all" is no inch
    singular = {part for word in words for part in _singular(word).split()} - {"per"}
    if not re.search(r"[\d\\]", number) and (not number.strip() or marked is None or not singular <= _KNOWN):
        return set()
    if marked is None and not all(
        _singular(word) in _KNOWN or word in _UNITS or len(word) > 3 for word in words
    ):
        return set()
    if bare and re.search(r"sqrt|frac|sin|cos|tan|log|infty|theta", bare):
        return set()
    power = _DIMENSIONS.get(found[3] or found[5] or "")
    return singular | {power} if power and singular else singular


def _singular(word: str) -> str:
    word = word.lower()
    if word in _UNITS:
        return _UNITS[word]
    short = word[:-1] if word.endswith("s") and len(word) > 2 else word
    return _UNITS.get(short, short)


_DECIMAL = r"(?:\d+(?:\.\d*)?|\.\d+)"
_POWER_OF_TEN = r"10\s*(?:\^|\*\*)\s*(?:\{\s*([+-]?\s*\d{1,3})\s*\}|([+-]?\d{1,3}))"
_NUMBER = re.compile(
    rf"([+-]?)\s*({_DECIMAL})(?:[eE]([+-]?\d{{1,3}})|\s*(?:\\times|\\cdot|\*|x)\s*{_POWER_OF_TEN})?"
)
_REPEATING = re.compile(r"([+-]?)(\d*)\.(\d*)\\overline\s*\{(\d+)\}")
_TEN = re.compile(rf"([+-]?)\s*{_POWER_OF_TEN}")
_RATIO = re.compile(
    rf"([+-]?)\s*(?:\(?\s*([+-]?\s*{_DECIMAL})\s*/\s*([+-]?{_DECIMAL})\s*\)?|\\frac\s*\{{\s*([+-]?\s*{_DECIMAL})\s*\}}\s*\{{\s*([+-]?\s*{_DECIMAL})\s*\}})"
)
_MIXED = re.compile(r"([+-]?)\s*(\d+)\s*(?:\\frac\s*\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\}|\s(\d+)\s*/\s*(\d+))")
_SPACED = re.compile(r"[+-]?\d{1,3}(?: \d{3})+(?:\.\d+)?")
_WORDS = (
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
    "twenty",
)


def number(text: str) -> Fraction | None:
    """The exact value of an integer, decimal, fraction, mixed or scientific number,
    or of a word up to twenty.
    """
    text = re.sub(r"\\text\{([a-z]+)\}", r"\1", text.strip())
    if len(text) > 400:
        return None
    if text.lower() in _WORDS:
        return Fraction(_WORDS.index(text.lower()))
    if THOUSANDS.fullmatch(text) or _SPACED.fullmatch(text):
        text = text.replace(",", "").replace(" ", "")
    if found := _REPEATING.fullmatch(text):
        once, period = found[2] + found[3], found[4]
        scale: int = 10 ** len(found[3])
        return _signed(found[1]) * (int(once or "0") + Fraction(int(period), 10 ** len(period) - 1)) / scale
    if found := _NUMBER.fullmatch(text):
        exponent = found[3] or found[4] or found[5] or "0"
        return _signed(found[1]) * Fraction(found[2]) * _power_of_ten(exponent)
    if found := _TEN.fullmatch(text):
        return _signed(found[1]) * _power_of_ten(found[2] or found[3])
    if found := _MIXED.fullmatch(text):
        top, bottom = int(found[3] or found[5]), int(found[4] or found[6])
        return _signed(found[1]) * (int(found[2]) + Fraction(top, bottom)) if bottom else None
    if found := _RATIO.fullmatch(text):
        top_text, bottom_text = (found[2], found[3]) if found[2] else (found[4], found[5])
        above, below = Fraction(top_text.replace(" ", "")), Fraction(bottom_text.replace(" ", ""))
        return _signed(found[1]) * above / below if below else None
    return None


def _power_of_ten(exponent: str) -> Fraction:
    value = int(exponent.replace(" ", ""))
    return Fraction(10**value) if value >= 0 else Fraction(1, 10**-value)


def _signed(sign: str) -> int:
    return -1 if sign == "-" else 1


def decimals(text: str) -> int:
    """Return the number of decimal places of a decimal; 0 for other texts."""
    found = re.fullmatch(r"[+-]?\d*\.(\d+)", text.strip())
    return len(found[1]) if found else 0


def rounding(text: str) -> Fraction | None:
    """Half a unit of the last digit of a decimal that is long enough to stand for the value that it is
    rounded from.

    That takes six digits after the point and five that count, or nine that count: 0.333333, but not 0.000003.
    """
    if is_float(text):
        return abs(number(text) or Fraction(0)) * FLOAT_ERROR
    after, counting = decimals(text), _counting(text)
    long_enough = (after >= 6 and counting >= 5) or (after >= 1 and counting >= 9)
    return Fraction(1, 2 * 10**after) if long_enough else None


_FLOAT = re.compile(r"[+-]?(\d*\.\d+)(?:\s*\\times\s*10\^\{[+-]?\d{1,3}\})?")


def is_float(text: str) -> bool:
    """Whether a decimal has as many digits as a computer's floating-point number: 0.30000000000000004."""
    found = _FLOAT.fullmatch(text.strip())
    return found is not None and _counting(found[1]) >= 15


def _counting(text: str) -> int:
    """The digits that count: without zeros in front."""
    return len(re.sub(r"\D", "", text).lstrip("0"))


_BASED = re.compile(
    r"(?:\\text\s*\{|\()?\s*([0-9A-Fa-f]+)\s*[})]?\s*_\s*\{?\s*(?:\\text\{\s*)?(\d+|[a-z]+)\s*\}?\s*\}?"
)


def based(text: str) -> tuple[str, int] | None:
    """The digits and the base of ``52_8``; None where no base is written."""
    found = _BASED.fullmatch(text)
    if not found or not (found[2].isdecimal() or found[2] in _WORDS):
        return None
    base = int(found[2]) if found[2].isdecimal() else _WORDS.index(found[2])
    fits = 2 <= base <= 36 and all(int(digit, 16) < base for digit in found[1])
    return (found[1].upper(), base) if fits else None


def words(text: str) -> str | None:
    r"""The words of an answer that is words (``\text{even}``, ``East``) in lower case;
    None if it is mathematics.
    """
    marked, outside = (re.sub(r"\\text\s*\{([^{}]*)\}", by, text) for by in (r" \1 ", " "))
    if marked != text and re.search(r"(?<![a-zA-Z'])[a-zA-Z](?![a-zA-Z'])", outside):
        return None
    found = re.findall(r"[A-Za-z']+", marked)
    if not re.fullmatch(r"(?:[A-Za-z' .,!]|(?<=[A-Za-z])-(?=[A-Za-z]))+", marked) or (
        marked == text and max(map(len, found), default=0) < 4
    ):
        return None
    return re.sub(r"^(?:an?|the) ", "", " ".join(found).lower()) or None


def spelled(text: str) -> str:
    """Words and mathematics in one spelling: without spaces, braces and the mark of text;
    signs stay as they are.
    """
    text = re.sub(r"(?<=[a-zA-Z]{2})-(?=[a-zA-Z]{2})", "", text)  # two-thirds
    text = re.sub(r"\\text(?![a-zA-Z])|[\s{}'\"~!]|[.,;:](?!\d)", "", text)
    return re.sub(r"[A-Za-z]{2,}", lambda found: found[0].lower(), text)
