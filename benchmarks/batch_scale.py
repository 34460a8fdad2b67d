"""`ensemblehub infer` over 100,000 items of the model-free echo engine: `python -m benchmarks.batch_scale`.

The command runs as a process of its own; this one counts the rows it has synced.  For each 10,000 rows: seconds,
processor seconds and resident memory.  The same command is then run again on the finished file (everything
is kept, nothing is answered) and once more on a file of half the rows that a SIGKILL left.

Aims: no part takes more than 1.25 times the processor time of the middle one, memory grows by less than 10 % from
the second part to the last, and a finished file is read again in less than 10 processor seconds per 100,000 rows.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from benchmarks.server_load import RESULTS, conditions, cpu, keep, told

PART = 10_000
STEADY = 1.25  # the aims
GROWTH = 1.10
RESUME = 10.0
MIB = 2**20


@dataclass(frozen=True)
class Part:
    """What a number of rows took.

    Attributes:
        rows: Rows in the file at its end.
        seconds, cpu: Of these rows, on the clock and of the processor.
        rss: Resident memory at its end, in MiB.
    """

    rows: int
    seconds: float
    cpu: float
    rss: float


@dataclass(frozen=True)
class Whole:
    """What one run took: seconds on the clock and of the processor, and its peak of resident memory in MiB."""

    seconds: float
    cpu: float
    peak: float


def inputs(folder: Path, items: int) -> list[str]:
    """Write questions and a configuration; returns the command that answers them."""
    with (folder / "in.jsonl").open("w") as file:
        for number in range(items):
            question = (
                f"Shelf {number} holds {number % 97} boxes of {number % 13} books. How many books are on it?"
            )
            file.write(json.dumps({"id": f"q{number}", "question": question, "answer": "0"}) + "\n")
    config = {
        "model_specs": [{"name": "echo", "engine": "echo", "replies": {"": "It holds a number of books."}}],
        "ensemble": {"models": ["echo"]},
    }
    (folder / "echo.yaml").write_text(json.dumps(config))
    paths = ("--input_path", str(folder / "in.jsonl"), "--output_path", str(folder / "out.jsonl"))
    return [
        sys.executable,
        "-m",
        "ensemblehub",
        "infer",
        str(folder / "echo.yaml"),
        *paths,
        "--batch_size",
        "16",
    ]


class Watched:
    """A running command.

    Attributes:
        parts: One for every `PART` rows that it added, without the start.
        peak: Highest resident memory seen, in MiB.
    """

    def __init__(self, command: Sequence[str], output: Path) -> None:
        self.parts: list[Part] = []
        self.peak = 0.0
        self._output = output
        self._running = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        self._process = psutil.Process(self._running.pid)
        self._started = time.perf_counter()

    def rows(self) -> Iterator[int]:
        """The number of rows in the file, ten times a second, while the command runs."""
        count, read = 0, 0
        last = Part(0, 0.0, 0.0, 0.0)
        self._used = 0.0
        while self._running.poll() is None:
            time.sleep(0.1)
            if self._output.exists():
                with self._output.open("rb") as file:
                    file.seek(read)
                    new = file.read()
                count, read = count + new.count(b"\n"), read + len(new)
            try:
                self._used, rss = cpu(self._process), self._process.memory_info().rss / MIB
            except psutil.Error:
                break
            self.peak = max(self.peak, rss)
            now = time.perf_counter() - self._started
            if count and not last.rows:  # models are loaded, and the input was compared with the output
                last = Part(count, now, self._used, rss)
            elif count // PART > last.rows // PART:
                total = Part(count, now, self._used, rss)
                share = PART / (count - last.rows)
                self.parts.append(
                    Part(
                        count // PART * PART,
                        (now - last.seconds) * share,
                        (total.cpu - last.cpu) * share,
                        rss,
                    )
                )
                last = total
            yield count

    def whole(self) -> Whole:
        """What the run took in all; it must have ended well."""
        for _ in self.rows():
            pass
        if self._running.wait():
            raise SystemExit(f"the command ended with {self._running.returncode}")
        return Whole(time.perf_counter() - self._started, self._used, self.peak)

    def kill(self, rows: int) -> None:
        """SIGKILL it once there are so many rows."""
        for count in self.rows():
            if count >= rows:
                self._running.kill()
                break
        self._running.wait()


def correct(output: Path, items: int) -> bool:
    """Whether every item has exactly one row, without an error."""
    with output.open() as file:
        rows = [json.loads(line) for line in file]
    ids = {row["id"] for row in rows if row["predict"] == "It holds a number of books."}
    return len(rows) == items and ids == {f"q{number}" for number in range(items)}


def measured(items: int, where: Path | None) -> dict[str, Any]:
    """The record of all runs."""
    with tempfile.TemporaryDirectory(dir=where) as name:
        folder = Path(name)
        command, output = inputs(folder, items), folder / "out.jsonl"
        fresh = Watched(command, output)
        whole = fresh.whole()
        size = output.stat().st_size / MIB
        right = correct(output, items)
        again = Watched(command, output).whole()
        output.unlink()
        Watched(command, output).kill(items // 2)
        rest = Watched(command, output).whole()
        right = right and correct(output, items)
    return {
        "items": items,
        "parts": [asdict(part) for part in fresh.parts],
        "first": asdict(whole),
        "again": asdict(again),
        "after_kill": asdict(rest),
        "output_mib": size,
        "every_item_once": right,
    }


def missed(record: dict[str, Any]) -> Iterator[str]:
    """The aims that are not reached."""
    parts = record["parts"]
    worst = max(part["cpu"] for part in parts) / median(part["cpu"] for part in parts)
    if worst > STEADY:
        yield f"a part takes {worst:.2f} times the processor time of the middle one, more than {STEADY}"
    if len(parts) > 1 and parts[-1]["rss"] > GROWTH * parts[1]["rss"]:
        yield f"memory grows from {parts[1]['rss']:.0f} to {parts[-1]['rss']:.0f} MiB"
    if record["again"]["cpu"] > RESUME * record["items"] / 100_000:
        yield f"reading the finished file takes {record['again']['cpu']:.1f} processor seconds"
    if not record["every_item_once"]:
        yield "an item is lost or doubled"


def table(record: dict[str, Any]) -> str:
    """The record in words."""
    lines = [
        f"{told(record['conditions'])}; {record['items']:,} items, 16 at a time, {record['output_mib']:.0f} MiB"
    ]
    lines.append(f"{'rows':>9} {'seconds':>8} {'CPU s':>7} {'MiB':>6}")
    lines += [
        f"{part['rows']:>9,} {part['seconds']:>8.2f} {part['cpu']:>7.2f} {part['rss']:>6.0f}"
        for part in record["parts"]
    ]
    names = {"first": "first run", "again": "again, finished", "after_kill": "the half after SIGKILL"}
    for name, words in names.items():
        run = record[name]
        lines.append(f"{words}: {run['seconds']:.1f} s, {run['cpu']:.1f} CPU s, peak {run['peak']:.0f} MiB")
    return "\n".join(lines)


def plot(record: dict[str, Any], folder: Path) -> None:
    """Processor seconds and memory over the rows."""
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    mpl.rcParams["svg.hashsalt"] = "ensemblehub"
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4))
    rows = [part["rows"] for part in record["parts"]]
    labels = (("cpu", f"processor seconds per {PART:,} rows"), ("rss", "resident memory, MiB"))
    for (column, label), axis in zip(labels, axes, strict=True):
        axis.plot(rows, [part[column] for part in record["parts"]], "o-")
        axis.set(xlabel="rows written", ylabel=label, ylim=(0, None), xlim=(0, None))
        axis.grid(alpha=0.3)
    figure.suptitle("ensemblehub infer on echo")
    figure.savefig(folder / "batch_scale.svg", bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    """Measure, draw and keep; fails where an aim is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--items", type=int, default=100_000, help="default: %(default)s")
    parser.add_argument(
        "--disk", type=Path, help="where the files are (default: the folder for temporary files)"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder (default: %(default)s)")
    parser.add_argument(
        "--images", type=Path, default=Path("docs/images"), help="folder of the plot (default: %(default)s)"
    )
    options = parser.parse_args()
    where = conditions()
    record = {"conditions": where, **measured(options.items, options.disk)}
    options.out.mkdir(parents=True, exist_ok=True)
    plot(record, options.images)
    keep(options.out, "batch_scale", record, table(record), list(missed(record)))


if __name__ == "__main__":
    main()
