"""Every field that is read of a reply, replaced by values of every other type: an answer or one line, nothing else."""

import asyncio
import copy
import json
import math
from contextlib import aclosing

import httpx2
import pytest

from ensemblehub.cost import UsageLedger
from ensemblehub.ensemble import AsyncEnsemble
from ensemblehub.ensemble_methods.model_selection.all import All
from ensemblehub.ensemble_methods.output_aggregation.loop import Loop
from ensemblehub.errors import EngineError
from ensemblehub.generators.echo import EchoEngine, EchoOptions
from ensemblehub.generators.openai.engine import OpenAIEngine, OpenAIOptions
from ensemblehub.generators.openai.patience import Patience
from ensemblehub.schema import Chat, Message, Piece, Request, Sampling, Text

CHAT = Chat((Message("user", "2 + 2?"),))
DEEP = json.loads("[" * 300 + "]" * 300)
DEEPER = "<deeper>"  # stands for what no value of Python can be
WRONG = [
    None,
    True,
    False,
    0,
    -1,
    7,
    1.5,
    -0.5,
    1e308,
    10**400,
    math.nan,
    math.inf,
    "",
    "x",
    "\ud83d",
    "9" * 30,
    "\u00b2",
    [],
    [None],
    [[]],
    ["x"],
    [{}],
    {},
    {"a": 1},
    {"type": "text", "text": "x"},
    DEEP,
    DEEPER,
]
USAGE = {
    "prompt_tokens": 9,
    "completion_tokens": 5,
    "total_tokens": 14,
    "cost": 0.25,
    "cost_details": {"usd": 0.25},
    "prompt_tokens_details": {"cached_tokens": 4},
    "completion_tokens_details": {"reasoning_tokens": 1},
}
ENTRY = {
    "token": "It",
    "logprob": -0.5,
    "bytes": [73, 116],
    "top_logprobs": [{"token": "It", "logprob": -0.5}],
}
CALL = {"index": 0, "id": "c1", "type": "function", "function": {"name": "add", "arguments": "{}"}}
HEAD = {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "system_fingerprint": None}
TOP = {"tokens": ["It"], "token_logprobs": [-0.5], "top_logprobs": [{"It": -0.5}], "text_offset": [0]}
STREAM = [
    {**HEAD, "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]},
    {"choices": [{"index": 0, "delta": {"reasoning_content": "Hm", "reasoning": "Hm"}, "finish_reason": ""}]},
    {
        "choices": [
            {
                "index": 0,
                "delta": {"content": "It", "refusal": None},
                "logprobs": {"content": [ENTRY]},
                "finish_reason": None,
            }
        ],
        "usage": None,
    },
    {
        "choices": [
            {"index": 0, "delta": {"content": [{"type": "text", "text": " is"}], "function_call": None}}
        ]
    },
    {"choices": [{"index": 0, "delta": {"tool_calls": [CALL]}, "finish_reason": None}]},
    {"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]},
    {"choices": [], "usage": USAGE, "x_groq": {"id": "r"}},
]
TEXTS = [
    {"choices": [{"index": 0, "text": "It", "logprobs": TOP, "finish_reason": None}]},
    {"choices": [{"index": 0, "text": " is", "logprobs": None, "finish_reason": "stop"}], "usage": USAGE},
]
MESSAGE = {
    "role": "assistant",
    "content": "It is",
    "reasoning_content": "Hm",
    "refusal": None,
    "tool_calls": [CALL],
}
WHOLE = {
    **HEAD,
    "choices": [{"index": 0, "message": MESSAGE, "logprobs": {"content": [ENTRY]}, "finish_reason": "stop"}],
    "usage": USAGE,
    "error": None,
}
READ = {
    "choices": [
        {
            "index": 0,
            "text": "It is",
            "finish_reason": "length",
            "logprobs": {
                "tokens": ["It", " is", "."],
                "token_logprobs": [None, -0.5, -1.0],
                "text_offset": [0, 2, 5],
                "top_logprobs": [None, {" is": -0.5, " was": -2.0}, {".": -1.0, "!": -2.0}],
                "entropies": [None, 0.5, 1.0],
            },
        }
    ],
    "usage": {**USAGE, "prompt_tokens": 9},
}
FORMS = {"stream": STREAM, "texts": TEXTS, "whole": [WHOLE], "read": [READ]}
INDIFFERENT = (
    "id",
    "object",
    "created",
    "model",
    "system_fingerprint",
    "usage",
    "index",
    "role",
    "x_groq",
    "bytes",
    "text_offset",
    "type",
)


def places(value, path=()):
    """The path of everything in a value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in inner:
        yield (*path, key)
        yield from places(part, (*path, key))


def replaced(value, path, other):
    value = copy.deepcopy(value)
    part = value
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = other
    return value


def encoded(value):
    return json.dumps(value).replace(json.dumps(DEEPER), "[" * 100_000 + "]" * 100_000)


class Body(httpx2.AsyncByteStream):
    def __init__(self, data):
        self.data = data

    async def __aiter__(self):
        yield self.data


@pytest.fixture
def api(monkeypatch):
    """Replies without sockets: set `api.events`, and `api.form`."""

    class API:
        events, form, headers, status = [], "stream", {}, 200

    async def handle(self, request):
        whole = API.form in ("whole", "read")
        parts = [encoded(event) for event in API.events]
        data = parts[0] if whole else "".join(f"data: {event}\n\n" for event in [*parts, "[DONE]"])
        headers = {"content-type": "application/json" if whole else "text/event-stream", **API.headers}
        raw = [(key.encode(), value.encode("latin-1")) for key, value in headers.items()]
        return httpx2.Response(API.status, headers=raw, stream=Body(data.encode()), request=request)

    monkeypatch.setattr(httpx2.AsyncHTTPTransport, "handle_async_request", handle)
    return API


def engine_of(**options):
    patience = Patience(first_token=5, inter_token=5, total=5, tries=1, breaker_failures=10**9)
    given = {
        "logprobs": True,
        "score": "echo",
        "entropy_top_k": 2,
        "tools": True,
        "patience": patience,
        **options,
    }
    return OpenAIEngine("far", OpenAIOptions("m", base_url="http://127.0.0.1:9/v1", **given))


async def outcome(engine, form):
    """The text, the error and the ledger of one request."""
    ledger, text, error = UsageLedger(), "", None
    request = Request(Text("It is") if form in ("read", "texts") else CHAT, Sampling(max_tokens=50))
    try:
        if form == "read":
            text = "".join(
                token.text for token in (await engine.score(request, ledger.meter("judge"))).tokens
            )
        else:
            async with aclosing(engine.stream(request, ledger.meter("answer"))) as pieces:
                async for piece in pieces:
                    text += piece.text
                    json.dumps([repr(piece.tool_calls), piece.text], ensure_ascii=False).encode()
                    json.dumps(piece.tool_calls, ensure_ascii=False, allow_nan=True).encode()
                    assert all(token.logprob is None or -9999 <= token.logprob <= 0 for token in piece.tokens)
    except EngineError as raised:
        error = raised
    return text, error, ledger


@pytest.mark.parametrize("form", FORMS)
def test_a_field_of_another_type_is_tolerated_or_an_error_of_one_line(api, form, caplog):
    caplog.set_level("ERROR")
    good, api.form = FORMS[form], form
    cases = [(path, value) for path in places(good) if len(path) > 1 for value in WRONG]
    seen = {"tolerated": 0, "errors": 0}

    async def main():
        engine = engine_of()
        api.events = good
        expected, error, ledger = await outcome(engine, form)
        assert (error, ledger.total.estimated) == (None, False)
        truth = ledger.total
        for path, value in cases:
            api.events = replaced(good, path, value)
            where = f"{form} {path} {str(value)[:40]!a}"
            text, error, ledger = await outcome(engine, form)
            (call,) = ledger.calls
            cost = call.cost
            assert 0 <= cost.cached_tokens <= cost.prompt_tokens < 10**10, where
            assert 0 <= cost.completion_tokens < 10**10, where
            assert math.isfinite(cost.usd), where
            assert cost.usd >= 0, where
            if error is not None:
                seen["errors"] += 1
                assert str(error).isprintable(), where
                assert str(error).startswith("far"), where
                assert len(str(error)) < 700, where
                assert error.engine == "far", where
                assert value is DEEPER or not set(path) & set(INDIFFERENT) or "type" in path, where
                continue
            seen["tolerated"] += 1
            if set(path) & set(INDIFFERENT):
                assert text == expected, where
            if "usage" in path:
                same = (cost.prompt_tokens, cost.cached_tokens, cost.completion_tokens, cost.usd) == (
                    truth.prompt_tokens,
                    truth.cached_tokens,
                    truth.completion_tokens,
                    truth.usd,
                )
                other = value in (None, 0, 7, 1.5) or (
                    "prompt_tokens_details" in path and isinstance(value, dict)
                )
                assert same or cost.estimated or other, where
        await engine.close()

    asyncio.run(main())
    assert min(seen.values()) > len(cases) / 20  # both happen


def outcomes(api, cases):
    """What comes of replies, each a form, its values, a status and headers, with one engine."""

    async def main():
        engine = engine_of()
        for form, events, status, headers in cases:
            api.form, api.events, api.status, api.headers = form, events, status, headers
            yield await outcome(engine, form)
        await engine.close()

    async def gathered():
        return [result async for result in main()]

    return asyncio.run(gathered())


@pytest.mark.parametrize("form", FORMS)
def test_a_reply_of_another_type_is_an_error_of_one_line(api, form):
    for text, error, ledger in outcomes(api, [(form, [value], 200, {}) for value in WRONG]):
        assert isinstance(error, EngineError)
        assert str(error).isprintable()
        assert (text, len(ledger.calls)) == ("", 1)


VALUES = ["", "\u00b2", "-1", "nan", "9" * 400, "x, y; z=\u00e9", ";;;", "text/event-stream;charset=x"]
NAMES = ["retry-after", "content-type", "content-encoding", "transfer-encoding", "date", "location"]


def test_an_odd_header_is_tolerated_or_an_error_of_one_line(api):
    asked = [("stream", 200), ("whole", 200), ("stream", 429), ("whole", 503), ("read", 200)]
    cases = [
        (form, FORMS[form], status, {name: value})
        for name in NAMES
        for value in VALUES
        for form, status in asked
    ]
    for text, error, ledger in outcomes(api, cases):
        assert (error is None) == bool(text)
        assert error is None or str(error).isprintable()
        assert len(ledger.calls) == 1


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ((1, "choices", 0, "finish_reason"), ["stop"]),
        ((2, "choices", 0, "logprobs"), {"content": [{}]}),
        ((2, "choices", 0, "delta", "content"), 5),
        ((0, "choices"), DEEPER),
        ((1, "choices", 0, "delta"), 7),
    ],
)
def test_an_engine_whose_replies_are_malformed_is_dropped(api, path, value):
    api.form, api.events = "stream", replaced(STREAM, path, value)
    near = EchoEngine("near", EchoOptions(replies={"2 + 2?": "Four."}))
    ensemble = AsyncEnsemble([engine_of(prefix="assistant"), near], All(), Loop())
    ensemble.on_error = "drop"

    async def main():
        return [event async for event in ensemble.stream(Request(CHAT, Sampling(max_tokens=20)))]

    events = asyncio.run(main())
    assert any("dropped far" in getattr(event, "reason", "") for event in events)
    assert "".join(event.text for event in events if isinstance(event, Piece) and event.engine == "near")
