"""A request on its way, from when it was checked until it is over."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from ensemblehub.api.admission import Entry
from ensemblehub.api.answers import Answer, Kind
from ensemblehub.api.catalog import Served
from ensemblehub.api.protocol import Generate


@dataclass
class Job:
    """A request on its way: what was asked, and the answers as they are written.

    Attributes:
        per_prompt: answers to each prompt.
        entry: its answers' places in the queue.
        first: seconds until the first token; None while there is none.
        outcome: `ok`, a problem's code, `disconnected`, or `stopped` with the server.
        shown: a log may hold what was asked and answered.
    """

    kind: Kind
    body: Generate
    served: Served
    answers: list[Answer]
    per_prompt: int
    id: str
    entry: Entry
    created: int = field(default_factory=lambda: int(time.time()))
    started: float = field(default_factory=time.perf_counter)
    first: float | None = None
    outcome: str = "ok"
    shown: bool = False

    @property
    def tokens(self) -> int:
        """Tokens of all its prompts."""
        return sum(answer.prompt_tokens for answer in self.answers[:: self.per_prompt])

    def summary(self) -> dict[str, Any]:
        """For a log; no word of prompt or answer unless it may be shown."""
        words: dict[str, Any] = {}
        if self.shown:
            asked = self.body.model_dump(exclude_none=True)
            words = {"request": asked, "answers": [answer.result.text for answer in self.answers]}
        return {
            "model": self.served.name,
            "outcome": self.outcome,
            "answers": len(self.answers),
            "prompt_tokens": self.tokens,
            "written_tokens": sum(answer.ledger.total.completion_tokens for answer in self.answers),
            "first_token_seconds": None if self.first is None else round(self.first, 6),
            **words,
        }
