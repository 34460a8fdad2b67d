"""What the public benchmarks share: splits, stable ids, and how mathematics and code are asked and graded.

A split is drawn by a hash of the items' ids, so it depends neither on the order of a file nor on where it came from.
Knows no engine.
"""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

from ensemblehub.answers.equality import equal_answers, final_answer, last_boxed
from ensemblehub.errors import ConfigError, did_you_mean
from ensemblehub.lab.data import CODE, MATHS, Fields
from ensemblehub.lab.tasks.base import Grade, Item, Task
from ensemblehub.lab.tasks.extraction import defines, program_of
from ensemblehub.lab.tasks.sandbox import isolation, run_tests
from ensemblehub.lab.tasks.source import Read, read
from ensemblehub.schema import Chat, Message

SEED = 42
HELD_OUT = 4  # one in four training questions is for calibration


@dataclass(frozen=True)
class Public(Task):
    """A public benchmark, from a file or the hub.

    Every split is in one seeded order, so that the first N questions are a fair sample of it.

    Attributes:
        data: a file in the public form or in that of `ensemblehub data fetch`, or a folder of such files; None
            looks into `data/`, then asks the hub.
        parts: of the benchmark as it is published: read for training, and for testing.
        share: training and test questions, where one published part is divided between the two.
        division: how the splits came about, in one line.
    """

    data: Path | None = None

    parts: ClassVar[dict[str, str]]
    share: ClassVar[tuple[int, int] | None] = None
    division: ClassVar[str]

    def items(self, split: str, limit: int | None = None) -> Iterator[Item]:
        """The questions of a split; see `division` for what it holds.

        Raises:
            ConfigError: one line: no such split, or the file and line that cannot be used.
            MissingExtraError: no file, and the library that asks the hub is not installed.
        """
        if split not in self.splits:
            raise ConfigError(did_you_mean(split, self.splits, f"split of {self.name}"))
        return islice(iter(self._split(split)), limit)

    def about(self, split: str) -> dict[str, Any]:
        """What a result says of its questions: how they were split, whence they came, and a hash of them all."""
        items = list(self.items(split))
        content = json.dumps(
            [[item.id, item.text, item.answer, item.extra] for item in items], sort_keys=True
        )
        return {
            "split": f"{split}: {self.division}",
            "source": self._source(split),
            "items": len(items),
            "sha256": hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:16],
        }

    def _split(self, split: str) -> list[Item]:
        if split == "all":
            return in_order(
                [item for part in dict.fromkeys(self.parts.values()) for item in self._part(part)]
            )
        if split == "calibration":
            train = self._split("train")
            return train[len(train) - len(train) // HELD_OUT :]
        items = in_order(self._part(self.parts[split]))
        if self.share is None:
            return items
        cut = round(len(items) * self.share[0] / sum(self.share))
        return items[:cut] if split == "train" else items[cut:]

    def _source(self, split: str) -> str:
        parts = (
            self.parts.values()
            if split == "all"
            else [self.parts["train" if split == "calibration" else split]]
        )
        return ", ".join(dict.fromkeys(self._read(part).source for part in parts))

    def _read(self, part: str) -> Read:
        return read(self.name, part, self.data)

    def _part(self, part: str) -> list[Item]:
        found, first, twice = self._read(part), dict[str, str](), Counter[str]()
        items = []
        for where, fields in found.rows:
            item = self._checked(where, fields)
            if self._named(fields):
                if item.id in first:
                    raise ConfigError(f"{where}: {item.id} again, as at {first[item.id]}")
                first[item.id] = where
            elif twice[item.id]:  # the same question, word for word
                item = Item(**{**item.__dict__, "id": f"{item.id}-{twice[item.id] + 1}"})
            twice[item.id.partition("-")[0]] += 1
            items.append(item)
        if not items:
            raise ConfigError(f"{found.source}: no items")
        return items

    def _checked(self, where: str, fields: Fields) -> Item:
        try:
            for name in ("input", "output"):
                if not isinstance(fields[name], str) or not fields[name].strip():
                    raise ValueError(f"`{name}` is not a text")
            fields["input"].encode()
            return self._item(fields)
        except KeyError as error:
            raise ConfigError(f"{where} is no item of {self.name}: has no {error}") from error
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{where} is no item of {self.name}: {error}") from error

    def _named(self, fields: Fields) -> str:
        """The benchmark's own name of an item, where it has public ones."""
        return ""

    def _id(self, fields: Fields) -> str:
        """Its own name, else `NAME/HASH` of the question."""
        words = " ".join(fields["input"].split())
        return self._named(fields) or f"{self.name}/{hashlib.sha256(words.encode()).hexdigest()[:12]}"

    @abstractmethod
    def _item(self, fields: Fields) -> Item:
        """An item in our form as one of this task; KeyError and ValueError say what is wrong."""


@dataclass(frozen=True)
class Mathematics(Public):
    """Questions with one final answer, graded by mathematical equality of the last boxed one."""

    def request(self, item: Item) -> Chat:
        r"""The instruction to reason step by step and box the answer, then the question, as one user message."""
        return Chat((Message("user", f"{MATHS}\n\n{item.text}"),))

    def grade(self, item: Item, text: str) -> Grade:
        """Right if the final answer of the text equals that of the benchmark; see `answers`."""
        answer = final_answer(text)
        if answer is None:
            return Grade(False, None, "no boxed answer")
        correct = equal_answers(item.answer, answer)
        return Grade(correct, answer, "" if correct else f"the answer is {item.answer}")

    def leaks(self, item: Item, insight: str) -> bool:
        """Whether the insight boxes the answer, or says that it is the answer."""
        stated = final_answer(insight)
        return stated is not None and equal_answers(item.answer, stated)

    def _item(self, fields: Fields) -> Item:
        answer = self._answer(fields)
        if not answer:
            raise ValueError("its solution has no boxed answer")
        level = str(fields.get("level") or "")
        return Item(
            self._id(fields),
            fields["input"],
            answer,
            str(fields.get("subject") or ""),
            int(level) if level.isdecimal() else 0,
        )

    def _answer(self, fields: Fields) -> str | None:
        return str(fields["answer"]) if fields.get("answer") is not None else last_boxed(fields["output"])


@dataclass(frozen=True)
class Programming(Public):
    """Functions to write, graded by running the benchmark's tests in the sandbox."""

    instruction: ClassVar[str] = CODE
    seconds: ClassVar[float] = 15

    def request(self, item: Item) -> Chat:
        """The instruction to reply with the whole function in one block, then signature and text, as one message."""
        return Chat((Message("user", f"{self.instruction}\n\n{item.text}"),))

    def grade(self, item: Item, text: str) -> Grade:
        """Right if the function of the answer passes the tests; see `extraction.program_of`."""
        prompt, entry_point = item.extra["prompt"], item.extra["entry_point"]
        program = program_of(text, prompt, entry_point)
        outcome = run_tests(
            program, item.extra["test"], entry_point, prompt=prompt, wall_seconds=self.seconds
        )
        return Grade(outcome.passed, program, outcome.reason)

    def grading(self) -> str:
        return f"Programs ran in the sandbox's form {isolation()}."

    def leaks(self, item: Item, insight: str) -> bool:
        """Whether the insight holds the asked function, whole and right."""
        return defines(insight, item.extra["entry_point"]) and self.grade(item, insight).correct

    def _item(self, fields: Fields) -> Item:
        extra = {name: fields[name] for name in ("entry_point", "test")}
        if not all(isinstance(value, str) and value.strip() for value in extra.values()):
            raise ValueError("`entry_point` and `test` must be texts")
        if not str(extra["entry_point"]).isidentifier():
            raise ValueError(f"`entry_point` {extra['entry_point'][:40]!r} is no name of a function")
        return Item(
            self._id(fields),
            fields["input"],
            fields["output"],
            extra=extra | {"prompt": self._prompt(fields)},
        )

    def _prompt(self, fields: Fields) -> str:
        """The code that stands before the answer."""
        prompt: str = fields["input"]
        return prompt


def in_order(items: list[Item]) -> list[Item]:
    """In the seeded order."""
    return sorted(items, key=lambda item: hashlib.sha256(f"{SEED} {item.id}".encode()).digest())
