"""What a built-in model answers to problems of the corpus, as `python -m ensemblehub.lab.builtin.sampling`
writes it.

A model is taught to say what it can solve, and the reward model to see mistakes, from these answers: they are
measured, not guessed.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ensemblehub.lab.builtin import corpus
from ensemblehub.lab.builtin.word_problems import WordProblem


@dataclass(frozen=True)
class Answered:
    """One answer to corpus problem `number`."""

    number: int
    reply: str
    solved: bool

    @property
    def problem(self) -> WordProblem:
        """The problem, drawn again."""
        return numbered(self.number)


def numbered(number: int) -> WordProblem:
    """Word problem `number` of the corpus, in any wording; the same on every machine."""
    return corpus.word_problem(random.Random(f"samples/{number}"))


def read(path: Path) -> Iterator[Answered]:
    """The answers in a file that this module wrote."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            yield Answered(**json.loads(line))
