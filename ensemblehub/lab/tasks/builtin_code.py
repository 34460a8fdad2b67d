"""`builtin_code`: the built-in functions to write, graded by running their tests."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from typing import ClassVar

from ensemblehub.lab.builtin import programs
from ensemblehub.lab.builtin.programs import Program
from ensemblehub.lab.builtin.records import record
from ensemblehub.lab.builtin.splits import Split
from ensemblehub.lab.tasks.base import Grade, Item, Task
from ensemblehub.lab.tasks.builtin import SPLITS, drawn
from ensemblehub.lab.tasks.programs import grade_program
from ensemblehub.lab.tasks.sandbox import isolation
from ensemblehub.schema import Chat, Message

SIZES: Mapping[Split, int] = {"train": 800, "calibration": 400, "test": 800}
STEPS = (2, 3, 4)  # how many operations
CONSTANTS = range(1, 10)  # with every operation; its own, which the models are taught, are fewer


class BuiltinCode(Task):
    """Small Python functions to write from a docstring: two to four operations, all in tricky wordings, with
    numbers that the models have not met there."""

    name: ClassVar[str] = "builtin_code"
    splits: ClassVar[tuple[str, ...]] = SPLITS

    def items(self, split: str, limit: int | None = None) -> Iterator[Item]:
        """The functions of a split; 800, 400 and 800 of train,
        calibration and test where there is no limit.
        """
        problems = drawn(_draw, SIZES, split, limit)
        return (_item(problem, f"{self.name}/{split}/{index:05}") for index, problem in enumerate(problems))

    def request(self, item: Item) -> Chat:
        """Signature and docstring as one user message."""
        return Chat((Message("user", item.text),))

    def grade(self, item: Item, text: str) -> Grade:
        """Right if the answer's last Python block passes the record's test in the sandbox."""
        return grade_program(item, text)

    def grading(self) -> str:
        """The sandbox's form."""
        return f"Programs ran in the sandbox's form {isolation()}."


def _draw(rng: random.Random) -> Program:
    return programs.draw(rng, rng.choice(STEPS), tricky_rate=1.0, constants=CONSTANTS)


def _item(problem: Program, identity: str) -> Item:
    return Item(
        id=identity,
        text=problem.text,
        answer=problem.body,
        subject=problem.subject,
        level=problem.level,
        steps=problem.steps,
        extra=dict(record(problem, identity)),
    )
