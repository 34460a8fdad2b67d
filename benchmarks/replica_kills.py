"""Two replicas with one budget, one of them killed in mid-run, ten times: `python -m benchmarks.replica_kills`.

Every time 24 conversations ask at once, a replica gets SIGKILL while it answers, the clients repeat what was cut off,
and the replica is started again.  Aims: every answer right, no answer without its cost in the budget, and no cost
in it twice: what is counted beyond the answers is at most what was cut off.  Then 24 undisturbed questions must
cost exactly what they cost.  Requests go through nginx with `examples/compose/nginx.conf` where `--nginx` names
it; else the client itself goes on to the other replica.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import random
import signal
import sqlite3
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from benchmarks.server_load import client, conditions, free_port, keep, process, told

FOLDER = Path("results/scale")
BALANCER = Path("examples/compose/nginx.conf")
ANSWER = "1 2 3 4 5"
COST = 2 + 5  # tokens that a question reads and writes
CONVERSATIONS, KILLS = 24, 10


class Replicas:
    """Two replicas, each on its own port, and what is in front of them.

    Attributes:
        urls: Where a request is sent, and where next if it fails.
    """

    def __init__(self, folder: Path, nginx: str | None, stack: ExitStack) -> None:
        self.budget = folder / "spent.sqlite"
        server = {"key_budget": {"tokens": 10**9}, "key_budget_file": str(self.budget)}
        echo = {"name": "echo", "engine": "echo", "replies": {"": ANSWER}, "delay": 0.2}
        self._config = folder / "config.yaml"
        self._config.write_text(json.dumps({"model_specs": [echo], "server": server}))
        self._ports = [free_port(), free_port()]
        self._running = [ExitStack(), ExitStack()]
        self._processes: list[psutil.Process] = []
        for number in range(2):
            self._processes.append(self._start(number))
            stack.push(self._running[number])
        self.urls = [f"http://127.0.0.1:{port}" for port in self._ports]
        if nginx:
            port, text = free_port(), BALANCER.read_text().replace("/tmp/", f"{folder}/")
            for number, own in enumerate(self._ports, 1):
                text = text.replace(f"replica-{number}:8000", f"127.0.0.1:{own}")
            (folder / "nginx.conf").write_text(text.replace("listen 8000", f"listen 127.0.0.1:{port}"))
            stack.enter_context(
                process(
                    [nginx, "-c", str(folder / "nginx.conf"), "-p", str(folder), "-g", "daemon off;"], port
                )
            )
            self.urls = [f"http://127.0.0.1:{port}"]

    def _start(self, number: int) -> psutil.Process:
        port = self._ports[number]
        command = [sys.executable, "-m", "ensemblehub.api", str(self._config), "--port", str(port)]
        return self._running[number].enter_context(process(command, port))

    def kill(self, number: int) -> None:
        """SIGKILL."""
        self._processes[number].send_signal(signal.SIGKILL)

    def restart(self, number: int) -> None:
        """Start a killed replica again."""
        self._running[number].close()
        self._processes[number] = self._start(number)

    def spent(self) -> int:
        """Tokens in the budget."""
        with sqlite3.connect(self.budget) as file:
            return sum(tokens for (tokens,) in file.execute("SELECT tokens FROM spent"))


async def answer(session: aiohttp.ClientSession, urls: Sequence[str], conversation: str) -> tuple[str, int]:
    """The answer, and how many requests were cut off before it."""
    first = hashlib.sha256(conversation.encode()).digest()[0]
    asked = {"model": "echo", "messages": [{"role": "user", "content": "Count, please."}]}
    headers = {"X-Conversation-Id": conversation}
    for attempt in range(20):
        url = urls[(first + attempt) % len(urls)] + "/v1/chat/completions"
        try:
            async with session.post(url, json=asked, headers=headers) as response:
                if response.status == 200:
                    return (await response.json())["choices"][0]["message"]["content"], attempt
        except aiohttp.ClientError:
            pass
        await asyncio.sleep(0.05 * attempt)
    raise SystemExit(f"{conversation} got no answer")


async def once(replicas: Replicas, victim: int | None, after: float = 0.0) -> dict[str, Any]:
    """All conversations at once; a replica is killed in the middle, if there is a victim."""
    before = replicas.spent()
    async with client() as session:
        asked = [
            asyncio.ensure_future(answer(session, replicas.urls, f"talk {n}")) for n in range(CONVERSATIONS)
        ]
        if victim is not None:
            await asyncio.sleep(after)
            replicas.kill(victim)
        answers = await asyncio.gather(*asked)
    return {
        "right": sum(text == ANSWER for text, _ in answers),
        "cut_off": sum(attempts for _, attempts in answers),
        "spent": spent_since(replicas, before),
    }


def spent_since(replicas: Replicas, before: int) -> int:
    """What was counted; a streamed reply's end may come a moment before its cost."""
    end = time.monotonic() + 5
    while (spent := replicas.spent() - before) < COST * CONVERSATIONS and time.monotonic() < end:
        time.sleep(0.05)
    return spent


def measured(nginx: str | None) -> list[dict[str, Any]]:
    """A row for each kill: the run with it, and an undisturbed one after it."""
    draw, rows = random.Random(0), list[dict[str, Any]]()
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        replicas = Replicas(Path(name), nginx, stack)
        for number in range(KILLS):
            killed = asyncio.run(once(replicas, number % 2, draw.uniform(0.3, 0.9)))
            replicas.restart(number % 2)
            rows.append({"killed": killed, "calm": asyncio.run(once(replicas, None))})
            print(rows[-1], flush=True)
    return rows


def missed(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What is wrong in them."""
    found, full = [], COST * CONVERSATIONS
    for number, row in enumerate(rows, 1):
        killed, calm = row["killed"], row["calm"]
        if killed["right"] + calm["right"] < 2 * CONVERSATIONS:
            found.append(f"kill {number}: wrong answers")
        if not full <= killed["spent"] <= full + COST * killed["cut_off"]:
            found.append(f"kill {number}: {killed['spent']} tokens are counted, {full} were answered")
        if calm["spent"] != full:
            found.append(f"after kill {number}: {calm['spent']} tokens are counted of {full}")
    if not any(row["killed"]["cut_off"] for row in rows):
        found.append("no request was cut off")
    return found


def main() -> None:
    """Kill, count, keep; fails where an aim is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nginx", help="an nginx binary")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder (default: %(default)s)")
    options = parser.parse_args()
    where = conditions()
    rows = measured(options.nginx)
    cut, beyond = (
        sum(row["killed"]["cut_off"] for row in rows),
        sum(row["killed"]["spent"] for row in rows) - len(rows) * COST * CONVERSATIONS,
    )
    front = "nginx" if options.nginx else "no balancer"
    right, full = sum(row["killed"]["right"] for row in rows), len(rows) * CONVERSATIONS
    text = (
        f"{told(where)}; {front}\n{len(rows)} kills, {CONVERSATIONS} conversations each: {right} of {full} answers "
        f"right, {cut} requests cut off or refused and repeated, {beyond} tokens counted beyond the answers; "
        f"undisturbed between: {sum(row['calm']['spent'] for row in rows)} of {full * COST} tokens counted"
    )
    keep(
        options.out, "replica_kills", {"conditions": where, "front": front, "rows": rows}, text, missed(rows)
    )


if __name__ == "__main__":
    main()
