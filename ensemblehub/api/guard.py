"""Middleware before every route: API keys, the size of bodies, the queue, and a line in the log.

Plain ASGI, so that streams pass through untouched.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import email.message
import hashlib
import hmac
import logging
import re
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from ipaddress import ip_address
from urllib.parse import quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ensemblehub.api.admission import Admission
from ensemblehub.api.key_budgets import KeyBudgets
from ensemblehub.api.monitoring import Monitor
from ensemblehub.api.problems import Problem, problem_of
from ensemblehub.api.state import State

log = logging.getLogger(__name__)
_PUBLIC = ("/", "/health")  # show no data, so need no key; neither do the parts of the page
_GENERATION = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages")
_NEED_MODELS = (
    *(*_GENERATION, "/v1/ensemble/preview", "/v1/messages/count_tokens", "/v1/responses/input_tokens"),
    *("/tokenize", "/detokenize", "/tokenizer_info"),
)
_FOR_BROWSERS = ("/docs", "/openapi.json")  # a browser asks for a password itself, which is the key
_REQUEST_ID = re.compile(r"[\w.-]{1,64}", re.ASCII)
_LOCAL = {"localhost", "127.0.0.1", "::1", "[::1]"}


class Guard:
    """Refuses what may not pass; bounds bodies; names and logs each request.

    HEAD is answered wherever GET is, with the same headers.

    Args:
        keys: API keys, any of which opens every route; without one, only loopback is served.
    """

    def __init__(
        self,
        app: ASGIApp,
        keys: Sequence[str],
        max_body_bytes: int,
        state: State,
        admission: Admission,
        monitor: Monitor,
        budgets: KeyBudgets | None = None,
    ) -> None:
        self.app = app
        self.state = state
        self.admission = admission
        self.monitor = monitor
        self.budgets = budgets
        self._keys = [key.encode() for key in keys]
        self._owners = [hashlib.sha256(key).hexdigest()[:16] for key in self._keys]
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers, started = Headers(scope=scope), time.perf_counter()
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {}).update(request_id=request_id, owner="")
        status = received = 0
        is_head = scope["method"] == "HEAD"

        async def named_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                names = MutableHeaders(scope=message)
                names["x-request-id"] = names["request-id"] = request_id  # OpenAI's name, and Anthropic's
            elif is_head:
                message = {**message, "body": b""}
            await send(message)

        async def bounded_receive() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            self._check_size(received)
            return message

        try:
            self._admit(scope, headers)
            with self.admission.reservation() as reservation:
                scope["state"]["reservation"] = reservation
                as_get = {**scope, "method": "GET"} if is_head else scope
                await self.app(as_get, bounded_receive, named_send)
        except Problem as problem:
            await problem.response(scope["path"])(scope, receive, named_send)
        except asyncio.CancelledError as error:  # the server is stopped: nothing else cancels a request
            if status:
                raise
            await problem_of(error).response(scope["path"])(scope, receive, named_send)
        finally:
            self._log(scope, status, time.perf_counter() - started)

    def _admit(self, scope: Scope, headers: Headers) -> None:
        """Refuse a request by its head alone.

        Raises:
            Problem: says why.
        """
        path, method = scope["path"], scope["method"]
        public = path in _PUBLIC or path.startswith("/page/")
        if not (public and method in ("GET", "HEAD")):
            self._authorize(scope, headers)
        length = headers.get("content-length", "0")
        if length.isdigit():
            self._check_size(int(length))
        if method == "POST":
            _check_content(headers)
        if path in _NEED_MODELS and self.state.word != "ready":
            raise Problem(503, f"the server is {self.state.word}", "not_ready", headers={"Retry-After": "5"})
        if path in _GENERATION:
            self.admission.check()
            if self.budgets:
                self.budgets.check(scope["state"]["owner"])

    def _authorize(self, scope: Scope, headers: Headers) -> None:
        if not self._keys:
            peer = (scope.get("client") or ("127.0.0.1", 0))[0]
            host = headers.get("host", "localhost")
            if not (_is_loopback(peer) and (host in _LOCAL or host.rpartition(":")[0] in _LOCAL)):
                text = "without an API key only loopback is served: start the server with --api-key"
                raise Problem(403, text)
            return
        given = _given_keys(headers, scope["method"])
        matches = [
            hmac.compare_digest(shown, key) for shown in given for key in self._keys
        ]  # all: equal time
        if any(matches):
            scope["state"]["owner"] = self._owners[matches.index(True) % len(self._keys)]
        else:
            browser = scope["path"].startswith(_FOR_BROWSERS)
            scheme = 'Basic realm="the API key is the password"' if browser else "Bearer"
            text = "wrong API key" if given else "an API key is needed: send Authorization: Bearer KEY"
            raise Problem(401, text, "invalid_api_key", headers={"WWW-Authenticate": scheme})

    def _check_size(self, size: int) -> None:
        if size > self._max_body_bytes:
            text = f"a request body has at most {self._max_body_bytes} bytes here"
            raise Problem(413, text, "body_too_large")

    def _log(self, scope: Scope, status: int, seconds: float) -> None:
        if status >= 400:
            self.monitor.errors.labels(str(status)).inc()
        job = scope["state"].get("job")
        details = {
            "request_id": scope["state"]["request_id"],
            "method": scope["method"],
            "path": scope["path"],
            "status": status or 499,
            "seconds": round(seconds, 6),
            **(job.summary() if job else {}),
        }
        line = f"{scope['method']} {quote(scope['path'])} {details['status']}"
        log.log(logging.INFO if job or status >= 400 else logging.DEBUG, line, extra={"details": details})


def _check_content(headers: Headers) -> None:
    """Refuse a body that says it is anything but plain JSON in UTF-8.

    Raises:
        Problem: 415.
    """
    code = "unsupported_media_type"
    kind, charset = _media_type(headers.get("content-type", ""))
    if kind != "application/json":
        raise Problem(415, "the body must be JSON: send Content-Type: application/json", code)
    if charset not in ("utf-8", "utf8", "us-ascii"):
        raise Problem(415, f"the body must be JSON in UTF-8, not {charset}", code)
    coding = headers.get("content-encoding", "identity").strip().lower()
    if coding not in ("", "identity"):
        text = f"compressed bodies (Content-Encoding: {coding}) are not read: send the body as it is"
        raise Problem(415, text, code, headers={"Accept-Encoding": "identity"})


@lru_cache(maxsize=64)
def _media_type(header: str) -> tuple[str, str]:
    """The type that a `Content-Type` header names, and its charset."""
    message = email.message.Message()
    message["content-type"] = header
    return message.get_content_type(), str(message.get_param("charset", "utf-8")).lower()


def _given_keys(headers: Headers, method: str) -> list[bytes]:
    """The keys that a request shows: a bearer token, `api-key` (Azure's clients), `x-api-key` (Anthropic's).

    For GET, also the password of basic authentication.
    """
    scheme, _, value = headers.get("authorization", "").partition(" ")
    found = [headers.get(name, "").encode("latin-1") for name in ("api-key", "x-api-key")]
    if scheme.lower() == "bearer":
        found.append(value.strip().encode("latin-1"))
    if scheme.lower() == "basic" and method in ("GET", "HEAD"):
        with suppress(binascii.Error):
            found.append(base64.b64decode(value, validate=True).partition(b":")[2])
    return [key for key in found if key]


@lru_cache(maxsize=1024)
def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:  # a name, or a test client's
        return host in _LOCAL or host == "testclient"
