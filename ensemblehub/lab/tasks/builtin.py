"""What both built-in benchmarks share: drawing the items of a split."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Protocol, TypeVar

from ensemblehub.errors import ConfigError, did_you_mean
from ensemblehub.lab.builtin.splits import Split, stream_split

SPLITS: tuple[Split, ...] = ("train", "calibration", "test")


class Drawn(Protocol):
    """A built-in problem as this file needs it."""

    @property
    def key(self) -> str: ...

    @property
    def text(self) -> str: ...


ProblemT = TypeVar("ProblemT", bound=Drawn)


def drawn(
    make: Callable[[random.Random], ProblemT], sizes: Mapping[Split, int], split: str, limit: int | None
) -> Iterator[ProblemT]:
    """The first `limit` problems of a split (its own size if None), no text twice, always in the same order.

    Raises:
        ConfigError: no such split.
    """
    known = next((name for name in sizes if name == split), None)
    if known is None:
        raise ConfigError(did_you_mean(split, sizes, "split"))
    return islice(_unique(stream_split(make, known)), sizes[known] if limit is None else limit)


def _unique(problems: Iterator[ProblemT]) -> Iterator[ProblemT]:
    seen: set[str] = set()
    for problem in problems:
        if problem.text not in seen:
            seen.add(problem.text)
            yield problem
