"""Tools and formats go through the server to the model that writes the whole answer, if it offers them."""

import asyncio
import importlib.util
import json
import shutil
from pathlib import Path
from typing import Literal

import httpx2 as httpx
import openai
import pytest
from pydantic import BaseModel, ConfigDict

spec = importlib.util.spec_from_file_location(
    "faulty", Path(__file__).parents[1] / "generators" / "faulty.py"
)
faulty = importlib.util.module_from_spec(spec)
spec.loader.exec_module(faulty)

TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
ASK = {"model": "far", "messages": [{"role": "user", "content": "2 + 2?"}]}
CHAT = "/v1/chat/completions"


def call(arguments, **first):
    function = {"arguments": arguments, **({"name": "add"} if first else {})}
    return faulty.said(tool_calls=[{"index": 0, **first, "function": function}])


SCRIPT = [
    call("", id="c1", type="function"),
    call('{"a": 2,'),
    call(' "b": 2}'),
    faulty.said(finish="tool_calls"),
]
SCRIPT += [faulty.usage_event(), faulty.event("[DONE]")]


def config(url):
    return json.dumps(
        {
            "model_specs": [
                {
                    "name": "far",
                    "engine": "openai",
                    "path": "m",
                    "base_url": url,
                    "tools": True,
                    "response_format": True,
                },
                {"name": "near", "engine": "echo"},
            ],
            "ensemble": {
                "output_aggregation_method": "single",
                "output_aggregation_params": {"engine": "far"},
            },
            "ensembles": {"votes": {"output_aggregation_method": "vote"}},
        }
    )


def through(serve, bodies, script=SCRIPT):
    """What the server answers to each body, and what the API behind it was asked."""

    async def ask():
        async with faulty.upstream(script) as (api, url):
            server = serve(config(url))
            return [await asyncio.to_thread(server.post, CHAT, body) for body in bodies], api.asked

    return asyncio.run(ask())


def test_tools_are_called_streamed_or_not(serve):
    body = {**ASK, "tools": TOOLS, "tool_choice": "auto"}
    (whole, streamed), asked = through(serve, [body, {**body, "model": "ensemble", "stream": True}])
    choice = whole.json()["choices"][0]
    (made,) = choice["message"]["tool_calls"]
    assert made == {
        "id": "c1",
        "type": "function",
        "function": {"name": "add", "arguments": '{"a": 2, "b": 2}'},
    }
    assert choice["finish_reason"] == "tool_calls"
    chunks = [json.loads(line[6:]) for line in streamed.text.splitlines() if line.startswith("data: {")]
    parts = [part for chunk in chunks for part in chunk["choices"][0]["delta"].get("tool_calls", [])]
    assert "".join(part["function"]["arguments"] for part in parts) == '{"a": 2, "b": 2}'
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"
    assert [body["tools"] for body in asked] == [TOOLS, TOOLS]
    assert asked[0]["tool_choice"] == "auto"


def test_a_tool_call_of_an_api_has_no_content_and_counts_the_tokens_that_it_bills(serve):
    body = {**ASK, "tools": TOOLS, "stream_options": {"include_usage": True}}
    (whole, streamed), _ = through(serve, [body, {**body, "stream": True}])
    reply = whole.json()
    assert reply["choices"][0]["message"]["content"] is None
    (line,) = reply["usage"]["cost_details"]["spent"]
    assert reply["usage"]["completion_tokens"] == line["completion_tokens"] > 0
    chunks = [json.loads(line[6:]) for line in streamed.text.splitlines() if line.startswith("data: {")]
    assert chunks[-1]["usage"]["completion_tokens"] == line["completion_tokens"]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks if chunk["choices"]]
    assert all(delta.get("content") is None for delta in deltas)


def test_tools_that_may_not_be_called_are_shown_to_an_api_and_dropped_elsewhere(serve):
    body = {**ASK, "tools": TOOLS, "tool_choice": "none", "parallel_tool_calls": False}
    answers, asked = through(
        serve, [body, {**body, "model": "near"}, {**body, "model": "votes"}], faulty.answer()
    )
    assert [answer.status_code for answer in answers] == [200, 200, 200]
    assert asked[0]["tools"] == TOOLS
    assert asked[0]["tool_choice"] == "none"
    assert all("tools" not in body for body in asked[1:])


def test_a_conversation_with_tool_calls_goes_through_as_it_is(serve):
    made = [{"id": "c1", "type": "function", "function": {"name": "add", "arguments": "{}"}}]
    turns = [*ASK["messages"], {"role": "assistant", "content": None, "tool_calls": made}]
    turns += [{"role": "tool", "tool_call_id": "c1", "content": "4"}]
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}
    body = {**ASK, "messages": turns, "tools": TOOLS, "response_format": form}
    (answer,), asked = through(serve, [body], faulty.answer())
    assert answer.json()["choices"][0]["message"]["content"] == "It is 4."
    assert asked[0]["messages"][1]["tool_calls"] == made
    assert asked[0]["messages"][2] == {"role": "tool", "content": "4", "tool_call_id": "c1"}
    assert asked[0]["response_format"] == form


@pytest.mark.parametrize("more", [{"tools": TOOLS}, {"response_format": {"type": "json_object"}}])
def test_several_models_or_one_that_does_not_offer_it_refuse(serve, more):
    bodies = [{**ASK, **more, "model": name} for name in ("votes", "near")]
    answers, asked = through(serve, bodies)
    assert [answer.status_code for answer in answers] == [400, 400]
    assert "answers with several models" in answers[0].json()["error"]["message"]
    assert "near lacks" in answers[1].json()["error"]["message"]
    assert asked == []


def test_neutral_values_of_these_fields_are_no_request_for_them(serve):
    body = {**ASK, "model": "near", "tools": [], "response_format": {"type": "text"}, "tool_choice": "none"}
    (answer,), _ = through(serve, [body])
    assert answer.status_code == 200


def test_numbers_that_no_encoder_likes_are_no_failure_and_half_a_pair_is_refused(serve):
    odd = {"role": "assistant", "content": "x", "tool_calls": [{"n": 2**80, "s": "\u2028"}]}
    half = {"role": "user", "content": "\ud800"}
    bodies = [json.dumps({**ASK, "messages": messages, "tools": TOOLS}) for messages in ([odd], [odd, half])]

    async def ask():
        async with faulty.upstream(faulty.answer()) as (api, url):
            server = serve(config(url))
            headers = {"Content-Type": "application/json"}
            return [
                await asyncio.to_thread(httpx.post, server.url + CHAT, content=body, headers=headers)
                for body in bodies
            ], api.asked

    (answer, refused), asked = asyncio.run(ask())
    assert answer.status_code == 200
    assert (refused.status_code, "surrogate" in refused.text) == (400, True)
    assert [body["messages"][0]["tool_calls"] for body in asked] == [odd["tool_calls"]]


SCHEMA = {
    "type": "object",
    "properties": {"a": {"enum": [1, 2]}, "b": {"enum": [3, 4]}},
    "required": ["a", "b"],
    "additionalProperties": False,
}


@pytest.fixture
def shows_tools(tmp_path):
    """The mentor with a template that shows tools, and its blank tokens, of which it would write JSON without end."""
    transformers = pytest.importorskip("transformers")
    from ensemblehub import builtin

    folder = shutil.copytree(builtin.resolve("builtin:mentor"), tmp_path / "mentor")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = "{% if tools %}{{ tools | tojson }}{% endif %}" + tokenizer.chat_template
    tokenizer.save_pretrained(folder)
    return folder, {
        str(index): -100 for index in range(len(tokenizer)) if not tokenizer.decode([index]).strip()
    }


OPTIONS = {
    "hf": {"device": "cpu", "tool_parser": "hermes"},
    "vllm": {"dtype": "float32", "block_size": 32, "enforce_eager": True, "tool_parser": "hermes"},
}


@pytest.fixture(params=["hf", "vllm"])
def near(request, serve, shows_tools):
    """A server of one model that shows tools, and a request to it whose answer has no white space."""
    if request.param == "vllm" and importlib.util.find_spec("vllm") is None:
        pytest.skip("vllm is not installed")
    folder, blank = shows_tools
    spec = {"name": "near", "engine": request.param, "path": str(folder), **OPTIONS[request.param]}
    method = {"output_aggregation_method": "single", "output_aggregation_params": {"engine": "near"}}
    plain = {"name": "plain", "engine": "hf", "path": "builtin:intern", "device": "cpu"}
    tandem = {
        "profile": "builtin",
        "levels": {"low": 8},
        "judge": "fixed:low",
        "mentor": "near",
        "intern": "plain",
    }
    pair = {"output_aggregation_method": "tandem", "output_aggregation_params": tandem}
    drafting = {**pair, "output_aggregation_params": {**tandem, "draft": "logprob"}}
    swapped = {**pair, "output_aggregation_params": {**tandem, "mentor": "plain", "intern": "near"}}
    ensembles = {"pair": pair, "drafting": drafting, "swapped": swapped}
    server = serve(
        json.dumps({"model_specs": [spec, plain], "ensemble": method, "ensembles": ensembles}),
        env={"VLLM_CPU_KVCACHE_SPACE": "1"},
    )
    yield server, {"messages": ASK["messages"], "logit_bias": blank, "max_tokens": 200}
    server.stop()


TOOL = {"type": "function", "function": {"name": "add", "parameters": SCHEMA, "strict": True}}


def events_of(answer):
    return [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]


def test_a_model_calls_tools_and_keeps_to_a_format(near, request):
    server, ask = near
    body = {**ask, "tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False}
    whole = server.post(CHAT, body).json()
    (choice,) = whole["choices"]
    (made,) = choice["message"]["tool_calls"]
    assert made["function"]["name"] == "add"
    assert set(json.loads(made["function"]["arguments"])) == {"a", "b"}
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] in ("", None)
    assert whole["usage"]["completion_tokens"] > 10
    streamed = server.post(CHAT, {**body, "stream": True, "stream_options": {"include_usage": True}})
    events = events_of(streamed)
    parts = [
        part for event in events for line in event["choices"] for part in line["delta"].get("tool_calls", [])
    ]
    arguments = "".join(part["function"].get("arguments", "") for part in parts)
    assert arguments == made["function"]["arguments"]
    assert events[-1]["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
    schema = {"type": "json_schema", "json_schema": {"name": "sum", "schema": SCHEMA}}
    answer = server.post(CHAT, {**ask, "response_format": schema}).json()
    assert set(json.loads(answer["choices"][0]["message"]["content"])) == {"a", "b"}
    turns = [*ASK["messages"], {"role": "assistant", "content": None, "tool_calls": [made]}]
    turns += [{"role": "tool", "tool_call_id": made["id"], "content": "4"}]
    assert server.post(CHAT, {**body, "messages": turns, "tool_choice": "auto"}).status_code == 200
    refused = server.post(CHAT, {**ask, "tools": [{"type": "function"}]})
    assert refused.status_code == 400
    assert "tools.0.function" in refused.json()["error"]["message"]
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"not": {}}}}
    refused = server.post(CHAT, {**ASK, "model": "plain", "response_format": form}).json()["error"]
    assert refused["message"].endswith('response_format.json_schema.schema: Unimplemented keys: ["not"]')
    joint = server.post(CHAT, {**ask, "model": "pair", "response_format": schema, "logit_bias": {}}).json()
    assert set(json.loads(joint["choices"][0]["message"]["content"])) == {"a", "b"}
    assert len(joint["choices"][0]["message"]["reasoning_content"]) > 8  # the insight keeps to no format
    joint = server.post(CHAT, {**body, "model": "swapped"}).json()
    joint = joint["choices"][0]
    assert joint["message"]["tool_calls"][0]["function"]["name"] == "add"
    assert len(joint["message"]["reasoning_content"]) > 8
    refused = server.post(CHAT, {**ASK, "model": "drafting", "response_format": schema}).json()["error"]
    assert "answers with several models" in refused["message"]
    refused = server.post(CHAT, {**ASK, "model": "plain", "tools": [TOOL]}).json()["error"]
    assert (refused["param"], "option `tool_parser`" in refused["message"]) == ("tools", True)
    _check_sdk(server, ask)
    if request.node.callspec.params["near"] == "hf":
        # They take no logit_bias, and vLLM lets this small model fill the arguments with blanks.
        _check_other_apis(server)


class Sum(BaseModel):
    """What `SCHEMA` describes, for the SDK."""

    model_config = ConfigDict(extra="forbid")
    a: Literal[1, 2]
    b: Literal[3, 4]


def _check_sdk(server, ask):
    """OpenAI's SDK parses formats and tools by models of its caller's."""
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        chat = client.chat.completions
        parsed = chat.parse(model="near", **ask, response_format=Sum).choices[0].message.parsed
        assert (parsed.a in (1, 2), parsed.b in (3, 4)) == (True, True)
        tools = [openai.pydantic_function_tool(Sum, name="add")]
        with chat.stream(model="near", **ask, tools=tools, tool_choice="required") as stream:
            events = [event for event in stream if event.type == "tool_calls.function.arguments.done"]
            (choice,) = stream.get_final_completion().choices
        assert isinstance(choice.message.tool_calls[0].function.parsed_arguments, Sum)
        assert events[0].name == "add"


def _check_other_apis(server):
    """A call and its result through the two other APIs."""
    question = ASK["messages"][0]["content"]
    tool = {"type": "function", **TOOL["function"]}
    asked = {"input": question, "tools": [tool], "tool_choice": "required", "max_output_tokens": 300}
    (call,) = server.post("/v1/responses", {**asked, "parallel_tool_calls": False}).json()["output"]
    assert (call["type"], call["name"], call["status"]) == ("function_call", "add", "completed")
    assert set(json.loads(call["arguments"])) == {"a", "b"}
    result = {"type": "function_call_output", "call_id": call["call_id"], "output": "4"}
    turns = [{"role": "user", "content": question}, call, result]
    said = server.post("/v1/responses", {**asked, "input": turns, "tool_choice": "auto"}).json()
    assert said["output"][0]["type"] == "message"
    tool = {"name": "add", "input_schema": SCHEMA}
    choice = {"type": "any", "disable_parallel_tool_use": True}
    asked = {"messages": ASK["messages"], "tools": [tool], "tool_choice": choice, "max_tokens": 300}
    message = server.post("/v1/messages", asked).json()
    (block,) = message["content"]
    assert (block["type"], block["name"], message["stop_reason"]) == ("tool_use", "add", "tool_use")
    assert set(block["input"]) == {"a", "b"}
    events = events_of(server.post("/v1/messages", {**asked, "stream": True}))
    deltas = [event["delta"] for event in events if event["type"] == "content_block_delta"]
    written = "".join(delta["partial_json"] for delta in deltas if delta["type"] == "input_json_delta")
    assert set(json.loads(written)) == {"a", "b"}
    done = {"type": "tool_result", "tool_use_id": block["id"], "content": "4"}
    turns = [*ASK["messages"], {"role": "assistant", "content": [block]}, {"role": "user", "content": [done]}]
    said = server.post("/v1/messages", {**asked, "messages": turns, "tool_choice": {"type": "auto"}}).json()
    assert said["content"][0]["type"] == "text"
