"""Public benchmarks, on handmade items in their public forms."""

import json

import pytest

from ensemblehub.config import Config
from ensemblehub.errors import ConfigError
from ensemblehub.experiments.pipeline import Pipeline
from ensemblehub.schema import Chat
from ensemblehub.studio import CONFIG
from ensemblehub.tasks.base import task_named

CHECK = "def check(candidate):\n    assert candidate(2) == {0}\n"


def math_item(number):
    return {
        "problem": f"What is {number} + 1?", "solution": f"It is $\\boxed{{{number + 1}}}$.", "answer": str(number + 1),
        "subject": "Algebra" if number % 2 else "Number Theory", "level": 1 + number % 5,
        "unique_id": f"test/algebra/{number}.json",
    }  # fmt: skip


def gsm_item(number):
    return {
        "question": f"Ann has {number} cups and buys 2. How many?",
        "answer": f"{number}+2={number + 2}\n#### {number + 2}",
    }


def human_item(number):
    prompt = f'import math\n\ndef f{number}(x):\n    """Add {number} to x."""\n'
    return {
        "task_id": f"HumanEval/{number}", "prompt": prompt, "entry_point": f"f{number}",
        "canonical_solution": f"    return x + {number}\n", "test": CHECK.format(2 + number),
    }  # fmt: skip


def mbpp_item(number):
    return {
        "task_id": number, "text": "Write a function to add one.", "code": "def add_one(x):\n    return x + 1",
        "test_list": ["assert add_one(1) == 2", "assert add_one(5) == 6"], "test_setup_code": "",
        "challenge_test_list": [],
    }  # fmt: skip


def aime_item(number):
    return {"problem": f"Find {number}.", "solution": f"So \\boxed{{\\textbf{{(0{number})}}}}.", "answer": f"0{number}"}


ITEMS = {
    "math500": (math_item, range(40)), "gsm8k": (gsm_item, range(12)), "humaneval": (human_item, range(20)),
    "mbpp": (mbpp_item, range(9, 20)), "aime24": (aime_item, range(10, 14)), "amc23": (aime_item, range(10, 14)),
}  # fmt: skip


@pytest.fixture(params=ITEMS)
def benchmark(request, tmp_path):
    make, numbers = ITEMS[request.param]
    file = tmp_path / f"{request.param}.jsonl"
    file.write_text("".join(json.dumps(make(number)) + "\n" for number in numbers))
    return request.param, task_named(request.param, file)


def test_every_form_is_read_asked_and_its_gold_solution_is_right(benchmark):
    name, task = benchmark
    items = list(task.items("test"))
    assert items
    assert len({item.id for item in items}) == len(items)
    assert list(task.items("test", 1)) == items[:1]
    for item in items:
        chat = task.request(item)
        assert isinstance(chat, Chat)
        assert item.text in chat.messages[0].content
    if name in ("humaneval", "mbpp"):
        item = items[0]
        assert task.grade(item, f"```python\n{item.extra['prompt']}{item.answer}\n```").correct
        assert not task.grade(item, "```python\ndef nothing():\n    return 1\n```").correct
        assert "form" in task.grading()
    else:
        item = items[0]
        assert "\\boxed" in task.request(item).messages[0].content
        assert task.grade(item, f"So \\boxed{{1}}, no: \\boxed{{{item.answer}}}").correct
        assert not task.grade(item, f"\\boxed{{{item.answer}}} or rather \\boxed{{-1}}").correct
        assert task.grade(item, f"The answer is {item.answer}.").correct
        assert task.grade(item, f"so\n#### {item.answer}").correct
        assert task.leaks(item, f"\\boxed{{{item.answer}}}")
        assert not task.leaks(item, "Goal: find it.")
    about = task.about("test")
    assert about["items"] == len(items)
    assert about["source"].endswith(".jsonl")
    assert "/" not in about["source"]


def test_math500_is_divided_400_to_100_by_seed_and_calibration_is_a_quarter_of_train(tmp_path):
    file = tmp_path / "math500.jsonl"
    file.write_text("".join(json.dumps(math_item(number)) + "\n" for number in range(500)))
    task = task_named("math500", file)
    splits = {split: [item.id for item in task.items(split)] for split in ("train", "calibration", "test", "all")}
    assert [len(splits[name]) for name in ("train", "calibration", "test", "all")] == [400, 100, 100, 500]
    assert not set(splits["train"]) & set(splits["test"])
    assert set(splits["calibration"]) < set(splits["train"])
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(reversed(lines)))
    again = task_named("math500", file)
    assert [item.id for item in again.items("test")] == splits["test"]  # the file's order does not matter
    assert "seed 42" in task.about("train")["split"]


def test_the_pipeline_leaves_calibration_out_of_training(tmp_path):
    file = tmp_path / "math500.jsonl"
    file.write_text("".join(json.dumps(math_item(number)) + "\n" for number in range(40)))
    changes = ["experiment.task=math500", f"experiment.data={file}", f"experiment.results={tmp_path / 'r'}"]
    pipeline = Pipeline(Config.read(CONFIG, changes))
    data = pipeline.collect("train", 12)
    assert data.header["questions"]["items"] == 32
    held = {item.id for item in pipeline.items("calibration", None)}
    assert not {row.id for row in pipeline._apart(data).rows} & held


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty"),
        (b"{}\n", "is no item of"),
        (b'{"problem": "a"}\n', "solution"),
        (b'{"problem": "a", "solution": "no box"}\n', "boxed"),
        (b'{"problem": "a", "solution": "\\\\boxed{1}"}\nnot json\n', ":2"),
        (b"\xff\xfe\x00\n", "UTF-8"),
        (b'{"problem": 5, "solution": "\\\\boxed{1}"}\n', "not a text"),
    ],
)
def test_a_wrong_file_is_one_line_that_names_it(content, said, tmp_path):
    file = tmp_path / "math500.jsonl"
    file.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        list(task_named("math500", file).items("test"))
    assert said in str(caught.value)
    assert file.name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        task_named("math500", tmp_path / "nowhere.jsonl")
    with pytest.raises(ConfigError, match="did you mean 'math500'"):
        task_named("math50")
    with pytest.raises(ConfigError, match="makes its own questions"):
        task_named("studio_math", tmp_path)
    (tmp_path / "m.jsonl").write_text(json.dumps(math_item(1)) + "\n")
    with pytest.raises(ConfigError, match="did you mean 'test'"):
        list(task_named("math500", tmp_path / "m.jsonl").items("tset"))
