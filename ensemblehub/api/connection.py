"""HTTP connections: uvicorn's protocol over httptools, with bounds on heads, on time and on their number.

uvicorn has none of these: with httptools a header may grow without end, `limit_concurrency` refuses requests
but keeps idle connections, and the keep-alive timer stops with the first byte of a request.  h11 bounds
heads, but neither time nor connections, and costs more per request.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Callable
from typing import Any, Literal, cast

import orjson
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from ensemblehub.api.problems import Problem
from ensemblehub.config.sections import ServerSection

_LINGER = 5.0  # seconds for which the rest of a refused request is read and thrown away
_UPGRADE = re.compile(rb"\nupgrade:", re.IGNORECASE)
_PIPELINED = 16  # requests that may wait behind one on the same connection


def connection_limit(settings: ServerSection) -> int:
    """Maximum number of open connections; a quarter of the free file descriptors stays for other uses."""
    try:
        import resource

        descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        used = len(os.listdir("/proc/self/fd"))
    except (ImportError, OSError):  # Windows has no such limit, macOS no such folder
        return min(settings.max_connections, 1024)
    allowed = max(4, (descriptors - used) * 3 // 4) if descriptors >= 0 else settings.max_connections
    return min(settings.max_connections, allowed)


class Connection(HttpToolsProtocol):
    """A connection to a client.

    Where there are too many, the one that has waited longest for its client is closed for a new one.

    Args:
        settings: its timeouts and the size of heads; `timeout` is also how long a client may read nothing.
        max_connections: open at the same time.
    """

    def __init__(self, settings: ServerSection, max_connections: int, **options: Any) -> None:
        super().__init__(**options)
        self.settings, self.max_connections = settings, max_connections
        self.since = time.monotonic()  # when it began to wait for its client
        self._part: Literal["idle", "head", "body"] = "idle"  # what is read next
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
        """Whether a request waits for its response."""
        return self.cycle is not None and not self.cycle.response_complete

    @property
    def waits(self) -> bool:
        """Whether the connection waits for its client, to send a request or to read a response."""
        return not self.busy or self._stalled or self._reading_active

    @property
    def _reading_active(self) -> bool:
        """Whether the body of the request that is at work is still being read."""
        return self._part == "body" and self._active is self.cycle

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        lingering = LingeringTransport(transport, lambda: self._part != "idle")
        super().connection_made(cast(asyncio.Transport, lingering))
        self._within(self.settings.head_timeout)
        if len(self.connections) > self.max_connections:
            self._make_room()

    def _make_room(self) -> None:
        others = [other for other in self.connections if isinstance(other, Connection) and other is not self]
        if waiting := [other for other in others if other.waits]:
            min(waiting, key=lambda other: other.since).abandon()
            return
        text = f"{self.max_connections} connections are open already, and all are at work"
        self._part = "head"  # its client is about to send one
        self.refuse(Problem(503, text, "too_many_connections", headers={"Retry-After": "1"}))

    def abandon(self) -> None:
        """Close it at once, without a response."""
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
            self._disconnect(active)

    def _disconnect(self, cycle: RequestResponseCycle) -> None:
        """Tell the application that its client has left."""
        cycle.disconnected = True
        cycle.message_event.set()

    def data_received(self, data: bytes) -> None:
        if self._deaf or self.transport.is_closing():
            return
        if self._part == "idle":
            self._begin_head()
            data = _without_offer(data)
        self._began = False
        super().data_received(data)
        if self._part == "head" and not self._began and not self._deaf:
            self._head_bytes += len(data)  # a header that is not whole yet was not counted below
            if self._head_bytes > self.settings.max_head_bytes:
                self.refuse(self._too_large())

    def _begin_head(self) -> None:
        self._part, self._head_bytes = "head", 0
        if not self.busy:
            self.since = time.monotonic()
        self._wait()

    # Callbacks of the parser; an error that is raised in one ends up in `send_400_response`.

    def on_message_begin(self) -> None:
        self._began = True
        if self._part != "head":
            self._begin_head()
        self._head_bytes = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value) + 4)
        if self._part == "head":  # a trailer is no header of the request, which is at work by now
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if len(self.pipeline) >= _PIPELINED:
            raise ValueError("too many requests at once")
        super().on_headers_complete()
        self._part = "body"
        self._wait()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._part = "idle"
        self._wait()

    def _count(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > self.settings.max_head_bytes:
            self._refusal = self._too_large()
            raise ValueError("the head is too large")

    def _too_large(self) -> Problem:
        most = self.settings.max_head_bytes
        text = f"the URL and the headers of a request have at most {most} bytes here"
        return Problem(431, text, "head_too_large")

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
        """Do not warn: an offered upgrade may be ignored."""

    # Deadlines.

    def _wait(self) -> None:
        """Set the deadline for what is awaited of the client now."""
        if self.busy:
            self._within(self.settings.body_timeout if self._reading_active else None)
            return
        settings = self.settings
        times = {"idle": settings.idle_timeout, "head": settings.head_timeout, "body": _LINGER}
        self._within(times[self._part])

    def _within(self, seconds: float | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = None if seconds is None else self.loop.call_later(seconds, self._expired)

    def _expired(self) -> None:
        if self.transport.is_closing() or (self._part == "body" and not self.busy):
            self.transport.abort()
        elif self._part == "idle":
            self.transport.close()
        else:
            settings = self.settings
            seconds = settings.head_timeout if self._part == "head" else settings.body_timeout
            text = f"the {self._part} of the request did not come within {seconds:g} s"
            self.refuse(Problem(408, text, "request_timeout"))

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stall = self.loop.call_later(self.settings.head_timeout, self._stalls)

    def _stalls(self) -> None:
        self._stalled = True
        self._stall = self.loop.call_later(self.settings.timeout, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stalled = False
        if self._stall is not None:
            self._stall.cancel()

    # Refusals without the application.

    def send_400_response(self, msg: str) -> None:
        text = "this is not HTTP as the server understands it"
        self.refuse(self._refusal or Problem(400, text, "invalid_http"))

    def refuse(self, problem: Problem) -> None:
        """Answer the request being read with an error, after the responses before it; read no other."""
        self._deaf = True
        reading = self._part == "body"
        if reading and self.pipeline:
            self.pipeline.popleft()  # what is being read, which nobody works on yet
            self._last().keep_alive = False
        elif self.busy and not (reading and not self.cycle.response_started):
            self._last().keep_alive = False
        else:
            if self.busy:
                self._disconnect(self.cycle)  # the application's response is dropped for the one written here
            self.transport.write(_response(problem))
            self.transport.close()

    def _last(self) -> RequestResponseCycle:
        """The last request that will be answered."""
        return self.pipeline[0][0] if self.pipeline else cast(RequestResponseCycle, self._active)


class LingeringTransport:
    """A transport that, when closed while its client is still sending, reads and drops that for some seconds.

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
    """A request without its offer of another protocol (h2c), for which the parser would skip the body."""
    head, end, rest = data.partition(b"\r\n\r\n")
    return _UPGRADE.sub(b"\nx-offered:", head) + end + rest if _UPGRADE.search(head) else data


def _until_closed(app: ASGIApp, cycle: RequestResponseCycle) -> ASGIApp:
    """An application for HTTP/1.0, which knows no chunks: the end of the connection ends the body."""

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
    headers |= problem.headers or {}
    lines = [f"{name}: {value}\r\n" for name, value in headers.items()]
    return STATUS_LINE[problem.status_code] + "".join(lines).encode() + b"\r\n" + body
