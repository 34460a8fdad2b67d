"""What each key may spend in a day, over restarts and for several servers at once."""

import json
import multiprocessing
import re
import sqlite3
from datetime import UTC, datetime

import httpx2 as httpx
import openai
import pytest

from ensemblehub.api.key_budgets import KeyBudgets
from ensemblehub.api.problems import Problem
from ensemblehub.config import Config
from ensemblehub.config.sections import Budget
from ensemblehub.cost import Cost
from ensemblehub.errors import ConfigError
from tests.waiting import until

ONE, TWO = {"Authorization": "Bearer first"}, {"x-api-key": "second"}
CHAT = {"messages": [{"role": "user", "content": "2 + 2?"}]}  # three tokens
EVENING = datetime(2026, 11, 28, 22, 30, tzinfo=UTC)


def config(file):
    words = " ".join(map(str, range(1, 41)))
    return {
        "model_specs": [{"name": "small", "engine": "echo", "replies": {"": words}, "parameters": 1}],
        "ensemble": {"generation": {"max_tokens": 100}},
        "server": {"key_budget": {"tokens": 60}, "key_budget_file": str(file)},
    }


def test_a_key_that_has_spent_its_budget_waits_until_midnight(serve, tmp_path):
    flags = ("--api-key", "first", "--api-key", "second")
    server = serve(json.dumps(config(tmp_path / "spent.sqlite")), *flags)
    path = "/v1/chat/completions"
    first = server.post(path, CHAT, headers=ONE).json()["choices"][0]
    assert (first["finish_reason"], first["metadata"]["finish"]) == ("stop", "stop")
    second = server.post(path, CHAT, headers=ONE).json()["choices"][0]  # 43 of 60 are spent, and 3 are read
    assert (second["finish_reason"], second["metadata"]["finish"]) == ("length", "budget")
    assert len(second["message"]["content"].split()) == 14
    refused = server.post(path, CHAT, headers=ONE)
    error = refused.json()["error"]
    assert (refused.status_code, error["code"], error["type"]) == (429, "budget_spent", "rate_limit_error")
    says = "the daily budget of this API key is spent: 60 of 60 tokens; the next day begins at "
    assert re.fullmatch(rf"{says}\S+T00:00Z, in \d+ h \d+ min", error["message"])
    assert 0 < int(refused.headers["retry-after"]) <= 24 * 3600
    anthropic = server.post("/v1/messages", {**CHAT, "max_tokens": 8}, headers=ONE)
    assert anthropic.json()["error"]["type"] == "rate_limit_error"
    assert server.post(path, CHAT, headers=TWO).status_code == 200  # another key's
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="first", max_retries=2)
    with client, pytest.raises(openai.RateLimitError, match="the daily budget of this API key is spent"):
        client.chat.completions.create(model="small", **CHAT)  # and does not wait for midnight
    assert server.get("/v1/models", headers=ONE).status_code == 200
    server.stop()
    again = serve(json.dumps(config(tmp_path / "spent.sqlite")), *flags)
    assert again.post(path, CHAT, headers=ONE).status_code == 429
    assert "first" not in (tmp_path / "spent.sqlite").read_bytes().decode("latin-1")


def test_a_stream_that_is_left_and_one_that_fails_are_counted(serve, tmp_path):
    wanted = config(tmp_path / "spent.sqlite")
    wanted["model_specs"] += [
        {"name": "frail", "engine": "echo", "replies": {"": "1 2 3 4 5 6"}, "fail_after": 5},
        {"name": "slow", "engine": "echo", "replies": {"": "1 2 3 4 5 6"}, "delay": 0.3},
    ]
    server = serve(json.dumps(wanted))
    path = server.url + "/v1/chat/completions"
    assert server.post("/v1/chat/completions", {**CHAT, "model": "frail"}).status_code == 502
    file = sqlite3.connect(tmp_path / "spent.sqlite")
    assert file.execute("SELECT owner, tokens FROM spent").fetchall() == [("", 3 + 5)]
    with httpx.stream("POST", path, json={**CHAT, "model": "slow", "stream": True}) as reply:
        next(reply.iter_bytes())
    until(lambda: file.execute("SELECT tokens FROM spent").fetchone() != (8,))
    assert 8 + 3 <= file.execute("SELECT tokens FROM spent").fetchone()[0] < 8 + 3 + 6
    file.close()


def spend(path, times):
    budgets = KeyBudgets(path, Budget(usd=1))
    for _ in range(times):
        budgets.add("key", Cost(2, 1, 3, decode_flops=5.0, usd=0.5, calls=1))
    budgets.close()


def test_processes_that_write_at_once_lose_nothing(tmp_path):
    path, context = tmp_path / "deep" / "spent.sqlite", multiprocessing.get_context("fork")
    writers = [context.Process(target=spend, args=(path, 200)) for _ in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(30)
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    budgets = KeyBudgets(path, Budget(usd=1))
    found = budgets.spent("key")
    assert (found.usd, found.flops, found.prompt_tokens) == (300.0, 3000.0, 2400)
    assert budgets.spent("other") == Cost()


def test_a_day_ends_at_midnight_and_says_so(tmp_path):
    clock = [EVENING]
    budgets = KeyBudgets(tmp_path / "spent", Budget(usd=1, tflops=2), lambda: clock[0])
    budgets.add("key", Cost(usd=0.75, decode_flops=0.5e12, calls=1))
    budgets.check("key")
    left = budgets.left("key")
    assert (left.usd, left.tflops, left.tokens) == (0.25, 1.5, None)
    budgets.add("key", Cost(usd=0.5, calls=1))
    with pytest.raises(Problem) as refused:
        budgets.check("key")
    assert refused.value.detail.endswith(
        "1.25 of 1 US dollars; the next day begins at 2026-11-29T00:00Z, in 1 h 30 min"
    )
    assert refused.value.headers["Retry-After"] == "5401"
    clock[0] = datetime(2026, 11, 29, 0, 0, 1, tzinfo=UTC)
    budgets.check("key")
    clock[0] = datetime(2027, 1, 10, tzinfo=UTC)
    budgets.close()
    KeyBudgets(tmp_path / "spent", Budget(usd=1), lambda: clock[0]).close()
    with sqlite3.connect(tmp_path / "spent") as file:
        assert file.execute("SELECT count(*) FROM spent").fetchone() == (0,)  # old days are forgotten


def test_a_file_that_is_something_else_is_refused_at_the_start(tmp_path):
    (tmp_path / "notes").write_text("this is no database at all, but a text file with some words" * 10)
    with pytest.raises(ConfigError, match=r"server.key_budget_file: .*notes: file is not a database"):
        KeyBudgets(tmp_path / "notes", Budget(usd=1))


def test_a_url_is_no_file_and_its_password_is_not_shown(tmp_path):
    (tmp_path / "server.yaml").write_text(
        "model_specs: [{name: echo, engine: echo}]\nserver: {key_budget_file: 'redis://:secret@host:6379/0'}"
    )
    with pytest.raises(ConfigError, match=r"server.key_budget_file: expected a path, not a URL$"):
        Config.read(tmp_path / "server.yaml")


def test_a_file_that_breaks_later_refuses_requests_and_does_not_fail_answers(tmp_path, caplog):
    budgets = KeyBudgets(tmp_path / "spent", Budget(usd=1))
    budgets.close()
    budgets.add("key", Cost(usd=1.0, calls=1))
    assert "what a key spent cannot be written" in caplog.text
    with pytest.raises(Problem) as refused:
        budgets.check("key")
    assert refused.value.status_code == 503
