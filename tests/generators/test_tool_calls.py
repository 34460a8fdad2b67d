"""Tool calls are found in what a model writes, however it is cut into parts."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemblehub.generators.structure.calls import FORMATS, CallReader, JSONObject, format_of

ARGUMENTS = ('{"a": "}\\n</tool_call> \\" {"}', "{}", '{ "b": {"c": [1, {}]} }')
WRITTEN = {
    "hermes": "I look.\n"
    + "\n".join(f'<tool_call>\n{{"name": "add", "arguments": {part}}}\n</tool_call>' for part in ARGUMENTS),
    "llama3_json": "; ".join(f'{{"name": "add", "parameters": {part}}}' for part in ARGUMENTS),
    "mistral": "I look.\n[TOOL_CALLS] ["
    + ", ".join(f'{{"name": "add", "arguments": {part}}}' for part in ARGUMENTS)
    + "]",
    "mistral with [ARGS]": "I look.\n" + "".join(f"[TOOL_CALLS]add[ARGS]{part}" for part in ARGUMENTS),
}


def form_of(name):
    return format_of(name.partition(" ")[0], {"[ARGS]"} if "ARGS" in name else set())


def read(name, parts, finished=True):
    reader = CallReader(form_of(name), ["add", "add_more"])
    said, calls = "", []
    for at, part in enumerate(parts):
        text, found = reader.read(part, finished and at == len(parts) - 1)
        said += text
        for call in found:
            if "id" in call:
                assert call["index"] == len(calls)
                calls.append([call["function"]["name"], ""])
            calls[call["index"]][1] += call["function"]["arguments"]
    return said, calls


@pytest.mark.parametrize("name", WRITTEN)
@given(data=st.data())
def test_calls_are_found_in_any_parts(name, data):
    text = WRITTEN[name]
    cuts = sorted(data.draw(st.sets(st.integers(1, len(text) - 1))))
    parts = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    said, calls = read(name, parts)
    assert said == ("" if name == "llama3_json" else "I look.\n")
    assert calls == [["add", part] for part in ARGUMENTS]


@pytest.mark.parametrize("name", WRITTEN)
@given(data=st.data())
def test_text_that_is_no_call_is_text_at_once_but_for_what_may_begin_one(name, data):
    text = data.draw(
        st.sampled_from(["It is <tool 4", "so [TOOL", "a {b} c", " x", "<tool_call", "", '{"name": 1}'])
    )
    cut = data.draw(st.integers(0, len(text)))
    assert read(name, [text[:cut], text[cut:]]) == (text, [])
    early, _ = CallReader(form_of(name), ["add"]).read("It is plain", finished=False)
    assert early == "It is plain"


def test_white_space_may_differ_and_a_cut_call_is_what_there_is():
    loose = '<tool_call> {"name":"add_more",\n"arguments":{"a":1}}</tool_call>'
    assert read("hermes", [loose]) == ("", [["add_more", '{"a":1}']])
    assert read("mistral", ['[TOOL_CALLS][{"name": "add", "arguments": {"a"']) == ("", [["add", '{"a"']])


@given(
    st.recursive(
        st.text() | st.integers() | st.none(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_the_end_of_an_object_is_found(value):
    text = json.dumps({"x": value})
    assert JSONObject().end(text + "} tail}") == len(text)
    parts = JSONObject()
    assert [at for at, letter in enumerate(text) if parts.end(letter)] == [len(text) - 1]


def test_every_format_has_a_name_of_vllms():
    assert set(FORMATS) == {"hermes", "llama3_json", "mistral"}
