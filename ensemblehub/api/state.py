"""The state of a server, shared by those who change it and those who report it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass
class State:
    """The state of a server.

    Attributes:
        word: what it does; `stopped`: requests in flight are not waited for any longer.
        reason: why it failed.
    """

    word: Literal["loading", "ready", "draining", "stopped", "failed"] = "loading"
    reason: str = ""
