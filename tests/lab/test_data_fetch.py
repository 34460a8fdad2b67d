import gzip
import json
import sys
import types

import pytest

from ensemblehub.cli import main
from ensemblehub.data import plain, read_items
from ensemblehub.errors import ConfigError, MissingExtraError
from ensemblehub.lab.data import fetch, named, sources

MATH = {
    "problem": "2 + 2?",
    "level": "Level 3",
    "type": "Counting & Probability",
    "solution": "It is \\boxed{4}.",
}
MATH500 = {
    "problem": "2 + 2?",
    "solution": "So $\\boxed{4}$.",
    "answer": "4",
    "subject": "Algebra",
    "level": 2,
    "unique_id": "test/algebra/1.json",
}
GSM8K = {"question": "Two twos?", "answer": "Add 2 + 2 = <<2+2=4>>4 here.\n#### 1,004"}
HUMANEVAL = {
    "task_id": "HumanEval/0",
    "prompt": "def f():\n",
    "entry_point": "f",
    "canonical_solution": "    return 4\n",
    "test": "def check(f): assert f() == 4",
}
AIME = {"ID": "2024-I-4", "Problem": "2 + 2?", "Solution": "Add.", "Answer": 4}
AMC = {"id": 0, "question": "2 + 2?", "answer": 4.0, "url": "somewhere"}
ROWS = {
    "math": MATH,
    "math500": MATH500,
    "gsm8k": GSM8K,
    "humaneval": HUMANEVAL,
    "aime24": AIME,
    "amc23": AMC,
}


@pytest.mark.parametrize(
    ("name", "file", "output"),
    [
        ("MATH", "hendrycks_math/test/counting_and_probability.json", "It is \\boxed{4}."),
        ("MATH-500", "MATH-500/test.json", "So $\\boxed{4}$."),
        ("gsm8k", "gsm8k/main/test.json", "Add 2 + 2 = 4 here.\n\\boxed{1004}"),
        ("HumanEval", "HumanEval/test.json", "    return 4\n"),
        ("AIME 2024", "AIME2024/aime/aime24.json", "Add.\n\\boxed{4}"),
        ("AMC_2023", "AMC2023/amc/amc23.json", "\\boxed{4}"),
    ],
)
def test_a_public_item_becomes_ours_and_can_be_asked(tmp_path, name, file, output):
    public = next(row for known, row in ROWS.items() if sources()[known] is named(name))
    source = tmp_path / "public.jsonl"
    source.write_text(json.dumps(public) + "\n")
    assert fetch(name, source, tmp_path / "data") == {tmp_path / "data" / file: 1}
    (item,) = json.loads((tmp_path / "data" / file).read_text())
    assert item["output"] == output
    (example,) = read_items(tmp_path / "data" / file)
    assert plain(example.prompt).startswith(item["instruction"] + "\n\n")
    assert plain(example.prompt).endswith(item["input"])
    assert example.label == output


def test_what_grading_needs_is_kept(tmp_path):
    source = tmp_path / "HumanEval.jsonl.gz"
    source.write_bytes(gzip.compress(json.dumps(HUMANEVAL).encode()))
    (file,) = fetch("humaneval", source, tmp_path)
    (item,) = json.loads(file.read_text())
    assert {name: item[name] for name in ("id", "entry_point", "test")} == {
        "id": "HumanEval/0",
        "entry_point": "f",
        "test": HUMANEVAL["test"],
    }


def test_a_file_in_our_format_passes_as_it_is(tmp_path):
    ours = [{"instruction": "Add.", "input": "2 + 2", "output": "\\boxed{4}"}]
    (tmp_path / "x.json").write_text(json.dumps(ours))
    (file,) = fetch("aime24", tmp_path / "x.json", tmp_path / "data")
    assert json.loads(file.read_text()) == ours


def test_math_goes_by_subject_and_split(tmp_path):
    rows = [MATH, MATH | {"type": "Algebra"}, MATH | {"type": "Algebra"}]
    (tmp_path / "math.json").write_text(json.dumps(rows))
    folder = tmp_path / "hendrycks_math" / "train"
    assert fetch("math", tmp_path / "math.json", tmp_path, "train") == {
        folder / "counting_and_probability.json": 1,
        folder / "algebra.json": 2,
    }


def test_the_hub_is_asked_for_every_configuration_and_split(tmp_path, monkeypatch):
    asked = []

    def load_dataset(name, config, split):
        asked.append((name, config, split))
        return [GSM8K]

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    files = fetch("gsm8k", None, tmp_path)
    assert [str(file.relative_to(tmp_path / "gsm8k")) for file in files] == [
        "main/train.json",
        "main/test.json",
        "socratic/train.json",
        "socratic/test.json",
    ]
    assert asked[0] == ("openai/gsm8k", "main", "train")
    assert len(asked) == 4


def test_a_hub_that_does_not_answer_is_one_line(tmp_path, monkeypatch):
    def load_dataset(name, config, split):
        raise ConnectionError("no\nroute")

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(ConfigError, match=r"no route.*--from FILE"):
        fetch("aime24", None, tmp_path)


def test_without_the_library_the_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"ensemblehub\[data\].*--from FILE"):
        fetch("aime24", None, tmp_path)


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([AIME, {"Problem": "2 + 2?"}], "item 2 is no item of AIME 2024: has no 'answer'"),
        ([7], "not an object"),
        ([], None),
    ],
)
def test_a_wrong_item_leaves_nothing_behind(tmp_path, rows, says):
    (tmp_path / "x.json").write_text(json.dumps(rows))
    with pytest.raises(ConfigError, match=says or "no items"):
        fetch("aime24", tmp_path / "x.json", tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.json").write_text(json.dumps([AIME]))
    main(["data", "fetch", "aime24", "--from", "x.json"])
    said = capsys.readouterr()
    assert said.out == "data/AIME2024/aime/aime24.json: 1 items\n"
    assert "AIME 2024 has 30 items, x.json 1" in said.err
    for arguments, says in (
        (["data", "fetch", "aime25"], "did you mean 'aime24'"),
        (["data", "fetch", "math", "--split", "tst"], "did you mean 'test'"),
        (["data", "fetch", "math", "--from", "y.json"], "y.json"),
        (["data", "fetsh", "math"], "did you mean 'fetch'"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        error = capsys.readouterr().err
        assert stop.value.code == 2
        assert says in error
        assert error.count("\n") == 1
