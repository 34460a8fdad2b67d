"""Sums of two numbers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from typing import ClassVar

from ensemblehub.errors import ConfigError
from ensemblehub.lab.tasks.base import Grade, Item, Task
from ensemblehub.schema import Chat, Message

SPLITS = {"train": range(10, 40), "calibration": range(40, 60), "test": range(60, 100)}


class MyTask(Task):
    """Sums of two numbers: put your questions in `items` and your grading in `grade`."""

    name: ClassVar[str] = "mine"
    splits: ClassVar[tuple[str, ...]] = tuple(SPLITS)

    def items(self, split: str, limit: int | None = None) -> Iterator[Item]:
        if split not in SPLITS:
            raise ConfigError(f"{self.name} has no split {split!r}: it has {', '.join(SPLITS)}")
        sums = ((first, second) for first in SPLITS[split] for second in range(2, 12))
        for first, second in islice(sums, limit):
            yield Item(f"{first}+{second}", f"What is {first} + {second}?", str(first + second))

    def request(self, item: Item) -> Chat:
        return Chat((Message("user", f"{item.text} End with the number."),))

    def grade(self, item: Item, text: str) -> Grade:
        numbers = re.findall(r"\d+", text[-1000:])
        answer = numbers[-1] if numbers else None
        return Grade(answer == item.answer, answer, "" if answer else "there is no number")
