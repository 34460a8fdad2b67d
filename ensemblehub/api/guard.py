"""What every request passes before it reaches a route: who may ask, how much, and a line in the log.

Plain ASGI, so that streams pass through untouched.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import email.message
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
from ensemblehub.api.monitoring import Monitor
from ensemblehub.api.problems import Problem, problem_of
from ensemblehub.api.state import State

log = logging.getLogger(__name__)
_OPEN = ("/", "/health")  # what shows no data needs no key, and neither do the parts of the page
_WORKING = ("/v1/chat/completions", "/v1/completions")
_TOKENIZERS = ("/tokenize", "/detokenize", "/tokenizer_info")
_FOR_BROWSERS = ("/docs", "/openapi.json")  # a browser asks for a password itself, which is the key
_ID = re.compile(r"[\w.-]{1,64}", re.ASCII)
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
    ) -> None:
        self.app, self.state, self.admission, self.monitor = app, state, admission, monitor
        self._keys, self._most = [key.encode() for key in keys], max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers, started = Headers(scope=scope), time.perf_counter()
        given = headers.get("x-request-id", "")
        name = given if _ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = name
        status, read, is_head = 0, 0, scope["method"] == "HEAD"

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = name
            elif is_head:
                message = {**message, "body": b""}
            await send(message)

        async def receiving() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self._most:
                raise self._too_large()
            return message

        try:
            self._admit(scope, headers)
            with self.admission.entry() as entry:
                scope["state"]["entry"] = entry
                await self.app({**scope, "method": "GET"} if is_head else scope, receiving, sending)
        except Problem as problem:
            await problem.response()(scope, receive, sending)
        except asyncio.CancelledError as error:  # the server is stopped: nothing else cancels a request
            if status:
                raise
            await problem_of(error).response()(scope, receive, sending)
        finally:
            self._note(scope, name, status, time.perf_counter() - started)

    def _admit(self, scope: Scope, headers: Headers) -> None:
        """Refuse a request by its head alone.

        Raises:
            Problem: says why.
        """
        path, method = scope["path"], scope["method"]
        shows_no_data = path in _OPEN or path.startswith("/page/")
        if not (shows_no_data and method in ("GET", "HEAD")):
            self._authorize(scope, headers)
        length = headers.get("content-length", "0")
        if length.isdigit() and int(length) > self._most:
            raise self._too_large()
        if method == "POST":
            _check_type(headers)
        if path in (*_WORKING, *_TOKENIZERS) and self.state.word != "ready":
            raise Problem(503, f"the server is {self.state.word}", "not_ready", headers={"Retry-After": "5"})
        if path in _WORKING:
            self.admission.check()

    def _authorize(self, scope: Scope, headers: Headers) -> None:
        if not self._keys:
            peer = (scope.get("client") or ("127.0.0.1", 0))[0]
            host = headers.get("host", "localhost")
            if not (_loopback(peer) and (host in _LOCAL or host.rpartition(":")[0] in _LOCAL)):
                raise Problem(403, "without an API key only loopback is served: start the server with --api-key")
            return
        given = _given_keys(headers, scope["method"])
        right = [hmac.compare_digest(one, key) for one in given for key in self._keys]  # all: time tells nothing
        if not any(right):
            scheme = (
                'Basic realm="the API key is the password"' if scope["path"].startswith(_FOR_BROWSERS) else "Bearer"
            )
            text = "an API key is needed: send Authorization: Bearer KEY" if not given else "wrong API key"
            raise Problem(401, text, "invalid_api_key", headers={"WWW-Authenticate": scheme})

    def _too_large(self) -> Problem:
        return Problem(413, f"a request body has at most {self._most} bytes here", "body_too_large")

    def _note(self, scope: Scope, name: str, status: int, seconds: float) -> None:
        if status >= 400:
            self.monitor.refused.labels(str(status)).inc()
        job = scope["state"].get("job")
        details = {"request_id": name, "method": scope["method"], "path": scope["path"], "status": status or 499}
        details |= {"seconds": round(seconds, 6), **(job.summary() if job else {})}
        line = f"{scope['method']} {quote(scope['path'])} {details['status']}"
        log.log(logging.INFO if job or status >= 400 else logging.DEBUG, line, extra={"details": details})


def _check_type(headers: Headers) -> None:
    """Refuse a body that says it is anything but plain JSON in UTF-8.

    Raises:
        Problem: 415.
    """
    kind, charset = _media_type(headers.get("content-type", ""))
    if kind != "application/json":
        raise Problem(415, "the body must be JSON: send Content-Type: application/json", "unsupported_media_type")
    if charset not in ("utf-8", "utf8", "us-ascii"):
        raise Problem(415, f"the body must be JSON in UTF-8, not {charset}", "unsupported_media_type")
    coding = headers.get("content-encoding", "identity").strip().lower()
    if coding not in ("", "identity"):
        text = f"compressed bodies (Content-Encoding: {coding}) are not read: send the body as it is"
        raise Problem(415, text, "unsupported_media_type", headers={"Accept-Encoding": "identity"})


@lru_cache(maxsize=64)
def _media_type(header: str) -> tuple[str, str]:
    """The type that a `Content-Type` header names, and its charset."""
    message = email.message.Message()
    message["content-type"] = header
    return message.get_content_type(), str(message.get_param("charset", "utf-8")).lower()


def _given_keys(headers: Headers, method: str) -> list[bytes]:
    """The keys that a request shows: a bearer token, `api-key` (as Azure's clients send it), `x-api-key` (Anthropic's).

    For GET, also the password of basic authentication.
    """
    scheme, _, value = headers.get("authorization", "").partition(" ")
    found = [headers.get(name, "").encode("latin-1") for name in ("api-key", "x-api-key")]
    if scheme.lower() == "bearer":
        found.append(value.strip().encode("latin-1"))
    if scheme.lower() == "basic" and method in ("GET", "HEAD"):
        with suppress(binascii.Error):
            found.append(base64.b64decode(value, validate=True).partition(b":")[2])
    return [one for one in found if one]


@lru_cache(maxsize=1024)
def _loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:  # a name, or a test client's
        return host in _LOCAL or host == "testclient"
