"""A user's own questions: any data file that `infer` reads, with or without answers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import ClassVar

from ensemblehub.answers.equality import equal_answers, final_answer
from ensemblehub.data import BadExample, read_items
from ensemblehub.errors import ConfigError, did_you_mean
from ensemblehub.lab.tasks.base import Grade, Item, Task
from ensemblehub.schema import Chat


@dataclass(frozen=True)
class OwnQuestions(Task):
    """The questions of a data file.

    An answer is right where its final answer, or else its whole text without case and spacing, equals the
    file's answer to the question.

    Attributes:
        data: the file; its forms are those of `ensemblehub infer`.
    """

    name: ClassVar[str] = "own"
    splits: ClassVar[tuple[str, ...]] = ("all",)
    data: Path

    def items(self, split: str = "all", limit: int | None = None) -> Iterator[Item]:
        """The questions; each holds its conversation.

        Raises:
            ConfigError: another split than `all`, the file cannot be read, or one of its items asks nothing.
        """
        if split not in self.splits:
            raise ConfigError(did_you_mean(split, self.splits, "split"))
        for item in islice(read_items(self.data), limit):
            if isinstance(item, BadExample):
                raise ConfigError(f"{self.data}: item {item.number} {item.reason}")
            text = item.prompt.messages[-1].content
            yield Item(item.key, text, item.label or "", extra={"chat": item.prompt})

    @property
    def labelled(self) -> bool:
        """Whether every question has an answer.

        Raises:
            ConfigError: some have one and some have none.
        """
        known = [bool(item.answer) for item in self.items()]
        if not known:
            raise ConfigError(f"{self.data} holds no question")
        if any(known) and not all(known):
            raise ConfigError(f"{self.data}: {known.count(False)} of {len(known)} questions have no answer")
        return all(known)

    def request(self, item: Item) -> Chat:
        chat: Chat = item.extra["chat"]
        return chat

    def grade(self, item: Item, text: str) -> Grade:
        said = final_answer(text)
        right = _words(text) == _words(item.answer)
        if not right and said is not None:
            right = equal_answers(final_answer(item.answer) or item.answer, said)
        return Grade(right, said or text.strip() or None, "" if right else f"not {item.answer!r}")


def _words(text: str) -> str:
    return re.sub(r"\W+", " ", text).strip().casefold()
