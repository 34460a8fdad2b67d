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


_FORMULA = re.compile(r"\$\$?([^$\s](?:[^$]*[^$\s])?)\$\$?(?!\d)|\\[()\[\]]|[\u200b\ufeff]")
_DASH = re.compile("[\u2010-\u2015\u2212\ufe58\ufe63\uff0d]")
_MARK = re.compile(
    r"(?P<counts>[%&/@\\]|(?<=\w)#|#(?=\w)"
    r"|(?<![^\W\d])(?<!\.)\.(?=\d)|(?<=\d):(?=\d)|(?<=\d)!|!(?==)"  # .5, 1.5, 3:1, 5!, !=
    r"|(?<=[\w)])( ?)\*+\2(?=[\w(])"  # 2*3, but not **bold**
    r"|[\[{](?=[-.]*\d)|(?<=\d)[\]}]"
    r"|-(?=\s*[\d.])|(?<=\d)-|(?<=\d )-|(?<![^\W\d_])-(?=[^\s-])|-(?=>))"  # a sign, minus or arrow; no hyphen
    r"|[^\w\s]"
)


def words(text: str) -> str:
    """A text without case, spacing and the punctuation of prose; two texts are equal where these are.

    Dropped are quotes, round brackets, asterisks of emphasis, commas, stops, colons, hyphens and dashes between
    words, and the dollars around a formula.  Everything else counts: letters with their marks, digits, symbols
    (`+`, `<`, `=`, currencies, emojis), `#`, `%`, `&`, `/`, `@`, a backslash, and where they belong to a number,
    its sign, its decimal point, a minus, `*`, `:` and `!`, square and curly brackets.  A text of nothing but
    punctuation equals only itself.
    """
    folded = unicodedata.normalize("NFC", text.casefold())
    folded = _DASH.sub("-", _FORMULA.sub(lambda found: found[1] or "", folded))
    return " ".join(_MARK.sub(_counted, folded).split()) or text.strip()


def _counted(found: re.Match[str]) -> str:
    """A character that is no letter, digit or space: set apart where it counts, else a space."""
    kind = unicodedata.category(found[0][-1])[0]
    if kind in "MC":  # of a letter or an emoji
        return found[0]
    return f" {found[0]} " if found["counts"] or (kind == "S" and found[0] != "`") else " "
