"""What a reply says about itself, what a request may ask of an ensemble beforehand, and what it may limit."""

import json

import openai
import pytest

CONFIG = {
    "model_specs": [
        {"name": "big", "engine": "echo", "replies": {"": "Goal: add. Planning: add."}, "parameters": 9},
        {"name": "small", "engine": "echo", "replies": {"": "It is 4."}, "parameters": 1},
        {"name": "größe,1", "engine": "echo", "replies": {"": "4"}, "parameters": 2},
    ],
    "ensemble": {
        "models": ["big", "small"],
        "output_aggregation_method": "tandem",
        "output_aggregation_params": {"levels": {"low": 2, "high": 4}, "judge": "fixed:high"},
    },
    "ensembles": {
        "drawn": {
            "models": ["big", "small"],
            "model_selection_method": "random",
            "output_aggregation_method": "loop",
        },
        "best": {"models": ["big", "small"], "output_aggregation_method": "vote"},
    },
}
PRICED = {"prompt": 1.0, "completion": 10.0}
CONFIG["model_specs"].append(
    {
        "name": "paid",
        "engine": "echo",
        "replies": {"": "a b c d", "long": "a b"},
        "parameters": 5,
        "price": PRICED,
    }
)
CONFIG["model_specs"].append({"name": "real", "engine": "hf", "path": "builtin:intern"})
CONFIG["ensembles"] |= {
    "turns": {
        "models": ["big", "small"],
        "output_aggregation_method": "loop",
        "output_aggregation_params": {"max_new_tokens_per_round": 4},
    },
    "mixed": {"models": ["real"], "output_aggregation_method": "gac"},
    "ended": {"models": ["small"], "generation": {"stop_strings": ["4"]}},
}
CONFIG["ensembles"]["fresh"] = CONFIG["ensemble"]
CHAT = {"messages": [{"role": "user", "content": "2 + 2?"}]}
ROUTES = [
    ("/v1/chat/completions", CHAT),
    ("/v1/completions", {"prompt": "2 + 2?"}),
    ("/v1/responses", {"input": "2 + 2?"}),
    ("/v1/messages", {**CHAT, "max_tokens": 32}),
]
SAYS = "stopped at 4 mentor tokens"


@pytest.fixture(scope="module")
def server(serve):
    return serve(json.dumps(CONFIG))


def events(response):
    lines = [line[6:] for line in response.text.splitlines() if line.startswith("data: {")]
    return [json.loads(line) for line in lines]


def told(reply):
    """The metadata, wherever this API has them."""
    return reply["choices"][0]["metadata"] if "choices" in reply else reply["ensemble"]


@pytest.mark.parametrize(("path", "body"), ROUTES)
def test_every_reply_says_who_wrote_it_and_why(server, path, body):
    found = server.post(path, body, headers={"X-Request-Id": "mine-1"})
    assert {name: value for name, value in found.headers.items() if name.startswith("x-ensemble-")} == {
        "x-ensemble-method": "tandem",
        "x-ensemble-members": "big, small",
        "x-ensemble-insight": "big",
        "x-ensemble-answer": "small",
        "x-ensemble-explanation": SAYS,
    }
    said = told(found.json())
    assert (said["request_id"], said["explanation"], said["estimated_saving"]) == ("mine-1", SAYS, None)
    assert said["attribution"]["summary"] == "[R01:big] → [R02:small]"


@pytest.mark.parametrize(("path", "body"), ROUTES)
def test_a_stream_says_the_same_at_its_end(server, path, body):
    options = {"stream_options": {"include_usage": True}} if "completions" in path else {}
    found = server.post(path, {**body, "stream": True, **options}, headers={"X-Request-Id": "mine-2"})
    assert found.headers["x-ensemble-members"] == "big, small"
    assert "x-ensemble-answer" not in found.headers  # nobody knows it yet
    ensembles = [part.get("ensemble") or part.get("response", {}).get("ensemble") for part in events(found)]
    said = [part for part in ensembles if part][-1]
    said = said["metadata"][0] if "metadata" in said else said
    assert (said["request_id"], said["explanation"]) == ("mine-2", SAYS)
    assert [segment["model"] for segment in said["attribution"]["segments"]] == ["big", "small"]


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("small", "written by small, by single"),
        ("drawn", "written by {}, chosen by random"),
        ("best", "no reply has a readable answer; big's is given"),
    ],
)
def test_other_ensembles_have_a_reason_too(server, model, says):
    found = server.post("/v1/chat/completions", {**CHAT, "model": model}).json()
    (author,) = {segment["model"] for segment in told(found)["attribution"]["segments"]}
    assert told(found)["explanation"] == says.format(author)
    assert found["usage"]["cost_details"]["explanation"] == says.format(author)


def test_a_name_that_is_not_ascii_fits_into_a_header(server):
    found = server.post("/v1/chat/completions", {**CHAT, "model": "größe,1"})
    assert found.headers["x-ensemble-answer"] == "gr%C3%B6%C3%9Fe%2C1"
    assert told(found.json())["selected_models"] == ["größe,1"]


def test_several_answers_have_each_a_reason_of_its_own(server):
    found = server.post("/v1/chat/completions", {**CHAT, "n": 2})
    assert found.headers["x-ensemble-method"] == "tandem"
    assert "x-ensemble-explanation" not in found.headers
    assert [choice["metadata"]["explanation"] for choice in found.json()["choices"]] == [SAYS, SAYS]


def test_the_sdk_takes_the_last_chunk(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        options = {"stream": True, "stream_options": {"include_usage": True}}
        *_, last = client.chat.completions.create(model="ensemble", **CHAT, **options)
        assert last.model_extra["ensemble"]["metadata"][0]["explanation"] == SAYS
        raw = client.chat.completions.with_raw_response.create(model="ensemble", **CHAT)
        assert raw.headers["x-ensemble-answer"] == "small"


def preview(server, **changes):
    found = server.post("/v1/ensemble/preview", {**CHAT, **changes})
    assert found.status_code == 200, found.text
    return found.json()


def test_a_preview_names_the_members_and_their_roles_and_generates_nothing(server):
    before = server.get("/metrics").text
    found = preview(server)
    assert [(member["model"], member["role"], member["always"]) for member in found["members"]] == [
        ("big", "mentor", True),
        ("small", "intern", True),
    ]
    assert (found["method"], found["selection"], found["answers"]) == ("tandem", "all", 1)
    after = server.get("/metrics").text
    tokens = [line for line in before.splitlines() if line.startswith("ensemblehub_tokens_total")]
    assert tokens == [line for line in after.splitlines() if line.startswith("ensemblehub_tokens_total")]
    drawn = preview(server, model="drawn")
    assert {member["always"] for member in drawn["members"]} == {False}
    assert {member["role"] for member in drawn["members"]} == {"member"}


@pytest.mark.parametrize("model", ["ensemble", "fresh"])
def test_a_preview_leaves_out_a_mentor_that_writes_no_insight(server, model):
    found = preview(server, model=model, reasoning_effort="none", max_tokens=10)
    assert [member["model"] for member in found["members"]] == ["small"]
    assert found["cost"]["tokens"]["high"] == 3 + 10


def test_without_earlier_replies_only_lengths_are_known(server):
    found = preview(server, model="paid", max_tokens=10, n=2)
    assert (found["basis"], found["replies"], found["confidence"]) == ("lengths", 0, None)
    assert found["cost"]["tokens"] == {"expected": None, "low": 2 * (3 + 1), "high": 2 * (3 + 10)}
    assert found["cost"]["usd"] == {"expected": None, "low": 2 * 13e-6, "high": 2 * 103e-6}
    tandem = preview(server, model="fresh", max_tokens=10)["members"]
    assert [member["cost"]["tokens"]["high"] for member in tandem] == [
        3 + 4,
        3 + 10,
    ]  # the mentor's highest level
    assert tandem[0]["cost"]["usd"] is None  # no price is known
    assert tandem[1]["cost"]["flops"] == {"expected": None, "low": 6.0, "high": 2.0 * (3 + 9)}


def test_earlier_replies_give_an_estimate_with_an_interval(server):
    questions = ["2 + 2?", "2 + 2?", "2 + 2?", "2 + 2?", "2 + 2 or 3 + 3 + 3?"]  # of 3 and of 9 tokens
    for question in questions:
        asked = {"model": "paid", "messages": [{"role": "user", "content": question}], "max_tokens": 4}
        server.post("/v1/chat/completions", asked)
    found = preview(server, model="paid", max_tokens=3)
    assert (found["basis"], found["replies"], found["confidence"]) == ("replies", 5, pytest.approx(1 - 2 / 6))
    assert found["cost"]["tokens"] == {"expected": 3 + 3, "low": 3 + 3, "high": 3 + 3}
    assert found["cost"]["usd"]["expected"] == pytest.approx(33e-6)
    assert found["members"][0]["share"] == 1.0
    longer = [{"role": "user", "content": "2 + 2 + 2?"}]
    assert preview(server, model="paid", messages=longer, n=2)["cost"]["tokens"]["expected"] == 2 * (5 + 4)


@pytest.mark.parametrize(
    ("changes", "status", "param"),
    [
        ({"model": "nobody"}, 404, "model"),
        ({"messages": []}, 400, "messages"),
        ({"tools": [{"type": "function", "function": {"name": "add"}}]}, 400, "tools"),
        ({"max_tokens": 10**6}, 400, "max_tokens"),
    ],
)
def test_a_preview_refuses_what_would_be_refused(server, changes, status, param):
    refused = server.post("/v1/ensemble/preview", {**CHAT, **changes})
    asked = server.post("/v1/chat/completions", {**CHAT, **changes})
    assert (refused.status_code, refused.json()) == (status, asked.json())
    assert refused.json()["error"]["param"] == param


@pytest.mark.parametrize(
    ("model", "stops", "reason", "string"),
    [
        ("small", ["4", "is"], "stop_sequence", "is"),
        ("small", ["nothing"], "end_turn", None),
        ("ensemble", ["4"], "stop_sequence", "4"),
        ("turns", ["Planning"], "stop_sequence", "Planning"),
        ("best", ["dd"], "stop_sequence", "dd"),
        ("mixed", ["owl", " "], "stop_sequence", " "),
        ("ended", ["nothing"], "end_turn", None),  # by a stop string of the operator's
    ],
)
def test_a_message_says_which_stop_string_ended_it(server, model, stops, reason, string):
    body = {**CHAT, "model": model, "max_tokens": 40, "stop_sequences": stops}
    message = server.post("/v1/messages", body).json()
    assert (message["stop_reason"], message["stop_sequence"]) == (reason, string)
    said = "".join(block["text"] for block in message["content"] if block["type"] == "text")
    assert string is None or string not in said
    (delta,) = [
        part
        for part in events(server.post("/v1/messages", {**body, "stream": True}))
        if "delta" in part and "usage" in part
    ]
    assert delta["delta"] == {"stop_reason": reason, "stop_sequence": string}
    if model == "small":
        chat = server.post("/v1/chat/completions", {**CHAT, "model": model, "stop": stops}).json()
        assert chat["choices"][0]["finish_reason"] == "stop"
