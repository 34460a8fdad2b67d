"""`builtin_math`: the built-in word problems, graded by the last boxed integer."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import permutations
from typing import ClassVar

from ensemblehub.answers.equality import last_boxed
from ensemblehub.lab.builtin import word_problems
from ensemblehub.lab.builtin.splits import Split
from ensemblehub.lab.builtin.word_problems import WordProblem
from ensemblehub.lab.tasks.base import Grade, Item, Task
from ensemblehub.lab.tasks.builtin import SPLITS, drawn
from ensemblehub.schema import Chat, Message

SIZES: Mapping[Split, int] = {"train": 1200, "calibration": 1000, "test": 2000}
_INTEGER = re.compile(r"[+-]?\d+")
_STATEMENT_END = re.compile(r"[;\n]|\.(?!\d)|,(?!\d)")
_LABEL = re.compile(r"^\s*(?:[\w ]+:|[-*]|\d+[.)])\s*")


class BuiltinMath(Task):
    """Word problems about quantities that depend on each other, of one to eight steps and five levels."""

    name: ClassVar[str] = "builtin_math"
    splits: ClassVar[tuple[str, ...]] = SPLITS

    def items(self, split: str, limit: int | None = None) -> Iterator[Item]:
        """The problems of a split; 1200, 1000 and 2000 of train,
        calibration and test where there is no limit.
        """
        problems = drawn(word_problems.draw, SIZES, split, limit)
        return (_item(problem, f"{self.name}/{split}/{index:05}") for index, problem in enumerate(problems))

    def request(self, item: Item) -> Chat:
        """The problem as one user message."""
        return Chat((Message("user", item.text),))

    def grade(self, item: Item, text: str) -> Grade:
        r"""Right if the last ``\boxed{...}`` holds the asked integer."""
        boxed = last_boxed(text)
        if boxed is None:
            return Grade(False, None, "no boxed answer")
        if not _INTEGER.fullmatch(boxed) or len(boxed) > 18:
            return Grade(False, boxed, "not an integer")
        correct = int(boxed) == int(item.answer)
        return Grade(correct, boxed, "" if correct else f"the answer is {item.answer}")

    def leaks(self, item: Item, insight: str) -> bool:
        r"""Whether the insight states the asked value as a result.

        A leak is an equation whose left side is what is asked (``mugs = 13 - 1 = 12``,
        ``drills - clamps = 15``, ``answer = 9 + 12 = 21``) and one of whose further sides is the asked
        value alone, its sentence ("the answer is 12", "there are 12 mugs"), or the value boxed.  An equal
        number elsewhere is none.  Where one step is all there is, the fact itself leaks: leaks are
        reported from two steps on.
        """
        asked = _asked(item.extra["ask"], item.extra["names"])
        boxed = last_boxed(insight)
        if boxed is not None and boxed.strip() == item.answer:
            return True
        return any(_states(statement, asked, item.answer) for statement in _STATEMENT_END.split(insight))


def _item(problem: WordProblem, identity: str) -> Item:
    return Item(
        id=identity,
        text=problem.text,
        answer=str(problem.answer),
        subject=problem.subject,
        level=problem.level,
        steps=problem.steps,
        extra={"ask": problem.ask, "names": [root.name for root in problem.roots]},
    )


def _asked(ask: str, names: list[str]) -> frozenset[str]:
    """The left sides that mean what is asked, without spaces."""
    own = {
        "one": [names[0]],
        "total": ["total", "sum", *("+".join(order) for order in permutations(names))],
        "gap": ["gap", "difference", "-".join(names)],
    }[ask]
    return frozenset(["answer", "theanswer", *own])


def _states(statement: str, asked: frozenset[str], value: str) -> bool:
    """Whether one statement says that what is asked is `value`."""
    while (shorter := _LABEL.sub("", statement)) != statement:
        statement = shorter
    statement = re.sub(r"\s+(?:is|are)\s+(?=[+-]?\d)", " = ", statement)
    left, *sides = (re.sub(r"[\s$]+", "", side).lower() for side in statement.split("="))
    if re.sub(r"^the(?=\w)", "", left) in asked or left in asked:
        return value in sides
    there = re.fullmatch(rf"(?:so|thus)?there={value}([a-z]+)", "=".join([left, *sides]))
    return there is not None and there[1] in asked
