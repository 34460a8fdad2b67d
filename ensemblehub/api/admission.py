"""A bounded queue in front of the engines: how many answers are written at a time, and how many may wait.

Whether there is room is known at once, before a prompt is read.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from ensemblehub.api.problems import Problem


class Admission:
    """Places for answers.

    Attributes:
        running: answers being written now.
        queued, queued_tokens: answers that wait, and the tokens of their prompts.
    """

    def __init__(self, max_running: int, max_queued: int, max_queued_tokens: int) -> None:
        self.max_running, self.max_queued, self.max_queued_tokens = max_running, max_queued, max_queued_tokens
        self.running = self.queued = self.queued_tokens = 0
        self._places = asyncio.Semaphore(max_running)
        self._seconds = 1.0  # how long an answer takes, smoothed

    def check(self, answers: int = 1, tokens: int = 0) -> None:
        """Refuse, in constant time, what there is no room for.

        Raises:
            Problem: 429, with `Retry-After`.
        """
        waiting = max(0, answers - (self.max_running - self.running - self.queued))
        if waiting and self.queued + waiting > self.max_queued:
            raise self._full(f"{self.queued} answers wait already")
        if waiting and self.queued_tokens + tokens > self.max_queued_tokens:
            raise self._full(f"prompts of {self.queued_tokens} tokens wait already")

    @asynccontextmanager
    async def place(self, tokens: int) -> AsyncIterator[None]:
        """Wait for a place and hold it."""
        await self._wait(tokens)
        self.running += 1
        started = time.perf_counter()
        try:
            yield
        finally:
            self.running -= 1
            self._places.release()
            self._seconds += 0.1 * (time.perf_counter() - started - self._seconds)

    async def _wait(self, tokens: int) -> None:
        if not self._places.locked():
            await self._places.acquire()  # does not wait
            return
        self.queued += 1
        self.queued_tokens += tokens
        try:
            await self._places.acquire()
        finally:
            self.queued -= 1
            self.queued_tokens -= tokens

    def _full(self, why: str) -> Problem:
        seconds = max(1, math.ceil(self._seconds * (self.queued + 1) / self.max_running))
        return Problem(429, f"the server is busy: {why}", "overloaded", headers={"Retry-After": str(min(seconds, 600))})
