"""Malformed replies and halves of characters from an API, as seen through the server, `infer` and `ask`."""

import asyncio
import importlib.util
import json
import os
import sys
from pathlib import Path

spec = importlib.util.spec_from_file_location(
    "faulty", Path(__file__).parents[1] / "generators" / "faulty.py"
)
faulty = importlib.util.module_from_spec(spec)
spec.loader.exec_module(faulty)

ASK = {"model": "far", "messages": [{"role": "user", "content": "2 + 2?"}]}
MALFORMED = [
    [faulty.said("4", finish=["stop"])],
    [faulty.event({"choices": [{"delta": {"content": "4"}, "logprobs": {"content": [{"token": 4}]}}]})],
    [b"data: " + b"[" * 100_000 + b"\n\n"],
    [faulty.event({"choices": 4})],
    [faulty.said(content={"a": 1})],
    (429, {"retry-after": "9" * 400}, "{}"),
    (503, {"retry-after": "soon"}, "[" * 50_000),
    (200, {"content-type": "text/html"}, "<p>log in</p>"),
    (200, {"content-type": "text/event-stream", "content-encoding": "br"}, "\x0b\x02\x80"),
]
USAGES = [
    {"prompt_tokens": value, "completion_tokens": value} for value in (10**400, -1, float("nan"), "4", [])
]
HALVES = [
    faulty.said("4 \ud83d"),
    faulty.said("\ude00"),
    faulty.said("\ud83d"),
    faulty.said(finish="eos_token"),
]


def config(url):
    patience = {"tries": 1, "breaker_failures": 10**6}
    model = {"name": "far", "engine": "openai", "path": "m", "base_url": url, "patience": patience}
    return json.dumps({"model_specs": [model], "ensemble": {"output_aggregation_method": "single"}})


def test_a_malformed_reply_is_a_502_of_one_line_and_odd_usage_is_none(serve):
    chunks = [
        [faulty.said("4"), faulty.said(finish="stop"), faulty.event({"usage": usage})] for usage in USAGES
    ]

    async def ask():
        async with faulty.upstream(*MALFORMED, *chunks, HALVES) as (_, url):
            server = serve(config(url))
            count = len(MALFORMED) + len(USAGES) + 1
            return [await asyncio.to_thread(server.post, "/v1/chat/completions", ASK) for _ in range(count)]

    replies = asyncio.run(ask())
    for reply in replies[: len(MALFORMED)]:
        assert reply.status_code == 502, reply.text
        error = reply.json()["error"]
        assert error["code"] == "engine_error"
        assert error["message"].isprintable()
    for reply in replies[len(MALFORMED) :]:
        assert reply.status_code == 200, reply.text
    texts = [reply.json()["choices"][0]["message"]["content"] for reply in replies[len(MALFORMED) :]]
    assert texts == ["4"] * len(USAGES) + ["4 \U0001f600\ufffd"]


def test_infer_and_ask_write_what_halves_stand_for(tmp_path):
    (tmp_path / "items.jsonl").write_text(json.dumps("2 + 2?") + "\n")

    async def run(*command):
        options = {"stdout": asyncio.subprocess.PIPE, "stderr": asyncio.subprocess.PIPE, "env": os.environ}
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "ensemblehub", *command, **options
        )
        output, errors = await process.communicate()
        return process.returncode, output.decode(), errors.decode()

    async def both():
        async with faulty.upstream(HALVES) as (_, url):
            (tmp_path / "far.yaml").write_text(config(url))
            given = ("--config", str(tmp_path / "far.yaml"))
            files = (
                "--input_path",
                str(tmp_path / "items.jsonl"),
                "--output_path",
                str(tmp_path / "out.jsonl"),
            )
            return await asyncio.gather(run("infer", *given, *files), run("ask", "2 + 2?", *given, "--json"))

    for code, _, errors in (found := asyncio.run(both())):
        assert (code, "Traceback" in errors) == (0, False), errors
    (row,) = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    assert (row["predict"], row["error"]) == ("4 \U0001f600\ufffd", None)
    assert json.loads(found[1][1])["answer"] == "4 \U0001f600\ufffd"
