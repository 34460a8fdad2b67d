"""What clients send besides the plain question: accepted where it changes no answer, else refused by name."""

import json
import os
from pathlib import Path

import httpx2 as httpx
import pytest

from ensemblehub.api.fields import FOREIGN, Hints

CLIENTS = Path(__file__).parents[1] / "clients"
RECORDED = [json.loads(line) for line in Path(__file__).with_name("recorded.jsonl").read_text().splitlines()]
CONFIG = """
model_specs:
  - {name: big, engine: echo, replies: {"": "Goal: add. Planning: add. Retrieval: none."}, parameters: 9, context: 300}
  - {name: small, engine: echo, replies: {"Sure": "Yes, 4.", "": "It is 4."}, parameters: 1, context: 300,
     price: {prompt: 1.0, completion: 2.0}}
  - {name: caller, engine: "caller:CallingEngine", replies: {"": "The tool says 4."}, parameters: 5, context: 200}
ensemble:
  models: [big, small]
  output_aggregation_method: tandem
  output_aggregation_params: {levels: {low: 2, high: 4}, judge: "fixed:high"}
  generation: {max_tokens: 16}
ensembles:
  votes:
    models: [small, big]
    output_aggregation_method: vote
    output_aggregation_params: {samples: 3}
    generation: {max_tokens: 16}
  fused:
    models: [small]
    output_aggregation_method: fuse
    output_aggregation_params: {samples: 3}
    generation: {max_tokens: 16}
  turns: {models: [big, small], output_aggregation_method: loop, generation: {max_tokens: 16}}
"""
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
INSIGHT, ANSWER = "Goal: add. Planning: add.", "It is 4."
ON_PATH = {"PYTHONPATH": os.pathsep.join([str(CLIENTS), os.environ.get("PYTHONPATH", "")])}
ASK = {"messages": [{"role": "user", "content": "2 + 2?"}]}
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]


@pytest.fixture(scope="module")
def server(serve):
    return serve(CONFIG, env=ON_PATH)


def events(answer):
    assert answer.status_code == 200, answer.text
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def refused(answer, code):
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["code"], error["type"]) == (code, "invalid_request_error")
    return error


def asked(path):
    return ASK if path == CHAT else {"prompt": "2 + 2?"}


# What clients were seen to send


@pytest.mark.parametrize(
    "seen", RECORDED, ids=lambda seen: f"{seen['client']}: {json.dumps(seen['body'])[-40:]}"
)
def test_what_a_client_was_seen_to_send_is_answered(server, seen):
    answer = server.post(seen["path"], seen["body"])
    if seen["body"].get("stream"):
        found = events(answer)
        assert found[-1].get("usage", {"completion_tokens": 1})["completion_tokens"] > 0
        assert any(line["finish_reason"] for chunk in found for line in chunk["choices"])
    else:
        assert answer.status_code == 200, answer.text
        assert answer.json()["usage"]["completion_tokens"] > 0


OWN = {
    "content": "It is 4.",
    "role": "assistant",
    "refusal": None,
    "annotations": [],
    "audio": None,
    "images": [],
    "function_call": None,
    "tool_calls": None,
    "reasoning_content": INSIGHT,
    "reasoning": {"text": INSIGHT},
    "reasoning_details": [{"type": "reasoning.text", "text": INSIGHT}],
    "thinking_blocks": [],
    "id": "msg_1",
    "provider_specific_fields": {"reasoning_content": INSIGHT, "refusal": None},
    "name": None,
    "prefix": False,
}


@pytest.mark.parametrize(
    "message",
    [
        OWN,
        {
            **OWN,
            "content": [{"type": "text", "text": "It is 4.", "cache_control": {"type": "ephemeral"}, "x": 1}],
        },
        {
            **OWN,
            "content": [{"type": "thinking", "thinking": "hm"}, {"type": "output_text", "text": "It is 4."}],
        },
        {"role": "assistant", "content": None, "refusal": "It is 4."},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "It is 4."}]},
        {"role": "assistant", "content": "It is 4.", "tool_calls": []},
    ],
)
def test_a_reply_sent_back_with_more_than_was_sent_is_the_same_turn(server, message):
    def counted(turn):
        turns = [*ASK["messages"], turn, {"role": "user", "content": "Sure?", "id": 7, "cache_control": {}}]
        answer = server.post(CHAT, {"messages": turns, "model": "small"}).json()
        assert answer["choices"][0]["message"]["content"] == "Yes, 4."
        return answer["usage"]["prompt_tokens"]

    assert counted(message) == counted({"role": "assistant", "content": "It is 4."})


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ({"role": "user", "contnet": "2 + 2?"}, "needs content"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, "only text"),
        ({"role": "user", "content": [{"type": "input_audio", "input_audio": {}, "text": "x"}]}, "only text"),
        ({"role": "assistant", "content": None, "function_call": {"name": "add"}}, "send tool_calls"),
        ({"role": "narrator", "content": "x"}, "role"),
    ],
)
def test_what_would_change_a_message_is_refused(server, message, says):
    error = refused(server.post(CHAT, {"messages": [message]}), "invalid_value")
    assert says in error["message"]


# Fields at the top


NEUTRAL = {
    "min_p": 0,
    "top_k": -1,
    "repetition_penalty": 1.0,
    "presence_penalty": 0,
    "frequency_penalty": 0.0,
    "n": 1,
    "logit_bias": {},
    "stop": [],
    "stop_token_ids": [],
    "min_tokens": 0,
    "ignore_eos": False,
    "stream": False,
    "stream_options": {"include_usage": False},
    "length_penalty": 1.0,
    "ensemble": {"method": None, "params": {"judge": None}},
    "use_beam_search": False,
    "include_stop_str_in_output": False,
    "bad_words": [],
    "guided_json": "",
    "foo": False,
    "truncate_prompt_tokens": None,
    "bar": {},
    "baz": 0,
    "temprature": None,
    "reasoning_effort": None,
    "extra_body": {},
    "include_reasoning": True,
    "return_token_ids": False,
    "typical_p": 1,
    "x_trace": "a",
    "prompt_cache_retentions": 1,
}
OF_CHATS = {
    "tools": [],
    "tool_choice": "none",
    "parallel_tool_calls": True,
    "response_format": {"type": "text"},
    "functions": [],
    "function_call": "auto",
    "modalities": ["text"],
    "logprobs": False,
    "top_logprobs": 0,
    "audio": None,
    "echo": False,
    "chat_template_kwargs": {"enable_thinking": None},
    "documents": [],
    "add_generation_prompt": True,
    "continue_final_message": False,
}
OF_TEXTS = {
    "echo": False,
    "suffix": "",
    "best_of": 1,
    "logprobs": False,
    "add_special_tokens": True,
    "tools": [],
}


@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize("stream", [False, True])
def test_null_and_neutral_values_of_any_field_ask_for_nothing(server, path, stream):
    neutral = {**NEUTRAL, **(OF_CHATS if path == CHAT else OF_TEXTS), "stream": stream}
    nothing = dict.fromkeys((*neutral, *FOREIGN, *Hints.model_fields, "model", "seed", "max_tokens"))
    hints = {name: {"any": ["value"]} for name in Hints.model_fields}
    hints["stream_options"] = {"include_obfuscation": True}
    for more in (neutral, nothing, hints):
        answer = server.post(path, {**asked(path), **more, "stream": stream})
        if stream:
            parts = [choice for chunk in events(answer) for choice in chunk["choices"]]
            said = "".join(
                part["delta"].get("content") or "" if path == CHAT else part["text"] for part in parts
            )
        else:
            assert answer.status_code == 200, answer.text
            (choice,) = answer.json()["choices"]
            said = choice["message"]["content"] if path == CHAT else choice["text"]
        assert said == ANSWER


@pytest.mark.parametrize("path", [CHAT, TEXT, "/tokenize", "/detokenize"])
def test_what_would_change_an_answer_and_cannot_be_honoured_is_refused_by_name(server, path):
    given = {CHAT: ASK, TEXT: {"prompt": "x"}, "/tokenize": {"prompt": "x"}, "/detokenize": {"tokens": [1]}}[
        path
    ]
    for name, foreign in FOREIGN.items():
        if (path, name) == ("/tokenize", "add_special_tokens"):
            continue  # there it is a field
        error = refused(server.post(path, {**given, name: 0.5}), "unsupported")
        assert error["param"] == name
        assert foreign.why in error["message"]
    for name in ("think", "thinking"):
        refused(server.post(path, {**given, name: False}), "unsupported")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("temprature", "temperature"),
        ("maxTokens", "max_tokens"),
        ("top-p", "top_p"),
        ("streem", "stream"),
        ("max_new_tokens", "max_tokens"),
        ("sedd", "seed"),
        ("reasoning_efort", "reasoning_effort"),
        ("presencePenalty", "presence_penalty"),
        ("stops", "stop"),
        ("stop_sequences", None),
        ("horizon", None),
        ("num_samples", None),
        ("effort", None),
        ("prompt_template", None),
    ],
)
def test_a_misspelling_is_told_what_it_may_mean_and_nothing_else(server, name, meant):
    for path in (CHAT, TEXT):
        message = refused(server.post(path, {**asked(path), name: 1}), "unknown_field")["message"]
        assert message.startswith(f"unknown field {name!r}; ")
        assert ("did you mean" in message) == (meant is not None)
        assert meant is None or f"did you mean {meant!r}" in message
        if meant:  # even where it would ask for nothing
            refused(server.post(path, {**asked(path), name: False}), "unknown_field")


def test_an_object_of_many_fields_or_of_a_long_name_is_refused_at_once(server):
    many = {f"temperatur{number}": 0 for number in range(10_000)}
    for body in (
        {**ASK, **many},
        {"messages": [{**ASK["messages"][0], **many}]},
        {**ASK, "stream_options": many},
    ):
        before = server.cpu
        assert "at most 256 fields" in refused(server.post(CHAT, body), "invalid_value")["message"]
        refused(server.post(CHAT, {**ASK, "a" * 500_000: 1}), "unknown_field")
        assert server.cpu - before < 1


def test_a_misspelling_among_the_stream_options_is_refused_and_others_are_left_out(server):
    ask = {**ASK, "stream": True}
    found = events(server.post(CHAT, {**ask, "stream_options": {"include_usage": True, "chunk_size": 5}}))
    assert found[-1]["usage"]["completion_tokens"] == 7
    refused(server.post(CHAT, {**ask, "stream_options": {"include_usge": True}}), "invalid_value")


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_usage_so_far_goes_with_every_chunk_where_it_is_asked_for(server, path):
    options = {"include_usage": True, "continuous_usage_stats": True}
    ask = {**asked(path), "stream": True, "n": 2}
    found = events(server.post(path, {**ask, "stream_options": options}))
    counts = [chunk["usage"]["completion_tokens"] for chunk in found]
    assert counts == sorted(counts)
    assert counts[0] <= 2
    assert counts[-2] == counts[-1] == 14
    assert all(chunk["usage"]["total_tokens"] == 3 + chunk["usage"]["completion_tokens"] for chunk in found)
    del options["include_usage"]
    assert all(
        "usage" not in chunk for chunk in events(server.post(path, {**ask, "stream_options": options}))
    )


# An effort


@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize(
    ("effort", "insight", "levels"),
    [
        ("none", None, []),
        ("minimal", "Goal: add.", ["low"]),
        ("low", "Goal: add.", ["low"]),
        ("medium", "Goal: add.", ["low"]),
        ("high", INSIGHT, ["low", "high"]),
        ("xhigh", INSIGHT, ["low", "high"]),
        ("", INSIGHT, ["low", "high"]),
    ],
)
def test_an_effort_is_the_highest_level_of_a_tandem(server, path, effort, insight, levels):
    (choice,) = server.post(path, {**asked(path), "reasoning_effort": effort}).json()["choices"]
    assert (choice["message"] if path == CHAT else choice).get("reasoning_content") == insight
    assert [verdict["level"] for verdict in choice["metadata"]["verdicts"]] == levels
    for model in ("votes", "small", "turns"):
        assert (
            server.post(path, {**asked(path), "reasoning_effort": effort, "model": model}).status_code == 200
        )


def test_an_effort_that_is_none_is_refused(server):
    for model in ("ensemble", "small"):
        error = refused(
            server.post(CHAT, {**ASK, "reasoning_effort": "lots", "model": model}), "invalid_value"
        )
        assert error["param"] == "reasoning_effort"


# What a reply says


def test_the_insight_goes_out_under_the_names_that_the_server_is_told(serve):
    for names in (["reasoning"], ["reasoning_content", "reasoning"]):
        server = serve(f"{CONFIG}\nserver: {{reasoning_fields: {json.dumps(names)}}}", env=ON_PATH)
        message = server.post(CHAT, ASK).json()["choices"][0]["message"]
        assert {name: text for name, text in message.items() if "reasoning" in name} == dict.fromkeys(
            names, INSIGHT
        )
        found = events(server.post(CHAT, {**ASK, "stream": True}))
        deltas = [line["delta"] for chunk in found for line in chunk["choices"]]
        for name in ("reasoning_content", "reasoning"):
            assert "".join(delta.get(name, "") for delta in deltas) == (INSIGHT if name in names else "")
        server.stop()


@pytest.mark.parametrize("stream", [False, True])
def test_the_insight_is_left_out_where_it_is_not_wanted(server, stream):
    ask = {**ASK, "include_reasoning": False, "stream": stream, "stream_options": {"include_usage": True}}
    answer = server.post(CHAT, ask)
    assert "reasoning_content" not in answer.text
    usage = events(answer)[-1]["usage"] if stream else answer.json()["usage"]
    assert usage["completion_tokens_details"]["reasoning_tokens"] == 4  # it was written all the same


def test_the_cost_is_a_number_of_dollars_or_null_and_its_details_have_a_name_of_their_own(server):
    usage = server.post(CHAT, {**ASK, "model": "small"}).json()["usage"]
    assert usage["cost"] == pytest.approx((3 * 1.0 + 3 * 2.0) / 1e6)
    assert usage["cost_details"]["usd"] == usage["cost"]
    (line,) = usage["cost_details"]["spent"]
    assert (line["engine"], line["completion_tokens"]) == ("small", 3)
    both = server.post(CHAT, ASK).json()["usage"]
    assert both["cost"] == pytest.approx(sum(line["usd"] for line in both["cost_details"]["spent"]))
    assert (
        server.post(CHAT, {**ASK, "model": "caller"}).json()["usage"]["cost"] is None
    )  # nobody knows a price


def test_models_say_how_long_prompt_and_answer_may_be(server):
    found = {entry["id"]: entry["max_model_len"] for entry in server.get("/v1/models").json()["data"]}
    assert (found["ensemble"], found["caller"]) == (300, 200)
    assert server.get("/v1/models/caller").json()["max_model_len"] == 200


# Several samples at temperature 0


@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize("model", ["votes", "fused", "small", "ensemble", "turns"])
@pytest.mark.parametrize("more", [{}, {"seed": 3, "n": 2}])
def test_temperature_0_is_no_reason_to_refuse(server, path, model, more):
    answer = server.post(path, {**asked(path), "model": model, "temperature": 0, **more})
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["choices"]) == more.get("n", 1)


# A context that overflows


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("model", ["ensemble", "votes", "fused", "turns", "small", "caller"])
@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_an_overflow_is_said_in_openais_words_on_every_route(server, path, model, stream):
    long = "word " * 297
    ask = {"messages": [{"role": "user", "content": long}]} if path == CHAT else {"prompt": long}
    ask |= {"model": model, "stream": stream, "max_tokens": 64}
    error = refused(server.post(path, ask), "context_length_exceeded")
    assert error["message"].startswith("This model's maximum context length is ")
    assert "context_length_exceeded" in error["message"]  # where LangChain looks
    assert error["param"] == ("messages" if path == CHAT else "prompt")


# Tools


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_call_has_no_content_and_counts_its_tokens(server, stream):
    ask = {
        **ASK,
        "model": "caller",
        "tools": TOOLS,
        "stream": stream,
        "stream_options": {"include_usage": True},
    }
    answer = server.post(CHAT, ask)
    if stream:
        found = events(answer)
        deltas = [line["delta"] for chunk in found for line in chunk["choices"]]
        assert not any(delta.get("content") is not None for delta in deltas)
        parts = [part for delta in deltas for part in delta.get("tool_calls", [])]
        assert "".join(part["function"]["arguments"] for part in parts) == '{"a": 2, "b": 2}'
        usage = found[-1]["usage"]
    else:
        message = answer.json()["choices"][0]["message"]
        assert message["content"] is None
        assert message["tool_calls"][0]["function"] == {"name": "add", "arguments": '{"a": 2, "b": 2}'}
        usage = answer.json()["usage"]
    assert usage["completion_tokens"] == 12


@pytest.mark.parametrize("model", ["ensemble", "votes", "turns", "small", "caller"])
def test_tools_that_may_not_be_called_are_no_reason_to_refuse(server, model):
    ask = {**ASK, "model": model, "tools": TOOLS, "tool_choice": "none", "parallel_tool_calls": False}
    answer = server.post(CHAT, ask)
    assert answer.status_code == 200, answer.text
    message = answer.json()["choices"][0]["message"]
    assert message["content"]
    assert "tool_calls" not in message
    if model != "caller":
        refused(server.post(CHAT, {**ask, "tool_choice": "auto"}), "unsupported")


def test_a_tool_choice_without_tools_is_refused_where_it_asks_for_a_call(server):
    refused(server.post(CHAT, {**ASK, "model": "caller", "tool_choice": "required"}), "invalid_value")
    assert httpx.post(server.url + CHAT, json={**ASK, "tool_choice": "auto"}, timeout=30).status_code == 200


def test_the_documentation_names_every_hint():
    text = (Path(__file__).parents[2] / "docs" / "server.md").read_text()
    known = [name for name in Hints.model_fields if not name.startswith("prompt_cache_")]
    assert [name for name in known if f"`{name}`" not in text] == []
