"""The process that compares expressions, one pair after another, under limits of its own.

Started by `algebra.py` as a script.  It imports nothing of this package, reads one JSON list a line and
writes another: `true`, `false`, `null` (one of the two is not understood) or `"costly"`, and the seconds.

`math_verify` parses.  Two values are equal if their difference vanishes: exactly for rational numbers, to
hundreds of digits for other constants, at several points for what has variables.  A pair that takes too much
processor time is given up; one that cannot be given up, or takes too much memory, ends the process.
"""

import json
import logging
import math
import os
import re
import resource
import signal
import sys
import time
from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache
from typing import Any

_RECURSION = 3000
_GRACE = 0.2  # seconds of processor time, after those allowed, until the system ends this process
_BITS = 1500  # of precision, at most, at which a difference may turn out not to vanish
_CERTAIN = 8  # bits that are known of a number that is not zero
_POINTS = 4  # at which expressions with variables have to agree
_TRIALS = 12  # points that are tried; at some a logarithm or quotient is undefined
_CAPITAL = re.compile(r"\\[a-zA-Z]+|([A-Z])")
_DECIMAL = re.compile(r"(?<![\d.])(\d*)\.(\d+)(?![\d.])")
_GREEK = (
    r"\alpha",
    r"\beta",
    r"\gamma",
    r"\delta",
    r"\kappa",
    r"\lambda",
    r"\mu",
    r"\nu",
    r"\rho",
    r"\sigma",
    r"\omega",
    r"\tau",
    r"\phi",
    r"\psi",
)


class CostlyError(BaseException):
    """The time that a comparison may take is over; no `except Exception` of a library catches it."""


def limit(megabytes: int) -> None:
    """Bound memory; write no files and no core."""
    resource.setrlimit(resource.RLIMIT_AS, (megabytes << 20, megabytes << 20))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.setrecursionlimit(_RECURSION)


def allow(seconds: float) -> None:
    """That much processor time from now: then `CostlyError`, a little later the end of this process; 0:
    no bound.
    """
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds + _GRACE if seconds else 0)
    used = resource.getrusage(resource.RUSAGE_SELF)
    total = math.ceil(used.ru_utime + used.ru_stime + seconds) + 1  # also where the time is the system's
    resource.setrlimit(resource.RLIMIT_CPU, (total, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def _give_up(number: int, frame: object) -> None:
    raise CostlyError


def compare(gold: str, answer: str, kind: str, within: str | None = None) -> bool | None:
    """Return whether two expressions ("value"), or two equations or inequalities ("relation"), are equal.

    With `within`, a fraction, whether two numbers differ by no more than that.
    """
    known, given = (_parsed(text) for text in _capitals(gold, answer))
    if known is None or given is None:
        return None
    if _relation(known) or _relation(given):
        return kind == "relation" and _same_relation(known, given)
    return _close(known, given, Fraction(within)) if within else _same(known, given)


def _capitals(*texts: str) -> list[str]:
    """Both texts with capital variables under names of their own; the parser does not tell R from r."""
    letters = sorted({found for text in texts for found in _CAPITAL.findall(text) if found})
    free = [name for name in _GREEK if not any(name in text for text in texts)]
    names = dict(zip(letters, free, strict=False))
    return [
        _CAPITAL.sub(lambda found: f"{names.get(found[1], found[0])} " if found[1] else found[0], text)
        for text in texts
    ]


@lru_cache(maxsize=256)
def _parsed(text: str) -> Any:
    """What the parser makes of a text; decimals are fractions, i is the imaginary unit."""
    import math_verify
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import LatexExtractionConfig
    from sympy import Basic, I, MatrixBase, Symbol

    form = NormalizationConfig(units=False)  # with it, letters that are variables are lost
    config = [LatexExtractionConfig(normalization_config=form)]
    exact = _DECIMAL.sub(
        lambda found: rf"{{(\frac{{{int(found[1] + found[2])}}}{{{10 ** len(found[2])}}})}}", text
    )
    found = math_verify.parse(f"\\boxed{{{exact}}}", config, parsing_timeout=None)
    value = _alone(
        next((candidate for candidate in found if isinstance(candidate, Basic | MatrixBase)), None)
    )
    if value is None:
        return None
    # no assumption that a symbol is real: the same letter is the same symbol on both sides
    plain = {symbol: I if symbol.name == "i" else Symbol(symbol.name) for symbol in value.free_symbols}
    return value.subs(plain) if plain else value


def _relation(value: Any) -> bool:
    from sympy import And
    from sympy.core.relational import Relational

    return isinstance(value, Relational | And)


# -- values ------------------------------------------------------------------------------------------------


def _same(left: Any, right: Any) -> bool:
    """Two values of any kind: numbers, expressions, matrices, tuples, sets."""
    from sympy import Expr, FiniteSet, MatrixBase, MatrixExpr, Set, Tuple

    left, right = (value.doit() if isinstance(value, MatrixExpr) else value for value in (left, right))
    if isinstance(left, MatrixBase) and isinstance(right, MatrixBase):
        return left.shape == right.shape and all(map(_same, left, right))
    if isinstance(left, Tuple) and isinstance(right, Tuple):
        return len(left) == len(right) and all(map(_same, left, right))
    if isinstance(left, FiniteSet) and isinstance(right, FiniteSet):
        return _same_elements(left.args, right.args)
    if isinstance(left, Set) and isinstance(right, Set):
        return left == right or left.symmetric_difference(right).is_empty is True
    return isinstance(left, Expr) and isinstance(right, Expr) and _same_value(left, right)


def _alone(value: Any) -> Any:
    """The element of a set of one: braces that only group are parsed as a set."""
    from sympy import FiniteSet

    return value.args[0] if isinstance(value, FiniteSet) and len(value) == 1 else value


def _same_elements(left: Any, right: Any) -> bool:
    covered = all(any(_same(element, other) for other in right) for element in left)
    return covered and all(any(_same(element, other) for other in left) for element in right)


def _same_value(left: Any, right: Any) -> bool:
    if left == right:
        return True
    difference = _worked_out(left) - _worked_out(right)
    if not difference.free_symbols:
        return _vanishes(difference) is True
    agreed = 0
    for point in _points(difference):
        vanishes = _vanishes(difference.subs(point))
        if vanishes is False:
            return False
        agreed += vanishes is True
        if agreed == _POINTS:
            return True
    return False


def _worked_out(value: Any) -> Any:
    """Sums, integrals and limits as their values; an unknown function's value, f(x),
    as a variable of its own.
    """
    from sympy import Symbol
    from sympy.core.function import AppliedUndef

    value = value.doit()
    return value.subs({call: Symbol(f"value of {call}") for call in value.atoms(AppliedUndef)})


def _points(value: Any) -> Iterator[dict[Any, Any]]:
    """Values for the variables of an expression, always the same: positive and negative ones,
    or counting numbers.
    """
    from sympy import Product, Rational, Sum, binomial, factorial

    counted = value.has(factorial, binomial, Sum, Product)
    for trial in range(_TRIALS):
        point = {}
        for index, name in enumerate(sorted(value.free_symbols, key=str)):
            size = Rational(29 + 17 * index + 41 * trial, 23 + 7 * index + trial)
            sign = (-1) ** (trial * (index + 1) // 2)
            point[name] = 5 + 3 * trial + 4 * index * (trial + 1) if counted else sign * size
        yield point


def _vanishes(number: Any) -> bool | None:
    """Whether a constant is zero, or is not told from zero at the highest precision;
    None if it has no value.
    """
    from sympy import S, nan, oo, zoo

    if number.is_Rational:
        return bool(number == 0)
    if number.has(nan, zoo, oo, -oo) or number is S.ComplexInfinity:
        return None
    return not _parts(number)


def _parts(number: Any) -> list[Any]:
    """Real and imaginary part of a constant, those that are certainly not zero."""
    from sympy.core.evalf import evalf

    real, imaginary, real_bits, imaginary_bits = evalf(number, 64, {"maxprec": _BITS})
    parts = (real, real_bits), (imaginary, imaginary_bits)
    return [part for part, bits in parts if part is not None and bits is not None and bits >= _CERTAIN]


def _close(left: Any, right: Any, within: Fraction) -> bool:
    from sympy import Expr, Rational, im, re

    if not isinstance(left, Expr) or not isinstance(right, Expr):
        return False
    difference = _worked_out(left) - _worked_out(right)
    if difference.free_symbols or _vanishes(im(difference)) is not True:
        return False
    distance = abs(re(difference)) - Rational(within.numerator, within.denominator)
    return bool(distance.evalf(20) <= 0)


# -- relations ---------------------------------------------------------------------------------------------


def _same_relation(left: Any, right: Any) -> bool:
    """Two equations or inequalities: one is a multiple of the other, or they have the same solutions."""
    from sympy import And, Eq, Ne

    if isinstance(left, And) and isinstance(right, And):
        return (_covered(left.args, right.args) and _covered(right.args, left.args)) or _same_set(left, right)
    if isinstance(left, And) or isinstance(right, And):
        return _same_set(left, right)
    kinds = {kind for kind in (Eq, Ne) for relation in (left, right) if isinstance(relation, kind)}
    if len(kinds) > 1 or (kinds and type(left) is not type(right)):
        return False
    if _multiple(left, right):
        return True
    return _same_solutions(left, right) if kinds else _same_set(left, right)


def _covered(left: Any, right: Any) -> bool:
    return all(any(_same_relation(relation, other) for other in right) for relation in left)


def _multiple(left: Any, right: Any) -> bool:
    """2x - y + 3 = 0 and y = 2x + 3; 2x > 4 and x > 2, but not x < 2 or x >= 2."""
    from sympy import Eq, Ne

    ordered = not isinstance(left, Eq | Ne)
    if ordered and ("=" in left.rel_op) != ("=" in right.rel_op):
        return False
    first, second = _side(left), _side(right)
    if first.free_symbols != second.free_symbols or not first.free_symbols:
        return False
    ratio = _constant(first / second)
    return ratio is not None and (not ordered or ratio.is_positive is True)


def _side(relation: Any) -> Any:
    """All of a relation on one side: what is zero, or greater than zero."""
    side = _worked_out(relation.lhs) - _worked_out(relation.rhs)
    return -side if relation.rel_op in ("<", "<=") else side


def _constant(ratio: Any) -> Any:
    """The number, not zero, that this is at every point; None where there is none."""
    agreed = list[Any]()
    for point in _points(ratio):
        value = ratio.subs(point)
        if (vanishes := _vanishes(value)) is None:
            continue
        if vanishes or (agreed and _vanishes(value - agreed[0]) is not True):
            return None
        agreed.append(value)
        if len(agreed) == _POINTS:
            return value
    return None


def _same_solutions(left: Any, right: Any) -> bool:
    """Two equations that are solved by the same: xy = 1 and y = 1/x."""
    from sympy import Eq, solve

    if not isinstance(left, Eq) or left.free_symbols != right.free_symbols:
        return False
    for symbol in sorted(left.free_symbols, key=str):
        try:
            first, second = solve(left, symbol), solve(right, symbol)
        except (NotImplementedError, ValueError, TypeError):
            continue  # sympy cannot solve it for this letter, perhaps for the next
        return bool(first and second) and _same_elements(first, second)
    return False


def _same_set(left: Any, right: Any) -> bool:
    """Inequalities in the same one letter with the same solutions."""
    if len(left.free_symbols) != 1 or left.free_symbols != right.free_symbols:
        return False
    return bool(left.as_set() == right.as_set())


def serve() -> None:
    """Compare pairs until the input ends."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # nothing else may write there
    limit(int(sys.argv[1]))
    import math_verify  # noqa: F401  (before the first pair, whose time it would take)

    logging.disable(logging.CRITICAL)
    signal.signal(signal.SIGPROF, _give_up)
    compare("x^2", "x x", "value")  # what is loaded and compiled on first use
    compare("x > 1", "2x > 2", "relation")
    print("ready", file=replies, flush=True)
    for line in sys.stdin:
        *pair, seconds = json.loads(line)
        started = time.process_time()
        found = answered(pair, seconds)
        print(json.dumps([found, time.process_time() - started]), file=replies, flush=True)


def answered(pair: list[Any], seconds: float) -> bool | str | None:
    """What is found of one pair."""
    try:
        allow(seconds)
        return compare(*pair)
    except CostlyError:
        return "costly"
    except MemoryError:
        os._exit(1)
    except Exception:  # parsers and algebra raise whatever they like on what is no mathematics
        return None
    finally:
        allow(0)


if __name__ == "__main__":
    serve()
