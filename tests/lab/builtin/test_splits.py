"""No split knows a problem of another, and what makes two problems the same is their graph."""

import random
import subprocess
import sys
from itertools import islice

import pytest

from ensemblehub.lab.builtin import programs, word_problems
from ensemblehub.lab.builtin.programs import OPERATIONS, Program, Step
from ensemblehub.lab.builtin.splits import SPLITS, split_of, stream_split
from ensemblehub.lab.builtin.word_problems import Quantity, WordProblem
from ensemblehub.lab.tasks.builtin_code import BuiltinCode
from ensemblehub.lab.tasks.builtin_math import BuiltinMath


@pytest.mark.parametrize("make", [word_problems.draw, programs.draw])
def test_no_key_is_in_two_splits(make):
    keys = {split: {problem.key for problem in islice(stream_split(make, split), 1000)} for split in SPLITS}
    assert all(len(own) > 100 for own in keys.values())
    for split in SPLITS:
        others = set().union(*(keys[other] for other in SPLITS if other != split))
        assert not keys[split] & others


@pytest.mark.parametrize("make", [word_problems.draw, programs.draw])
def test_every_problem_is_in_one_split_and_every_split_has_all_steps(make):
    rng, steps = random.Random(1), {split: set() for split in SPLITS}
    for _ in range(4000):
        problem = make(rng)
        steps[split_of(problem.key)].add(problem.steps)
    assert len({frozenset(seen) for seen in steps.values()}) == 1


@pytest.mark.parametrize(
    ("make", "task"), [(word_problems.draw, BuiltinMath()), (programs.draw, BuiltinCode())]
)
def test_held_out_texts_are_not_in_the_corpus(make, task):
    rng = random.Random(2)
    corpus = {
        problem.text for problem in (make(rng) for _ in range(8000)) if split_of(problem.key) == "corpus"
    }
    for split in task.splits:
        assert not corpus & {item.text for item in task.items(split, 400)}


def tree(names, numbers, operation="sum", swapped=False, root="*"):
    """a = (b op c) * k with b = number and c = d + k."""
    a, b, c, d, s = names
    left = Quantity(b, numbers[0], "given")
    fourth = Quantity(d, numbers[1], "given")
    right = Quantity(c, numbers[1] + numbers[2], "+", (fourth,), numbers[2])
    parts = (right, left) if swapped else (left, right)
    value = parts[0].value + parts[1].value if operation == "sum" else parts[0].value - parts[1].value
    both = Quantity(s, value, operation, parts)
    return WordProblem("kitchen", "one", (Quantity(a, value * 2, root, (both,), 2),), (), "")


NAMES = ("mugs", "bowls", "plates", "forks", "pans")
OTHER_NAMES = ("jars", "mugs", "trays", "pots", "bowls")


def test_from_three_steps_on_the_key_is_the_graph():
    key = tree(NAMES, (20, 3, 4)).key
    assert key == "one[*(sum(+(given()),given()))]"
    assert tree(OTHER_NAMES, (20, 3, 4)).key == key  # renamed
    assert tree(NAMES, (11, 5, 2)).key == key  # renumbered
    assert tree(NAMES, (20, 3, 4), swapped=True).key == key  # a sum does not care for order
    assert tree(NAMES, (20, 3, 4), operation="difference").key != key
    assert tree(NAMES, (20, 3, 4), root="/").key != key
    assert tree(NAMES, (20, 3, 4), "difference").key != tree(NAMES, (1, 3, 4), "difference", swapped=True).key


def asked(ask, *roots):
    return WordProblem("kitchen", ask, roots, (), "")


def test_what_is_asked_is_part_of_the_key():
    first, second = Quantity("mugs", 4, "given"), Quantity("pans", 6, "+", (Quantity("pots", 3, "given"),), 3)
    assert asked("total", first, second).key == asked("total", second, first).key
    assert len({asked(ask, second, first).key for ask in ("total", "gap")}) == 2
    assert asked("gap", second, first).key != asked("gap", first, second).key


def test_below_three_steps_names_and_numbers_count():
    def short(name, number):
        return asked("one", Quantity(name, number + 2, "+", (Quantity("pots", number, "given"),), 2))

    assert len({short("mugs", 3).key, short("mugs", 4).key, short("jars", 3).key}) == 3


def test_the_key_of_a_program():
    square, add, sort = (
        next(operation for operation in OPERATIONS if operation.name == name)
        for name in ("square", "add", "sort")
    )

    def program(name, *steps):
        return Program(name, "list", steps, ([1],)).key

    long = (Step(square, 0, False), Step(add, 3, False), Step(sort, 0, False))
    assert program("solve", *long) == program("work", Step(square, 0, True), Step(add, 5, False), long[2])
    assert program("solve", *long) != program("solve", *reversed(long))
    assert program("solve", *long[:2]) != program("work", *long[:2])
    assert program("solve", *long[:2]) != program("solve", long[0], Step(add, 5, False))


SCRIPT = """
import hashlib
from ensemblehub.lab.tasks.builtin_code import BuiltinCode
from ensemblehub.lab.tasks.builtin_math import BuiltinMath
for task in (BuiltinMath(), BuiltinCode()):
    for split in task.splits:
        print(hashlib.sha256(repr(list(task.items(split, 60))).encode()).hexdigest())
"""


def test_every_process_draws_the_same():
    runs = [
        subprocess.run(
            [sys.executable, "-c", SCRIPT], env={"PYTHONHASHSEED": seed}, capture_output=True, check=True
        )
        for seed in ("0", "1", "4711")
    ]
    assert runs[0].stdout.count(b"\n") == 6
    assert runs[0].stdout == runs[1].stdout == runs[2].stdout
