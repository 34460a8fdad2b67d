"""The tests of code benchmarks, all as HumanEval's `check(candidate)`: from assertions, or from EvalPlus's
inputs.

Writes source text; runs nothing.  What is written needs only the standard library, as the sandbox has no
other.
"""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Mapping
from typing import Any, Literal

from ensemblehub.errors import ConfigError
from ensemblehub.lab.tasks import mbpp_inputs

Suite = Literal["base", "all"]
TESTS = "\nYour code should pass these tests:\n\n"  # between an MBPP item's sentence and its tests

_LINK = re.compile(r"https?://\S+")  # EvalPlus took the links out of MBPP+ in its version 0.2.0

# What the public files of HumanEval+ and MBPP+ use of NumPy, for a checker that has none.
_NUMPY = """\
import math, sys, types

def _close(out, exp, rtol=1e-07, atol=0.0):
    if isinstance(exp, (list, tuple)):
        return len(out) == len(exp) and all(_close(o, e, rtol, atol) for o, e in zip(out, exp))
    if isinstance(exp, dict):
        return out.keys() == exp.keys() and all(_close(out[key], exp[key], rtol, atol) for key in exp)
    if isinstance(exp, (int, float, complex)) and isinstance(out, (int, float, complex)):
        return out == exp or (out != out and exp != exp) or abs(out - exp) <= atol + rtol * abs(exp)
    return out == exp

def _assert_allclose(out, exp, rtol=1e-07, atol=0.0):
    assert _close(out, exp, rtol, atol), f"out: {out}, exp: {exp}"

if "numpy" not in sys.modules:
    _numpy = types.ModuleType("numpy")
    _numpy.ndarray, _numpy.float32, _numpy.float64 = type("ndarray", (), {}), type("float32", (float,), {}), float
    _numpy.inf, _numpy.nan, _numpy.allclose = math.inf, math.nan, _close
    _numpy.testing = types.SimpleNamespace(assert_allclose=_assert_allclose)
    sys.modules["numpy"] = _numpy
"""
# EvalPlus compares with a reference solution: exactly, floats to 1e-6, and a few functions by rules of their
# own.
_INPUTS = """\
from math import inf, nan
import copy
{numpy}
def _floats(value):
    return isinstance(value, float) or (
        isinstance(value, (list, tuple)) and bool(value) and all(isinstance(one, float) for one in value)
    )

def check(candidate):
    reference = {{"__name__": "reference"}}
    exec({solution!r}, reference)
    function = reference[{entry_point!r}]
    for given in {inputs!r}:
        expected, out = function(*copy.deepcopy(given)), candidate(*copy.deepcopy(given))
        {rule}
        if out == expected:
            continue
        tolerance = {atol!r} or (1e-6 if _floats(expected) else 0)
        assert tolerance and type(out) is type(expected) and _close(out, expected, atol=tolerance), (
            f"{{out}}, not {{expected}}"
        )
"""
_SETS = (
    "similar_elements",
    "find_char_long",
    "common_in_nested_lists",
    "extract_singly",
    "larg_nnum",
    "intersection_array",
    "find_dissimilar",
    "Diff",
)
_FOUND = ("check_str", "text_match_three", "text_starta_endb")
_ADAPTER = """
_matched = {entry_point}
def {entry_point}(*given):
    out = _matched(*given)
    return out if out is None or isinstance(out, bool) else True
"""
_ROOT = (
    "assert abs(sum(coefficient * out ** power for power, coefficient in "
    "enumerate(given[0]))) <= {atol!r}; continue"
)
_PYRAMID = (
    "base, height = given; slant = ((base / 2) ** 2 + height ** 2) ** 0.5\n"
    "        if out == expected or abs(out - round(base ** 2 + 2 * base * slant)) <= {atol!r}: continue"
)
_DIGITS = (
    "width = max(len(str(one)) for one in given); pair = [str(one).zfill(width) for one in given]\n"
    "        if out == sum(abs(int(one) - int(other)) for one, other in zip(*pair)): continue"
)
_RULES = {
    **dict.fromkeys(_SETS, "assert set(out) == set(expected), f'{{out}}, not {{expected}}'; continue"),
    **dict.fromkeys(
        _FOUND,
        "assert (out if isinstance(out, bool) else out is not None) == (expected is not None), 'another match'; "
        "continue",
    ),
    "find_zero": _ROOT,
    "surface_Area": _PYRAMID,
    "digit_distance_nums": _DIGITS,
    "sum_div": "if out == 0: continue",
    "are_equivalent": "continue",
}


def check(item: Mapping[str, Any], suite: Suite) -> str:
    """Source that defines `check(candidate)` for a public item.

    Args:
        suite: "base" are the benchmark's own tests, "all" those of EvalPlus too where the item has them.

    Raises:
        KeyError: a field is missing; ValueError: one is not what it should be.
    """
    if "base_input" in item and (suite == "all" or "assertion" not in item):
        return _from_inputs(item, suite)
    test = item["test"] if suite == "all" and "test" in item else item.get("assertion", item.get("test_list"))
    if test is None:
        raise KeyError("test_list")
    if isinstance(test, str) and re.search(r"^def check\(", test, re.MULTILINE):
        return _NUMPY + test if "numpy" in test else test
    lines = [test] if isinstance(test, str) else test
    if not lines or not all(isinstance(line, str) for line in lines):
        raise ValueError("its tests are not a list of texts")
    setup = [*item.get("test_imports", ()), item.get("test_setup_code") or ""]
    return _from_statements("\n".join([*(line for line in setup if line), *lines]))


def separate(item: Mapping[str, Any]) -> dict[str, str]:
    """Fields of an item that tells EvalPlus's tests from the benchmark's own.

    `base` is `check` with the benchmark's own inputs; `adapter` stands behind a program whose results may be
    no plain data.
    """
    if "base_input" not in item:
        return {"base": check(item, "base")} if "test_list" in item else {}
    found = item["entry_point"] in _FOUND
    adapter = {"adapter": _ADAPTER.format(entry_point=item["entry_point"])} if found else {}
    return {"base": _from_inputs(item, "base"), **adapter}


def _from_statements(source: str) -> str:
    ast.parse(source)
    numpy = _NUMPY if "numpy" in source else ""
    return f"{numpy}def check(candidate):\n    exec(compile({source!r}, '<test>', 'exec'), globals())\n"


def _from_inputs(item: Mapping[str, Any], suite: Suite) -> str:
    inputs = [*item["base_input"], *(item["plus_input"] if suite == "all" else ())]
    if "assertion" in item:
        inputs = mbpp_inputs.restored(item, inputs)
    entry_point, atol = item["entry_point"], float(item["atol"])
    solution = item["prompt"] + item["canonical_solution"]
    return _INPUTS.format(
        numpy=_NUMPY,
        solution=solution,
        entry_point=entry_point,
        inputs=inputs,
        atol=atol,
        rule=_RULES.get(entry_point, "").format(atol=atol),
    )


def entry_point(item: Mapping[str, Any]) -> str:
    """The function that an MBPP item asks for: of those its solution defines, the one its tests call last.

    Raises:
        KeyError: a field is missing; ValueError: no test calls a function of the solution.
    """
    defined = {node.name for node in ast.parse(item["code"]).body if isinstance(node, ast.FunctionDef)}
    tests = item.get("test_list") or [item["test"]]
    called = [
        node.func.id
        for test in tests
        for node in ast.walk(ast.parse(test))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in defined
    ]
    if not called:
        raise ValueError("no test calls a function of its solution")
    return called[-1]


def question(item: Mapping[str, Any]) -> str:
    """What an MBPP item asks: its text, and the tests that the function should pass;
    EvalPlus's rows have both.
    """
    text: str = item.get("text") or item["prompt"]
    if "test_list" not in item:
        return _LINK.sub("", text).strip().strip('"').strip()
    return text + TESTS + "\n".join(item["test_list"])


def evalplus_rows(module: str, function: str) -> Mapping[str, Any] | None:
    """What `evalplus.data.MODULE.FUNCTION` returns, items by id; None where EvalPlus is not installed.

    Raises:
        ConfigError: one line: it cannot get its data.
    """
    try:
        get = getattr(importlib.import_module(f"evalplus.data.{module}"), function)
    except ImportError:
        return None
    try:
        rows: Mapping[str, Any] = get()
    except Exception as error:  # it downloads, reads and asserts
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"evalplus cannot read its data ({reason}); use --data FILE") from error
    return rows
