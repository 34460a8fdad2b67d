"""The prefix cache: computed tokens that may be read again, with their KV and how well they were predicted.

Bounded in tokens, least recently used first out.  Knows token ids and tensors; knows no request.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

LayerKV = tuple[torch.Tensor, torch.Tensor]  # keys and values of one layer, (heads, tokens, dimension)


@dataclass
class Readings:
    """How well each token was predicted: `logprobs[i]`, `entropies[i]` and `best[i]` (nats) are of token i.

    `best` is id and logprob of the likeliest token in its place.  They are known for the first `len(self)`
    tokens; token 0 has no prediction and stands as NaN.
    """

    logprobs: list[float] = field(default_factory=lambda: [float("nan")])
    entropies: list[float] = field(default_factory=lambda: [float("nan")])
    best: list[tuple[int, float]] = field(default_factory=lambda: [(-1, float("nan"))])

    def __len__(self) -> int:
        return len(self.logprobs)

    def head(self, count: int) -> Readings:
        """The readings of the first `count` tokens (at least of token 0)."""
        count = max(1, count)
        return Readings(self.logprobs[:count], self.entropies[:count], self.best[:count])

    def learn(
        self,
        first: int,
        logprobs: Sequence[float],
        entropies: Sequence[float],
        best: Sequence[tuple[int, float]],
    ) -> None:
        """Add the readings of tokens `first` and on; known ones stay, a gap is not bridged."""
        known = len(self) - first
        if known >= 0:
            self.logprobs.extend(logprobs[known:])
            self.entropies.extend(entropies[known:])
            self.best.extend(best[known:])


@dataclass(eq=False)
class Entry:
    """One computed sequence."""

    ids: NDArray[np.int64]
    kv: list[LayerKV]
    readings: Readings


@dataclass(frozen=True)
class Match:
    """An entry and how many of its first tokens are the wanted ones."""

    entry: Entry | None
    common: int

    @property
    def read(self) -> int:
        """How many of the common tokens have known readings."""
        return min(self.common, len(self.entry.readings)) if self.entry else 0


class PrefixCache:
    """Holds `limit` tokens at most."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.entries: list[Entry] = []  # least recently used first

    @property
    def tokens(self) -> int:
        """Tokens held now."""
        return sum(len(entry.ids) for entry in self.entries)

    def longest(self, ids: Sequence[int], *, read: bool = False) -> Match:
        """The entry with the longest common token prefix; with `read`, as far as readings are known."""
        wanted = np.asarray(ids, dtype=np.int64)
        best, length = Match(None, 0), 0
        for entry in reversed(self.entries):
            if length >= len(wanted) or length >= len(entry.ids) or entry.ids[length] != wanted[length]:
                continue  # cannot be longer than the best so far
            match = Match(entry, _common(entry.ids, wanted))
            reach = match.read if read else match.common
            if reach > length:
                best, length = match, reach
        if best.entry is not None:
            self._touch(best.entry)
        return best

    def put(self, ids: Sequence[int], readings: Readings, kv: Callable[[], list[LayerKV]]) -> None:
        """Keep a computed sequence; `kv` is called only if nothing kept holds it already."""
        wanted = np.asarray(ids, dtype=np.int64)
        if not 0 < len(wanted) <= self.limit:
            return
        readings = readings.head(len(wanted))
        for entry in self.entries:
            if len(entry.ids) >= len(wanted) and _common(entry.ids, wanted) == len(wanted):
                entry.readings = max(entry.readings, readings, key=len)
                self._touch(entry)
                return
        self._drop_heads_of(wanted, readings)
        self.entries.append(Entry(wanted, kv(), readings))
        while self.tokens > self.limit:
            self.entries.pop(0)

    def _drop_heads_of(self, ids: NDArray[np.int64], readings: Readings) -> None:
        """Forget entries that `ids` extends; what was read of them is kept in `readings`."""
        heads = [entry for entry in self.entries if _common(entry.ids, ids) == len(entry.ids)]
        for entry in heads:
            readings.learn(0, entry.readings.logprobs, entry.readings.entropies, entry.readings.best)
            self.entries.remove(entry)

    def _touch(self, entry: Entry) -> None:
        self.entries.remove(entry)
        self.entries.append(entry)


def _common(left: NDArray[np.int64], right: NDArray[np.int64]) -> int:
    """Length of the common prefix of two id sequences."""
    shortest = min(len(left), len(right))
    differs = left[:shortest] != right[:shortest]
    return int(differs.argmax()) if differs.any() else shortest
