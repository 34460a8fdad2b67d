import io
import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
from rich.console import Console

from ensemblehub import inference, journal, output
from ensemblehub.cli import main
from ensemblehub.config import Config
from ensemblehub.config.flags import configured
from ensemblehub.errors import ArtifactError, ConfigError
from ensemblehub.inference import BatchProgress, clock, infer
from ensemblehub.schema import Cost
from ensemblehub.terminal import cost_text, flops_text

QUIET = Console(quiet=True)
ECHO = {
    "model_specs": [
        {"name": "a", "engine": "echo", "replies": {"": "It is 4."}, "price": {"prompt": 1, "completion": 1}},
        {"name": "b", "engine": "echo"},
    ]
}


def echo(**options):
    data = json.loads(json.dumps(ECHO))
    data["model_specs"][0] |= options
    return Config.model_validate(data)


def written(path, values):
    path.write_text(json.dumps(values))
    return path


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def paths(tmp_path):
    return written(tmp_path / "in.json", ["one", {"id": "x", "prompt": "two", "answer": 2}, "one"]), (
        tmp_path / "deep" / "er" / "out.jsonl"
    )


def test_every_item_gets_its_row(paths):
    source, out = paths
    tally = infer(echo(), source, out, show_attribution=True, console=QUIET)
    assert (tally.good, tally.kept, tally.failed, tally.left, tally.exit_code) == (3, 0, 0, 0, 0)
    row = {row["id"]: row for row in rows(out)}["x"]
    usage = row.pop("usage")
    assert usage[0]["engine"] == "a"
    assert usage[0]["purpose"] == "answer"
    assert usage[0]["cost"]["completion_tokens"] == 3
    assert sum(line["cost"]["usd"] for line in usage) == pytest.approx(tally.cost.usd / 3)
    assert row.pop("seconds") >= 0
    assert len(row.pop("key")) == 32
    assert len(row["config"].pop("fingerprint")) == 16
    assert row == {
        "id": "x",
        "number": 2,
        "prompt": "two",
        "predict": "It is 4.",
        "label": "2",
        "selected_models": ["a", "b"],
        "method": "single",
        "config": {"model_selection": "all", "output_aggregation": "single"},
        "finish_reason": "stop",
        "error": None,
        "attribution": {
            "summary": "[R01:a]",
            "segments": [{"round": 1, "model": "a", "purpose": "answer", "text": "It is 4.", "length": 3}],
        },
    }


def test_a_second_run_does_only_what_is_missing(paths):
    source, out = paths
    assert infer(echo(), source, out, max_examples=2, console=QUIET).good == 2
    before = rows(out)
    tally = infer(echo(), source, out, console=QUIET)
    assert (tally.kept, tally.good) == (2, 1)
    assert rows(out)[:2] == before
    assert infer(echo(fail_after=0), source, out, force=True, console=QUIET).exit_code == 1
    written(source, ["new", "one"])
    with pytest.raises(ArtifactError, match="another configuration"):
        infer(echo(), source, out, console=QUIET)


@pytest.mark.parametrize("name", ["out.jsonl.gz", "out.parquet"])
def test_an_output_named_as_another_form_is_refused_before_anything_is_asked(paths, tmp_path, name):
    with pytest.raises(ArtifactError, match="name it"):
        infer(echo(), paths[0], tmp_path / name, console=QUIET)
    assert not (tmp_path / name).exists()


def test_items_are_known_by_content_not_by_place(paths):
    source, out = paths
    infer(echo(), source, out, console=QUIET)
    written(source, ["zero", "one", "one", "one"])
    tally = infer(echo(), source, out, console=QUIET)
    assert (tally.kept, tally.good) == (2, 2)
    assert sorted((row["number"], row["prompt"]) for row in rows(out)) == [
        (1, "zero"),
        (2, "one"),
        (3, "one"),
        (4, "one"),
    ]
    assert [row["prompt"] for row in rows(out.with_name("out.stale.jsonl"))] == ["two"]


def test_the_output_describes_the_input_as_it_is_now(paths):
    source, out = paths
    written(source, [{"id": f"q{n}", "question": f"question {n}", "answer": n} for n in range(6)])
    infer(echo(), source, out, console=QUIET)
    before = {row["prompt"]: row["predict"] for row in rows(out)}
    changed = [{"id": f"r{n}", "question": f"question {n}", "answer": f"new {n}"} for n in (5, 3, 1)]
    written(source, [*changed, "question 7"])
    console = Console(record=True, width=300, file=io.StringIO())
    tally = infer(echo(), source, out, console=console)
    assert (tally.total, tally.kept, tally.good) == (4, 3, 1)
    found = sorted(rows(out), key=lambda row: row["number"])
    assert [(row["number"], row["id"], row["label"], row["prompt"]) for row in found] == [
        (1, "r5", "new 5", "question 5"),
        (2, "r3", "new 3", "question 3"),
        (3, "r1", "new 1", "question 1"),
        (4, "4", None, "question 7"),
    ]
    assert [row["predict"] for row in found[:3]] == [before[row["prompt"]] for row in found[:3]]
    aside = out.with_name("out.stale.jsonl")
    assert [row["id"] for row in rows(aside)] == ["q0", "q2", "q4"]
    assert f"3 rows of items that the input no longer has are in {aside}" in console.export_text()
    again = out.read_bytes()
    assert infer(echo(), source, out, console=QUIET).kept == 4
    assert (out.read_bytes(), len(rows(aside))) == (again, 3)


@pytest.mark.parametrize("killed_after", ["append", "replace"])
def test_a_kill_while_rows_are_moved_aside_loses_and_doubles_none(paths, monkeypatch, killed_after):
    source, out = paths
    infer(echo(), source, out, console=QUIET)
    written(source, ["one"])
    whole = getattr(journal.Lines, killed_after)

    def killed(self, *arguments):
        whole(self, *arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(journal.Lines, killed_after, killed)
        with pytest.raises(KeyboardInterrupt):
            infer(echo(), source, out, console=QUIET)
    infer(echo(), source, out, console=QUIET)
    assert [row["prompt"] for row in rows(out)] == ["one"]
    assert sorted(row["prompt"] for row in rows(out.with_name("out.stale.jsonl"))) == ["one", "two"]


def test_a_limit_leaves_the_rows_behind_it(paths):
    source, out = paths
    infer(echo(), source, out, console=QUIET)
    before = out.read_bytes()
    console = Console(record=True, width=300, file=io.StringIO())
    assert infer(echo(), source, out, max_examples=1, console=console).kept == 1
    assert out.read_bytes() == before
    assert "also holds 2 rows of other items" in console.export_text()
    written(source, ["one"])
    assert infer(echo(), source, out, max_examples=1, console=QUIET).total == 1
    assert len(rows(out)) == 1


def test_force_keeps_the_old_answers_until_the_input_has_been_read(paths):
    source, out = paths
    infer(echo(), source, out, console=QUIET)
    before = out.read_bytes()
    source.write_text('["one",\n"two"')
    with pytest.raises(ConfigError, match="not JSON"):
        infer(echo(), source, out, force=True, console=QUIET)
    assert out.read_bytes() == before


def test_bad_items_and_failures_are_rows_that_are_tried_again(tmp_path):
    source, out = (
        written(tmp_path / "in.json", ["fine", {"no": "question"}, "also fine"]),
        tmp_path / "out.jsonl",
    )
    console = Console(record=True, width=200, file=io.StringIO())
    tally = infer(echo(fail_after=1), source, out, console=console)
    assert (tally.good, tally.failed, tally.exit_code) == (0, 3, 1)
    said = console.export_text()
    assert "item 2: has none of messages" in said
    assert "item 1: a failed after 1 tokens" in said
    failed = {row["number"]: row for row in rows(out)}
    assert "scripted" in failed[3]["error"]
    assert failed[3]["predict"] is None
    assert failed[3]["usage"][0]["cost"]["completion_tokens"] == 1  # what was computed before it failed
    assert failed[2]["prompt"] is None
    with pytest.raises(ArtifactError):  # the scripted failure is a change of configuration
        infer(echo(), source, out, console=QUIET)


def test_failed_rows_are_retried_and_superseded(paths, monkeypatch):
    source, out = paths
    infer(echo(), source, out, console=QUIET)
    good = rows(out)
    broken = [good[0] | {"error": "the server was away", "predict": None}, *good[1:]]
    out.write_text("".join(json.dumps(row) + "\n" for row in broken))
    tally = infer(echo(), source, out, console=QUIET)
    assert (tally.kept, tally.good) == (2, 1)
    assert [row["error"] for row in rows(out)] == [None] * 3
    assert {row["key"] for row in rows(out)} == {row["key"] for row in good}
    assert list(out.parent.iterdir()) == [out]


def test_any_error_of_one_item_is_that_items_alone(paths, monkeypatch):
    source, out = paths
    answer = inference.AsyncEnsemble.stream

    async def stream(self, request, ledger):
        if request.id == "x":
            raise ExceptionGroup("several", [ZeroDivisionError("division\nby zero")])
        async for event in answer(self, request, ledger):
            yield event

    monkeypatch.setattr(inference.AsyncEnsemble, "stream", stream)
    tally = infer(echo(), source, out, console=QUIET)
    assert (tally.good, tally.failed) == (2, 1)
    assert {row["id"]: row["error"] for row in rows(out)}["x"] == "ZeroDivisionError: division by zero"


@pytest.mark.parametrize("keep", [0, 1, 30, 200, -30, -2, -1])
def test_a_kill_at_any_byte_of_the_last_row_leaves_one_good_row_per_item(paths, keep):
    source, out = paths
    infer(echo(), source, out, batch_size=1, console=QUIET)
    *whole, last = out.read_bytes().splitlines(keepends=True)
    out.write_bytes(b"".join(whole) + last[:keep])
    tally = infer(echo(), source, out, console=QUIET)
    assert tally.good == (0 if keep == -1 else 1)  # only the newline is gone: the row is whole
    assert sorted(row["number"] for row in rows(out)) == [1, 2, 3]


def test_another_configuration_is_refused_unless_forced(paths):
    source, out = paths
    infer(echo(), source, out, console=QUIET)
    before = out.read_bytes()
    other = echo(replies={"": "five"})
    with pytest.raises(ArtifactError, match="--force"):
        infer(other, source, out, console=QUIET)
    assert out.read_bytes() == before
    assert infer(other, source, out, force=True, console=QUIET).good == 3
    assert {row["predict"] for row in rows(out)} == {"five"}


def test_where_it_runs_is_not_what_it_says():
    def print_of(**options):
        spec = {"name": "m", "path": "p", **options}
        return output.fingerprint(Config.model_validate({"model_specs": [spec]}))

    assert print_of(device="cuda:0") == print_of(device="cpu") == print_of()
    assert print_of(n_gpu_layers=-1, tensor_parallel_size=2, patience={"tries": 9}) == print_of()
    assert print_of(quantization="4bit") != print_of()
    defaults = {"model_specs": [{"name": "m", "path": "p"}], "ensemble": {"model_selection_method": "all"}}
    assert output.fingerprint(Config.model_validate(defaults)) == print_of()


def test_neither_is_what_is_shown_nor_where_all_models_of_an_engine_run():
    def print_of(**sections):
        return output.fingerprint(Config.from_dict({"model_specs": [{"name": "m", "path": "p"}], **sections}))

    scorer = {"path": "q"}
    assert print_of(debug={"show_output_details": True}) == print_of()
    assert print_of(engine_options={"hf": {"device": "cuda"}, "vllm": None}) == print_of()
    assert print_of(engine_options={"hf": {"dtype": "bfloat16"}}) != print_of()
    assert print_of(reward_specs=[{**scorer, "device": "cuda"}]) == print_of(reward_specs=[scorer])


@pytest.mark.parametrize(
    "content", ["my notes", "my notes\n", '{"a": 1}\n', "[1]\n", '{"key": 1, "error": 0}\n{"a']
)
def test_a_file_of_somebody_else_is_not_touched(paths, content):
    source, out = paths
    out.parent.mkdir(parents=True)
    out.write_text(content)
    with pytest.raises(ArtifactError, match=r"out\.jsonl"):
        infer(echo(), source, out, console=QUIET)
    assert out.read_text() == content


def test_the_input_is_never_the_output(paths):
    source, _ = paths
    before = source.read_bytes()
    with pytest.raises(ConfigError, match="is the input"):
        infer(echo(), source, source, force=True, console=QUIET)
    assert source.read_bytes() == before


def test_no_more_than_batch_size_at_once(tmp_path, monkeypatch):
    source, out = written(tmp_path / "in.json", [f"q{n}" for n in range(20)]), tmp_path / "out.jsonl"
    running, most = 0, 0
    answer = inference.Answerer.answer

    async def counted(self, ensemble, item):
        nonlocal running, most
        running += 1
        most = max(most, running)
        answered = await answer(self, ensemble, item)
        running -= 1
        return answered

    monkeypatch.setattr(inference.Answerer, "answer", counted)
    infer(echo(delay=0.001), source, out, batch_size=3, console=QUIET)
    assert most == 3
    assert len(rows(out)) == 20


def test_a_full_disk_stops_the_run_and_keeps_the_rows(paths, monkeypatch):
    source, out = paths
    sync, calls = os.fsync, []

    def full(file):
        calls.append(file)
        if len(calls) == 4:  # the folder, and two rows, fit
            raise OSError(28, "No space left on device")
        sync(file)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ArtifactError, match=r"No space left.* 2 answers are kept"):
        infer(echo(), source, out, batch_size=1, console=QUIET)
    assert len(rows(out)) == 2


def test_two_runs_do_not_share_an_output(paths):
    source, out = paths
    with inference.Output(out, echo()), pytest.raises(ArtifactError, match="another process"):
        infer(echo(), source, out, console=QUIET)


def test_progress_says_rate_cost_and_time_left():
    progress = BatchProgress(100, 40, good=9, failed=1, cost=Cost(prefill_flops=2.5e12, usd=0.01))
    progress.started = time.perf_counter() - 20
    assert str(progress) == "50/100 · 1 failed · 0.50 rows/s · 2.50 TFLOPs, $0.0100 · 1:40 left"
    assert "49 of 100 answered (40 before), 1 failed, 50 left" in progress.summary("out.jsonl")
    assert cost_text(Cost(decode_flops=3e6)) == "3.00 MFLOPs"
    assert clock(3725) == "1:02:05"


@pytest.mark.parametrize(
    ("flops", "text"),
    [
        (0, "0 FLOPs"),
        (1234, "1.23 kFLOPs"),
        (999_600, "1.00 MFLOPs"),
        (12.34e9, "12.3 GFLOPs"),
        (1_484_076.8e6, "1.48 TFLOPs"),
        (123.4e15, "123 PFLOPs"),
    ],
)
def test_flops_have_three_digits_and_a_unit(flops, text):
    assert flops_text(flops) == text


def test_flags_make_a_configuration():
    models = ["builtin:intern", "builtin:intern:hf:cpu", "Qwen/Qwen2.5-0.5B:hf:cuda:0"]
    config = configured(None, (), models, "all", "tandem", 77)
    assert [(spec.name, spec.engine) for spec in config.model_specs] == [
        ("intern", "hf"),
        ("intern-2", "hf"),
        ("Qwen2.5-0.5B", "hf"),
    ]
    assert config.model_specs[2].options == {"path": "Qwen/Qwen2.5-0.5B", "device": "cuda:0"}
    assert config.aggregation.method == "tandem"
    assert config.ensemble.generation.max_tokens == 77
    with pytest.raises(ConfigError, match="did you mean 'hf'"):
        configured(None, (), ["Qwen/Qwen2.5-0.5B:hff:cpu"])


def test_flags_change_a_file(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text(json.dumps(ECHO | {"ensemble": {"output_aggregation_params": {"model": "b"}}}))
    assert configured(file, (), (), None, "single").aggregation.params == {"model": "b"}
    changed = configured(file, (), (), None, "tandem")
    assert (changed.aggregation.method, changed.aggregation.params) == ("tandem", {})
    assert [spec.name for spec in changed.model_specs] == ["a", "b"]
    assert len(configured(None).model_specs) == 2  # the built-in pair


def command(*arguments):
    return [sys.executable, "-m", "ensemblehub.inference", *map(str, arguments)]


def slow(tmp_path, delay, count):
    config = tmp_path / "c.yaml"
    config.write_text(json.dumps({"model_specs": [{"name": "a", "engine": "echo", "delay": delay}]}))
    values = [
        {"id": f"q{n}", "prompt": f"question {n // 2 * 2}"} if n % 3 else "the same" for n in range(count)
    ]
    return config, written(tmp_path / "in.json", values), tmp_path / "saves" / "out.jsonl"


def test_the_command_and_its_spellings(tmp_path, capsys):
    config, source, out = slow(tmp_path, 0, 5)
    for flags in (
        ["--config", config, "--input_path", source, "--output_path", out, "--batch_size", 2, "--resume"],
        [config, "--input-path", source, "--output-path", out, "--max-examples", 5],
    ):
        done = subprocess.run(command(*flags), capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        assert "5 of 5 answered" in done.stdout
    flags = ["--input_path", source, "--output_path", out]
    for arguments, code, says in (
        ([config, *flags, "--max_tokens", 3], 2, "--force"),
        ([config, "--config", config, *flags], 2, "two configurations"),
        ([config, *flags, "--resume", "--force"], 2, "choose one"),
        ([config, *flags, "--batch_size", 0], 2, "batch_size"),
        ([config, "--input_path", "data/gsm8k/main/test.json", "--output_path", out], 2, "data fetch gsm8k"),
        ([config, *flags, "--output_aggregation_method", "singel"], 2, "did you mean 'single'"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(["infer", *map(str, arguments)])
        error = capsys.readouterr().err
        assert (stop.value.code, error.count("\n")) == (code, 1)
        assert says in error


def test_killed_at_ten_random_moments_every_item_has_one_good_row(tmp_path):
    config, source, out = slow(tmp_path, 0.02, 240)
    arguments = command("--config", config, "--input_path", source, "--output_path", out, "--batch_size", 4)
    dice, kept, killed = random.Random(), set(), 0
    for _ in range(10):
        child = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        size = out.stat().st_size if out.exists() else 0
        patience = (
            60 if dice.random() < 0.8 else dice.uniform(0, 2)
        )  # mostly until it writes, else while it starts
        until = time.monotonic() + patience
        while time.monotonic() < until:
            if out.exists() and out.stat().st_size > size:
                time.sleep(dice.uniform(0, 0.08))
                break
            time.sleep(0.01)
        child.kill()
        killed += child.wait() == -signal.SIGKILL
        lines = out.read_bytes().split(b"\n") if out.exists() else [b""]
        now = {json.loads(line)["key"] for line in lines[:-1]}
        assert kept <= now
        kept = now
    assert killed == 10
    assert 0 < len(kept) < 240
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert f"240 of 240 answered ({len(kept)} before)" in done.stdout
    found = rows(out)
    assert sorted(row["number"] for row in found) == list(range(1, 241))
    assert len({row["key"] for row in found}) == 240
    assert {(row["predict"], row["error"]) for row in found} == {("ok", None)}


@pytest.mark.parametrize(
    ("times", "number", "code"), [(1, signal.SIGINT, 130), (2, signal.SIGINT, 130), (1, signal.SIGTERM, 143)]
)
def test_an_interrupt_finishes_what_is_in_flight_and_a_second_gives_it_up(tmp_path, times, number, code):
    config, source, out = slow(tmp_path, 1.5, 8)
    out.parent.mkdir()
    first = command("--config", config, "--input_path", source, "--output_path", out, "--batch_size", 3)
    child = subprocess.Popen(first, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not out.exists():
        time.sleep(0.01)
    time.sleep(0.7)  # three are in flight
    for _ in range(times):
        child.send_signal(number)
        time.sleep(0.1)
    said, errors = child.communicate(timeout=30)
    assert child.returncode == code, errors
    assert "finishing the items in flight" in errors
    assert "the same command answers the rest" in errors
    assert "Traceback" not in errors
    answered = 3 if times == 1 else 0
    assert f"{answered} of 8 answered (0 before), {8 - answered} left" in said
    assert len(rows(out)) == answered


def test_nothing_is_loaded_where_nothing_is_to_do(paths, monkeypatch):
    source, out = paths
    infer(echo(), source, out, console=QUIET)

    async def load(self):
        raise AssertionError("loaded")

    monkeypatch.setattr(inference.AsyncEnsemble, "load", load)
    assert infer(echo(), source, out, console=QUIET).kept == 3


def piped(tmp_path, target, source="in.json", shell=""):
    config, data, _ = slow(tmp_path, 0, 3)
    if source == "-":
        shell = f"cat {data} | "
    words = command(
        "--config", config, "--input_path", source if source == "-" else data, "--output_path", target
    )
    return subprocess.run(
        ["bash", "-c", f"{shell}{' '.join(words)}"], capture_output=True, text=True, timeout=60, cwd=tmp_path
    )


@pytest.mark.parametrize("target", ["-", "/dev/stdout"])
def test_rows_go_to_standard_output_and_what_is_said_does_not(tmp_path, target):
    done = piped(tmp_path, target, "-")
    assert done.returncode == 0, done.stderr
    assert sorted(json.loads(line)["number"] for line in done.stdout.splitlines()) == [1, 2, 3]
    assert "3 of 3 answered" in done.stderr
    done = piped(tmp_path, f"{target} > rows.jsonl")
    assert sorted(row["number"] for row in rows(tmp_path / "rows.jsonl")) == [1, 2, 3]


def test_devices_and_pipes_as_output(tmp_path):
    assert piped(tmp_path, "/dev/null").returncode == 0
    full = piped(tmp_path, "/dev/full", shell="ulimit -v 4000000; ")
    assert (full.returncode, full.stdout) == (2, "")
    assert "cannot write /dev/full: No space left on device; 0 answers are kept" in full.stderr
    assert full.stderr.count("\n") == 1
    os.mkfifo(tmp_path / "pipe")
    through = piped(tmp_path, "pipe", shell="cat pipe > rows.jsonl & ")
    assert through.returncode == 0, through.stderr
    assert sorted(row["number"] for row in rows(tmp_path / "rows.jsonl")) == [1, 2, 3]
    gone = piped(tmp_path, "pipe", shell="head -c 1 pipe > /dev/null & ")
    assert "Traceback" not in gone.stderr
    with pytest.raises(ArtifactError, match="not a regular file"):
        journal.Lines(tmp_path / "pipe")


@pytest.mark.parametrize("replaced", [False, True])
def test_a_row_for_a_file_that_is_gone_is_refused(tmp_path, replaced):
    lines = journal.Lines(tmp_path / "rows.jsonl")
    lines.append({"row": 1})
    lines.path.unlink()
    if replaced:
        lines.path.write_text("")
    with pytest.raises(ArtifactError, match="was removed or replaced while it was written"):
        lines.append({"row": 2})
    lines.close()


def test_rows_follow_a_link(tmp_path):
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "rows.jsonl")
    lines = journal.Lines(tmp_path / "link.jsonl")
    lines.append({"row": 1})
    lines.replace([{"row": 2}])
    lines.append({"row": 3})
    lines.close()
    assert (tmp_path / "rows.jsonl").read_text() == '{"row": 2}\n{"row": 3}\n'


def test_of_the_rows_of_an_output_only_their_places_stay_in_memory(tmp_path):
    path = tmp_path / "rows.jsonl"
    made = [{"number": number, "text": "\N{SNOWMAN}" * number} for number in range(3)]
    path.write_bytes(b"".join(map(journal.encoded, made)) + b'{"number": 3, "te')
    lines = journal.Lines(path, keep=lambda row, start: (row["number"], start))
    assert [number for number, _ in lines.found] == [0, 1, 2]
    starts = [start for _, start in lines.found]
    assert list(lines.read(reversed(starts))) == made[::-1]
    lines.replace(lines.read(starts[1:]))
    lines.append({"number": 4})
    lines.close()
    assert rows(path) == [*made[1:], {"number": 4}]
