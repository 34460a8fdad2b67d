"""The built-in benchmarks: their items, their grading, and what counts as a leak."""

import pytest

from ensemblehub.errors import ConfigError
from ensemblehub.lab.builtin import corpus, word_problems
from ensemblehub.lab.tasks.base import Item
from ensemblehub.lab.tasks.builtin import drawn
from ensemblehub.lab.tasks.builtin_code import BuiltinCode
from ensemblehub.lab.tasks.builtin_math import SIZES, BuiltinMath
from ensemblehub.schema import Chat, Message

TASKS = [BuiltinMath(), BuiltinCode()]


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_items_are_numbered_unique_and_a_limit_only_cuts(task):
    items = list(task.items("test", 200))
    assert [item.id for item in items[:2]] == [f"{task.name}/test/00000", f"{task.name}/test/00001"]
    assert len({item.text for item in items}) == len(items) == 200
    assert list(task.items("test", 20)) == items[:20]
    assert {item.level for item in items} == ({2, 3, 4} if task.name == "builtin_code" else {1, 2, 3, 4, 5})
    assert task.request(items[0]) == Chat((Message("user", items[0].text),))


@pytest.mark.parametrize(("task", "sizes"), [(TASKS[0], (1200, 1000, 2000)), (TASKS[1], (800, 400, 800))])
def test_sizes_and_no_text_in_two_splits(task, sizes):
    texts = [[item.text for item in task.items(split)] for split in task.splits]
    assert tuple(len(own) for own in texts) == sizes
    assert len(set().union(*texts)) == sum(sizes)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_an_unknown_split_is_named(task):
    with pytest.raises(ConfigError, match="did you mean 'test'"):
        task.items("tset")
    with pytest.raises(ConfigError):
        task.items("corpus")


def math_item(ask, names, answer):
    return Item("x", "", str(answer), steps=3, extra={"ask": ask, "names": names})


@pytest.mark.parametrize(
    ("text", "correct"),
    [
        ("\\boxed{17}", True),
        ("first \\boxed{3}, no: \\boxed{17}", True),
        ("\\boxed{17} or \\boxed{3}", False),
        ("\\boxed{ 17 }", True),
        ("\\boxed{17.0}", False),
        ("\\boxed{seventeen}", False),
        ("17", False),
        ("\\boxed{" + "1" * 10000 + "}", False),
        ("", False),
    ],
)
def test_the_last_boxed_integer_is_graded(text, correct):
    grade = BuiltinMath().grade(math_item("one", ["mugs"], 17), text)
    assert grade.correct is correct
    assert bool(grade.reason) is not correct


LEAKS = [
    ("one", ["mugs"], "mugs = 13 - 1 = 12", True),
    ("one", ["mugs"], "Action: bowls = 13; mugs = 12", True),
    ("one", ["mugs"], "Retrieval: mugs = 12\nAction: state it", True),
    ("one", ["mugs"], "So mugs: answer = 12", True),
    ("one", ["mugs"], "The answer is 12.", True),
    ("one", ["mugs"], "There are 12 mugs.", True),
    ("one", ["mugs"], "the mugs are 12", True),
    ("one", ["mugs"], "\\boxed{12}", True),
    ("one", ["mugs"], "bowls = 12; mugs = bowls - 1", False),
    ("one", ["mugs"], "mugs = 12 - 1", False),
    ("one", ["mugs"], "mugs = bowls + 12", False),
    ("one", ["mugs"], "There are 12 bowls.", False),
    ("one", ["mugs"], "There are 12 more mugs than bowls.", False),
    ("one", ["mugs"], "bowls = 24 / 2 = 12", False),
    ("one", ["mugs"], "mugs = 13 - 2 = 11", False),
    ("one", ["mugs"], "12", False),
    ("total", ["mugs", "pans"], "answer = 9 + 3 = 12", True),
    ("total", ["mugs", "pans"], "mugs + pans = 9 + 3 = 12", True),
    ("total", ["mugs", "pans"], "pans + mugs = 12", True),
    ("total", ["mugs", "pans"], "mugs = 12; pans = 3", False),
    ("total", ["mugs", "pans"], "Goal: mugs + pans\nAction: mugs = 12", False),
    ("gap", ["drills", "clamps"], "drills - clamps = 12", True),
    ("gap", ["drills", "clamps"], "answer = 20 - 8 = 12", True),
    ("gap", ["drills", "clamps"], "drills = 12", False),
    ("gap", ["drills", "clamps"], "clamps - drills = 12", False),
]


@pytest.mark.parametrize(("ask", "names", "insight", "leaks"), LEAKS)
def test_leaks_by_hand(ask, names, insight, leaks):
    assert BuiltinMath().leaks(math_item(ask, names, 12), insight) is leaks


def test_the_insights_never_leak_from_two_steps_on_and_the_answers_always_do():
    task = BuiltinMath()
    pairs = zip(task.items("test", 500), drawn(word_problems.draw, SIZES, "test", 500), strict=True)
    for item, problem in pairs:
        assert item.text == problem.text
        if problem.steps > 1:
            assert not task.leaks(item, corpus.insight(problem)), corpus.insight(problem)
        assert task.leaks(item, corpus.insight(problem) + f"; {problem.actions[-1]}")
        assert task.grade(item, corpus.concise(problem)).correct
        assert task.grade(item, corpus.thinking(problem)).correct
        assert not task.grade(item, corpus.concise(problem).replace("\\boxed{", "\\boxed{1")).correct


def answer(item, body):
    return f"```python\n{item.extra['prompt'].splitlines()[0]}\n{body}```"


@pytest.mark.slow
def test_canonical_programs_pass_and_wrong_ones_fail():
    task = BuiltinCode()
    for item in task.items("calibration", 60):
        assert task.grade(item, answer(item, item.answer)).reason == ""
        grade = task.grade(item, answer(item, "    return None\n"))
        assert not grade.correct
        assert "AssertionError" in grade.reason


def test_a_program_that_misses_a_step_fails():
    item = next(item for item in BuiltinCode().items("test") if item.steps == 4)
    lines = item.answer.splitlines(keepends=True)
    del lines[1]
    assert not BuiltinCode().grade(item, answer(item, "".join(lines))).correct


def test_every_way_to_write_the_program_down():
    task = BuiltinCode()
    item = next(task.items("test", 1))
    whole, body = item.extra["prompt"] + item.answer, item.answer
    for text in (
        whole,
        body,
        f"Here it is:\n```python\n{whole}```\nDone.",
        f"```\n{whole}```",
        f"```python\n{body}```",
        f"```python\n{whole}",
        f"First try:\n```python\ndef wrong(): pass\n```\nBetter:\n```python\n{whole}```\n",
        f"```python\n{whole}```\nRun it:\n```bash\npython it.py\n```",
        f"draft ```python\nnonsense\n```</think>```python\n{whole}```",
    ):
        assert task.grade(item, text).reason == "", text
    for text in ("", "I do not know.", "```python\n```", f"{whole}</think>"):
        assert not task.grade(item, text).correct
