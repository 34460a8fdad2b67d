"""`infer | bench | collect --ray` on a cluster of one node (`make test-ray`)."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from ensemblehub import cli
from ensemblehub.errors import EngineError
from ensemblehub.generators.echo import EchoEngine
from ensemblehub.lab.pipeline.records import Collected

ray = pytest.importorskip("ray", reason="Ray has an environment of its own: make test-ray")


def note(text):
    """Write down a question; how often it was asked."""
    path = Path(os.environ["ASKED"])
    text = text.replace("\n", " ")
    with path.open("a") as file:
        file.write(f"{text}\n")
    return path.read_text().splitlines().count(text)


class Scripted(EchoEngine):
    """Fails, or ends its process, where a question says so; writes down what it was asked."""

    async def stream(self, request, meter):
        text = request.prompt.messages[-1].content
        times = note(text)
        if "fail" in text and ("once" not in text or times == 1):
            raise RuntimeError("no such number")
        if "refuse" in text:
            raise EngineError("refused")
        if "poison" in text or ("die once" in text and times == 1):
            os.kill(os.getpid(), signal.SIGKILL)
        async for piece in super().stream(request, meter):
            yield piece


@pytest.fixture
def place(tmp_path, asked):
    """A folder with a configuration; its function writes questions."""
    asked.write_text("")
    spec = "{name: echo, engine: 'test_ray_data:Scripted', replies: {'': it is 12}}"
    (tmp_path / "echo.yaml").write_text(f"model_specs: [{spec}]")

    def write(*questions):
        (tmp_path / "in.jsonl").write_text("".join(f"{json.dumps(text)}\n" for text in questions))
        return tmp_path

    return write


def command(*arguments):
    try:
        cli.main([str(argument) for argument in arguments])
    except SystemExit as exit_:
        return exit_.code
    return 0


def infer(folder, out, *more, config="echo.yaml"):
    paths = ("--input_path", folder / "in.jsonl", "--output_path", folder / out)
    return command("infer", folder / config, *paths, *more)


def rows(path):
    """The rows of an output or a journal, without what differs between two runs."""
    found = [json.loads(line) for line in path.read_text().splitlines()]
    return {
        row.get("key") or row["id"]: {
            key: value for key, value in row.items() if key not in ("seconds", "wall", "usage")
        }
        for row in found
        if "settings" not in row
    }


@pytest.mark.parametrize("workers", ["2", "1-3"])
def test_infer_answers_as_a_plain_run(place, cluster, workers):
    folder = place(*(f"question {n}" for n in range(20)), "fail here", "", "die once 1")
    assert infer(folder, "out.jsonl", cluster, "--workers", workers) == 1
    assert infer(folder, "plain.jsonl") == 1
    found = rows(folder / "out.jsonl")
    assert found == rows(folder / "plain.jsonl")
    assert len(found) == 23
    errors = sorted(row["error"] for row in found.values() if row["error"])
    assert errors == ["RuntimeError: no such number", "asks nothing: its text is empty"]


def test_a_row_that_is_there_is_not_asked_again(place, cluster, asked):
    folder = place(*(f"question {n}" for n in range(12)))
    assert infer(folder, "out.jsonl", cluster, "--max_examples", 5) == 0
    assert infer(folder, "out.jsonl", cluster) == 0
    assert sorted(asked.read_text().splitlines()) == sorted(f"question {n}" for n in range(12))


def test_a_question_that_kills_every_worker_gets_a_row_and_the_others_answers(place, cluster, asked):
    folder = place("question 0", "poison", *(f"question {n}" for n in range(1, 8)))
    for _ in range(2):  # those in flight beside it may be lost with it
        assert infer(folder, "out.jsonl", cluster, "--workers", 1, "--batch_size", 1) == 1
    found = {row["prompt"]: row for row in rows(folder / "out.jsonl").values()}
    assert "died over it" in found.pop("poison")["error"]
    assert [row["predict"] for row in found.values()] == ["it is 12"] * 8
    assert asked.read_text().count("poison") == 6  # three tries each time


@pytest.mark.parametrize("numbers", [[signal.SIGKILL], [signal.SIGINT], [signal.SIGINT, signal.SIGINT]])
def test_a_killed_driver_goes_on(place, cluster, numbers):
    folder = place(*(f"question {n}" for n in range(60)))
    config = (folder / "echo.yaml").read_text().replace("replies", "delay: 0.05, replies")
    (folder / "echo.yaml").write_text(config)
    out = folder / "out.jsonl"
    paths = ["--input_path", str(folder / "in.jsonl"), "--output_path", str(out)]
    process = subprocess.Popen(
        [sys.executable, "-m", "ensemblehub", "infer", str(folder / "echo.yaml"), *paths, cluster],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + 300
    while not (out.exists() and out.read_bytes().count(b"\n") > 4) and time.monotonic() < deadline:
        time.sleep(0.02)
    for number in numbers:
        process.send_signal(number)
        time.sleep(0.3)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == (130 if signal.SIGINT in numbers else -9)
    assert "Traceback" not in said
    assert ("interrupted; the same command answers the rest" in said) == (signal.SIGINT in numbers)
    before = [json.loads(line) for line in out.read_bytes().split(b"\n")[:-1]]
    assert 0 < len(before) < 60
    assert infer(folder, "out.jsonl", cluster) == 0
    after = {row["key"]: row for row in map(json.loads, out.read_text().splitlines())}
    assert len(after) == len(out.read_text().splitlines()) == 60
    assert all(after[row["key"]] == row for row in before)


def test_models_that_cannot_be_loaded_are_one_error(place, cluster, capsys):
    folder = place("question 0")
    config = (folder / "echo.yaml").read_text().replace("Scripted", "Unloadable")
    (folder / "echo.yaml").write_text(config)
    assert infer(folder, "out.jsonl", cluster) == 2
    assert "the models cannot be loaded: RuntimeError: no luck" in capsys.readouterr().err
    assert not rows(folder / "out.jsonl")


class Unloadable(EchoEngine):
    """Cannot be loaded."""

    async def load(self):
        raise RuntimeError("no luck")


PAIR = """
model_specs:
  - {name: big, engine: echo, replies: {"": "Goal: add. Planning: add both. Retrieval: none."}, parameters: 9}
  - {name: small, engine: echo, replies: {"": "The answer is 12."}}
ensemble:
  output_aggregation_method: tandem
  output_aggregation_params: {levels: {low: 2, high: 4}, judge: "fixed:high"}
"""


def test_bench_writes_what_a_plain_run_writes(tmp_path, cluster, capsys):
    (tmp_path / "pair.yaml").write_text(PAIR)
    given = ("bench", tmp_path / "pair.yaml", "--task", "builtin_math", "--limit", 8)
    assert command(*given, "--out", tmp_path / "ray", cluster, "--workers", 2) == 0
    assert command(*given, "--out", tmp_path / "plain") == 0
    found = rows(tmp_path / "ray/answers/pair.jsonl")
    assert found == rows(tmp_path / "plain/answers/pair.jsonl")
    assert len(found) == 8


def test_collect_keeps_what_a_plain_run_keeps(tmp_path, cluster, capsys):
    (tmp_path / "pair.yaml").write_text(PAIR)
    given = ("collect", "-c", tmp_path / "pair.yaml", "--dataset", "builtin_math", "--split", "train")
    given += ("--limit", 5)
    assert command(*given, "-s", f"experiment.results={tmp_path}/ray", cluster, "--workers", 2) == 0
    assert command(*given, "-s", f"experiment.results={tmp_path}/plain") == 0
    both = [Collected.load(tmp_path / name / "collected", "train") for name in ("ray", "plain")]
    first, second = ([without_times(asdict(row)) for row in data.rows] for data in both)
    assert first == second
    assert len(first) == 5
    assert (both[0].features == both[1].features).all()


def without_times(value):
    """Nested dictionaries and lists without what differs between two runs."""
    if isinstance(value, dict):
        return {key: without_times(inner) for key, inner in value.items() if key not in ("seconds", "wall")}
    return [without_times(inner) for inner in value] if isinstance(value, list | tuple) else value


def bench_of(folder, *questions):
    """The command of a bench with these questions."""
    task = folder / "questions.jsonl"
    lines = [{"question": text, "answer": "#### 12"} for text in questions]
    task.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return ("bench", folder / "echo.yaml", "--task", "gsm8k", "--data", task, "--out", folder / "out")


def test_failed_questions_cost_bench_no_others_and_are_asked_again(place, cluster, asked, capsys):
    folder = place()
    given = bench_of(folder, "what is 1?", "fail once", "what is 2?")
    assert command(*given, cluster) == 2
    assert "1 questions failed, the first with: RuntimeError: no such number" in capsys.readouterr().err
    path = folder / "out" / "answers" / "echo.jsonl"
    kept = rows(path)
    assert len(kept) == 2
    assert command(*given, cluster) == 0
    assert len(rows(path)) == 3
    assert rows(path).items() >= kept.items()
    assert ["fail once" in line for line in asked.read_text().splitlines()].count(True) == 2
    assert len(asked.read_text().splitlines()) == 4


def test_errors_of_a_model_are_rows_of_bench_where_they_count_as_wrong(place, cluster, asked):
    folder = place()
    given = bench_of(folder, "what is 1?", "refuse", "what is 2?")
    assert command(*given, "--errors", "wrong", cluster) == 0
    found = rows(folder / "out/answers/echo.jsonl").values()
    assert sorted(row["error"] for row in found) == ["", "", "refused"]
    assert not any(row["correct"] for row in found if row["error"])
    assert command(*given, "--errors", "wrong", cluster) == 0  # a row is not asked again
    assert len(asked.read_text().splitlines()) == 3
