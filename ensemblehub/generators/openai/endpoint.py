"""One HTTP API: its key, deadlines, bounds, retries and circuit breaker.

Requests are retried here and nowhere else, and never once part of an answer has been passed on.  A reply
takes no more time than `Patience` allows and no more memory than the bounds below.  Server-sent events are
parsed by httpx2's `EventSource`, which reads a byte stream that keeps deadlines and bounds also while data
flows.

The retry loop is our own.  With `tenacity` it passes the same tests, in 32 lines instead of 20: the delay
(`Retry-After`), the stop (a deadline that covers the requests themselves), the failures to retry and the
circuit breaker all become callbacks.  `stamina` besides sleeps past the deadline.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import os
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from ensemblehub.errors import ConfigError, EngineError, MissingExtraError, one_line
from ensemblehub.generators.openai.errors import ErrorReply, Failure, RefusedError, retry_after
from ensemblehub.generators.openai.patience import CircuitBreaker, Clock, Patience

try:
    import httpx2
except ModuleNotFoundError as error:
    raise MissingExtraError(f"{error.name} is not installed: pip install 'ensemblehub[openai]'") from error

log = logging.getLogger(__name__)
T = TypeVar("T")
_RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529})
_MAX_EVENT = 2**20  # bytes
_MAX_BODY = 2**26
_MAX_STREAM = 2**28
_MAX_ERROR = 2**16
_ERROR_SECONDS = 5.0  # for reading the body of an error
_SLICE = 2**16  # bytes that are parsed before other tasks get their turn
_STRICT_EVENTS = ("message", "error")  # kinds of events whose data must be JSON
_JSON = ("application/json", "text/json", "application/problem+json")
_STREAMS = ("text/event-stream", "text/plain", "application/octet-stream", "")  # or types that say nothing
_DONE = "[DONE]"


@dataclass
class Endpoint:
    """An API at `url`.

    Attributes:
        name: of the engine, for messages.
        key: sent as a bearer token; masked in messages.
        concurrency: maximum number of simultaneous requests; further ones wait.
        secret: another string that is masked in messages.
    """

    name: str
    url: str
    key: str = field(repr=False)
    patience: Patience = field(default_factory=Patience)
    concurrency: int = 64
    secret: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        self.breaker = CircuitBreaker(self.patience)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._warned = False

    async def events(self, path: str, body: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """The JSON objects of a stream of server-sent events; closing it ends the request.

        A server that does not stream answers with a single object, the whole reply.

        Raises:
            EngineError: the last try failed, or the stream broke; a `RefusedError` where the endpoint said
                so.
        """
        clock = Clock(self.patience)
        async with self._slot():
            replies, first = await self._retried(lambda: self._begun(path, body, clock), clock)
            async with aclosing(replies):
                yield first
                try:
                    async for reply in replies:
                        yield reply
                except Failure as failure:
                    self.breaker.failed(failure)
                    raise self._error(failure) from failure

    async def fetch(self, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The JSON object that a POST of `body`, or a GET where there is none, is answered with.

        Raises:
            EngineError: as `events`.
        """

        async def attempt() -> dict[str, Any]:
            async with self._response(path, body, clock) as response:
                return await self._json(response, clock)

        clock = Clock(self.patience)
        async with self._slot():
            return await self._retried(attempt, clock)

    async def close(self) -> None:
        """Close the connections."""
        loop, self._loop = self._loop, None
        if loop is asyncio.get_running_loop():
            await self._client.aclose()

    async def _retried(self, attempt: Callable[[], Awaitable[T]], clock: Clock) -> T:
        """The result of `attempt`, which is repeated as `patience` says."""
        patience = self.patience
        for tried in itertools.count(1):
            if reason := self.breaker.refusal():
                raise self._error(Failure(reason, again=False))
            try:
                result = await attempt()
                self.breaker.succeeded()
                return result
            except Failure as failure:
                self.breaker.failed(failure)
                backoff = random.uniform(0.5, 1.0) * patience.backoff * 2 ** (tried - 1)
                wait = max(backoff, failure.wait)
                too_long = failure.wait > patience.longest_wait or time.monotonic() + wait > clock.end
                if tried == patience.tries or too_long or not failure.again:
                    raise self._error(failure) from failure
                await asyncio.sleep(wait)
        raise AssertionError("the last try returns or raises")

    def _error(self, failure: Failure) -> EngineError:
        reason = str(failure)
        for secret in filter(None, (self.key, self.secret)):
            reason = reason.replace(secret, "***")
        text = f"{self.name} failed at {self.url}: {one_line(reason)}"
        if failure.status:
            return RefusedError(text, self.name, failure.status, failure.code)
        return EngineError(text, self.name)

    def _slot(self) -> asyncio.Semaphore:
        """One of the simultaneous requests of this event loop, which has connections of its own."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._client = httpx2.AsyncClient(
                timeout=httpx2.Timeout(None, connect=self.patience.connect),
                limits=httpx2.Limits(
                    max_connections=self.concurrency, max_keepalive_connections=self.concurrency
                ),
                follow_redirects=False,
            )
            self._semaphore = asyncio.Semaphore(self.concurrency)
            self._loop = loop
        return self._semaphore

    async def _begun(
        self, path: str, body: Mapping[str, Any], clock: Clock
    ) -> tuple[AsyncGenerator[dict[str, Any], None], dict[str, Any]]:
        """The replies to a request, and the first of them."""
        replies = self._replies(path, body, clock)
        return replies, await anext(replies)

    async def _replies(
        self, path: str, body: Mapping[str, Any], clock: Clock
    ) -> AsyncGenerator[dict[str, Any], None]:
        """The JSON objects of a response, at least one, whether the server streams or not."""
        async with self._response(path, body, clock) as response:
            kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
            if kind in _JSON:
                if not self._warned:
                    log.warning("%s: the server does not stream; its replies are read whole", self.name)
                self._warned = True
                yield await self._json(response, clock)
                return
            if kind not in _STREAMS:
                start = _shown(await self._error_body(response, clock))
                raise Failure(f"the answer is no stream but {kind}: {start}", again=False)
            empty = True
            async with aclosing(self._events(response, clock)) as events:
                async for event in events:
                    empty = False
                    yield event
            if empty:
                raise Failure(f"the answer, of type {kind!r}, holds no event", again=True)

    @asynccontextmanager
    async def _response(
        self, path: str, body: Mapping[str, Any] | None, clock: Clock
    ) -> AsyncIterator[httpx2.Response]:
        """The response to a request, its head read; failures of network and server are `Failure`s."""
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        headers |= {} if body is None else {"Content-Type": "application/json"}
        method = "GET" if body is None else "POST"
        data = None if body is None else json.dumps(body)
        clock.expect(self.patience.first_token)
        try:
            request = self._client.build_request(method, self.url + path, content=data, headers=headers)
            async with asyncio.timeout(clock.left):
                response = await self._client.send(request, stream=True)
        except TimeoutError as error:
            raise Failure("no answer in time", again=True) from error
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            again = not isinstance(error, httpx2.InvalidURL)
            raise Failure(f"{type(error).__name__} {error}".strip(), again=again) from error
        clock.expect(self.patience.first_token)
        try:
            self._check_compression(response)
            if not response.is_success:
                raise await self._refusal(response, clock)
            yield response
        except httpx2.HTTPError as error:
            again = not isinstance(error, httpx2.DecodingError)
            reason = f"the connection broke: {type(error).__name__} {error}".strip()
            raise Failure(reason, again=again) from error
        finally:
            await response.aclose()

    def _check_compression(self, response: httpx2.Response) -> None:
        """Refuse a compression that was not offered; httpx2 would pass such a body on as it stands."""
        offered = self._client.headers.get("accept-encoding", "").split(",")
        known = {"", "identity", *(coding.strip() for coding in offered)}
        status = response.status_code
        for coding in response.headers.get("content-encoding", "").lower().split(","):
            if coding.strip() not in known:
                reason = f"HTTP {status}, compressed by {coding.strip()!r}, which was not asked for"
                raise Failure(reason, again=False, status=0 if response.is_success else status)

    async def _refusal(self, response: httpx2.Response, clock: Clock) -> Failure:
        text = (await self._error_body(response, clock)).decode(errors="replace")
        error = ErrorReply.read(text)
        status = response.status_code
        return Failure(
            f"HTTP {status} {error.message or text}",
            again=status in _RETRIED,
            status=status,
            wait=retry_after(response.headers.get("retry-after", "")),
            code=error.code,
        )

    async def _error_body(self, response: httpx2.Response, clock: Clock) -> bytes:
        """The start of an error's body, as far as it arrives soon."""
        data = bytearray()
        clock.expect(_ERROR_SECONDS)
        with suppress(Failure, httpx2.HTTPError):  # the part of the body that arrived is reported
            async for part in _bounded(response, clock, _MAX_ERROR):
                data += part
        return bytes(data[:_MAX_ERROR])

    async def _json(self, response: httpx2.Response, clock: Clock) -> dict[str, Any]:
        data = bytearray()
        async for part in _bounded(response, clock, _MAX_BODY):
            data += part
        try:
            found = json.loads(data.decode("utf-8-sig", errors="replace"))
        except (ValueError, RecursionError) as error:
            kind = response.headers.get("content-type", "of no type")
            raise Failure(f"the answer is not JSON but {kind}: {_shown(bytes(data))}", again=False) from error
        if not isinstance(found, dict):
            raise Failure("the answer is no JSON object", again=False)
        return _checked(found, "answer", again=False)

    async def _events(self, response: httpx2.Response, clock: Clock) -> AsyncGenerator[dict[str, Any], None]:
        """The JSON objects up to `[DONE]`, each within its deadline; comments do not extend a deadline."""
        async with aclosing(_terminated(_bounded(response, clock, _MAX_STREAM))) as body:
            stream = httpx2.Response(
                200,
                headers={"content-type": "text/event-stream"},
                content=body,
                request=response.request,
                default_encoding="utf-8-sig",
            )
            try:
                async for event in httpx2.EventSource(stream, _MAX_EVENT):
                    for data in _split(event.data):
                        if data == _DONE:
                            return
                        reply = _reply(event.event, data)
                        if reply is None:
                            continue
                        yield reply
                        if reply.get("choices"):
                            clock.expect(self.patience.inter_token)
            except httpx2.SSEError as error:
                raise Failure(f"an event of more than {_MAX_EVENT} bytes", again=False) from error


async def _bounded(response: httpx2.Response, clock: Clock, most: int) -> AsyncGenerator[bytes, None]:
    """The body as it arrives, in slices, bounded in size and time.

    Raises:
        Failure: it is larger than `most` bytes, or a deadline has passed.
    """
    size = 0
    stream = response.aiter_bytes()
    while True:
        clock.check()
        try:
            async with asyncio.timeout(clock.left):
                part = await anext(stream)
        except StopAsyncIteration:
            return
        except TimeoutError as error:
            clock.check()
            raise Failure("it stalled", again=True) from error
        size += len(part)
        for at in range(0, len(part), _SLICE):
            yield part[at : at + _SLICE]
            await asyncio.sleep(0)
            clock.check()
        if size > most:
            raise Failure(f"an answer of more than {most} bytes", again=False)


async def _terminated(stream: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """A stream of events with the blank line that some servers omit at its end."""
    async with aclosing(stream):
        async for part in stream:
            yield part
    yield b"\n\n"


def _split(data: str) -> list[str]:
    """The data of an event, or of several where a server omits the blank lines between them."""
    lines = data.strip().split("\n")
    several = all(line == _DONE or line[:1] + line[-1:] == "{}" for line in lines)
    return lines if several else [data.strip()]


def _reply(kind: str, data: str) -> dict[str, Any] | None:
    """The JSON object of an event; None for empty data and for other kinds of events, such as `ping`."""
    if not data:
        return None
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        if kind not in _STRICT_EVENTS:
            return None
        what = "an error in the stream" if kind == "error" else "an event that is not JSON"
        raise Failure(f"{what}: {data[:80]}", again=kind == "error") from error
    if isinstance(found, dict):
        named = kind == "error" and "error" not in found
        return _checked({"error": found} if named else found, "stream", again=True)
    if kind in _STRICT_EVENTS:
        raise Failure("an event that is no JSON object", again=False)
    return None


def _checked(reply: dict[str, Any], where: str, *, again: bool) -> dict[str, Any]:
    """A reply that is no error.

    Raises:
        Failure: it is one, though the HTTP status says success.
    """
    error = ErrorReply.within(reply)
    if error is None:
        return reply
    again = error.status in _RETRIED if error.status else again
    reason = f"an error in the {where}: {error.message or 'without a reason'}"
    raise Failure(reason, again=again, status=error.status, code=error.code)


def _shown(data: bytes) -> str:
    """The start of a body, for a message."""
    return data[:200].decode(errors="replace")


def key_of(variable: str | None, whose: str) -> str:
    """The key in an environment variable; empty where none is named.

    Raises:
        ConfigError: the variable is not set, or holds no key.
    """
    if variable is None:
        return ""
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ConfigError(f"{whose}: the environment variable {variable} is not set")
    if not key.isascii() or not key.isprintable():
        raise ConfigError(f"{whose}: {variable} holds characters that no key has")
    return key
