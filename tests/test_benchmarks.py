"""The benchmarks of the server run, and notice what they look for; what they measure in seconds means nothing."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("aiohttp")
pytest.importorskip("uvicorn")

from benchmarks import (
    dry_run,
    dry_run_coverage,
    readme,
    regrade,
    server_latency,
    server_load,
    server_soak,
    server_streams,
)
from ensemblehub.lab.pipeline import splits
from ensemblehub.lab.pipeline.certificate import Promise
from ensemblehub.lab.pipeline.certificate_command import lines
from ensemblehub.lab.pipeline.records import Collected
from ensemblehub.lab.tasks import task_named
from ensemblehub.tandem.certificate import load_certificate

ROOT = Path(__file__).parents[1]


def test_the_dry_run_beside_the_whole_run_is_what_is_committed(monkeypatch, capsys):
    kept = ROOT / "results" / "qwen_coder"
    folders = [str(kept / "published_mbpp"), str(kept / "dry_run_mbpp")]
    monkeypatch.setattr(sys, "argv", ["dry_run", *folders, "--pilot", "20"])
    dry_run.main()
    assert capsys.readouterr().out == (kept / "dry_run_mbpp" / "dry_run.md").read_text()
    sys.argv[-1] = "21"
    dry_run.main()
    assert "20 of 21 answers; those that end first are short" in capsys.readouterr().out


def test_the_dry_run_beside_the_run_that_goes_on_from_it_is_what_is_committed(monkeypatch, capsys):
    kept = ROOT / "results" / "dry_run" / "builtin"
    monkeypatch.setattr(sys, "argv", ["dry_run", str(kept), "--pilot", "20", "--concurrency", "32"])
    dry_run.main()
    told = capsys.readouterr().out
    assert told == (kept / "dry_run.md").read_text()
    predicted = (kept / "predicted.md").read_text()  # what the command itself said, before the run
    for line in told.splitlines()[2:]:
        assert line.split(" | ")[2] in predicted, line


def test_how_often_the_intervals_hold_is_what_is_committed():
    folder = ROOT / "results" / "qwen_coder" / "published_humaneval"
    committed = (ROOT / "results" / "dry_run" / "coverage.md").read_text().splitlines()
    made = list(dry_run_coverage.lines(folder, dry_run_coverage.measured(folder, 1000)))
    assert len(made) == 8
    for line in made:
        assert f"| {' | '.join(line)} |" in committed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "flags"), [("server_latency", ["--skip-litellm"]), ("server_streams", []), ("server_soak", [])]
)
def test_a_benchmark_runs_and_keeps_its_result(name, flags, tmp_path):
    command = [sys.executable, "-m", f"benchmarks.{name}", "--quick", "--out", str(tmp_path), *flags]
    surroundings = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT, env=surroundings)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / f"{name}.json").read_text())
    assert done.stdout.strip() == (tmp_path / f"{name}.txt").read_text().strip()
    assert (tmp_path / f"{name}.svg").exists()
    assert record["conditions"]["cpus"]
    if name == "server_soak":
        assert set(record["outcomes"]) <= {"right", "left"}
        assert record["unfinished"] == 0
        assert record["stops_too_late"] == 0
        assert not any(record["left_behind"].values())
    if name == "server_streams":
        assert record["rows"][0]["in_order"] == record["rows"][0]["streams"] == 20
    if name == "server_latency":
        assert record["together"][0]["failed"] == record["apart"][0]["failed"] == {"server": 0, "bare": 0}


@pytest.mark.parametrize(
    "command", [["server_latency"], ["server_streams"], ["server_soak"], ["engine_overhead", "hf"]]
)
def test_a_smoke_run_does_not_replace_results(command):
    line = [sys.executable, "-m", f"benchmarks.{command[0]}", *command[1:], "--quick"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert (done.returncode, done.stdout) == (2, "")
    assert "--quick needs an --out of its own" in done.stderr


def test_a_missed_target_is_a_failure_that_says_so_after_the_result_is_kept(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        server_load.keep(tmp_path, "one", {"figure": 1}, "a table", ["3 ms too slow"])
    assert ended.value.code == 1
    assert json.loads((tmp_path / "one.json").read_text()) == {"figure": 1, "missed": ["3 ms too slow"]}
    assert capsys.readouterr().out == (tmp_path / "one.txt").read_text() == "a table\nMISSED: 3 ms too slow\n"


def test_what_is_added_is_the_difference_of_percentiles_and_shared_disturbances_cancel():
    slow = [5.0 if second == 3 else 0.0 for second in range(10) for _ in range(10)]  # one bad second for both
    theirs = [(number / 10, 0.010 + late) for number, late in enumerate(slow)]
    ours = [(when, seconds + 0.002) for when, seconds in theirs]
    assert server_load.differences(ours, theirs) == {name: [2.0, 2.0, 2.0] for name in ("p50", "p95", "p99")}


def streamed(times, done=True):
    """A reply whose tokens came at these times."""
    lines = [b'data: {"choices": [{"delta": {"content": "n"}}]}\n\n' for _ in times]
    ending = [(times[-1], b"data: [DONE]\n\n")] if done else []
    return server_load.Reply(0.0, [*zip(times, lines, strict=True), *ending], 200)


def test_a_stall_is_the_servers_unless_the_client_was_late_itself():
    reply = streamed([1.0, 1.04, 1.44, 1.48])
    own = server_load.Lag(seen=[(1.02, 0.0), (1.43, 0.3)])
    assert server_streams.gaps(reply, server_load.Lag()) == pytest.approx([0, 0.36, 0], abs=1e-9)
    assert server_streams.gaps(reply, own) == pytest.approx([0, 0.06, 0], abs=1e-9)


def test_streams_that_are_cut_off_or_too_slow_do_not_hold():
    replies = [streamed([1.0, 1.04]), streamed([1.0, 1.08], done=False)]
    row = {"streams": 2, **server_streams.counted(replies, 2, server_load.Lag())}
    assert server_streams.broken(row) == [
        "2 streams: 1 of 2 streams not complete",
        "2 streams: 2 of 2 streams not in_order",
        "2 streams: 12.5 tokens/s in the slowest stream, less than 22.5",
    ]


def test_the_rate_that_holds_is_below_the_first_that_does_not():
    rows = [
        {"rate": rate, "failed": {"a": 0}, "first_token_ms": {"a": {"p50": ms}}}
        for rate, ms in [(25, 10), (50, 21)]
    ]
    assert server_latency.steady(rows, "a") == 25
    row = {
        "rate": 100,
        "failed": {"a": 0},
        "added_first_token_ms": {"p50": [1.5, 1, 2], "p99": [12.0, 9, 15]},
    }
    assert server_latency.missed(row) == [
        "100 requests/s: 12.00 ms more to the first token at p99, 2.00 more than 10"
    ]


def test_an_engine_that_runs_on_after_its_client_left_is_noticed():
    asked = [
        server_soak.Asked("<0>", "right"),
        server_soak.Asked("<1>", "left", 10.0),
        server_soak.Asked("<2>", "left", 10.0),
    ]
    lines = [("<0>", "begun", 1.0), ("<1>", "begun", 9.0), ("<0>", "ended", 11.5), ("<1>", "stopped", 10.1)]
    good = server_soak.judged(asked, lines)
    assert good["left"] == {"while engines wrote": 1, "before or after": 1}
    assert good["stop_seconds"]["max"] == pytest.approx(0.1)
    assert good["unfinished"] == good["stops_too_late"] == 0
    bad = server_soak.judged(
        asked, [*lines, ("<2>", "begun", 9.5), ("<2>", "ended", 12.5), ("<1>", "begun", 10.2)]
    )
    assert bad["stops_too_late"] == bad["unfinished"] == 1
    calm = {"growth": 0.06, "left_behind": {"running": 0}}
    assert server_soak.misses(bad | calm) == [
        "memory grew by 6.0%, more than 5%",
        "1 clients' engines ran on for up to 2.50 s, more than 1",
        "1 streams of engines never ended",
    ]


@pytest.mark.slow
def test_an_engine_is_measured_against_its_library(tmp_path):
    command = [sys.executable, "-m", "benchmarks.engine_overhead", "hf", "--quick", "--out", str(tmp_path)]
    surroundings = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=ROOT, env=surroundings)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "engine_overhead.json").read_text())
    assert [row["requests"] for row in rows] == [1, 4]
    assert all(row["same"] for row in rows)  # the same tokens on both sides
    assert all(row["interval"][0] <= row["ratio"] <= row["interval"][1] for row in rows)


@pytest.mark.parametrize("file", readme.FILES, ids=["README", "results"])
def test_tables_are_those_of_the_recorded_runs(file):
    text, tables = file.read_text(), readme.FILES[file]
    assert {f"<!-- table: {name} -->" for name in tables} <= set(text.splitlines())
    assert readme.with_tables(text, tables) == text


def test_certificates_in_the_documentation_are_those_that_are_made_again():
    for file in ("results/builtin_math/calibrated.txt", "results/rivals/certified.md"):
        assert (ROOT / file).read_text() in (ROOT / "docs/judges.md").read_text()
    draft = ROOT / "results/builtin_code_draft"
    kept = load_certificate(draft / "judge")
    assert "\n".join(lines(kept, Promise(kept.max_loss))) + "\n" == (draft / "calibrated.txt").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("index", [0, -1], ids=lambda index: readme.RECORDED[index].file)
def test_recorded_runs_give_the_committed_figures_again(index):
    readme.RECORDED[index].rebuild(None)


def test_collected_answers_are_graded_by_other_tests_of_the_same_questions():
    collected = Collected.load(Path("results/builtin_math/collected"), "test").part([0, 1, 2])
    task = task_named("builtin_math")
    items = {item.id: item for item in task.items("test")}
    known = {row.id: items[row.id] for row in collected.rows[1:]}
    same = regrade.regrade(collected, known, task)
    hashed = [replace(row, question=splits.digest(known[row.id])) for row in collected.rows[1:]]
    assert same.rows == hashed
    other = {key: replace(item, answer="-77") for key, item in known.items()}
    wrong = regrade.regrade(collected, other, task).rows
    assert not any(run.correct for row in wrong for run in row.runs.values())
    assert [row.insight for row in wrong] == [row.insight for row in collected.rows[1:]]
