"""A user's own questions: any data file that `infer` reads, with or without answers."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import ClassVar

from ensemblehub.answers.equality import equal_answers, final_answer
from ensemblehub.answers.notation import undelimited
from ensemblehub.data import BadExample, read_items
from ensemblehub.errors import ConfigError, did_you_mean
from ensemblehub.lab.tasks.base import Grade, Item, Task
from ensemblehub.schema import Chat


@dataclass(frozen=True)
class OwnQuestions(Task):
    """The questions of a data file.

    An answer is right where its final answer, or else its whole text without case, spacing and the punctuation of
    prose (see `words`), equals the file's answer to the question.

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
            yield Item(item.key, text, item.label or "", extra={"chat": item.prompt, "number": item.number})

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

    def named(self, item: Item) -> str:
        return f"item {item.extra['number']} of {self.data}"

    def request(self, item: Item) -> Chat:
        chat: Chat = item.extra["chat"]
        return chat

    def grade(self, item: Item, text: str) -> Grade:
        said = final_answer(text)
        right = words(text) == words(item.answer)
        if not right and said is not None:
            right = equal_answers(final_answer(item.answer) or item.answer, said)
        return Grade(right, said or text.strip() or None, "" if right else f"not {item.answer!r}")


_DASH = re.compile("[\u2010-\u2015\u2212\ufe58\ufe63\uff0d]")
_PROSE = re.compile(
    r"(?<!\S)[\"(*_`\u2018-\u201e\u00ab\u00bb]+"  # before a word
    r"|[\")*_`\u2018-\u201e\u00ab\u00bb.:?]+(?!\S)"  # behind one
    r"|(?<=[^\W\d_])!+(?!\S)|(?<=[^\W\d_])-(?=[^\W\d_])|(?<=[^\W\d_]) -+ (?=[^\W\d_])|[,;'\u2019\u200b\ufeff]"
)


def words(text: str) -> str:
    """A text without case, spacing and the punctuation of prose; two texts are equal where these are.

    Dropped are the delimiters of formulas; commas, semicolons and apostrophes; quotes, round brackets, marks of
    emphasis, stops and colons at the ends of words; `!` behind a letter; hyphens and dashes between two letters.
    All else counts (`-5`, `.5`, `5!`, `C#`).  A text of nothing but punctuation equals only itself.
    """
    folded = _DASH.sub("-", undelimited(unicodedata.normalize("NFC", text.casefold().strip())))
    return re.sub(r" ?([^\w\s]) ?", r"\1", " ".join(_PROSE.sub(" ", folded).split())) or text.strip()
