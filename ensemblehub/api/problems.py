"""What can go wrong with a request, as the OpenAI error object that clients understand."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from ensemblehub.api.fields import refusal
from ensemblehub.errors import (
    ConfigError,
    ContextOverflowError,
    EngineError,
    EnsembleHubError,
    RequestError,
)

log = logging.getLogger(__name__)
OVERFLOW = "context_length_exceeded"
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


_MESSAGE, _PARAM = 1000, 200  # characters at most: what a client sent is repeated in part only
_AT_URL = re.compile(r" at https?://\S+?(?=[:;,.]*(?:\s|$))")
_ADDRESS = re.compile(  # a URL, an address of IPv4 or IPv6, a host with a port
    r"https?://[^\s'\"<>()]+|\b\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?\b|\[(?=[^]]*:)[0-9a-fA-F:.]+\](?::\d+)?"
    r"|\b(?:localhost|(?:[\w-]+\.)+[A-Za-z][\w-]*):\d{2,5}\b"
)


class Problem(HTTPException):
    """A request that gets no answer.

    Args:
        code: for programs (`model_not_found`, `context_length_exceeded`, ...).
        param: the field that is wrong.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, _told(message, _MESSAGE), dict(headers or {}))
        self.code, self.param = code, None if param is None else _told(param, _PARAM)

    @property
    def body(self) -> dict[str, Any]:
        """The error object."""
        kind = _TYPES.get(
            self.status_code, "server_error" if self.status_code >= 500 else "invalid_request_error"
        )
        return {"error": {"message": self.detail, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        """The HTTP response."""
        return Response(orjson.dumps(self.body), self.status_code, self.headers, "application/json")


def _told(text: str, most: int) -> str:
    """A text as an error may hold it: bounded, and of whole characters."""
    text = text if len(text) <= most else f"{text[: most - 1]}…"
    return text.encode(errors="backslashreplace").decode()


def public(text: str) -> str:
    """What went wrong, without the addresses of the servers behind this one, which are the operator's business."""
    return _ADDRESS.sub("[address]", _AT_URL.sub("", text))


def problem_of(error: BaseException, prompt: str = "messages") -> Problem:
    """The problem that an error is for a client; what nobody foresaw is logged and said without details.

    Args:
        prompt: the field with the prompt.
    """
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, Problem):
        return error
    text = " ".join(str(error).split())
    if isinstance(error, asyncio.CancelledError):  # by nobody else
        return Problem(503, "the server was stopped before the answer ended", "server_stopped")
    if isinstance(error, ContextOverflowError):
        return Problem(400, _overflow(text), OVERFLOW, prompt)
    if isinstance(error, RequestError | ConfigError):
        return Problem(400, text, "unsupported")
    if isinstance(error, EngineError):
        log.warning("%s", text)  # for the operator, with the address
        return Problem(502, public(text), "engine_error")
    if isinstance(error, TimeoutError):
        return Problem(504, text or "the request took too long", "timeout")
    if isinstance(error, HTTPException):
        return Problem(error.status_code, str(error.detail), headers=error.headers)
    if isinstance(error, EnsembleHubError):
        return Problem(500, text, "server_error")
    log.error("a request failed in a way nobody foresaw", exc_info=error)
    return Problem(500, "internal error; the server's log has more under this request's id", "internal_error")


def _overflow(text: str) -> str:
    """A context overflow as clients recognise it: LiteLLM by OpenAI's words, LangChain by the code in the message."""
    words = ContextOverflowError.WORDS
    text = text if words in text else f"{words} exceeded: {text}"
    return text if OVERFLOW in text else f"{text} ({OVERFLOW})"


def problem_of_fields(error: RequestValidationError, known: Sequence[str]) -> Problem:
    """The first field that is wrong, with the nearest name for an unknown one.

    Args:
        known: names of the fields that there are.
    """
    first = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
    where = [str(part) for part in first["loc"][1:]]  # behind "body" or "query"
    where = [part for part in where if not part.startswith("~")]  # names of alternatives are ours
    at = ".".join(where) or None
    if first["type"] == "json_invalid":
        return Problem(400, f"the body is not JSON: {first.get('ctx', {}).get('error', first['msg'])}")
    if first["type"] == "extra_forbidden" and len(where) == 1:
        return Problem(400, *refusal(where[0], known), at)
    reason = first["msg"].removeprefix("Value error, ")
    return Problem(400, f"{at}: {reason}" if at else reason, "invalid_value", at)
