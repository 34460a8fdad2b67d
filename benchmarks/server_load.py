"""What the benchmarks of the server share: a server as a process, a client that reads streams, and statistics.

Knows how to start `python -m ensemblehub.api` and how to read server-sent events; each benchmark knows its measure.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import psutil
from numpy.typing import ArrayLike

RESULTS = Path("results/benchmarks")


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as one:
        return int(one.getsockname()[1])


@contextmanager
def process(command: Sequence[str], port: int, path: str = "/health", **env: str) -> Iterator[psutil.Process]:
    """A server started by `command`, from when `path` answers until the block ends."""
    with tempfile.NamedTemporaryFile("w+") as log:
        surroundings = {**os.environ, "OMP_NUM_THREADS": "1", **env}
        running = subprocess.Popen(command, stdout=log, stderr=log, env=surroundings)
        try:
            end = time.monotonic() + 120
            while not asyncio.run(_answers(f"http://127.0.0.1:{port}{path}")):
                if running.poll() is not None or time.monotonic() > end:
                    raise SystemExit(f"the server did not start:\n{Path(log.name).read_text()[-3000:]}")
                time.sleep(0.1)
            yield psutil.Process(running.pid)
        finally:
            running.terminate()
            try:
                running.wait(15)
            except subprocess.TimeoutExpired:
                running.kill()


@contextmanager
def server(config: Mapping[str, Any], **env: str) -> Iterator[tuple[str, psutil.Process]]:
    """`python -m ensemblehub.api` with a configuration: its address and its process."""
    with tempfile.TemporaryDirectory() as folder:
        path, port = Path(folder) / "config.yaml", free_port()
        path.write_text(json.dumps(config))
        command = [sys.executable, "-m", "ensemblehub.api", str(path), "--port", str(port), "--log-format", "json"]
        with process(command, port, **env) as running:
            yield f"http://127.0.0.1:{port}", running


async def _answers(url: str) -> bool:
    try:
        async with aiohttp.ClientSession() as session, session.get(url) as response:
            return response.status == 200
    except aiohttp.ClientError:
        return False


@dataclass
class Reply:
    """One streamed reply as a client saw it; what came is taken apart only when it is asked for, after the rush.

    Attributes:
        sent: when it was asked for (`time.perf_counter`), on the schedule, not when the client came to it.
        parts: what came, and when.
    """

    sent: float
    parts: list[tuple[float, bytes]] = field(default_factory=list)
    status: int = 0
    error: str = ""

    @cached_property
    def texts(self) -> list[tuple[float, str]]:
        """Each text, and when the part came that completed its line."""
        found, rest = [], b""
        for when, part in self.parts:
            *lines, rest = (rest + part).split(b"\n")
            for line in lines:
                if line.startswith(b"data: {") and (text := _text(line)):
                    found.append((when, text))
        return found

    @property
    def done(self) -> bool:
        """Whether the stream ended with `[DONE]`."""
        return b"".join(part for _, part in self.parts[-2:]).rstrip().endswith(b"data: [DONE]")

    @property
    def at(self) -> list[float]:
        """When each text came."""
        return [when for when, _ in self.texts]

    @property
    def first(self) -> float | None:
        """Seconds until the first text; None where there was none."""
        return self.texts[0][0] - self.sent if self.texts else None

    @property
    def seconds(self) -> float:
        """From asking to the last text."""
        return self.texts[-1][0] - self.sent if self.texts else 0.0


def body(model: str, question: str = "Count.", **more: Any) -> dict[str, Any]:
    """A chat that is streamed."""
    return {"model": model, "messages": [{"role": "user", "content": question}], "stream": True, **more}


async def read(session: aiohttp.ClientSession, url: str, asked: Mapping[str, Any], sent: float | None = None) -> Reply:
    """Ask and read the stream to its end."""
    reply = Reply(time.perf_counter() if sent is None else sent)
    try:
        async with session.post(url, json=asked) as response:
            reply.status = response.status
            async for part in response.content.iter_any():
                reply.parts.append((time.perf_counter(), part))
    except (aiohttp.ClientError, TimeoutError) as error:
        reply.error = f"{type(error).__name__}: {error}"
    return reply


def _text(line: bytes) -> str:
    choices = json.loads(line[6:]).get("choices")
    delta = choices[0].get("delta", {}) if choices else {}
    return str(delta.get("content") or delta.get("reasoning_content") or "")


@asynccontextmanager
async def client(connections: int = 0) -> AsyncIterator[aiohttp.ClientSession]:
    """A client with as many connections as it needs."""
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=30)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=connections), timeout=timeout) as session:
        yield session


@dataclass
class Lag:
    """How late this process' own event loop is, so that its stalls are not taken for the server's."""

    step: float = 0.005
    seen: list[tuple[float, float]] = field(default_factory=list)  # (when, seconds late)

    async def watch(self) -> None:
        """Measure until cancelled."""
        while True:
            due = time.perf_counter() + self.step
            await asyncio.sleep(self.step)
            self.seen.append((time.perf_counter(), time.perf_counter() - due))

    def between(self, start: float, end: float) -> float:
        """The longest delay that touches an interval."""
        return max((late for when, late in self.seen if when - late <= end and when >= start), default=0.0)


def percentiles(values: ArrayLike, *, scale: float = 1000.0) -> dict[str, float]:
    """Median, p95, p99 and maximum, times `scale` (milliseconds)."""
    found = np.asarray(values, float) * scale
    names = ("p50", "p95", "p99", "max")
    return dict(zip(names, np.percentile(found, [50, 95, 99, 100]).round(3).tolist(), strict=True))


def difference(ours: ArrayLike, theirs: ArrayLike, percent: float, *, draws: int = 2000) -> tuple[float, float, float]:
    """The difference between two percentiles in milliseconds, with a bootstrapped 95 % interval."""
    left, right, rng = np.asarray(ours, float) * 1000, np.asarray(theirs, float) * 1000, np.random.default_rng(0)
    found = [
        np.percentile(rng.choice(left, len(left)), percent) - np.percentile(rng.choice(right, len(right)), percent)
        for _ in range(draws)
    ]
    low, high = np.percentile(found, [2.5, 97.5])
    middle = np.percentile(left, percent) - np.percentile(right, percent)
    return float(middle), float(low), float(high)


def conditions() -> dict[str, Any]:
    """Where and when it was measured."""
    return {
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "load": [round(one, 2) for one in os.getloadavg()],
        "date": time.strftime("%Y-%m-%d"),
    }


def write(folder: Path, name: str, record: Mapping[str, Any], text: str) -> None:
    """Keep a result as JSON and as the text that was printed."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    (folder / f"{name}.txt").write_text(text + "\n")
    print(text)
