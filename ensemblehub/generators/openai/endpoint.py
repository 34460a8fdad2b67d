"""One HTTP API: its key, its deadlines, its retries, and a circuit breaker.

The only place that tries again.  Nothing is tried again once the first event has been passed on.  Whatever an API
sends, it takes no more time than `Patience` allows and no more memory than the bounds here.  Knows HTTP and
server-sent events; knows no model.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from ensemblehub.errors import ConfigError, EngineError, MissingExtraError
from ensemblehub.generators.openai.errors import ErrorReply, one_line, retry_after
from ensemblehub.generators.openai.patience import Breaker, Clock, Failure, Patience
from ensemblehub.generators.openai.sse import DONE, EventParser, ServerEvent

try:
    import httpx2
except ModuleNotFoundError as error:
    raise MissingExtraError(f"{error.name} is not installed: pip install 'ensemblehub[openai]'") from error

log = logging.getLogger(__name__)
_AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529})
_EVENT = 2**20  # bytes of one event at most
_BODY = 2**26  # bytes of one reply at most
_STREAM = 2**28  # bytes of one stream at most
_ERROR = 2**16  # bytes of an error that are read
_ERROR_SECONDS = 5.0  # how long an error is read
_SLICE = 2**16  # bytes that are parsed before other tasks get their turn
_NAMED = ("message", "error")  # kinds of events whose data must be JSON
_JSON = ("application/json", "text/json", "application/problem+json")
_STREAMS = ("text/event-stream", "text/plain", "application/octet-stream", "")  # or types that say nothing


class Refused(EngineError):
    """The endpoint answered with an error of its own; `status` and `code` are its."""

    status = 0
    code = ""


@dataclass
class Endpoint:
    """An API at `url`.

    Attributes:
        name: of the engine, for messages.
        key: sent as a bearer token, and found in no message.
        concurrency: requests at the same time; more wait.
        secret: what else is found in no message.
    """

    name: str
    url: str
    key: str = field(repr=False)
    patience: Patience = field(default_factory=Patience)
    concurrency: int = 64
    headers: Mapping[str, str] = field(default_factory=dict)
    secret: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        self.breaker = Breaker(self.patience)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._noted = False

    async def events(self, path: str, body: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """The JSON objects of a stream of server-sent events; closing it ends the request.

        A server that does not stream answers with one object, the whole reply.

        Raises:
            EngineError: it failed for good, or broke off; a `Refused` where the endpoint said so itself.
        """
        end = time.monotonic() + self.patience.total
        async with self._place():
            for left in reversed(range(self.patience.tries)):
                passed = False
                try:
                    self.breaker.check()
                    async with self._asked(path, body, end) as response:
                        async for event in self._replies(response, end):
                            self.breaker.note(None)
                            passed = True
                            yield event
                    return
                except Failure as failure:
                    await self._again(failure, left if not passed else 0, end)

    async def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The JSON object that a request is answered with.

        Raises:
            EngineError: as `events`.
        """
        return await self._object(path, body)

    async def get(self, path: str) -> dict[str, Any]:
        """The JSON object at a path.

        Raises:
            EngineError: as `events`.
        """
        return await self._object(path, None)

    async def _object(self, path: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
        end = time.monotonic() + self.patience.total
        async with self._place():
            for left in reversed(range(self.patience.tries)):
                try:
                    self.breaker.check()
                    async with self._asked(path, body, end) as response:
                        found = await self._json(response, end)
                    self.breaker.note(None)
                    return found
                except Failure as failure:
                    await self._again(failure, left, end)
        raise AssertionError("the last try either returns or raises")

    async def close(self) -> None:
        """Close the connections."""
        loop, self._loop = self._loop, None
        if loop is asyncio.get_running_loop():
            await self._client.aclose()

    async def _again(self, failure: Failure, left: int, end: float) -> None:
        """Wait before another try, or give up."""
        self.breaker.note(failure)
        tried = self.patience.tries - 1 - left
        wait = max(random.uniform(0.5, 1.0) * self.patience.backoff * 2**tried, failure.wait)
        hopeless = failure.wait > self.patience.longest_wait or time.monotonic() + wait > end
        if not left or not failure.again or hopeless:
            raise self._final(failure) from failure
        await asyncio.sleep(wait)

    def _final(self, failure: Failure) -> EngineError:
        reason = str(failure)
        for secret in filter(None, (self.key, self.secret)):
            reason = reason.replace(secret, "***")
        text = f"{self.name} failed at {self.url}: {one_line(reason)}"
        if not failure.status:
            return EngineError(text, self.name)
        refused = Refused(text, self.name)
        refused.status, refused.code = failure.status, failure.code
        return refused

    def _place(self) -> asyncio.Semaphore:
        """A place among the requests of this event loop, whose connections are its own."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            timeout = httpx2.Timeout(None, connect=self.patience.connect)
            limits = httpx2.Limits(
                max_connections=self.concurrency, max_keepalive_connections=self.concurrency
            )
            self._client = httpx2.AsyncClient(timeout=timeout, limits=limits, follow_redirects=False)
            self._loop, self._places = loop, asyncio.Semaphore(self.concurrency)
        return self._places

    @asynccontextmanager
    async def _asked(
        self, path: str, body: Mapping[str, Any] | None, end: float
    ) -> AsyncIterator[httpx2.Response]:
        """The response to a request (without a body: for what lies at `path`), its head read; failures of the network
        and of the server are `Failure`s."""
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        headers |= self.headers if body is None else {"Content-Type": "application/json", **self.headers}
        method, data = ("GET", None) if body is None else ("POST", json.dumps(body))
        try:
            request = self._client.build_request(method, self.url + path, content=data, headers=headers)
            async with asyncio.timeout(min(self.patience.first_token, _left(end))):
                response = await self._client.send(request, stream=True)
        except TimeoutError as error:
            raise Failure("no answer in time", again=True) from error
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            again = not isinstance(error, httpx2.InvalidURL)
            raise Failure(f"{type(error).__name__} {error}".strip(), again=again) from error
        try:
            self._check_coding(response)
            if not response.is_success:
                raise await self._refusal(response, end)
            yield response
        except httpx2.HTTPError as error:
            again = not isinstance(error, httpx2.DecodingError)
            raise Failure(
                f"the connection broke: {type(error).__name__} {error}".strip(), again=again
            ) from error
        finally:
            await response.aclose()

    def _check_coding(self, response: httpx2.Response) -> None:
        """Refuse a body in a compression that was not offered, which would be read as it stands."""
        offered = self._client.headers.get("accept-encoding", "")
        for coding in response.headers.get("content-encoding", "").lower().split(","):
            if coding.strip() not in ("", "identity", *(known.strip() for known in offered.split(","))):
                reason = (
                    f"HTTP {response.status_code}, compressed by {coding.strip()!r}, which was not asked for"
                )
                raise Failure(reason, again=False, status=0 if response.is_success else response.status_code)

    async def _refusal(self, response: httpx2.Response, end: float) -> Failure:
        text = (await self._start(response, end)).decode(errors="replace")
        error = ErrorReply.read(text)
        wait = retry_after(response.headers.get("retry-after", ""))
        status, reason = response.status_code, f"HTTP {response.status_code} {error.message or text}"
        return Failure(reason, again=status in _AGAIN, status=status, wait=wait, code=error.code)

    async def _start(self, response: httpx2.Response, end: float) -> bytes:
        """The start of an error's body, as far as it comes soon."""
        data, soon = bytearray(), min(end, time.monotonic() + _ERROR_SECONDS)
        with suppress(Failure, httpx2.HTTPError):  # the part of the body that arrived is reported
            async for part in self._parts(response, Clock(soon, soon), _ERROR):
                data += part
        return bytes(data[:_ERROR])

    async def _json(self, response: httpx2.Response, end: float) -> dict[str, Any]:
        data, clock = bytearray(), Clock(end, time.monotonic() + self.patience.first_token)
        async for part in self._parts(response, clock, _BODY):
            data += part
        try:
            found = json.loads(data.decode("utf-8-sig", errors="replace"))
        except (ValueError, RecursionError) as error:
            kind = response.headers.get("content-type", "of no type")
            raise Failure(f"the answer is not JSON but {kind}: {_shown(bytes(data))}", again=False) from error
        if not isinstance(found, dict):
            raise Failure("the answer is no JSON object", again=False)
        return _checked(found, "answer", again=False)

    async def _replies(self, response: httpx2.Response, end: float) -> AsyncGenerator[dict[str, Any], None]:
        """The JSON objects of a response, whether the server streams or not."""
        kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind in _JSON:
            self._note_whole()
            yield await self._json(response, end)
            return
        if kind not in _STREAMS:
            start = _shown(await self._start(response, end))
            raise Failure(f"the answer is no stream but {kind}: {start}", again=False)
        empty = True
        async for event in self._events(response, end):
            empty = False
            yield event
        if empty:
            raise Failure(f"the answer, of type {kind!r}, holds no event", again=True)

    def _note_whole(self) -> None:
        """Say once that replies come whole, so that closing a stream saves nothing."""
        if not self._noted:
            self._noted = True
            log.warning("%s: the server does not stream; its replies are read whole", self.name)

    async def _events(self, response: httpx2.Response, end: float) -> AsyncGenerator[dict[str, Any], None]:
        """Events up to `[DONE]`, each within its deadline; comments keep no deadline from passing."""
        parser, clock = EventParser(_EVENT), Clock(end, time.monotonic() + self.patience.first_token)
        async for event in self._parsed(response, parser, clock):
            if event.data == DONE:
                return
            found = _object(event)
            if found is not None:
                yield found
                if found.get("choices"):
                    clock.due = time.monotonic() + self.patience.inter_token

    async def _parsed(
        self, response: httpx2.Response, parser: EventParser, clock: Clock
    ) -> AsyncGenerator[ServerEvent, None]:
        try:
            async for part in self._parts(response, clock, _STREAM):
                for at in range(0, len(part), _SLICE):
                    for event in parser.feed(part[at : at + _SLICE]):
                        self._in_time(clock)
                        yield event
                    await asyncio.sleep(0)
                    self._in_time(clock)
        except ValueError as error:
            raise Failure(str(error), again=False) from error
        for event in parser.end():
            yield event

    async def _parts(self, response: httpx2.Response, clock: Clock, most: int) -> AsyncGenerator[bytes, None]:
        """The body as it comes, bounded in size and time."""
        size, stream = 0, response.aiter_bytes()
        while True:
            self._in_time(clock)
            try:
                async with asyncio.timeout(_left(min(clock.end, clock.due))):
                    part = await anext(stream)
            except StopAsyncIteration:
                return
            except TimeoutError as error:
                self._in_time(clock)
                raise Failure("it stalled", again=True) from error
            size += len(part)
            yield part
            if size > most:
                raise Failure(f"an answer of more than {most} bytes", again=False)

    def _in_time(self, clock: Clock) -> None:
        """Check the deadlines also while data flows, when no timer gets a chance to run.

        Raises:
            Failure: one of them is over.
        """
        now = time.monotonic()
        if now >= clock.end:
            raise Failure(
                f"it took longer than {self.patience.total:g} s in all (`patience.total`)", again=False
            )
        if now >= clock.due:
            raise Failure("it stalled", again=True)


def _object(event: ServerEvent) -> dict[str, Any] | None:
    """The JSON object of an event; None for a kind of event that is not of the answer, such as `ping`."""
    try:
        found = json.loads(event.data)
    except (ValueError, RecursionError) as error:
        if event.kind not in _NAMED:
            return None
        what = "an error in the stream" if event.kind == "error" else "an event that is not JSON"
        raise Failure(f"{what}: {event.data[:80]}", again=event.kind == "error") from error
    if not isinstance(found, dict):
        if event.kind not in _NAMED:
            return None
        raise Failure("an event that is no JSON object", again=False)
    reply = {"error": found} if event.kind == "error" and "error" not in found else found
    return _checked(reply, "stream", again=True)


def _checked(reply: dict[str, Any], where: str, *, again: bool) -> dict[str, Any]:
    """A reply that is no error.

    Raises:
        Failure: it is one, though the status says success.
    """
    error = ErrorReply.within(reply)
    if error is None:
        return reply
    again = error.status in _AGAIN if error.status else again
    reason = f"an error in the {where}: {error.message or 'without a reason'}"
    raise Failure(reason, again=again, status=error.status, code=error.code)


def _shown(data: bytes) -> str:
    """The start of a body, for a message."""
    return data[:200].decode(errors="replace")


def _left(end: float) -> float:
    return max(0.001, end - time.monotonic())


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
