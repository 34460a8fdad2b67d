"""What the benchmarks of the server share: a server as a process, a client that reads streams, and statistics.

Knows how to start `python -m ensemblehub.api`, how to read server-sent events, and how a result is kept; each benchmark
knows its measure and its aims.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
import time
from bisect import bisect_left
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import psutil
from numpy.typing import ArrayLike

RESULTS = Path("results/benchmarks")
Sample = tuple[float, float]  # when it was asked for, and seconds


def parsed(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The arguments, with `--quick` and `--out`, which every benchmark takes; a smoke run does not replace results."""
    parser.add_argument(
        "--quick", action="store_true", help="a smoke run of seconds; its figures mean nothing"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder (default: %(default)s)")
    options = parser.parse_args()
    if options.quick and options.out == RESULTS:
        parser.error(
            f"--quick needs an --out of its own: what it measures would replace what {RESULTS} holds"
        )
    return options


class NotStarted(SystemExit):
    """A server does not answer."""


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextmanager
def process(command: Sequence[str], port: int, path: str = "/health", **env: str) -> Iterator[psutil.Process]:
    """A server started by `command`, from when `path` answers until the block ends.

    Raises:
        NotStarted: with the end of its log.
    """
    with tempfile.NamedTemporaryFile("w+") as log:
        surroundings = {**os.environ, "OMP_NUM_THREADS": "1", **env}
        running = subprocess.Popen(command, stdout=log, stderr=log, env=surroundings)
        try:
            end = time.monotonic() + 120
            while not asyncio.run(_answers(f"http://127.0.0.1:{port}{path}")):
                if running.poll() is not None or time.monotonic() > end:
                    raise NotStarted(f"the server did not start:\n{Path(log.name).read_text()[-3000:]}")
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
        command = [
            sys.executable,
            "-m",
            "ensemblehub.api",
            str(path),
            "--port",
            str(port),
            "--log-format",
            "json",
        ]
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
    def gaps(self) -> list[float]:
        """Seconds between texts."""
        return [after - before for before, after in pairwise(self.at)]

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


async def read(
    session: aiohttp.ClientSession, url: str, asked: Mapping[str, Any], sent: float | None = None
) -> Reply:
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
async def client(
    connections: int = 0, headers: Mapping[str, str] | None = None
) -> AsyncIterator[aiohttp.ClientSession]:
    """A client with as many connections as it needs."""
    connector, timeout = (
        aiohttp.TCPConnector(limit=connections),
        aiohttp.ClientTimeout(total=300, sock_connect=30),
    )
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, headers=headers) as session:
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
        longest = 0.0
        for when, late in self.seen[bisect_left(self.seen, (start, -1.0)) :]:
            if when - late > end:
                break
            longest = max(longest, late)
        return longest

    @property
    def milliseconds(self) -> dict[str, float]:
        """How late it was."""
        return percentiles([late for _, late in self.seen] or [0.0])


def cpu(running: psutil.Process) -> float:
    """Seconds of a core that a process has used."""
    times = running.cpu_times()
    return float(times.user + times.system)


def everyone() -> float:
    """Seconds of a core that all processes of this machine have used."""
    times = psutil.cpu_times()
    return float(
        sum(getattr(times, kind, 0.0) for kind in ("user", "nice", "system", "irq", "softirq", "steal"))
    )


def percentiles(values: ArrayLike, *, scale: float = 1000.0) -> dict[str, float]:
    """Median, p95, p99 and maximum, times `scale` (milliseconds)."""
    found = np.asarray(values, float) * scale
    names = ("p50", "p95", "p99", "max")
    return dict(zip(names, np.percentile(found, [50, 95, 99, 100]).round(3).tolist(), strict=True))


def differences(
    ours: Sequence[Sample], theirs: Sequence[Sample], *, draws: int = 1000
) -> dict[str, list[float]]:
    """What `ours` takes more at three percentiles, in milliseconds, with bootstrapped 95 % intervals.

    Drawn are whole seconds of the run, both arms' samples of a second together: what disturbed both disturbs both.
    """
    begun, percents = min(when for when, _ in (*ours, *theirs)), (50, 95, 99)
    blocks: dict[int, tuple[list[float], list[float]]] = {}
    for arm, samples in enumerate((ours, theirs)):
        for when, seconds in samples:
            blocks.setdefault(int(when - begun), ([], []))[arm].append(seconds * 1000)
    parts = [(np.array(left), np.array(right)) for left, right in blocks.values()]

    def added(chosen: Sequence[int]) -> ArrayLike:
        left, right = (np.concatenate([parts[name][arm] for name in chosen]) for arm in (0, 1))
        return (
            np.percentile(left, percents) - np.percentile(right, percents)
            if left.size and right.size
            else [np.nan] * 3
        )

    rng, middle = np.random.default_rng(0), np.asarray(added(range(len(parts))))
    drawn = np.array([added(rng.integers(len(parts), size=len(parts)).tolist()) for _ in range(draws)])
    low, high = np.nanpercentile(drawn, [2.5, 97.5], axis=0)
    found = zip(percents, middle, low, high, strict=True)
    return {f"p{percent}": [round(float(value), 3) for value in values] for percent, *values in found}


def conditions() -> dict[str, Any]:
    """Where and when it was measured; ask before the load begins."""
    return {
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "load_before": [round(load, 2) for load in os.getloadavg()],
        "date": time.strftime("%Y-%m-%d"),
    }


def told(where: Mapping[str, Any]) -> str:
    """Conditions in words."""
    before = where["load_before"][0]
    return f"Python {where['python']}, {where['cpus']} shared cores, load before {before:g}, {where['date']}"


def keep(folder: Path, name: str, record: Mapping[str, Any], text: str, missed: Sequence[str]) -> None:
    """Keep a result as JSON and as the text that is printed; an aim that is missed is a failure.

    Raises:
        SystemExit: says what is missed, and by how much.
    """
    said = [text, *[f"MISSED: {line}" for line in missed]]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps({**record, "missed": list(missed)}, indent=1) + "\n")
    (folder / f"{name}.txt").write_text("\n".join(said) + "\n")
    print("\n".join(said))
    if missed:
        raise SystemExit(1)
