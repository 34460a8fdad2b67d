"""The MCP server by the official package's own client: over standard input and output, and over HTTP."""

import asyncio
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mcp", reason="the clients have an environment of their own: make test-clients")
from mcp import Client, StdioServerParameters

from tests.waiting import until

ROOT = Path(__file__).parents[2]
CONFIG = """
model_specs:
  - {name: big, engine: echo, replies: {"": "Goal: add. Planning: add. Retrieval: none."}, parameters: 9}
  - {name: small, engine: echo, replies: {"Be long": "It is four.", "": "It is 4."}, parameters: 1}
  - {name: frail, engine: echo, replies: {"": "One two three."}, fail_after: 1}
  - {name: slow, engine: "slow:SlowEngine", replies: {"": "1 2 3 4 5 6 7 8 9"}, delay: 0.3, journal: JOURNAL}
ensemble:
  models: [big, small]
  output_aggregation_method: tandem
  output_aggregation_params: {levels: {low: 2, high: 4}, judge: "fixed:high"}
server: {max_output_tokens: 100}
"""
ASK = {"question": "2 + 2?"}


@pytest.fixture(scope="module")
def anyio_backend():
    return "asyncio"


@pytest.fixture(scope="module")
def journal(tmp_path_factory):
    return tmp_path_factory.mktemp("journal") / "events.jsonl"


@pytest.fixture(scope="module")
def command(journal):
    """The command line, and its environment."""
    config = journal.with_name("config.yaml")
    config.write_text(CONFIG.replace("JOURNAL", str(journal)))
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "api")])
    return [sys.executable, "-m", "ensemblehub", "mcp", str(config)], {"PYTHONPATH": paths}


@pytest.fixture(scope="module")
def address(start, command):
    """Where it serves streamable HTTP; a GET without a session is refused, so any answer means it listens."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    line, env = command
    return start([*line, "--http", str(port)], port, "/mcp", statuses=range(200, 500), **env) + "/mcp"


@pytest.fixture(params=["stdio", "http"])
def target(request, command, address):
    line, env = command
    if request.param == "http":
        return address
    return StdioServerParameters(command=line[0], args=line[1:], env=env)


def found(result):
    """What a tool answers, which stands as text in it, too."""
    assert not result.is_error, result.content
    assert json.loads(result.content[0].text) == result.structured_content
    return result.structured_content


def refused(result):
    assert result.is_error
    return result.content[0].text


@pytest.mark.anyio
async def test_a_client_asks_compares_and_has_an_answer_explained(target):
    async with Client(target) as client:
        listed = {tool.name: tool for tool in (await client.list_tools()).tools}
        assert set(listed) == {"ask", "compare_models", "explain"}
        assert all(tool.description and tool.output_schema for tool in listed.values())
        assert listed["ask"].input_schema["required"] == ["question"]
        answer = found(await client.call_tool("ask", ASK))
        assert (answer["model"], answer["answer"], answer["insight"]) == (
            "ensemble",
            "It is 4.",
            "Goal: add. Planning: add.",
        )
        assert answer["wrote"] == {"insight": ["big"], "answer": ["small"]}
        assert answer["explanation"] == "stopped at 4 mentor tokens"
        assert answer["finish"] == "stop"
        why = found(await client.call_tool("explain", {"id": answer["id"]}))
        assert why["explanation"] == answer["explanation"]
        assert [verdict["level"] for verdict in why["verdicts"]] == ["low", "high"]
        assert [segment["model"] for segment in why["segments"]] == ["big", "small"]
        assert {line["engine"] for line in why["usage"]} >= {"big", "small"}
        models = {"models": ["small", "ensemble", "frail", "small"]}
        answers = found(await client.call_tool("compare_models", {**ASK, **models}))["answers"]
        assert [(told["model"], told["answer"]) for told in answers] == [
            ("small", "It is 4."),
            ("ensemble", "It is 4."),
            ("frail", ""),
        ]
        assert [told["error"] for told in answers] == [None, None, "frail failed after 1 tokens, as scripted"]
        long = {**ASK, "model": "small", "system": "Be long", "max_tokens": 2}
        cut = found(await client.call_tool("ask", long))
        assert (cut["answer"], cut["finish"]) == ("It is", "length")


@pytest.mark.anyio
async def test_wrong_calls_are_errors_that_a_model_can_read(target):
    async with Client(target) as client:
        assert "did you mean 'small'" in refused(await client.call_tool("ask", {**ASK, "model": "smal"}))
        wrong = {**ASK, "models": ["small", "bigg"]}
        assert "did you mean 'big'" in refused(await client.call_tool("compare_models", wrong))
        assert "is empty" in refused(await client.call_tool("ask", {"question": " "}))
        assert "from 1 to 100" in refused(await client.call_tool("ask", {**ASK, "max_tokens": 101}))
        assert "frail failed" in refused(await client.call_tool("ask", {**ASK, "model": "frail"}))
        assert "no answer 'x' is remembered" in refused(await client.call_tool("explain", {"id": "x"}))
        assert "question" in refused(await client.call_tool("ask", {}))


@pytest.mark.anyio
async def test_a_client_sees_progress_and_stops_the_models_by_cancelling(target, journal):
    seen = []

    async def told(progress, total, message):
        seen.append((progress, message))

    async with Client(target) as client:
        begun = len(journal.read_text().splitlines()) if journal.exists() else 0
        asking = asyncio.ensure_future(
            client.call_tool("ask", {**ASK, "model": "slow"}, progress_callback=told)
        )
        await asyncio.to_thread(until, lambda: len(seen) >= 2)
        assert seen[0] == (1.0, "slow (answer): 1")
        assert [progress for progress, _ in seen] == sorted(progress for progress, _ in seen)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await asyncio.to_thread(until, lambda: len(journal.read_text().splitlines()) == begun + 2)
        assert [json.loads(line)[0] for line in journal.read_text().splitlines()[begun:]] == [
            "begins",
            "stopped",
        ]
        assert found(await client.call_tool("ask", {**ASK, "model": "small"}))["answer"] == "It is 4."


def test_a_configuration_that_cannot_work_is_one_line(command):
    line, env = command
    wrong = [*line, "--set", "ensemble.output_aggregation_method=tandm"]
    done = subprocess.run(wrong, env={**os.environ, **env}, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert "did you mean 'tandem'" in done.stderr
