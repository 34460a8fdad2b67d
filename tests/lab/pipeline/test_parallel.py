"""Collecting by worker processes: as one process does it, whoever is killed."""

import functools
import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner

from ensemblehub import builtin
from ensemblehub.cli import add_plugins, cli
from ensemblehub.config import Config
from ensemblehub.errors import ConfigError
from ensemblehub.lab.pipeline.parallel import Placement, _placed_config, placements
from ensemblehub.lab.pipeline.records import Collected
from tests.waiting import alive, until

add_plugins()
pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "scripts" / "mentor_guided" / "collect_progressive_data.py"
LIMIT = 20
# For the tests of who stops whom: no texts are compared.
ECHO = """
model_specs:
  - {name: big, engine: echo, parameters: 9000000, delay: 0.01, replies: {"": "Goal: x so it is 9"}}
  - {name: small, engine: echo, parameters: 1000000, replies: {"": "it is 12"}}
ensemble:
  output_aggregation_method: tandem
  output_aggregation_params: {judge: judge}
experiment: {task: builtin_math}
"""


def arguments(folder, *more, limit=LIMIT):
    changes = {
        "experiment.results": folder,
        "experiment.concurrency": 2,
        "ensemble.generation.max_tokens": 16,
        "ensemble.output_aggregation_params.levels": "{low: 4, high: 8}",
    }
    if "-c" not in more:
        changes |= {f"model_specs.{at}.engine": "numpy" for at in (0, 1)}  # torch takes seconds to start
    flags = [flag for key, value in changes.items() for flag in ("--set", f"{key}={value}")]
    return ["collect", "--split", "test", "--limit", str(limit), *flags, *more]


def command(folder, *more, limit=LIMIT):
    return [sys.executable, "-m", "ensemblehub", *arguments(folder, *more, limit=limit)]


def collect_here(folder):
    """In this process, where the models' libraries are loaded already."""
    done = CliRunner().invoke(cli, arguments(folder), catch_exceptions=False)
    assert done.exit_code == 0, done.output


@pytest.fixture
def echo(tmp_path):
    path = tmp_path / "echo.yaml"
    path.write_text(ECHO)
    return "-c", str(path)


def run(arguments, **options):
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        arguments, capture_output=True, text=True, timeout=300, env=env, cwd=ROOT, **options
    )


def start(arguments):
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    heard = functools.partial(
        signal.signal, signal.SIGINT, signal.SIG_DFL
    )  # a background job starts deaf to it
    return subprocess.Popen(
        arguments,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
        cwd=ROOT,
        preexec_fn=heard,
    )


def workers(process):
    """The collecting children, not what watches them."""
    return [
        child for child in psutil.Process(process.pid).children() if "spawn_main" in " ".join(child.cmdline())
    ]


def rows_in(folder):
    file = folder / "collected" / "test.partial.jsonl"
    return len(file.read_text().splitlines()) - 1 if file.exists() else 0


def content(folder):
    """What was collected, without what it took."""
    data = Collected.load(folder / "collected", "test")
    rows = [asdict(row) for row in data.rows]
    for row in rows:
        for run in row["runs"].values():
            run.pop("seconds")
    logprobs = [row["runs"][name].pop("logprob") for row in rows for name in ("mentor", "mentor_concise")]
    assert None not in logprobs
    numbers = [data.features, *(part for row in data.sequences for part in row), logprobs]
    return data.header, rows, numbers


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    collect_here(folder)
    header, rows, numbers = content(folder)
    # which rows are computed together changes their last bits
    return header, rows, [pytest.approx(part, rel=1e-4, abs=1e-4, nan_ok=True) for part in numbers]


def test_a_killed_worker_s_questions_are_taken_up_by_the_other(alone, tmp_path):
    process = start(command(tmp_path, "--parallel", "--num-workers", "2"))
    until(lambda: rows_in(tmp_path) >= 3, 120)
    workers(process)[0].send_signal(signal.SIGKILL)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert "died (exit status -9)" in said
    assert content(tmp_path) == alone


def test_a_killed_parent_leaves_no_worker_and_one_process_goes_on_where_two_stopped(alone, tmp_path):
    process = start(command(tmp_path, "--parallel", "--num-workers", "2"))
    until(lambda: rows_in(tmp_path) >= 3, 120)
    left = workers(process)
    process.kill()
    process.wait()
    until(lambda: not alive(process.pid for process in left))
    before = rows_in(tmp_path)
    collect_here(tmp_path)
    assert 3 <= before < LIMIT
    assert content(tmp_path) == alone


def test_ctrl_c_stops_all_workers_and_keeps_what_is_done(tmp_path, echo):
    process = start(command(tmp_path, *echo, "--parallel", "--num-workers", "2", limit=200))
    until(lambda: rows_in(tmp_path) >= 3, 120)
    left = workers(process)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in said
    assert "Traceback" not in said
    assert not alive(process.pid for process in left)
    assert rows_in(tmp_path) >= 3


def test_when_all_workers_die_it_is_one_line_and_the_journal_stays(tmp_path, echo):
    process = start(command(tmp_path, *echo, "--parallel", "--num-workers", "1", limit=200))
    until(lambda: rows_in(tmp_path) >= 1)
    workers(process)[0].send_signal(signal.SIGKILL)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 2
    assert said.strip().splitlines()[-1].startswith("ensemblehub: all workers died")
    assert rows_in(tmp_path) >= 1


def test_the_reference_s_script_writes_the_reference_s_files(tmp_path):
    flags = ["--pair", "builtin", "--dataset", "humaneval", "--split", "test", "--limit", "3"]
    done = run(
        [
            sys.executable,
            str(SCRIPT),
            *flags,
            "--output-dir",
            str(tmp_path),
            "--parallel",
            "--num-workers",
            "1",
        ]
    )
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "builtin_code_test_builtin"
    assert {file.name for file in folder.iterdir()} == {
        f"builtin_code_test_{name}.json"
        for name in ("tokens0", "tokens24", "tokens64", "tokens128", "mentor_only")
    }
    low, high = (json.loads((folder / f"builtin_code_test_tokens{n}.json").read_text()) for n in (24, 128))
    assert len(low) == 3
    for lower, other in zip(low, high, strict=True):
        assert set(lower) == {
            "question",
            "ground_truth",
            "mentor_tokens",
            "mentor_response",
            "intern_response",
            "ppl",
            "entropy",
            "is_correct",
            "mentor_length",
            "intern_length",
            "test",
            "entry_point",
        }
        assert other["mentor_response"].startswith(lower["mentor_response"])
        assert 0 < lower["mentor_tokens"] <= 24
        assert len(lower["ppl"]) == len(lower["entropy"]) > len(lower["question"].split())
    alone = json.loads((folder / "builtin_code_test_mentor_only.json").read_text())
    assert all(row["mentor_response"] and not row["intern_response"] for row in alone)


def test_the_script_teaches_and_says_what_is_missing(tmp_path):
    text = run([sys.executable, str(SCRIPT), "--help"]).stdout
    flags = "dataset split mentor-type mentor-model intern-model api-model api-key output-dir parallel num-workers"
    for flag in [*flags.split(), "gpus", "mentor-gpus", "intern-gpus", "mentor-device", "intern-device"]:
        assert f"--{flag}" in text
    env = {key: value for key, value in os.environ.items() if key not in ("OPENROUTER_API_KEY", "PAIR")}
    flags = ["--mentor-type", "api", "--dataset", "math500", "--output-dir", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *flags], capture_output=True, text=True, env=env, timeout=60
    )
    assert done.returncode == 2
    assert done.stderr.strip().endswith("the environment variable OPENROUTER_API_KEY is not set")
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "placed"),
    [
        ((2,), [Placement(), Placement()]),
        (
            (0, "", "0,1", "2,3"),
            [
                Placement(("0", "2"), {"device": "cuda:0"}, {"device": "cuda:1"}),
                Placement(("1", "3"), {"device": "cuda:0"}, {"device": "cuda:1"}),
            ],
        ),
        ((1, "", "0,1,2", "3"), [Placement(("0", "1", "2", "3"), {"num_gpus": 3}, {"device": "cuda:3"})]),
        (
            (2, "4,5"),
            [
                Placement(("4",), {"device": "cuda:0"}, {"device": "cuda:0"}),
                Placement(("5",), {"device": "cuda:0"}, {"device": "cuda:0"}),
            ],
        ),
        ((1, "", "", "6,7"), [Placement(("6", "7"), {}, {"num_gpus": 2})]),
        (
            (1, "", "0", "1,2"),
            [Placement(("0", "1", "2"), {"device": "cuda:0"}, {"max_memory": {1: "80GiB", 2: "80GiB"}})],
        ),
    ],
)
def test_gpus_are_shared_evenly(arguments, placed):
    assert placements(*arguments) == placed


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((2, "", "0,1,2", ""), "cannot share evenly"),
        ((0, "", "0,1", "1,2"), "GPU 1 is in"),
        ((0, "0", "1", ""), "for both models"),
        ((0, "0,x", "", ""), "numbers with commas"),
        ((0, "0,0", "", ""), "each once"),
    ],
)
def test_lists_that_cannot_be_are_named(arguments, said):
    with pytest.raises(ConfigError, match=said):
        placements(*arguments)


def test_gpus_are_given_before_the_judge_is_trained(tmp_path):
    changes = [f"ensemble.output_aggregation_params.judge={tmp_path}", "model_specs.0.engine=hf"]
    config = Config.read(builtin.CONFIG, [*changes, "model_specs.1.engine=hf"])
    (place,) = placements(1, mentor_gpus="2", intern_gpus="3")
    mentor, intern = _placed_config(config, place).model_specs
    assert (mentor.device, intern.device) == ("cuda:0", "cuda:1")
