"""The process that compares expressions with `math_verify`, one pair after another, under limits of its own.

Started by `algebra.py` as a script.  It imports nothing of this package, reads one JSON list a line and writes
`true`, `false` or `null` (neither could be decided).  A pair that takes too much processor time or memory ends it.
"""

import json
import logging
import math
import os
import re
import resource
import sys
from collections.abc import Iterable
from typing import Any

_RECURSION = 3000
_CAPITAL = re.compile(r"\\[a-zA-Z]+|([A-Z])")
_GREEK = (
    r"\alpha", r"\beta", r"\gamma", r"\delta", r"\kappa", r"\lambda", r"\mu", r"\nu", r"\rho", r"\sigma", r"\omega",
    r"\tau", r"\phi", r"\psi",
)  # fmt: skip


def limit(megabytes: int) -> None:
    """Bound memory; write no files and no core."""
    resource.setrlimit(resource.RLIMIT_AS, (megabytes << 20, megabytes << 20))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.setrecursionlimit(_RECURSION)


def allow(seconds: float) -> None:
    """That much processor time from now; then the system ends this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    total = math.ceil(used.ru_utime + used.ru_stime + seconds)
    resource.setrlimit(resource.RLIMIT_CPU, (total, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def compare(gold: str, answer: str, kind: str) -> bool | None:
    """Whether two expressions ("value"), or two equations or inequalities ("relation"), mean the same."""
    import math_verify

    gold, answer = _capitals(gold, answer)
    known, given = _parsed(gold), _parsed(answer)
    if known is None or given is None:
        return None
    if _relation(known) != _relation(given):
        return False
    if math_verify.verify(known, given, timeout_seconds=None) or math_verify.verify(given, known, timeout_seconds=None):
        return True
    if kind == "value":
        return _difference_vanishes(known, given)
    return _proportional(gold, answer) or _same_solutions(known, given)


def _capitals(*texts: str) -> list[str]:
    """Both texts with capital variables under names of their own; the parser does not tell R from r."""
    letters = sorted({found for text in texts for found in _CAPITAL.findall(text) if found})
    free = [name for name in _GREEK if not any(name in text for text in texts)]
    names = dict(zip(letters, free, strict=False))
    return [
        _CAPITAL.sub(lambda found: f"{names.get(found[1], found[0])} " if found[1] else found[0], one) for one in texts
    ]


def _parsed(text: str) -> Any:
    import math_verify
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import LatexExtractionConfig
    from sympy import Basic, I, MatrixBase, Symbol

    form = NormalizationConfig(units=False)  # with it, letters that are variables are lost
    config = [LatexExtractionConfig(normalization_config=form)]
    found = math_verify.parse(f"\\boxed{{{text}}}", config, parsing_timeout=None)
    value = next((one for one in found if isinstance(one, Basic | MatrixBase)), None)
    if value is None or _relation(value):
        return value
    imaginary = {symbol: I for symbol in value.free_symbols if symbol.name == "i"}
    # no assumption that a symbol is real: the same letter is the same symbol on both sides
    plain = {symbol: Symbol(symbol.name) for symbol in value.free_symbols if symbol.name != "i"}
    return value.subs(plain | imaginary) if plain or imaginary else value


def _relation(value: Any) -> bool:
    from sympy.core.relational import Relational

    return isinstance(value, Relational)


def _difference_vanishes(left: Any, right: Any) -> bool:
    """Real and imaginary parts, powers and trigonometry that `verify` left."""
    from sympy import Expr, expand, expand_complex, simplify, trigsimp

    if not isinstance(left, Expr) or not isinstance(right, Expr):
        return False
    difference = left.doit() - right.doit()
    steps: Iterable[Any] = (expand, trigsimp, simplify, lambda one: expand_complex(expand(one)))
    return any(_zero(step, difference) for step in steps)


def _zero(step: Any, difference: Any) -> bool:
    try:
        return bool(step(difference) == 0)
    except (ValueError, TypeError, AttributeError, NotImplementedError, ArithmeticError):
        return False  # sympy cannot take this step: it proves nothing, and the next one is tried


def _proportional(left: str, right: str) -> bool:
    """Two equations of one side each: 2x - y + 3 = 0 and y = 2x + 3."""
    from sympy import Expr, simplify

    sides = []
    for text in (left, right):
        parts = text.split("=")
        if len(parts) != 2:
            return False
        first, second = (_parsed(part) for part in parts)
        if not isinstance(first, Expr) or not isinstance(second, Expr):
            return False
        sides.append(first.doit() - second.doit())
    if sides[0] == 0 or sides[1] == 0:
        return False
    ratio = simplify(sides[0] / sides[1])
    return not ratio.free_symbols and ratio.is_finite is not False and ratio != 0


def _same_solutions(left: Any, right: Any) -> bool:
    """Two inequalities in the same one letter: 2x > 4 and x > 2."""
    if not _relation(left) or len(left.free_symbols) != 1 or left.free_symbols != right.free_symbols:
        return False
    return bool(left.as_set() == right.as_set())


def serve() -> None:
    """Compare pairs until the input ends."""
    megabytes, seconds = int(sys.argv[1]), float(sys.argv[2])
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # nothing else may write there
    limit(megabytes)
    import math_verify  # noqa: F401  (before the first pair, whose time it would take)

    logging.disable(logging.CRITICAL)
    compare("x^2", "x x", "value")  # what is loaded and compiled on first use
    print("ready", file=replies, flush=True)
    for line in sys.stdin:
        gold, answer, kind = json.loads(line)
        allow(seconds)
        try:
            found = compare(gold, answer, kind)
        except MemoryError:
            os._exit(1)
        except Exception:  # parsers and algebra raise whatever they like on what is no mathematics
            found = None
        print(json.dumps(found), file=replies, flush=True)


if __name__ == "__main__":
    serve()
