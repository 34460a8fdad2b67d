"""What the server adds to an engine's own time: `python -m benchmarks.server_latency`.

One process serves two handlers over the same kind of `echo` engine: the whole server, and a bare Starlette handler that
streams the engine's pieces and does nothing else.  A client in a second process asks both in turn, each at random
moments of a fixed mean rate, whether or not earlier answers are there (open loop), so that what disturbs one disturbs
the other.  The aims, at 100 requests/s to each: at most 2 ms more at the median and 10 ms more at the 99th percentile
until the first token.  Then the rate is raised until they no longer hold.  Beside it the LiteLLM proxy, in an
environment of its own, before the same server: what it adds is measured against asking the server directly.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request as HTTPRequest
from starlette.responses import StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from benchmarks import server_load as load
from ensemblehub.api.app import create_app
from ensemblehub.config import Config
from ensemblehub.cost import Ledger
from ensemblehub.generators.echo import EchoEngine, EchoOptions
from ensemblehub.schema import Chat, Message, Request, Sampling

WORDS = " ".join(f"w{number}" for number in range(16))
ENGINE = {"replies": {"": WORDS}, "delay": 0.01}
CONFIG = {
    "model_specs": [{"name": "echo", "engine": "echo", **ENGINE}],
    "server": {"max_running": 4096, "max_queued": 4096},
}
MEDIAN, TAIL, RATE = 2.0, 10.0, 100.0
Arms = Mapping[str, str]


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
        chat = Chat(tuple(Message(one["role"], one["content"]) for one in body["messages"]))

        async def events() -> AsyncIterator[bytes]:
            async for piece in self.engine.stream(Request(chat, Sampling()), Ledger().meter("answer")):
                choice = {"index": 0, "delta": {"content": piece.text}, "finish_reason": piece.finish}
                yield b"data: %b\n\n" % orjson.dumps({"choices": [choice]})
            yield b"data: [DONE]\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")


async def arrivals(arms: Arms, model: str, rate: float, seconds: float, seed: int) -> dict[str, list[load.Reply]]:
    """Replies by arm, asked in turn at random moments."""
    rng, replies = random.Random(seed), dict[str, list[asyncio.Task[load.Reply]]]()
    names, asked, due, number = list(arms), load.body(model), time.perf_counter() + 0.05, 0
    async with load.client() as session:
        end = due + seconds
        while due < end:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            name = names[number % len(names)]
            task = asyncio.create_task(load.read(session, arms[name], asked, due))
            replies.setdefault(name, []).append(task)
            due += rng.expovariate(rate * len(names))
            number += 1
        return {name: list(await asyncio.gather(*tasks)) for name, tasks in replies.items()}


def compared(replies: Mapping[str, Sequence[load.Reply]], ours: str, theirs: str) -> dict[str, Any]:
    """Times of both arms in milliseconds, and what `ours` adds, with 95 % intervals."""
    good = {name: [one for one in replies[name] if one.done and one.first is not None] for name in (ours, theirs)}
    first = {name: [one.first or 0.0 for one in found] for name, found in good.items()}
    whole = {name: [one.seconds for one in found] for name, found in good.items()}
    row: dict[str, Any] = {"requests": {name: len(found) for name, found in good.items()}}
    row["failed"] = {name: len(replies[name]) - len(good[name]) for name in good}
    for what, values in (("first_token_ms", first), ("whole_ms", whole)):
        row[what] = {name: load.percentiles(found) for name, found in values.items()}
        row[f"added_{what}"] = {
            f"p{percent}": load.difference(values[ours], values[theirs], percent) for percent in (50, 95, 99)
        }
    return row


def holds(row: Mapping[str, Any]) -> bool:
    """Whether the aims are met."""
    added = row["added_first_token_ms"]
    return bool(added["p50"][0] <= MEDIAN and added["p99"][0] <= TAIL and not any(row["failed"].values()))


def line(label: str, row: Mapping[str, Any]) -> str:
    """A row of the table."""
    cells = [f"{middle:>6.2f} ({low:.2f} to {high:.2f})" for middle, low, high in row["added_first_token_ms"].values()]
    times = " | ".join(
        f"{name} {found['p50']:.1f} / {found['p99']:.1f}" for name, found in row["first_token_ms"].items()
    )
    return f"{label:<22} {' '.join(f'{cell:<26}' for cell in cells)} {times}"


def proxied(python: Path, url: str, port: int) -> tuple[list[str], Path]:
    """The command that runs LiteLLM before `url`, and its configuration."""
    folder = Path(tempfile.mkdtemp())
    params = {"model": "openai/echo", "api_base": f"{url}/v1", "api_key": "none"}
    config = {
        "model_list": [{"model_name": "echo", "litellm_params": params}],
        "litellm_settings": {"telemetry": False},
    }
    (folder / "litellm.yaml").write_text(json.dumps(config))
    command = [str(python.parent / "litellm"), "--config", str(folder / "litellm.yaml"), "--port", str(port)]
    return [*command, "--num_workers", "1", "--telemetry", "False"], folder


def litellm(given: Path | None) -> Path:
    """A python that has LiteLLM's proxy: the one given, or a new environment."""
    if given is not None:
        return given
    folder = Path(tempfile.mkdtemp()) / "litellm"
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    print("installing LiteLLM's proxy in an environment of its own ...", file=sys.stderr)
    subprocess.run([python, "-m", "pip", "install", "-q", "litellm[proxy]"], check=True, stdout=subprocess.DEVNULL)
    return python


def peer(python: Path, url: str, rates: Sequence[float], seconds: float) -> list[dict[str, Any]]:
    """What LiteLLM adds to asking the server directly."""
    port = load.free_port()
    command, _ = proxied(python, url, port)
    offline = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "NO_DOCS": "True", "LITELLM_LOG": "ERROR"}
    offline["LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY"] = "true"  # it listens for this benchmark alone
    arms = {"litellm": f"http://127.0.0.1:{port}/v1/chat/completions", "direct": f"{url}/v1/chat/completions"}
    rows = []
    with load.process(command, port, "/health/liveliness", **offline):
        asyncio.run(arrivals(arms, "echo", 10, 3, 0))
        for rate in rates:
            replies = asyncio.run(arrivals(arms, "echo", rate, seconds, round(rate)))
            good = [one for one in replies["litellm"] if one.done]
            if len(good) < 0.5 * len(replies["litellm"]):
                rows.append({"rate": rate, "failed": {"litellm": len(replies["litellm"]) - len(good)}})
                break
            rows.append({"rate": rate, **compared(replies, "litellm", "direct")})
    return rows


def main() -> None:
    """Measure, print, write; fails where an aim is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20, help="at each rate (default: %(default)s)")
    parser.add_argument("--rates", type=float, nargs="*", default=[25, 50, 100, 150, 200, 250, 300], help="requests/s")
    parser.add_argument("--quick", action="store_true", help="a smoke run of seconds; its figures mean nothing")
    parser.add_argument("--litellm", type=Path, metavar="PYTHON", help="a python that has litellm[proxy]")
    parser.add_argument("--skip-litellm", action="store_true", help="without the peer")
    parser.add_argument("--out", type=Path, default=load.RESULTS, help="folder (default: %(default)s)")
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        uvicorn.run(Both(), port=options.serve, log_level="error", access_log=False)  # type: ignore[arg-type]
        return
    seconds, rates = (2.0, [20.0]) if options.quick else (options.seconds, options.rates)
    port = load.free_port()
    command = [sys.executable, "-m", "benchmarks.server_latency", "--serve", str(port)]
    record: dict[str, Any] = {"conditions": load.conditions(), "seconds": seconds, "rates": []}
    with load.process(command, port):
        url = f"http://127.0.0.1:{port}"
        arms = {"server": f"{url}/v1/chat/completions", "bare": f"{url}/bare"}
        asyncio.run(arrivals(arms, "echo", 20, 2, 0))
        for rate in rates:
            row = compared(asyncio.run(arrivals(arms, "echo", rate, seconds, round(rate))), "server", "bare")
            record["rates"].append({"rate": rate, **row})
        if not options.skip_litellm:
            record["litellm"] = peer(litellm(options.litellm), url, [10, 25, 50, 100], seconds)
    met = [row["rate"] for row in record["rates"] if holds(row)]
    record["holds_up_to"] = max(met, default=0)
    load.write(options.out, "server_latency", record, table(record))
    aimed = [row for row in record["rates"] if row["rate"] == RATE]
    if aimed and not holds(aimed[0]):
        raise SystemExit(f"at {RATE:g} requests/s the server adds more than {MEDIAN} ms (median) or {TAIL} ms (p99)")


def table(record: Mapping[str, Any]) -> str:
    """What a person reads."""
    head = f"{'':<22} {'median':<26} {'p95':<26} {'p99':<26} time to first token, p50 / p99, ms"
    lines = [
        "milliseconds that the server adds until the first token (95 % interval), by requests/s to each handler",
        head,
    ]
    lines += [line(f"{row['rate']:g} requests/s", row) for row in record["rates"]]
    lines += [
        f"the aims ({MEDIAN:g} ms at the median, {TAIL:g} ms at p99) hold up to {record['holds_up_to']:g} requests/s"
    ]
    if "litellm" in record:
        lines += ["", "LiteLLM's proxy before the same server, against asking it directly", head]
        for row in record["litellm"]:
            cells = "added_first_token_ms" in row
            lines.append(
                line(f"{row['rate']:g} requests/s", row)
                if cells
                else f"{row['rate']:g} requests/s: {row['failed']} failed"
            )
    where = record["conditions"]
    lines += ["", f"one process serves both; {record['seconds']:g} s at each rate; {where}"]
    return "\n".join(lines)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
