"""Examples that judges learn from: readings with labels, split by question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ensemblehub.errors import ArtifactError
from ensemblehub.tandem.judges import ReadingBatch

SHARES = (0.70, 0.15)  # of the questions, for training and for validation; the rest is held out
FEWEST = 20  # questions


@dataclass(frozen=True)
class Examples:
    """Readings with, for each, its label (n,) and its question (n,)."""

    readings: ReadingBatch
    label: NDArray[np.bool_]
    question: NDArray[np.int64]

    def part(self, mask: NDArray[np.bool_]) -> Examples:
        """Those where `mask` holds."""
        return Examples(self.readings.part(mask), self.label[mask], self.question[mask])


def examples_of(
    features: ArrayLike,
    labels: ArrayLike,
    lengths: ArrayLike,
    groups: ArrayLike | None,
    sequences: Sequence[Sequence[NDArray[Any]]] | None = None,
) -> Examples:
    """Every reading of every question; the arguments are those of `train_judge`.

    Raises:
        ArtifactError: too few questions, or labels that are all the same.
    """
    table, truth = np.asarray(features), np.asarray(labels, bool)
    n, levels = truth.shape
    question = np.arange(n) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    if len(np.unique(question)) < FEWEST:
        raise ArtifactError(
            f"a judge needs at least {FEWEST} questions to learn from, not {len(np.unique(question))}"
        )
    if truth.all() or not truth.any():
        word = "right" if truth.all() else "wrong"
        raise ArtifactError(f"every answer of the intern is {word}: there is nothing for a judge to learn")
    flat: list[NDArray[Any]] = [np.zeros((2, 0))] * (n * levels)
    if sequences is not None:
        flat = [sequence for row in sequences for sequence in row]
    readings = ReadingBatch(
        table.reshape(n * levels, -1), flat, np.tile(np.arange(levels), n), np.asarray(lengths).reshape(-1)
    )
    return Examples(readings, truth.reshape(-1), np.repeat(question, levels))


def split(examples: Examples, seed: int) -> tuple[Examples, Examples, Examples]:
    """Training, validation and held-out examples, no question on two sides."""
    questions = np.random.default_rng(seed).permutation(np.unique(examples.question))
    first, second = round(SHARES[0] * len(questions)), round(sum(SHARES) * len(questions))
    sides = np.split(questions, [first, second])
    train, validation, held_out = (examples.part(np.isin(examples.question, side)) for side in sides)
    return train, validation, held_out
