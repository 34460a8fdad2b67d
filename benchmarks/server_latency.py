"""What the server adds to an engine's own time: `python -m benchmarks.server_latency`.

One process serves two handlers over the same kind of `echo` engine (16 tokens, 10 ms each): the whole server, and a
bare Starlette handler that streams the engine's pieces and does nothing else.  A client in a second process asks both
in turn, at random moments of a fixed mean rate, whether or not earlier answers are there (open loop), so that what
disturbs one disturbs the other.  The aims, at 100 requests/s to each: at most 2 ms more at the median and 10 ms more at
the 99th percentile until the first token.  Then the rate is raised until they no longer hold.

As both share a core, what keeps the server busy slows the bare handler too, and a rate that overwhelms both tells
nothing of either.  So at each rate they are also asked apart, in slices of two seconds that alternate; the aims must
hold both ways, and not where the bare handler alone has broken: its median time to first token has doubled.

Beside it the LiteLLM proxy, in an environment of its own, before the same server: what it adds is measured against
asking the server directly.

Writes `server_latency.json`, `.txt` and `.svg`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import secrets
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Any

import matplotlib as mpl
import orjson
import psutil
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request as HTTPRequest
from starlette.responses import StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from benchmarks import server_load as load
from ensemblehub.api.app import create_app
from ensemblehub.config import Config
from ensemblehub.cost import UsageLedger
from ensemblehub.generators.echo import EchoEngine, EchoOptions
from ensemblehub.schema import Chat, Message, Request, Sampling

mpl.use("Agg")
from matplotlib import pyplot as plt

WORDS = " ".join(f"w{number}" for number in range(16))
ENGINE = {"replies": {"": WORDS}, "delay": 0.01}
CONFIG = {
    "model_specs": [{"name": "echo", "engine": "echo", **ENGINE}],
    "server": {"max_running": 4096, "max_queued": 4096},
}
SLICE, AIMS, RATE = 2.0, {"p50": 2.0, "p99": 10.0}, 100.0
MEASURES = {"first_token_ms": "to the first token", "token_ms": "per token after it", "whole_ms": "in all"}
Arms = Mapping[str, str]
Row = dict[str, Any]


class Both:
    """The server, and a bare handler under `/bare`, as one application."""

    def __init__(self) -> None:
        self.ours = create_app(Config.model_validate(CONFIG))
        self.engine = EchoEngine("echo", EchoOptions(**ENGINE))  # type: ignore[arg-type]
        self.bare = Starlette(routes=[Route("/bare", self.handle, methods=["POST"])])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        bare = scope["type"] == "http" and scope["path"] == "/bare"
        await (self.bare if bare else self.ours)(scope, receive, send)

    async def handle(self, asked: HTTPRequest) -> StreamingResponse:
        """Stream what the engine writes."""
        body = orjson.loads(await asked.body())
        chat = Chat(tuple(Message(message["role"], message["content"]) for message in body["messages"]))

        async def events() -> AsyncIterator[bytes]:
            async for piece in self.engine.stream(Request(chat, Sampling()), UsageLedger().meter("answer")):
                choice = {"index": 0, "delta": {"content": piece.text}, "finish_reason": piece.finish}
                yield b"data: %b\n\n" % orjson.dumps({"choices": [choice]})
            yield b"data: [DONE]\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")


async def arrivals(
    arms: Arms, rate: float, seconds: float, seed: str, key: str
) -> tuple[dict[str, list[load.Reply]], Row]:
    """Replies by arm, asked in turn at random moments, `rate` a second each; and how busy the client was."""
    rng, lag, own = random.Random(seed), load.Lag(), psutil.Process()
    tasks: dict[str, list[asyncio.Task[load.Reply]]] = {name: [] for name in arms}
    names, asked, due, number = list(arms), load.body("echo"), time.perf_counter() + 0.05, 0
    watching, end, started, busy = asyncio.create_task(lag.watch()), due + seconds, due, load.cpu(own)
    machine = load.everyone()
    async with load.client(headers={"Authorization": f"Bearer {key}"} if key else None) as session:
        while due < end:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            name = names[number % len(names)]
            tasks[name].append(asyncio.create_task(load.read(session, arms[name], asked, due)))
            due += rng.expovariate(rate * len(names))
            number += 1
        replies = {name: list(await asyncio.gather(*waiting)) for name, waiting in tasks.items()}
    watching.cancel()
    seconds = time.perf_counter() - started
    shares = {
        "client_cpu": (load.cpu(own) - busy) / seconds,
        "machine_cpu": (load.everyone() - machine) / seconds,
    }
    return replies, shares | {"client_late_ms": lag.milliseconds["p99"]}


def measure(arms: Arms, rate: float, seconds: float, *, key: str = "", apart: bool = False) -> Row:
    """Times of both arms in milliseconds, and what the first adds, with 95 % intervals."""
    slices = (
        [{name: url} for _ in range(round(seconds / SLICE)) for name, url in arms.items()]
        if apart
        else [arms]
    )
    replies, client = {name: list[load.Reply]() for name in arms}, list[Row]()
    for number, chosen in enumerate(slices):
        found, busy = asyncio.run(
            arrivals(chosen, rate, SLICE if apart else seconds, f"{rate} {number}", key)
        )
        client.append(busy)
        for name, some in found.items():
            replies[name] += some
    good = {
        name: [answer for answer in found if answer.done and answer.first is not None]
        for name, found in replies.items()
    }
    row: Row = {"rate": rate, "requests": {name: len(found) for name, found in replies.items()}}
    row |= {"failed": {name: len(replies[name]) - len(found) for name, found in good.items()}}
    row |= {name: round(max(part[name] for part in client), 3) for name in client[0]}
    if not all(good.values()):
        return row
    for what in MEASURES:
        values = {
            name: [(answer.sent, _value(what, answer)) for answer in found] for name, found in good.items()
        }
        row[what] = {name: load.percentiles([value for _, value in found]) for name, found in values.items()}
        row[f"added_{what}"] = load.differences(*values.values())
    return row


def _value(what: str, reply: load.Reply) -> float:
    if what == "token_ms":
        return sum(reply.gaps) / len(reply.gaps)
    return (reply.first or 0.0) if what == "first_token_ms" else reply.seconds


def missed(row: Row) -> list[str]:
    """The aims that a row misses, and by how much."""
    said = [f"{count} requests to {name} failed" for name, count in row["failed"].items() if count]
    for percent, aim in AIMS.items():
        added = row.get("added_first_token_ms", {}).get(percent, [float("inf")])[0]
        if added > aim:
            said.append(
                f"{added:.2f} ms more to the first token at {percent}, {added - aim:.2f} more than {aim:g}"
            )
    return [f"{row['rate']:g} requests/s: {line}" for line in said]


def slow(rows: Sequence[Row], arm: str) -> bool:
    """Whether an arm has broken at the last rate: answers failed, or the median has doubled since the first rate."""
    first, last = (row.get("first_token_ms", {}).get(arm) for row in (rows[0], rows[-1]))
    return rows[-1]["failed"][arm] > 0 or not first or not last or last["p50"] > 2 * first["p50"]


def steady(rows: Sequence[Row], arm: str) -> float:
    """The highest rate before an arm breaks."""
    held = takewhile(lambda at: not slow(rows[:at], arm), range(1, len(rows) + 1))
    return max((rows[at - 1]["rate"] for at in held), default=0.0)


@contextmanager
def litellm(given: Path | None) -> Any:
    """A python that has LiteLLM's proxy: the one given, or of a new environment."""
    if given is not None:
        yield given
        return
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = Path(folder) / "bin" / "python"
        print("installing LiteLLM's proxy in an environment of its own ...", file=sys.stderr)
        subprocess.run(
            [python, "-m", "pip", "install", "-q", "litellm[proxy]"], check=True, stdout=subprocess.DEVNULL
        )
        yield python


def peer(given: Path | None, url: str, rates: Sequence[float], seconds: float) -> Row:
    """What LiteLLM adds to asking the server directly; or why it could not be measured."""
    port, key = load.free_port(), f"sk-{secrets.token_hex(16)}"
    params = {"model": "openai/echo", "api_base": f"{url}/v1", "api_key": "none"}
    config = {
        "model_list": [{"model_name": "echo", "litellm_params": params}],
        "litellm_settings": {"telemetry": False},
        "general_settings": {"master_key": key},
    }
    offline = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "NO_DOCS": "True", "LITELLM_LOG": "ERROR"}
    arms = {"litellm": f"http://127.0.0.1:{port}/v1/chat/completions", "direct": f"{url}/v1/chat/completions"}
    rows: list[Row] = []
    try:
        with litellm(given) as python, tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "litellm.yaml"
            path.write_text(json.dumps(config))
            version = "from importlib.metadata import version; print(version('litellm'))"
            found = subprocess.run(
                [python, "-c", version], capture_output=True, text=True, check=True
            ).stdout.strip()
            command = [str(python.parent / "litellm"), "--config", str(path), "--host", "127.0.0.1"]
            command += ["--port", str(port), "--num_workers", "1", "--telemetry", "False"]
            with load.process(command, port, "/health/liveliness", **offline):
                measure(arms, 10, 3, key=key)  # warm
                rows += [measure(arms, rate, seconds, key=key) for rate in rates]
    except (load.NotStarted, subprocess.CalledProcessError, OSError) as error:
        return {"error": str(error)[-1000:], "rows": rows}
    return {"version": found, "holds_up_to": steady(rows, "litellm"), "rows": rows}


def main() -> None:
    """Measure, print, write; fails where an aim is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=10,
        help="at each rate, three times as long at 100 (default: %(default)s)",
    )
    rates = [25.0, 50.0, 100.0, 150.0, 200.0, 250.0, 300.0, 400.0, 600.0]
    parser.add_argument(
        "--rates", type=float, nargs="+", default=rates, help="requests/s to each (default: 25 to 600)"
    )
    parser.add_argument("--litellm", type=Path, metavar="PYTHON", help="a python that has litellm[proxy]")
    parser.add_argument("--skip-litellm", action="store_true", help="without the peer")
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    options = load.parsed(parser)
    if options.serve:
        uvicorn.run(Both(), port=options.serve, log_level="error", access_log=False)  # type: ignore[arg-type]
        return
    seconds, rates = (2.0, [20.0]) if options.quick else (options.seconds, sorted(options.rates))
    record: Row = {"conditions": load.conditions(), "seconds": seconds, "together": [], "apart": []}
    port = load.free_port()
    command = [sys.executable, "-m", "benchmarks.server_latency", "--serve", str(port)]
    with load.process(command, port):
        url = f"http://127.0.0.1:{port}"
        arms = {"server": f"{url}/v1/chat/completions", "bare": f"{url}/bare"}
        measure(arms, 20, 2)  # warm
        for rate in rates:
            longer = seconds * (3 if rate == RATE else 1)
            for how in ("together", "apart"):
                record[how].append(measure(arms, rate, longer, apart=how == "apart"))
            if slow(record["apart"], "bare"):
                break
        if not options.skip_litellm:
            record["litellm"] = peer(
                options.litellm, url, rates if options.quick else [5, 10, 20, 50, 100], seconds
            )
    both = list(zip(record["together"], record["apart"], strict=True))
    held = takewhile(lambda rows: not any(map(missed, rows)), both)
    sound = steady(record["apart"], "bare")
    record |= {
        "bare_holds_up_to": sound,
        "holds_up_to": max((row["rate"] for row, _ in held if row["rate"] <= sound), default=0),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    plot(record, options.out)
    said = [
        f"{how}, {line}"
        for how in ("together", "apart")
        for row in record[how]
        if row["rate"] == RATE
        for line in missed(row)
    ]
    load.keep(options.out, "server_latency", record, table(record), said)


def rows_of(rows: Sequence[Row], ours: str, theirs: str) -> list[str]:
    """Lines of a table, by measure and rate."""
    said = []
    for what, label in MEASURES.items():
        head = "".join(f"{f'added, {percent}':<26}" for percent in ("p50", "p95", "p99"))
        said.append(f"{label:<22} {head}{ours + ', p50 / p99':<21}{theirs}, p50 / p99")
        for row in rows:
            if what not in row:
                said.append(f"{row['rate']:>6g} requests/s: failed: {row['failed']}")
                continue
            added = [
                f"{middle:.2f} ({low:.2f} to {high:.2f})"
                for middle, low, high in row[f"added_{what}"].values()
            ]
            times = [f"{found['p50']:.1f} / {found['p99']:.1f}" for found in row[what].values()]
            line = f"{row['rate']:>6g} requests/s      " + "".join(f"{share:<26}" for share in added)
            said.append(f"{line}{times[0]:<21}{times[1]}")
    return said


def table(record: Row) -> str:
    """What a person reads."""
    each = f"{record['seconds']:g} s at each rate, three times as long at {RATE:g}"
    said = [f"milliseconds that the server adds (95 % interval), by requests/s to each handler; {each}"]
    for how, about in (
        ("together", "asked in turn, together"),
        ("apart", "asked apart, in slices that alternate"),
    ):
        said += [f"\n{about}", *rows_of(record[how], "server", "bare")]
    aims = " and ".join(f"{aim:g} ms at {percent}" for percent, aim in AIMS.items())
    said += [
        "",
        f"the aims, {aims} to the first token, hold both ways up to {record['holds_up_to']:g} requests/s",
    ]
    said += [f"the bare handler alone holds {record['bare_holds_up_to']:g} requests/s"]
    said += [
        "busiest slice, by rate: cores in use of this machine and by the client, and how late that was itself (p99)"
    ]
    for row in record["apart"]:
        client = f"{row['client_cpu']:.2f} by the client, {row['client_late_ms']:.1f} ms late"
        said.append(f"{row['rate']:>6g} requests/s      {row['machine_cpu']:.2f}, of them {client}")
    if peer := record.get("litellm"):
        said += [
            "",
            f"LiteLLM's proxy {peer.get('version', '')} before the same server, against asking it directly",
        ]
        if "error" in peer:
            said += [f"not measured: {peer['error']}"]
        else:
            said += rows_of(peer["rows"], "litellm", "direct")
            said += [
                f"its median has not doubled up to {peer['holds_up_to']:g} requests/s; one worker, as by default"
            ]
    return "\n".join([*said, "", load.told(record["conditions"])])


def plot(record: Row, folder: Path) -> None:
    """What is added to the first token against the rate."""
    mpl.rcParams["svg.hashsalt"] = "ensemblehub"
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6))
    peers = record.get("litellm", {}).get("rows", [])
    for axis, (percent, aim) in zip(axes, AIMS.items(), strict=True):
        for label, rows in (
            ("server, over a bare handler", record["together"]),
            ("the same, asked apart", record["apart"]),
            ("LiteLLM, over the server", peers),
        ):
            known = [
                (row["rate"], *row["added_first_token_ms"][percent])
                for row in rows
                if "first_token_ms" in row
            ]
            if known:
                rate, middle, low, high = zip(*known, strict=True)
                axis.plot(rate, middle, "o-", label=label)
                axis.fill_between(rate, low, high, alpha=0.2)
        axis.axhline(aim, linestyle=":", color="black", label=f"aim: {aim:g} ms at {RATE:g} requests/s")
        axis.set(xlabel="requests/s", ylabel=f"added to the first token, {percent}, ms", xlim=(0, None))
        axis.set_yscale("symlog", linthresh=1)
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(folder / "server_latency.svg", metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
