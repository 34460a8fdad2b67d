"""Callbacks from a worker thread to its readers' event loops, one call per loop and step."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress

Callback = Callable[[], object]


class LoopCallbacks:
    """Collects callbacks until they are handed over."""

    def __init__(self) -> None:
        self._waiting: defaultdict[asyncio.AbstractEventLoop, list[Callback]] = defaultdict(list)

    def add(self, loop: asyncio.AbstractEventLoop, callback: Callback) -> None:
        """Run a callback in a loop, with the others of this step."""
        self._waiting[loop].append(callback)

    def hand_over(self) -> None:
        """Have every loop run its callbacks."""
        waiting, self._waiting = self._waiting, defaultdict(list)
        for loop, callbacks in waiting.items():
            with suppress(RuntimeError):  # the reader's loop is closed: nobody reads any more
                loop.call_soon_threadsafe(_call_all, callbacks)

    def __bool__(self) -> bool:
        return bool(self._waiting)


def _call_all(callbacks: Sequence[Callback]) -> None:
    for callback in callbacks:
        callback()
