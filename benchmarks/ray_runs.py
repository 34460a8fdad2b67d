"""`infer --ray` beside a plain run and shards: equality, start-up, overhead, memory, and kills in mid-run.

    python -m benchmarks.ray_runs scale   # writes results/benchmarks/ray_scale.md
    python -m benchmarks.ray_runs kills   # writes results/benchmarks/ray_kills.md; `kills 4 8` adds rounds to it

The model is `echo`.  Every run is the command line in a process of its own; runs on Ray connect to one cluster
that was started before, but for the start-up of a cluster, which is measured by itself.
"""

from __future__ import annotations

import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

RESULTS = Path("results/benchmarks")
COMMAND = [sys.executable, "-m", "ensemblehub", "infer"]
SMALL, LARGE = 100, 1100  # items of two runs, whose difference is the time of a question
KILLS = 10
STARTS = 6  # of a cluster
ITEMS = 120  # of a run with a kill
Row = dict[str, Any]
KILLS_HEADER = f"""{ITEMS} questions of `echo`, 2 workers, 4 questions at a time each; SIGKILL once there are the given
number of rows. `recorded`: good rows when the first command had ended; `repeats`: how often the same command was then
given; `bought twice`: recorded rows that it changed.

| killed | at row | recorded | exit status | repeats | lost | doubled | wrong | bought twice |
|---|---|---|---|---|---|---|---|---|
"""


def expected(number: int) -> str:
    """The scripted answer to a question."""
    return f"the answer {number} of {number * number}"


class Workplace:
    """A folder with a configuration and questions."""

    def __init__(self, folder: Path, items: int, delay: float) -> None:
        self.folder, self.items = folder, items
        replies = {f"question {number}.": expected(number) for number in range(items)}
        spec = {"name": "echo", "engine": "echo", "delay": delay, "replies": replies}
        (folder / "echo.yaml").write_text(json.dumps({"model_specs": [spec]}))
        lines = (json.dumps({"prompt": f"question {number}."}) for number in range(items))
        (folder / "in.jsonl").write_text("\n".join(lines) + "\n")

    def start(self, name: str, *more: str) -> subprocess.Popen[bytes]:
        """Start `infer` into a file."""
        paths = ["--input_path", str(self.folder / "in.jsonl"), "--output_path", str(self.folder / name)]
        log = (self.folder / f"{name}.log").open("ab")
        return subprocess.Popen(
            [*COMMAND, str(self.folder / "echo.yaml"), *paths, *more], stdout=log, stderr=log
        )

    def run(self, name: str, *more: str) -> float:
        """Run `infer`; its seconds."""
        started = time.perf_counter()
        status = self.start(name, *more).wait()
        if status:
            raise SystemExit(f"{name}: exit status {status}\n{(self.folder / f'{name}.log').read_text()}")
        return time.perf_counter() - started

    def rows(self, name: str) -> list[Row]:
        """The whole rows of an output."""
        path = self.folder / name
        content = path.read_bytes() if path.exists() else b""
        return [json.loads(line) for line in content.split(b"\n")[:-1]]

    def faults(self, name: str) -> dict[str, int]:
        """How many rows of an output are lost, doubled, wrong or failed."""
        rows = self.rows(name)
        numbers = [row["number"] for row in rows]
        return {
            "lost": len(set(range(1, self.items + 1)) - set(numbers)),
            "doubled": len(numbers) - len(set(numbers)),
            "wrong": sum(row["predict"] != expected(row["number"] - 1) for row in rows if not row["error"]),
            "failed": sum(bool(row["error"]) for row in rows),
        }


def processes() -> dict[int, tuple[int, str]]:
    """Parent and command line of every process."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            found[int(folder.name)] = (parent, (folder / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue  # it has ended
    return found


def below(root: int) -> dict[int, str]:
    """The descendants of a process, with their command lines."""
    known, reached = processes(), {root}
    while more := {pid for pid, (parent, _) in known.items() if parent in reached} - reached:
        reached |= more
    return {pid: known[pid][1] for pid in reached - {root}}


def actors() -> list[int]:
    """The pool's actors."""
    return sorted(pid for pid, line in below(os.getpid()).items() if line.startswith("ray::MapWorker"))


def private_mb(pid: int) -> float:
    """Memory that a process shares with no other, in MB."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0.0
    return sum(int(kb) for kb in re.findall(r"Private_\w+:\s+(\d+) kB", text)) / 1024


@contextmanager
def cluster(cpus: int) -> Iterator[tuple[str, float]]:
    """A cluster of one node; yields its address and the seconds that it took to start.

    A start fails where an agent of the node is not up within 15 seconds, which a busy machine may exceed.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    fewer = {"include_dashboard": False, "include_log_monitor": False, "no_monitor": True}
    for left in reversed(range(STARTS)):
        before, started = below(os.getpid()), time.perf_counter()
        try:
            node = Cluster(initialize_head=True, head_node_args={"num_cpus": cpus, **fewer})
            break
        except Exception:  # Ray raises bare ones
            for pid in below(os.getpid()).keys() - before:
                os.kill(pid, signal.SIGTERM)
            if not left:
                raise
    try:
        yield node.address, time.perf_counter() - started
    finally:
        node.shutdown()


def until(condition: Callable[[], Any], seconds: float = 300.0) -> Any:
    """Wait for what a condition returns."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.02)
    raise SystemExit(f"what was waited for did not come in {seconds:g} s")


def killed(place: Workplace, name: str, address: str, driver: bool, at: int) -> str:
    """Kill a worker or the driver once there are `at` rows; let the same command finish, and count faults."""
    command = (f"--ray={address}", "--workers", "2", "--batch_size", "4")
    process = place.start(name, *command)
    until(lambda: len(place.rows(name)) >= at or process.poll() is not None)
    victim = process.pid if driver else until(actors)[0]
    os.kill(victim, signal.SIGKILL)
    first = process.wait()
    before = {row["key"]: row for row in place.rows(name) if not row["error"]}
    again = 0
    while (place.faults(name)["failed"] or place.faults(name)["lost"]) and again < 3:
        again += 1
        place.start(name, *command).wait()
    after = {row["key"]: row for row in place.rows(name)}
    bought_twice = sum(after.get(key) != row for key, row in before.items())
    faults = place.faults(name)
    figures = [len(before), first, again, faults["lost"], faults["doubled"], faults["wrong"], bought_twice]
    return f"| {'driver' if driver else 'worker'} | {at} | {' | '.join(map(str, figures))} |"


def kills(rounds: range) -> Iterator[str]:
    """Kills of a worker (even rounds) and of the driver (odd ones); a line for each."""
    with tempfile.TemporaryDirectory() as folder, cluster(4) as (address, _):
        place = Workplace(Path(folder), ITEMS, 0.1)
        for number in rounds:
            at = 4 + number // 2 * ITEMS // 14
            yield killed(place, f"{number}.jsonl", address, bool(number % 2), at)


def measured(place: Workplace, small: Workplace, label: str, name: str, *more: str) -> str:
    """A line of the table of `scale`: seconds of both runs, time of a question, equality."""
    seconds = [small.run(name, *more), place.run(name, *more)]
    slope = (seconds[1] - seconds[0]) / (LARGE - SMALL)
    faults = place.faults(name)
    same = "yes" if not any(faults.values()) else str(faults)
    return f"| {label} | {seconds[0]:.1f} | {seconds[1]:.1f} | {1000 * slope:.1f} | {same} |"


def shards(place: Workplace, count: int) -> float:
    """Seconds of `count` shards at the same time and of the merge."""
    started = time.perf_counter()
    name = f"shards{count}.jsonl"
    target = str(place.folder / name)
    running = [place.start(name, "--shard", f"{index}/{count}") for index in range(count)]
    if sum(process.wait() for process in running):
        raise SystemExit((place.folder / f"{name}.log").read_text())
    subprocess.run([sys.executable, "-m", "ensemblehub", "merge", target], check=True, capture_output=True)
    return time.perf_counter() - started


def memory(place: Workplace, address: str) -> str:
    """Memory of one worker, of the driver and of the cluster's own processes, in the middle of a run."""
    process = place.start("memory.jsonl", f"--ray={address}", "--workers", "2")
    until(lambda: len(place.rows("memory.jsonl")) >= LARGE // 4)
    found = below(os.getpid())
    pool = [private_mb(pid) for pid in actors()]
    rest = sum(private_mb(pid) for pid in found) - sum(pool) - private_mb(process.pid)
    driver = private_mb(process.pid)
    process.wait()
    plain = place.start("plain_memory.jsonl")
    until(lambda: len(place.rows("plain_memory.jsonl")) >= LARGE // 4)
    alone = private_mb(plain.pid)
    plain.wait()
    return (
        f"Memory that no other process shares: a worker {statistics.mean(pool):.0f} MB, the driver {driver:.0f} MB, "
        f"Ray's own processes {rest:.0f} MB; a plain run {alone:.0f} MB."
    )


def scale() -> Iterator[str]:
    """The lines of the table of plain runs, shards and Ray, each as soon as it is measured."""
    yield (
        f"`echo` without delay, 4 questions at a time (by each worker), {len(os.sched_getaffinity(0))} of "
        f"{os.cpu_count()} cores, load before the runs {os.getloadavg()[0]:.1f}, one run each. The time of a "
        f"question is the difference of the two runs over {LARGE - SMALL} questions.\n"
    )
    yield f"| | {SMALL} questions, s | {LARGE} questions, s | a question, ms | results equal as sets |"
    yield "|---|---|---|---|---|"
    with tempfile.TemporaryDirectory() as one_folder, tempfile.TemporaryDirectory() as other:
        small, place = Workplace(Path(one_folder), SMALL, 0.0), Workplace(Path(other), LARGE, 0.0)
        yield measured(place, small, "plain", "plain.jsonl")
        for count in (2, 4):
            few, many = shards(small, count), shards(place, count)
            same = "yes" if not any(place.faults(f"shards{count}.jsonl").values()) else "no"
            slope = 1000 * (many - few) / (LARGE - SMALL)
            yield f"| {count} shards, merged | {few:.1f} | {many:.1f} | {slope:.1f} | {same} |"
        with cluster(6) as (address, start):
            for workers in (1, 2, 4):
                options = (f"--ray={address}", "--workers", str(workers))
                yield measured(place, small, f"Ray, {workers} workers", f"ray{workers}.jsonl", *options)
            yield f"\nA cluster of one node starts in {start:.0f} s."
            yield memory(place, address)
        alone = small.run("started.jsonl", "--ray", "--workers", "1")
        yield f"`infer --ray` that starts a cluster of its own takes {alone:.0f} s for {SMALL} questions."


def main() -> None:
    """The command: each line is written as soon as it is there."""
    if sys.argv[1] == "scale":
        path, lines, first = RESULTS / "ray_scale.md", scale(), 0
    else:
        first, end = map(int, sys.argv[2:] or ("0", str(2 * KILLS)))
        path, lines = RESULTS / "ray_kills.md", kills(range(first, end))
    with path.open("a" if first else "w") as file:
        if path.name == "ray_kills.md" and not first:
            file.write(KILLS_HEADER)
        for line in lines:
            print(line, flush=True)
            print(line, file=file, flush=True)


if __name__ == "__main__":
    main()
