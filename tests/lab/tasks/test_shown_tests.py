"""Tests as a criterion: which are found, what a draft has to pass, and who writes them."""

import asyncio

import pytest

from ensemblehub.ensemble import AsyncEnsemble
from ensemblehub.ensemble_methods.model_selection.all import All
from ensemblehub.ensemble_methods.output_aggregation.cascade import Cascade
from ensemblehub.ensemble_methods.output_aggregation.plan_on_failure import PlanOnFailure
from ensemblehub.generators.echo import EchoEngine, EchoOptions
from ensemblehub.lab.tasks.shown_tests import assertions, equations, examples, function_of
from ensemblehub.schema import Chat, Message, Request, Sampling

SHOWN, WRITTEN = (f"ensemblehub.lab.tasks.shown_tests:{name}" for name in ("ShownTests", "WrittenTests"))
HUMANEVAL = '''Complete this function.

from typing import List

def add(x: int, y: int) -> int:
    """Add two numbers.
    >>> add(2, 3)
    5
    >>> add(5, -7)
    -2
    """
'''
MBPP = "Write a function to add two numbers. Your code should pass:\nassert add(2, 3) == 5\nassert add(5, -7) == -2"
RIGHT = "```python\ndef add(x, y):\n    return x + y\n```"
HALF = "```python\ndef add(x, y):\n    return x + abs(y)\n```"
ENDLESS = "```python\ndef add(x, y):\n    raise SystemExit\n```"


def answer(strategy, question, draft, **replies):
    script = {"Write five assert": replies.get("tests", ""), "Thinking Insights": RIGHT, "": draft}
    engines = [
        EchoEngine("big", EchoOptions({"": "large"}, parameters=9)),
        EchoEngine("tiny", EchoOptions(script, parameters=1)),
    ]
    request = Request(Chat((Message("user", question),)), Sampling(max_tokens=200))
    return asyncio.run(AsyncEnsemble(engines, All(), strategy).generate(request))


@pytest.mark.parametrize("question", [HUMANEVAL, MBPP], ids=["doctests", "assertions"])
@pytest.mark.parametrize(("draft", "share"), [(RIGHT, 1.0), (HALF, 0.5), (ENDLESS, 0.0), ("I cannot.", 0.0)])
def test_a_draft_is_accepted_where_it_passes_the_tests_that_the_question_shows(question, draft, share):
    result = answer(Cascade(accept=SHOWN), question, draft)
    assert result.verdicts[0].probability == share
    assert result.text == (draft if share == 1 else "large")


def test_a_question_without_tests_accepts_nothing():
    assert answer(Cascade(accept=SHOWN, threshold=0.1), "Write a function that adds.", RIGHT).text == "large"


@pytest.mark.parametrize(
    ("tests", "share"),
    [
        ("```python\nassert add(1, 1) == 2\nassert add(2, 2) == 5\nassert add(0, 0) == 0\n```", 2 / 3),
        ("I have none.", 0.0),
    ],
)
def test_the_author_may_write_the_tests(tests, share):
    result = answer(Cascade(accept=WRITTEN), "Write a function that adds two numbers.", RIGHT, tests=tests)
    assert result.verdicts[0].probability == pytest.approx(share)
    judged = next(
        line.cost for line in result.usage.lines if (line.engine, line.purpose) == ("tiny", "judge")
    )
    assert judged.completion_tokens > 0


def test_the_large_model_plans_where_tests_fail():
    assert answer(PlanOnFailure(accept=SHOWN), MBPP, HALF).text == RIGHT
    assert answer(PlanOnFailure(accept=SHOWN), MBPP, RIGHT).insight == ""


@pytest.mark.parametrize(
    ("line", "test"),
    [
        ("add(2, 3) == 5", "assert (add(2, 3)) == (5)"),
        ("* add(2, 3) => 5, since they are few", "assert (add(2, 3)) == (5)"),
        ("For add([1], (2, 3)) ➞ [3, 4]", "assert (add([1], (2, 3))) == ([3, 4])"),
        ("add('a)', 'b') -> 'a)b'", "assert (add('a)', 'b')) == ('a)b')"),
        ("add(2, 3)   # returns 5", "assert (add(2, 3)) == (5)"),
        ("add(2, 3) should return (5, None).", "assert (add(2, 3)) == ((5, None))"),
        ("add(2, 3) = 5 # five", "assert (add(2, 3)) == (5)"),
        ("add(1) ==> 1, add(2) ==>-2", "assert (add(1)) == (1)"),
        ("add(2, 3) == 10 ** 3", ""),  # the value is not the literal 10
        ("add(2, 3) == 5th", ""),
        ("add(2, 3) == other", ""),
        ("add(2, 3) and add(3, 2)", ""),
        ("padd(2, 3) == 5", ""),
        ("x.add(2, 3) == 5", ""),
        ("add(" + "(" * 5000, ""),
        ("add(1) == " + "9" * 5000, ""),
    ],
)
def test_examples_in_a_line_are_tests(line, test):
    found = equations(f'def add(x, y):\n    """\n    {line}\n    """')
    assert found[:1] == ([test] if test else [])


def test_what_counts_as_a_test():
    assert assertions("assert f(1) == 2\nassert that this holds\nx = 1\n  assert f(2)") == [
        "assert f(1) == 2",
        "assert f(2)",
    ]
    assert examples(
        ">>> f(1)\n2\n>>> import os\n>>> f(0)\nTraceback (most recent call last):\n  ...\nError"
    ) == ["assert (f(1)) == (2)"]
    assert examples(">>>f(1)") == []
    assert function_of("def helper(x):\ndef f(x):", ["assert helper(f(1)) == 2"]) == "f"
    assert function_of("Write it.", ["assert abs(f(1)) == 2"]) == "f"
    assert function_of("def f(x):", []) == ""
