"""Deadlines, retries and the circuit breaker of an API."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt

from ensemblehub.generators.openai.errors import Failure

Seconds = Annotated[float, Gt(0)]


@dataclass(frozen=True)
class Patience:
    """Deadlines and retries of an API.

    Attributes:
        connect, first_token, inter_token, total: deadlines in seconds; `total` covers all tries.
        tries: maximum number of tries; a request is never retried once part of an answer has arrived.
        backoff: maximum delay in seconds before the second try, doubled for each further one.  The actual
            delay is drawn from the upper half of that range, or is the server's `Retry-After` where that is
            longer.
        longest_wait: seconds; a server that asks for a longer delay is not tried again.
        breaker_failures, breaker_seconds: after this many consecutive failures the endpoint is not asked for
            this many seconds.
    """

    connect: Seconds = 10.0
    first_token: Seconds = 120.0
    inter_token: Seconds = 60.0
    total: Seconds = 600.0
    tries: Annotated[int, Ge(1)] = 4
    backoff: Annotated[float, Ge(0)] = 0.5
    longest_wait: Annotated[float, Ge(0)] = 600.0
    breaker_failures: Annotated[int, Ge(1)] = 5
    breaker_seconds: Annotated[float, Ge(0)] = 30.0


class Clock:
    """The deadlines of one request, all its tries included.

    Attributes:
        end: when the whole request is due, by `time.monotonic`.
        due: when the next event of the current try is due.
    """

    def __init__(self, patience: Patience) -> None:
        self._total = patience.total
        self.end = self.due = time.monotonic() + patience.total

    def expect(self, seconds: float) -> None:
        """Set the deadline of the next event."""
        self.due = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds until the nearest deadline; always positive."""
        return max(0.001, min(self.end, self.due) - time.monotonic())

    def check(self) -> None:
        """Check the deadlines while data flows, when no timer gets a chance to run.

        Raises:
            Failure: a deadline has passed.
        """
        now = time.monotonic()
        if now >= self.end:
            raise Failure(f"it took longer than {self._total:g} s in all (`patience.total`)", again=False)
        if now >= self.due:
            raise Failure("it stalled", again=True)


@dataclass
class CircuitBreaker:
    """Refuses requests for a while after consecutive failures, then lets a single one through."""

    patience: Patience
    failures: int = 0
    open_until: float = 0.0
    last: str = ""

    def refusal(self) -> str:
        """Reason why the circuit breaker refuses requests now, and for how long; empty if it does not."""
        if self.failures < self.patience.breaker_failures:
            return ""
        left = self.open_until - time.monotonic()
        if left > 0:
            failed = f"it failed {self.failures} times in a row"
            return f"{failed} and is left alone for {left:.0f} s, at last: {self.last}"
        self.open_until = (
            time.monotonic() + self.patience.breaker_seconds
        )  # this request tries it, others wait
        return ""

    def succeeded(self) -> None:
        """Record a success."""
        self.failures = 0

    def failed(self, failure: Failure) -> None:
        """Record a failed try; refusals of a request (HTTP 4xx) do not count."""
        if failure.status == 0 or failure.status >= 500:
            self.failures += 1
            self.last = str(failure)
            self.open_until = time.monotonic() + self.patience.breaker_seconds
