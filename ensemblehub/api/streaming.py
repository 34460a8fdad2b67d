"""Replies that stop working when their client leaves, streamed as server-sent events or sent whole.

Source: the WHATWG specification of server-sent events; `data: [DONE]` ends a stream as OpenAI's do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ensemblehub.api.problems import problem_of

T = TypeVar("T")
Emit = Callable[[bytes], Awaitable[None]]
DONE = b"data: [DONE]\n\n"
_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}


def event(data: Any) -> bytes:
    """One server-sent event."""
    return b"data: %b\n\n" % orjson.dumps(data)


class JSON(Response):
    """A JSON body."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return orjson.dumps(content)


class Disconnected(Exception):
    """The client has left."""


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """What `work` returns; it is cancelled, and waited for, as soon as the client leaves.

    Raises:
        Disconnected: the client left first.
    """
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_left(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Disconnected
        return working.result()
    finally:
        leaving.cancel()
        working.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """A stream of server-sent events, with a comment after every `keep_alive` seconds of silence.

    A problem before the first event is an ordinary response with its status; a later one is the last event.

    Args:
        write: writes the whole stream.
    """

    def __init__(self, write: Callable[[Emit], Coroutine[Any, Any, None]], keep_alive: float) -> None:
        super().__init__(media_type="text/event-stream", headers=_HEADERS)
        del self.headers["content-length"]
        self._write, self._keep_alive = write, keep_alive
        self._started, self._last = False, 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def emit(data: bytes) -> None:
            if not self._started:
                self._started = True
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            self._last = asyncio.get_running_loop().time()
            await send({"type": "http.response.body", "body": data, "more_body": True})

        beating = asyncio.ensure_future(self._beat(emit))
        try:
            await while_connected(receive, self._write(emit))
        except Disconnected:
            return
        except (Exception, asyncio.CancelledError) as error:  # cancelled: the server is stopped
            problem = problem_of(error)
            if not self._started:
                await problem.response()(scope, receive, send)
                return
            await emit(event(problem.body) + DONE)
        finally:
            beating.cancel()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _beat(self, emit: Emit) -> None:
        loop = asyncio.get_running_loop()
        self._last = loop.time()
        while True:
            await asyncio.sleep(self._last + self._keep_alive - loop.time())
            if loop.time() - self._last >= self._keep_alive:
                await emit(b": keep-alive\n\n")
