"""Whether a server can answer yet, or still."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass
class State:
    """The state of a server, for everyone who asks.

    Attributes:
        word: what it is doing; stopped: requests are not waited for any longer.
        reason: why it failed.
    """

    word: Literal["loading", "ready", "draining", "stopped", "failed"] = "loading"
    reason: str = ""
