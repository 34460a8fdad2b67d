"""Final answers of mathematics: finding them in a text, and whether two are equal.

How an answer is written is read in `notation.py` and `quantities.py`; algebra is done by the processes of
`algebra.py` (`math_verify`, extra `eval`).
"""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache

from ensemblehub.answers import algebra, notation, quantities, structure
from ensemblehub.answers.algebra import TooCostlyError
from ensemblehub.answers.final_answers import final_answer, last_boxed

__all__ = ["equal_answers", "final_answer", "last_boxed"]

LONGEST_TEXT = 2000  # characters of an answer that is read at all; longer ones are compared as texts
LONGEST_ANSWER = 400  # characters that are given to algebra
MOST_PARTS = 2000  # comparisons for one pair of answers, of parts with parts
MOST_ALGEBRA = 64  # of them by algebra
MOST_SECONDS = 1.6  # of processor time for those
_RELATION = re.compile(r"[<>]|\\[lgn]e(?![a-z])")
_CONTENT = re.compile(r"[0-9A-Za-z]")
# Powers of very large exponents, towers of powers, and factorials of large numbers: not worth a process's
# time.
_EXPLOSIVE = re.compile(r"\^\s*\{?\s*[+-]?\d{6,}|\d\s*\^\s*\{?\s*\d+\s*\^|\*\*|\d{5,}\s*!|!\s*!")


def equal_answers(gold: str, answer: str) -> bool:
    r"""Whether two mathematical answers mean the same; symmetric, safe in any thread, bounded in time and
    memory.

    Text, exact numbers and structure are compared here; what needs algebra goes to `math_verify` in a process
    of its own (`algebra.py`), where an expression that costs too much counts as different.  The rules:

    - *Value, not form.*  Unreduced fractions, sums not worked out, other orders and factored polynomials are
      equal; so are 0.5, 1/2 and 5e-1.  A decimal stands for its exact value: 0.33 is not 1/3.  From six
      digits after the point on it may be the rounded value of what is no decimal (1.414214 and \sqrt{2}).
    - *Units* may be left out, and are not converted: 5, 5 cm and 5 \text{ cm} are equal, 5 cm and 5 km are
      not.  The same holds for degrees and money.  50\% equals 50 and 0.5.
    - *Names* may be left out: x = 5 and 5 are equal, x = 5 and y = 5 are not.  Equations are equal if one is
      a multiple of the other.
    - *Order* counts in tuples and intervals, not in sets, unions and plain lists ("1, -2", "-2 or 1", 1 \pm
      3).  A plain list equals a tuple in the same order.  Kinds of brackets count: (1,2], [1,2] and \{1,2\}
      are all different. An inequality in one letter equals its interval.  A vector equals the tuple of its
      entries.
    - *Bases* count: 52_8 is not 52, nor 42; base ten may be left out.  So it may in \log.
    - *Words* are equal in upper and lower case; single letters are not.  A choice may carry its text: (C) and
      (C) 12.
    - Nothing equals the empty answer.

    Raises:
        MissingExtraError: `math_verify` is needed and not installed.
        EnsembleHubError: no process for algebra can be started.
    """
    if len(gold) > LONGEST_TEXT or len(answer) > LONGEST_TEXT:
        return gold.strip() == answer.strip()
    try:
        return _equal(gold, answer)
    except (TooCostlyError, RecursionError):
        return False


@lru_cache(maxsize=4096)
def _equal(gold: str, answer: str) -> bool:
    left, right = notation.cleaned(gold), notation.cleaned(answer)
    if not left or not right:
        return False
    return Comparison().same(left, right)


class Comparison:
    """Compares two answers part by part; counts what it asks of algebra."""

    def __init__(self) -> None:
        self.parts, self.algebra = MOST_PARTS, MOST_ALGEBRA
        self.budget = algebra.TimeLimit(MOST_SECONDS)

    def same(self, gold: str, answer: str) -> bool:
        """Whether two cleaned texts mean the same."""
        self.parts -= 1
        if self.parts < 0:
            raise TooCostlyError
        if structure.squeezed(gold) == structure.squeezed(answer):
            return True
        parts = structure.elements(gold), structure.elements(answer)
        if len(parts[0]) > 1 or len(parts[1]) > 1:
            return self._lists(gold, answer, *parts)
        return self._named(gold, answer)

    def _lists(self, gold: str, answer: str, golds: list[str], answers: list[str]) -> bool:
        """At least one is a list without brackets."""
        for text, parts, other in ((gold, golds, answers), (answer, answers, golds)):
            if len(parts) == 1:
                value = structure.assigned(text)[1]
                if any(map(_RELATION.search, other)):
                    parts[:] = structure.split_top(value, r"\\cup(?![a-z])")
                inner = structure.bracketed(value)
                if structure.THOUSANDS.fullmatch(value):
                    parts[:] = value.split(",")
                elif inner and inner.opening == "(" and inner.closing == ")":
                    return self._ordered(structure.elements(inner.inside, inside=True), other)
                elif inner and inner.opening == r"\{":
                    parts[:] = structure.elements(inner.inside, inside=True)
        names = [{structure.assigned(part)[0] for part in parts} for parts in (golds, answers)]
        if {""} in names and max(map(len, names)) > 1:
            return self._ordered(golds, answers)  # x = 1, y = 2 and 1, 2
        return self._unordered(golds, answers)

    def _ordered(self, golds: list[str], answers: list[str]) -> bool:
        return len(golds) == len(answers) and all(map(self.same, golds, answers))

    def _unordered(self, golds: list[str], answers: list[str]) -> bool:
        golds = list(dict.fromkeys(value for part in golds for value in structure.plus_minus(part)))
        answers = list(dict.fromkeys(value for part in answers for value in structure.plus_minus(part)))
        return self._among(golds, answers) and self._among(answers, golds)

    def _among(self, some: list[str], others: list[str]) -> bool:
        """Whether each of some is among the others; what is written alike is found first."""
        return all(
            any(self.same(element, other) for other in sorted(others, key=element.__ne__)) for element in some
        )

    def _named(self, gold: str, answer: str) -> bool:
        """Without the names of what is equal to something; equations."""
        (known, gold_value), (given, answer_value) = structure.assigned(gold), structure.assigned(answer)
        equations = structure.is_equation(gold), structure.is_equation(answer)
        if all(equations) and not (known and given):
            return self._algebra(gold, answer, "relation")
        if known and given and known != given and len(known) == len(given) == 1:
            return False
        if known or given:
            return self.same(gold_value if known else gold, answer_value if given else answer)
        if any(equations):
            chain = gold if equations[0] else answer
            return not re.search("[a-zA-Z]", re.sub(r"\\[a-zA-Z]+", "", chain)) and self._named(
                _last(gold), _last(answer)
            )
        return self._shaped(*(structure.split_top(text, r"\\approx(?![a-z])")[0] for text in (gold, answer)))

    def _shaped(self, gold: str, answer: str) -> bool:
        """Both values of a plus-minus, inequalities, unions, matrices, brackets;
        what is left is one value.
        """
        values = structure.plus_minus(gold), structure.plus_minus(answer)
        if len(values[0]) > 1 or len(values[1]) > 1:
            return self._unordered(*values)
        gold, answer = _intervals(gold, answer)
        unions = structure.split_top(gold, r"\\cup(?![a-z])"), structure.split_top(answer, r"\\cup(?![a-z])")
        if len(unions[0]) > 1 or len(unions[1]) > 1:
            return self._unordered(*unions)
        matrices = structure.matrix(gold), structure.matrix(answer)
        if any(matrices):
            first, second = _rows(matrices[0], gold), _rows(matrices[1], answer)
            return self._matrices(first, second) if first and second else self._algebra(gold, answer, "value")
        return self._brackets(gold, answer)

    def _matrices(self, gold: list[list[str]], answer: list[list[str]]) -> bool:
        if [len(row) for row in gold] != [len(row) for row in answer]:
            return False
        return all(self._ordered(*rows) for rows in zip(gold, answer, strict=True))

    def _brackets(self, gold: str, answer: str) -> bool:
        inner = structure.bracketed(gold), structure.bracketed(answer)
        parts = [structure.elements(brackets.inside, inside=True) if brackets else [] for brackets in inner]
        if inner[0] and inner[1] and max(map(len, parts)) > 1:
            if (inner[0].opening, inner[0].closing) != (inner[1].opening, inner[1].closing):
                return False
            return self._unordered(*parts) if inner[0].opening == r"\{" else self._ordered(*parts)
        if len(parts[0]) > 1 or len(parts[1]) > 1:
            return False
        bare = [
            brackets.inside if brackets and brackets.opening != "[" else text
            for brackets, text in zip(inner, (gold, answer), strict=True)
        ]
        return self.same(*bare) if bare != [gold, answer] and all(bare) else self._value(gold, answer)

    def _value(self, gold: str, answer: str) -> bool:
        """One word, letter, number or expression each."""
        bases = quantities.based(gold), quantities.based(answer)
        if any(bases):
            return _without_ten(gold, bases[0]) == _without_ten(answer, bases[1])
        if any(re.search(r"(?<![a-zA-Z_{])\d+\}?\s*_", text) for text in (gold, answer)):
            return False  # a base that does not fit, or a name that is none
        letters = _choice(gold), _choice(answer)
        if all(letters):
            return letters[0] == letters[1]
        if any(letters) and (_without_choice(gold), _without_choice(answer)) != (gold, answer):
            return self.same(_without_choice(gold), _without_choice(answer))
        texts = quantities.words(gold), quantities.words(answer)
        if all(texts):
            return texts[0] == texts[1]
        (gold, unit), (answer, other) = (
            quantities.unit_apart(quantities.radians(text)) for text in (gold, answer)
        )
        if quantities.conflict(unit, other):
            return False
        gold, answer = quantities.without(gold, other - unit), quantities.without(answer, unit - other)
        known, given = quantities.number(gold), quantities.number(answer)
        if known is not None and given is not None:
            factors = quantities.factor(unit), quantities.factor(other)
            if known * factors[0] == given * factors[1]:
                return True
            plain = factors[0] == factors[1] or not unit or not other
            return plain and (known == given or _rounded(gold, answer, known, given))
        if any(texts) or r"\text" in gold + answer:
            return quantities.spelled(texts[0] or gold) == quantities.spelled(texts[1] or answer) != ""
        if any(gold.count(mark) != answer.count(mark) for mark in ("'", r"\ldots")):
            return False  # the parser does not see them
        return self._algebra(gold, answer, "relation" if _RELATION.search(gold + answer) else "value")

    def _algebra(self, gold: str, answer: str, kind: algebra.Kind) -> bool:
        texts = gold, answer
        if any(text.count("{") != text.count("}") for text in texts):
            return False
        if any(
            len(text) > LONGEST_ANSWER or _EXPLOSIVE.search(text) or not _CONTENT.search(text)
            for text in texts
        ):
            return False
        self.algebra -= 1
        if self.algebra < 0:
            raise TooCostlyError
        within = quantities.rounding(gold) or quantities.rounding(answer)
        return bool(algebra.compare(gold, answer, kind, within, self.budget))


def _intervals(gold: str, answer: str) -> tuple[str, str]:
    """Inequalities of one letter as intervals, where the other text is an interval or of the same letter."""
    first, second = structure.as_interval(gold), structure.as_interval(answer)
    if first and second:
        return (first[1], second[1]) if first[0] == second[0] else (gold, answer)
    if first and not _RELATION.search(answer):
        return first[1], answer
    return (gold, second[1]) if second and not _RELATION.search(gold) else (gold, answer)


def _last(text: str) -> str:
    """What a chain of equal things ends in."""
    return structure.split_top(text, "=")[-1]


def _rows(matrix: list[list[str]] | None, text: str) -> list[list[str]] | None:
    """A matrix, a vector always as one row; a tuple is a vector."""
    if matrix is None:
        inner = structure.bracketed(text)
        matrix = (
            [structure.elements(inner.inside, inside=True)]
            if inner and inner.opening == "(" and inner.closing == ")"
            else None
        )
    return [[row[0] for row in matrix]] if matrix and all(len(row) == 1 for row in matrix) else matrix


def _without_ten(text: str, base: tuple[str, int] | None) -> tuple[str, int]:
    return base or (text.strip(), 10)


_CHOICE = re.compile(r"\(([A-J])\)\s*(.*)|([A-J])(?:[.:)]\s+(.*))?", re.DOTALL)


def _choice(text: str) -> str:
    """The letter of a choice, with or without its text: ``C``, ``(C)``, ``(C) 12``, ``C. 12``,
    ``option C``.
    """
    bare = re.sub(r"^(?:\\text\{\s*)?(?:(?:[Oo]ption|[Cc]hoice)\s+)?", "", text).removesuffix("}")
    found = _CHOICE.fullmatch(bare)
    return (found[1] or found[3]) if found else ""


def _without_choice(text: str) -> str:
    """The text of a choice: ``12`` of ``(C) 12``; any other answer as it is."""
    found = _CHOICE.fullmatch(text)
    return ((found[2] or found[4]) if found else "") or text


def _rounded(gold: str, answer: str, known: Fraction, given: Fraction) -> bool:
    """Whether one is a floating-point number near the other, or a long decimal that the other rounds to."""
    apart = abs(known - given)
    if quantities.is_float(gold) or quantities.is_float(answer):
        return apart <= abs(known) * quantities.FLOAT_ERROR
    if quantities.decimals(gold) and quantities.decimals(answer):
        return False
    within = quantities.rounding(gold) or quantities.rounding(answer)
    return within is not None and apart <= within
