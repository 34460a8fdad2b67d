"""The prefix cache: computed tokens that can be reused, with their KV and how well they were predicted.

Bounded in tokens, least recently used first out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import nan
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass
class TokenReadings:
    """How well each token was predicted: `logprobs[i]`, `entropies[i]` and `best[i]` (nats) are of token i.

    `best` is the id and logprob of the most probable token in its place.  Known for the first `len(self)`
    tokens; token 0 has no prediction and stands as NaN.
    """

    logprobs: list[float] = field(default_factory=lambda: [nan])
    entropies: list[float] = field(default_factory=lambda: [nan])
    best: list[tuple[int, float]] = field(default_factory=lambda: [(-1, nan)])

    def __len__(self) -> int:
        return len(self.logprobs)

    def head(self, count: int) -> TokenReadings:
        """The readings of the first `count` tokens (at least of token 0)."""
        count = max(1, count)
        return TokenReadings(self.logprobs[:count], self.entropies[:count], self.best[:count])

    def learn(
        self,
        first: int,
        logprobs: Sequence[float],
        entropies: Sequence[float],
        best: Sequence[tuple[int, float]],
    ) -> None:
        """Add the readings of tokens `first` and on.

        Keeps known entries; adds nothing if `first` leaves a gap.
        """
        known = len(self) - first
        if known >= 0:
            self.logprobs.extend(logprobs[known:])
            self.entropies.extend(entropies[known:])
            self.best.extend(best[known:])


@dataclass(eq=False)
class CachedPrefix:
    """One computed sequence; `kv` is in the model's own form."""

    ids: NDArray[np.int64]
    kv: Any
    readings: TokenReadings


@dataclass(frozen=True)
class Match:
    """A cached sequence and how many of its first tokens can be used."""

    entry: CachedPrefix | None
    length: int

    def reusable(self, count: int, whole: bool, tail: int = 1) -> int:
        """Number of tokens that a row of `count` need not compute again.

        The last `tail` tokens are computed again for their predictions; where the predictions of all tokens
        are returned (`whole`), the last token whose successor's prediction is known is.
        """
        if whole:
            return self.length if self.length == count else max(0, self.length - 1)
        return min(self.length, count - tail)


class PrefixCache:
    """Holds at most `limit` tokens."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.entries: list[CachedPrefix] = []  # least recently used first

    @property
    def tokens(self) -> int:
        """Number of tokens held now."""
        return sum(len(entry.ids) for entry in self.entries)

    def longest(self, ids: Sequence[int], *, read: bool = False) -> Match:
        """The entry with the longest common token prefix; with `read`, as far as readings are known."""
        wanted = np.asarray(ids, dtype=np.int64)
        best: CachedPrefix | None = None
        length = 0
        for entry in reversed(self.entries):
            if length >= len(wanted) or length >= len(entry.ids) or entry.ids[length] != wanted[length]:
                continue  # cannot be longer than the best so far
            common = _common(entry.ids, wanted)
            reach = min(common, len(entry.readings)) if read else common
            if reach > length:
                best, length = entry, reach
        if best is not None:
            self._touch(best)
        return Match(best, length)

    def put(self, ids: Sequence[int], readings: TokenReadings, kv: Callable[[], Any]) -> None:
        """Keep a computed sequence; `kv` is called only if no entry holds the sequence already."""
        wanted = np.asarray(ids, dtype=np.int64)
        if not 0 < len(wanted) <= self.limit:
            return
        readings = readings.head(len(wanted))
        for entry in self.entries:
            if _begins(entry.ids, wanted):
                entry.readings = max(entry.readings, readings, key=len)
                self._touch(entry)
                return
        for entry in [head for head in self.entries if _begins(wanted, head.ids)]:
            readings.learn(0, entry.readings.logprobs, entry.readings.entropies, entry.readings.best)
            self.entries.remove(entry)
        self.entries.append(CachedPrefix(wanted, kv(), readings))
        while self.tokens > self.limit:
            self.entries.pop(0)

    def _touch(self, entry: CachedPrefix) -> None:
        self.entries.remove(entry)
        self.entries.append(entry)


def _common(left: NDArray[np.int64], right: NDArray[np.int64]) -> int:
    """Length of the common prefix of two id sequences."""
    shortest = min(len(left), len(right))
    differs = left[:shortest] != right[:shortest]
    return int(differs.argmax()) if differs.any() else shortest


def _begins(whole: NDArray[np.int64], head: NDArray[np.int64]) -> bool:
    """Whether an id sequence begins with another; most differ in length or in that one's last id."""
    last = len(head) - 1
    return last < len(whole) and whole[last] == head[last] and bool((whole[:last] == head[:last]).all())
