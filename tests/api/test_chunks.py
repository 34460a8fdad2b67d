"""The chunks of a stream: none is empty between the first and the last, and nothing is lost for it."""

import json
from types import SimpleNamespace

import pytest

from ensemblehub.api.chunks import AnswerChunks, logprobs
from ensemblehub.api.job import AnswerRecord
from ensemblehub.config.sections import Generation
from ensemblehub.generators.text.stops import StopFilter
from ensemblehub.schema import Alternative, Choice, Piece, Request, Scored, Text, Token, Verdict

VERDICT = Verdict("low", 2, 0.25, 0.5, False)
CHOICE = Choice("models", ("a",), (), "because")
CONFIG = """
model_specs:
  - {name: big, engine: echo, replies: {"": "Goal: add. Planning: add. Retrieval: none. Action: add."}, parameters: 9}
  - {name: small, engine: echo, replies: {"": "It is 4. No more."}, parameters: 1}
  - {name: frail, engine: echo, replies: {"": "One two three four."}, fail_after: 3, parameters: 11}
ensemble:
  models: [big, small]
  output_aggregation_method: tandem
  output_aggregation_params: {levels: {low: 2, medium: 4, high: 90}, judge: "fixed:high", start_with_intern: true}
ensembles:
  turns: {models: [big, small], output_aggregation_method: loop}
  votes: {models: [big, small], output_aggregation_method: vote}
  dropped: {models: [frail, small], output_aggregation_method: loop, on_error: drop}
  marked: {models: [big, small], output_aggregation_method: tandem, generation: {extract_after: ["is"]},
    output_aggregation_params: {levels: {low: 2, high: 4}, judge: "fixed:high"}}
  broken: {models: [frail, small], output_aggregation_method: tandem,
    output_aggregation_params: {mentor: frail, intern: small, levels: {low: 2, high: 9}, judge: "fixed:high"}}
"""


def answer(alternatives=None, marks=()):
    served = SimpleNamespace(ensemble=SimpleNamespace(engines=()))
    return AnswerRecord(0, Request(Text("?")), served, 1, Generation(extract_after=list(marks)), alternatives)


def piece(text, purpose="answer", engine="a", finish=None, tokens=None):
    return Piece(text, engine, purpose, (Token(text, None, -1.0),) if tokens is None else tokens, finish)


def writer(record, kind="chat"):
    """The chunks of an answer that is opened already."""
    chunks = AnswerChunks(kind, record)
    chunks._begun = True
    return chunks


def folded(chunks, events):
    """The chunks of all events."""
    found = []
    for event in events:
        chunks.answer.add(event)
        found += chunks.parts(event)
    return found


def texts(chunks, key="content"):
    return [chunk["choices"][0]["delta"].get(key) for chunk in chunks]


def test_verdicts_and_choices_travel_with_the_next_text():
    events = [
        VERDICT,
        piece("Goal", "insight"),
        piece(" add", "insight"),
        VERDICT,
        CHOICE,
        CHOICE,
        piece("It"),
        piece(" is", finish="stop"),
    ]
    found = folded(writer(answer()), events)
    assert texts(found, "reasoning_content") == ["Goal", " add", None, None]
    assert texts(found) == [None, None, "It", " is"]
    told = [
        (len(chunk["ensemble"].get("verdicts", [])), len(chunk["ensemble"].get("choices", [])))
        for chunk in found
    ]
    assert told == [(1, 0), (0, 0), (1, 2), (0, 0)]
    assert found[0]["ensemble"]["verdicts"] == [
        {
            "level": "low",
            "mentor_tokens": 2,
            "probability": 0.25,
            "threshold": 0.5,
            "sufficient": False,
            "criterion": "",
        }
    ]
    assert {"flops", "cold_flops"} <= found[0]["ensemble"].keys()
    assert [chunk["ensemble"]["purpose"] for chunk in found] == ["insight", "insight", "answer", "answer"]


def test_what_comes_after_the_last_text_is_told_at_the_end():
    chunks = writer(answer())
    assert len(folded(chunks, [piece("all", finish="stop"), CHOICE])) == 1
    (last,) = chunks.end("length")
    assert [choice["reason"] for choice in last["ensemble"]["choices"]] == ["because"]
    assert last["choices"][0]["finish_reason"] is None  # which was said before
    assert list(chunks.end("length")) == []  # once


def test_an_answer_without_a_reason_ends_with_one():
    chunks = writer(answer())
    folded(chunks, [piece("all")])
    (last,) = chunks.end("length")
    assert (last["choices"][0]["finish_reason"], last["ensemble"]) == ("length", {})


def test_tokens_that_complete_no_character_come_with_the_one_that_does():
    found = folded(
        writer(answer(alternatives=0)),
        [piece("a"), piece(""), piece(""), piece("é"), piece("", finish="stop")],
    )
    assert texts(found) == ["a", "é", None]
    assert [chunk["ensemble"]["tokens"] for chunk in found] == [1, 3, 1]
    assert [len(chunk["choices"][0]["logprobs"]["content"]) for chunk in found] == [1, 3, 1]
    assert found[-1]["choices"][0]["finish_reason"] == "stop"


def test_an_insight_that_ends_without_text_leaves_no_empty_chunk():
    events = [piece("so", "insight"), piece("", "insight"), VERDICT, piece("4", finish="stop")]
    found = folded(writer(answer(alternatives=0)), events)
    assert texts(found, "reasoning_content") == ["so", None]
    assert [len(chunk["choices"][0]["logprobs"]["content"]) for chunk in found if texts([chunk])[0]] == [1]
    assert found[-1]["ensemble"]["verdicts"]


def test_an_answer_behind_a_mark_comes_at_once_with_all_it_took():
    call = {"index": 0, "function": {"name": "add"}}
    called = Piece("", "a", "answer", (Token(""),), None, tool_calls=(call,))
    found = folded(
        writer(answer(marks=["=>"])),
        [piece("x"), called, piece(" => "), piece("y"), piece("", finish="stop")],
    )
    (last,) = found
    assert last["choices"][0]["delta"] == {"content": "y", "tool_calls": [call]}
    assert last["ensemble"]["tokens"] == 5


def test_a_scored_prompt_brings_what_was_judged_before_it():
    record = answer()
    record.echoed = "two words"
    found = folded(writer(record, "text"), [VERDICT, Scored(())])
    assert found[0]["choices"][0]["text"] == "two words"
    assert len(found[0]["ensemble"]["verdicts"]) == 1


PARTS = Token(
    "", 3, -0.5, None, (Alternative("\ufffd", -0.5, 3, b"\xf0\x9f"), Alternative("a", -1.0, 4)), b"\xf0\x9f"
)
WHOLE = Token("\U0001f600", 5, -0.25, None, (Alternative("\ufffd", -0.25, 5, b"\x98\x80"),), b"\x98\x80")


def test_logprobs_of_a_chat_have_each_tokens_own_bytes():
    first, second = logprobs("chat", answer(2), [PARTS, WHOLE])["content"]
    assert [bytes(entry["bytes"]) for entry in first["top_logprobs"]] == [b"\xf0\x9f", b"a"]
    assert (first["token"], second["token"]) == ("", "\U0001f600")
    assert bytes(first["bytes"] + second["bytes"]).decode() == "\U0001f600"


def test_logprobs_of_a_completion_name_parts_of_characters_by_their_bytes():
    found = logprobs("text", answer(2), [PARTS, WHOLE])
    assert found["tokens"] == ["bytes:\\xf0\\x9f", "bytes:\\x98\\x80"]
    assert found["top_logprobs"] == [{"bytes:\\xf0\\x9f": -0.5, "a": -1.0}, {"bytes:\\x98\\x80": -0.25}]
    record = answer(2)
    record.as_ids = True
    assert logprobs("text", record, [PARTS])["tokens"] == ["token_id:3"]


@pytest.mark.parametrize(
    ("stop", "texts", "parts"),
    [
        ("\U0001f600", ["a", "", ""], [None, None, None]),
        ("b", ["a", "", "\U0001f600"], [None, b"\xf0\x9f", b"\x98\x80"]),
    ],
)
def test_what_a_stop_string_cuts_off_has_no_bytes(stop, texts, parts):
    gate = StopFilter([stop])
    tokens = [
        released
        for token in (Token("a"), PARTS, WHOLE, Token("b"))
        if not gate.stopped
        for released in gate.push(token)
    ]
    assert [token.text for token in tokens][:3] == texts
    assert [token.part for token in tokens][:3] == parts


@pytest.fixture(scope="module")
def server(serve):
    return serve(CONFIG)


def streamed(server, path, body):
    text = server.post(path, {**body, "stream": True}).text
    return [
        json.loads(line.removeprefix("data: ")) for line in text.split("\n\n") if line.startswith("data: {")
    ]


def chunks(server, model="ensemble"):
    body = {"model": model, "messages": [{"role": "user", "content": "2 + 2?"}]}
    return streamed(server, "/v1/chat/completions", body)


@pytest.mark.parametrize("model", ["ensemble", "turns", "votes", "dropped", "marked", "big"])
def test_no_chunk_in_mid_stream_is_empty_and_a_whole_reply_says_the_same(server, model):
    found = chunks(server, model=model)
    whole = server.post(
        "/v1/chat/completions", {"model": model, "messages": [{"role": "user", "content": "2 + 2?"}]}
    )
    (choice,) = whole.json()["choices"]
    first, *rest = (chunk["choices"][0] for chunk in found)
    assert first["delta"] == {"role": "assistant", "content": ""}
    assert [part["finish_reason"] for part in rest if part["finish_reason"]] == ["stop"]
    assert all(any(part["delta"].values()) for part in rest if not part["finish_reason"])
    assert "".join(part["delta"].get("content") or "" for part in rest) == choice["message"]["content"]
    for what in ("verdicts", "choices"):
        told = [event for part in found for event in part["ensemble"].get(what, [])]
        assert told == choice["metadata"][what]


def test_a_thought_is_one_piece_for_clients_that_end_it_at_anything_else(server):
    kinds = [
        "thought" if "reasoning_content" in chunk["choices"][0]["delta"] else "other"
        for chunk in chunks(server)
    ]
    thoughts = kinds.count("thought")
    assert kinds == ["other"] + ["thought"] * thoughts + ["other"] * (len(kinds) - thoughts - 1)
    assert thoughts == 8


def test_raw_prompts_are_streamed_without_empty_chunks_too(server):
    first, *found, last = streamed(server, "/v1/completions", {"model": "turns", "prompt": "2 + 2?"})
    assert first["choices"][0]["text"] == ""
    assert len(found) > 3
    assert all(chunk["choices"][0]["text"] for chunk in found)
    assert last["choices"][0]["finish_reason"] == "stop"


def test_what_was_judged_before_a_failure_is_told(server):
    *found, error = chunks(server, model="broken")
    assert "frail failed" in error["error"]["message"]
    told = [verdict["level"] for part in found for verdict in part["ensemble"].get("verdicts", [])]
    assert told == ["low"]
