"""What the routes about tokens and the tokens of replies say, on real models of two tokenizers."""

import asyncio
import json

import httpx2 as httpx
import pytest
from transformers import AutoTokenizer

from ensemblehub import builtin
from ensemblehub.api.app import create_app
from ensemblehub.api.state import State

CONFIG = """
model_specs:
  - {name: mentor, engine: hf, path: "builtin:mentor"}
  - {name: intern, engine: hf, path: "builtin:intern"}
  - {name: guest, engine: hf, path: "builtin:guest"}
ensemble:
  models: [mentor, intern]
  output_aggregation_method: tandem
  output_aggregation_params: {profile: builtin, levels: {low: 24, medium: 64, high: 128}, judge: "builtin:judge",
    start_with_intern: true}
ensembles:
  other: {models: [intern, guest], output_aggregation_method: single, output_aggregation_params: {engine: guest}}
  helped: {models: [mentor, guest], output_aggregation_method: tandem,
    output_aggregation_params: {profile: builtin, intern: guest, judge: "fixed:low", levels: {low: 8}}}
  mixed: {models: [intern, guest], output_aggregation_method: gac}
  second: {models: [intern, guest], output_aggregation_method: gac,
    output_aggregation_params: {weights: {intern: 0}}}
"""
TEXT = "There are 8 bowls \u65e5"


@pytest.fixture(scope="module")
def server(serve):
    return serve(CONFIG)


def without_weights(path, **params):
    """What a server of the built-in pair, whose two tokenizers cut alike, replies before it has loaded a model."""
    app = create_app(builtin.CONFIG, state=State("ready"))

    async def get():
        transport = httpx.ASGITransport(app, client=("127.0.0.1", 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.get(path, params=params)

    return asyncio.run(get())


def ids(name, text=TEXT):
    return AutoTokenizer.from_pretrained(builtin.resolve(f"builtin:{name}")).encode(text)


@pytest.mark.parametrize(
    ("model", "reader"),
    [
        ("intern", "intern"),
        ("guest", "guest"),
        ("ensemble", "intern"),
        ("other", "guest"),
        ("helped", "guest"),
        ("mixed", "intern"),
        ("second", "guest"),
    ],
)
def test_a_name_stands_for_the_engine_that_reads_its_prompts(server, model, reader):
    asked = {"prompt": TEXT, "add_special_tokens": False, "model": model}
    reply = server.post("/tokenize", asked).json()
    assert (reply["model"], reply["tokens"]) == (reader, ids(reader))
    back = server.post("/detokenize", {"tokens": reply["tokens"], "model": model}).json()
    assert back == {"prompt": TEXT, "model": reader}
    assert server.get("/tokenizer_info", params={"model": model}).json()["eos_token"]
    if model not in ("ensemble", "helped"):
        body = {"model": model, "prompt": reply["tokens"], "echo": True, "max_tokens": 1}
        assert server.post("/v1/completions", body).json()["choices"][0]["text"].startswith(TEXT)


def test_without_a_name_different_tokenizers_are_refused(server):
    replies = [
        server.get("/tokenizer_info"),
        server.post("/tokenize", {"prompt": "a"}),
        server.post("/tokenize", {"prompt": "a", "model": None}),
        server.post("/detokenize", {"tokens": [5]}),
    ]
    for reply in replies:
        assert reply.status_code == 400
        error = reply.json()["error"]
        assert (error["code"], error["param"]) == ("model_required", "model")
        assert "ensemble, other, helped, mixed, second, mentor, intern, guest" in error["message"]


def test_without_a_name_one_tokenizer_answers_for_all():
    mentor, intern = (without_weights("/tokenizer_info", model=name).json() for name in ("mentor", "intern"))
    known = without_weights("/tokenizer_info").json()
    assert known["eos_token"] == intern["eos_token"]
    assert mentor["chat_template"] != intern["chat_template"]  # so neither is told for the other
    assert known == {key: value for key, value in intern.items() if key != "chat_template"}
    assert without_weights("/tokenizer_info", model="nobody").status_code == 404


def test_parts_of_a_character_carry_their_own_bytes_in_a_chat(server):
    parts = ids("intern", "\u65e5")
    body = {
        "model": "intern",
        "messages": [{"role": "user", "content": "?"}],
        "logprobs": True,
        "top_logprobs": 20,
        "max_tokens": 3,
        "logit_bias": {str(part): 100 for part in parts},
    }
    entries = server.post("/v1/chat/completions", body).json()["choices"][0]["logprobs"]["content"]
    assert {bytes(entry["bytes"]) for entry in entries} <= {bytes([byte]) for byte in "\u65e5".encode()}
    shown = [candidate for entry in entries for candidate in entry["top_logprobs"]]
    assert all("\ufffd" not in bytes(candidate["bytes"]).decode(errors="ignore") for candidate in shown)
    texts = [candidate for candidate in shown if "\ufffd" not in candidate["token"]]
    assert all(bytes(candidate["bytes"]).decode() == candidate["token"] for candidate in texts)


@pytest.mark.parametrize("model", ["intern", "mixed"])
@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_prompt_that_is_read_names_its_parts_of_characters(server, model, count):
    body = {"model": model, "prompt": TEXT, "echo": True, "logprobs": count, "max_tokens": 0}
    found = server.post("/v1/completions", body).json()["choices"][0]["logprobs"]
    assert found["tokens"][-3:] == ["bytes:\\xe6", "bytes:\\x97", "bytes:\\xa5"]
    for name, top in list(zip(found["tokens"], found["top_logprobs"], strict=True))[1:]:
        assert name in top
        assert "\ufffd" not in top
        assert len(top) in (count, count + 1)


def test_the_bytes_of_all_tokens_are_those_of_the_text(server):
    messages = [{"role": "user", "content": "Say 日本."}]
    body = {"model": "mixed", "messages": messages, "logprobs": True, "max_tokens": 24}
    (choice,) = server.post("/v1/chat/completions", body).json()["choices"]
    entries = choice["logprobs"]["content"]
    assert (
        b"".join(bytes(entry["bytes"]) for entry in entries).decode(errors="replace")
        == choice["message"]["content"]
    )
    assert "".join(entry["token"] for entry in entries) == choice["message"]["content"]


HALF = json.loads('"\\ud83d"')
CHAT = {"model": "intern", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
BODIES = {
    "message": (
        "chat",
        {**CHAT, "messages": [{"role": "user", "content": f"a{HALF}b"}]},
        "messages.0.content",
    ),
    "part": (
        "chat",
        {**CHAT, "messages": [{"role": "user", "content": [{"type": "text", "text": HALF}]}]},
        "messages.0.content.0.text",
    ),
    "several": ("chat", {**CHAT, "messages": [[{"role": "user", "content": HALF}]]}, "messages.0.0.content"),
    "the start of an answer": (
        "chat",
        {
            **CHAT,
            "continue_final_message": True,
            "messages": [*CHAT["messages"], {"role": "assistant", "content": HALF}],
        },
        "messages.1.content",
    ),
    "name": (
        "chat",
        {**CHAT, "messages": [{"role": "user", "content": "hi", "name": HALF}]},
        "messages.0.name",
    ),
    "call": (
        "chat",
        {**CHAT, "messages": [{"role": "assistant", "content": "", "tool_calls": [{"id": HALF}]}]},
        "messages.0.tool_calls.0.id",
    ),
    "stop": ("chat", {**CHAT, "stop": ["x", HALF]}, "stop.1"),
    "tools": (
        "chat",
        {**CHAT, "tools": [{"type": "function", "function": {"name": HALF}}]},
        "tools.0.function.name",
    ),
    "key": ("chat", {**CHAT, "response_format": {HALF: 1}}, "response_format"),
    "schema": ("chat", {**CHAT, "response_format": {"type": HALF}}, "response_format.type"),
    "model": ("chat", {**CHAT, "model": HALF}, "model"),
    "user": ("chat", {**CHAT, "user": HALF}, "user"),
    "metadata": ("chat", {**CHAT, "metadata": {"a": HALF}}, "metadata.a"),
    "method": ("chat", {**CHAT, "ensemble": {"method": HALF}}, "ensemble.method"),
    "params": ("chat", {**CHAT, "ensemble": {"params": {"judge": HALF}}}, "ensemble.params.judge"),
    "mark": ("chat", {**CHAT, "extract_after": HALF}, "extract_after"),
    "field": ("chat", {**CHAT, HALF: 1}, None),
    "prompt": ("text", {"model": "intern", "prompt": HALF, "max_tokens": 1}, "prompt"),
    "prompts": ("text", {"model": "intern", "prompt": ["a", HALF], "max_tokens": 1}, "prompt.1"),
    "tokenize": ("tokenize", {"model": "intern", "prompt": f"\udc00{HALF}"}, "prompt"),
    "detokenize": ("detokenize", {"model": HALF, "tokens": [1]}, "model"),
}
PATHS = {"chat": "/v1/chat/completions", "text": "/v1/completions"}


@pytest.mark.parametrize("name", BODIES)
def test_half_a_surrogate_pair_is_refused_wherever_it_stands(server, name):
    kind, body, at = BODIES[name]
    path = PATHS.get(kind, f"/{kind}")
    reply = server.post(path, None, content=json.dumps(body), headers={"content-type": "application/json"})
    error = reply.json()["error"]
    assert (reply.status_code, error["code"], error["param"]) == (400, "invalid_value", at)
    assert "half a surrogate pair" in error["message"]
    assert "\n" not in error["message"]


def test_whole_pairs_and_what_looks_like_one_are_text(server):
    raw = r'{"model": "intern", "prompt": "\ud83d\ude00 \\ud83d", "add_special_tokens": false}'
    reply = server.post("/tokenize", None, content=raw, headers={"content-type": "application/json"})
    tokens = reply.json()["tokens"]
    assert (
        server.post("/detokenize", {"tokens": tokens, "model": "intern"}).json()["prompt"]
        == "\U0001f600 \\ud83d"
    )
    big = {**CHAT, "seed": 10**30}  # a number that is too large is another error
    assert "surrogate" not in server.post("/v1/chat/completions", big).json()["error"]["message"]
