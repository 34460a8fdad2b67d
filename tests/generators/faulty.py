"""An OpenAI-compatible API that does as it is told: answers, delays, cuts, garbles, stalls and refuses."""

import asyncio
import json
import time
from contextlib import aclosing, asynccontextmanager, suppress

from ensemblehub.cost import UsageLedger
from ensemblehub.generators.openai.engine import OpenAIEngine, OpenAIOptions
from ensemblehub.generators.openai.patience import Patience
from ensemblehub.schema import Chat, Message, Request

WORDS = ["It", " is", " 4", "."]


def event(data):
    return f"data: {data if isinstance(data, str) else json.dumps(data)}\n\n".encode()


DONE = event("[DONE]")


def chunk(choices, **more):
    return event({"id": "x", "object": "chat.completion.chunk", "choices": choices, **more})


def delta(finish=None, index=0, **fields):
    return chunk([{"index": index, "delta": fields, "finish_reason": finish}])


def said(text="", finish=None, **fields):
    return delta(finish, **({"content": text} if text else {}), **fields)


def usage_event(read=7, written=4, cached=0, **more):
    details = {"prompt_tokens_details": {"cached_tokens": cached}}
    return event(
        {"choices": [], "usage": {"prompt_tokens": read, "completion_tokens": written, **details, **more}}
    )


def answer(*words, finish="stop", usage=True):
    """The parts of a good stream."""
    parts = [said(word) for word in words or WORDS]
    return [
        *parts,
        said(finish=finish),
        *([usage_event(written=len(parts))] if usage else []),
        event("[DONE]"),
    ]


STALL = object()  # nothing more comes, and nothing is closed
CUT = object()  # the connection is closed in the middle


class Faulty:
    """Plays one script per request, the last one for ever.

    A script is a list of parts of a stream, with numbers for pauses in seconds, or a tuple (status, headers, body),
    or a function from what was asked to one of these.
    """

    def __init__(self, *scripts):
        self.scripts, self.asked, self.headers, self.left = list(scripts), [], [], 0

    async def serve(self, reader, writer):
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            fields = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
            body = await reader.readexactly(int(fields.get("content-length", 0)))
            self.asked.append({"path": head.split()[1], **json.loads(body or "{}")})
            self.headers.append(fields)
            script = self.scripts.pop(0) if len(self.scripts) > 1 else self.scripts[0]
            script = script(self.asked[-1]) if callable(script) else script
            gone = asyncio.ensure_future(reader.read(1))
            gone.add_done_callback(lambda task: setattr(self, "left", self.left + (not task.cancelled())))
            with suppress(ConnectionError):
                await (self.refuse if isinstance(script, tuple) else self.stream)(writer, script, gone)
            gone.cancel()
        writer.close()

    async def refuse(self, writer, script, gone):
        status, headers, body = script
        data = body if isinstance(body, bytes) else body.encode()
        lines = [f"HTTP/1.1 {status} X", *(f"{key}: {value}" for key, value in headers.items())]
        lines += [f"content-length: {len(data)}", "connection: close"]
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + data)
        await writer.drain()

    async def stream(self, writer, script, gone):
        begun = False
        for part in script:
            if part is STALL:
                await gone
                return
            if isinstance(part, int | float):
                await asyncio.wait({gone}, timeout=part)
                continue
            if not begun:
                begun = True
                writer.write(
                    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
                )
            if part is CUT:
                writer.transport.abort()
                return
            writer.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
            await writer.drain()
            if gone.done():
                return
        writer.write(b"0\r\n\r\n")
        await writer.drain()


@asynccontextmanager
async def upstream(*scripts):
    """The API and its base URL."""
    faulty = Faulty(*scripts)
    server = await asyncio.start_server(faulty.serve, "127.0.0.1", 0, limit=2**24)
    try:
        yield faulty, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    finally:
        server.close()


CHAT = Chat((Message("system", "Be brief."), Message("user", "2 + 2?")))
QUICK = Patience(
    connect=1, first_token=0.4, inter_token=0.4, total=3, tries=3, backoff=0.01, breaker_seconds=0.3
)


class Asked:
    """What came of one or more requests to an API that plays scripts."""

    def __init__(self, *scripts, request=None, read=None, times=1, **options):
        self.pieces, self.ledger, self.error, self.request = [], UsageLedger(), None, request or Request(CHAT)
        self.read = read
        asyncio.run(self._ask(scripts, times, {"patience": QUICK, **options}))

    async def _ask(self, scripts, times, options):
        async with upstream(*scripts) as (self.api, url):
            engine = OpenAIEngine("far", OpenAIOptions("model-7b", base_url=url, **options))
            started = time.monotonic()
            for _ in range(times):
                await self._once(engine)
            self.seconds = time.monotonic() - started
            await engine.close()
            await asyncio.sleep(0.05)

    async def _once(self, engine):
        self.pieces, self.error = [], None
        try:
            async with aclosing(engine.stream(self.request, self.ledger.meter("answer"))) as pieces:
                async for piece in pieces:
                    self.pieces.append(piece)
                    if self.read and len(self.pieces) >= self.read:
                        break
        except Exception as error:
            self.error = error

    @property
    def text(self):
        return "".join(piece.text for piece in self.pieces)

    @property
    def cost(self):
        return self.ledger.total
