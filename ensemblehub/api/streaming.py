"""Sending a reply as server-sent events, and stopping work whose client has left.

`EventSourceResponse` of `sse-starlette` (3.7) and of FastAPI send the head before the first event, so an
early error would have no status of its own.  `sse-starlette` also ends streams when the server begins to drain,
or, with that off, cuts them without an error when a drain is cut (`docs/decisions.md`).

Source: the WHATWG specification of server-sent events; `data: [DONE]` ends a stream as OpenAI's do.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Mapping
from contextlib import aclosing
from typing import Any, TypeVar

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ensemblehub.api.problems import Problem, problem_of

T = TypeVar("T")
_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}


class JSON(Response):
    """A JSON body."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return orjson.dumps(content)


class Disconnected(Exception):
    """The client has left."""


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled and awaited as soon as the client leaves.

    Raises:
        Disconnected: the client left first.
    """

    async def disconnected() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(disconnected())
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Disconnected
        return working.result()
    finally:
        leaving.cancel()
        working.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


class Framing:
    """How a stream looks on the wire: here as OpenAI's chat completions.

    Attributes:
        end: behind the last event.
        keep_alive: sent into a long silence.
    """

    end = b"data: [DONE]\n\n"
    keep_alive = b": keep-alive\n\n"

    def frame(self, event: dict[str, Any]) -> bytes:
        """One server-sent event."""
        return b"data: %b\n\n" % orjson.dumps(event)

    def failure(self, problem: Problem) -> dict[str, Any]:
        """The last event of a stream that breaks off."""
        return problem.body


class EventStream(Response):
    """A stream of server-sent events, with a sign of life after every `keep_alive` seconds of silence.

    An error before the first event is an ordinary response with its status; a later one is the last event.
    """

    def __init__(
        self,
        chunks: AsyncGenerator[dict[str, Any], None],
        keep_alive: float,
        framing: Framing,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(media_type="text/event-stream", headers={**_HEADERS, **(headers or {})})
        del self.headers["content-length"]
        self._chunks, self._framing = chunks, framing
        self._keep_alive = keep_alive
        self._started, self._last = False, 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        comments = asyncio.ensure_future(self._keep_alive_comments(send))
        try:
            await while_connected(receive, self._events(send))
        except Disconnected:
            return
        except (Exception, asyncio.CancelledError) as error:  # cancelled: the server is stopped
            problem = problem_of(error)
            if not self._started:
                await problem.response(scope["path"])(scope, receive, send)
                return
            last = self._framing.frame(self._framing.failure(problem))
            await self._send(send, last + self._framing.end)
        finally:
            comments.cancel()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _events(self, send: Send) -> None:
        async with aclosing(self._chunks) as chunks:
            async for chunk in chunks:
                await self._send(send, self._framing.frame(chunk))
        if self._framing.end:
            await self._send(send, self._framing.end)

    async def _send(self, send: Send, data: bytes) -> None:
        if not self._started:
            self._started = True
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        self._last = asyncio.get_running_loop().time()
        await send({"type": "http.response.body", "body": data, "more_body": True})

    async def _keep_alive_comments(self, send: Send) -> None:
        loop = asyncio.get_running_loop()
        self._last = loop.time()
        while True:
            await asyncio.sleep(self._last + self._keep_alive - loop.time())
            if loop.time() - self._last >= self._keep_alive:
                await self._send(send, self._framing.keep_alive)
