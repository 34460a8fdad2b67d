"""The contract of a benchmark."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:  # the sandbox imports this file where no library is installed
    from ensemblehub.schema import Chat, Request, Sampling

PLAIN = "plain"  # the profile of every benchmark


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
    """Whether an answer is right, what was understood as the answer, and why not in one line.

    Attributes:
        suites: whether it passes each set of tests, where the benchmark has several (`base`, `plus`); a
            right answer passes all.
    """

    correct: bool
    answer: str | None
    reason: str = ""
    suites: Mapping[str, bool] = field(default_factory=dict)


class Task(ABC):
    """A benchmark.

    Attributes:
        prompt: name of the prompt profile that its questions are put with.
    """

    name: ClassVar[str]
    splits: ClassVar[tuple[str, ...]]
    prompt: str = PLAIN

    @property
    def prompts(self) -> tuple[str, ...]:
        """The names of its prompt profiles; the first is the default."""
        return (PLAIN,)

    @abstractmethod
    def items(self, split: str, limit: int | None = None) -> Iterator[Item]:
        """The questions of a split, always in the same order.

        Raises:
            ConfigError: no such split.
        """

    def named(self, item: Item) -> str:
        """A question as a message names it."""
        return f"question {item.id}"

    @abstractmethod
    def request(self, item: Item) -> Chat:
        """The chat that puts the question to a model."""

    def sampling(self, configured: Sampling) -> Sampling:
        """What answers are sampled with; a prompt profile may add stop strings and set their length."""
        return configured

    def ask(self, item: Item, sampling: Sampling, thinking: bool | None = None) -> Request:
        """The question as a request: its chat, and what else the prompt profile sets.

        Args:
            sampling: as configured.
            thinking: the chat template's `enable_thinking`; None leaves its default.
        """
        from ensemblehub.schema import Request

        chat = self.request(item)
        chat = chat if thinking is None else replace(chat, thinking=thinking)
        return Request(chat, self.sampling(sampling), id=item.id)

    @abstractmethod
    def grade(self, item: Item, text: str) -> Grade:
        """Grade an answer.  Thread-safe, bounded in time."""

    def in_form(self, item: Item, text: str) -> bool:
        """Whether an answer has the form that was asked for: a box, or code with the asked function."""
        return True

    def grading(self) -> str:
        """How answers were graded, for the record of a result, where it depends on the machine;
        else empty.
        """
        return ""

    def leaks(self, item: Item, insight: str) -> bool:
        """Whether the insight states the answer as a result.  Thread-safe, bounded in time."""
        return False

    def unserved(self) -> str:
        """What of the prompt profile no configuration can hold, in one line; empty where there is nothing."""
        return ""

    def about(self, split: str) -> dict[str, Any]:
        """The origin of a split's questions, for the record of a result;
        empty where name and split say it all.
        """
        return {}
