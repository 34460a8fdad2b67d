import gzip
import json
import tracemalloc
from itertools import islice

import pytest

from ensemblehub import cli, data_files
from ensemblehub.data import BadExample, Example, plain, read_items
from ensemblehub.data_files import located
from ensemblehub.errors import ConfigError
from ensemblehub.schema import Message


def items(tmp_path, text, name="items.json"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return list(read_items(path))


def item_of(tmp_path, value):
    (item,) = items(tmp_path, json.dumps([value]))
    return item


@pytest.mark.parametrize(
    ("value", "text", "label"),
    [
        ("What is 2 + 2?", "What is 2 + 2?", None),
        ({"prompt": "What is 2 + 2?"}, "What is 2 + 2?", None),
        ({"instruction": "Add.", "input": "2 + 2", "output": "\\boxed{4}"}, "Add.\n\n2 + 2", "\\boxed{4}"),
        ({"instruction": "Add 2 and 2.", "input": ""}, "Add 2 and 2.", None),
        ({"question": "2 + 2?", "answer": "It is\n#### 4"}, "2 + 2?", "It is\n#### 4"),
        ({"ID": "2024-I-4", "Problem": "2 + 2?", "Solution": "Add.", "Answer": 4}, "2 + 2?", "4"),
        ({"problem": "2 + 2?", "solution": "Add: 4", "answer": "4", "level": 2}, "2 + 2?", "4"),
        (
            {"task_id": "HumanEval/0", "prompt": "def f():", "canonical_solution": " pass"},
            "def f():",
            " pass",
        ),
        (
            {"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]},
            "2 + 2?",
            "4",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "2 + 2?"}]}]}, "2 + 2?", None),
    ],
)
def test_every_form_asks_the_same(tmp_path, value, text, label):
    item = item_of(tmp_path, value)
    assert isinstance(item, Example), item
    assert plain(item.prompt) == text
    assert item.label == label


def test_a_conversation_stays_one(tmp_path):
    turns = [("system", "Be brief."), ("user", "2 + 2?"), ("assistant", "4"), ("user", "And 3 + 3?")]
    turns = [{"role": role, "content": content} for role, content in turns]
    item = item_of(tmp_path, {"messages": turns})
    assert [message.role for message in item.prompt.messages] == ["system", "user", "assistant", "user"]
    assert plain(item.prompt) == turns
    assert item_of(tmp_path, {"instruction": "Add.", "system": "Be brief."}).prompt.messages[0] == Message(
        "system", "Be brief."
    )


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (None, "not null"),
        (7, "not 7"),
        ([], "not []"),
        ({}, "not {}"),
        ({"foo": 1}, "has none of messages"),
        ("  ", "empty"),
        ({"instruction": "", "input": ""}, "empty"),
        ({"instruction": 3}, "must be strings"),
        ({"prompt": {"text": "x"}}, "not a string"),
        ({"messages": "hello"}, "not a list"),
        ({"messages": []}, "do not end"),
        ({"messages": [{"role": "assistant", "content": "4"}]}, "do not end"),
        ({"messages": [{"role": "tool", "content": "4"}]}, "role"),
        ({"messages": ["hello"]}, "role"),
        ({"messages": [{"role": "user", "content": None}]}, "not text"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "image_url"),
        ({"instruction": "Look.", "images": ["a.png"]}, "images"),
        ({"prompt": "half \ud83d"}, "surrogate"),
    ],
)
def test_a_bad_item_says_why_and_does_not_stop_the_rest(tmp_path, value, says):
    first, bad, last = items(tmp_path, json.dumps(["one", value, "three"]))
    assert isinstance(bad, BadExample)
    assert bad.number == 2
    assert says in bad.reason
    assert (plain(first.prompt), plain(last.prompt), last.id) == ("one", "three", "3")


def test_jsonl_with_a_broken_line_and_odd_separators(tmp_path):
    text = '{"id": "x", "prompt": "a\u2028b"}\n\n{"prompt": \n"c"\r\n' + "[" * 100_000
    first, broken, third, deep = items(tmp_path, text, "items.jsonl")
    assert (first.id, plain(first.prompt)) == ("x", "a\u2028b")
    assert "not JSON" in broken.reason
    assert plain(third.prompt) == "c"
    assert isinstance(deep, BadExample)


def test_jsonl_is_known_by_its_content(tmp_path):
    assert [
        plain(item.prompt) for item in items(tmp_path, '{"prompt": "a"}\n{"prompt": "b"}\n', "x.json")
    ] == [
        "a",
        "b",
    ]


def test_objects_and_containers_and_gzip_and_a_byte_order_mark(tmp_path):
    assert plain(item_of(tmp_path, "x").prompt) == "x"
    (single,) = items(tmp_path, '{"prompt": "a"}')
    assert plain(single.prompt) == "a"
    assert len(items(tmp_path, '{"version": 1, "data": ["a", "b"]}')) == 2
    assert len(items(tmp_path, gzip.compress(b'"a"\n"b"\n', mtime=0), "x.jsonl.gz")) == 2
    assert len(items(tmp_path, b"\xef\xbb\xbf" + b'["a"]')) == 1


def test_items_that_ask_the_same_have_keys_of_their_own_and_keys_follow_what_is_asked(tmp_path):
    first, second, other = items(tmp_path, '["a", "b", {"prompt": "a"}]')
    assert len({first.key, second.key, other.key}) == 3
    moved, labelled, again = items(tmp_path, '["b", {"question": "a", "answer": 3, "id": "x"}, "a"]')
    assert (moved.key, labelled.key, again.key) == (second.key, first.key, other.key)
    system, plain_one = items(tmp_path, '[{"instruction": "a", "system": "Be brief."}, "a"]')
    assert (system.key != plain_one.key, plain_one.key) == (True, first.key)


@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz", "x.json", "pretty.json"])
def test_a_file_is_read_only_as_far_as_its_items_are_asked_for(tmp_path, name):
    path = tmp_path / name
    values = [{"prompt": f"question {number} {'x' * 1000}"} for number in range(5000)]
    text = {
        "x.json": json.dumps(values)[:-1],
        "pretty.json": json.dumps(values, indent=1)[:-1],
    }.get(name) or "".join(json.dumps(value) + "\n" for value in values)
    data = text.encode() + b", \xff not JSON"
    path.write_bytes(gzip.compress(data, 1) if name.endswith(".gz") else data)
    tracemalloc.start()
    found = list(islice(read_items(path), 3))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [item.number for item in found] == [1, 2, 3]
    assert peak < 4 * len(data) if name == "x.json" else peak < 5_000_000
    if name.endswith(".json"):
        with pytest.raises(ConfigError, match=name):
            list(read_items(path))
    else:
        assert [item.number for item in read_items(path) if isinstance(item, BadExample)] == [5001]


def test_lists_that_come_in_parts(tmp_path, monkeypatch):
    values = [12345, "a b", {"c": [1.5, "]"]}, [], "é" * 50, None, 7]
    for part in (1, 2, 3, 7, 64):
        monkeypatch.setattr(data_files, "_PART", part)
        for text in (
            json.dumps(values, indent=2, ensure_ascii=False),
            " \n[\n " + json.dumps(values)[1:] + " \n",
        ):
            path = tmp_path / "parts.json"
            path.write_text(text)
            assert [value for _, value in located(path)] == values


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'["a",]', ":1: not JSON"),
        (b'["a"\n"b"]', ":2: not JSON"),
        (b'["a"] ["b"]', ":1: not JSON: Extra data"),
        (b'["a",\n"b"', "not JSON"),
        (b'["a",\n"\xff"]', "UTF-8"),
        (b'["a", ' + b"[" * 100_000 + b"]" * 100_001, "deep"),
    ],
)
def test_a_list_that_ends_badly_is_one_line(tmp_path, content, says):
    with pytest.raises(ConfigError, match=says) as caught:
        items(tmp_path, content)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["x.jsonl", "x.json"])
def test_a_line_that_cannot_be_read_leaves_the_others(tmp_path, name):
    deep = '{"a":' * 100_000 + "1" + "}" * 100_000
    lines = [deep.encode(), b'{"prompt": "b"}', b'{"prompt": "\xff"}', b'{"prompt": "c"}']
    found = items(tmp_path, b"\n".join(lines), name)
    assert [isinstance(item, BadExample) for item in found] == [True, False, True, False]
    assert ("deep" in found[0].reason, "UTF-8" in found[2].reason) == (True, True)


def test_jsonl_whose_first_line_is_broken_and_a_document_called_jsonl(tmp_path):
    broken, good = items(tmp_path, '{"prompt": "a", \n{"prompt": "b"}\n', "x.jsonl")
    assert ("not JSON" in broken.reason, plain(good.prompt)) == (True, "b")
    assert [plain(item.prompt) for item in items(tmp_path, '["a", "b"]', "y.jsonl")] == ["a", "b"]
    assert [plain(item.prompt) for item in items(tmp_path, '[\n"a",\n"b"\n]', "z.jsonl")] == ["a", "b"]


def test_an_overlong_line_is_said_and_the_next_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(data_files, "LONGEST_LINE", 100)
    monkeypatch.setattr(data_files, "_PART", 10)
    first, long, last = items(tmp_path, '"a"\n"' + "x" * 500 + '"\n"b"\n', "x.jsonl")
    assert (plain(first.prompt), "more than 100 bytes" in long.reason, plain(last.prompt)) == ("a", True, "b")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "empty"),
        (b" \n ", "empty"),
        (b"\xff\xfe\x00a", "UTF-8"),
        (b"hello", "not JSON"),
        (b'[\n{"prompt": "a"},\n{"prompt" "b"}\n]', ":3: not JSON"),
        (b"[" * 100_000, "deep"),
        (gzip.compress(b"[1, 2]", mtime=0)[:-9], "end-of-stream"),
    ],
)
def test_an_unreadable_file_is_one_clear_line(tmp_path, content, says):
    with pytest.raises(ConfigError) as caught:
        items(tmp_path, content)
    assert says in str(caught.value)
    assert "items.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_and_a_missing_file(tmp_path):
    cli.add_plugins()  # the laboratory's knows how to fetch benchmarks
    with pytest.raises(ConfigError, match="directory"):
        list(read_items(tmp_path))
    with pytest.raises(ConfigError, match="run `ensemblehub data fetch aime24`"):
        list(read_items(tmp_path / "data" / "AIME2024" / "aime" / "aime24.json"))
    with pytest.raises(ConfigError, match="data fetch NAME"):
        list(read_items(tmp_path / "other.json"))


def test_a_huge_line(tmp_path):
    (item,) = items(tmp_path, json.dumps({"prompt": "x" * 20_000_000}), "x.jsonl")
    assert len(plain(item.prompt)) == 20_000_000
