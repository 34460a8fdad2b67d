"""Ten minutes of mixed load: `python -m benchmarks.server_soak`.

Clients ask for long and short answers, streamed and not, single, several at a time and in Tandem; a tenth of them leave
at a random moment.  The engines write down when each stream begins, ends and is stopped.  Looked for: memory that grows
(at most 5 % after a warm-up of a fifth of the time), streams, requests or tasks that stay behind at the end, a client
that left and whose engine was not stopped within a second, and an answer that is wrong or lost among those that stayed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import tempfile
import time
from collections import Counter
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import aiohttp
import matplotlib as mpl
import numpy as np
import psutil

from benchmarks import server_load as load
from ensemblehub.cost import Meter
from ensemblehub.generators.echo import EchoEngine, EchoOptions
from ensemblehub.schema import Piece, Request

mpl.use("Agg")
from matplotlib import pyplot as plt

GROWTH, ABORT, LEAVE = 0.05, 1.0, 0.1
MEBI = 2**20


@dataclass(frozen=True)
class RecordingOptions(EchoOptions):
    """As `echo`'s.

    Attributes:
        journal: file that takes a line for each stream: when it began and ended, and whether it was stopped.
    """

    journal: str = ""


class RecordingEngine(EchoEngine):
    """An `echo` engine that keeps a record of its streams; each is known by its question."""

    options: ClassVar[type] = RecordingOptions

    async def stream(self, request: Request, meter: Meter) -> AsyncGenerator[Piece, None]:
        begun, stopped = time.time(), True
        try:
            async with aclosing(super().stream(request, meter)) as pieces:
                async for piece in pieces:
                    yield piece
            stopped = False
        finally:
            asked = self._rendered(request)
            line = [asked[asked.find("<") : asked.find(">") + 1], self.name, begun, time.time(), stopped]
            note(Path(self.script.journal), line)  # type: ignore[attr-defined]


def note(path: Path, line: list[Any]) -> None:
    """Write a line; short, so that the event loop hardly waits."""
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")


def config(journal: Path) -> dict[str, Any]:
    """A Tandem, turns, and two models alone, of which one is long-winded."""
    words = " ".join(f"n{number}" for number in range(300))
    spec = {"engine": "benchmarks.server_soak:RecordingEngine", "journal": str(journal), "delay": 0.005}
    return {
        "model_specs": [
            {"name": "big", **spec, "replies": {"": words}, "parameters": 9},
            {"name": "small", **spec, "replies": {"": words}, "parameters": 1},
        ],
        "ensemble": {
            "output_aggregation_method": "tandem",
            "output_aggregation_params": {"levels": {"low": 8, "high": 24}, "judge": "fixed:high"},
        },
        "ensembles": {
            "turns": {
                "output_aggregation_method": "loop",
                "output_aggregation_params": {"max_new_tokens_per_round": 16},
            }
        },
        "server": {"max_running": 512, "max_queued": 512},
    }


@dataclass
class Asked:
    """One request: what came of it, and when its client left, if it did."""

    mark: str
    outcome: str = ""
    left: float | None = None


class Load:
    """Clients that ask, read, and now and then leave."""

    def __init__(self, url: str, seed: int) -> None:
        self.url, self.rng, self.asked = url, random.Random(seed), list[Asked]()

    async def run(self, clients: int, seconds: float) -> None:
        """`clients` at a time, each asking one question after the other."""
        end = time.monotonic() + seconds
        async with load.client() as session:
            await asyncio.gather(*[self.one(session, end) for _ in range(clients)])

    async def one(self, session: aiohttp.ClientSession, end: float) -> None:
        """A client, until the end."""
        while time.monotonic() < end:
            asked = Asked(f"<{len(self.asked)}>")
            self.asked.append(asked)
            length, count = self.rng.choice([4, 40, 200]), self.rng.choice([1, 1, 1, 2])
            more = {"stream": self.rng.random() < 0.6, "max_tokens": length, "n": count}
            body = load.body(self.rng.choice(["ensemble", "turns", "big", "small"]), f"Count {asked.mark}") | more
            patience = self.rng.uniform(0.0, 0.005 * length) if self.rng.random() < LEAVE else None
            await self.ask(session, body, asked, patience)

    async def ask(
        self, session: aiohttp.ClientSession, body: Mapping[str, Any], asked: Asked, patience: float | None
    ) -> None:
        """Ask and read; with patience, leave when it is over."""
        try:
            async with (
                asyncio.timeout(patience),
                session.post(f"{self.url}/v1/chat/completions", json=body) as response,
            ):
                data = await response.read()
            asked.outcome = verdict(response.status, data, body)
        except TimeoutError:
            asked.left, asked.outcome = time.time(), "left"
        except aiohttp.ClientError as error:
            asked.outcome = type(error).__name__


def verdict(status: int, data: bytes, body: Mapping[str, Any]) -> str:
    """Whether a reply is whole and right."""
    if status != 200:
        return f"HTTP {status}"
    texts = dict.fromkeys(range(body["n"]), "")
    if body["stream"]:
        if not data.endswith(b"data: [DONE]\n\n"):
            return "cut off"
        lines = [json.loads(line[6:]) for line in data.split(b"\n") if line.startswith(b"data: {")]
        for choice in (one["choices"][0] for one in lines if one.get("choices")):
            texts[choice["index"]] += choice["delta"].get("content") or ""
    else:
        texts = {one["index"]: one["message"]["content"] for one in json.loads(data)["choices"]}
    wanted = " ".join(f"n{number}" for number in range(body["max_tokens"]))
    return "right" if all(text == wanted for text in texts.values()) else "wrong"


async def watched(
    url: str, running: psutil.Process, clients: int, seconds: float
) -> tuple[Load, list[tuple[float, float]], dict[str, Any]]:
    """The load, memory by the second, and what the server says when it is over."""
    work, memory, started = Load(url, 1), list[tuple[float, float]](), time.monotonic()
    before = await tasks(url)
    task = asyncio.create_task(work.run(clients, seconds))
    while not task.done():
        memory.append((time.monotonic() - started, running.memory_info().rss / MEBI))
        await asyncio.sleep(1.0)
    await task
    await asyncio.sleep(2.0)
    after = await tasks(url)
    async with load.client() as session, session.get(f"{url}/status") as response:
        return work, memory, await response.json() | {"tasks": max(0, after - before)}


async def tasks(url: str) -> int:
    """Tasks of the server's event loop."""
    async with load.client() as session, session.get(f"{url}/metrics") as response:
        lines = (await response.text()).splitlines()
    return int(float(next(one.rsplit(" ", 1)[1] for one in lines if one.startswith("ensemblehub_tasks "))))


def judged(
    work: Load, memory: list[tuple[float, float]], status: Mapping[str, Any], journal: Path, seconds: float
) -> dict[str, Any]:
    """What was looked for."""
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    last: dict[str, float] = {}
    for mark, _, _, ended, _ in lines:
        last[mark] = max(last.get(mark, 0.0), ended)
    left = [one for one in work.asked if one.left is not None]
    late = [last[one.mark] - (one.left or 0.0) for one in left if one.mark in last]
    warm = [size for when, size in memory if when >= seconds / 5]
    third = max(1, len(warm) // 3)
    growth = float(np.median(warm[-third:]) / np.median(warm[:third]) - 1)
    return {
        "requests": len(work.asked),
        "outcomes": dict(Counter(one.outcome for one in work.asked)),
        "streams": len(lines),
        "stopped": sum(stopped for *_, stopped in lines),
        "abort_seconds": load.percentiles(late or [0.0], scale=1.0),
        "memory_mib": {
            "warm": round(float(np.median(warm[:third])), 1),
            "end": round(float(np.median(warm[-third:])), 1),
        },
        "growth": growth,
        "left_behind": {key: status[key] for key in ("running", "queued", "queued_tokens", "tasks")},
    }


def misses(found: Mapping[str, Any]) -> list[str]:
    """The aims that are missed."""
    wrong = {key: count for key, count in found["outcomes"].items() if key not in ("right", "left")}
    said = [f"memory grew by {found['growth']:.1%}"] if found["growth"] > GROWTH else []
    said += (
        [f"an engine ran on for {found['abort_seconds']['max']:.2f} s"] if found["abort_seconds"]["max"] > ABORT else []
    )
    said += [f"left behind: {found['left_behind']}"] if any(found["left_behind"].values()) else []
    return said + ([f"answers: {wrong}"] if wrong else [])


def plot(memory: list[tuple[float, float]], warm: float, folder: Path) -> None:
    """Memory against time."""
    mpl.rcParams["svg.hashsalt"] = "ensemblehub"
    figure, axis = plt.subplots(figsize=(8, 3))
    axis.plot([when / 60 for when, _ in memory], [size for _, size in memory])
    axis.axvspan(0, warm / 60, alpha=0.1, label="warm-up")
    axis.set(xlabel="minutes", ylabel="server's memory, MiB", ylim=(0, None), xlim=(0, None))
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(folder / "server_soak.svg", bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    """Measure, print, write; fails where an aim is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10, help="how long (default: %(default)s)")
    parser.add_argument("--clients", type=int, default=40, help="at the same time (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="a smoke run of seconds; its figures mean nothing")
    parser.add_argument("--out", type=Path, default=load.RESULTS, help="folder (default: %(default)s)")
    options = parser.parse_args()
    seconds = 5.0 if options.quick else 60 * options.minutes
    with tempfile.TemporaryDirectory() as folder:
        journal = Path(folder) / "streams.jsonl"
        journal.touch()
        with load.server(config(journal)) as (url, running):
            work, memory, status = asyncio.run(watched(url, running, options.clients, seconds))
        found = judged(work, memory, status, journal, seconds)
    record = {"conditions": load.conditions(), "seconds": seconds, "clients": options.clients, **found}
    record["memory_by_second"] = [round(size, 1) for _, size in memory]
    text = "\n".join(f"{key:<16} {value}" for key, value in {**found, "conditions": record["conditions"]}.items())
    load.write(options.out, "server_soak", record, f"{seconds / 60:g} minutes, {options.clients} clients\n{text}")
    plot(memory, seconds / 5, options.out)
    if said := [] if options.quick else misses(found):
        raise SystemExit("; ".join(said))


if __name__ == "__main__":
    main()
