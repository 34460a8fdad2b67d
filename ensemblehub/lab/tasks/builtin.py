"""What both built-in benchmarks share: drawing the items of a split."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from itertools import count, islice
from typing import Generic, Protocol, TypeVar

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
    return islice(_kept(make, known), sizes[known] if limit is None else limit)


@cache
def _kept(make: Callable[[random.Random], ProblemT], split: Split) -> _Kept[ProblemT]:
    return _Kept(_unique(stream_split(make, split)))


class _Kept(Generic[ProblemT]):
    """A split's problems, each drawn once in a process, however often they are asked for."""

    def __init__(self, problems: Iterator[ProblemT]) -> None:
        self._problems = problems
        self._drawn: list[ProblemT] = []
        self._lock = threading.Lock()

    def __iter__(self) -> Iterator[ProblemT]:
        for index in count():
            with self._lock:
                if index == len(self._drawn):
                    self._drawn.append(next(self._problems))
            yield self._drawn[index]


def _unique(problems: Iterator[ProblemT]) -> Iterator[ProblemT]:
    seen: set[str] = set()
    for problem in problems:
        if problem.text not in seen:
            seen.add(problem.text)
            yield problem
