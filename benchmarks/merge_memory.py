"""Memory and time of `ensemblehub merge` over rows of 1 and 10 KiB: `python -m benchmarks.merge_memory`."""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from pathlib import Path

from benchmarks.batch_scale import MIB, Watched, Whole
from benchmarks.server_load import RESULTS, conditions, told
from ensemblehub.shards import Shard

ROWS = 100_000
SHARDS = 4
KIB = (1, 10)  # of a row


def write_shards(target: Path, kib: int) -> None:
    """Write what the shards of `infer` write, in another order than that of the items."""
    shards = [Shard(index, SHARDS) for index in range(SHARDS)]
    paths = [shard.beside(target) for shard in shards]
    for path in paths:
        path.parent.mkdir(parents=True)
    files = [path.open("w") for path in paths]
    row = {"id": None, "config": {"fingerprint": "f"}, "error": None, "predict": "x" * (1024 * kib - 130)}
    for number in reversed(range(1, ROWS + 1)):
        key = hashlib.sha256(str(number).encode()).hexdigest()[:32]
        file = next(file for shard, file in zip(shards, files, strict=True) if shard.holds(key))
        file.write(json.dumps(row | {"key": key, "number": number}) + "\n")
    for file in files:
        file.close()


def measured(kib: int) -> tuple[int, Whole]:
    """The output's size in MiB, and what its merge took."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "out.jsonl"
        write_shards(target, kib)
        whole = Watched([sys.executable, "-m", "ensemblehub", "merge", str(target)], target).whole()
        with target.open() as file:
            if [json.loads(line)["number"] for line in file] != list(range(1, ROWS + 1)):
                raise SystemExit("rows are lost, doubled or in another order")
        return round(target.stat().st_size / MIB), whole


def main() -> None:
    """Measure; write the table."""
    lines = [f"{told(conditions())}; {ROWS:,} rows of `infer` in {SHARDS} shards"]
    for kib in KIB:
        size, took = measured(kib)
        lines.append(
            f"{size:>5} MiB: {took.seconds:.1f} s, {took.cpu:.1f} CPU s, peak {took.peak:.0f} MiB resident"
        )
    text = "\n".join(lines) + "\n"
    print(text, end="")
    (RESULTS / "merge_memory.txt").write_text(text)


if __name__ == "__main__":
    main()
