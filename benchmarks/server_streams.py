"""How many streams a server holds: `python -m benchmarks.server_streams`.

200 clients at the same time read an `echo` engine that writes numbered tokens, 25 a second.  Every stream must be
complete and in order, and no gap between two tokens longer than the engine's own 40 ms plus 250 ms.  The client
measures how late its own event loop is and does not blame the server for that.  Counted besides: the server's memory
per stream and its share of a core.  Then the number is raised by a half until something breaks: the most that holds.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil

from benchmarks import server_load as load

DELAY, STALL = 0.04, 0.25
MEBI = 2**20


def config(tokens: int) -> dict[str, Any]:
    """An engine that counts."""
    words = " ".join(f"n{number}" for number in range(tokens))
    spec = {"name": "echo", "engine": "echo", "replies": {"": words}, "delay": DELAY}
    return {"model_specs": [spec], "server": {"max_running": 100_000, "max_queued": 100_000}}


async def streams(url: str, count: int, tokens: int, running: psutil.Process) -> dict[str, Any]:
    """`count` streams at the same time, begun over a second."""
    lag, asked = load.Lag(), load.body("echo", max_tokens=tokens)
    watching = asyncio.create_task(lag.watch())
    memory, peak = running.memory_info().rss, running.memory_info().rss
    async with load.client() as session:

        async def one(number: int) -> load.Reply:
            await asyncio.sleep(number / count)
            return await load.read(session, f"{url}/v1/chat/completions", asked)

        tasks = [asyncio.create_task(one(number)) for number in range(count)]
        await asyncio.sleep(1.5)
        busy, started = sum(running.cpu_times()[:2]), time.perf_counter()
        while not all(task.done() for task in tasks):
            await asyncio.sleep(0.25)
            peak = max(peak, running.memory_info().rss)
        share = (sum(running.cpu_times()[:2]) - busy) / (time.perf_counter() - started)
        replies = [task.result() for task in tasks]
    watching.cancel()
    return counted(replies, tokens, lag) | {
        "streams": count,
        "kib_per_stream": (peak - memory) / count / 1024,
        "cpu": share,
    }


def counted(replies: Sequence[load.Reply], tokens: int, lag: load.Lag) -> dict[str, Any]:
    """Complete streams, those in order, and the gaps that are the server's."""
    wanted = " ".join(f"n{number}" for number in range(tokens))
    late = [gap for reply in replies for gap in gaps(reply, lag)]
    return {
        "complete": sum(reply.done for reply in replies),
        "in_order": sum("".join(text for _, text in reply.texts) == wanted for reply in replies),
        "gap_beyond_40_ms": load.percentiles(late or [0.0]),
        "stalls": sum(one > STALL for one in late),
        "client_lag_ms": load.percentiles([one for _, one in lag.seen]),
    }


def gaps(reply: load.Reply, lag: load.Lag) -> list[float]:
    """Seconds between tokens beyond the engine's own, less what the client's event loop was late."""
    found, at = [], reply.at
    for before, after in pairwise(at):
        more = max(0.0, after - before - DELAY)
        found.append(max(0.0, more - lag.between(before, after)) if more > 0.1 else more)
    return found


def holds(row: Mapping[str, Any]) -> bool:
    """Whether every stream is whole and none stalled."""
    return row["complete"] == row["in_order"] == row["streams"] and not row["stalls"]


def table(record: Mapping[str, Any]) -> str:
    """What a person reads."""
    lines = [f"streams of {record['tokens']} tokens at 25 tokens/s each, all at the same time"]
    lines += [
        "streams complete in order  stalls > 250 ms  gap beyond 40 ms, p50 / p99 / max, ms  KiB/stream  server CPU"
    ]
    for row in record["rows"]:
        gap = row["gap_beyond_40_ms"]
        lines.append(
            f"{row['streams']:>7} {row['complete']:>8} {row['in_order']:>8}  {row['stalls']:>15}  "
            f"{gap['p50']:>10.1f} / {gap['p99']:.1f} / {gap['max']:.1f}{'':<14} {row['kib_per_stream']:>9.0f}"
            f"  {row['cpu']:>8.0%}"
        )
    lines += [f"the most that held: {record['most']}; {record['conditions']}"]
    return "\n".join(lines)


def main() -> None:
    """Measure, print, write; fails where 200 do not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=200, help="to begin with (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=400, help="of each stream (default: %(default)s)")
    parser.add_argument("--most", type=int, default=5000, help="where to stop raising (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="a smoke run of seconds; its figures mean nothing")
    parser.add_argument("--out", type=Path, default=load.RESULTS, help="folder (default: %(default)s)")
    options = parser.parse_args()
    count, tokens, most = (20, 25, 20) if options.quick else (options.streams, options.tokens, options.most)
    first, rows = count, list[dict[str, Any]]()
    with load.server(config(tokens)) as (url, running):
        asyncio.run(streams(url, 20, 10, running))
        while count <= most:
            rows.append(asyncio.run(streams(url, count, tokens, running)))
            if not holds(rows[-1]):
                break
            count = round(count * 1.5)
    held = max((row["streams"] for row in rows if holds(row)), default=0)
    record = {"conditions": load.conditions(), "tokens": tokens, "rows": rows, "most": held}
    load.write(options.out, "server_streams", record, table(record))
    if held < first:
        raise SystemExit(f"{first} streams do not hold")


if __name__ == "__main__":
    main()
