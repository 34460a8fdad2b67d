"""The contract of a benchmark.  Knows no engine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from ensemblehub import registry
from ensemblehub.errors import ConfigError
from ensemblehub.schema import Chat


@dataclass(frozen=True)
class Item:
    """One question.

    Attributes:
        text: the question as the model reads it.
        answer: the right answer in the benchmark's own form.
        level: difficulty from 1 to 5, 0 where the benchmark has none.
        extra: what else grading needs (HumanEval's `entry_point` and `test`, say).
    """

    id: str
    text: str
    answer: str
    subject: str = ""
    level: int = 0
    steps: int = 0
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Grade:
    """Whether an answer is right, what was understood as the answer, and why not in one line."""

    correct: bool
    answer: str | None
    reason: str = ""


class Task(ABC):
    """A benchmark."""

    name: ClassVar[str]
    splits: ClassVar[tuple[str, ...]]

    @abstractmethod
    def items(self, split: str, limit: int | None = None) -> Iterator[Item]:
        """The questions of a split, always in the same order.

        Raises:
            ConfigError: no such split.
        """

    @abstractmethod
    def request(self, item: Item) -> Chat:
        """How the question is put to a model."""

    @abstractmethod
    def grade(self, item: Item, text: str) -> Grade:
        """Grade an answer; safe in any thread, bounded in time."""

    def grading(self) -> str:
        """What a result should say of how answers were graded, where that depends on the machine."""
        return ""

    def leaks(self, item: Item, insight: str) -> bool:
        """Whether the insight states the asked quantity's value as a result; as safe and bounded as `grade`."""
        return False

    def about(self, split: str) -> dict[str, Any]:
        """What a result should say of a split's questions; nothing where the task and split say it all."""
        return {}


def task_named(name: str, data: Path | None = None) -> Task:
    """The benchmark that a configuration names, reading `data` where one is given.

    Raises:
        ConfigError: one line: no such task, or one whose questions are not read from a file.
    """
    cls: Callable[..., Task] = registry.lookup(registry.TASKS, name, "task")
    if data is None:
        return cls()
    if "data" not in getattr(cls, "__dataclass_fields__", {}):
        raise ConfigError(f"task {name!r} makes its own questions: it reads no data")
    if not data.exists() and "{split}" not in data.name:
        raise ConfigError(f"{data}: no such file or folder")
    return cls(data=data)
