"""How many streams a server holds: `python -m benchmarks.server_streams`.

200 clients at the same time read an `echo` engine that writes numbered tokens, 25 a second.  Every stream must be
complete and in order, no gap between two tokens may be longer than the engine's own 40 ms plus 250 ms, and the slowest
stream must get nine tenths of its 25 tokens/s.  The client measures how late its own event loop is, and that is not
blamed on the server.  Counted besides: the server's memory per stream and its share of a core, and what other programs
took of the machine meanwhile, without which a number that breaks cannot be read.

Then the number is doubled until something breaks, twice in a row, and the step before it is halved twice: the most that
holds.  Each number has a new server.  Writes `server_streams.json`, `.txt` and `.svg`.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib as mpl
import psutil

from benchmarks import server_load as load

mpl.use("Agg")
from matplotlib import pyplot as plt

DELAY, STALL, PACE = 0.04, 0.25, 0.9
Row = dict[str, Any]


def config(tokens: int) -> dict[str, Any]:
    """An engine that counts."""
    words = " ".join(f"n{number}" for number in range(tokens))
    spec = {"name": "echo", "engine": "echo", "replies": {"": words}, "delay": DELAY}
    return {"model_specs": [spec], "server": {"max_running": 100_000, "max_queued": 100_000}}


def measure(count: int, tokens: int) -> Row:
    """`count` streams of a server of their own."""
    with load.server(config(tokens)) as (url, running):
        asyncio.run(streams(url, 20, 10, running))  # warm
        return asyncio.run(streams(url, count, tokens, running))


async def streams(url: str, count: int, tokens: int, running: psutil.Process) -> Row:
    """`count` streams at the same time, begun over a second."""
    lag, asked, processes = load.Lag(), load.body("echo", max_tokens=tokens), (running, psutil.Process())
    watching = asyncio.create_task(lag.watch())
    memory = peak = running.memory_info().rss
    async with load.client() as session:

        async def reply(number: int) -> load.Reply:
            await asyncio.sleep(number / count)
            return await load.read(session, f"{url}/v1/chat/completions", asked)

        tasks = [asyncio.create_task(reply(number)) for number in range(count)]
        await asyncio.sleep(1.2)
        busy, all_busy, started = (
            [load.cpu(process) for process in processes],
            load.everyone(),
            time.perf_counter(),
        )
        while not all(task.done() for task in tasks):
            await asyncio.sleep(0.25)
            peak = max(peak, running.memory_info().rss)
        seconds = max(time.perf_counter() - started, 0.001)
        shares = [
            (load.cpu(process) - before) / seconds for process, before in zip(processes, busy, strict=True)
        ]
        others = (load.everyone() - all_busy) / seconds - sum(shares)
        replies = [task.result() for task in tasks]
    watching.cancel()
    row = {
        "streams": count,
        **counted(replies, tokens, lag),
        "kib_per_stream": round((peak - memory) / count / 1024, 1),
    }
    return row | {
        "server_cpu": round(shares[0], 3),
        "client_cpu": round(shares[1], 3),
        "others_cpu": round(others, 3),
    }


def counted(replies: Sequence[load.Reply], tokens: int, lag: load.Lag) -> Row:
    """Complete streams, those in order, how fast the slowest was, and the gaps that are the server's."""
    wanted = " ".join(f"n{number}" for number in range(tokens))
    late = [gap for reply in replies for gap in gaps(reply, lag)]
    paces = [(len(reply.at) - 1) / (reply.at[-1] - reply.at[0]) for reply in replies if len(reply.at) > 1]
    return {
        "complete": sum(reply.done for reply in replies),
        "in_order": sum("".join(text for _, text in reply.texts) == wanted for reply in replies),
        "slowest_tokens_per_second": round(min(paces, default=0.0), 2),
        "gap_beyond_40_ms": load.percentiles(late or [0.0]),
        "stalls": sum(delay > STALL for delay in late),
        "client_lag_ms": lag.milliseconds,
    }


def gaps(reply: load.Reply, lag: load.Lag) -> list[float]:
    """Seconds between tokens beyond the engine's own; of long ones, less what the client's event loop was late."""
    found, at = [], reply.at
    for before, after in pairwise(at):
        more = max(0.0, after - before - DELAY)
        found.append(max(0.0, more - lag.between(before, after)) if more > STALL / 2 else more)
    return found


def broken(row: Row) -> list[str]:
    """What does not hold, and by how much."""
    count, least, gap = row["streams"], PACE / DELAY, row["gap_beyond_40_ms"]["max"]
    said = [
        f"{count - row[key]} of {count} streams not {key}"
        for key in ("complete", "in_order")
        if row[key] < count
    ]
    if row["stalls"]:
        said.append(f"{row['stalls']} stalls, the longest {gap:.0f} ms, {gap - 1000 * STALL:.0f} ms too long")
    if (pace := row["slowest_tokens_per_second"]) < least:
        said.append(f"{pace:g} tokens/s in the slowest stream, less than {least:g}")
    return [f"{count} streams: {line}" for line in said]


def climb(first: int, most: int, tokens: int) -> list[Row]:
    """Rows for numbers that double until one breaks, and then for the middle between what held and what broke."""
    rows, count, held, ceiling, halvings = list[Row](), first, 0, 0, 2
    while count <= most and halvings >= 0:
        rows.append(measure(count, tokens))
        if broken(rows[-1]):
            rows.append(measure(count, tokens))  # once more, as others share the machine
        if broken(rows[-1]):
            ceiling = count
        else:
            held = count
        if held == 0:
            break
        count = (held + ceiling) // 2 if ceiling else 2 * held
        halvings -= bool(ceiling)
    return rows


def table(record: Row) -> str:
    """What a person reads."""
    said = [
        f"streams of {record['tokens']} tokens at 25 tokens/s each, all at the same time; a new server for each row"
    ]
    cells = (
        "streams complete in order  slowest, tokens/s  gap beyond 40 ms, p50 / p99 / max, ms  stalls > 250 ms"
    )
    said.append(f"{cells}  KiB/stream  server CPU  client CPU  others' CPU  client late, p99, ms")
    for row in record["rows"]:
        gap = "{p50:.1f} / {p99:.1f} / {max:.1f}".format(**row["gap_beyond_40_ms"])
        said.append(
            f"{row['streams']:>7} {row['complete']:>8} {row['in_order']:>8}  {row['slowest_tokens_per_second']:>17.1f}"
            f"  {gap:>38}  {row['stalls']:>15}  {row['kib_per_stream']:>10.0f}  {row['server_cpu']:>10.0%}"
            f"  {row['client_cpu']:>10.0%}  {row['others_cpu']:>11.0%}  {row['client_lag_ms']['p99']:>20.1f}"
        )
    return "\n".join([*said, f"the most that held: {record['most']}", load.told(record["conditions"])])


def plot(rows: Sequence[Row], folder: Path) -> None:
    """Gaps, processors and memory against the number of streams."""
    mpl.rcParams["svg.hashsalt"] = "ensemblehub"
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6))
    rows = sorted(rows, key=lambda row: row["streams"])
    counts = [row["streams"] for row in rows]
    for percent in ("p50", "p99", "max"):
        left.plot(counts, [row["gap_beyond_40_ms"][percent] for row in rows], "o-", label=percent)
    left.axhline(1000 * STALL, linestyle=":", color="black", label="a stall")
    left.set(xlabel="streams", ylabel="gap beyond the engine's 40 ms, ms", xlim=(0, None))
    left.set_yscale("symlog", linthresh=1)
    for side in ("server", "client"):
        right.plot(counts, [row[f"{side}_cpu"] for row in rows], "o-", label=f"{side}'s share of a core")
    right.set(xlabel="streams", ylim=(0, None), xlim=(0, None))
    for axis in (left, right):
        axis.grid(alpha=0.3)
        axis.legend()
    figure.tight_layout()
    figure.savefig(folder / "server_streams.svg", metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    """Measure, print, write; fails where the first number does not hold."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--streams", type=int, default=200, help="to begin with (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=400, help="of each stream (default: %(default)s)")
    parser.add_argument("--most", type=int, default=6400, help="where to stop raising (default: %(default)s)")
    options = load.parsed(parser)
    first, tokens, most = (20, 40, 20) if options.quick else (options.streams, options.tokens, options.most)
    where, rows = load.conditions(), climb(first, most, tokens)
    held = max((row["streams"] for row in rows if not broken(row)), default=0)
    record = {"conditions": where, "tokens": tokens, "rows": rows, "most": held}
    options.out.mkdir(parents=True, exist_ok=True)
    plot(rows, options.out)
    said = [] if held >= first or options.quick else broken(rows[-1])
    load.keep(options.out, "server_streams", record, table(record), said)


if __name__ == "__main__":
    main()
