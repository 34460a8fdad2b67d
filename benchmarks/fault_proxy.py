"""A proxy that stands before an OpenAI-compatible API and spoils what it is told to: `async with FaultProxy(url)`.

A fault is a function of an `Exchange`, one request and its answer.  `once` spoils the first try of each request alone,
so that trying again helps.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from typing import Any, Self

import aiohttp
from aiohttp import web

FIRST = 6  # events that a stream passes before it is spoiled
SLOW = 0.02  # seconds between the events of a slow stream


class Exchange:
    """One request to the API, and what becomes of its answer."""

    def __init__(self, request: web.Request, body: bytes, session: aiohttp.ClientSession, url: str) -> None:
        self.request, self.body, self._session, self._url = request, body, session, url
        self.sent: web.StreamResponse | None = None
        self._kind = "text/event-stream"

    async def events(self) -> AsyncGenerator[bytes, None]:
        """The events of the API's stream, or its whole answer in two halves where it is none."""
        headers = {
            name: value for name, value in self.request.headers.items() if name.lower() == "authorization"
        }
        headers |= {"Content-Type": "application/json"} if self.body else {}
        where = self._url + self.request.path_qs
        async with self._session.request(
            self.request.method, where, data=self.body or None, headers=headers
        ) as answer:
            self._kind = answer.content_type
            if answer.content_type != "text/event-stream":
                whole = await answer.read()
                if answer.status != 200:
                    await self.answer(answer.status, answer.content_type, whole)
                    return
                yield whole[: len(whole) // 2]
                yield whole[len(whole) // 2 :]
                return
            while event := await answer.content.readuntil(b"\n\n") if not answer.content.at_eof() else b"":
                yield event

    async def first(self) -> bool:
        """Pass the start of the answer on; whether there is more."""
        count = 0
        async with aclosing(self.events()) as events:
            async for event in events:
                await self.send(event)
                count += 1
                if count == (FIRST if self._kind == "text/event-stream" else 1):
                    return True
        return False

    async def send(self, data: bytes) -> None:
        """Pass some bytes on."""
        if self.sent is None:
            self.sent = web.StreamResponse(headers={"Content-Type": self._kind})
            await self.sent.prepare(self.request)
        await self.sent.write(data)

    async def answer(self, status: int, kind: str, body: bytes, **headers: str) -> None:
        """Answer with something else."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.sent = web.Response(status=status, body=body, headers={"Content-Type": kind, **named})
        await self.sent.prepare(self.request)
        await self.sent.write_eof()

    def cut(self) -> None:
        """Break the connection."""
        if self.request.transport is not None:
            self.request.transport.abort()

    async def stall(self) -> None:
        """Say nothing more for as long as the client waits."""
        await asyncio.sleep(3600)  # cancelled when it leaves


Fault = Callable[[Exchange], Awaitable[None]]
Picks = Callable[[str], bool]


async def nothing(exchange: Exchange) -> None:
    """passes everything on"""
    async with aclosing(exchange.events()) as events:
        async for event in events:
            await exchange.send(event)


async def slow(exchange: Exchange) -> None:
    """passes every event on after a pause, in pieces that split events and characters"""
    async with aclosing(exchange.events()) as events:
        async for event in events:
            await asyncio.sleep(SLOW)
            for at in range(0, len(event), 7):
                await exchange.send(event[at : at + 7])


async def too_many(exchange: Exchange) -> None:
    """429 with Retry-After"""
    said = json.dumps({"error": {"message": "Rate limit reached", "code": "rate_limit_exceeded"}}).encode()
    await exchange.answer(429, "application/json", said, Retry_After="0")


async def broken(exchange: Exchange) -> None:
    """500 with an error object"""
    await exchange.answer(500, "application/json", b'{"error": {"message": "CUDA out of memory"}}')


async def gateway(exchange: Exchange) -> None:
    """502 with a page of HTML"""
    await exchange.answer(502, "text/html", b"<html><h1>502 Bad Gateway</h1></html>")


async def page(exchange: Exchange) -> None:
    """200 with a page of HTML"""
    await exchange.answer(200, "text/html", b"<html>Please sign in</html>")


async def denied(exchange: Exchange) -> None:
    """401, the key is refused"""
    await exchange.answer(401, "application/json", b'{"error": {"message": "Incorrect API key provided"}}')


async def empty(exchange: Exchange) -> None:
    """200 and a stream without an event"""
    exchange.sent = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await exchange.sent.prepare(exchange.request)


async def late(exchange: Exchange) -> None:
    """no answer before the deadline"""
    await exchange.stall()


async def cut(exchange: Exchange) -> None:
    """the connection breaks in the middle"""
    if await exchange.first():
        exchange.cut()


async def unfinished(exchange: Exchange) -> None:
    """the answer ends in the middle, in good order"""
    await exchange.first()


async def garbled(exchange: Exchange) -> None:
    """something that is not JSON in the middle"""
    if await exchange.first():
        await exchange.send(b'data: {"choices": [{"delta": {"cont\n\n')


async def told(exchange: Exchange) -> None:
    """an error event in the middle"""
    if await exchange.first():
        await exchange.send(b'data: {"error": {"message": "the model crashed"}}\n\n')


async def stalls(exchange: Exchange) -> None:
    """nothing more comes from the middle on"""
    if await exchange.first():
        await exchange.stall()


async def endless(exchange: Exchange) -> None:
    """one event without an end"""
    if await exchange.first():
        while exchange.request.transport is not None and not exchange.request.transport.is_closing():
            await exchange.send(b"data: " + b"x" * 2**18)


FAULTS: dict[str, Fault] = {
    fault.__name__: fault
    for fault in (
        nothing,
        slow,
        too_many,
        broken,
        gateway,
        page,
        denied,
        empty,
        late,
        cut,
        unfinished,
        garbled,
        told,
        stalls,
        endless,
    )
}


class FaultProxy:
    """The proxy, at `url`; requests that `hit` picks by their body are spoiled by `fault`."""

    def __init__(self, upstream: str) -> None:
        self.upstream, self.url = upstream, ""
        self.fault, self.once = nothing, False
        self.hit: Picks = bool
        self.tries: Counter[bytes] = Counter()

    def spoil(self, fault: str, *, once: bool = False, hit: Picks = bool) -> None:
        """Spoil the requests with such bodies from now on; by default all that have one."""
        self.fault, self.once, self.hit = FAULTS[fault], once, hit
        self.tries.clear()

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None), read_bufsize=2**22)
        application = web.Application(client_max_size=2**26)
        application.router.add_route("*", "/{path:.*}", self._exchange)
        self._runner = web.AppRunner(
            application, access_log=None, handler_cancellation=True, shutdown_timeout=0.1
        )
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: Any) -> None:
        await self._runner.cleanup()
        await self._session.close()

    async def _exchange(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        exchange, asked = Exchange(request, body, self._session, self.upstream), self.hit(body.decode())
        if asked:
            self.tries[body] += 1
        spoiled = asked and not (self.once and self.tries[body] > 1)
        await (self.fault if spoiled else nothing)(exchange)
        if exchange.sent is None:  # the client left, or the connection was broken, before anything was sent
            return web.Response(status=502)
        if not isinstance(exchange.sent, web.Response):
            with suppress(ConnectionError):  # it was cut
                await exchange.sent.write_eof()
        return exchange.sent
