"""What holds whatever a provider does: stop strings, `max_tokens`, deadlines, bounded sizes; and its refusals."""

import asyncio
import gzip
import json
import logging
import math
import time

import pytest
from faulty import CHAT, DONE, QUICK, STALL, Asked, answer, chunk, delta, event, said, upstream

from ensemblehub.cost import UsageLedger
from ensemblehub.errors import ContextOverflowError, EngineError, RequestError, one_line
from ensemblehub.generators.openai.engine import OpenAIEngine, OpenAIOptions
from ensemblehub.generators.openai.errors import ErrorReply, retry_after
from ensemblehub.schema import Request, Sampling, Text

# ---- what a provider does not do, done here


def cut(script, stop=("\n\n",), **options):
    return Asked(script, request=Request(CHAT, Sampling(stop=stop)), **options)


def test_a_provider_that_ignores_stop_strings_is_cut_at_them():
    asked = cut([said("It is"), said(" 4\n"), said("\nQ: 3"), *[said("x")] * 50, STALL])
    assert (asked.error, asked.text, asked.pieces[-1].finish) == (None, "It is 4", "stop")
    assert asked.api.left == 1  # the connection was closed
    assert asked.cost.estimated
    for script in (
        [said("It is 4\n\nQ"), said(finish="stop"), DONE],
        [said("It is 4\n"), said("\n"), said(finish="length")],
    ):
        assert (cut(script).text, cut(script).pieces[-1].finish) == ("It is 4", "stop")
    assert cut([said("It is 4\n"), said(finish="stop"), DONE]).text == "It is 4\n"
    assert (
        cut(
            [said("ab\n\nc"), said(finish="stop"), DONE], extra_body={"include_stop_str_in_output": True}
        ).text
        == "ab\n\nc"
    )


def test_stop_strings_do_not_end_thoughts():
    asked = cut([delta(reasoning_content="One.\n\nTwo."), said("4"), said("\n\n5"), STALL])
    assert asked.text == "<think>One.\n\nTwo.</think>4"


def test_a_provider_that_ignores_max_tokens_is_cut_there(caplog):
    asked = Asked(
        [said(" word") for _ in range(500)] + [STALL], request=Request(CHAT, Sampling(max_tokens=8))
    )
    assert (asked.error, asked.text, asked.pieces[-1].finish) == (None, " word" * 8, "length")
    assert (asked.cost.completion_tokens, asked.cost.estimated, asked.api.left) == (8, True, 1)
    assert "far: the provider writes more than max_tokens, 8; the answer ends there" in caplog.messages
    huge = Asked([said("x" * 500_000)] * 20, request=Request(CHAT, Sampling(max_tokens=8)))
    assert (huge.text, huge.pieces[-1].finish) == ("x" * 256 * 8, "length")
    parts = [delta(tool_calls=[{"index": 0, "function": {"arguments": "x" * 5000}}])] * 20
    calls = Asked(parts, request=Request(CHAT, Sampling(max_tokens=8)))
    assert calls.pieces[-1].finish == "length"


def test_max_tokens_counts_the_tokens_that_the_api_names():
    entries = [{"token": token, "logprob": -1.0} for token in "abcdef"]
    event = chunk([{"delta": {"content": "abcdef"}, "logprobs": {"content": entries}, "finish_reason": None}])
    asked = Asked([event, STALL], logprobs=True, request=Request(CHAT, Sampling(max_tokens=4)))
    assert (asked.text, len(asked.pieces[0].tokens), asked.pieces[-1].finish) == ("abcd", 4, "length")


def test_what_is_within_max_tokens_is_not_cut():
    exact = Asked(
        [*[said("x")] * 8, said(finish="stop"), DONE], request=Request(CHAT, Sampling(max_tokens=8))
    )
    assert (exact.text, exact.pieces[-1].finish) == ("x" * 8, "stop")
    small = [
        chunk([{"delta": {"content": "x"}}], usage={"prompt_tokens": 1, "completion_tokens": 1 + i // 4})
        for i in range(20)
    ]
    told = Asked([*small, said(finish="stop"), DONE], request=Request(CHAT, Sampling(max_tokens=8)))
    assert told.text == "x" * 20  # four parts to a token, as its usage says
    asked = Asked(
        [*[said("x")] * 20, said(finish="stop"), DONE],
        extra_body={"max_tokens": 30},
        request=Request(CHAT, Sampling(max_tokens=8)),
    )
    assert asked.text == "x" * 20
    thoughts = [*[delta(reasoning_content="x")] * 20, said("4"), said(finish="stop"), DONE]
    few = Request(CHAT, Sampling(max_tokens=8))
    assert Asked(thoughts, request=few).pieces[-1].finish == "stop"
    assert (
        Asked(thoughts, request=few, max_tokens_field="max_completion_tokens").pieces[-1].finish == "length"
    )


# ---- deadlines and bounds


BOMB = gzip.compress((b": " + b"x" * 62 + b"\n") * 2**20)  # 64 MiB of comments in some kB
NEWLINES = gzip.compress(b"\n" * 2**26)
EMPTY = gzip.compress(b"data: {}\n\n" * 2**20)


def endless(part):
    while True:
        yield from [part] * 100
        yield 0.001  # the rest of this process has a turn


@pytest.mark.parametrize(
    "script",
    [
        lambda _: endless(event({"choices": []})),
        lambda _: endless(b": ping\n\n"),
        lambda _: endless(b"x" * 1000),
        lambda _: endless(delta(reasoning_content="hm")),
        lambda _: (part for i in range(2**30) for part in (b"d", 0.01)),
        lambda _: endless(delta(role="assistant")),
    ],
)
def test_a_stream_without_end_ends_with_the_patience(script):
    patience = {"first_token": 5, "inter_token": 5, "total": 0.5, "tries": 3}
    started = time.monotonic()
    asked = Asked(script, patience=type(QUICK)(**patience))
    assert time.monotonic() - started < 3
    assert isinstance(asked.error, EngineError)
    assert "patience.total" in str(asked.error) or "an event of more than" in str(asked.error)


@pytest.mark.parametrize("body", [BOMB, NEWLINES, EMPTY])
@pytest.mark.parametrize("status", [200, 500])
def test_what_unpacks_without_end_is_bounded_and_blocks_nobody(body, status):
    longest = 0.0

    async def main():
        nonlocal longest
        headers = {"content-type": "text/event-stream", "content-encoding": "gzip"}
        async with upstream((status, headers, body)) as (_, url):
            patience = type(QUICK)(first_token=2, inter_token=2, total=2, tries=1)
            engine = OpenAIEngine("far", OpenAIOptions("m", base_url=url, patience=patience))

            async def ask():
                with pytest.raises(EngineError):
                    async for _ in engine.stream(Request(CHAT), UsageLedger().meter("answer")):
                        pass

            task = asyncio.create_task(ask())
            while not task.done():
                before = time.monotonic()
                await asyncio.sleep(0.001)
                longest = max(longest, time.monotonic() - before)
            await task
            await engine.close()

    started = time.monotonic()
    asyncio.run(main())
    assert time.monotonic() - started < 6
    assert longest < 1.5


def test_a_body_that_drips_is_given_up():
    async def main():
        async def drip(reader, writer):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(
                f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: 99999\r\n\r\n".encode()
            )
            try:
                while True:
                    writer.write(b" ")
                    await writer.drain()
                    await asyncio.sleep(0.01)
            except ConnectionError:
                writer.close()

        server = await asyncio.start_server(drip, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        patience = type(QUICK)(first_token=0.5, inter_token=0.5, total=1, tries=1)
        engine = OpenAIEngine("far", OpenAIOptions("m", base_url=url, patience=patience, score="echo"))
        for status in (200, 500):  # noqa: B007  # `drip` reads it
            for work in (
                engine.score(Request(Text("x")), UsageLedger().meter("judge")),
                engine.listed(),
                anext(engine.stream(Request(CHAT), UsageLedger().meter("answer"))),
            ):
                started = time.monotonic()
                with pytest.raises(EngineError):
                    await work
                assert time.monotonic() - started < 2.5
        await engine.close()
        server.close()

    asyncio.run(main())


@pytest.mark.parametrize("coding", ["br", "zstd", "gzip, br", "rot13"])
def test_a_compression_that_was_not_offered_is_named(coding):
    for status in (200, 503):
        headers = {"content-type": "text/event-stream", "content-encoding": coding}
        asked = Asked((status, headers, "\x0b\x02\x80"))
        assert f"compressed by '{coding.split()[-1]}', which was not asked for" in str(asked.error)


def test_bytes_that_are_no_utf8_are_replaced():
    asked = Asked([b'data: {"choices": [{"delta": {"content": "caf\xe9"}}]}\n\n', said(finish="stop"), DONE])
    assert asked.text == "caf\ufffd"


# ---- refusals


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"error": {"message": "no", "code": 7}}, "no"),
        ({"error": "no"}, "no"),
        ({"message": "no"}, "no"),
        ({"detail": "no"}, "no"),
        ({"detail": [{"loc": ["body"], "msg": "no"}]}, "no"),
        ([{"error": {"message": "no"}}], "no"),
        (
            {"error": {"message": "Provider returned error", "metadata": {"raw": "no"}}},
            "Provider returned error: no",
        ),
        ({"error": {"message": ["a"]}}, '{"error": {"message": ["a"]}}'),
        ([], "[]"),
        ("no", '"no"'),
    ],
)
def test_a_refusal_says_why_in_any_form(body, says):
    assert str(Asked((403, {}, json.dumps(body))).error).endswith(f": HTTP 403 {says}")


def test_a_refusal_is_one_line_of_text_and_bounded():
    for body in (
        "\x1b[31mred\x07\r\nnext\u2028line",
        "[" * 60_000,
        json.dumps({"error": {"message": "x" * 10**6}}),
    ):
        said_so = str(Asked((403, {}, body)).error)
        assert said_so.isprintable()
        assert len(said_so) < 1200
    assert one_line("a\x1bb\nc\ud800") == "a\ufffdb c\ufffd"


@pytest.mark.parametrize(
    "error",
    [
        {"message": "This model's maximum context length is 8192 tokens."},
        {"message": "x", "code": "context_length_exceeded"},
        {"message": "the request exceeds the available context size", "type": "exceed_context_size_error"},
    ],
)
def test_a_context_that_is_too_short_is_known_by_its_words(error):
    assert isinstance(Asked((400, {}, json.dumps({"error": error}))).error, ContextOverflowError)
    inside = Asked([event({"error": {**error, "code": error.get("code", 400)}})])
    assert ErrorReply.of(error).code == "context_length_exceeded"
    assert isinstance(inside.error, ContextOverflowError | EngineError)


@pytest.mark.parametrize(
    "said_so",
    [
        event({"error": {"message": "overloaded"}}),
        event({"error": "overloaded"}),
        b"event: error\ndata: overloaded\n\n",
        b'event: error\ndata: {"message": "overloaded"}\n\n',
        event({"object": "error", "message": "overloaded", "code": 503}),
        event({"type": "error", "error": {"type": "x", "message": "overloaded"}}),
    ],
)
def test_an_error_within_a_stream_is_seen_in_every_form(said_so):
    asked = Asked([said("It"), said_so, said(finish="stop")])
    assert isinstance(asked.error, EngineError)
    assert "overloaded" in str(asked.error)
    assert Asked([said_so], answer()).text == "It is 4."  # nothing had come: tried again
    bad = Asked([event({"error": {"message": "bad field", "code": 400}})])
    assert isinstance(bad.error, RequestError)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("2", 2),
        ("1.5", 1.5),
        (" 3 ", 3),
        ("\u00b2", 0),
        ("-1", 0),
        ("nan", 0),
        ("1e9", 0),
        ("soon", 0),
        ("", 0),
        ("9" * 400, math.inf),
        ("Mon, 99 Foo 2020 00:00:00 GMT", 0),
        ("Fri, 31 Dec 9999 23:59:59 +0000", 10**9),
        ("Mon, 01 Jan 0001 00:00:00 GMT", 0),
        ("\u0662", 0),
    ],
)
def test_retry_after_is_read_whatever_it_says(value, seconds):
    assert retry_after(value) == seconds or (seconds == 10**9 and retry_after(value) > seconds)


def test_an_odd_retry_after_does_not_keep_from_trying_again(caplog):
    caplog.set_level(logging.DEBUG)
    assert Asked((429, {"retry-after": "\u00b2"}, "{}"), answer()).error is None
