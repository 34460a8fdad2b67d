"""A least-recently-used cache bounded by the weight of its entries.

`functools.lru_cache` bounds their number only, and rendered prompts differ in size a thousandfold;
`cachetools` weighs results without the arguments, which here are the prompts.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class LRUCache(Generic[T]):
    """Calls `compute` and keeps its latest results; thread-safe.

    Args:
        weigh: bytes of a result and of its arguments.
        most: maximum number of bytes kept; a heavier result is not kept.
    """

    def __init__(self, compute: Callable[..., T], weigh: Callable[..., int], most: int) -> None:
        self._compute = compute
        self._weigh = weigh
        self._most = most
        self._kept: OrderedDict[tuple[Hashable, ...], tuple[T, int]] = OrderedDict()
        self._lock = threading.Lock()
        self.weight = 0

    def __call__(self, *arguments: Any) -> T:
        """`compute(*arguments)`, from the cache where it is there."""
        with self._lock:
            if arguments in self._kept:
                self._kept.move_to_end(arguments)
                return self._kept[arguments][0]
        found = self._compute(*arguments)
        weight = self._weigh(found, *arguments)
        with self._lock:
            if weight <= self._most and arguments not in self._kept:
                self._kept[arguments] = (found, weight)
                self.weight += weight
            while self.weight > self._most:
                _, (_, evicted) = self._kept.popitem(last=False)
                self.weight -= evicted
        return found
