"""Failures of an API, and what it says of them: message, code and `Retry-After`, in any of their forms."""

from __future__ import annotations

import email.utils
import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ensemblehub.errors import EngineError

OVERFLOW = "context_length_exceeded"
_MESSAGES = ("message", "detail", "error", "msg", "title")
_TOO_LONG = "maximum context length|context (length|window|size) (is |was )?exceed|exceed_context_size"


@dataclass(eq=False)
class Failure(Exception):
    """A failed try.

    Attributes:
        again: whether another try may succeed.
        status: HTTP status; 0 where there is none.
        wait: seconds that the server asks to wait.
        code: the API's error code.
    """

    reason: str
    again: bool = field(kw_only=True)
    status: int = field(default=0, kw_only=True)
    wait: float = field(default=0.0, kw_only=True)
    code: str = field(default="", kw_only=True)

    def __str__(self) -> str:
        return self.reason


class RefusedError(EngineError):
    """The endpoint answered with an error of its own, of this HTTP status and API error code."""

    def __init__(self, text: str, engine: str, status: int, code: str) -> None:
        super().__init__(text, engine)
        self.status = status
        self.code = code


@dataclass(frozen=True)
class ErrorReply:
    """The error that an API reports.

    Attributes:
        message: empty where there is none.
        code: the API's error code; `context_length_exceeded` also where only the message says so.
        status: the HTTP status in the error; 0 where there is none.
    """

    message: str = ""
    code: str = ""
    status: int = 0

    @classmethod
    def read(cls, body: str) -> ErrorReply:
        """The error in the body of a response; empty where that is not JSON with a message."""
        try:
            found = json.loads(body)
        except (ValueError, RecursionError):
            return cls()  # a proxy's page
        found = found[0] if isinstance(found, list) and found else found
        if not isinstance(found, dict):
            return cls()
        return cls.of(found["error"] if isinstance(found.get("error"), dict) else found)

    @classmethod
    def within(cls, reply: Mapping[str, Any]) -> ErrorReply | None:
        """Return the error in a reply with a success status, or None."""
        if reply.get("error"):
            return cls.of(reply["error"] if isinstance(reply["error"], dict) else reply)
        if reply.get("object") == "error" or reply.get("type") == "error":
            return cls.of(reply)
        return None

    @classmethod
    def of(cls, error: Mapping[str, Any]) -> ErrorReply:
        """The error that a JSON object describes."""
        said = next((text for text in map(_text, map(error.get, _MESSAGES)) if text), "")
        metadata = error.get("metadata")
        raw = _text(metadata.get("raw")) if isinstance(metadata, dict) else ""
        message = f"{said}: {raw}" if said and raw else said or raw
        names = (error.get("code"), error.get("type"))
        words = [str(value) for value in names if isinstance(value, str | int)]
        status = next((int(word) for word in words if re.fullmatch(r"[45]\d\d", word, re.ASCII)), 0)
        too_long = re.search(_TOO_LONG, " ".join([message, *words]).lower()) is not None
        return cls(message, OVERFLOW if too_long else next(iter(words), ""), status)


def _text(value: Any) -> str:
    """A message; that of FastAPI is a list of objects."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        found = [entry.get("msg") for entry in value if isinstance(entry, dict)]
        return "; ".join(text for text in found if isinstance(text, str))
    return ""


def retry_after(value: str) -> float:
    """Return the seconds of a `Retry-After` header (a number or a date); 0 if it is neither."""
    if re.fullmatch(r"\d+(\.\d+)?", value.strip(), re.ASCII):
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError, TypeError, IndexError):
        return 0.0
