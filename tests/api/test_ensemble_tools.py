"""Tools through ensembles whose answer one model writes whole: Tandem and the cascade."""

import json

import pytest

pytest.importorskip("fastapi")

from starlette.testclient import TestClient

from ensemblehub.api.app import create_app
from ensemblehub.config import Config
from tests.clients.caller import CallingEngine

CALLER = "tests.clients.caller:CallingEngine"
ADD = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
ASK = {"messages": [{"role": "user", "content": "2 + 2?"}], "tools": [ADD], "max_tokens": 16}
CASCADE = {"output_aggregation_method": "cascade"}


def tandem(intern, **params):
    return {
        "output_aggregation_method": "tandem",
        "output_aggregation_params": {
            "mentor": "big", "intern": intern, "levels": {"low": 2}, "judge": "fixed:low", **params
        },
    }  # fmt: skip


ENSEMBLES = {
    "cascade": {**CASCADE, "models": ["sure", "big"]},
    "doubted": {**CASCADE, "models": ["unsure", "big"]},
    "unseen": {**CASCADE, "models": ["unknown", "big"]},
    "asked": {**CASCADE, "models": ["sure", "big"], "output_aggregation_params": {"accept": "ask"}},
    "without": tandem("plain"),
    "begun": tandem("sure", insight_mode="continuation"),
    "drafting": tandem("sure", draft="logprob"),
    "mentoring": tandem("sure", judge="fixed:high", levels={"low": 2, "high": 4}, fallback="mentor"),
    "votes": {"output_aggregation_method": "vote", "models": ["sure", "big"]},
}


@pytest.fixture(scope="module")
def client():
    def caller(name, size, **options):
        replies = {"You are the mentor": "Goal: add them up.", "": f"The tool told {name}."}
        return {"name": name, "engine": CALLER, "parameters": size, "replies": replies, **options}

    models = [
        caller("big", 9, calls={"add": {"by": "big"}}),
        caller("sure", 1, calls={"add": {"by": "sure"}}, knows=True, logprob=-0.01),
        caller("unsure", 1, calls={"add": {"by": "unsure"}}, knows=True, logprob=-1),
        caller("unknown", 1, calls={"add": {"by": "unknown"}}),
        {"name": "plain", "engine": "echo"},
    ]
    config = {"model_specs": models, "ensemble": tandem("sure"), "ensembles": ENSEMBLES}
    with TestClient(create_app(Config.from_dict(config)), "http://127.0.0.1") as client:
        yield client


def post(client, body):
    return client.post("/v1/chat/completions", json={**ASK, **body})


def call_of(answer):
    (choice,) = answer.json()["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    (call,) = choice["message"]["tool_calls"]
    return json.loads(call["function"]["arguments"])["by"], choice["message"].get("reasoning_content")


@pytest.mark.parametrize(
    ("model", "author"),
    [
        ("ensemble", "sure"),  # Tandem's intern
        ("cascade", "sure"),
        ("doubted", "big"),
        ("unseen", "big"),  # tokens of calls that are not known are not trusted
    ],
)
def test_the_model_that_answers_calls_the_tool(client, model, author):
    by, insight = call_of(post(client, {"model": model}))
    assert by == author
    assert insight == ("Goal: add" if model == "ensemble" else None)
    with client.stream("POST", "/v1/chat/completions", json={**ASK, "model": model, "stream": True}) as lines:
        events = [json.loads(line[6:]) for line in lines.iter_lines() if line.startswith("data: {")]
    deltas = [event["choices"][0]["delta"] for event in events if event["choices"]]
    parts = [part for delta in deltas for part in delta.get("tool_calls", ())]
    assert json.loads("".join(part["function"]["arguments"] for part in parts)) == {"by": author}
    assert [len(delta["tool_calls"]) for delta in deltas if "tool_calls" in delta] == [1, 1, 1]
    assert all(delta.get("content") is None for delta in deltas)


@pytest.mark.parametrize(("model", "author"), [("ensemble", "sure"), ("cascade", "sure"), ("doubted", "big")])
def test_the_tools_reply_is_read_by_the_next_answer(client, model, author):
    call = {"id": "c", "type": "function", "function": {"name": "add", "arguments": "{}"}}
    turns = [*ASK["messages"], {"role": "assistant", "content": None, "tool_calls": [call]}]
    turns += [{"role": "tool", "tool_call_id": "c", "content": "4"}]
    reply = post(client, {"model": model, "messages": turns}).json()["choices"][0]["message"]
    assert "tool_calls" not in reply
    assert reply["content"] == f"The tool told {author}."


def test_a_mentor_that_knows_tools_is_shown_them_and_calls_none(client, monkeypatch):
    stream, seen = CallingEngine.stream, {}

    def spy(engine, request, meter):
        seen[engine.name] = request.extra
        return stream(engine, request, meter)

    monkeypatch.setattr(CallingEngine, "stream", spy)
    call_of(post(client, {"model": "ensemble", "tool_choice": "required"}))
    offered = {"tools": [ADD], "tool_choice": "required"}
    assert seen == {"big": {"tools": [ADD], "tool_choice": "none"}, "sure": offered}


@pytest.mark.parametrize(
    ("model", "why"),
    [
        ("without", "plain lacks 'tools'"),
        ("asked", "answers with several models; tools goes with one that writes it whole"),
        ("begun", "answers with several models"),
        ("drafting", "answers with several models"),
        ("votes", "answers with several models"),
    ],
)
def test_a_strategy_that_cannot_refuses_by_name(client, model, why):
    error = post(client, {"model": model})
    assert error.status_code == 400
    assert why in error.json()["error"]["message"]
    assert error.json()["error"]["param"] == "tools"
    assert post(client, {"model": model, "tool_choice": "none"}).status_code == 200


def test_the_mentor_calls_where_it_answers_itself(client):
    assert call_of(post(client, {"model": "mentoring", "reasoning_effort": "low"}))[0] == "big"


def test_the_other_apis_get_the_insight_and_the_call(client):
    tool = {"name": "add", "input_schema": {"type": "object"}}
    thought = {"thinking": {"type": "adaptive"}}
    body = {**thought, "model": "ensemble", "max_tokens": 16, "messages": ASK["messages"], "tools": [tool]}
    reply = client.post("/v1/messages", json=body).json()
    assert [block["type"] for block in reply["content"]] == ["thinking", "tool_use"]
    assert reply["content"][1]["input"] == {"by": "sure"}
    body = {"model": "ensemble", "input": "2 + 2?", "tools": [{"type": "function", **ADD["function"]}]}
    reply = client.post("/v1/responses", json=body).json()
    assert [item["type"] for item in reply["output"]] == ["reasoning", "function_call"]
