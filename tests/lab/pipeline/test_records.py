import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from ensemblehub.artifacts import write_atomically
from ensemblehub.errors import ArtifactError
from ensemblehub.lab.journal import Journal
from ensemblehub.lab.pipeline.records import Collected, Row, Run
from ensemblehub.schema import ModelInfo

WRITER = """
import sys
from pathlib import Path
from ensemblehub.lab.journal import Journal
journal = Journal(Path(sys.argv[1]), {"a": 1})
for index in range(100000):
    if str(index) not in journal.rows:
        journal.append({"id": str(index), "text": "x" * 300})
        print(index, flush=True)
"""


def test_a_killed_writer_loses_and_repeats_nothing(tmp_path):
    path, seen = tmp_path / "rows.jsonl", -1
    for _ in range(3):
        child = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
        for _ in range(20):
            seen = int(child.stdout.readline())
        time.sleep(0.01)
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        child.stdout.close()
    journal = Journal(path, {"a": 1})
    journal.close()
    ids = [int(row) for row in journal.rows]
    assert ids == list(range(len(ids)))
    assert len(ids) > seen
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(lines) == len(ids) + 1


def test_a_torn_last_line_is_cut_off(tmp_path):
    path = tmp_path / "rows.jsonl"
    journal = Journal(path, {"a": 1})
    journal.append({"id": "x"})
    journal.close()
    with path.open("ab") as file:
        file.write(b'{"id": "y", "te')
    journal = Journal(path, {"a": 1})
    assert list(journal.rows) == ["x"]
    journal.append({"id": "y"})
    journal.close()
    assert [json.loads(line).get("id") for line in path.read_text().splitlines()] == [None, "x", "y"]


def test_other_settings_are_refused_unless_forced(tmp_path):
    path = tmp_path / "rows.jsonl"
    Journal(path, {"a": 1}).close()
    with pytest.raises(ArtifactError, match="--force"):
        Journal(path, {"a": 2})
    Journal(path, {"a": 2}, force=True).close()
    Journal(path, {"a": 2}).close()


def test_a_damaged_journal_is_one_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("not json\n")
    with pytest.raises(ArtifactError, match="damaged"):
        Journal(path, {"a": 1})
    Journal(path, {"a": 1}, force=True).close()


def test_two_processes_do_not_write_one_journal(tmp_path):
    first = Journal(tmp_path / "rows.jsonl", {"a": 1})
    first.append({"id": "x"})
    with pytest.raises(ArtifactError, match="another process"):
        Journal(tmp_path / "rows.jsonl", {"a": 1}, force=True)
    first.close()
    second = Journal(tmp_path / "rows.jsonl", {"a": 1})
    assert list(second.rows) == ["x"]
    second.close()


def collected(n=3):
    run = Run(True, "stop", 10, 5, 20, 8, 0.1, False, "text")
    rows = [
        Row(f"q{index}", "s", 1, 2, "insight", 2, {"none": run, "low": run, "mentor": run})
        for index in range(n)
    ]
    cards = {
        role: {"parameters": 9, "active": size, "attention_flops": 2.0, "price": None}
        for role, size in (("mentor", 80), ("intern", 10))
    }
    header = {"levels": {"none": 0, "low": 5}, "cards": cards}
    rng = np.random.default_rng(0)
    sequences = [[rng.random((2, length)).astype(np.float16) for length in (3, 7)] for _ in range(n)]
    return Collected(header, rows, rng.random((n, 2, 16)).astype(np.float32), sequences)


def test_collected_data_survives_the_disk(tmp_path):
    data = collected()
    data.save(tmp_path, "test")
    back = Collected.load(tmp_path, "test")
    assert back.rows == data.rows
    assert back.header == data.header
    np.testing.assert_array_equal(back.features, data.features)
    for ours, theirs in zip(data.sequences, back.sequences, strict=True):
        for own, other in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(own, other)


def test_missing_or_damaged_data_is_one_line_that_names_the_command(tmp_path):
    with pytest.raises(ArtifactError, match="ensemblehub collect --split train"):
        Collected.load(tmp_path, "train")
    collected().save(tmp_path, "test")
    (tmp_path / "test.npz").write_bytes(b"PK\x03\x04 no more")
    with pytest.raises(ArtifactError, match=r"damaged.*run `ensemblehub collect --split test --force`$"):
        Collected.load(tmp_path, "test")


def test_flops_of_a_run_are_those_of_its_forward_passes():
    data = collected(1)
    run = data.rows[0].runs["low"]
    mentor, intern = data.info("mentor"), data.info("intern")
    assert isinstance(mentor, ModelInfo)
    by_hand = sum(
        160 + 2.0 * (position + 1) for position in range(14)
    )  # 10 read, 5 written, the last not read
    by_hand += sum(20 + 2.0 * (position + 1) for position in range(27))
    assert run.flops(mentor, intern) == pytest.approx(by_hand)


def test_what_differs_is_named_and_nothing_is_lost(tmp_path):
    path = tmp_path / "rows.jsonl"
    journal = Journal(path, {"models": {"big": "a"}, "max_tokens": 5, "n": 1})
    journal.append({"id": "x"})
    journal.close()
    before = path.read_bytes() + b'{"id": "torn'
    path.write_bytes(before)
    said = r"models\.big 'a', not 'b', max_tokens 5, not 6, seed was not recorded and 1 more"
    with pytest.raises(ArtifactError, match=said):
        Journal(path, {"models": {"big": "b"}, "max_tokens": 6, "seed": 1})
    assert path.read_bytes() == before
    Journal(path, {"models": {"big": "a"}, "max_tokens": 5, "n": 1}).close()


@pytest.mark.parametrize("line", ['{"rows": 1}', '{"settings": [1]}', '{"settings": null}'])
def test_a_file_that_is_no_journal_is_left_alone(tmp_path, line):
    path = tmp_path / "rows.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(ArtifactError, match="no journal"):
        Journal(path, {"a": 1})
    assert path.read_text() == line + "\n"


@pytest.mark.parametrize("row", ['{"text": "x"}', '{"id": 3}', '{"id": null}', "[1]", "3"])
def test_a_row_without_an_id_is_one_line(tmp_path, row):
    path = tmp_path / "rows.jsonl"
    Journal(path, {"a": 1}).close()
    with path.open("a") as file:
        file.write(row + "\n")
    with pytest.raises(ArtifactError, match="line 2"):
        Journal(path, {"a": 1})


def test_a_row_may_hold_any_text(tmp_path):
    path, text = tmp_path / "rows.jsonl", "a\u2028b\x85c\x1ed\re\nf"
    journal = Journal(path, {"a": 1})
    journal.append({"id": "x", "text": text})
    journal.append({"id": "y", "text": "half \ud800 of a pair"})
    journal.close()
    journal = Journal(path, {"a": 1})
    assert [row["text"] for row in journal.rows.values()] == [text, "half \ufffd of a pair"]
    journal.close()


def test_a_device_is_written_to_and_a_full_disk_leaves_the_old_file(tmp_path):
    write_atomically(Path("/dev/null"), "x")
    assert not Path("/dev/null").is_file()
    with pytest.raises(ArtifactError, match="cannot write /dev/full: No space left on device"):
        write_atomically(Path("/dev/full"), "x" * 100_000)
    (tmp_path / "a").write_text("old")
    (tmp_path / "a.part").mkdir()
    with pytest.raises(ArtifactError, match="cannot write"):
        write_atomically(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "old"
