"""A bounded queue in front of the engines: how many answers are written at a time, and how many may wait.

Whether there is room is known at once, before a prompt is read.  Nothing here waits between looking and taking, so the
bounds are exact however many requests come together.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

from ensemblehub.api.problems import Problem


@dataclass(eq=False)
class Turn:
    """One answer's turn.

    Attributes:
        tokens: of its prompt.
        ready: set once it has a place.
    """

    tokens: int
    ready: asyncio.Event = field(default_factory=asyncio.Event)


class Admission:
    """Places for answers.

    Attributes:
        admitted: answers that run, wait, or whose prompts are being read.
        running: answers being written now.
        queued_tokens: tokens of the prompts of answers that wait.
    """

    def __init__(self, max_running: int, max_queued: int, max_queued_tokens: int) -> None:
        self.max_running, self.max_queued, self.max_queued_tokens = max_running, max_queued, max_queued_tokens
        self.admitted = self.running = self.queued_tokens = 0
        self._queue: deque[Turn] = deque()
        self._seconds = 1.0  # how long an answer takes, smoothed

    @property
    def queued(self) -> int:
        """Answers that were admitted and are not being written yet."""
        return self.admitted - self.running

    @contextmanager
    def entry(self) -> Iterator[Entry]:
        """What one request takes; all of it is given back at the end."""
        entry = Entry(self)
        try:
            yield entry
        finally:
            entry.close()

    def check(self, answers: int = 1) -> None:
        """Refuse, in constant time, what there is no room for; nothing is taken.

        Raises:
            Problem: 429, with `Retry-After`.
        """
        most = self.max_running + self.max_queued
        if answers > most:
            raise self._full(f"at most {most} answers run and wait at a time here, not {answers}")
        if self.admitted + answers > most:
            raise self._full(f"{max(0, self.admitted - self.max_running)} answers wait already")

    def enter(self, turns: Sequence[Turn]) -> None:
        """Give admitted answers places, or let them wait for one, first come, first served.

        Raises:
            Problem: 429, with `Retry-After`, if too many tokens would wait; nothing is taken.
        """
        waiting = sum(turn.tokens for turn in turns[self.max_running - self.running :])
        if waiting and self.queued_tokens + waiting > self.max_queued_tokens:
            raise self._full(f"prompts of {self.queued_tokens} tokens wait already")
        self._queue.extend(turns)
        self.queued_tokens += sum(turn.tokens for turn in turns)
        self._grant()

    def _grant(self) -> None:
        while self._queue and self.running < self.max_running:
            turn = self._queue.popleft()
            self.queued_tokens -= turn.tokens
            self.running += 1
            turn.ready.set()

    def leave(self, turn: Turn, seconds: float | None = None) -> None:
        """Give a place back, or stop waiting for one.

        Args:
            seconds: how long the answer took, if it ran.
        """
        if turn.ready.is_set():
            self.running -= 1
        else:
            self._queue.remove(turn)
            self.queued_tokens -= turn.tokens
        self.admitted -= 1
        if seconds is not None:
            self._seconds += 0.1 * (seconds - self._seconds)
        self._grant()

    def _full(self, why: str) -> Problem:
        seconds = max(1, math.ceil(self._seconds * (self.queued + 1) / self.max_running))
        return Problem(
            429, f"the server is busy: {why}", "overloaded", headers={"Retry-After": str(min(seconds, 600))}
        )


class Entry:
    """What one request takes of an `Admission`."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._unread = 0  # answers admitted, whose prompts are not read yet
        self._turns: deque[Turn] = deque()

    def admit(self, answers: int) -> None:
        """Reserve room for answers, before their prompts are read.

        Raises:
            Problem: as `Admission.check`.
        """
        self._admission.check(answers)
        self._admission.admitted += answers
        self._unread += answers

    def enter(self, tokens: Sequence[int]) -> None:
        """Queue the admitted answers by the length of each one's prompt.

        Raises:
            Problem: as `Admission.enter`.
        """
        turns = [Turn(count) for count in tokens]
        self._admission.enter(turns)
        self._turns.extend(turns)
        self._unread -= len(turns)

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Wait for the place of the request's next answer, and hold it."""
        turn, started = self._turns.popleft(), None
        try:
            await turn.ready.wait()
            started = time.perf_counter()
            yield
        finally:
            self._admission.leave(turn, None if started is None else time.perf_counter() - started)

    def close(self) -> None:
        """Give back what no answer took."""
        self._admission.admitted -= self._unread
        self._unread = 0
        while self._turns:
            self._admission.leave(self._turns.popleft())
