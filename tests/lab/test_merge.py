"""Shards of `infer`, `bench` and `collect`, merged: equal to one run, and nothing lost, doubled or mixed."""

import json
import resource
import shutil
import subprocess
import sys
import tracemalloc

import pytest
from click.testing import CliRunner

from ensemblehub.cli import add_plugins, cli
from ensemblehub.errors import ArtifactError, ConfigError
from ensemblehub.lab.merge import merged
from ensemblehub.shards import Shard

add_plugins()
PAIR = """
model_specs:
  - {name: big, engine: echo, parameters: 9000000, replies: {Insights: "Goal: a b c d", "": "so it is \\\\boxed{9}"}}
  - {name: small, engine: echo, parameters: 1000000, replies: {"": "it is \\\\boxed{4}"}}
ensemble:
  output_aggregation_method: tandem
  output_aggregation_params: {mentor: big, intern: small, levels: {low: 2, high: 20}, judge: "fixed:low"}
experiment: {task: gsm8k, results: RESULTS}
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "pair.yaml").write_text(PAIR.replace("RESULTS", str(tmp_path / "run")))
    lines = [{"question": f"How many are {n} and 4?", "answer": f"so #### {n}"} for n in range(40)]
    (tmp_path / "gsm8k_test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    questions = [{"question": line["question"]} for line in lines] + [{"question": ""}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in questions))
    return tmp_path


def run(*arguments, code=0):
    done = CliRunner().invoke(cli, list(map(str, arguments)))
    assert done.exit_code == code, done.output + str(done.exception)
    return done.output


def infer(folder, out, *more, code=1):  # the last item has no question
    files = ["--input_path", folder / "in.jsonl", "--output_path", folder / out]
    return run("infer", folder / "pair.yaml", *files, *more, code=code)


def rows_of(path, times=("seconds", "usage", "wall")):
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in times} for row in rows]


def bench(folder, out, *more):
    data = ["--task", "gsm8k", "--data", folder / "gsm8k_test.jsonl", "--out", folder / out]
    return run("bench", folder / "pair.yaml", *data, *more)


def test_every_item_is_in_one_shard():
    digests = [f"{number * 7919:x}" for number in range(1000)]
    shards = [Shard(index, 7) for index in range(7)]
    assert all(sum(shard.holds(digest) for shard in shards) == 1 for digest in digests)
    assert min(sum(shard.holds(digest) for digest in digests) for shard in shards) > 100


@pytest.mark.parametrize("text", ["4/4", "a/2", "1", "1/0", "-1/4", "0/4/2"])
def test_a_wrong_shard_is_refused(folder, text):
    done = infer(folder, "out.jsonl", "--shard", text, code=2)
    assert "expected I/N with I from 0 to N - 1" in done


def test_shards_of_infer_are_one_run(folder):
    infer(folder, "whole.jsonl")
    codes = [0, 0, 0]
    for index in range(3):
        done = CliRunner().invoke(cli, ["infer", str(folder / "pair.yaml"), "--shard", f"{index}/3",
            "--input_path", str(folder / "in.jsonl"), "--output_path", str(folder / "out.jsonl")])  # fmt: skip
        codes[index] = done.exit_code
    assert sorted(codes) == [0, 0, 1]  # one shard has the bad item
    assert "41 rows of 3 shards, 1 failed" in run("merge", folder / "out.jsonl")
    order = sorted(rows_of(folder / "whole.jsonl"), key=lambda row: row["number"])
    assert rows_of(folder / "out.jsonl") == order
    once = (folder / "out.jsonl").read_bytes()
    run("merge", folder / "out.jsonl")
    assert (folder / "out.jsonl").read_bytes() == once
    assert "40 of 41 answered (40 before)" in infer(folder, "out.jsonl")


def test_a_limit_counts_items_of_the_whole_input(folder):
    for index in range(3):
        infer(folder, "out.jsonl", "--shard", f"{index}/3", "--max_examples", 10, code=0)
    run("merge", folder / "out.jsonl")
    assert [row["number"] for row in rows_of(folder / "out.jsonl")] == list(range(1, 11))


def test_shards_of_bench_are_one_run(folder):
    bench(folder, "whole")
    for index in range(4):
        bench(folder, "parts", "--shard", f"{index}/4")
    assert "40 rows of 4 shards" in run("merge", folder / "parts")
    bench(folder, "parts")
    by_id = [sorted(rows_of(folder / name / "answers" / "pair.jsonl")[1:], key=lambda row: row["id"])
        for name in ("whole", "parts")]  # fmt: skip
    assert by_id[0] == by_id[1]
    assert (folder / "whole" / "questions.jsonl").read_text() == (
        folder / "parts" / "questions.jsonl"
    ).read_text()
    bench(folder, "parts", "--limit", 5)


@pytest.mark.parametrize("of", ["out", "out/shards/1-of-2"])
def test_a_gzipped_journal_is_not_left_out(tmp_path, of):
    for place in ("out/shards/0-of-2", "out/shards/1-of-2", of):
        (tmp_path / place / "answers").mkdir(parents=True, exist_ok=True)
        (tmp_path / place / "answers" / "model.jsonl").write_text('{"settings": {}}\n')
    packed = tmp_path / of / "answers" / "other.jsonl.gz"
    packed.write_bytes(b"")
    with pytest.raises(ConfigError, match=rf"{packed} is gzipped: `gunzip` it before the merge"):
        list(merged(tmp_path / "out"))


def test_shards_of_collect_are_one_run(folder):
    flags = ["-c", folder / "pair.yaml", "--data", folder / "gsm8k_test.jsonl", "--split", "test"]
    for index in range(2):
        run("collect", *flags, "--shard", f"{index}/2")
    assert "40 rows of 2 shards" in run("merge", folder / "run")
    run("collect", *flags)
    first = (folder / "run" / "collected" / "test.npz").read_bytes()
    shutil.rmtree(folder / "run")
    run("collect", *flags)
    assert (folder / "run" / "collected" / "test.npz").read_bytes() == first


def test_what_is_lost_doubled_or_mixed_is_refused(folder):
    def refused(text):
        done = CliRunner().invoke(cli, ["merge", str(folder / "out.jsonl")])
        assert done.exit_code
        assert text in str(done.exception), done.output
        assert not (folder / "out.jsonl").exists() or not (folder / "out.jsonl").read_text()

    refused("there are no shards of")
    infer(folder, "out.jsonl", "--shard", "0/2", "--max_examples", 40, code=0)
    refused("lacks shard 1/2")
    infer(folder, "out.jsonl", "--shard", "1/2", "--max_examples", 40, code=0)
    first, second = (folder / "shards" / f"{index}-of-2" / "out.jsonl" for index in range(2))
    good = second.read_text()
    second.write_text(first.read_text())
    refused("which belongs to another shard")
    second.write_text(good + good.splitlines()[0] + "\n")
    refused("twice")
    second.write_text(good.replace('"fingerprint": "', '"fingerprint": "x'))
    refused("was made with other settings: config.fingerprint")
    second.write_text(good.splitlines()[0].replace('"key"', '"kez"') + "\n")
    refused("without a key")
    second.write_text(good)
    for name in ("2-of-2", "x-of-y", "0-of-02"):
        (folder / "shards" / name).mkdir()
        shutil.copy(first, folder / "shards" / name)
        refused(f"shards/{name} is the folder of no shard")
        shutil.rmtree(folder / "shards" / name)
    (folder / "shards" / "0-of-3").mkdir()
    shutil.copy(first, folder / "shards" / "0-of-3")
    refused("has shards of 2 and of 3")
    shutil.rmtree(folder / "shards" / "0-of-3")
    assert "40 rows of 2 shards" in run("merge", folder / "out.jsonl")


def test_rows_that_a_shard_did_not_reach_are_counted(folder):
    for index in range(2):
        infer(folder, "out.jsonl", "--shard", f"{index}/2", "--max_examples", 40, code=0)
    path = next(path for path in (folder / "shards").rglob("out.jsonl") if rows_of(path)[-1]["number"] < 40)
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    path.write_bytes(whole[: first + 20])  # killed as it wrote its second row
    lost = whole.count(b"\n") - 1
    text = f"{40 - lost} rows of 2 shards; {lost} of the first 40 are missing: a shard was not finished"
    assert text in run("merge", folder / "out.jsonl")
    assert "40 of 40 answered" in infer(folder, "out.jsonl", "--max_examples", 40, code=0)


def test_a_target_of_another_configuration_is_named(folder):
    infer(folder, "out.jsonl", "--shard", "0/1")
    written = (folder / "shards" / "0-of-1" / "out.jsonl").read_text()
    (folder / "out.jsonl").write_text(written.replace('"fingerprint": "', '"fingerprint": "x'))
    with pytest.raises(ArtifactError, match=f"run that shard again, or remove {folder / 'out.jsonl'}"):
        list(merged(folder / "out.jsonl"))


def test_a_gzipped_shard_of_infer_is_named(folder):
    for index in range(2):
        infer(folder, "out.jsonl", "--shard", f"{index}/2", "--max_examples", 40, code=0)
    path = folder / "shards" / "1-of-2" / "out.jsonl"
    path.rename(f"{path}.gz")
    with pytest.raises(ConfigError, match=f"{path}.gz is gzipped: `gunzip` it"):
        list(merged(folder / "out.jsonl"))


def test_a_few_of_many_missing_shards_are_named(folder):
    infer(folder, "out.jsonl", "--shard", f"2/{10**18}", "--max_examples", 40, code=0)
    with pytest.raises(
        ArtifactError, match=rf"lacks shard 0/{10**18}, 1/{10**18}, 3/.* and {10**18 - 9} more"
    ):
        list(merged(folder / "out.jsonl"))


def test_a_shard_that_is_being_written_is_not_merged(folder):
    for index in range(2):
        infer(folder, "out.jsonl", "--shard", f"{index}/2", "--max_examples", 40, code=0)
    path = folder / "shards" / "1-of-2" / "out.jsonl"
    code = (
        "import sys, fcntl, time\n"
        f"file = open({str(path)!r}, 'a+'); fcntl.flock(file, fcntl.LOCK_EX); print('x', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as holder:
        holder.stdout.readline()
        with pytest.raises(Exception, match="is being written by another process"):
            list(merged(folder / "out.jsonl"))
        holder.kill()
    with path.open("ab") as file:
        file.write(b'{"key": "torn')  # a killed process; its good rows count
    assert "40 rows" in next(merged(folder / "out.jsonl"))


def part(folder, index, count, numbers, size):
    """Write what a shard of `infer` wrote of these items."""
    shard = Shard(index, count)
    path = shard.beside(folder / "out.jsonl")
    path.parent.mkdir(parents=True)
    with path.open("w") as file:
        for number in numbers:
            row = {"key": f"{number:032x}", "number": number, "config": {"fingerprint": "f"}, "error": None}
            if shard.holds(row["key"]):
                file.write(json.dumps(row | {"predict": f"{number} " * size}) + "\n")


def peak_of_merge(folder, size):
    for index in range(2):
        part(folder, index, 2, reversed(range(300)), size)
    tracemalloc.start()
    assert list(merged(folder / "out.jsonl")) == [f"{folder / 'out.jsonl'}: 300 rows of 2 shards"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_rows_stay_on_disk(tmp_path):
    small, large = (peak_of_merge(tmp_path / str(size), size) for size in (10, 5_000))
    assert (tmp_path / "5000" / "out.jsonl").stat().st_size > 5_000_000
    assert large - small < 500_000  # a few rows of 20 kB
    rows = rows_of(tmp_path / "5000" / "out.jsonl")
    assert [row["number"] for row in rows] == list(range(300))
    assert all(row["predict"] == f"{row['number']} " * 5_000 for row in rows)


def test_more_shards_than_files_may_be_open(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, limits[1]))
    try:
        for index in range(220):
            part(tmp_path, index, 220, range(220), 1)
        assert "220 rows of 220 shards" in next(merged(tmp_path / "out.jsonl"))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_an_answer_counts_before_a_failure_of_a_shard(folder):
    for index in range(2):
        infer(folder, "out.jsonl", "--shard", f"{index}/2", "--max_examples", 40, code=0)
    run("merge", folder / "out.jsonl")
    whole = (folder / "out.jsonl").read_text()
    failed = folder / "shards" / "0-of-2" / "out.jsonl"
    failed.write_text(failed.read_text().replace('"error": null', '"error": "late"'))
    assert "40 rows of 2 shards\n" in run("merge", folder / "out.jsonl")
    assert (folder / "out.jsonl").read_text() == whole
    (folder / "out.jsonl").write_text(whole.replace('"error": null', '"error": "late"'))
    run("merge", folder / "out.jsonl")
    rows = rows_of(folder / "out.jsonl")
    assert sum(row["error"] is None for row in rows) == len(rows) - failed.read_text().count("late")
