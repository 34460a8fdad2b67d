"""A right function is found however it is written down, and what is not the answer is not graded as one."""

import json
import textwrap
import time
from pathlib import Path

import pytest

from ensemblehub.lab.tasks.extraction import code_of, defines, program_of

RECORDS = [json.loads(line) for line in Path(__file__).with_name("records.jsonl").read_text().splitlines()]
PROMPT = (
    "import math\nfrom typing import List\n\n\ndef shifted(x: int) -> int:\n    return x + 1\n\n\n"
    'def squares(numbers: List[int]) -> List[int]:\n    """ Squares.\n    >>> squares([2])\n    [4]\n    """\n'
)
BODY = "    out = []\n    for one in numbers:\n        out.append(one * one)\n    return out\n"
FUNCTION = f"def squares(numbers):\n{BODY}"
WRONG = "def squares(numbers):\n    return numbers\n"
USAGE = "print(squares(undefined))\nassert squares([1]) == 'no'\nresult = squares([int(input())])\n"


def fenced(code, language="python", fence="```"):
    return f"{fence}{language}\n{code.rstrip()}\n{fence}\n"


def result(text, given=(3, -2), prompt=PROMPT, name="squares"):
    """What the function of an answer gives for a list."""
    namespace = {"__name__": "solution"}
    exec(compile(program_of(text, prompt, name), "<program>", "exec"), namespace)
    return namespace[name](list(given))


def as_session(code):
    typed = [
        f"{'>>>' if line and not line[0].isspace() else '...'} {line}" for line in code.rstrip().split("\n")
    ]
    return "\n".join([*typed, "...", ">>> squares([2])", "[4]"])


def spaced(code, size):
    """Code with another indentation than four spaces."""
    lines = ((line.lstrip(" "), (len(line) - len(line.lstrip(" "))) // 4) for line in code.split("\n"))
    return "\n".join(size * depth + line for line, depth in lines)


FORMS = {
    "a block": fenced(FUNCTION),
    "no language": fenced(FUNCTION, ""),
    "tildes": fenced(FUNCTION, "py", "~~~"),
    "four ticks": fenced(FUNCTION, "Python", "````"),
    "more behind the language": fenced(FUNCTION, 'python title="a.py"'),
    "not closed": f"```python\n{FUNCTION}",
    "closed behind the code": f"```python\n{FUNCTION.rstrip()}```\nDone.",
    "opened twice": f"```python\n```python\n{FUNCTION}```\n```",
    "not closed before the next": f"```python\n{FUNCTION}\nUse it so:\n```python\n{USAGE}```",
    "carriage returns": fenced(FUNCTION).replace("\n", "\r\n"),
    "in a list": "1. First\n\n" + textwrap.indent(fenced(FUNCTION), "   ") + "2. Done",
    "behind a list's mark": "- " + textwrap.indent(fenced(FUNCTION), "  ")[2:],
    "quoted": textwrap.indent(fenced(FUNCTION), "> ", lambda line: True),
    "indented by Markdown": "The code:\n\n" + textwrap.indent(FUNCTION, "      ") + "\nThat is all.",
    "bare": FUNCTION,
    "bare, prose around": f"Let's see (it's easy.\n{FUNCTION}This works: see above.\nif you ask me, yes",
    "tags": f"[PYTHON]\n{FUNCTION}[/PYTHON]\n[TESTS]",
    "a session": fenced(as_session(FUNCTION), ""),
    "one space": fenced(spaced(FUNCTION, " ")),
    "two spaces": fenced(spaced(FUNCTION, "  ")),
    "five spaces": fenced(spaced(FUNCTION, "     ")),
    "tabs": fenced(spaced(FUNCTION, "\t")),
    "thoughts": f"<think>{fenced(WRONG)}</think>{fenced(FUNCTION)}",
    "usage behind": fenced(FUNCTION) + "Example:\n" + fenced(USAGE),
    "usage below": fenced(FUNCTION + "\n" + USAGE),
    "usage with an import of it": fenced(FUNCTION) + fenced(f"from solution import squares\n{USAGE}"),
    "main": fenced(f"{FUNCTION}\ndef main():\n    print(squares(input()))\n\nmain()\n"),
    "guarded main": fenced(
        f"{FUNCTION}\nif __name__ == '__main__':\n    import unittest\n    unittest.main()\n"
    ),
    "a test function": fenced(f"{FUNCTION}\ndef test():\n    assert squares([1]) == 2\n\ntest()\n"),
    "doctests behind": fenced(FUNCTION) + fenced(">>> squares([2])\n[5]"),
    "shell and output around": fenced("pip install x", "bash") + fenced(FUNCTION) + fenced("[1, 4]", ""),
    "an unused package": fenced(f"import numpy as np\n{FUNCTION}"),
    "a wrong one first": f"First:\n{fenced(WRONG)}Better:\n{fenced(FUNCTION)}",
    "two in one block": fenced(f"{WRONG}\n{FUNCTION}"),
    "a signature behind": fenced(FUNCTION) + fenced('def squares(numbers):\n    """Squares."""\n'),
    "a stub behind": fenced(FUNCTION) + fenced("def squares(numbers):\n    # your code\n    pass\n"),
    "not implemented behind": fenced(FUNCTION)
    + fenced("def squares(numbers):\n    raise NotImplementedError('x')\n"),
    "left out behind": fenced(FUNCTION)
    + fenced("def squares(numbers):\n    out = []\n    ...\n    return out\n"),
    "a stub before": fenced("def squares(numbers): ...\n") + fenced(FUNCTION),
    "a broken block behind": fenced(FUNCTION) + fenced("for x in range(:\n    squares("),
    "a broken block before": fenced("for x in range(:\n    squares(") + fenced(FUNCTION),
    "cut off behind": f"```python\n{FUNCTION}\n\ndef other(x):\n    return (x",
    "a method and a nested one": fenced(
        f"{FUNCTION}\nclass Solution:\n    def squares(self, numbers):\n        return 0\n\n"
        "def outer():\n    def squares(numbers):\n        return 0\n    return squares\n"
    ),
    "a fence in the docstring": fenced(FUNCTION.replace("\n", '\n    """It is\n```\nx\n```\n    """\n', 1)),
    "a lambda": fenced("squares = lambda numbers: [one * one for one in numbers]\n" + USAGE),
    "an alias": fenced(f"{FUNCTION.replace('squares', 'solve')}\nsquares = solve\n"),
    "wrapped": fenced(f"import functools\n{FUNCTION}\nsquares = functools.wraps(squares)(squares)\n"),
    "on condition": fenced("import sys\nif sys.version_info > (3,):\n" + textwrap.indent(FUNCTION, "    ")),
    "a body": BODY,
    "a body in a block": fenced(BODY),
    "a body, stripped": BODY.strip(),
    "a body without indentation": textwrap.dedent(BODY),
    "a body, first line lost, in a block": f"```python\n{BODY.strip()}\n```",
    "a body of one space": spaced(BODY, " "),
    "a body of two spaces": fenced(spaced(BODY, "  ")),
    "a body of five spaces": spaced(BODY, "     "),
    "a body of tabs": spaced(BODY, "\t"),
    "a body and usage": f"{BODY}\n\n{USAGE}",
    "a body and a cut function": f"{BODY}\n\ndef other(x):\n    return (x",
    "a body and a fence": f"{BODY}```\n\nThis is it.",
    "a body, prose around": f"Here it goes:\n\n{BODY}\nDone, it's easy.",
    "a body and a block of usage": f"{BODY}\n{fenced(USAGE)}",
}


@pytest.mark.parametrize("form", FORMS)
def test_a_right_function_is_found(form):
    assert result(FORMS[form]) == [9, 4]


@pytest.mark.parametrize("form", FORMS)
def test_the_same_form_of_a_wrong_one_stays_wrong(form):
    text = FORMS[form].replace("one * one", "one + one")
    assert result(text) == [6, -4]


NEEDS = {
    "of an earlier block": fenced("from math import hypot\ndef double(x):\n    return 2 * x\n")
    + fenced("def squares(numbers):\n    return [double(hypot(one, 0)) for one in numbers]\n"),
    "of a later block": fenced(
        "@timed\ndef squares(numbers: Numbers):\n    return [double(one) for one in numbers]\n"
    )
    + "where\n"
    + fenced(
        "from typing import List\nNumbers = List[int]\n"
        "def timed(f):\n    return f\ndef double(x):\n    return 2 * abs(x)\n"
    ),
    "of the prompt": fenced(
        "def squares(numbers: List[int]):\n    return [2 * math.fabs(one) + 0 * shifted(0) for one in numbers]\n"
    ),
    "a table that is filled": fenced(
        "TABLE = {}\nfor i in range(10):\n    TABLE[i] = 2 * i\n\ndef fill():\n    TABLE[-2] = 4\n\nfill()\n"
        "def squares(numbers):\n    return [TABLE[one] for one in numbers]\n"
    ),
    "a value of its own": fenced(
        "def squares(numbers):\n    squares.calls += 1\n    return [abs(2 * one) for one in numbers]\n"
        "squares.calls = 0\n"
    ),
    "a global that it counts": fenced(
        "count = 0\n"
        "def squares(numbers):\n    global count\n    count += 1\n    return [abs(2 * one) for one in numbers]\n"
    ),
    "a class with a base": fenced(
        "class Base:\n    factor = 2\nclass Doubler(Base):\n    def of(self, x):\n        return abs(x) * self.factor\n"
    )
    + fenced("def squares(numbers):\n    return [Doubler().of(one) for one in numbers]\n"),
    "a star": fenced(
        "from math import *\ndef squares(numbers):\n    return [2 * fabs(one) for one in numbers]\n"
    ),
    "an import that may fail": fenced(
        "try:\n    from nowhere import absolute\nexcept ImportError:\n    absolute = abs\n"
        "def squares(numbers):\n    return [2 * absolute(one) for one in numbers]\n"
    ),
    "by name": fenced(
        "def double(x):\n    return 2 * abs(x)\n"
        "def squares(numbers):\n    return [eval('double(one)', globals(), {'one': one}) for one in numbers]\n"
    ),
    "the future": fenced(
        "from __future__ import annotations\n"
        "def squares(numbers: Unknown):\n    return [2 * abs(one) for one in numbers]\n"
    ),
    "types by registration": fenced(
        "import functools\n@functools.singledispatch\ndef double(x):\n    return None\n@double.register\n"
        "def _(x: int):\n    return 2 * abs(x)\ndef squares(numbers):\n    return [double(one) for one in numbers]\n"
    ),
    "a line shared": fenced(
        "a = 'é'; b = 2; c = 3\ndef squares(numbers): return [b * abs(one) for one in numbers]\n"
    ),
    "a name used in an example too": fenced(
        "def squares(numbers):\n    n = 2\n    return [n * abs(one) for one in numbers]\n"
        "n = int(input())\nprint(squares([n]))\n"
    ),
}


@pytest.mark.parametrize("what", NEEDS)
def test_what_a_function_needs_comes_from_wherever_it_stands(what):
    assert result(NEEDS[what]) == [6, 4]


def test_deep_recursion_that_is_asked_for_is_kept():
    program = program_of(
        fenced(f"import sys\nsys.setrecursionlimit(10**5)\n{FUNCTION}{USAGE}"), PROMPT, "squares"
    )
    assert "setrecursionlimit(10**5)" in program
    assert "print" not in program


@pytest.mark.parametrize(
    "text",
    [
        "",
        "I cannot.",
        "5",
        fenced("[1, 2]", ""),
        fenced("def other(x):\n    return x"),
        fenced("def squares(numbers: return 1"),
        fenced("def squares(numbers):\n    ..."),
        fenced("class Solution:\n    def squares(self, numbers):\n        return 1"),
        "def outer():\n    def squares(numbers):\n        return [9, 4]\n",
        fenced(USAGE),
        "\ud800",
        "def squares(x):\n\0",
    ],
)
def test_no_answer_is_none(text):
    assert not defines(text, "squares")
    try:
        got = result(text)
    except Exception:
        return
    assert got != [9, 4]


def test_a_definition_is_told_from_its_mention():
    assert defines(f"Action:\n{fenced(FUNCTION)}", "squares")
    assert not defines("Action: write def squares(numbers): and return", "squares")
    assert not defines(fenced("def squares(numbers):\n    pass\n"), "squares")


def test_the_prompts_records_are_completed():
    for record in RECORDS:
        for text in (
            record["canonical_solution"],
            fenced(record["prompt"] + record["canonical_solution"]) + fenced("x = 1"),
        ):
            namespace = {}
            exec(program_of(text, record["prompt"], record["entry_point"]), namespace)
            exec(record["prompt"] + "    pass\n" + record["test"], checker := {})
            checker["check"](namespace[record["entry_point"]])


def test_the_last_python_block_is_the_code():
    assert code_of("```\na\n```\n```python\nb\n```\n```text\nc\n```") == "b"
    assert code_of("```\na\n```\n~~~ c\nd\n~~~") == "d"
    assert code_of("<think>```python\na\n```</think>\nb\n") == "b"


LONG = 1_000_000
ENDLESS = {
    "a word behind a fence": "```" + "a" * LONG,
    "fences": "```\n" * (LONG // 4),
    "fences that open": "```python\n" * (LONG // 10),
    "ticks": "`" * LONG,
    "blocks": fenced("def squares(x):\n    return x") * (LONG // 48),
    "statements": "x = (\n" * (LONG // 6),
    "assignments": fenced("x = 1\n" * (LONG // 6)),
    "effects": fenced("x = {}\ndef squares(y):\n    return x\n" + "x.a()\n" * 15_000),
    "an f-string": fenced('x = f"' + "{a}" * (LONG // 3) + '"'),
    "f-strings": fenced('x = f"' + "{a}" * 600 + '"') * (LONG // 1_830),
    "decorators": "@a\n" * (LONG // 3),
    "prose": "if we look: so\n" * (LONG // 15),
    "a session": ">>> def squares():\n...     return 1\n" * (LONG // 38),
    "indented runs": "\n    def f(:\n.\n" * (LONG // 14),
    "nesting": "(" * LONG,
    "signs": "-" * LONG,
    "sums": "1+" * (LONG // 2) + "1",
    "quotes": '"""\n' * (LONG // 4),
    "spaces": (" " * 1_000 + "```\n") * (LONG // 1_004),
    "names": fenced("".join(f"a{i} = a{i + 1}\n" for i in range(7_000)) + "def squares(x): return a0\n"),
}


@pytest.mark.parametrize("what", ENDLESS)
def test_a_megabyte_takes_no_time(what):
    """All three in a second or some on a busy machine; what grows with the square would take hours."""
    started = time.process_time()
    program_of(ENDLESS[what], PROMPT, "squares")
    code_of(ENDLESS[what])
    defines(ENDLESS[what], "squares")
    assert time.process_time() - started < 30


def test_a_function_behind_very_many_words_is_found():
    text = "if so: then\n" * 60_000 + fenced(FUNCTION) + "Note: x\n" * 1_000
    assert result(text) == [9, 4]
    assert result("Example: yes it is\n" * 2_000 + FUNCTION) == [9, 4]
