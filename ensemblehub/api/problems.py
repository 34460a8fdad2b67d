"""Errors of requests as OpenAI's error objects, without what is the operator's business."""

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
_ANTHROPIC = "/v1/messages"  # routes below it have Anthropic's errors
_ANTHROPIC_TYPES = {413: "request_too_large", 500: "api_error", 503: "overloaded_error", 504: "timeout_error"}
_MAX_MESSAGE = 1000  # characters: what a client sent is repeated in part only
_MAX_PARAM = 200
_AT_URL = re.compile(r" at https?://\S+?(?=[:;,.]*(?:\s|$))")
_ADDRESS = re.compile(  # a URL, an address of IPv4 or IPv6, a host with a port
    r"https?://[^\s'\"<>()]+|\b\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?\b|\[(?=[^]]*:)[0-9a-fA-F:.]+\](?::\d+)?"
    r"|\b(?:localhost|(?:[\w-]+\.)+[A-Za-z][\w-]*):\d{2,5}\b"
)
_PATH = re.compile(  # an absolute path, one from a home folder or from this one, one of Windows
    r"(?<![\w./\\:)\]-])(?:(?:~[\w.-]*|\.{1,2})?/[\w.@+~-]+(?:/[\w.@+~-]*)*|[A-Za-z]:\\[^\s'\":]+)"
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
        super().__init__(status, _bounded(message, _MAX_MESSAGE), dict(headers or {}))
        self.code, self.param = code, None if param is None else _bounded(param, _MAX_PARAM)

    @property
    def body(self) -> dict[str, Any]:
        """The error object."""
        default = "server_error" if self.status_code >= 500 else "invalid_request_error"
        kind = _TYPES.get(self.status_code, default)
        return {"error": {"message": self.detail, "type": kind, "param": self.param, "code": self.code}}

    @property
    def anthropic_body(self) -> dict[str, Any]:
        """The error object of Anthropic's API."""
        default = "api_error" if self.status_code >= 500 else "invalid_request_error"
        kind = _ANTHROPIC_TYPES.get(self.status_code) or _TYPES.get(self.status_code, default)
        code = {"code": self.code} if self.code else {}
        return {"type": "error", "error": {"type": kind, "message": self.detail, **code}}

    def response(self, path: str) -> Response:
        """The HTTP response at a route, in the form of its API."""
        body = self.anthropic_body if path.startswith(_ANTHROPIC) else self.body
        return Response(orjson.dumps(body), self.status_code, self.headers, "application/json")


def _bounded(text: str, most: int) -> str:
    """A text as an error may hold it: at most `most` characters, without halves of surrogate pairs."""
    text = text if len(text) <= most else f"{text[: most - 1]}…"
    return text.encode(errors="backslashreplace").decode()


def public(text: str) -> str:
    """An error's text for clients: without addresses of other servers and without paths of this machine."""
    return _PATH.sub("[path]", _ADDRESS.sub("[address]", _AT_URL.sub("", text)))


def problem_of(error: BaseException, prompt: str = "messages") -> Problem:
    """The problem that an error is for a client.

    Unexpected exceptions are logged and become a generic 500; of other errors `public` removes what is the
    operator's business.

    Args:
        prompt: the field with the prompt.
    """
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, Problem):
        return error
    if isinstance(error, HTTPException):
        return Problem(error.status_code, str(error.detail), headers=error.headers)
    if isinstance(error, asyncio.CancelledError):  # only by a server that is stopped
        return Problem(503, "the server was stopped before the answer ended", "server_stopped")
    text = " ".join(str(error).split())
    told = public(text)
    if isinstance(error, ContextOverflowError):
        return Problem(400, _overflow(told), OVERFLOW, prompt)
    if isinstance(error, EngineError | ConfigError) and told != text:
        log.warning("%s", text)  # for the operator, with the address or the path
    if isinstance(error, RequestError | ConfigError):
        return Problem(400, told, "unsupported")
    if isinstance(error, EngineError):
        return Problem(502, told, "engine_error")
    if isinstance(error, TimeoutError):
        return Problem(504, told or "the request took too long", "timeout")
    if isinstance(error, EnsembleHubError):
        return Problem(500, told, "server_error")
    log.error("unexpected exception", exc_info=error)
    return Problem(500, "internal error; the server's log has more under this request's id", "internal_error")


def _overflow(text: str) -> str:
    """An overflow as clients recognise it: LiteLLM by OpenAI's words, LangChain by the code in the text."""
    words = ContextOverflowError.WORDS
    text = text if words in text else f"{words} exceeded: {text}"
    return text if OVERFLOW in text else f"{text} ({OVERFLOW})"


def problem_of_fields(error: RequestValidationError, known: Sequence[str]) -> Problem:
    """The first field that is wrong, with the nearest name for an unknown one.

    Args:
        known: names of the fields that there are.
    """
    first = min(error.errors(), key=lambda wrong: wrong["type"] != "extra_forbidden")
    where = [str(part) for part in first["loc"][1:]]  # behind "body" or "query"
    where = [
        part for part in where if not part.startswith("~") and part != "[key]"
    ]  # not fields of the client
    at = ".".join(where) or None
    if first["type"] == "json_invalid":
        return Problem(400, f"the body is not JSON: {first.get('ctx', {}).get('error', first['msg'])}")
    if first["type"] == "extra_forbidden" and len(where) == 1:
        return Problem(400, *refusal(where[0], known), at)
    reason = first["msg"].removeprefix("Value error, ")
    return Problem(400, f"{at}: {reason}" if at else reason, "invalid_value", at)
