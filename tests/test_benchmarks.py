"""The benchmarks of the server run; what they measure in seconds means nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("name", "flags"), [("server_latency", ["--skip-litellm"]), ("server_streams", []), ("server_soak", [])]
)
def test_a_benchmark_runs_and_keeps_its_result(name, flags, tmp_path):
    command = [sys.executable, "-m", f"benchmarks.{name}", "--quick", "--out", str(tmp_path), *flags]
    surroundings = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT, env=surroundings)
    record = json.loads((tmp_path / f"{name}.json").read_text())
    assert done.stdout.strip() == (tmp_path / f"{name}.txt").read_text().strip()
    assert record["conditions"]["cpus"]
    if name == "server_soak":
        assert set(record["outcomes"]) <= {"right", "left"}
        assert not any(record["left_behind"].values())
    if name == "server_streams":
        assert record["rows"][0]["in_order"] == record["rows"][0]["streams"] == 20
    if name == "server_latency":
        assert record["rates"][0]["failed"] == {"server": 0, "bare": 0}
