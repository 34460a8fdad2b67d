"""`/v1/responses` by the official SDK; every event and reply is checked against the SDK's own models."""

import json
import os
from pathlib import Path

import httpx2 as httpx
import openai
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from tests.waiting import until

HERE = Path(__file__).parent
CONFIG = """
model_specs:
  - {name: big, engine: echo, replies: {"": "Goal: add. Planning: add. Retrieval: none."}, parameters: 9}
  - {name: small, engine: echo, replies: {"Sure": "Yes, 4.", "": "It is 4."}, parameters: 1, context: 200}
  - {name: caller, engine: "caller:CallingEngine", replies: {"": "The tool says 4."}, parameters: 5}
  - {name: frail, engine: echo, replies: {"": "One two three four."}, fail_after: 2, parameters: 11}
  - {name: silent, engine: echo, replies: {"": "never said"}, fail_after: 0, parameters: 12}
  - {name: slow, engine: "slow:SlowEngine", replies: {"": "1 2 3 4 5 6 7 8 9"}, delay: 0.3, journal: JOURNAL}
ensemble:
  models: [big, small]
  output_aggregation_method: tandem
  output_aggregation_params: {levels: {low: 2, high: 4}, judge: "fixed:high"}
server: STORE
"""
INSIGHT = "Goal: add. Planning: add."
TOOL = {
    "type": "function",
    "name": "add",
    "description": "Add two numbers.",
    "parameters": {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}},
    "strict": False,
}
ORDER = ["response.created", "response.in_progress"]
REASONING = ["response.output_item.added", "response.content_part.added", "response.reasoning_text.delta"]
REASONING += ["response.reasoning_text.done", "response.content_part.done", "response.output_item.done"]
TEXT = [name.replace("reasoning_text", "output_text") for name in REASONING]
pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def journal(tmp_path_factory):
    return tmp_path_factory.mktemp("journal") / "events.jsonl"


def start(serve, journal, store="{}"):
    paths = [str(HERE), str(HERE.parent / "clients"), os.environ.get("PYTHONPATH", "")]
    config = CONFIG.replace("JOURNAL", str(journal)).replace("STORE", store)
    return serve(config, env={"PYTHONPATH": os.pathsep.join(paths)})


@pytest.fixture(scope="module")
def server(serve, journal):
    return start(serve, journal)


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
async def asking(server):
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def strict(response):
    """A response, after the SDK's own model took it with all types checked."""
    Response.model_validate(json.loads(response.to_json()))
    return response


def thoughts(response):
    items = [item for item in response.output if item.type == "reasoning"]
    return [part.text for item in items for part in item.content]


def test_an_answer_and_its_insight(client):
    response = strict(client.responses.create(model="ensemble", input="2 + 2?"))
    assert response.output_text == "It is 4."
    assert thoughts(response) == [INSIGHT]
    assert [item.type for item in response.output] == ["reasoning", "message"]
    assert (response.status, response.error, response.incomplete_details) == ("completed", None, None)
    usage = response.usage
    assert (usage.input_tokens, usage.output_tokens, usage.total_tokens) == (3, 7, 10)
    assert usage.output_tokens_details.reasoning_tokens == 4
    assert response.ensemble["selected_models"] == ["big", "small"]
    assert {line["engine"] for line in usage.cost_details["spent"]} == {"big", "small", "judge"}


async def test_the_same_by_the_asynchronous_client(asking):
    response = await asking.responses.create(model="ensemble", input="2 + 2?")
    assert (response.output_text, thoughts(response)) == ("It is 4.", [INSIGHT])
    events = [event async for event in await asking.responses.create(input="2 + 2?", stream=True)]
    assert events[-1].response.output_text == "It is 4."
    async with asking.responses.stream(model="ensemble", input="2 + 2?") as stream:
        assert (await stream.get_final_response()).output_text == "It is 4."


def test_typed_events_come_in_order(server, client):
    raw = server.post("/v1/responses", {"input": "2 + 2?", "stream": True}).text
    names = [line[7:] for line in raw.splitlines() if line.startswith("event: ")]
    bodies = [json.loads(line[6:]) for line in raw.splitlines() if line.startswith("data: ")]
    assert [body["type"] for body in bodies] == names
    assert [body["sequence_number"] for body in bodies] == list(range(len(bodies)))
    for body in bodies:
        TypeAdapter(ResponseStreamEvent).validate_python(body)
    assert list(dict.fromkeys(names[:9])) == ORDER + REASONING[:4]
    found = names[2:-1]
    middle = REASONING[:2] + 4 * REASONING[2:3] + REASONING[3:] + TEXT[:2] + 3 * TEXT[2:3] + TEXT[3:]
    assert (found, names[-1]) == (middle, "response.completed")
    assert "[DONE]" not in raw
    with client.responses.stream(model="ensemble", input="2 + 2?") as stream:
        texts = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        final = strict(stream.get_final_response())
    whole = client.responses.create(model="ensemble", input="2 + 2?")
    assert texts == final.output_text == whole.output_text
    assert [item.type for item in final.output] == [item.type for item in whole.output]
    assert final.usage.total_tokens == whole.usage.total_tokens


def test_instructions_items_and_hints(client):
    turns = [
        {"role": "developer", "content": "Be short."},
        {"role": "user", "content": [{"type": "input_text", "text": "2 + 2?"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "x"},
        {
            "type": "message",
            "id": "msg_1",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": "It is 4.", "annotations": [], "logprobs": []}],
        },
        {"role": "user", "content": "Sure?", "type": "message"},
    ]
    response = client.responses.create(
        model="ensemble",
        input=turns,
        instructions="Add.",
        store=False,
        metadata={"a": "b"},
        user="me",
        service_tier="auto",
        safety_identifier="x",
        prompt_cache_key="k",
        include=["reasoning.encrypted_content"],
        truncation="disabled",
        parallel_tool_calls=True,
        text={"verbosity": "low", "format": {"type": "text"}},
        reasoning={"effort": "low", "summary": "auto"},
        extra_body={"client_metadata": {"x": 1}},
        extra_headers={"OpenAI-Beta": "x"},
    )
    assert response.output_text == "Yes, 4."
    assert thoughts(response) == ["Goal: add."]
    assert response.metadata == {"a": "b"}
    assert response.instructions == "Add."
    assert client.responses.create(model="small", input=turns[:2]).usage.input_tokens == 5


def test_a_reply_goes_back_as_it_came(client):
    first = client.responses.create(model="ensemble", input="2 + 2?")
    turns = [{"role": "user", "content": "2 + 2?"}, *first.output, {"role": "user", "content": "Sure?"}]
    assert client.responses.create(model="ensemble", input=turns).output_text == "Yes, 4."


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_is_called_and_its_output_read(client, stream):
    ask = {"model": "caller", "tools": [TOOL]}
    turns = [{"role": "user", "content": "2 + 2?"}]
    if stream:
        with client.responses.stream(input=turns, **ask) as events:
            kinds = [event.type for event in events]
            response = events.get_final_response()
        assert kinds.count("response.function_call_arguments.delta") == 2
        assert kinds[-2] == "response.output_item.done"
    else:
        response = strict(client.responses.create(input=turns, **ask))
    (call,) = response.output
    assert (call.type, call.name, call.call_id) == ("function_call", "add", "call_1")
    assert json.loads(call.arguments) == {"a": 2, "b": 2}
    turns += [call.to_dict(), {"type": "function_call_output", "call_id": call.call_id, "output": "4"}]
    assert client.responses.create(input=turns, **ask).output_text == "The tool says 4."
    named = client.responses.create(input="2?", **ask, tool_choice={"type": "function", "name": "add"})
    assert named.tool_choice.name == "add"
    kept = client.responses.create(model="ensemble", tools=[TOOL], tool_choice="none", input="2 + 2?")
    assert kept.output_text == "It is 4."


def test_functions_in_a_namespace_are_called_by_their_own_name(client):
    space = {"type": "namespace", "name": "sums", "description": "Sums.", "tools": [TOOL]}
    turns = [{"role": "user", "content": "2 + 2?"}]
    ask = {"model": "caller", "tools": [space]}
    response = strict(client.responses.create(input=turns, **ask))
    (call,) = response.output
    assert (call.namespace, call.name) == ("sums", "add")
    turns += [call.to_dict(), {"type": "function_call_output", "call_id": call.call_id, "output": "4"}]
    assert client.responses.create(input=turns, **ask).output_text == "The tool says 4."


def test_a_cut_answer_is_incomplete_and_logprobs_are_given(client):
    response = strict(client.responses.create(model="small", input="2 + 2?", max_output_tokens=2))
    assert (response.status, response.output_text) == ("incomplete", "It is")
    assert response.incomplete_details.reason == "max_output_tokens"
    assert response.output[-1].status == "incomplete"
    found = client.responses.create(
        model="small", input="2 + 2?", top_logprobs=1, include=["message.output_text.logprobs"]
    )
    tokens = found.output[0].content[0].logprobs
    assert [token.token for token in tokens] == ["It", " is", " 4."]
    assert tokens[0].top_logprobs[0].token == "It"


REFUSED = [
    ({"previous_response_id": "resp_1"}, "previous_response_id cannot be honoured", "previous_response_id"),
    ({"tools": [{"type": "web_search"}]}, "'web_search' is not offered here", "tools.0"),
    ({"tools": [{"name": "f"}]}, "type", "tools.0.type"),
    ({"tools": [TOOL]}, "small lacks 'tools'", "tools"),
    ({"text": {"format": {"type": "json_object"}}}, "small lacks", "text.format"),
    ({"text": {"format": {"type": "json_schema"}}}, "needs name and schema", "text.format"),
    ({"background": True}, "background", "background"),
    ({"truncation": "auto"}, "truncation", "truncation"),
    ({"conversation": "conv_1"}, "conversation cannot be honoured", "conversation"),
    ({"input": [{"type": "item_reference", "id": "x"}]}, "input.0.type", "input.0.type"),
    ({"input": [{"type": "reasoning", "summary": []}]}, "no message", "input"),
    (
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
        "only text",
        None,
    ),
    ({"max_output_tokens": 10**6}, "max_output_tokens is at most", "max_output_tokens"),
    ({"reasoning": {"effort": "hihg"}}, "did you mean", "reasoning.effort"),
    ({"reasoning": {"mode": "pro"}}, "reasoning.mode", "reasoning.mode"),
    ({"temprature": 1}, "did you mean 'temperature'", "temprature"),
    ({"messages": [1]}, "unknown field 'messages'", "messages"),
    ({"input": "word " * 400}, "maximum context length", "input"),
]


@pytest.mark.parametrize(("more", "words", "param"), REFUSED)
def test_what_cannot_be_honoured_is_refused_by_name(client, more, words, param):
    body = {"model": "ensemble", "input": "2 + 2?", **more}
    with pytest.raises(openai.BadRequestError, match=words) as refused:
        client.responses.create(**{"model": body.pop("model"), "input": body.pop("input")}, extra_body=body)
    assert param is None or refused.value.param == param


def test_errors_before_and_within_a_stream(client):
    with pytest.raises(openai.NotFoundError, match="nobody"):
        client.responses.create(model="nobody", input="2 + 2?")
    for stream in (False, True):
        with pytest.raises(openai.InternalServerError, match="silent failed"):
            client.responses.create(model="silent", input="2 + 2?", stream=stream)
    events = list(client.responses.create(model="frail", input="2 + 2?", stream=True))
    last = events[-1]
    assert last.type == "response.failed"
    TypeAdapter(ResponseStreamEvent).validate_python(json.loads(last.to_json()))
    assert (last.response.status, last.response.error.code) == ("failed", "server_error")
    assert "frail failed after 2 tokens" in last.response.error.message
    assert last.sequence_number == events[-2].sequence_number + 1


def test_a_client_that_leaves_stops_the_engine(server, client, journal):
    stream = client.responses.create(model="slow", input="2 + 2?", stream=True)
    for event in stream:
        if event.type == "response.output_text.delta":
            break
    stream.close()
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{server.url}/v1/responses", json={"model": "slow", "input": "2?"}, timeout=0.7)
    until(lambda: len(journal.read_text().splitlines()) == 4)
    noted = [json.loads(line)[0] for line in journal.read_text().splitlines()]
    assert noted == ["begins", "stopped", "begins", "stopped"]
    assert 'outcome="disconnected"' in server.get("/metrics").text
    assert 'endpoint="responses"' in server.get("/metrics").text


@pytest.fixture(scope="module")
def storing(serve, journal):
    server = start(serve, journal, "{stored_responses: 2, stored_bytes: 20000}")
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_a_stored_response_is_continued_without_its_instructions(storing):
    first = storing.responses.create(model="small", input="2 + 2?", instructions="Add well.")
    assert first.store is True
    again = {"model": "small", "input": "Sure?", "previous_response_id": first.id}
    second = storing.responses.create(**again)
    assert (second.output_text, second.previous_response_id) == ("Yes, 4.", first.id)
    assert second.usage.input_tokens == 3 + 3 + 1  # question, answer, question
    with storing.responses.stream(**{**again, "previous_response_id": second.id}) as stream:
        third = stream.get_final_response()
    assert third.usage.input_tokens == 3 + 3 + 1 + 2 + 1
    for gone in (first.id, "resp_nobody"):
        with pytest.raises(openai.NotFoundError, match="stored"):
            storing.responses.create(**{**again, "previous_response_id": gone})


def test_tools_go_on_from_a_stored_call_and_store_false_keeps_nothing(storing):
    first = storing.responses.create(model="caller", input="2 + 2?", tools=[TOOL])
    output = {"type": "function_call_output", "call_id": first.output[0].call_id, "output": "4"}
    ask = {"model": "caller", "input": [output], "tools": [TOOL]}
    second = storing.responses.create(**ask, previous_response_id=first.id, store=False)
    assert (second.output_text, second.store) == ("The tool says 4.", False)
    large = storing.responses.create(model="caller", input="word " * 5000)
    for missing in (second.id, large.id):
        with pytest.raises(openai.NotFoundError, match="stored"):
            storing.responses.create(**ask, previous_response_id=missing)


def test_a_stored_response_is_read_again_and_deleted(storing):
    made = storing.responses.create(model="small", input="2 + 2?")
    assert strict(storing.responses.retrieve(made.id)).to_dict() == made.to_dict()
    with storing.responses.stream(model="small", input="2 + 2?") as stream:
        streamed = stream.get_final_response()
    assert storing.responses.retrieve(streamed.id).output_text == "It is 4."
    with pytest.raises(openai.BadRequestError, match="not streamed again"):
        storing.responses.retrieve(made.id, stream=True)
    storing.responses.delete(made.id)
    for ask in (storing.responses.retrieve, storing.responses.delete):
        with pytest.raises(openai.NotFoundError, match=f"no response '{made.id}' is stored here"):
            ask(made.id)
    with pytest.raises(openai.NotFoundError, match="send the whole conversation"):
        storing.responses.create(model="small", input="Sure?", previous_response_id=made.id)


def test_a_stored_response_is_its_keys_alone(serve, journal):
    paths = os.pathsep.join([str(HERE), str(HERE.parent / "clients"), os.environ.get("PYTHONPATH", "")])
    config = CONFIG.replace("JOURNAL", str(journal)).replace("STORE", "{stored_responses: 5}")
    server = serve(config, "--api-key", "first", "--api-key", "second", env={"PYTHONPATH": paths})
    own, other = (
        openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0) for key in ("first", "second")
    )
    with own, other:
        made = own.responses.create(model="small", input="2 + 2?")
        for ask in (other.responses.retrieve, other.responses.delete):
            with pytest.raises(openai.NotFoundError):
                ask(made.id)
        again = {"model": "small", "input": "Sure?", "previous_response_id": made.id}
        with pytest.raises(openai.NotFoundError):
            other.responses.create(**again)
        assert own.responses.create(**again).output_text == "Yes, 4."
    assert server.get(f"/v1/responses/{made.id}").status_code == 401


def test_a_server_that_stores_nothing_says_so(client):
    made = client.responses.create(model="small", input="2 + 2?")
    with pytest.raises(openai.NotFoundError, match="this server stores none"):
        client.responses.retrieve(made.id)
