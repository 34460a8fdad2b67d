"""The API as it describes itself: no request makes the server fail, and replies are what clients are promised."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance

from ensemblehub.api import message_events, preview, replies, response_events

ROOT = Path(__file__).parents[2]
BOARD = ROOT / "results/qwen_coder/words"
KEY = {"Authorization": "Bearer key"}
CONFIG = {
    "model_specs": [
        {"name": "big", "engine": "echo", "replies": {"": "Goal: add.\nAction: 2 + 2."}, "parameters": 9},
        {"name": "small", "engine": "echo", "replies": {"": "It is 4."}, "parameters": 1},
        {
            "name": "caller",
            "engine": "caller:CallingEngine",
            "replies": {"": "The tool says 4."},
            "parameters": 5,
        },
    ],
    "ensemble": {
        "models": ["big", "small"],
        "output_aggregation_method": "tandem",
        "output_aggregation_params": {"levels": {"low": 2, "high": 4}, "judge": "fixed:high"},
        "request_params": {
            "judge": {"choices": ["fixed:low", "fixed:high"]},
            "thresholds": {"minimum": 0, "maximum": 1},
        },
        "generation": {"max_tokens": 8},
    },
    "ensembles": {
        "turns": {"output_aggregation_method": "loop", "models": ["big", "small"]},
        "votes": {"output_aggregation_method": "vote", "models": ["big", "small"]},
    },
    "server": {
        "max_output_tokens": 8,
        "stored_responses": 64,
        "key_budget": {"tokens": 10**9},
        "board": [str(BOARD)],
    },
}
PATHS = [
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/responses"),
    ("GET", "/v1/responses/{response_id}"),
    ("DELETE", "/v1/responses/{response_id}"),
    ("POST", "/v1/messages"),
    ("POST", "/v1/messages/count_tokens"),
    ("POST", "/v1/responses/input_tokens"),
    ("POST", "/v1/ensemble/preview"),
    ("POST", "/tokenize"),
    ("POST", "/detokenize"),
    ("GET", "/tokenizer_info"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/{name}"),
    ("GET", "/v1/ensemble/config"),
    ("GET", "/v1/ensemble/board"),
    ("GET", "/v1/ensemble/board/{place}"),
    ("GET", "/v1/ensemble/board/{place}/answers"),
    ("GET", "/health"),
    ("GET", "/status"),
    ("GET", "/metrics"),
]


CHECKS = [not_a_server_error, response_schema_conformance, content_type_conformance]


@pytest.fixture(scope="module")
def server(serve):
    path = os.pathsep.join([str(ROOT / "tests/clients"), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    return serve(json.dumps(CONFIG), env={"ENSEMBLEHUB_API_KEY": "key", "PYTHONPATH": path})


@pytest.fixture(scope="module")
def described(server):
    return schemathesis.openapi.from_url(server.url + "/openapi.json", headers=KEY)


def test_all_routes_are_described(described):
    assert {(operation.method.upper(), operation.path) for operation in operations(described)} == set(PATHS)


def operations(described):
    return [result.ok() for result in described.get_all_operations()]


CASES = [(*route, GenerationMode.POSITIVE) for route in PATHS]
CASES += [
    (*route, GenerationMode.NEGATIVE) for route in PATHS if route[0] == "POST"
]  # those that can be asked wrongly


PARAMETERS = {"type": "object", "properties": {"a": {"type": "integer"}}}
FUNCTION = {"name": "add", "parameters": PARAMETERS}
TOOLS = {
    "/v1/chat/completions": [{"type": "function", "function": FUNCTION}],
    "/v1/responses": [{"type": "function", **FUNCTION}],
    "/v1/messages": [{"name": "add", "input_schema": PARAMETERS}],
    "/v1/messages/count_tokens": [{"name": "add", "input_schema": PARAMETERS}],
    "/v1/ensemble/preview": [{"type": "function", "function": FUNCTION}],
}


def stored(server):
    """The id of a response that was just stored."""
    reply = asked(server, "/v1/responses", {"input": "2 + 2?", "model": "small"})
    return reply["id"]


def made_real(server, case, path):
    """Name what there is: a stored response, a place and a question of the board, a model that calls tools.

    Of a drawn body two fields stay: with all of them, one is nearly always refused.
    """
    there = {"response_id": lambda: stored(server), "place": lambda: 0, "name": lambda: "votes"}
    for name in case.path_parameters or ():
        case.path_parameters[name] = there[name]()
    if path == "/v1/responses/{response_id}":
        case.query.pop("stream", None)
    if path.endswith("/answers"):
        questions = asked(server, "/v1/ensemble/board/0", None)["questions"]
        case.query["question"] = questions[-1]["id"]
    if isinstance(case.body, dict) and path in TOOLS:
        drawn = dict(list(case.body.items())[:2])
        asks = {"input": "2 + 2?"} if path == "/v1/responses" else CHAT
        asks = {**asks, "max_tokens": 8} if path == "/v1/messages" else asks
        case.body = {**drawn, **asks, "model": "caller", "tools": TOOLS[path]}
    if isinstance(case.body, dict) and path == "/v1/responses":
        case.body["previous_response_id"] = stored(server)


@pytest.mark.parametrize(("method", "path", "mode"), CASES)
def test_no_request_makes_the_server_fail(described, server, method, path, mode):
    operation, seen = described[path][method], {True: [], False: []}

    @given(case=operation.as_strategy(generation_mode=mode), real=st.booleans())
    @settings(
        max_examples=40,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        derandomize=True,
        database=None,
    )
    def ask(case, real):
        if real:
            made_real(server, case, path)
        response = case.call(timeout=30, headers=KEY)
        seen[real].append(response.status_code)
        case.validate_response(response, checks=CHECKS)

    ask()
    assert seen[False]
    if "{" in path:
        assert set(seen[True]) == {200}, "what is there was not found"
    if path in TOOLS and mode == GenerationMode.POSITIVE:
        assert 200 in seen[True], "no request with tools was answered"


def test_errors_are_declared_as_they_are_and_replies_have_a_schema(server):
    described = server.get("/openapi.json", headers=KEY).json()
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            assert "422" not in operation["responses"]
            (content, *_) = operation["responses"]["200"]["content"].items()
            wanted = ("text/plain", {"schema": {"type": "string"}}) if path == "/metrics" else content
            assert content == wanted
            assert content[1]["schema"].get("type") != "string" or path == "/metrics"
            for status in ("400", "401", "404", "500", "default"):
                schema = operation["responses"][status]["content"]["application/json"]["schema"]
                name = "AnthropicError" if path.startswith("/v1/messages") else "Error"
                assert schema == {"$ref": f"#/components/schemas/{name}"}, (method, path)
    assert "HTTPValidationError" not in described["components"]["schemas"]


CHAT = {"messages": [{"role": "user", "content": "2 + 2?"}]}
REPLIES = [
    ("ChatCompletion", "/v1/chat/completions", CHAT),
    (
        "ChatCompletion",
        "/v1/chat/completions",
        {**CHAT, "model": "small", "logprobs": True, "top_logprobs": 2, "n": 2},
    ),
    ("ChatCompletion", "/v1/chat/completions", {**CHAT, "model": "votes"}),
    ("ChatCompletion", "/v1/chat/completions", {**CHAT, "model": "turns", "max_tokens": 3}),
    ("TextCompletion", "/v1/completions", {"prompt": "2 + 2?"}),
    (
        "TextCompletion",
        "/v1/completions",
        {"prompt": ["a b", "c"], "model": "small", "logprobs": 1, "echo": True},
    ),
    ("ResponseObject", "/v1/responses", {"input": "2 + 2?"}),
    ("ResponseObject", "/v1/responses", {"input": "2 + 2?", "model": "small", "max_output_tokens": 2}),
    ("MessageReply", "/v1/messages", {**CHAT, "max_tokens": 8, "thinking": {"type": "adaptive"}}),
    ("CountedTokens", "/v1/messages/count_tokens", CHAT),
    ("InputTokens", "/v1/responses/input_tokens", {"input": "2 + 2?", "model": "small"}),
    *(
        (name, path, {**asks, "model": "caller", "tools": TOOLS[path]})
        for name, path, asks in (
            ("ChatCompletion", "/v1/chat/completions", CHAT),
            ("ResponseObject", "/v1/responses", {"input": "2 + 2?"}),
            ("MessageReply", "/v1/messages", {**CHAT, "max_tokens": 8}),
        )
    ),
    ("Preview", "/v1/ensemble/preview", {**CHAT, "n": 2}),
    ("AnthropicError", "/v1/messages", CHAT),
    ("Error", "/v1/responses", {"input": []}),
    ("Error", "/v1/chat/completions", {**CHAT, "model": "nobody"}),
    ("Error", "/v1/chat/completions", {"messages": []}),
    ("Error", "/tokenize", {"prompt": "a", "model": "small"}),
    ("ModelList", "/v1/models", None),
    ("ModelObject", "/v1/models/votes", None),
    ("Configuration", "/v1/ensemble/config", None),
    ("Health", "/health", None),
    ("ServerStatus", "/status", None),
]


def asked(server, path, body):
    return (server.get(path, headers=KEY) if body is None else server.post(path, body, headers=KEY)).json()


def defined(module, name):
    return getattr(getattr(module, name, None), "__module__", None) == module.__name__


@pytest.mark.parametrize(("name", "path", "body"), REPLIES)
def test_replies_have_the_declared_fields_and_no_others(server, name, path, body):
    reply = asked(server, path, body)
    (kind,) = (
        getattr(module, name)
        for module in (replies, response_events, message_events, preview)
        if defined(module, name)
    )
    read = kind.model_validate(reply)
    assert json.loads(json.dumps(read.model_dump(exclude_unset=True))) == reply


@pytest.fixture(scope="module")
def generated(server, tmp_path_factory):
    """A client's models, generated from the description of a running server."""
    folder = tmp_path_factory.mktemp("client")
    (folder / "openapi.json").write_text(server.get("/openapi.json", headers=KEY).text)
    command = [
        sys.executable,
        "-m",
        "datamodel_code_generator",
        "--input",
        "openapi.json",
        "--output",
        "client.py",
    ]
    command += ["--input-file-type", "openapi", "--output-model-type", "pydantic_v2.BaseModel"]
    command += ["--formatters", "builtin", "--target-python-version", f"3.{sys.version_info.minor}"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    spec = importlib.util.spec_from_file_location("generated_client", folder / "client.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["generated_client"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["generated_client"]


def test_a_generated_client_asks_and_understands(server, generated):
    """As a client generated from the description sends and reads: its own models on both sides."""
    said = generated.ChatMessage(role="user", content="2 + 2?")
    body = generated.ChatRequest(model="ensemble", messages=[said], temperature=0)
    reply = asked(server, "/v1/chat/completions", body.model_dump(mode="json"))
    read = generated.ChatCompletion.model_validate(reply)
    assert read.choices[0].message.content == "It is 4."
    assert read.choices[0].finish_reason == "stop"
    assert read.choices[0].metadata.verdicts[-1].sufficient
    again = [said, generated.ChatMessage(role="assistant", content=read.choices[0].message.content), said]
    body = generated.ChatRequest(model="small", messages=again, logprobs=True)
    read = generated.ChatCompletion.model_validate(
        asked(server, "/v1/chat/completions", body.model_dump(mode="json", exclude_none=True))
    )
    assert bytes(read.choices[0].logprobs.content[0].bytes) == b"It"
    refused = generated.Error.model_validate(asked(server, "/v1/chat/completions", {**CHAT, "model": "smal"}))
    assert (refused.error.code, refused.error.param) == ("model_not_found", "model")


@pytest.mark.parametrize(("name", "path", "body"), REPLIES)
def test_a_generated_client_reads_every_reply(server, generated, name, path, body):
    getattr(generated, name).model_validate(asked(server, path, body))
