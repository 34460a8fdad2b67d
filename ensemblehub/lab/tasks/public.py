"""Shared by the public benchmarks: splits, stable ids, and how mathematics and code are asked and graded.

A split is drawn by a hash of the items' ids, so it depends neither on the order of a file nor on its origin.
"""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

from ensemblehub.answers.equality import equal_answers, final_answer, last_boxed
from ensemblehub.errors import ConfigError, did_you_mean
from ensemblehub.lab.tasks.base import PLAIN, Grade, Item, Task
from ensemblehub.lab.tasks.extraction import defines
from ensemblehub.lab.tasks.programs import grade_program
from ensemblehub.lab.tasks.prompts import CODE_PROFILES, MATH_PROFILES, PromptProfile
from ensemblehub.lab.tasks.sandbox import isolation
from ensemblehub.lab.tasks.source import Fields, Source
from ensemblehub.schema import Chat, Request, Sampling

MATHS = "Solve this math problem step by step and put the final answer in \\boxed{}."
CODE = "Complete this Python function. Reply with the whole function in one code block."
SEED = 42
MOST_LINES = 100  # of an insight, that are searched for the answer
PLUS_MEMORY = 4096  # MiB for EvalPlus's tests, as EvalPlus allows
HELD_OUT = 4  # one in four training questions is for calibration


@dataclass(frozen=True)
class Public(Task):
    """A public benchmark, from a file or the hub.

    Every split is in one seeded order, so that the first N questions are a fair sample of it.

    Attributes:
        data: a file in the public form or in that of `ensemblehub data fetch`, or a folder of such files;
            None looks into `data/`, then asks the hub.
        prompt: name of a prompt profile: `plain`, or one of `published`.
        source: where its items come from.
        parts: the published split that is read for train, and for test.
        share: numbers of train and test questions, where one published split is divided between the two.
        division: how the splits are made, in one line.
        published: prompt profiles of others, by name; see `lab.tasks.prompts`.
    """

    data: Path | None = None
    prompt: str = PLAIN

    source: ClassVar[Source]
    parts: ClassVar[dict[str, str]]
    share: ClassVar[tuple[int, int] | None] = None
    division: ClassVar[str]
    published: ClassVar[Mapping[str, PromptProfile]] = {}

    def __post_init__(self) -> None:
        if self.prompt not in self.prompts:
            raise ConfigError(did_you_mean(self.prompt, self.prompts, f"prompt of {self.name}"))

    @property
    def prompts(self) -> tuple[str, ...]:
        """The names of its prompt profiles; `plain` is the default."""
        return (PLAIN, *self.published)

    @property
    def profile(self) -> PromptProfile:
        """The prompt profile; `plain` is the instruction, an empty line and the question."""
        if self.prompt == PLAIN:
            return PromptProfile(f"{self.source.instruction}\n\n{{question}}")
        return self.published[self.prompt]

    def items(self, split: str, limit: int | None = None) -> Iterator[Item]:
        """The questions of a split; see `division` for what it holds.

        Raises:
            ConfigError: one line: no such split, or the file and line that cannot be used.
            MissingExtraError: no file, and the library that asks the hub is not installed.
        """
        if split not in self.splits:
            raise ConfigError(did_you_mean(split, self.splits, f"split of {self.name}"))
        return islice(iter(self._split(split)), limit)

    def request(self, item: Item) -> Chat:
        """The question in the words of the profile, without what it opens the answer with."""
        shots = [(shown.text, solution) for shown, solution in self._examples if shown.id != item.id]
        return self.profile.chat(item.text, self._code(item), shots[: self.profile.shots])

    @cached_property
    def _examples(self) -> list[tuple[Item, str]]:
        """The training questions that may stand before another, with their solutions: one more than do."""
        if not self.profile.shots:
            return []
        solutions = {self._id(fields): fields["output"] for _, fields in self._read(self.parts["train"])[0]}
        known = (item for item in self._split("train") if item.id in solutions)
        return [(item, solutions[item.id]) for item in islice(known, self.profile.shots + 1)]

    def sampling(self, configured: Sampling) -> Sampling:
        """The configured sampling with the profile's stop strings and length of answer."""
        return self.profile.sampling(configured)

    def ask(self, item: Item, sampling: Sampling, thinking: bool | None = None) -> Request:
        """The question in the words of the profile, with its opening."""
        return replace(super().ask(item, sampling, thinking), prefix=self.profile.opening)

    def unserved(self) -> str:
        """The profile and its parts that whoever asks a server has to add."""
        if not self.profile.wording:
            return ""
        return (
            f"asked with the prompt profile {self.prompt!r}, whose {' and '.join(self.profile.wording)} the "
            "configuration cannot hold; put the same into every request"
        )

    def about(self, split: str) -> dict[str, Any]:
        """How the questions were split, where they came from, a hash of them all, and how they were put
        (name and fingerprint of the profile; absent for `plain`).
        """
        items = list(self.items(split))
        content = json.dumps(
            [[item.id, item.text, item.answer, item.extra] for item in items], sort_keys=True
        )
        put = {} if self.prompt == PLAIN else {"prompt": f"{self.prompt} {self.profile.fingerprint}"}
        return {
            "split": f"{split}: {self.division}",
            "source": self._origin(split),
            "items": len(items),
            "sha256": hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:16],
            **put,
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

    def _origin(self, split: str) -> str:
        part = "train" if split == "calibration" else split
        parts = self.parts.values() if split == "all" else [self.parts[part]]
        return ", ".join(dict.fromkeys(self._read(part)[1] for part in parts))

    def _read(self, part: str) -> tuple[list[tuple[str, Fields]], str]:
        return self.source.read(self.name, part, self.data)

    def files(self, part: str) -> list[Path]:
        """The files of a published split; empty where none is named and none was fetched."""
        return self.source.files_of(self.name, part, self.data)

    def _part(self, part: str) -> list[Item]:
        rows, origin = self._read(part)
        first = dict[str, str]()
        twice = Counter[str]()
        items = []
        for where, fields in rows:
            item = self._checked(where, fields)
            if self._named(fields):
                if item.id in first:
                    raise ConfigError(f"{where}: {item.id} again, as at {first[item.id]}")
                first[item.id] = where
            elif twice[item.id]:  # the same question, word for word
                item = replace(item, id=f"{item.id}-{twice[item.id] + 1}")
            twice[item.id.partition("-")[0]] += 1
            items.append(item)
        if not items:
            raise ConfigError(f"{origin}: no items")
        return items

    def _checked(self, where: str, fields: Fields) -> Item:
        try:
            for name in ("input", "output"):
                if not isinstance(fields[name], str) or not fields[name].strip():
                    raise ValueError(f"`{name}` is not a text")
            fields["input"].encode()
            return self._item(fields)
        except (KeyError, ValueError, TypeError) as error:
            reason = f"has no {error}" if isinstance(error, KeyError) else str(error)
            raise ConfigError(f"{where} is no item of {self.name}: {reason}") from error

    def _named(self, fields: Fields) -> str:
        """The benchmark's own name of an item, where it has public ones."""
        return ""

    def _id(self, fields: Fields) -> str:
        """Its own name, else `NAME/HASH` of the question."""
        words = " ".join(fields["input"].split())
        return self._named(fields) or f"{self.name}/{hashlib.sha256(words.encode()).hexdigest()[:12]}"

    def _code(self, item: Item) -> str:
        """The question as the start of a Python program, for profiles that put it so."""
        return item.text.strip()

    @abstractmethod
    def _item(self, fields: Fields) -> Item:
        """An item in our form as one of this task; KeyError and ValueError say what is wrong."""


@dataclass(frozen=True)
class Mathematics(Public):
    """Questions with one final answer, graded by mathematical equality of the last boxed one."""

    published: ClassVar[Mapping[str, PromptProfile]] = MATH_PROFILES

    def grade(self, item: Item, text: str) -> Grade:
        """Right if the final answer of the text equals that of the benchmark; see `answers`."""
        answer = final_answer(text)
        if answer is None:
            return Grade(False, None, "no boxed answer")
        correct = equal_answers(item.answer, answer)
        return Grade(correct, answer, "" if correct else f"the answer is {item.answer}")

    def in_form(self, item: Item, text: str) -> bool:
        """Whether the answer has a box; "the answer is 7" is graded, and has none."""
        return last_boxed(text.rpartition("</think>")[2]) is not None

    def leaks(self, item: Item, insight: str) -> bool:
        """Whether the insight boxes the answer or says that it is the answer, at its end or in any line."""
        stated = dict.fromkeys(map(final_answer, (insight, *insight.splitlines()[:MOST_LINES])))
        return any(answer is not None and equal_answers(item.answer, answer) for answer in stated)

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
    """Functions to write, graded by running the benchmark's tests in the sandbox.

    Attributes:
        seconds: wall time of all tests of an answer.
        base_seconds: wall time of the benchmark's own, where EvalPlus's are told apart.
    """

    published: ClassVar[Mapping[str, PromptProfile]] = CODE_PROFILES
    seconds: ClassVar[float] = 15
    base_seconds: ClassVar[float] = 15

    def grade(self, item: Item, text: str) -> Grade:
        """Right if the function of the answer passes the tests; see `extraction.program_of`.

        With EvalPlus's tests, `Grade.suites` tells the benchmark's own (`base`) from all of them (`plus`).
        """
        answer = self.profile.opening + text
        if "base" not in item.extra:
            return grade_program(item, answer, self.seconds)
        base = grade_program(item, answer, self.base_seconds, test="base")
        if not base.correct:
            return replace(base, suites={"base": False, "plus": False})
        plus = grade_program(item, answer, self.seconds, PLUS_MEMORY)
        return replace(plus, suites={"base": True, "plus": plus.correct})

    def in_form(self, item: Item, text: str) -> bool:
        """Whether the answer defines the function; a body that continues the prompt does not."""
        return defines(self.profile.opening + text, item.extra["entry_point"])

    def grading(self) -> str:
        """The isolation of the programs."""
        return f"Programs ran in the sandbox's form {isolation()}."

    def leaks(self, item: Item, insight: str) -> bool:
        """Whether the insight holds the asked function, whole and right."""
        whole = defines(insight, item.extra["entry_point"])
        return whole and grade_program(item, insight, self.seconds).correct

    def _item(self, fields: Fields) -> Item:
        extra = {name: fields[name] for name in ("entry_point", "test")}
        if not all(isinstance(value, str) and value.strip() for value in extra.values()):
            raise ValueError("`entry_point` and `test` must be texts")
        if not str(extra["entry_point"]).isidentifier():
            raise ValueError(f"`entry_point` {extra['entry_point'][:40]!r} is no name of a function")
        extra["prompt"] = self._prompt(fields)
        extra |= {name: fields[name] for name in ("base", "adapter") if name in fields}
        return Item(self._id(fields), fields["input"], fields["output"], extra=extra)

    def _prompt(self, fields: Fields) -> str:
        """The code that stands before the answer."""
        prompt: str = fields["input"]
        return prompt


def in_order(items: list[Item]) -> list[Item]:
    """In the seeded order."""
    return sorted(items, key=lambda item: hashlib.sha256(f"{SEED} {item.id}".encode()).digest())
