"""Ten minutes of mixed load: `python -m benchmarks.server_soak`.

Clients ask for long and short answers, streamed and not, single, several at a time and in Tandem; a tenth of them leave
at a random moment.  The engines write down when each stream begins, ends and is stopped.  Looked for: memory that grows
(at most 5 % from the minute after a warm-up of a fifth of the time to the last minute), streams, requests, tasks or
files that stay behind at the end, a client that left and whose engines were not stopped within a second (the long
answers take five, so an engine that is not stopped shows), and an answer that is wrong or lost among those that stayed.

Writes `server_soak.json`, `.txt` and `.svg`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import tempfile
import time
from collections import Counter
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import aiohttp
import matplotlib as mpl
import numpy as np
import psutil

from benchmarks import server_load as load
from ensemblehub.cost import UsageMeter
from ensemblehub.generators.echo import EchoEngine, EchoOptions
from ensemblehub.schema import Piece, Request

mpl.use("Agg")
from matplotlib import pyplot as plt

GROWTH, ABORT, LEAVE = 0.05, 1.0, 0.1
LENGTHS, DELAY = [4, 40, 200, 1000], 0.005
MEBI = 2**20
SETTLE = 10.0  # seconds in which the last connections may close
Sample = tuple[float, float]  # seconds since the beginning, MiB
Row = dict[str, Any]


@dataclass(frozen=True)
class RecordingOptions(EchoOptions):
    """As `echo`'s.

    Attributes:
        journal: file that takes a line whenever a stream begins, ends or is stopped.
    """

    journal: str = ""


class RecordingEngine(EchoEngine):
    """An `echo` engine that keeps a record of its streams; each is known by its question."""

    options: ClassVar[type] = RecordingOptions

    async def stream(self, request: Request, meter: UsageMeter) -> AsyncGenerator[Piece, None]:
        asked, how = self._rendered(request), "stopped"
        mark = asked[asked.find("<") : asked.find(">") + 1]
        self._note(mark, "begun")
        try:
            async with aclosing(super().stream(request, meter)) as pieces:
                async for piece in pieces:
                    how = "ended" if piece.finish else "stopped"
                    yield piece
        finally:
            self._note(mark, how)

    def _note(self, mark: str, what: str) -> None:
        with Path(self.script.journal).open("a") as file:  # type: ignore[attr-defined]
            file.write(json.dumps([mark, what, time.time()]) + "\n")


def config(journal: Path) -> dict[str, Any]:
    """A Tandem, turns, and two models alone, of which one is long-winded."""
    words = " ".join(f"n{number}" for number in range(max(LENGTHS)))
    spec = {"engine": "benchmarks.server_soak:RecordingEngine", "journal": str(journal), "delay": DELAY}
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
            await asyncio.gather(*[self.client(session, end) for _ in range(clients)])

    async def client(self, session: aiohttp.ClientSession, end: float) -> None:
        """A client, until the end."""
        while time.monotonic() < end:
            asked = Asked(f"<{len(self.asked)}>")
            self.asked.append(asked)
            length, count = self.rng.choice(LENGTHS), self.rng.choice([1, 1, 1, 2])
            more = {"stream": self.rng.random() < 0.6, "max_tokens": length, "n": count}
            body = (
                load.body(self.rng.choice(["ensemble", "turns", "big", "small"]), f"Count {asked.mark}")
                | more
            )
            patience = self.rng.uniform(0.0, DELAY * length) if self.rng.random() < LEAVE else None
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
        for choice in (line["choices"][0] for line in lines if line.get("choices")):
            texts[choice["index"]] += choice["delta"].get("content") or ""
    else:
        texts = {choice["index"]: choice["message"]["content"] for choice in json.loads(data)["choices"]}
    wanted = " ".join(f"n{number}" for number in range(body["max_tokens"]))
    return "right" if all(text == wanted for text in texts.values()) else "wrong"


async def watched(
    url: str, running: psutil.Process, clients: int, seconds: float
) -> tuple[Load, list[Sample], Row]:
    """The load, memory by the second, and what is left behind when it is over."""
    work, memory, started, busy = Load(url, 1), list[Sample](), time.monotonic(), load.cpu(running)
    before = await tasks(url), running.num_fds()
    task = asyncio.create_task(work.run(clients, seconds))
    while not task.done():
        memory.append((time.monotonic() - started, running.memory_info().rss / MEBI))
        await asyncio.sleep(1.0)
    await task
    share = (load.cpu(running) - busy) / (time.monotonic() - started)
    left, end = await left_behind(url, running, before), time.monotonic() + SETTLE
    while (
        any(left.values()) and time.monotonic() < end
    ):  # the last connections, the ones that ask this among them
        await asyncio.sleep(0.5)
        left = await left_behind(url, running, before)
    return work, memory, {"left_behind": left, "server_cpu": round(share, 3)}


async def left_behind(url: str, running: psutil.Process, before: tuple[int, int]) -> dict[str, int]:
    """What the server still holds beyond the tasks and files it had `before`."""
    after = await tasks(url), running.num_fds()
    async with load.client() as session, session.get(f"{url}/status") as response:
        status = await response.json()
    left = {key: status[key] for key in ("running", "queued", "queued_tokens")}
    grown = {
        key: max(0, late - early) for key, early, late in zip(("tasks", "files"), before, after, strict=True)
    }
    return left | grown


async def tasks(url: str) -> int:
    """Tasks of the server's event loop."""
    async with load.client() as session, session.get(f"{url}/metrics") as response:
        lines = (await response.text()).splitlines()
    return int(float(next(line.rsplit(" ", 1)[1] for line in lines if line.startswith("ensemblehub_tasks "))))


def judged(asked: Sequence[Asked], lines: Sequence[tuple[str, str, float]]) -> Row:
    """What became of the answers, and of the engines whose clients left."""
    noted: dict[str, list[tuple[str, float]]] = {}
    for mark, what, when in lines:
        noted.setdefault(mark, []).append((what, when))
    known = Counter(what for _, what, _ in lines)
    moments = {request.mark: request.left for request in asked if request.left is not None}
    after = {mark: [line for line in noted.get(mark, []) if line[1] > left] for mark, left in moments.items()}
    late = {mark: max(when for _, when in found) - moments[mark] for mark, found in after.items() if found}
    return {
        "requests": len(asked),
        "outcomes": dict(Counter(request.outcome for request in asked)),
        "streams": {"begun": known["begun"], "ended": known["ended"], "stopped": known["stopped"]},
        "unfinished": known["begun"] - known["ended"] - known["stopped"],
        "left": {"while engines wrote": len(late), "before or after": len(after) - len(late)},
        "after_leaving": dict(Counter(what for found in after.values() for what, _ in found)),
        "stop_seconds": load.percentiles(list(late.values()) or [0.0], scale=1.0),
        "stops_too_late": sum(seconds > ABORT for seconds in late.values()),
        "late": sorted(late.values()),
    }


def grown(memory: Sequence[Sample], seconds: float) -> Row:
    """Memory after the warm-up and at the end, in MiB: medians of a tenth of the time."""
    warm, tenth = seconds / 5, seconds / 10
    spans = {"warm": (warm, warm + tenth), "end": (seconds - tenth, seconds + tenth)}
    found = {
        key: float(np.median([size for when, size in memory if low <= when <= high] or [memory[-1][1]]))
        for key, (low, high) in spans.items()
    }
    return {"memory_mib": found, "growth": found["end"] / found["warm"] - 1}


def misses(found: Row) -> list[str]:
    """The aims that are missed, and by how much."""
    wrong = {key: count for key, count in found["outcomes"].items() if key not in ("right", "left")}
    said = [f"answers that are not right: {wrong}"] if wrong else []
    if found["growth"] > GROWTH:
        said.append(f"memory grew by {found['growth']:.1%}, more than {GROWTH:.0%}")
    if found["stops_too_late"]:
        longest = found["stop_seconds"]["max"]
        said.append(
            f"{found['stops_too_late']} clients' engines ran on for up to {longest:.2f} s, more than {ABORT:g}"
        )
    if found["unfinished"]:
        said.append(f"{found['unfinished']} streams of engines never ended")
    return said + ([f"left behind: {found['left_behind']}"] if any(found["left_behind"].values()) else [])


def table(record: Row) -> str:
    """What a person reads."""
    outcomes, streams, left, stop = (record[key] for key in ("outcomes", "streams", "left", "stop_seconds"))
    others = {key: count for key, count in outcomes.items() if key not in ("right", "left")}
    after, memory = record["after_leaving"], record["memory_mib"]
    rows = {
        "load": f"{record['seconds'] / 60:g} minutes, {record['clients']} clients, {record['requests']} requests",
        "answers": f"{outcomes.get('right', 0)} right, {sum(others.values())} wrong or lost {others or ''}".strip(),
        "clients that left": f"{outcomes.get('left', 0)}, of them {left['while engines wrote']} while engines wrote",
        "engines' streams": f"{streams['begun']} begun, {record['unfinished']} of them never ended",
        "after their client left": f"{after.get('stopped', 0)} stopped, {after.get('ended', 0)} ended by themselves, "
        f"{after.get('begun', 0)} begun",
        "seconds until then": f"p50 {stop['p50']:.3f}, p99 {stop['p99']:.3f}, longest {stop['max']:.3f}",
        "memory": f"{memory['warm']:.1f} MiB after warm-up, {memory['end']:.1f} at the end: {record['growth']:+.1%}",
        "left behind": ", ".join(f"{count} {key}" for key, count in record["left_behind"].items()),
        "server's CPU": f"{record['server_cpu']:.0%} of a core",
        "conditions": load.told(record["conditions"]),
    }
    return "\n".join(f"{key:<25}{value}" for key, value in rows.items())


def plot(memory: Sequence[Sample], late: Sequence[float], warm: float, folder: Path) -> None:
    """Memory against time; how long engines went on when their clients had left."""
    mpl.rcParams["svg.hashsalt"] = "ensemblehub"
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4), width_ratios=[3, 2])
    left.plot([when / 60 for when, _ in memory], [size for _, size in memory])
    left.axvspan(0, warm / 60, alpha=0.1, label="warm-up")
    left.set(xlabel="minutes", ylabel="server's memory, MiB", ylim=(0, None), xlim=(0, None))
    left.legend()
    if late:
        right.ecdf([1000 * seconds for seconds in late])
    right.axvline(1000 * ABORT, linestyle=":", color="black", label="aim")
    right.set(
        xlabel="ms from a client's leaving to its engines' stop",
        ylabel="share of those clients",
        xscale="log",
    )
    right.legend()
    for axis in (left, right):
        axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(folder / "server_soak.svg", metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    """Measure, print, write; fails where an aim is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10, help="how long (default: %(default)s)")
    parser.add_argument("--clients", type=int, default=40, help="at the same time (default: %(default)s)")
    options = load.parsed(parser)
    where, seconds = load.conditions(), 5.0 if options.quick else 60 * options.minutes
    with tempfile.TemporaryDirectory() as folder:
        journal = Path(folder) / "streams.jsonl"
        journal.touch()
        with load.server(config(journal)) as (url, running):
            work, memory, after = asyncio.run(watched(url, running, options.clients, seconds))
        found = judged(work.asked, [json.loads(line) for line in journal.read_bytes().split(b"\n") if line])
    late = found.pop("late")
    found |= {**after, **grown(memory, seconds)}
    record = {"conditions": where, "seconds": seconds, "clients": options.clients, **found}
    record["memory_by_second"] = [round(size, 1) for _, size in memory]
    options.out.mkdir(parents=True, exist_ok=True)
    plot(memory, late, seconds / 5, options.out)
    load.keep(options.out, "server_soak", record, table(record), [] if options.quick else misses(found))


if __name__ == "__main__":
    main()
