"""What the other APIs add to chat completions: `python -m benchmarks.wire_latency`.

One server with an `echo` engine (16 tokens, no delay) answers the same question as `/v1/chat/completions`,
`/v1/responses` and `/v1/messages`, streamed and whole, one request after another over kept connections.  A round asks
every route once, in random order, so what disturbs the machine disturbs all; differences are taken within a round.
Seconds on the clock tell little where other work waits for the same core, so the processor time that the server itself
takes is measured too, over blocks of requests.  The aim: at most 0.5 ms more than chat completions at the median.

Writes `wire_latency.json` and `.txt`.
"""

from __future__ import annotations

import argparse
import random
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import httpx2 as httpx
import numpy as np
import psutil

from benchmarks import server_load as load

WORDS = " ".join(f"w{number}" for number in range(16))
CONFIG = {"model_specs": [{"name": "model", "engine": "echo", "replies": {"": WORDS}}]}
QUESTION = {"role": "user", "content": "Count."}
AIM = 0.5  # milliseconds
ROUTES: dict[str, dict[str, Any]] = {
    "chat/completions": {"messages": [QUESTION]},
    "responses": {"input": [QUESTION]},
    "messages": {"messages": [QUESTION], "max_tokens": 64},
}
MEASURES = ("first text", "whole stream", "whole reply")
PROCESSOR = ("processor, stream", "processor, reply")
BLOCK = 50  # requests


def main() -> None:
    """Measure and keep the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=500, help="requests of each kind (default: 500)")
    parser.add_argument("--out", type=Path, default=load.RESULTS, help="folder of the result")
    given = parser.parse_args()
    where = load.conditions()
    config = CONFIG | {"ensemble": {"output_aggregation_method": "single"}}
    with load.server(config) as (url, server), httpx.Client(base_url=f"{url}/v1/", timeout=30) as client:
        found = measured(client, given.rounds) | processor_time(client, server, given.rounds // BLOCK)
    rows, missed, record = [], [], {}
    for measure in (*MEASURES, *PROCESSOR):
        base = np.array(found[measure, "chat/completions"])
        for route in ROUTES:
            seconds = np.array(found[measure, route])
            more, low, high = added(seconds - base)
            median = 1e3 * float(np.median(seconds))
            record[f"{route}, {measure}"] = {"median_ms": median, "added_ms": [more, low, high]}
            line = f"{measure:20}{route:18}{median:8.2f} ms"
            rows.append(f"{line}   {more:+.2f} ms (95 % {low:+.2f} to {high:+.2f})")
            if more > AIM:
                missed.append(f"{route}, {measure}: {more:+.2f} ms")
    text = "\n".join(["median of each route, and median of what it adds to chat completions", *rows])
    record = {"rounds": given.rounds, "aim_ms": AIM, "routes": record, **where}
    load.keep(given.out, "wire_latency", record, f"{text}\n{given.rounds} rounds; {load.told(where)}", missed)


def measured(client: httpx.Client, rounds: int) -> dict[tuple[str, str], list[float]]:
    """Seconds of every request by measure and route; the first tenth of the rounds warms up."""
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    chance = random.Random(0)
    for number in range(-(rounds // 10), rounds):
        for route in chance.sample(list(ROUTES), len(ROUTES)):
            first, whole = streamed(client, route)
            reply = replied(client, route)
            if number >= 0:
                for measure, seconds in zip(MEASURES, (first, whole, reply), strict=True):
                    found[measure, route].append(seconds)
    return found


def processor_time(
    client: httpx.Client, server: psutil.Process, blocks: int
) -> dict[tuple[str, str], list[float]]:
    """Seconds of processor time that the server takes for a request, by measure and route: a mean per block."""
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    chance = random.Random(1)
    for _ in range(blocks):
        for measure, ask in zip(PROCESSOR, (streamed, replied), strict=True):
            for route in chance.sample(list(ROUTES), len(ROUTES)):
                before = sum(server.cpu_times()[:2])
                for _ in range(BLOCK):
                    ask(client, route)
                found[measure, route].append((sum(server.cpu_times()[:2]) - before) / BLOCK)
    return found


def streamed(client: httpx.Client, route: str) -> tuple[float, float]:
    """Seconds until the first text of a stream, and until its end."""
    started, first = time.perf_counter(), None
    with client.stream("POST", route, json=ROUTES[route] | {"model": "model", "stream": True}) as response:
        response.raise_for_status()
        for line in response.iter_lines():
            if first is None and line.startswith("data:") and '"w0"' in line:
                first = time.perf_counter() - started
    if first is None:
        raise SystemExit(f"{route} sent no text")
    return first, time.perf_counter() - started


def replied(client: httpx.Client, route: str) -> float:
    """Seconds of a whole reply."""
    started = time.perf_counter()
    response = client.post(route, json=ROUTES[route] | {"model": "model"})
    response.raise_for_status()
    if WORDS not in response.text:
        raise SystemExit(f"{route} did not answer")
    return time.perf_counter() - started


def added(differences: np.ndarray[Any, Any]) -> tuple[float, float, float]:
    """The median of paired differences in milliseconds, with a 95 % bootstrap interval."""
    drawn = np.random.default_rng(0).choice(differences, (2000, len(differences)))
    low, high = np.percentile(np.median(drawn, axis=1), [2.5, 97.5])
    return 1e3 * float(np.median(differences)), 1e3 * float(low), 1e3 * float(high)


if __name__ == "__main__":
    main()
