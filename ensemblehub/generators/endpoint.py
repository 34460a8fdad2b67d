"""One HTTP API: its key, its deadlines, its retries, and a breaker that keeps the hopeless from being tried.

The only place that tries again.  Nothing is tried again once the first event has been passed on.  Knows HTTP and
server-sent events; knows no model.
"""

from __future__ import annotations

import asyncio
import email.utils
import json
import os
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from ensemblehub.errors import ConfigError, EngineError, MissingExtraError

try:
    import httpx2
except ModuleNotFoundError as error:
    raise MissingExtraError(f"{error.name} is not installed: pip install 'ensemblehub[openai]'") from error

_AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529})
_LINE = 2**20  # bytes of one event at most
_BODY = 2**26  # bytes of one answer at most
_SAID = 8192  # bytes of an error that are read


@dataclass(frozen=True)
class Patience:
    """How long to wait and how often to try.

    Attributes:
        connect, first_token, inter_token, total: deadlines in seconds; `total` covers all tries.
        tries: how often a request is made at most, as long as nothing has come back.
        backoff: seconds before the second try at most, doubled for each further one; a random part of it is waited,
            or the server's `Retry-After` where that is longer.
        breaker_failures, breaker_seconds: after so many failures in a row the endpoint is left alone for so long.
    """

    connect: float = 10.0
    first_token: float = 120.0
    inter_token: float = 60.0
    total: float = 600.0
    tries: int = 4
    backoff: float = 0.5
    breaker_failures: int = 5
    breaker_seconds: float = 30.0


@dataclass
class Clock:
    """The times by which a whole request, and its next event, must be there."""

    end: float
    due: float


class Failure(Exception):
    """One try that failed; `again` tells whether another may help, `status` is the HTTP one, if any.

    `untried`: the endpoint was not even asked.
    """

    def __init__(
        self, reason: str, *, again: bool, status: int = 0, wait: float = 0.0, body: Any = None, untried: bool = False
    ) -> None:
        super().__init__(reason)
        self.again, self.status, self.wait, self.body, self.untried = again, status, wait, body, untried


class Refused(EngineError):
    """The endpoint answered with an error of its own; `status` and `code` are its."""

    status = 0
    code = ""


@dataclass
class Breaker:
    """Leaves an endpoint alone after failures in a row; then lets one request try it."""

    patience: Patience
    failures: int = 0
    closed_at: float = 0.0
    reason: str = ""

    def check(self) -> None:
        """Refuse while the endpoint is left alone.

        Raises:
            Failure: says for how long.
        """
        left = self.closed_at - time.monotonic()
        if self.failures >= self.patience.breaker_failures and left > 0:
            why = f"it failed {self.failures} times in a row and is left alone for {left:.0f} s, at last: {self.reason}"
            raise Failure(why, again=False, untried=True)
        if self.failures >= self.patience.breaker_failures:
            self.closed_at = time.monotonic() + self.patience.breaker_seconds  # this one tries, the others wait

    def note(self, failure: Failure | None) -> None:
        """Count a try that failed, or start anew."""
        if failure is None:
            self.failures = 0
        elif not failure.untried and (failure.status == 0 or failure.status >= 500):
            self.failures, self.reason = self.failures + 1, str(failure)
            self.closed_at = time.monotonic() + self.patience.breaker_seconds


@dataclass
class Endpoint:
    """An API at `url`.

    Attributes:
        name: of the engine, for messages.
        key: sent as a bearer token, and found in no message.
        concurrency: requests at the same time; more wait.
    """

    name: str
    url: str
    key: str = field(repr=False)
    patience: Patience = Patience()
    concurrency: int = 64
    headers: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.breaker = Breaker(self.patience)
        self._loop: asyncio.AbstractEventLoop | None = None

    async def events(self, path: str, body: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """The JSON objects of a stream of server-sent events; closing it ends the request.

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
                        if "text/event-stream" not in response.headers.get("content-type", ""):
                            raise await self._no_stream(response)
                        async for event in self._read(response, end):
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
        if not left or not failure.again or time.monotonic() + wait > end:
            raise self._final(failure) from failure
        await asyncio.sleep(wait)

    def _final(self, failure: Failure) -> EngineError:
        reason = " ".join(str(failure).split())[:500]
        reason = reason.replace(self.key, "***") if self.key else reason
        text = f"{self.name} failed at {self.url}: {reason}"
        if not failure.status:
            return EngineError(text, self.name)
        refused = Refused(text, self.name)
        refused.status = failure.status
        refused.code = str(failure.body.get("code") or "") if isinstance(failure.body, dict) else ""
        return refused

    def _place(self) -> asyncio.Semaphore:
        """A place among the requests of this event loop, whose connections are its own."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            timeout = httpx2.Timeout(None, connect=self.patience.connect)
            limits = httpx2.Limits(max_connections=self.concurrency, max_keepalive_connections=self.concurrency)
            self._client = httpx2.AsyncClient(timeout=timeout, limits=limits, follow_redirects=False)
            self._loop, self._places = loop, asyncio.Semaphore(self.concurrency)
        return self._places

    @asynccontextmanager
    async def _asked(self, path: str, body: Mapping[str, Any] | None, end: float) -> AsyncIterator[httpx2.Response]:
        """The response to a request (without a body: for what lies at `path`), its head read; failures of the network
        and of the server are `Failure`s."""
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        headers |= self.headers if body is None else {"Content-Type": "application/json", **self.headers}
        method, data = ("GET", None) if body is None else ("POST", json.dumps(body))
        request = self._client.build_request(method, self.url + path, content=data, headers=headers)
        try:
            async with asyncio.timeout(min(self.patience.first_token, _left(end))):
                response = await self._client.send(request, stream=True)
        except TimeoutError as error:
            raise Failure("no answer in time", again=True) from error
        except httpx2.HTTPError as error:
            raise Failure(f"{type(error).__name__} {error}".strip(), again=True) from error
        try:
            if not response.is_success:
                raise await self._refusal(response)
            yield response
        except httpx2.HTTPError as error:
            raise Failure(f"the connection broke: {type(error).__name__} {error}".strip(), again=True) from error
        finally:
            await response.aclose()

    async def _refusal(self, response: httpx2.Response) -> Failure:
        data, body = await _some(response), None
        try:
            body = json.loads(data)
            body = body.get("error", body) if isinstance(body, dict) else None
        except ValueError:
            pass  # not JSON: a proxy's page
        said = body.get("message") if isinstance(body, dict) else None
        reason = f"HTTP {response.status_code} {said or data.decode(errors='replace')}"
        wait = retry_after(response.headers.get("retry-after", ""))
        return Failure(reason, again=response.status_code in _AGAIN, status=response.status_code, wait=wait, body=body)

    async def _no_stream(self, response: httpx2.Response) -> Failure:
        kind = response.headers.get("content-type", "nothing it names")
        return Failure(
            f"the answer is no stream but {kind}: {(await _some(response)).decode(errors='replace')}", again=False
        )

    async def _json(self, response: httpx2.Response, end: float) -> dict[str, Any]:
        data, clock = bytearray(), Clock(end, time.monotonic() + self.patience.first_token)
        async for part in self._parts(response, clock):
            data += part
        try:
            found = json.loads(data)
        except ValueError as error:
            raise Failure("the answer is not JSON", again=False) from error
        if not isinstance(found, dict):
            raise Failure("the answer is no JSON object", again=False)
        return found

    async def _read(self, response: httpx2.Response, end: float) -> AsyncGenerator[dict[str, Any], None]:
        """Events up to `[DONE]`, each within its deadline; comments keep no deadline from passing."""
        buffer, clock = bytearray(), Clock(end, time.monotonic() + self.patience.first_token)
        async for part in self._parts(response, clock):
            buffer += part
            while (at := buffer.find(b"\n")) >= 0:
                line = bytes(buffer[:at]).strip()
                del buffer[: at + 1]
                if not line.startswith(b"data:"):
                    continue
                data = line[5:].strip()
                if data == b"[DONE]":
                    return
                yield _event(data)
                clock.due = time.monotonic() + self.patience.inter_token
            if len(buffer) > _LINE:
                raise Failure(f"an event of more than {_LINE} bytes", again=False)

    async def _parts(self, response: httpx2.Response, clock: Clock) -> AsyncGenerator[bytes, None]:
        """The body as it comes, bounded in size and time."""
        size, stream = 0, response.aiter_bytes()
        while True:
            try:
                async with asyncio.timeout(_left(min(clock.end, clock.due))):
                    part = await anext(stream)
            except StopAsyncIteration:
                return
            except TimeoutError as error:
                raise Failure("it stalled", again=True) from error
            size += len(part)
            if size > _BODY:
                raise Failure(f"an answer of more than {_BODY} bytes", again=False)
            yield part


def _event(data: bytes) -> dict[str, Any]:
    try:
        event = json.loads(data)
    except ValueError as error:
        raise Failure(f"an event that is not JSON: {data[:80].decode(errors='replace')}", again=False) from error
    if not isinstance(event, dict):
        raise Failure("an event that is no JSON object", again=False)
    if event.get("error"):
        said = event["error"]
        reason = said.get("message", said) if isinstance(said, dict) else said
        raise Failure(f"an error in the stream: {reason}", again=True, body=said)
    return event


async def _some(response: httpx2.Response) -> bytes:
    """The start of a body, soon."""
    data = bytearray()
    try:
        async with asyncio.timeout(5.0):
            async for part in response.aiter_bytes():
                data += part
                if len(data) >= _SAID:
                    break
    except (TimeoutError, httpx2.HTTPError):
        return bytes(data)
    return bytes(data[:_SAID])


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


def retry_after(value: str) -> float:
    """Seconds that a `Retry-After` header asks to wait: a number of them, or a date."""
    if value.strip().isdigit():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return 0.0
