"""Budgets of API keys per day (UTC), in a SQLite file that servers share and that survives a restart."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from ensemblehub.api.problems import Problem
from ensemblehub.config.sections import Budget
from ensemblehub.cost import Cost
from ensemblehub.errors import ConfigError

log = logging.getLogger(__name__)
_KEPT = timedelta(days=31)
_TABLE = """
CREATE TABLE IF NOT EXISTS spent (
    day TEXT NOT NULL, owner TEXT NOT NULL, usd REAL NOT NULL, flops REAL NOT NULL, tokens INTEGER NOT NULL,
    PRIMARY KEY (day, owner)
) WITHOUT ROWID
"""
_ADD = """
INSERT INTO spent VALUES (?, ?, ?, ?, ?) ON CONFLICT (day, owner) DO UPDATE
SET usd = usd + excluded.usd, flops = flops + excluded.flops, tokens = tokens + excluded.tokens
"""


def _utc() -> datetime:
    return datetime.now(UTC)


class KeyBudgets:
    """What every API key spends in a day.

    Args:
        path: made where it is missing.
        limit: what each key may spend.

    Raises:
        ConfigError: the file cannot be opened or holds something else.
    """

    def __init__(self, path: Path, limit: Budget, now: Callable[[], datetime] = _utc) -> None:
        self.limit = limit
        self._now = now
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = sqlite3.connect(path, timeout=5.0, isolation_level=None, check_same_thread=False)
            self._file.execute("PRAGMA journal_mode = WAL")  # readers wait for nobody, writers for each other
            self._file.execute(
                "PRAGMA synchronous = NORMAL"
            )  # survives a kill; a power cut may take the last ones
            self._file.execute(_TABLE)
            self._file.execute("DELETE FROM spent WHERE day < ?", ((now() - _KEPT).date().isoformat(),))
        except (OSError, sqlite3.Error) as error:
            raise ConfigError(f"server.key_budget_file: {path}: {error}") from error

    def spent(self, owner: str) -> Cost:
        """What a key has spent today.

        Raises:
            Problem: 503, if the file cannot be read.
        """
        today = self._now().date().isoformat()
        try:
            row = self._file.execute(
                "SELECT usd, flops, tokens FROM spent WHERE day = ? AND owner = ?", (today, owner)
            ).fetchone()
        except sqlite3.Error as error:
            log.error("the budgets of keys cannot be read: %s", error)
            raise Problem(503, "the budgets of API keys cannot be read", "not_ready") from error
        usd, flops, tokens = row or (0.0, 0.0, 0)
        return Cost(prompt_tokens=tokens, decode_flops=flops, usd=usd)

    def check(self, owner: str) -> None:
        """Refuse a key that has spent its budget.

        Raises:
            Problem: 429, which says when the next day begins.
        """
        if (reached := self.limit.reached(self.spent(owner))) is not None:
            raise self._refusal(f"is spent: {reached}")

    def too_little(self, owner: str) -> Problem:
        """A 429 for a request for which the rest of a key's budget does not suffice."""
        left = self.left(owner).model_dump(exclude_none=True)
        amounts = ", ".join(f"{amount:.6g} {name}" for name, amount in left.items())
        return self._refusal(f"does not suffice: {amounts} are left")

    def _refusal(self, why: str) -> Problem:
        now = self._now()
        midnight = datetime.combine(now.date() + timedelta(days=1), datetime.min.time(), UTC)
        seconds = int((midnight - now).total_seconds()) + 1
        hours, minutes = divmod(seconds // 60, 60)
        begins = f"the next day begins at {midnight:%Y-%m-%dT%H:%MZ}, in {hours} h {minutes} min"
        text = f"the daily budget of this API key {why}; {begins}"
        # clients of OpenAI and Anthropic try again within seconds otherwise
        headers = {"Retry-After": str(seconds), "x-should-retry": "false"}
        return Problem(429, text, "budget_spent", headers=headers)

    def left(self, owner: str) -> Budget:
        """What a key may still spend today; at least the smallest amount of each."""
        spent, limit = self.spent(owner), self.limit
        tokens = spent.prompt_tokens
        return Budget.model_construct(
            usd=None if limit.usd is None else max(1e-12, limit.usd - spent.usd),
            tflops=None if limit.tflops is None else max(1e-12, limit.tflops - spent.flops / 1e12),
            tokens=None if limit.tokens is None else max(1, limit.tokens - tokens),
        )

    def add(self, owner: str, cost: Cost) -> None:
        """Count what a request cost; a failure to write is logged."""
        if not cost.calls:
            return
        computed = cost.prompt_tokens - cost.cached_tokens + cost.completion_tokens
        row = (self._now().date().isoformat(), owner, cost.usd, cost.flops, computed)
        try:
            self._file.execute(_ADD, row)
        except sqlite3.Error as error:
            log.error("what a key spent cannot be written: %s", error)

    def close(self) -> None:
        """Close the file."""
        self._file.close()
