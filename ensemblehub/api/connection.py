"""HTTP connections: bounds on heads, on time and on their number, on top of uvicorn's protocol over httptools.

The parser itself bounds none of these: it keeps a header without end in memory, and uvicorn drops its keep-alive
timer with the first byte of a request.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, cast

import orjson
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from ensemblehub.api.problems import Problem
from ensemblehub.config.sections import ServerSection

_LINGER = 5.0  # seconds for which the rest of a refused request is read and thrown away
_UPGRADE = re.compile(rb"\nupgrade:", re.IGNORECASE)
_PIPELINED = 16  # requests that may wait behind one on the same connection


@dataclass(frozen=True)
class Limits:
    """What a connection may take; times in seconds.

    Attributes:
        connections: open at the same time.
        head_bytes: of a request's URL and headers, and of the trailers behind a chunked body.
        head_timeout: for a whole head, from its first byte (for the first one, from the connection's start).
        body_timeout: for a whole body.
        idle_timeout: between two requests.
        stall_timeout: for which a client may read nothing of its response.
    """

    connections: int
    head_bytes: int
    head_timeout: float
    body_timeout: float
    idle_timeout: float
    stall_timeout: float

    @classmethod
    def of(cls, settings: ServerSection) -> Limits:
        """Those of a configuration, with no more connections than there are file descriptors for."""
        return cls(
            min(settings.max_connections, _descriptors()),
            settings.max_head_bytes,
            settings.head_timeout,
            settings.body_timeout,
            settings.idle_timeout,
            settings.timeout,
        )


def _descriptors() -> int:
    """How many connections the file descriptors allow; a quarter of those left is for files and other sockets."""
    try:
        import resource

        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        used = len(os.listdir("/proc/self/fd"))
    except (ImportError, OSError):  # Windows has no such limit, macOS no such folder
        return 1024
    return max(4, (limit - used) * 3 // 4) if limit >= 0 else 2**31


class Part(Enum):
    """Which part of a request is read next."""

    IDLE = "idle"
    HEAD = "head"
    BODY = "body"


class Connection(HttpToolsProtocol):
    """One connection to a client.

    Where there are too many, the one that has waited longest for its client makes room for a new one.
    """

    def __init__(self, limits: Limits, **options: Any) -> None:
        super().__init__(**options)
        self.limits = limits
        self.since = time.monotonic()  # when it began to wait for its client
        self._part = Part.IDLE
        self._began = False  # a head began in the data that is being parsed
        self._head_bytes = 0
        self._refusal: Problem | None = None
        self._deaf = False  # what comes is thrown away
        self._active: RequestResponseCycle | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._stall: asyncio.TimerHandle | None = None
        self._stalled = False

    @property
    def busy(self) -> bool:
        """Whether a response is owed."""
        return self.cycle is not None and not self.cycle.response_complete

    @property
    def waits(self) -> bool:
        """Whether it waits for its client: for a request, for the rest of one, or for a response to be read."""
        return not self.busy or self._stalled or (self._part is Part.BODY and self._active is self.cycle)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(
            cast(asyncio.Transport, Lingering(transport, lambda: self._part is not Part.IDLE))
        )
        self._within(self.limits.head_timeout)
        if len(self.connections) > self.limits.connections:
            self._make_room()

    def _make_room(self) -> None:
        others = [
            one for one in self.connections if isinstance(one, Connection) and one is not self and one.waits
        ]
        if others:
            min(others, key=lambda one: one.since).abandon()
            return
        text = f"{self.limits.connections} connections are open already, and all are at work"
        self._part = Part.HEAD  # its client is about to send one
        self.refuse(Problem(503, text, "too_many_connections", headers={"Retry-After": "1"}))

    def abandon(self) -> None:
        """Close it at once, without a word."""
        self.connections.discard(self)
        self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._deadline, self._stall):
            if timer is not None:
                timer.cancel()
        active = self._active
        super().connection_lost(exc)
        self.pipeline.clear()
        if active is not None and not active.response_complete:  # others may have come behind it
            active.disconnected = True
            active.message_event.set()

    def data_received(self, data: bytes) -> None:
        if self._deaf or self.transport.is_closing():
            return
        if self._part is Part.IDLE:
            self._begin_head()
            data = _without_offer(data)
        self._began = False
        super().data_received(data)
        if self._part is Part.HEAD and not self._began and not self._deaf:
            self._head_bytes += len(data)  # a header that is not whole yet was not counted below
            if self._head_bytes > self.limits.head_bytes:
                self.refuse(self._too_large())

    def _begin_head(self) -> None:
        self._part, self._head_bytes = Part.HEAD, 0
        if not self.busy:
            self.since = time.monotonic()
        self._wait()

    # Callbacks of the parser; an error that is raised in one ends up in `send_400_response`.

    def on_message_begin(self) -> None:
        self._began = True
        if self._part is not Part.HEAD:
            self._begin_head()
        self._head_bytes = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value) + 4)
        if self._part is Part.HEAD:  # a trailer is no header of the request, which is at work by now
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if len(self.pipeline) >= _PIPELINED:
            raise ValueError("too many requests at once")
        super().on_headers_complete()
        self._part = Part.BODY
        self._wait()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._part = Part.IDLE
        self._wait()

    def _count(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > self.limits.head_bytes:
            self._refusal = self._too_large()
            raise ValueError("the head is too large")

    def _too_large(self) -> Problem:
        most = self.limits.head_bytes
        return Problem(
            431, f"the URL and the headers of a request have at most {most} bytes here", "head_too_large"
        )

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._active = cycle
        old = cycle.scope["http_version"] == "1.0"
        super()._start_asgi_task(cycle, cast(Any, _until_closed(app, cycle)) if old else app)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._unset_keepalive_if_required()  # the deadlines here cover that
        if not self.busy:
            self.since = time.monotonic()
        self._wait()

    def _unsupported_upgrade_warning(self) -> None:
        """An upgrade that is offered may be ignored; that is nothing to warn of."""

    # Deadlines.

    def _wait(self) -> None:
        """Give the client the time that is right for what is awaited of it now."""
        if self.busy:
            reading = self._part is Part.BODY and self._active is self.cycle
            self._within(self.limits.body_timeout if reading else None)
            return
        times = {Part.IDLE: self.limits.idle_timeout, Part.HEAD: self.limits.head_timeout, Part.BODY: _LINGER}
        self._within(times[self._part])

    def _within(self, seconds: float | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = None if seconds is None else self.loop.call_later(seconds, self._expired)

    def _expired(self) -> None:
        if self.transport.is_closing() or (self._part is Part.BODY and not self.busy):
            self.transport.abort()
        elif self._part is Part.IDLE:
            self.transport.close()
        else:
            limits = self.limits
            seconds = limits.head_timeout if self._part is Part.HEAD else limits.body_timeout
            text = f"the {self._part.value} of the request did not come within {seconds:g} s"
            self.refuse(Problem(408, text, "request_timeout"))

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stall = self.loop.call_later(self.limits.head_timeout, self._stalls)

    def _stalls(self) -> None:
        self._stalled = True
        self._stall = self.loop.call_later(self.limits.stall_timeout, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stalled = False
        if self._stall is not None:
            self._stall.cancel()

    # Refusals that no application sees.

    def send_400_response(self, msg: str) -> None:
        self.refuse(
            self._refusal or Problem(400, "this is not HTTP as the server understands it", "invalid_http")
        )

    def refuse(self, problem: Problem) -> None:
        """Answer what is being read with an error, once the responses before it are sent; read no further request."""
        self._deaf = True
        reading = self._part is Part.BODY
        if reading and self.pipeline:
            self.pipeline.popleft()  # what is being read, which nobody works on yet
            self._last().keep_alive = False
        elif self.busy and not (reading and not self.cycle.response_started):
            self._last().keep_alive = False
        else:
            if self.busy:
                self.cycle.disconnected = (
                    True  # as if its client had left: the response is the one written here
                )
                self.cycle.message_event.set()
            self.transport.write(_response(problem))
            self.transport.close()

    def _last(self) -> RequestResponseCycle:
        """The last request that will be answered."""
        return self.pipeline[0][0] if self.pipeline else cast(RequestResponseCycle, self._active)


class Lingering:
    """A transport that is closed with care: while its client is sending still, what comes is read for some seconds.

    Closing a socket with unread data makes the kernel reset it, and the client never sees the response.
    """

    def __init__(self, transport: asyncio.Transport, sending: Callable[[], bool]) -> None:
        self._transport, self._sending = transport, sending
        self._closing = False

    def close(self) -> None:
        """Close once what was written is sent."""
        if self.is_closing():
            return
        self._closing = True
        if not self._sending():
            self._transport.close()
            return
        self._transport.write_eof()
        self._transport.resume_reading()
        asyncio.get_running_loop().call_later(_LINGER, self._transport.abort)

    def is_closing(self) -> bool:
        """Whether nothing more can be written."""
        return self._closing or self._transport.is_closing()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


def _without_offer(data: bytes) -> bytes:
    """A request without its offer of another protocol (h2c), for which the parser would leave the body unread."""
    head, end, rest = data.partition(b"\r\n\r\n")
    return _UPGRADE.sub(b"\nx-offered:", head) + end + rest if _UPGRADE.search(head) else data


def _until_closed(app: ASGIApp, cycle: RequestResponseCycle) -> ASGIApp:
    """An application for a client of HTTP/1.0, which knows no chunks: the end of the connection ends its body."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        unsized = False

        async def sending(message: Message) -> None:
            nonlocal unsized
            if message["type"] == "http.response.start":
                unsized = not any(name.lower() == b"content-length" for name, _ in message["headers"])
                cycle.chunked_encoding = False if unsized else None
            elif unsized:
                cycle.expected_content_length = len(message.get("body", b""))
            await send(message)

        await app(scope, receive, sending)

    return answer


def _response(problem: Problem) -> bytes:
    body = orjson.dumps(problem.body)
    headers = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"}
    lines = [f"{name}: {value}\r\n" for name, value in {**headers, **(problem.headers or {})}.items()]
    return STATUS_LINE[problem.status_code] + "".join(lines).encode() + b"\r\n" + body
