"""Damaged artifacts: a command that reads one says so in one line, or does its work; never a traceback."""

import gzip
import hashlib
import io
import json
import os
import random
import re
import shutil

import numpy as np
import pytest

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

from safetensors import numpy as safetensors

from ensemblehub.errors import ArtifactError, EnsembleHubError
from ensemblehub.lab.pipeline import report
from tests.lab.pipeline.test_resuming import N, pipeline

TRIES = int(os.environ.get("ENSEMBLEHUB_DAMAGES", "6"))  # of every kind
WRONG = [None, "x", -1, 1.5, True, [], {}, [1], {"a": 1}, float("nan"), 10**40, "\u2028"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("damaged")
    whole = pipeline(folder)
    for split in ("train", "calibration", "test"):
        whole.collect(split, N)
    whole.train()
    whole.calibrate()
    whole.evaluate(12)
    return folder


@pytest.fixture
def folder(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "own")
    return tmp_path / "own"


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    monkeypatch.setattr(report, "plot", lambda *_: [])


STEPS = {
    "report": lambda own: own.report(),
    "train": lambda own: own.train(),
    "calibrate": lambda own: own.calibrate(),
    "evaluate": lambda own: own.evaluate(12, checks=False),
    "collect": lambda own: own.collect("test", N),
    "journal": lambda own: own.collect("test", 6),
}


def said(folder, step):
    """The one line that a command ends with; nothing where it did its work."""
    try:
        STEPS[step](pipeline(folder))
    except EnsembleHubError as error:
        text = str(error)
        assert "\n" not in text
        assert len(text) < 700
        return text
    return ""


def values(data, where=()):
    """Every place in nested JSON."""
    yield where
    inner = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in inner:
        yield from values(value, (*where, key))


def changed(data, where, dice):
    """The same with one value taken out or replaced by one of another kind."""
    if not where:
        return dice.choice(WRONG)
    data = json.loads(json.dumps(data))
    place = data
    for key in where[:-1]:
        place = place[key]
    if dice.random() < 0.4:
        del place[where[-1]]
    else:
        place[where[-1]] = dice.choice(WRONG)
    return data


def unzipped(path):
    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()


def put(path, content):
    path.write_bytes(gzip.compress(content, 1) if path.suffix == ".gz" else content)


FILES = {
    "judge/judge.json": ("calibrate", "evaluate"),
    "results/checks.json": ("report",),
    "results/runs.jsonl": ("report", "evaluate"),
    "results/collected/test.jsonl.gz": ("report", "evaluate", "collect"),
    "results/collected/calibration.jsonl.gz": ("calibrate", "evaluate"),
    "results/collected/train.jsonl.gz": ("train",),
}


@pytest.mark.parametrize("name", FILES)
def test_a_field_that_is_missing_or_of_another_kind(folder, name):
    dice, path = random.Random(name), folder / name
    whole = unzipped(path)
    lines = whole.split(b"\n")[:-1] if ".jsonl" in name else [whole]
    for step in FILES[name]:
        for _ in range(TRIES):
            at = dice.choice([0, *range(len(lines))])
            data = json.loads(lines[at])
            where = dice.choice(list(values(data)))
            put(
                path,
                b"\n".join(
                    [*lines[:at], json.dumps(changed(data, where, dice)).encode(), *lines[at + 1 :], b""]
                ),
            )
            said(folder, step)
    put(path, whole)


@pytest.mark.parametrize(
    "name",
    [*FILES, *(f"results/collected/{split}.npz" for split in ("train", "test")), "judge/judge.safetensors"],
)
def test_bytes_that_are_cut_off_or_flipped(folder, name):
    dice, path = random.Random(name), folder / name
    whole = path.read_bytes()
    steps = FILES.get(name) or {"train": ("train",), "test": ("report",)}.get(path.stem, ("calibrate",))
    for step in steps:
        for _ in range(TRIES):
            content = bytearray(whole)
            if dice.random() < 0.4:
                content = content[: dice.randrange(len(content))]
            else:
                content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
            path.write_bytes(bytes(content))
            message = said(folder, step)
            if path.suffix in (".gz", ".npz", ".safetensors"):
                assert message or gzip_harmless(path, whole), message


def gzip_harmless(path, whole):
    """Whether what was changed is a field of gzip's head that nobody reads."""
    try:
        return path.suffix == ".gz" and gzip.decompress(path.read_bytes()) == gzip.decompress(whole)
    except (OSError, EOFError):
        return False


ARRAYS = {
    "features": lambda old, dice: dice.choice(
        [
            old[:-1],
            old[..., :15],
            old[:, :2],
            old.astype(np.float64),
            old * np.nan,
            old.astype(str),
            np.float32(1),
            np.where(old == old.max(), np.inf, old).astype(np.float32),
            old[:, :, :, None],
            old[:0],
        ]
    ),
    "lengths": lambda old, dice: dice.choice(
        [
            old[:-1],
            old * 0,
            -old,
            old + 1,
            old.astype(float),
            np.append(old, 1).astype(np.int32),
            old[None],
        ]
    ),
    "sequences": lambda old, dice: dice.choice(
        [
            old[:, :-1],
            old[:1],
            old.T,
            old * np.float16("nan"),
            old.astype(np.float32),
            old.reshape(-1),
            old[:, :0],
            old.astype(object).astype(str),
        ]
    ),
}


@pytest.mark.parametrize("array", ARRAYS)
def test_arrays_that_do_not_fit_the_rows_or_hold_no_numbers(folder, array):
    dice, place = random.Random(array), folder / "results/collected"
    with np.load(place / "test.npz") as arrays:
        old = dict(arrays)
    head, rows = unzipped(place / "test.jsonl.gz").split(b"\n", 1)
    for _ in range(TRIES):
        file = io.BytesIO()
        np.savez(file, **(old | {array: ARRAYS[array](old[array], dice)}))
        (place / "test.npz").write_bytes(file.getvalue())
        header = json.loads(head) | {"arrays": hashlib.sha256(file.getvalue()).hexdigest()}
        put(place / "test.jsonl.gz", json.dumps(header).encode() + b"\n" + rows)
        assert "collected/test is damaged" in said(folder, "report")


def test_arrays_and_rows_of_unlike_counts(folder):
    place = folder / "results/collected"
    whole = unzipped(place / "test.jsonl.gz").split(b"\n")
    for kept in ([*whole[:-2], b""], [whole[0], b""], [*whole[:-1], whole[1], b""], [*whole[:-1]]):
        put(place / "test.jsonl.gz", b"\n".join(kept))
        assert "damaged" in said(folder, "report")


def test_files_that_changed_places(folder):
    place = folder / "results/collected"
    for first, second, step in [
        (place / "test.npz", place / "train.npz", "report"),
        (place / "test.jsonl.gz", place / "train.jsonl.gz", "report"),
        (folder / "results/runs.jsonl", folder / "results/checks.json", "report"),
        (folder / "judge/judge.json", folder / "results/checks.json", "calibrate"),
        (folder / "judge/judge.safetensors", place / "test.npz", "calibrate"),
    ]:
        mine, other = first.read_bytes(), second.read_bytes()
        first.write_bytes(other)
        second.write_bytes(mine)
        assert said(folder, step)
        first.write_bytes(mine)
        second.write_bytes(other)
    assert not said(folder, "report")


def test_weights_that_are_not_finite_or_of_another_shape(folder):
    path, record = folder / "judge/judge.safetensors", folder / "judge/judge.json"
    whole, description = safetensors.load(path.read_bytes()), json.loads(record.read_text())
    for name, old in whole.items():
        for new in (old * np.nan, old[..., :-1].copy(), old[None].copy(), old.reshape(-1)[:0].copy(), None):
            arrays = {key: value for key, value in (whole | {name: new}).items() if value is not None}
            if new is not None and new.shape == old.shape and not np.isnan(new).any():
                continue
            content = safetensors.save(arrays)
            path.write_bytes(content)
            record.write_text(json.dumps(description | {"sha256": hashlib.sha256(content).hexdigest()}))
            assert "is damaged" in said(folder, "calibrate")


def test_a_torn_last_run_does_not_count_and_a_text_may_hold_any_line_separator(folder):
    path = folder / "results/runs.jsonl"
    lines = path.read_bytes().split(b"\n")
    changed = json.loads(lines[1]) | {"text": "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\rh"}
    whole = [lines[0], json.dumps(changed, ensure_ascii=False).encode(), *lines[2:-1]]
    path.write_bytes(b"\n".join([*whole, b'{"id": "builtin_math/test/00099", "cor']))
    assert "n = 12 questions" in pipeline(folder).report()
    assert pipeline(folder).evaluate(12, checks=False)[0].text == changed["text"]
    assert path.read_bytes() == b"\n".join([*whole, b""])


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("", "it is not JSON"),
        ("{", "it is not JSON"),
        ("[]", "should be an object|an object|dictionary"),
        ("{}", "checked"),
        ('{"checked": 1}', "reproduced"),
        ('{"checked": "many", "reproduced": {}, "rides": 1}', "checked"),
    ],
)
def test_bad_checks_are_one_line_that_names_the_file(folder, content, match):
    path = folder / "results/checks.json"
    path.write_text(content)
    with pytest.raises(ArtifactError, match=match) as caught:
        pipeline(folder).report()
    assert str(path) in str(caught.value)


def test_a_run_to_a_level_that_was_not_collected(folder):
    path = folder / "results/runs.jsonl"
    path.write_text(re.sub('"chosen": "[a-z]*"', '"chosen": "nowhere"', path.read_text()))
    assert "stopped at 'nowhere'" in said(folder, "report")


def test_rides_over_other_collected_data(folder):
    own = pipeline(folder, "ensemble.generation.max_tokens=7")
    own.collect("test", N, force=True)
    with pytest.raises(ArtifactError, match="over other collected data: max_tokens 512, not 7"):
        own.report()


def test_a_journal_that_is_damaged_is_one_line(folder):
    dice, place = random.Random(0), folder / "results/collected"
    own = pipeline(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pathlib.Path.unlink", lambda *_, **__: None)
        own.collect("test", 6, force=True)
    journal = place / "test.partial.jsonl"
    lines = journal.read_bytes().split(b"\n")[:-1]
    for _ in range(2 * TRIES):
        (place / "test.jsonl.gz").unlink(missing_ok=True)
        at = dice.randrange(1, len(lines))
        data = json.loads(lines[at])
        where = dice.choice(list(values(data)))
        journal.write_bytes(
            b"\n".join([*lines[:at], json.dumps(changed(data, where, dice)).encode(), *lines[at + 1 :], b""])
        )
        said(folder, "journal")


# The ends of the scale


@pytest.mark.parametrize(
    ("right", "n"), [(10, 10), (164, 164), (0, 100), (1, 1), (0, 1), (38, 38), (1319, 1319)]
)
def test_a_method_that_is_right_on_all_or_no_questions(tmp_path, right, n, monkeypatch):
    monkeypatch.undo()  # with its picture
    ones = (np.ones(n),) * 8
    answered = report.MethodRuns("mentor", {}, np.full(n, float(right > 0)), *ones)
    concise = report.MethodRuns("mentor_concise", {}, np.ones(n), *ones)
    rows = report.summary("t", [answered, concise], [2] * n)
    table = report.write(tmp_path, rows, ["note"], "title")
    assert ("100.00%" if right else "0.00%") in table
    assert rows[0]["accuracy_low"] <= rows[0]["accuracy"] <= rows[0]["accuracy_high"]
    assert (tmp_path / "pareto.svg").stat().st_size > 1000


def test_a_mentor_that_answers_everything_itself_has_no_mix_of_levels(folder):
    own = pipeline(
        folder,
        "ensemble.output_aggregation_params.fallback=mentor",
        "ensemble.output_aggregation_params.thresholds={none: 1.01, low: 1.01, high: 1.01}",
    )
    own.evaluate(12, force=True, checks=False)
    table = own.report()
    assert "random_mix" not in table.split("\n\n")[1]
    assert json.loads((folder / "results/summary.json").read_text())[-1]["levels"] == {"mentor": 12}
