"""`/v1/messages` by Anthropic's SDK: whole and streamed, sync and async, tools, errors, and a client that leaves."""

import asyncio
import json
import re

import pytest

anthropic = pytest.importorskip(
    "anthropic", reason="the clients have an environment of their own: make test-clients"
)
import httpx2 as httpx  # noqa: E402
from anthropic.types import Message, RawMessageStreamEvent  # noqa: E402
from pydantic import TypeAdapter  # noqa: E402

from tests.waiting import until  # noqa: E402

INSIGHT = "Goal: add. Planning: add."
TOOL = {
    "name": "add",
    "description": "Add two numbers.",
    "input_schema": {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
        "required": ["a", "b"],
    },
}
THINKING = {"type": "enabled", "budget_tokens": 1024}
ASK = {"model": "ensemble", "max_tokens": 64}


def user(content="2 + 2?"):
    return {"role": "user", "content": content}


@pytest.fixture(scope="module")
def base(url):
    return url.removesuffix("/v1")


@pytest.fixture(scope="module")
def client(base):
    with anthropic.Anthropic(base_url=base, api_key="none", max_retries=0) as client:
        yield client


def strict(message):
    """A message, after the SDK's own model took it with all types checked."""
    Message.model_validate(json.loads(message.to_json()))
    return message


def said(message):
    return "".join(block.text for block in message.content if block.type == "text")


@pytest.mark.client("anthropic", "answers")
def test_an_answer_with_the_insight_where_thinking_is_asked_for(client):
    message = strict(client.messages.create(**ASK, messages=[user()]))
    assert [block.type for block in message.content] == ["text"]
    assert (said(message), message.stop_reason, message.model) == ("It is 4.", "end_turn", "ensemble")
    assert (message.usage.input_tokens, message.usage.output_tokens) == (3, 7)
    assert message.ensemble["selected_models"] == ["big", "small"]
    message = strict(client.messages.create(**ASK, messages=[user()], thinking=THINKING))
    assert [block.type for block in message.content] == ["thinking", "text"]
    assert message.content[0].thinking == INSIGHT
    for hidden in ({"type": "disabled"}, {"type": "adaptive", "display": "omitted"}):
        message = client.messages.create(**ASK, messages=[user()], thinking=hidden)
        assert [block.type for block in message.content] == ["text"]


@pytest.mark.client("anthropic", "streams")
def test_events_come_in_order_and_add_up_to_the_whole_message(client, base):
    body = {**ASK, "messages": [user()], "thinking": THINKING, "stream": True}
    raw = httpx.post(f"{base}/v1/messages", json=body, timeout=30).text
    names = re.findall("^event: (.*)$", raw, re.MULTILINE)
    bodies = [json.loads(line[6:]) for line in raw.splitlines() if line.startswith("data: ")]
    assert [body["type"] for body in bodies] == names
    for body in bodies:
        TypeAdapter(RawMessageStreamEvent).validate_python(body)
    block = ["content_block_start", "content_block_delta", "content_block_stop"]
    assert list(dict.fromkeys(names)) == ["message_start", *block, "message_delta", "message_stop"]
    assert names.count("content_block_start") == names.count("content_block_stop") == 2
    with client.messages.stream(**ASK, messages=[user()], thinking=THINKING) as stream:
        events = list(stream)
        streamed = strict(stream.get_final_message())
    whole = client.messages.create(**ASK, messages=[user()], thinking=THINKING)
    assert "".join(event.text for event in events if event.type == "text") == "It is 4."
    same = [block.to_dict(exclude_none=True) for block in whole.content]
    assert [block.to_dict(exclude_none=True) for block in streamed.content] == same
    assert streamed.usage.output_tokens == whole.usage.output_tokens == 7
    assert streamed.stop_reason == whole.stop_reason


def test_the_asynchronous_client(base):
    async def talk():
        async with anthropic.AsyncAnthropic(base_url=base, api_key="none", max_retries=0) as client:
            whole = await client.messages.create(**ASK, messages=[user()])
            async with client.messages.stream(**ASK, messages=[user()]) as stream:
                texts = [text async for text in stream.text_stream]
            counted = await client.messages.count_tokens(model="small", messages=[user()])
            return said(whole), "".join(texts), counted.input_tokens

    assert asyncio.run(talk()) == ("It is 4.", "It is 4.", 3)


@pytest.mark.client("anthropic", "tools")
@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_is_called_and_its_result_read(client, stream):
    ask = {"model": "caller", "max_tokens": 64, "tools": [TOOL]}
    turns = [user()]
    if stream:
        with client.messages.stream(**ask, messages=turns) as events:
            message = events.get_final_message()
    else:
        message = strict(client.messages.create(**ask, messages=turns))
    (call,) = message.content
    assert (message.stop_reason, call.type, call.name) == ("tool_use", "tool_use", "add")
    assert call.input == {"a": 2, "b": 2}
    assert message.usage.output_tokens == 12
    result = {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "4"}]}
    turns += [{"role": "assistant", "content": message.content}, user([result])]
    assert said(client.messages.create(**ask, messages=turns)) == "The tool says 4."
    for choice in ({"type": "any"}, {"type": "tool", "name": "add", "disable_parallel_tool_use": True}):
        assert client.messages.create(**ask, messages=[user()], tool_choice=choice).content[0].name == "add"
    kept = client.messages.create(**ASK, messages=[user()], tools=[TOOL], tool_choice={"type": "none"})
    assert said(kept) == "It is 4."


def test_a_reply_goes_back_as_it_came_and_hints_have_no_effect(client):
    first = client.messages.create(**ASK, messages=[user()], thinking=THINKING)
    turns = [user(), {"role": "assistant", "content": first.content}]
    turns.append(user([{"type": "text", "text": "Sure?", "cache_control": {"type": "ephemeral"}}]))
    message = client.messages.create(
        **ASK,
        messages=turns,
        system=[{"type": "text", "text": "Be short.", "cache_control": {"type": "ephemeral"}}],
        metadata={"user_id": "me"},
        service_tier="auto",
        output_config={"effort": "low"},
        extra_body={
            "temperature": 0,
            "top_k": 5,
            "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        },
        extra_headers={"anthropic-beta": "context-management-2025-06-27"},
    )
    assert said(message) == "Yes, 4."


def test_stops_limits_and_a_started_answer(client):
    cut = client.messages.create(model="small", max_tokens=2, messages=[user()])
    assert (said(cut), cut.stop_reason) == ("It is", "max_tokens")
    stopped = client.messages.create(model="small", max_tokens=9, messages=[user()], stop_sequences=[" 4"])
    assert (said(strict(stopped)), stopped.stop_reason) == ("It is", "stop_sequence")
    assert stopped.stop_sequence == " 4"
    most = client.messages.create(model="small", max_tokens=20_000, messages=[user()])
    assert said(most) == "It is 4."  # lowered to what fits into the context
    started = [user(), {"role": "assistant", "content": "It is"}]
    assert said(client.messages.create(model="small", max_tokens=9, messages=started)) == " 4."
    low = client.messages.create(**ASK, messages=[user()], thinking={"type": "enabled", "budget_tokens": 3})
    assert low.content[0].thinking == "Goal: add."


def test_tokens_are_counted_as_they_are_billed(client):
    turns = [user("2 + 2 is what?")]
    counted = client.messages.count_tokens(model="ensemble", system="Be short.", messages=turns)
    reply = client.messages.create(**ASK, system="Be short.", messages=turns)
    assert counted.input_tokens == reply.usage.input_tokens == 7


REFUSED = [
    ({"messages": [user([{"type": "image", "source": {}}])]}, "image: only text"),
    ({"messages": []}, "messages"),
    ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "'web_search_20250305' is not"),
    ({"tools": [TOOL]}, "small lacks 'tools'"),
    ({"output_config": {"format": {"type": "json_schema", "schema": {}}}}, "small lacks"),
    ({"container": "x"}, "unknown field 'container'"),
    ({"mcp_servers": [{"name": "x"}]}, "unknown field 'mcp_servers'"),
    ({"context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}}, "context_management.edits.0"),
    ({"output_config": {"effort": "hihg"}}, "did you mean"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"temprature": 1}, "did you mean 'temperature'"),
    ({"messages": [user("word " * 400)]}, "maximum context length"),
]


@pytest.mark.parametrize(("more", "words"), REFUSED)
def test_what_cannot_be_honoured_is_refused_by_name(client, more, words):
    body = {**ASK, "messages": [user()], **more}
    with pytest.raises(anthropic.BadRequestError, match=words) as refused:
        client.post("/v1/messages", body=body, cast_to=object)
    assert refused.value.body["type"] == "error"
    assert refused.value.body["error"]["type"] == "invalid_request_error"


@pytest.mark.client("anthropic", "errors")
def test_errors_are_those_of_anthropics_api(client, base):
    with pytest.raises(anthropic.NotFoundError, match="nobody") as refused:
        client.messages.create(model="nobody", max_tokens=9, messages=[user()])
    assert refused.value.body["error"]["type"] == "not_found_error"
    assert refused.value.request_id
    for stream in (False, True):
        with pytest.raises(anthropic.InternalServerError, match="silent failed"):
            client.messages.create(model="silent", max_tokens=9, messages=[user()], stream=stream)
    with pytest.raises(anthropic.APIStatusError, match="frail failed after 2 tokens"):
        list(client.messages.create(model="frail", max_tokens=9, messages=[user()], stream=True))
    wrong = httpx.post(f"{base}/v1/messages", content=b"{", headers={"content-type": "application/json"})
    assert (wrong.status_code, wrong.json()["type"]) == (400, "error")


@pytest.mark.client("anthropic", "cancels")
def test_a_client_that_leaves_stops_the_engine(client, base):
    def disconnected():
        metrics = httpx.get(f"{base}/metrics").text
        found = re.search(
            r'requests_total\{endpoint="messages",model="slow",outcome="disconnected"\} (\S+)', metrics
        )
        return float(found[1]) if found else 0

    with client.messages.stream(model="slow", max_tokens=99, messages=[user()]) as stream:
        next(iter(stream.text_stream))
    with pytest.raises(anthropic.APITimeoutError):
        client.with_options(timeout=0.7).messages.create(model="slow", max_tokens=99, messages=[user()])
    until(lambda: disconnected() >= 2)
    assert httpx.get(f"{base}/status").json()["running"] == 0


def test_a_silent_stream_is_kept_alive_by_pings(base):
    body = {"model": "late", "max_tokens": 9, "messages": [user()], "stream": True}
    raw = httpx.post(f"{base}/v1/messages", json=body, timeout=30).text
    assert 'event: ping\ndata: {"type": "ping"}' in raw
    with anthropic.Anthropic(base_url=base, api_key="none") as client:
        assert said(client.messages.create(model="late", max_tokens=9, messages=[user()])) == "Here."
