"""Budgets, pinned members and counts of tokens where several models answer."""

import re
from pathlib import Path

import pytest

pytest.importorskip("fastapi")

from starlette.testclient import TestClient

import ensemblehub
from ensemblehub.api.app import create_app
from ensemblehub.config import Config
from tests.waiting import until

BUILTIN = Path(ensemblehub.__file__).parent / "builtin/builtin_tandem.yaml"
CHAT = "/v1/chat/completions"
ASK = {"messages": [{"role": "user", "content": "2 + 2?"}], "max_tokens": 16}


@pytest.fixture
def client(tmp_path):
    models = [
        {"name": "big", "engine": "echo", "parameters": 9, "replies": {"": "Goal: add them."}},
        {"name": "small", "engine": "echo", "parameters": 1, "replies": {"": "It is 4."}},
    ]
    tandem = {
        "output_aggregation_method": "tandem",
        "output_aggregation_params": {"levels": {"low": 2}, "judge": "fixed:low"},
    }
    config = {
        "model_specs": models,
        "ensemble": tandem,
        "ensembles": {"turns": {"output_aggregation_method": "loop"}},
        "server": {"key_budget": {"tokens": 500}, "key_budget_file": str(tmp_path / "spent.sqlite")},
    }
    with TestClient(create_app(Config.from_dict(config), keys=["one", "two"]), "http://127.0.0.1") as client:
        client.headers = {"authorization": "Bearer one"}
        yield client


def preview(client, **fields):
    return client.post("/v1/ensemble/preview", json={**ASK, **fields}).json()


def test_what_is_left_for_a_key_and_too_little_to_begin_an_answer_is_a_429(client):
    spent = [client.post(CHAT, json=ASK) for _ in range(2)]
    assert [answer.json()["choices"][0]["message"]["content"] for answer in spent] == ["It is 4."] * 2
    for _ in range(2):  # the mentor's prompt is longer than what is left
        refused = client.post(CHAT, json=ASK)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "budget_spent")
        says = r"does not suffice: \d+ tokens are left; the next day begins at "
        assert re.search(says, refused.json()["error"]["message"])
        assert int(refused.headers["retry-after"]) > 0
    for path in ("/v1/messages", "/v1/responses"):
        form = {"input": "2 + 2?"} if path.endswith("responses") else ASK
        assert client.post(path, json={**form, "model": "ensemble"}).status_code == 429
    streamed = client.post(CHAT, json={**ASK, "stream": True})
    assert streamed.status_code == 429 or '"budget_spent"' in streamed.text
    assert client.post(CHAT, json={**ASK, "model": "small"}).status_code == 200  # for which it suffices


def test_a_request_that_limits_itself_gets_what_was_written_and_is_told_why(client):
    answer = client.post(CHAT, json={**ASK, "ensemble": {"budget": {"tokens": 1}}})
    choice = answer.json()["choices"][0]
    assert (choice["finish_reason"], choice["metadata"]["finish"]) == ("length", "budget")
    assert choice["metadata"]["explanation"] == "ended by its budget after 0 tokens of the answer"


def test_answers_that_a_budget_ended_do_not_spoil_the_preview_and_a_budget_bounds_it(client):
    tiny = {**ASK, "ensemble": {"budget": {"tokens": 1}}}
    for _ in range(6):
        assert client.post(CHAT, json=tiny).status_code == 200
    assert preview(client)["basis"] == "lengths"
    assert preview(client)["cost"]["tokens"]["high"] > 20
    assert preview(client, **tiny)["cost"]["tokens"]["high"] == 1


def test_a_saving_is_estimated_for_what_the_mentor_would_have_written():
    with TestClient(create_app(Config.read(BUILTIN)), "http://127.0.0.1") as client:
        until(lambda: client.get("/health").status_code == 200)
        question = "There are 8 bowls. The mugs are twice the bowls. How many mugs are there?"
        asked = {"messages": [{"role": "user", "content": question}], "temperature": 0}

        def alone(**more):
            preview = client.post("/v1/ensemble/preview", json={**asked, **more}).json()
            reply = client.post(CHAT, json={**asked, **more}).json()
            told = reply["choices"][0]["metadata"]
            details = reply["usage"]["cost_details"]
            flops = details["estimated_mentor_alone_flops"]
            assert preview["estimated_mentor_alone_flops"] == flops
            assert ("estimated saving" in told["explanation"]) == (flops is not None)
            assert (told["estimated_saving"] is None) == (flops is None)
            return flops

        short = {**asked, "model": "mentor", "max_tokens": 16}
        reply = client.post(CHAT, json=short).json()
        assert reply["choices"][0]["finish_reason"] == "length"
        written = reply["usage"]["cost_details"]["cold_flops"]
        assert alone(max_tokens=16) == [written] * 3
        assert alone(max_completion_tokens=16) == [written] * 3
        known = alone(max_tokens=512)
        assert known[0] > 2 * written
        assert alone(max_tokens=512, enable_thinking=True) == known  # the template's default
        total = re.compile(r"ensemblehub_estimated_mentor_alone_flops_total\{model=\"ensemble\"\} (.*)")
        (counted,) = total.findall(client.get("/metrics").text)
        assert float(counted) == pytest.approx(2 * written + 2 * known[0])
        assert alone(max_tokens=512, enable_thinking=False) is None
        assert total.findall(client.get("/metrics").text) == [counted]


def test_an_answer_that_a_budget_ended_saves_nothing():
    with TestClient(create_app(Config.read(BUILTIN)), "http://127.0.0.1") as client:
        until(lambda: client.get("/health").status_code == 200)
        question = "There are 8 bowls. How many bowls are there?"
        asked = {"messages": [{"role": "user", "content": question}], "ensemble": {"budget": {"tokens": 1}}}
        answer = client.post(CHAT, json=asked)
        reply = answer.json()
        saved = [reply["choices"][0]["metadata"], reply["usage"]["cost_details"]]
        assert saved[1]["estimated_mentor_alone_flops"]
        assert [each["estimated_saving"] for each in saved] == [None, None]
        assert "x-ensemble-estimated-saving" not in answer.headers
        assert "ensemblehub_estimated_saving_flops{" not in client.get("/metrics").text
        del asked["ensemble"]
        assert client.post(CHAT, json=asked).json()["usage"]["cost_details"]["estimated_saving"] > 0
        assert "ensemblehub_estimated_saving_flops{" in client.get("/metrics").text


def members(client, **options):
    body = {**ASK, "model": "turns", "ensemble": {"conversation": "c", **options}}
    answer = client.post(CHAT, json=body)
    return answer.headers["x-ensemble-members"] if answer.status_code == 200 else answer.json()["error"]


def test_a_conversation_keeps_the_members_of_its_first_turn(client):
    assert members(client) == "big, small"
    assert members(client, exclude=["big"]) == "small"
    assert members(client) == "big, small"
    assert members(client, conversation="d", exclude=["big"]) == "small"
    error = members(client, conversation="d", require=["big"])
    assert (error["param"], error["message"]) == (
        "ensemble.require",
        "the conversation began without 'big', and goes on with small",
    )


def test_dollars_that_nothing_can_cost_are_no_limit(caplog):
    config = Config.from_dict(
        {
            "model_specs": [{"name": "m", "engine": "numpy", "path": "builtin:intern"}],
            "server": {"request_budget": {"usd": 1}},
        }
    )
    with TestClient(create_app(config), "http://127.0.0.1") as client:
        until(lambda: client.get("/health").status_code == 200)
        answer = client.post(CHAT, json={**ASK, "ensemble": {"budget": {"usd": 0.5}}}).json()["error"]
    assert (answer["param"], answer["code"]) == ("ensemble.budget.usd", "unsupported")
    assert "server.request_budget.usd: no model here has a price" in caplog.text


def test_the_tokens_of_a_prompt_are_counted_for_both_apis(client):
    asked = {"model": "ensemble", "input": "2 + 2?"}
    counted = client.post("/v1/responses/input_tokens", json=asked).json()
    assert counted == {"object": "response.input_tokens", "input_tokens": 3}
    asked = {"model": "ensemble", "messages": ASK["messages"]}
    assert client.post("/v1/messages/count_tokens", json=asked).json() == {"input_tokens": 3}


def test_what_would_be_refused_is_not_counted(client):
    tools = [{"name": "add", "input_schema": {"type": "object"}}]
    body = {"model": "small", "max_tokens": 8, "messages": ASK["messages"], "tools": tools}
    asked = client.post("/v1/messages", json=body)
    counted = client.post("/v1/messages/count_tokens", json=body)
    assert asked.status_code == counted.status_code == 400
    assert counted.json()["error"] == asked.json()["error"]


def test_a_message_of_the_assistants_alone_is_refused_in_the_words_of_the_api(client):
    body = {"model": "ensemble", "max_tokens": 8, "messages": [{"role": "assistant", "content": "x"}]}
    error = client.post("/v1/messages", json=body).json()["error"]
    assert error["message"] == "the user's message before the assistant's is missing"
