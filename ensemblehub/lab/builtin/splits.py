"""Which split a built-in problem belongs to, decided by what the problem *is*.

The split is a hash of the problem's key: its canonical dependency graph with operations from three
steps on, and structure, names and numbers below that.  Two splits therefore never share a key, and a
split can be made as large as wanted without looking at the others.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from typing import Literal, Protocol, TypeVar

Split = Literal["corpus", "train", "calibration", "test"]
SPLITS: tuple[Split, ...] = ("corpus", "train", "calibration", "test")
_SALT = "studio/97/"  # chosen so that every split holds every number of steps in like shares
_UPPER = {"corpus": 64, "train": 76, "calibration": 88, "test": 100}  # percent of all keys


class Keyed(Protocol):
    """Anything with a key that says what makes it the same problem as another."""

    @property
    def key(self) -> str: ...


ProblemT = TypeVar("ProblemT", bound=Keyed)


def split_of(key: str) -> Split:
    """The split that owns `key`; the same on every machine and in every run."""
    bucket = int.from_bytes(hashlib.sha256((_SALT + key).encode()).digest()[:4], "big") % 100
    return next(split for split in SPLITS if bucket < _UPPER[split])


def stream_split(
    make: Callable[[random.Random], ProblemT], split: Split, seed: int = 0
) -> Iterator[ProblemT]:
    """An endless, deterministic stream of the problems of one split, drawn by rejection."""
    rng = random.Random(f"{split}/{seed}")
    while True:
        problem = make(rng)
        if split_of(problem.key) == split:
            yield problem
