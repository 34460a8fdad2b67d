"""How long to wait for an API, how often to try, and when to leave it alone.

Knows no HTTP client.
"""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass(frozen=True)
class Patience:
    """How long to wait and how often to try.

    Attributes:
        connect, first_token, inter_token, total: deadlines in seconds; `total` covers all tries.
        tries: how often a request is made at most, as long as nothing has come back.
        backoff: seconds before the second try at most, doubled for each further one; a random part of it is waited,
            or the server's `Retry-After` where that is longer.
        longest_wait: seconds; a server that asks for more is not tried again.
        breaker_failures, breaker_seconds: after so many failures in a row the endpoint is left alone for so long.
    """

    connect: float = 10.0
    first_token: float = 120.0
    inter_token: float = 60.0
    total: float = 600.0
    tries: int = 4
    backoff: float = 0.5
    longest_wait: float = 600.0
    breaker_failures: int = 5
    breaker_seconds: float = 30.0


@dataclass
class Clock:
    """The times by which a whole request, and its next event, must be there."""

    end: float
    due: float


class Failure(Exception):
    """One try that failed; `again` tells whether another may help, `status` is the HTTP one, if any.

    `untried`: the endpoint was not even asked.
    """

    def __init__(
        self,
        reason: str,
        *,
        again: bool,
        status: int = 0,
        wait: float = 0.0,
        code: str = "",
        untried: bool = False,
    ) -> None:
        super().__init__(reason)
        self.again, self.status, self.wait, self.code, self.untried = again, status, wait, code, untried


@dataclass
class Breaker:
    """Leaves an endpoint alone after failures in a row; then lets one request try it."""

    patience: Patience
    failures: int = 0
    closed_at: float = 0.0
    reason: str = ""

    def check(self) -> None:
        """Refuse while the endpoint is left alone.

        Raises:
            Failure: says for how long.
        """
        left = self.closed_at - time.monotonic()
        if self.failures >= self.patience.breaker_failures and left > 0:
            why = f"it failed {self.failures} times in a row and is left alone for {left:.0f} s, at last: {self.reason}"
            raise Failure(why, again=False, untried=True)
        if self.failures >= self.patience.breaker_failures:
            self.closed_at = (
                time.monotonic() + self.patience.breaker_seconds
            )  # this one tries, the others wait

    def note(self, failure: Failure | None) -> None:
        """Count a try that failed, or start anew."""
        if failure is None:
            self.failures = 0
        elif not failure.untried and (failure.status == 0 or failure.status >= 500):
            self.failures, self.reason = self.failures + 1, str(failure)
            self.closed_at = time.monotonic() + self.patience.breaker_seconds
