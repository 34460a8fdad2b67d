"""What a request may limit: who takes part, what is spent, and which models go on with a conversation."""

import json

import openai
import pytest
from openai.types.responses import Response

from ensemblehub.api.budget import Spending
from ensemblehub.api.catalog import Catalog, Requiring
from ensemblehub.config import Config
from ensemblehub.config.sections import Budget
from ensemblehub.cost import UsageLedger
from ensemblehub.ensemble_methods.model_selection.all import All
from ensemblehub.ensemble_methods.model_selection.random import RandomSelection
from ensemblehub.errors import ConfigError
from ensemblehub.schema import Chat, Message, Request

WORDS = " ".join(map(str, range(1, 41)))
PRICE = {"prompt": 1.0, "completion": 10.0}
CONFIG = {
    "model_specs": [
        {"name": "big", "engine": "echo", "replies": {"": "a b c d e f g h"}, "parameters": 9},
        {"name": "small", "engine": "echo", "replies": {"": WORDS}, "parameters": 1, "price": PRICE},
        {"name": "third", "engine": "echo", "replies": {"": WORDS}, "parameters": 2},
    ],
    "ensemble": {
        "models": ["big", "small"],
        "output_aggregation_method": "tandem",
        "output_aggregation_params": {"levels": {"low": 2, "high": 4}, "judge": "fixed:high"},
        "request_members": [],
    },
    "ensembles": {
        "votes": {"output_aggregation_method": "vote", "request_members": ["small", "third"]},
        "drawn": {"model_selection_method": "random"},
        "pair": {"models": ["big", "small"], "output_aggregation_method": "tandem"},
    },
    "server": {"request_budget": {"tokens": 1000}, "stored_responses": 10},
}
CHAT = {"messages": [{"role": "user", "content": "2 + 2?"}]}  # three tokens
MODELS = ["big", "small", "third"]


@pytest.fixture(scope="module")
def server(serve):
    return serve(json.dumps(CONFIG))


def ask(server, model="ensemble", **options):
    return server.post("/v1/chat/completions", {**CHAT, "model": model, "ensemble": options})


def members(reply):
    return reply.json()["choices"][0]["metadata"]["selected_models"]


def refusal(reply):
    error = reply.json()["error"]
    return reply.status_code, error["param"], error["message"]


def test_a_member_is_left_out_where_the_operator_allows_it(server):
    assert members(ask(server, "votes")) == MODELS
    found = ask(server, "votes", exclude=["third"])
    assert members(found) == ["big", "small"]
    assert {line["engine"] for line in found.json()["usage"]["cost_details"]["spent"]} == {"big", "small"}
    assert refusal(ask(server, "votes", exclude=["big"])) == (
        400,
        "ensemble.exclude",
        "a request may not exclude 'big' here; it may: small, third",
    )
    assert refusal(ask(server, exclude=["big"]))[2].endswith("it may: none")
    assert "did you mean 'third'" in refusal(ask(server, "votes", exclude=["thrid"]))[2]
    assert "cannot answer so" in refusal(ask(server, "pair", exclude=["big"]))[2]
    assert refusal(ask(server, "pair", exclude=["big", "small"]))[2] == "no member is left to answer"
    assert refusal(ask(server, "drawn", exclude=MODELS))[0] == 400
    assert refusal(ask(server, "small", exclude=["small"]))[0] == 400
    assert refusal(ask(server, "votes", exclude=["small"], require=["small"]))[0] == 400


def test_a_selection_keeps_a_member_that_is_required(server):
    for _ in range(4):
        assert members(ask(server, "drawn", require=["third"])) == ["third"]
    assert "did you mean 'third'" in refusal(ask(server, "drawn", require=["thrid"]))[2]


async def chosen(selection, required, engines):
    requiring = Requiring(selection, required)
    request = Request(Chat((Message("user", "2 + 2?"),)))
    found = await requiring.select(request, engines, UsageLedger())
    return [engine.name for engine in found]


@pytest.mark.anyio
async def test_required_members_take_the_places_of_the_others():
    engines = Catalog(Config.model_validate(CONFIG)).engines
    assert await chosen(RandomSelection(k=1), ("third",), engines) == ["third"]
    assert await chosen(All(), ("third",), engines) == MODELS
    assert set(await chosen(RandomSelection(k=2), ("third", "big"), engines)) == {"third", "big"}
    assert "small" in await chosen(RandomSelection(k=2), ("small",), engines)


def test_operators_bounds_name_models_there_are():
    wrong = json.loads(json.dumps(CONFIG))
    wrong["ensembles"]["votes"]["request_members"] = ["smal"]
    with pytest.raises(ConfigError, match="did you mean 'small'"):
        Catalog(Config.from_dict(wrong))


@pytest.mark.parametrize(
    ("budget", "written"),
    [
        ({"tokens": 13}, 10),  # three are read
        ({"usd": 63e-6}, 6),
        ({"tflops": 1e-12 * 2 * (3 + 4)}, 5),  # the first comes with the prompt
        ({"tokens": 1000}, 40),
        ({"tokens": 2}, 0),
    ],
)
def test_an_answer_ends_where_its_budget_does(server, budget, written):
    found = ask(server, "small", budget=budget).json()
    (choice,) = found["choices"]
    assert choice["message"]["content"] == " ".join(WORDS.split()[:written])
    cut = written < 40
    assert choice["finish_reason"] == ("length" if cut else "stop")
    assert choice["metadata"]["finish"] == ("budget" if cut else "stop")
    details = found["usage"]["cost_details"]
    assert sum(line["completion_tokens"] for line in details["spent"]) == written
    spent = {"usd": details["usd"], "tflops": details["flops"] / 1e12, "tokens": written + 3}
    ((name, limit),) = budget.items()
    assert written == 0 or spent[name] == pytest.approx(limit) or not cut


def test_what_all_models_and_all_answers_spend_counts_together(server):
    whole = ask(server).json()["usage"]["cost_details"]["spent"]
    read = sum(line["prompt_tokens"] for line in whole)
    found = ask(server, budget={"tokens": read + 4 + 6}).json()["choices"][0]
    assert found["message"]["reasoning_content"] == "a b c d"
    assert found["metadata"]["finish"] == "budget"
    assert found["message"]["content"] == "1 2 3 4 5 6"
    body = {**CHAT, "model": "small", "n": 2, "ensemble": {"budget": {"tokens": 20}}}
    details = server.post("/v1/chat/completions", body).json()["usage"]["cost_details"]
    assert sum(line["completion_tokens"] for line in details["spent"]) in (
        14,
        15,
    )  # each may write its last piece
    hidden = ask(server, "votes", budget={"tokens": 20}).json()  # candidates that no client sees
    assert hidden["choices"][0]["metadata"]["finish"] == "budget"
    assert hidden["choices"][0]["message"]["content"] == ""
    written = sum(line["completion_tokens"] for line in hidden["usage"]["cost_details"]["spent"])
    assert written in (11, 12, 13)


def test_every_api_says_in_its_words_that_the_budget_is_spent(server):
    options = {"ensemble": {"budget": {"tokens": 13}}}
    said = " ".join(WORDS.split()[:10])
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        stream = client.chat.completions.create(model="small", stream=True, extra_body=options, **CHAT)
        parts = list(stream)
        assert "".join(part.choices[0].delta.content or "" for part in parts) == said
        assert parts[-1].choices[0].finish_reason == "length"
        assert parts[-1].model_extra["ensemble"]["finish"] == "budget"
        response = client.responses.create(model="small", input="2 + 2?", extra_body=options)
        Response.model_validate(json.loads(response.to_json()))
        assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")
        assert (response.output_text, response.ensemble["finish"]) == (said, "budget")
    body = {**CHAT, "model": "small", "max_tokens": 100, **options}
    message = server.post("/v1/messages", body).json()
    assert (message["stop_reason"], message["ensemble"]["finish"]) == ("max_tokens", "budget")
    text = server.post("/v1/completions", {"prompt": "2 + 2?", "model": "small", **options}).json()
    assert (text["choices"][0]["text"], text["choices"][0]["finish_reason"]) == (said, "length")


def test_a_likelihood_is_whole_or_refused(server):
    body = {"prompt": "1 2 3", "model": "small", "echo": True, "logprobs": 1, "max_tokens": 1}
    whole = server.post("/v1/completions", {**body, "ensemble": {"budget": {"tokens": 100}}})
    assert whole.status_code == 200
    status, _, says = refusal(server.post("/v1/completions", {**body, "ensemble": {"budget": {"tokens": 2}}}))
    assert (status, says) == (400, "the budget of the request is spent: 3 of 2 tokens")


def test_a_request_may_ask_for_less_than_the_operator_allows_and_not_for_more(server):
    assert refusal(ask(server, budget={"tokens": 1001})) == (
        400,
        "ensemble.budget.tokens",
        "tokens is at most 1000 here",
    )
    asked = {**CHAT, "ensemble": {"budget": {"tokens": 1001}}}
    assert server.post("/v1/ensemble/preview", asked).status_code == 400
    for wrong in ({"tokens": 0}, {"usd": -1}, {"euros": 1}, {"usd": "much"}):
        assert ask(server, budget=wrong).status_code == 400


@pytest.mark.anyio
async def test_token_level_methods_stop_at_a_budget(tmp_path):
    """Every step of a decoder is counted, and a closed decoder is no longer in progress."""
    config = {
        "model_specs": [
            {"name": name, "engine": "hf", "path": f"builtin:{name}"} for name in ("mentor", "intern")
        ],
        "ensemble": {"output_aggregation_method": "gac", "generation": {"max_tokens": 40}},
    }
    catalog = Catalog(Config.from_dict(config))
    ensemble = catalog.find("ensemble").ensemble
    spending = Spending(Budget(tokens=60))
    ledger = spending.ledger()
    async with ensemble:
        with pytest.raises(Exception, match="the budget of the request is spent"):
            async for _ in spending.watched(ensemble).stream(
                "There are 8 bowls. How many bowls are there?", ledger
            ):
                pass
    total = ledger.total
    assert 60 <= total.prompt_tokens - total.cached_tokens + total.completion_tokens <= 62
    assert spending.reached


def test_a_conversation_stays_with_the_members_of_its_first_turn(server):
    first = members(ask(server, "drawn", conversation="c1"))
    assert [members(ask(server, "drawn", conversation="c1")) for _ in range(8)] == 8 * [first]
    others = {tuple(members(ask(server, "drawn", conversation=f"other-{number}"))) for number in range(12)}
    assert len(others) > 1
    missing = next(name for name in MODELS if name not in first)
    assert members(ask(server, "drawn", conversation="c1", require=first[:1])) == first
    refused = refusal(ask(server, "drawn", conversation="c1", require=[missing]))
    assert refused[:2] == (400, "ensemble.require")
    assert refusal(ask(server, "drawn", conversation=""))[0] == 400


def test_a_continued_response_stays_with_its_members(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        last = client.responses.create(model="drawn", input="2 + 2?")
        first = last.ensemble["selected_models"]
        for _ in range(6):
            last = client.responses.create(model="drawn", input="Sure?", previous_response_id=last.id)
            assert last.ensemble["selected_models"] == first


def test_conversations_are_bounded_and_may_be_off(serve):
    few = serve(json.dumps({**CONFIG, "server": {"conversations": 1}}))
    off = serve(json.dumps({**CONFIG, "server": {"conversations": 0}}))
    first = {tuple(members(ask(few, "drawn", conversation="a"))) for _ in range(4)}
    assert len(first) == 1
    found = set()
    for _ in range(12):  # forgotten when another conversation comes
        ask(few, "drawn", conversation="b")
        found.add(tuple(members(ask(few, "drawn", conversation="a"))))
    assert len(found) > 1
    assert refusal(ask(off, "drawn", conversation="a"))[1] == "ensemble.conversation"
