"""The public benchmarks from files in their public forms (of items of our own): splits, wrong files, grading."""

import gzip
import json
import sys
import types

import pytest

from ensemblehub import data_files
from ensemblehub.cli import main
from ensemblehub.data import read_items
from ensemblehub.errors import ConfigError, MissingExtraError
from ensemblehub.lab.data import fetch
from ensemblehub.lab.tasks import TASKS, mbpp_inputs, task_named
from ensemblehub.lab.tasks.hendrycks_math import SUBJECTS
from ensemblehub.lab.tasks.mbpp import WRITE
from ensemblehub.lab.tasks.public import CODE, MATHS
from ensemblehub.schema import Request
from ensemblehub.tandem.insights import PROFILES, Dialogue


def math(number):
    kinds = ("Algebra", "Counting & Probability", "Number Theory")
    return {
        "problem": f"What is {number} + {number}?",
        "level": f"Level {number % 5 + 1}",
        "type": kinds[number % 3],
        "solution": f"It is $\\boxed{{{2 * number}}}$.",
    }


def math500(number):
    return {
        "problem": f"What is {number} + 1?",
        "solution": f"So $\\boxed{{{number + 1}}}$.",
        "answer": f"{number + 1}",
        "subject": "Algebra",
        "level": 2,
        "unique_id": f"test/algebra/{number}.json",
    }


def gsm8k(number):
    answer = (
        f"1000 and {number} are <<1000+{number}={number + 1000}>>{number + 1000:,}.\n#### {number + 1000:,}"
    )
    return {
        "question": f"A shop has 1,000 pans and gets {number} more. How many are there?",
        "answer": answer,
    }


def aime(number):
    return {
        "id": number,
        "problem": f"Find {number} modulo 1000.",
        "solution": "Clear.",
        "answer": f"{number:03}",
    }


def amc(number):
    return {
        "id": number,
        "question": f"What is {number} halves of two?",
        "answer": float(number),
        "url": "none",
    }


def humaneval(number):
    return {
        "task_id": f"HumanEval/{number}",
        "entry_point": "more",
        "prompt": "import math\n\n\ndef half(x):\n    return x // 2\n\n\n"
        f'def more(x):\n    """Return x + {number}."""\n',
        "canonical_solution": f"    return x + {number}\n",
        "test": f"def check(candidate):\n    assert candidate(1) == {number + 1}\n",
    }


def mbpp(number):
    return {
        "task_id": number,
        "text": f"Write a function that adds {number}.",
        "test_setup_code": "",
        "code": f"def helper(x):\r\n  return x\r\ndef add(x):\r\n  return helper(x) + {number}",
        "test_list": [f"assert add(1) == {number + 1}", f"assert add((0))=={number}"],
        "challenge_test_list": [],
    }


def evalplus(number, inputs=((1,), (2,)), plus=((0,), (-3,))):
    return {
        "task_id": f"HumanEval/{number}",
        "entry_point": "more",
        "atol": 0,
        "contract": "",
        "prompt": f'def more(x):\n    """Return x + {number}."""\n',
        "canonical_solution": f"    return x + {number}\n",
        "base_input": inputs,
        "plus_input": plus,
        "test": "import numpy as np\ndef check(candidate): pass\n",
    }


def mbppplus(number):
    return {
        "task_id": number,
        "prompt": f"Write a function to add {number} to a float.",
        "code": "def add(x):\n  return x",
        "test_imports": [],
        "test_list": [f"assert add(1.0) == {number + 1}.0"],
        "test": "import numpy as np\ndef assertion(out, exp, atol):\n    "
        "np.testing.assert_allclose(out, exp, atol=atol)\n"
        f"inputs = [[1.0], [0.5]]\nresults = [{number + 1}.0, {number + 0.5}]\n"
        "for i, (inp, exp) in enumerate(zip(inputs, results)):\n    assertion(add(*inp), exp, 1e-6)\n",
    }


ROWS = {
    "math": math,
    "math500": math500,
    "gsm8k": gsm8k,
    "aime24": aime,
    "amc23": amc,
    "humaneval": humaneval,
    "humaneval_plus": evalplus,
    "mbpp": mbpp,
    "mbpp_plus": mbppplus,
}


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def task(name, tmp_path, count=20, start=0):
    return task_named(name, written(tmp_path / "rows.jsonl", map(ROWS[name], range(start, start + count))))


@pytest.mark.parametrize("name", ROWS)
def test_a_public_file_is_read_and_its_splits_do_not_meet(tmp_path, name):
    count = 20 if name not in ("mbpp", "mbpp_plus") else 974
    written(tmp_path / f"{name}.jsonl", map(ROWS[name], range(1, count + 1)))
    if name in ("math", "gsm8k"):
        written(tmp_path / f"{name}_train.jsonl", map(ROWS[name], range(1001, 1001 + count)))
    task = task_named(name, tmp_path)
    ids = {split: [item.id for item in task.items(split)] for split in task.splits}
    assert all(len(set(own)) == len(own) > 0 for own in ids.values())
    assert not set(ids.get("train", ())) & set(ids["test"])
    assert not set(ids.get("calibration", ())) & set(ids["test"])
    assert set(ids["test"]) <= set(ids["all"])
    assert [item.id for item in task.items("test", 3)] == ids["test"][:3]
    if name not in ("mbpp", "mbpp_plus") and "train" in ids:
        assert set(ids["calibration"]) <= set(ids["train"])
        assert not set(ids["calibration"]) & set(ids["train"][: len(ids["train"]) * 3 // 4])
    if name in ("mbpp", "mbpp_plus"):
        sizes = [374, 90, 500] if name == "mbpp" else [371, 87, 485]  # without 21 ill-formed ones
        assert [len(ids[split]) for split in ("train", "calibration", "test")] == sizes
    about = task.about("test")
    assert about["split"] == f"test: {task.division}"
    assert about["items"] == len(ids["test"])
    assert str(tmp_path) not in json.dumps(about)


@pytest.mark.parametrize(("name", "sizes"), [("math500", (400, 100, 500)), ("humaneval", (130, 34, 164))])
def test_the_seeded_splits_do_not_depend_on_the_order_of_the_file(tmp_path, name, sizes):
    rows = [ROWS[name](number) for number in range(sizes[2])]
    benchmark = task_named(name, written(tmp_path / "one.jsonl", rows))
    (tmp_path / "other.json").write_text(json.dumps(rows[::-1], indent=1))
    other = task_named(name, tmp_path / "other.json")
    for split, size in zip(("train", "test", "all"), sizes, strict=True):
        items = list(benchmark.items(split))
        assert len(items) == size
        assert items == list(other.items(split))


def test_the_split_of_math500_stays_what_it_is(tmp_path):
    """Published results name it; these ids are of the real file's form."""
    ids = [item.id for item in task("math500", tmp_path, 10).items("test")]
    assert ids == ["test/algebra/5.json", "test/algebra/7.json"]


@pytest.mark.parametrize("name", ROWS)
def test_what_fetch_writes_reads_as_the_public_file_does(tmp_path, name):
    count = 30 if name not in ("mbpp", "mbpp_plus") else 20
    public = written(tmp_path / "public.jsonl", map(ROWS[name], range(11, 11 + count)))
    fetch(name, public, tmp_path / "data")
    if name == "math":
        for subject in SUBJECTS:
            file = tmp_path / "data" / "hendrycks_math" / "test" / f"{subject}.json"
            if not file.exists():
                with pytest.raises(
                    ConfigError, match=rf"{subject}.json is missing: run `ensemblehub data fetch math`"
                ):
                    task_named(name, tmp_path / "data").items("test")
                file.write_text(json.dumps([math(100)]).replace("100", subject))
        left = {item.id: item for item in task_named(name, tmp_path / "data").items("test")}
        for item in task_named(name, public).items("test"):
            assert left[item.id].text == item.text
        return
    assert list(task_named(name, tmp_path / "data").items("test")) == list(
        task_named(name, public).items("test")
    )


def as_the_reference_has_it(number):
    """An item of the reference toolkit's own files, which leave the subject to the folder."""
    solution = f"It is $\\boxed{{{number + 1}}}$."
    return {"instruction": "Solve it.", "input": f"What is {number} + 1?", "output": solution}


@pytest.mark.parametrize(
    "layout",
    [
        "math/hendrycks_math/{subject}/{split}.json",
        "hendrycks_math/{subject}/{split}.json",
        "{subject}/{split}.json",
        "{split}/{subject}.json",
        "hendrycks_math/{split}/{subject}.json",
        "{split}/{subject}/7.json",
    ],
)
def test_the_folder_names_the_subject(tmp_path, layout):
    for number, subject in enumerate(SUBJECTS):
        for split in ("train", "test"):
            file = tmp_path / layout.format(subject=subject, split=split)
            file.parent.mkdir(parents=True, exist_ok=True)
            item = as_the_reference_has_it(number + 100 * (split == "train"))
            file.write_text(json.dumps(item if "7.json" in layout else [item]))
    found = list(task_named("math", tmp_path).items("test"))
    assert sorted(item.subject for item in found) == sorted(SUBJECTS)
    assert {item.subject: item.answer for item in found}["number_theory"] == "5"
    assert len(list(task_named("math", tmp_path).items("all"))) == 14
    path = tmp_path / layout.format(subject="geometry", split="test")
    assert [item.subject for item in task_named("math", path).items("test")] == ["geometry"]


def test_a_subject_that_nothing_names_is_left_out_and_not_made_up(tmp_path):
    file = tmp_path / "hendrycks_math" / "hendrycks_math" / "test.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps([as_the_reference_has_it(1)]))
    for data in (file, file.parent):
        assert [(item.subject, item.answer) for item in task_named("math", data).items("test")] == [("", "2")]
    with pytest.raises(
        ConfigError, match="item 1 is no item of MATH: has no `type` or `subject`, and no folder"
    ):
        fetch("math", file, tmp_path / "data")
    geometry = tmp_path / "geometry" / "test.json"
    geometry.parent.mkdir()
    geometry.write_text(file.read_text())
    assert list(fetch("math", geometry, tmp_path / "data")) == [
        tmp_path / "data" / "hendrycks_math" / "test" / "geometry.json"
    ]


def test_what_was_fetched_into_the_working_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.json").write_text(json.dumps([aime(7)]))
    main(["data", "fetch", "aime24", "--from", "x.json"])
    (item,) = task_named("aime24").items("test")
    assert (item.text, item.answer) == ("Find 7 modulo 1000.", "7")


def test_without_files_the_hub_is_asked(tmp_path, monkeypatch):
    asked = []

    def load_dataset(name, config, split):
        asked.append((name, config, split))
        return [gsm8k(1), gsm8k(2)]

    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    assert len(list(task_named("gsm8k").items("train"))) == 2
    assert asked == [("openai/gsm8k", "main", "train")]
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"ensemblehub\[data\].*--data FILE"):
        task_named("gsm8k").items("train")


BAD = [
    ("", r"rows.jsonl: empty"),
    ("question,answer\n1,2\n", r"rows.jsonl:1 is no item of GSM8K: not JSON"),
    (
        json.dumps(gsm8k(1)) + '\n\n{"question": "How many?"}\n',
        r"rows.jsonl:3 is no item of GSM8K: has no 'answer'",
    ),
    (json.dumps(gsm8k(1)) + "\n[1]\n", r"rows.jsonl:2 is no item of GSM8K: it is not an object"),
    (json.dumps(math500(1)) + "\n", r"rows.jsonl: item 1 is no item of GSM8K: the answer has no ####"),
    (
        json.dumps({"question": "How many?", "answer": "7"}),
        r"item 1 is no item of GSM8K: the answer has no ####",
    ),
    (json.dumps({"question": 7, "answer": "#### 7"}), r"item 1 is no item of gsm8k: `input` is not a text"),
    (
        json.dumps({"question": "  ", "answer": "#### 7"}),
        r"item 1 is no item of gsm8k: `input` is not a text",
    ),
    (json.dumps({"question": "\ud800", "answer": "#### 7"}), r"item 1 is no item of gsm8k: .*surrogates"),
    (
        json.dumps(gsm8k(1)) + "\n" + "[" * 100_000 + "\n",
        r"rows.jsonl:2 is no item of GSM8K: nested too deeply",
    ),
    (json.dumps(gsm8k(1)).encode() + b"\n\xff\xfe\n", r"rows.jsonl:2.* not UTF-8"),
    (gzip.compress(json.dumps(gsm8k(1)).encode())[:-20], r"rows.jsonl: "),
    ("[]", "no items"),
]


@pytest.mark.parametrize(("content", "says"), BAD, ids=range(len(BAD)))
def test_a_wrong_file_is_one_line_that_names_it(tmp_path, content, says):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match=says) as error:
        task_named("gsm8k", path).items("test")
    assert "\n" not in str(error.value)


def test_a_huge_line_is_refused_by_number(tmp_path, monkeypatch):
    monkeypatch.setattr(data_files, "LONGEST_LINE", 1000)
    path = written(tmp_path / "rows.jsonl", [gsm8k(1), gsm8k(2) | {"question": "x" * 2000}, gsm8k(3)])
    with pytest.raises(
        ConfigError, match=r"rows.jsonl:2 is no item of GSM8K: a line of more than 1000 bytes"
    ):
        task_named("gsm8k", path).items("test")


WRONG_ITEMS = [
    ("math500", [math500(1), math500(1)], r"rows.jsonl:2: test/algebra/1.json again, as at .*rows.jsonl:1"),
    ("humaneval", [humaneval(1) | {"entry_point": "a b"}] * 2, "is no name of a function"),
    ("humaneval", [humaneval(1) | {"test": 7}] * 2, r"rows.jsonl:1 is no item of HumanEval"),
    (
        "aime24",
        [aime(1), aime(2) | {"answer": "1/2"}],
        r"rows.jsonl:2 is no item of aime24: its answer is no integer",
    ),
    ("math", [math(1) | {"solution": "No box."}] * 2, "its solution has no boxed answer"),
    ("mbpp", [mbpp(11) | {"test_list": ["assert add(1 =="]}] * 2, r"rows.jsonl:1 is no item of MBPP"),
    ("mbpp", [mbpp(11) | {"test_list": ["assert other(1)"]}] * 2, "no test calls a function of its solution"),
]


@pytest.mark.parametrize(("name", "rows", "says"), WRONG_ITEMS)
def test_a_wrong_item_is_named(tmp_path, name, rows, says):
    with pytest.raises(ConfigError, match=says):
        task_named(name, written(tmp_path / "rows.jsonl", rows)).items("test" if name != "mbpp" else "all")


def test_equal_questions_keep_ids_of_their_own(tmp_path):
    path = written(tmp_path / "rows.jsonl", [gsm8k(1), gsm8k(2), gsm8k(1)])
    ids = sorted(item.id for item in task_named("gsm8k", path).items("test"))
    assert len(set(ids)) == 3
    assert sum(index.endswith("-2") for index in ids) == 1


def test_one_file_is_one_split(tmp_path):
    task = task_named("gsm8k", written(tmp_path / "gsm8k_test.jsonl", [gsm8k(1)]))
    assert len(list(task.items("test"))) == 1
    with pytest.raises(
        ConfigError, match=r"is one file, taken as `test`; for `train` name its files with \{split\}"
    ):
        task.items("train")
    written(tmp_path / "gsm8k_train.jsonl", [gsm8k(2), gsm8k(3)])
    both = task_named("gsm8k", tmp_path / "gsm8k_{split}.jsonl")
    assert [len(list(both.items(split))) for split in ("train", "test", "all")] == [2, 1, 3]


@pytest.mark.parametrize(
    ("name", "path", "says"),
    [
        ("gsm8k", "nowhere.jsonl", "nowhere.jsonl: no such file or folder"),
        ("gsm8k", ".", "has no file of GSM8K: neither .*gsm8k/main/test.json nor gsm8k_test.jsonl"),
        ("gsm8k", "no_{split}.jsonl", "no_test.jsonl: no such file"),
        ("builtin_math", ".", "task 'builtin_math' makes its own questions: it reads no data"),
        ("gsmk8", ".", "did you mean 'gsm8k'"),
    ],
)
def test_a_wrong_place_is_named(tmp_path, name, path, says):
    with pytest.raises(ConfigError, match=says):
        task_named(name, tmp_path / path).items("test")


def test_an_unknown_split_is_named(tmp_path):
    with pytest.raises(ConfigError, match="unknown split of aime24 'train'; there is: all, test"):
        task("aime24", tmp_path).items("train")


def test_every_task_says_how_it_is_divided():
    for name in TASKS:
        benchmark = task_named(name)
        assert "test" in benchmark.splits
        assert name.startswith("builtin") or benchmark.division


# -- asking ------------------------------------------------------------------------------------------------


def test_how_the_questions_are_put(tmp_path):
    said = {name: task(name, tmp_path, 1, 11) for name in ROWS}
    texts = {}
    for name, outcome in said.items():
        written(tmp_path / "rows.jsonl", [ROWS[name](11)])
        item = next(outcome.items("all" if "train" not in outcome.splits or outcome.share else "test", 1))
        (message,) = outcome.request(item).messages
        assert message.role == "user"
        texts[name] = message.content
    assert texts["gsm8k"].startswith(f"{MATHS}\n\nA shop has 1,000 pans")
    assert texts["humaneval"] == f"{CODE}\n\n{humaneval(11)['prompt']}"
    assert texts["mbpp"] == (
        f"{WRITE}\n\nWrite a function that adds 11.\nYour code should pass these tests:\n\n"
        "assert add(1) == 12\nassert add((0))==11"
    )


@pytest.mark.parametrize("name", PROFILES)
def test_the_instruction_and_tandems_words_go_together(tmp_path, name):
    """The mentor hears, after the words on the answer's form, that these are for the other model."""
    item = next(task("gsm8k", tmp_path, 1).items("test"))
    ask, words = Request(task("gsm8k", tmp_path, 1).request(item)), PROFILES[name]
    dialogue = Dialogue(ask, words)
    mentor, intern = dialogue.mentor_request(100), dialogue.intern_request("Goal: count pans")
    assert mentor.prompt.messages[-1] == ask.prompt.messages[-1]
    assert intern.prompt.messages[-1].content.startswith(ask.prompt.messages[-1].content)
    if name == "qwen-coder":  # says nothing of boxes and code blocks, which such models would write at once
        assert "no final answer" in mentor.prompt.messages[0].content
        assert "exactly the form" in intern.prompt.messages[0].content
    elif name != "builtin":
        assert "meant for the smaller model" in mentor.prompt.messages[0].content
        assert "\\boxed{}" in intern.prompt.messages[0].content
        assert intern.prompt.messages[-1].content.endswith("[Thinking Insights]\nGoal: count pans")


# -- grading -----------------------------------------------------------------------------------------------


def test_mathematics_is_graded_by_the_last_box_then_the_phrase_then_hashes(tmp_path):
    benchmark = task("gsm8k", tmp_path, 1)
    item = next(benchmark.items("test"))
    assert item.answer == "1,000"
    for text in (
        "\\boxed{1000}",
        "\\boxed{7} no, \\boxed{1,000}",
        "The answer is 1000. Done.",
        "So\n#### 1,000",
        "<think>\\boxed{7}</think>The answer is \\$1000.",
    ):
        assert benchmark.grade(item, text).correct, text
    for text in ("1000", "\\boxed{1000} or \\boxed{7}", "<think>\\boxed{1000}</think>", "", "\\boxed{}"):
        grade = benchmark.grade(item, text)
        assert not grade.correct
        assert grade.reason


def test_a_stated_answer_leaks_and_an_equal_number_does_not(tmp_path):
    benchmark = task("gsm8k", tmp_path, 1)
    item = next(benchmark.items("test"))
    assert benchmark.leaks(item, "Action: so the answer is 1000.")
    assert benchmark.leaks(item, "\\boxed{1000}")
    assert benchmark.leaks(item, "Goal: the answer is 1000.\nAction: 2 * 3 = 6, so \\boxed{6}")
    assert not benchmark.leaks(item, "Retrieval: 1000 pans, 0 more")
    code = task("humaneval", tmp_path, 1)
    asked = next(code.items("all"))
    assert code.leaks(asked, "Action:\n```python\ndef more(x):\n    return x + 0\n```")
    assert not code.leaks(asked, "Action:\n```python\ndef more(x):\n    return x + 1\n```")
    assert not code.leaks(asked, "Action: add 0 to x")


def solved(name, number):
    """Ways to write the right program."""
    body = f"    return x + {number}\n"
    if name in ("mbpp", "mbpp_plus"):
        return [f"```python\ndef add(x):\n{body}```", f"def add(x):\n{body}"]
    return [
        f"```python\ndef more(x):\n{body}```",
        body,
        f"```python\nreturn x + {number}\n```",
        f"```python\ndef more(x):\n    return x + {number} + math.floor(0.5)\n```"
        if name == "humaneval"
        else f"```python\n{body}```",
    ]


@pytest.mark.parametrize("name", ["humaneval", "humaneval_plus", "mbpp", "mbpp_plus"])
def test_right_programs_pass_and_wrong_ones_fail(tmp_path, name):
    benchmark = task(name, tmp_path, 1, 17)
    item = next(benchmark.items("all"))
    for text in solved(name, 17):
        assert benchmark.grade(item, text).reason == "", text
    for text in (*solved(name, 18), "", "I cannot."):
        assert not benchmark.grade(item, text).correct, text


def test_more_tests_find_what_the_first_miss(tmp_path):
    benchmark = task("humaneval_plus", tmp_path, 1, 17)
    item = next(benchmark.items("all"))
    assert not benchmark.grade(item, "    return x + 17 if x > 0 else 0\n").correct
    assert benchmark.grade(item, "    return 17 + x\n").correct


def test_floats_are_compared_to_a_tolerance(tmp_path):
    rows = [evalplus(1, ((0.1,),), ((0.2,),)), evalplus(2, ((1,),), ())]
    benchmark = task_named("humaneval_plus", written(tmp_path / "rows.jsonl", rows))
    items = {item.id: item for item in benchmark.items("all")}
    assert benchmark.grade(items["HumanEval/1"], "    return x + 1 + 1e-9\n").correct
    assert not benchmark.grade(items["HumanEval/1"], "    return x + 1 + 1e-3\n").correct
    assert not benchmark.grade(items["HumanEval/2"], "    return x + 2 + 1e-9\n").correct


def special(entry_point, solution, inputs, atol=0):
    return {
        "task_id": "HumanEval/1",
        "entry_point": entry_point,
        "atol": atol,
        "prompt": "# code\n",
        "base_input": inputs,
        "plus_input": [],
        "canonical_solution": f"def {entry_point}{solution}\n",
    }


@pytest.mark.parametrize(
    ("entry_point", "solution", "inputs", "right", "wrong"),
    [
        ("find_zero", "(xs): return -0.5", [[[1, 2]]], "(xs): return -0.50000001", "(xs): return 0.5"),
        ("similar_elements", "(a): return (1, 2)", [[[1]]], "(a): return [2, 1, 1]", "(a): return [2]"),
        ("check_str", "(a): return 'match'", [["a"]], "(a): return True", "(a): return None"),
        ("sum_div", "(n): return 5", [[4]], "(n): return 0", "(n): return 4"),
        ("surface_Area", "(b, h): return 33", [[3, 4]], "(b, h): return 35", "(b, h): return 36"),
        ("digit_distance_nums", "(a, b): return 7", [[1, 23]], "(a, b): return 4", "(a, b): return 5"),
    ],
)
def test_the_functions_that_evalplus_compares_by_rules_of_their_own(
    tmp_path, entry_point, solution, inputs, right, wrong
):
    rows = [special(entry_point, solution, inputs, 1e-6)]
    benchmark = task_named("humaneval_plus", written(tmp_path / "rows.jsonl", rows))
    item = next(benchmark.items("all"))
    assert benchmark.grade(item, f"def {entry_point}{right}").reason == ""
    assert not benchmark.grade(item, f"def {entry_point}{wrong}").correct


def test_evalplus_is_asked_where_it_is_installed(tmp_path, monkeypatch):
    package, folder = types.ModuleType("evalplus"), types.ModuleType("evalplus.data")
    humaneval, mbpp = types.ModuleType("evalplus.data.humaneval"), types.ModuleType("evalplus.data.mbpp")
    row = {**evalplus(2), "task_id": "Mbpp/20", "assertion": "assert more((1,)) == 3", "base_input": [[[1]]]}
    row["canonical_solution"], row["plus_input"] = "    return x[0] + 2\n", [[[5]]]
    humaneval.get_human_eval_plus = lambda: {"HumanEval/3": evalplus(3)}
    mbpp.get_mbpp_plus = lambda: {"Mbpp/20": row}
    mbpp.mbpp_deserialize_inputs = lambda identity, inputs: [
        [tuple(row) for row in given] for given in inputs
    ]
    folder.humaneval, folder.mbpp, package.data = humaneval, mbpp, folder
    for module in (package, folder, humaneval, mbpp):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.chdir(tmp_path)
    first = task_named("humaneval_plus")
    (item,) = first.items("all")
    assert (item.id, first.about("all")["source"]) == ("HumanEval/3", "evalplus")
    assert first.grade(item, "    return x + 3\n").correct
    second = task_named("mbpp_plus")
    (item,) = second.items("test")
    assert item.id == "Mbpp/20"
    assert second.grade(item, "def more(x):\n    return {(1,): 3, (5,): 7}[x]\n").reason == ""
    assert not second.grade(item, "def more(x):\n    return {(1,): 3, (5,): 8}[x]\n").correct
    base = task_named("mbpp", written(tmp_path / "rows.jsonl", [row]))
    assert base.grade(next(base.items("test")), "def more(x):\n    return {(1,): 3}[x]\n").correct

    def broken():
        raise OSError("no\nroute")

    humaneval.get_human_eval_plus = broken
    with pytest.raises(ConfigError, match=r"evalplus cannot read its data \(no route\); use --data FILE"):
        first.items("all")


PLUS = {
    "task_id": "Mbpp/20",
    "prompt": '"""\nHalve a number of a pair. See https://example.org/x\nassert half((1, 2), 0) == 0.5\n"""\n',
    "entry_point": "half",
    "canonical_solution": "def half(pair, at):\n    return pair[at] / 2\n",
    "atol": 0,
    "base_input": [[[1, 2], 0]],
    "plus_input": [[[3, 5], 1], [[8, 8], 0]],
    "assertion": "assert half((1, 2), 0) == 0.5",
}


def test_evalplus_own_rows_of_mbpp_are_read_without_its_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "evalplus", None)
    benchmark = task_named("mbpp_plus", written(tmp_path / "rows.jsonl", [PLUS]))
    (item,) = benchmark.items("test")
    assert "https" not in item.text
    right = "def half(pair, at):\n    assert type(pair) is tuple\n    return pair[at] / 2\n"
    for text, base, plus in (
        (right, True, True),
        ("def half(pair, at):\n    return 4 if pair[0] == 8 else pair[at] / 2\n", True, True),  # 4 is 4.0
        ("def half(pair, at):\n    return pair[0] / 2\n", True, False),
        ("def half(pair, at):\n    return 7\n", False, False),
    ):
        grade = benchmark.grade(item, text)
        assert grade.suites == {"base": base, "plus": plus}, grade
        assert grade.correct == plus


def test_the_functions_that_evalplus_took_out_are_in_its_first_version_only(tmp_path):
    rows = [PLUS, PLUS | {"task_id": "Mbpp/83"}, PLUS | {"task_id": "Mbpp/602"}]
    benchmark = task_named("mbpp_plus", written(tmp_path / "rows.jsonl", rows))
    assert sorted(item.id for item in benchmark.items("all")) == ["Mbpp/20", "Mbpp/602"]
    assert [item.id for item in benchmark.items("test")] == ["Mbpp/20"]
    assert len(list(benchmark.items("v0.1.0"))) == 3


def test_a_match_counts_as_found(tmp_path):
    row = PLUS | {
        "entry_point": "check_str",
        "canonical_solution": "import re\ndef check_str(text):\n    return re.search('^a', text)\n",
        "base_input": [["ab"]],
        "plus_input": [["ba"]],
        "assertion": "assert check_str('ab')",
    }
    benchmark = task_named("mbpp_plus", written(tmp_path / "rows.jsonl", [row]))
    (item,) = benchmark.items("test")
    for result, right in (("re.match('a', text)", True), ("text[0] == 'a'", True), ("'found'", False)):
        text = f"import re\ndef check_str(text):\n    return {result}\n"
        assert benchmark.grade(item, text).correct == right, text


@pytest.mark.parametrize(
    ("assertion", "given", "expected"),
    [
        ("f((1, 2), [3])", [[5], [6, 7]], [(5,), [6, 7]]),
        ("f([(1, 'a')])", [[[2, "b"], []]], [[(2, "b"), ()]]),
        ("f((1, (2, 3)))", [[4, [5, [6]]]], [(4, (5, (6,)))]),
        ("f([{1, 2}, {}])", [[[3], []]], [[{3}, {}]]),
        ("f({'a': (1,)})", [{"b": [2, 3]}], [{"b": (2, 3)}]),
        ("f(1, 'x')", ["1j", "1j"], [1j, "1j"]),
        ("f(g(1))", [[1]], [[1]]),
    ],
)
def test_arguments_get_the_types_of_the_assertions(assertion, given, expected):
    item = {
        "entry_point": "f",
        "assertion": f"assert {assertion} == 0",
        "base_input": [given],
        "plus_input": [],
    }
    assert mbpp_inputs.restored(item, [given]) == [expected]


def test_answers_in_another_form_than_asked_are_told(tmp_path):
    benchmark = task("gsm8k", tmp_path, 1)
    item = next(benchmark.items("test"))
    assert benchmark.in_form(item, "So \\boxed{7}.")
    assert not benchmark.in_form(item, "The answer is 1000.")
    assert not benchmark.in_form(item, "<think>\\boxed{7}</think> print(7)")
    code = task("humaneval", tmp_path, 1)
    asked = next(code.items("all"))
    assert code.in_form(asked, "Here:\n```python\ndef more(x):\n    return x\n```")
    assert not code.in_form(asked, "    return x + 0")
    assert not code.in_form(asked, "```python\ndef less(x):\n    return x\n```")


# -- adding one --------------------------------------------------------------------------------------------

NEW = """
from dataclasses import dataclass
from ensemblehub.lab.tasks.public import MATHS, Mathematics
from ensemblehub.lab.tasks.source import Source


@dataclass(frozen=True)
class Sums(Mathematics):
    name = "sums"
    source = Source(
        title="Sums 24",
        hub="someone/sums",
        files="Sums24/test.json",
        sizes={"test": 2},
        instruction=MATHS,
        convert=lambda item: {"input": item["sum"], "output": "", "answer": item["total"]}
        | {"output": f"\\\\boxed{{{item['total']}}}"},
    )
    splits = ("test", "all")
    parts = {"test": "test"}
    division = "both, test only"
"""


def test_a_new_benchmark_is_a_file_and_a_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "sums_of_24.py").write_text(NEW)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(TASKS, "sums", "sums_of_24:Sums")
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "x.jsonl", [{"sum": "20 + 4?", "total": "24"}, {"sum": "1 + 1?", "total": "2"}])
    main(["data", "fetch", "Sums24", "--from", "x.jsonl"])
    assert capsys.readouterr().out == "data/Sums24/test.json: 2 items\n"
    task = task_named("sums")
    items = {item.text: item for item in task.items("test")}
    assert task.grade(items["20 + 4?"], "It is \\boxed{24.0}.").correct
    assert task.request(items["1 + 1?"]).messages[0].content == f"{MATHS}\n\n1 + 1?"
    with pytest.raises(ConfigError, match="data fetch sums"):
        list(read_items(tmp_path / "elsewhere" / "Sums24" / "test.json"))
    with pytest.raises(ConfigError, match="did you mean 'sums'"):
        task_named("sum")
