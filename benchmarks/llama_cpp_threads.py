"""Threads and rows of llama.cpp on few cores, quiet and busy: `python -m benchmarks.llama_cpp_threads FILE`.

Tokens per second of llama.cpp's own batch interface, 1, 4 and 16 rows of a GGUF file at 1 thread and at as
many as there are cores, first with the machine as it is, then with a busy process on every core. llama.cpp
is built with OpenMP, whose threads spin as they wait for each other; the last lines have them sleep instead
(`OMP_WAIT_POLICY=passive`). Each line is a process of its own, each figure the median over the turns.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.llama_batch import LlamaBatch
from ensemblehub.generators.llama_cpp.cores import usable_cores

RESULTS = Path("results/engines")
ROWS = (1, 4, 16)
STEPS = 8  # tokens of a turn, at most
SECONDS = 15.0  # of a turn, at most
CODE = "import sys, benchmarks.llama_cpp_threads as own; print(own.rates(*sys.argv[1:]))"


def rates(file: str, threads: str) -> list[float]:
    """Tokens per second at each of `ROWS`."""
    found = []
    for rows in ROWS:
        model = LlamaBatch(Path(file), rows, 64, int(threads))
        ids = model.start([[100 + row, 200, 300, 400] for row in range(rows)])
        seconds: list[float] = []
        while len(seconds) < STEPS and sum(seconds) < SECONDS:
            started = time.perf_counter()
            ids = model.step(ids)
            seconds.append(time.perf_counter() - started)
        model.close()
        found.append(rows * len(seconds) / sum(seconds))
    return found


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """So many processes compute meanwhile."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def measured(file: Path, threads: int, policy: str) -> list[float]:
    """`rates` in a process of its own."""
    surroundings = {**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": policy}
    command = [sys.executable, "-c", CODE, str(file), str(threads)]
    done = subprocess.run(command, env=surroundings, capture_output=True, text=True, check=True)
    found: list[float] = json.loads(done.stdout)
    return found


def table(rows: list[dict[str, Any]], conditions: dict[str, Any]) -> str:
    """The figures as a page."""
    lines = [
        "# Threads and rows of llama.cpp",
        "",
        "Written by `python -m benchmarks.llama_cpp_threads FILE`: tokens per second of all rows",
        "together, by llama.cpp's own batch interface. *busy*: a process that computes without end on",
        "every core, besides. *passive*: threads sleep as they wait for each other",
        "(`OMP_WAIT_POLICY=passive`).",
        "",
        ", ".join(f"{name}: {value}" for name, value in conditions.items()),
        "",
        f"| cores | threads | waiting | {' | '.join(f'{count} rows' for count in ROWS)} | load before |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        figures = " | ".join(f"{value:.1f}" for value in row["rates"])
        lines.append(
            f"| {row['cores']} | {row['threads']} | {row['policy']} | {figures} | {row['load']:.1f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure all cells and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="a GGUF file")
    parser.add_argument("--turns", type=int, default=3, help="processes a line (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder (default: %(default)s)")
    options = parser.parse_args()
    cores, rows = usable_cores(), []
    cells = [(threads, policy) for policy in ("active", "passive") for threads in (1, cores)]
    for name, others in (("as they are", 0), ("busy", cores)):
        turns: dict[tuple[int, str], list[list[float]]] = {cell: [] for cell in cells[:2] + cells[3:]}
        loads = {cell: os.getloadavg()[0] for cell in turns}
        for _ in range(options.turns):
            for cell, found in turns.items():
                with busy(others):
                    found.append(measured(options.file, *cell))
                print(name, *cell, *(f"{value:.1f}" for value in found[-1]), flush=True)
        for (threads, policy), found in turns.items():
            medians = [median(values) for values in zip(*found, strict=True)]
            load = loads[threads, policy]
            row = {"cores": name, "threads": threads, "policy": policy, "rates": medians, "load": load}
            rows.append(row)
    conditions = {"file": options.file.parent.name, "cores": cores, "turns": options.turns}
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "llama_cpp_threads.md").write_text(table(rows, conditions))
    print(table(rows, conditions))


if __name__ == "__main__":
    main()
