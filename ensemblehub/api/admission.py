"""A bounded queue in front of the engines: how many answers are written at a time, and how many may wait.

A full queue is known at once, before a prompt is read.  Nothing here awaits between looking and taking, so
the bounds are exact however many requests come together.  A semaphore would not bound those that wait.
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
class QueuedAnswer:
    """An answer in the queue; `ready` is set when it may run."""

    prompt_tokens: int
    ready: asyncio.Event = field(default_factory=asyncio.Event)


class Admission:
    """The queue of answers.

    Attributes:
        admitted: answers that run, wait, or whose prompts are being read.
        running: answers being written now.
        queued_tokens: tokens of the prompts of answers that wait.
    """

    def __init__(self, max_running: int, max_queued: int, max_queued_tokens: int) -> None:
        self.max_running = max_running
        self.max_queued = max_queued
        self.max_queued_tokens = max_queued_tokens
        self.admitted = self.running = self.queued_tokens = 0
        self._queue: deque[QueuedAnswer] = deque()
        self._seconds = 1.0  # how long an answer takes, smoothed

    @property
    def queued(self) -> int:
        """Answers that were admitted and are not being written yet."""
        return self.admitted - self.running

    @contextmanager
    def reservation(self) -> Iterator[Reservation]:
        """What one request takes; all of it is given back at the end."""
        reservation = Reservation(self)
        try:
            yield reservation
        finally:
            reservation.close()

    def check(self, answers: int = 1) -> None:
        """Refuse, in constant time, answers for which the queue is too full; nothing is taken.

        Raises:
            Problem: 429, with `Retry-After`.
        """
        most = self.max_running + self.max_queued
        if answers > most:
            raise self._full(f"at most {most} answers run and wait at a time here, not {answers}")
        if self.admitted + answers > most:
            raise self._full(f"{max(0, self.admitted - self.max_running)} answers wait already")

    def enqueue(self, answers: Sequence[QueuedAnswer]) -> None:
        """Start admitted answers, or let them wait, first come, first served.

        Raises:
            Problem: 429, with `Retry-After`, if too many tokens would wait; nothing is taken.
        """
        waiting = sum(answer.prompt_tokens for answer in answers[self.max_running - self.running :])
        if waiting and self.queued_tokens + waiting > self.max_queued_tokens:
            raise self._full(f"prompts of {self.queued_tokens} tokens wait already")
        self._queue.extend(answers)
        self.queued_tokens += sum(answer.prompt_tokens for answer in answers)
        self._start_next()

    def _start_next(self) -> None:
        while self._queue and self.running < self.max_running:
            answer = self._queue.popleft()
            self.queued_tokens -= answer.prompt_tokens
            self.running += 1
            answer.ready.set()

    def leave(self, answer: QueuedAnswer, seconds: float | None = None) -> None:
        """Take an answer out, whether it runs or waits.

        Args:
            seconds: how long it ran.
        """
        if answer.ready.is_set():
            self.running -= 1
        else:
            self._queue.remove(answer)
            self.queued_tokens -= answer.prompt_tokens
        self.admitted -= 1
        if seconds is not None:
            self._seconds += 0.1 * (seconds - self._seconds)
        self._start_next()

    def _full(self, why: str) -> Problem:
        seconds = max(1, math.ceil(self._seconds * (self.queued + 1) / self.max_running))
        headers = {"Retry-After": str(min(seconds, 600))}
        return Problem(429, f"the server is busy: {why}", "overloaded", headers=headers)


class Reservation:
    """The share of an `Admission` that a request holds."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._unread = 0  # answers admitted, whose prompts are not read yet
        self._answers: deque[QueuedAnswer] = deque()

    def admit(self, answers: int) -> None:
        """Reserve places for answers, before their prompts are read.

        Raises:
            Problem: as `Admission.check`.
        """
        self._admission.check(answers)
        self._admission.admitted += answers
        self._unread += answers

    def queue(self, prompt_tokens: Sequence[int]) -> None:
        """Queue the admitted answers by the length of each one's prompt.

        Raises:
            Problem: as `Admission.enqueue`.
        """
        answers = [QueuedAnswer(tokens) for tokens in prompt_tokens]
        self._admission.enqueue(answers)
        self._answers.extend(answers)
        self._unread -= len(answers)

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Wait until the request's next answer may run, and hold its place."""
        answer, started = self._answers.popleft(), None
        try:
            await answer.ready.wait()
            started = time.perf_counter()
            yield
        finally:
            self._admission.leave(answer, None if started is None else time.perf_counter() - started)

    def close(self) -> None:
        """Give back what no answer took."""
        self._admission.admitted -= self._unread
        self._unread = 0
        while self._answers:
            self._admission.leave(self._answers.popleft())
