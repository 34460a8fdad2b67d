"""What providers send: their words for an end, and their forms of text, tool calls and usage."""

import json
import math

import pytest
from faulty import CHAT, CUT, DONE, STALL, Asked, answer, chunk, delta, event, said, usage_event

from ensemblehub.errors import EngineError
from ensemblehub.generators.openai.reply import finish_of
from ensemblehub.schema import Price, Request, Text

HIGH, LOW = "\ud83d", "\ude00"  # of U+1F600


# ---- how an answer ends


@pytest.mark.parametrize(
    ("words", "finish"),
    [
        (
            "stop eos eos_token end_turn STOP EOS stop_sequence stopSequence FinishReason.STOP FINISH_REASON_STOP "
            "COMPLETE done end-turn",
            "stop",
        ),
        (
            "length max_tokens MAX_TOKENS maxTokens model_length token_limit model_context_window_exceeded time_limit "
            "max_output_tokens incomplete truncated",
            "length",
        ),
        ("tool_calls tool_use toolUse function_call TOOL_CALL", "tool_calls"),
        (
            "content_filter SAFETY RECITATION PROHIBITED_CONTENT error ERROR_TOXIC abort network_error cancelled "
            "refusal insufficient_system_resource MALFORMED_FUNCTION_CALL",
            "failed",
        ),
        ("banana OTHER repetition", "unknown"),
        ("null None NOT_FINISHED FINISH_REASON_UNSPECIFIED", None),
    ],
)
def test_providers_words_for_an_end(words, finish):
    assert {word: finish_of(word) for word in words.split()} == dict.fromkeys(words.split(), finish)
    assert finish_of("") is None


def test_an_empty_finish_reason_is_no_end():
    script = [
        said("It", finish=""),
        said(" is", finish=""),
        said(" 4", finish=""),
        said(finish="stop"),
        usage_event(),
        DONE,
    ]
    asked = Asked(script)
    assert (asked.error, asked.text, asked.pieces[-1].finish) == (None, "It is 4", "stop")


@pytest.mark.parametrize(
    ("word", "finish"), [("eos_token", "stop"), ("end_turn", "stop"), ("MAX_TOKENS", "length")]
)
def test_an_answer_ends_by_its_providers_word(word, finish):
    asked = Asked(answer(finish=word))
    assert (asked.error, asked.text, asked.pieces[-1].finish) == (None, "It is 4.", finish)


def test_an_answer_is_not_lost_for_a_word_that_nobody_knows(caplog):
    asked = Asked(answer(finish="banana"))
    assert (asked.error, asked.text, asked.pieces[-1].finish) == (None, "It is 4.", "stop")
    assert "far: the provider ended the answer with the word 'banana'" in caplog.messages


def test_that_an_answer_was_cut_is_not_taken_back():
    assert Asked([said("It"), said(finish="length"), said(finish="stop"), DONE]).pieces[-1].finish == "length"
    assert (
        Asked([said("It", "STOP"), said(" is", "STOP"), said(finish="MAX_TOKENS"), DONE]).pieces[-1].finish
        == "length"
    )


@pytest.mark.parametrize("rest", [[CUT], [STALL], [b"data: {nonsense\n\n"], [event({"error": "late"})], []])
def test_a_failure_behind_the_end_loses_no_answer(rest):
    asked = Asked([said("It"), said(finish="stop"), *rest])
    assert (asked.error, asked.text, asked.pieces[-1].finish) == (None, "It", "stop")
    assert asked.cost.estimated


def test_a_provider_that_says_stop_at_every_part_is_not_done_at_the_first():
    asked = Asked([said("It", "STOP"), said(" is", None), CUT])
    assert isinstance(asked.error, EngineError)


# ---- text


CONTENTS = {
    "parts": ([{"type": "text", "text": "It"}, {"type": "text", "text": " is"}], "It is"),
    "output_text": ([{"type": "output_text", "text": "It is", "annotations": []}], "It is"),
    "strings": (["It", " is"], "It is"),
    "refusal": ([{"type": "refusal", "refusal": "It is"}], "It is"),
    "thinking": (
        [
            {"type": "thinking", "thinking": [{"type": "text", "text": "Hm"}]},
            {"type": "text", "text": "It is"},
        ],
        "<think>Hm</think>It is",
    ),
    "reference": ([{"type": "text", "text": "It is"}, {"type": "reference", "reference_ids": [1]}], "It is"),
    "empty": ([], ""),
}


@pytest.mark.parametrize("form", CONTENTS)
@pytest.mark.parametrize("way", ["stream", "whole"])
def test_content_in_parts_is_text(form, way):
    content, text = CONTENTS[form]
    script = [delta(content=content), said(finish="stop"), usage_event(), DONE]
    if way == "whole":
        body = {"choices": [{"message": {"role": "assistant", "content": content}, "finish_reason": "stop"}]}
        script = (200, {"content-type": "application/json"}, json.dumps(body))
    asked = Asked(script)
    assert (asked.error, asked.text, asked.pieces[-1].finish) == (None, text, "stop")


def test_a_part_that_is_no_text_is_an_error():
    asked = Asked(
        [delta(content=[{"type": "image_url", "image_url": {"url": "x"}}]), said(finish="stop"), DONE]
    )
    assert "`choices.0.delta.content`: a part that is no text (image_url)" in str(asked.error)


def test_a_refusal_is_what_the_model_says():
    assert (
        Asked([delta(content=None, refusal="I can"), delta(refusal="not."), said(finish="stop"), DONE]).text
        == "I cannot."
    )


STREAMS = {
    "azure": [
        chunk([], prompt_filter_results=[{"prompt_index": 0}]),
        delta(role="assistant", content=""),
        said("4"),
        said(finish="stop"),
        usage_event(),
        DONE,
    ],
    "ollama": [delta("", role="assistant", content="4"), delta("stop", role="assistant", content=""), DONE],
    "sglang": [
        delta("", role="assistant", content=""),
        delta("", content="4", tool_calls=None),
        delta("stop"),
        DONE,
    ],
    "tgi": [delta(None, role="assistant", content="4"), delta("eos_token", content="")],
    "llama.cpp": [
        delta(role="assistant", content=None),
        delta(content="4"),
        delta("stop"),
        chunk([], timings={}),
        DONE,
    ],
    "openrouter": [
        b": OPENROUTER PROCESSING\n\n",
        b": OPENROUTER PROCESSING\n\n",
        said("4"),
        said(finish="stop"),
        DONE,
    ],
    "mistral": [
        delta(role="assistant", content=""),
        chunk(
            [{"index": 0, "delta": {"content": "4"}, "finish_reason": "stop"}],
            usage={"prompt_tokens": 7, "completion_tokens": 1},
        ),
        DONE,
    ],
    "gemini": [
        chunk([{"delta": {"content": "4", "role": "assistant"}, "finish_reason": "STOP", "index": 0}])
    ],
    "minimax": [said("4"), chunk([{"message": {"content": "4"}, "finish_reason": "stop"}]), DONE],
    "no index, new ids": [
        chunk([{"delta": {"content": "4"}}], id=3),
        chunk([{"delta": None}], id=None),
        chunk([{"finish_reason": "stop"}], id=["y"]),
        DONE,
    ],
    "empty events": [
        event({}),
        event({"choices": None}),
        chunk([]),
        b"data:\n\n",
        b"event: ping\ndata: ok\n\n",
        b'event: ping\ndata: {"type": "ping"}\n\n',
        said("4"),
        delta("stop"),
        DONE,
    ],
    "behind the end": [said("4"), said(finish="stop"), DONE, said("lost"), b"rubbish"],
    "byte order mark": [b"\xef\xbb\xbf" + said("4"), said(finish="stop"), DONE],
    "CR": [said("4").replace(b"\n", b"\r"), said(finish="stop").replace(b"\n", b"\r"), DONE],
    "CRLF": [said("4").replace(b"\n", b"\r\n"), said(finish="stop").replace(b"\n", b"\r\n"), DONE],
    "lines": [
        b'data: {\ndata: "choices": [{"delta":\ndata: {"content": "4"}}]}\n\n',
        said(finish="stop"),
        DONE,
    ],
    "no blank lines": [said("4").rstrip() + b"\n", said(finish="stop").rstrip() + b"\n", b"data: [DONE]\n"],
    "no last line end": [said("4"), said(finish="stop").rstrip()],
    "fields besides": [b"id: 1\nretry: 5\nevent: message\n" + said("4"), said(finish="stop"), DONE],
    "counted from 1": [delta(index=1, content="4"), delta("stop", index=1), DONE],
}


@pytest.mark.parametrize("provider", STREAMS)
def test_streams_of_many_providers(provider):
    asked = Asked(STREAMS[provider])
    assert (asked.error, asked.text, asked.pieces[-1].finish) == (None, "4", "stop")


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_a_stream_may_be_cut_anywhere(size):
    text = "h\u00e9 \u2028 \U0001f600 \\n"
    whole = b"\xef\xbb\xbf: hello\r\n\r\n" + said(text).replace(b"\n", b"\r\n") + said(finish="stop") + DONE
    parts = [whole[at : at + size] for at in range(0, len(whole), size)]
    assert Asked(parts).text == text


def test_of_several_answers_the_first_is_taken():
    script = [
        delta(index=1, content="5"),
        delta(index=0, content="4"),
        delta("stop", index=1),
        delta("length"),
        DONE,
    ]
    asked = Asked(script, extra_body={"n": 2})
    assert (asked.text, asked.pieces[-1].finish) == ("4", "length")


def test_a_reply_that_is_no_stream_is_the_answer_all_the_same(caplog):
    usage = {"prompt_tokens": 9, "completion_tokens": 2}
    body = {
        "choices": [{"message": {"content": "4", "reasoning_content": "Add."}, "finish_reason": "stop"}],
        "usage": usage,
    }
    whole = (200, {"content-type": "application/json; charset=utf-8"}, json.dumps(body))
    asked = Asked(whole, times=2)
    assert (asked.error, asked.text, asked.pieces[-1].finish) == (None, "<think>Add.</think>4", "stop")
    assert (asked.cost.prompt_tokens, asked.cost.completion_tokens, asked.cost.estimated) == (18, 4, False)
    assert caplog.messages == ["far: the server does not stream; its replies are read whole"]
    plain = (200, {"content-type": "text/plain"}, (said("4") + said(finish="stop")).decode())
    assert Asked(plain).text == "4"


# ---- halves of surrogate pairs


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ((f"a{HIGH}", f"{LOW}b"), "a\U0001f600b"),
        ((f"a{HIGH}", "b"), "a\ufffdb"),
        (("a", f"{LOW}b"), "a\ufffdb"),
        (("a", f"b{HIGH}"), "ab\ufffd"),
        ((f"{HIGH}{LOW}{HIGH}", LOW), "\U0001f600\U0001f600"),
        ((HIGH, HIGH, LOW), "\ufffd\U0001f600"),
    ],
)
def test_halves_of_a_character_are_joined_or_replaced_wherever_text_comes(parts, text):
    end = [said(finish="stop"), usage_event(), DONE]
    for script, request in (
        ([said(part) for part in parts], Request(CHAT)),
        ([event({"choices": [{"text": part, "finish_reason": None}]}) for part in parts], Request(Text("x"))),
    ):
        asked = Asked([*script, *end], request=request)
        assert (asked.error, asked.text) == (None, text)
        json.dumps(asked.pieces[0].text, ensure_ascii=False).encode()
    thought = Asked([*[delta(reasoning_content=part) for part in parts], *end])
    assert thought.text == f"<think>{text}"
    calls = [
        delta(tool_calls=[{"index": 0, "id": "c", "function": {"name": "f", "arguments": part}}])
        for part in parts
    ]
    made = [call for piece in Asked([*calls, *end]).pieces for call in piece.tool_calls]
    assert "".join(call["function"]["arguments"] for call in made) == text


def test_halves_in_tokens_names_and_reasons_are_replaced():
    entries = [
        {"token": part, "logprob": -1, "top_logprobs": [{"token": HIGH, "logprob": -2}]}
        for part in (HIGH, LOW)
    ]
    script = [
        chunk([{"delta": {"content": entry["token"]}, "logprobs": {"content": [entry]}}]) for entry in entries
    ]
    asked = Asked([*script, said(finish="stop"), DONE], logprobs=True)
    assert (
        asked.text == "".join(token.text for piece in asked.pieces for token in piece.tokens) == "\U0001f600"
    )
    tokens = [token for piece in asked.pieces for token in piece.tokens]
    assert [(token.logprob, token.top[0].text) for token in tokens] == [(-1, "\ufffd")] * 2
    call = {
        "index": 0,
        "id": HIGH,
        "type": "function",
        "function": {"name": LOW, "arguments": "{}"},
        "more": {HIGH: LOW},
    }
    (made,) = Asked([delta(tool_calls=[call]), said(finish="tool_calls"), DONE]).pieces[0].tool_calls
    json.dumps(made, ensure_ascii=False).encode()
    for script in (
        [event({"error": {"message": f"no {HIGH}"}})],
        (400, {}, json.dumps({"error": {"message": HIGH}})),
        answer(finish=f"error {HIGH}"),
    ):
        str(Asked(script).error).encode()


# ---- usage


def usage_of(usage, **options):
    asked = Asked(
        [said("It"), said(" is"), said(finish="stop"), event({"choices": [], "usage": usage}), DONE],
        **options,
    )
    assert asked.error is None
    return asked.cost


@pytest.mark.parametrize(
    "usage",
    [
        {"prompt_tokens": 9.0, "completion_tokens": 5.0, "cost": 0.25},
        {"prompt_tokens": "9", "completion_tokens": "5", "cost": "0.25"},
        {"prompt_tokens": 9, "completion_tokens": 5, "cost": {"usd": 0.25, "flops": 1}},
        {"prompt_tokens": 9, "completion_tokens": 5, "cost": None, "cost_details": {"usd": 0.25}},
        {
            "prompt_tokens": 9,
            "completion_tokens": 5,
            "cost": 0.25,
            "cost_details": {"upstream_inference_cost": None},
        },
        {"input_tokens": 9, "output_tokens": 5, "cost": {"total_cost": 0.25}},
    ],
)
def test_usage_is_read_in_every_form(usage):
    cost = usage_of({**usage, "prompt_tokens_details": {"cached_tokens": 4}})
    assert (cost.prompt_tokens, cost.cached_tokens, cost.completion_tokens, cost.usd) == (9, 4, 5, 0.25)
    assert not cost.estimated


@pytest.mark.parametrize(
    "value", [-1, math.nan, math.inf, 10**400, 1e30, True, "many", "\u00b2", [], {}, None]
)
@pytest.mark.parametrize("name", ["prompt_tokens", "completion_tokens"])
def test_usage_that_cannot_be_is_guessed_and_marked(name, value):
    cost = usage_of({"prompt_tokens": 9, "completion_tokens": 5, name: value})
    expected = {"prompt_tokens": 9, "completion_tokens": 5} | {
        name: {"prompt_tokens": 4, "completion_tokens": 2}[name]
    }
    assert (cost.prompt_tokens, cost.completion_tokens) == tuple(expected.values())
    assert cost.estimated


@pytest.mark.parametrize(
    "more",
    [
        {"prompt_tokens_details": {"cached_tokens": -1}},
        {"prompt_tokens_details": "x"},
        {"cached_tokens": 12},
        {"cost": math.nan},
        {"cost": -1},
        {"cost": "much"},
        {"cost": {"usd": math.inf}},
        {"cost": 1e300},
        {"cost": {"usd": 0.5, "estimated": True}},
        {"cost": 0.5, "cost_details": {"estimated": True}},
    ],
)
def test_a_price_and_a_cache_that_cannot_be_are_marked(more):
    cost = usage_of({"prompt_tokens": 9, "completion_tokens": 5, **more}, price=Price(1.0, 2.0))
    assert cost.estimated
    assert 0 <= cost.cached_tokens <= cost.prompt_tokens == 9
    assert cost.usd == pytest.approx(0.5 if "estimated" in str(more) else 19e-6, rel=0.5)


def test_a_server_without_a_price_leaves_it_to_the_configuration():
    tokens, price = {"prompt_tokens": 9, "completion_tokens": 5}, Price(1.0, 2.0)
    unknown = usage_of({**tokens, "cost": None, "cost_details": {"usd": 0.0}}, price=price)
    assert (unknown.usd, unknown.estimated) == (pytest.approx(19e-6), False)
    free = usage_of({**tokens, "cost": 0.0, "cost_details": {"usd": 0.0}}, price=price)
    assert free.usd == 0


@pytest.mark.parametrize("usage", [None, {}, [], "x", 5, {"prompt_tokens": 0, "completion_tokens": 0}])
def test_no_usage_is_an_estimate(usage):
    cost = usage_of(usage)
    assert (cost.prompt_tokens, cost.completion_tokens, cost.estimated) == (4, 2, True)


@pytest.mark.parametrize(
    "details",
    [
        {"flops": 7e9, "cold_flops": 5e9},
        {"flops": 5e9},
        {"flops": "much", "cold_flops": True},
        {"flops": math.inf, "cold_flops": math.inf},
        "5e9",
    ],
)
def test_flops_that_a_server_states_are_taken_where_they_can_be(details):
    tokens = {"prompt_tokens": 9, "completion_tokens": 5}
    stated = usage_of({**tokens, "cost_details": {"flops": 5e9, "cold_flops": 7e9}})
    assert (stated.flops, stated.cold_flops) == (5e9, 7e9)
    wrong, none = usage_of({**tokens, "cost_details": details}), usage_of(tokens)
    assert (wrong.flops, wrong.cold_flops) == (none.flops, none.cold_flops)
    assert none.flops != 5e9


def test_usage_in_other_places_is_found():
    told = {"prompt_tokens": 9, "completion_tokens": 5}
    for last in (chunk([], x_groq={"id": "r", "usage": told}), chunk([{"delta": {}, "usage": told}])):
        cost = Asked([said("It"), said(finish="stop"), last, DONE]).cost
        assert (cost.prompt_tokens, cost.completion_tokens, cost.estimated) == (9, 5, False)


def test_the_usage_so_far_is_an_estimate_where_the_stream_is_closed():
    parts = [
        chunk([{"delta": {"content": "x"}}], usage={"prompt_tokens": 9, "completion_tokens": i})
        for i in range(1, 9)
    ]
    asked = Asked([*parts, STALL], read=2)
    assert asked.cost.estimated
