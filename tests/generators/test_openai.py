import asyncio
import json
import time
from dataclasses import replace

import pytest
from faulty import CHAT, CUT, QUICK, STALL, WORDS, Asked, answer, event, said, upstream, usage_event

from ensemblehub.cost import UsageLedger
from ensemblehub.errors import CapabilityError, ConfigError, ContextOverflowError, EngineError, RequestError
from ensemblehub.generators.openai.engine import OpenAIEngine, OpenAIOptions
from ensemblehub.generators.openai.errors import Failure
from ensemblehub.generators.openai.patience import CircuitBreaker, Patience
from ensemblehub.schema import Price, Request, Sampling, Text, TokenIds


def test_an_answer_is_streamed_with_the_usage_that_the_provider_reports():
    asked = Asked(
        [
            said("It"),
            said(" is"),
            said(" 4."),
            said(finish="stop"),
            usage_event(9, 5, cached=4, cost=0.25),
            event("[DONE]"),
        ]
    )
    assert [piece.text for piece in asked.pieces] == ["It", " is", " 4.", ""]
    assert asked.pieces[-1].finish == "stop"
    cost = asked.cost
    assert (cost.prompt_tokens, cost.cached_tokens, cost.completion_tokens, cost.usd) == (9, 4, 5, 0.25)
    assert not cost.estimated
    assert cost.flops == pytest.approx(2 * 7e9 * (9 - 4 + 5 - 1))  # the size is in the name
    body = asked.api.asked[0]
    assert body["path"] == "/v1/chat/completions"
    assert body["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "2 + 2?"},
    ]
    assert body["stream_options"] == {"include_usage": True}
    assert body["max_tokens"] == 512


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
@pytest.mark.parametrize(("option", "text"), [("inline", "<think>Add.</think>4"), ("drop", "4")])
def test_thoughts_stand_before_the_answer_as_local_models_write_them(field, option, text):
    script = [
        said(**{field: "Ad"}),
        said(**{field: "d."}),
        said("4"),
        said(finish="stop"),
        usage_event(),
        event("[DONE]"),
    ]
    assert Asked(script, reasoning=option).text == text


def test_a_length_and_a_tool_call_are_ends_of_their_own():
    assert Asked(answer(finish="length")).pieces[-1].finish == "length"
    call = {"index": 0, "id": "c1", "function": {"name": "add", "arguments": '{"a":'}}
    asked = Asked([said(tool_calls=[call]), said(finish="tool_calls"), usage_event(), event("[DONE]")])
    assert asked.pieces[0].tool_calls == (call,)
    assert asked.pieces[-1].finish == "tool_calls"


def test_every_field_of_a_request_is_sent_or_refused():
    sampling = Sampling(
        max_tokens=9,
        temperature=0.5,
        top_p=0.9,
        seed=3,
        stop=("a", "b"),
        logit_bias={5: -1.0},
        presence_penalty=0.1,
        frequency_penalty=0.2,
    )
    request = Request(CHAT, sampling, extra={"tools": [{"type": "function"}]})
    options = {"max_tokens_field": "max_completion_tokens", "extra_body": {"provider": "x"}, "tools": True}
    body = Asked(answer(), request=request, **options).api.asked[0]
    for key, value in {
        "max_completion_tokens": 9,
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 3,
        "stop": ["a", "b"],
        "provider": "x",
        "logit_bias": {"5": -1.0},
        "presence_penalty": 0.1,
        "frequency_penalty": 0.2,
        "tools": [{"type": "function"}],
    }.items():
        assert body[key] == value
    more = Request(CHAT, Sampling(top_k=5, min_p=0.1, ignore_eos=True, stop_token_ids=(7,)))
    assert isinstance(Asked(answer(), request=more).error, RequestError)
    body = Asked(answer(), request=more, dialect="vllm").api.asked[0]
    assert (body["top_k"], body["min_p"], body["ignore_eos"], body["stop_token_ids"]) == (5, 0.1, True, [7])
    assert isinstance(Asked(answer(), request=Request(TokenIds((1,)))).error, RequestError)
    assert isinstance(
        Asked(answer(), request=request).error, CapabilityError
    )  # no word that the API calls tools


def test_what_the_api_has_no_word_for_is_said_once(caplog):
    calm = Request(replace(CHAT, thinking=False))
    assert Asked(answer(), request=calm, dialect="vllm").api.asked[0]["chat_template_kwargs"] == {
        "enable_thinking": False
    }
    assert caplog.messages == []
    engine = OpenAIEngine("far", OpenAIOptions("m", base_url="http://127.0.0.1:1/v1"))
    for _ in range(2):
        assert "chat_template_kwargs" not in engine.path_and_body(calm)[1]
    (line,) = caplog.messages
    assert line.startswith("far: OpenAI's API has no word for whether to think")
    loud = replace(calm, prompt=replace(calm.prompt, thinking=True))
    assert engine.same_prompt(calm, loud)  # such a model is not asked twice by `collect` and `advise`
    assert not engine.same_prompt(calm, replace(calm, prompt=replace(CHAT, messages=CHAT.messages * 2)))
    vllm = OpenAIEngine("far", OpenAIOptions("m", base_url="http://127.0.0.1:1/v1", dialect="vllm"))
    assert not vllm.same_prompt(calm, loud)


def test_a_raw_prompt_goes_to_the_other_route():
    text = [
        event({"choices": [{"text": " 4", "finish_reason": None}]}),
        event({"choices": [{"text": "", "finish_reason": "stop"}]}),
    ]
    asked = Asked([*text, usage_event(), event("[DONE]")], request=Request(Text("2 + 2 ="), prefix=" "))
    assert asked.text == " 4"
    assert asked.api.asked[0]["path"] == "/v1/completions"
    assert asked.api.asked[0]["prompt"] == "2 + 2 = "


@pytest.mark.parametrize(
    ("options", "last", "more"),
    [
        (
            {"prefix": "continue_final_message"},
            {},
            {"continue_final_message": True, "add_generation_prompt": False},
        ),
        ({"dialect": "vllm"}, {}, {"continue_final_message": True, "add_generation_prompt": False}),
        ({"prefix": "assistant"}, {}, {}),
        ({"prefix": "flag"}, {"prefix": True}, {}),
    ],
)
def test_an_answer_is_continued_in_the_way_the_server_understands(options, last, more):
    body = Asked(answer(), request=Request(CHAT, prefix="It is"), **options).api.asked[0]
    assert body["messages"][-1] == {"role": "assistant", "content": "It is", **last}
    assert more.items() <= body.items()


def test_what_an_api_cannot_do_is_known_before_it_is_asked():
    assert OpenAIEngine("far", OpenAIOptions("m")).capabilities == frozenset()
    options = OpenAIOptions("m", dialect="vllm", logprobs=True, tools=True, response_format=True)
    assert OpenAIEngine("far", options).capabilities == {"prefix", "logprobs", "tools", "response_format"}
    asked = Asked(answer(), request=Request(CHAT, prefix="It"))
    assert "cannot continue" in str(asked.error)
    assert asked.api.asked == []


def test_logprobs_come_with_their_alternatives():
    entry = {
        "token": "4",
        "logprob": -0.5,
        "top_logprobs": [{"token": "4", "logprob": -0.5}, {"token": "5", "logprob": -2}],
    }
    chunk = event(
        {"choices": [{"delta": {"content": "4"}, "logprobs": {"content": [entry]}, "finish_reason": None}]}
    )
    asked = Asked([chunk, *answer()[-3:]], logprobs=True, request=Request(CHAT, Sampling(top_logprobs=2)))
    (token,) = asked.pieces[0].tokens
    assert (token.logprob, [alternative.text for alternative in token.top]) == (-0.5, ["4", "5"])
    assert asked.api.asked[0]["top_logprobs"] == 2


REFUSALS = [
    (429, {"retry-after": "0"}, '{"error": {"message": "slow down"}}'),
    (500, {}, "oops"),
    (502, {}, "<html>bad gateway</html>"),
]
FAULTS = {
    "refused": ([(401, {}, '{"error": {"message": "no key"}}')], 1, "HTTP 401 no key"),
    "not found": ([(404, {}, '{"error": {"message": "no such model"}}')], 1, "no such model"),
    "busy for ever": ([REFUSALS[0]], 3, "slow down"),
    "broken for ever": ([REFUSALS[1]], 3, "HTTP 500 oops"),
    "a proxy's page": ([REFUSALS[2]], 3, "bad gateway"),
    "a page that says 200": (
        [(200, {"content-type": "text/html"}, "<p>login</p>")],
        1,
        "no stream but text/html",
    ),
    "silence": ([[STALL]], 3, "no answer in time"),
    "silence behind the head": ([[b": hello\n\n", STALL]], 3, "it stalled"),
    "a stall in the middle": ([[said("It"), STALL]], 1, "it stalled"),
    "comments only": ([[said("It"), *[b": ping\n\n", 0.1] * 20]], 1, "it stalled"),
    "a cut before anything": ([[CUT]], 3, "failed at"),
    "a cut in the middle": ([[said("It"), CUT]], 1, "connection broke"),
    "an end without an end": ([[said("It"), usage_event(), event("[DONE]")]], 1, "broke off"),
    "garbage": ([[said("It"), event("{nonsense")]], 1, "not JSON"),
    "a list": ([[event("[1, 2]")]], 1, "no JSON object"),
    "an error in the stream": ([[said("It"), event({"error": {"message": "overloaded"}})]], 1, "overloaded"),
    "an endless line": ([[said("It"), *[b"data: " + b"x" * 400_000] * 4]], 1, "more than"),
    "filtered": ([[said("It"), said(finish="content_filter"), event("[DONE]")]], 1, "content_filter"),
    "nothing": (
        [[event({"choices": [{"delta": None}]}), event({"choices": None}), event({})]],
        1,
        "broke off",
    ),
    "a stray shape": (
        [[said("It"), event({"choices": "x"})]],
        1,
        "malformed reply: `choices`: it is no list",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_an_error_and_never_an_answer(fault):
    scripts, tries, says = FAULTS[fault]
    asked = Asked(*scripts)
    assert isinstance(asked.error, EngineError)
    assert says in str(asked.error)
    assert asked.error.engine == "far"
    assert len(asked.api.asked) == tries
    assert all(piece.finish is None for piece in asked.pieces)
    assert asked.seconds < 3.5
    assert len(asked.ledger.calls) == 1


@pytest.mark.parametrize("refusal", [*REFUSALS, [CUT], [STALL]])
def test_what_may_help_is_tried_again_and_nothing_is_lost(refusal):
    asked = Asked(refusal, answer())
    assert asked.error is None
    assert asked.text == "".join(WORDS)
    assert len(asked.api.asked) == 2
    assert asked.cost.completion_tokens == 4


def test_what_was_passed_on_is_never_asked_again():
    asked = Asked([said("It"), CUT], answer())
    assert isinstance(asked.error, EngineError)
    assert asked.text == "It"
    assert len(asked.api.asked) == 1
    assert asked.cost.estimated


def test_a_server_that_asks_for_patience_gets_it_unless_the_deadline_forbids():
    asked = Asked((429, {"retry-after": "1"}, "{}"), answer())
    assert asked.error is None
    assert 1.0 <= asked.seconds < 2.5
    asked = Asked((429, {"retry-after": "60"}, "{}"), answer())
    assert isinstance(asked.error, EngineError)
    assert asked.seconds < 1


def test_an_endpoint_that_keeps_failing_is_left_alone_and_tried_again_later():
    asked = Asked((500, {}, "x"), times=4, patience=Patience(tries=1, breaker_failures=2, breaker_seconds=60))
    assert len(asked.api.asked) == 2
    assert "it failed 2 times in a row and is left alone for 60 s, at last: HTTP 500 x" in str(asked.error)
    again = Patience(tries=1, breaker_failures=2, breaker_seconds=0)
    assert Asked((500, {}, "x"), (500, {}, "x"), answer(), times=3, patience=again).error is None


@pytest.mark.parametrize(
    "script",
    [[said("It"), 0.05, said(" is"), STALL], [part for word in WORDS * 50 for part in (said(word), 0.02)]],
)
def test_closing_the_stream_ends_the_request_and_marks_the_usage_as_an_estimate(script):
    asked = Asked(script, read=2, price=Price(1.0, 2.0))
    assert asked.error is None
    assert asked.api.left == 1
    assert asked.cost.estimated
    assert asked.cost.completion_tokens == 2
    assert asked.cost.usd == pytest.approx((asked.cost.prompt_tokens * 1.0 + 2 * 2.0) / 1e6)


@pytest.mark.parametrize(
    ("status", "error", "kind"),
    [
        (400, {"message": "bad field"}, RequestError),
        (400, {"message": "too long", "code": "context_length_exceeded"}, ContextOverflowError),
    ],
)
def test_a_request_that_the_api_refuses_is_the_requests_fault(status, error, kind):
    asked = Asked((status, {}, json.dumps({"error": error})))
    assert isinstance(asked.error, kind)
    assert error["message"] in str(asked.error)


def test_keys_come_from_the_environment_and_are_never_shown(monkeypatch):
    monkeypatch.setenv("SOME_KEY", "sk-secret")
    asked = Asked((401, {}, '{"error": {"message": "wrong key sk-secret"}}'), api_key_env="SOME_KEY")
    assert asked.api.headers[0]["authorization"] == "bearer sk-secret"
    assert "sk-secret" not in str(asked.error)
    assert "***" in str(asked.error)
    engine = OpenAIEngine("far", OpenAIOptions("m", api_key_env="SOME_KEY"))
    assert "sk-secret" not in repr(vars(engine)) + engine.describe() + repr(engine._endpoint)
    monkeypatch.delenv("SOME_KEY")
    with pytest.raises(ConfigError, match="SOME_KEY is not set"):
        asyncio.run(OpenAIEngine("far", OpenAIOptions("m", api_key_env="SOME_KEY")).load())


def test_the_references_form_of_a_model_is_understood(monkeypatch):
    options = OpenAIOptions("deepseek/deepseek-r1:free:https://openrouter.ai/api/v1:$MY_KEY")
    engine = OpenAIEngine("far", options)
    assert (engine.address.model, engine.address.url) == (
        "deepseek/deepseek-r1:free",
        "https://openrouter.ai/api/v1",
    )
    assert engine.address.key_variable == "MY_KEY"
    plain = OpenAIEngine("far", OpenAIOptions("gpt-4o", base_url="https://openrouter.ai/api/v1/"))
    assert plain.address.key_variable == "OPENROUTER_API_KEY"
    for wrong in ("ftp://x/v1", "http://me:pass@x/v1", "http://x/v1?key=1", "x"):
        with pytest.raises(ConfigError):
            OpenAIEngine("far", OpenAIOptions("m", base_url=wrong))


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("Qwen2.5-7B-Instruct", 7e9),
        ("deepseek-r1-distill-qwen-1.5b", 1.5e9),
        ("gpt-4o", 0),
        ("gpt-oss-120b", 120e9),
        ("a8bit", 0),
    ],
)
def test_a_size_in_the_name_is_taken_and_no_other(name, size):
    assert OpenAIEngine("far", OpenAIOptions(name)).info.parameters == size
    assert OpenAIEngine("far", OpenAIOptions(name, parameters=5)).info.parameters == 5


def test_known_models_have_their_price():
    price = OpenAIEngine("far", OpenAIOptions("gpt-4o")).info.price
    assert 0 < price.prompt < price.completion
    assert OpenAIEngine("far", OpenAIOptions("some-model")).info.price is None


def test_requests_at_the_same_time_are_limited():
    async def ask():
        async with upstream([0.2, *answer()]) as (_, url):
            engine = OpenAIEngine("far", OpenAIOptions("m", base_url=url, concurrency=2, patience=QUICK))

            async def pieces():
                return [piece async for piece in engine.stream(Request(CHAT), UsageLedger().meter("answer"))]

            started = time.monotonic()
            found = await asyncio.gather(*[pieces() for _ in range(6)])
            await engine.close()
            return time.monotonic() - started, found

    seconds, found = asyncio.run(ask())
    assert seconds > 0.6
    assert all(pieces[-1].finish == "stop" for pieces in found)


def test_requests_while_the_circuit_breaker_is_open_do_not_keep_it_open():
    breaker = CircuitBreaker(Patience(breaker_failures=1, breaker_seconds=0.05))
    breaker.failed(Failure("it stalled", again=True))
    until = breaker.open_until
    assert "at last: it stalled" in breaker.refusal()
    assert (breaker.failures, breaker.open_until) == (1, until)
    time.sleep(0.06)
    assert breaker.refusal() == ""  # a single request tries it
    assert breaker.refusal()


def test_parts_of_a_character_keep_the_bytes_that_an_api_gives():
    part = {"token": "\\xf0\\x9f", "logprob": -0.5, "bytes": [0xF0, 0x9F]}
    others = [{"token": "a", "logprob": -1, "bytes": [97]}, {"token": "b", "logprob": -2}]
    entry = {**part, "top_logprobs": [part, *others]}
    chunk = event(
        {"choices": [{"delta": {"content": "4"}, "logprobs": {"content": [entry]}, "finish_reason": None}]}
    )
    asked = Asked([chunk, *answer()[-3:]], logprobs=True, request=Request(CHAT, Sampling(top_logprobs=3)))
    (token,) = asked.pieces[0].tokens
    assert token.part == b"\xf0\x9f"
    assert [alternative.part for alternative in token.top] == [b"\xf0\x9f", None, None]
