import asyncio
import json
import os
import signal
import time
from pathlib import Path

import httpx2 as httpx
import pytest

from ensemblehub.api.problems import public
from tests.waiting import until

HERE = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])}
ASK = {"messages": [{"role": "user", "content": "2 + 2?"}]}
CHAT = "/v1/chat/completions"
pytestmark = pytest.mark.anyio


def yaml(journal="", **server):
    options = ", ".join(f"{key}: {value}" for key, value in server.items())
    words = " ".join(f"w{number}" for number in range(400))
    slow = f'engine: "slow:SlowEngine", journal: "{journal}", delay: 0.02, replies: {{"": "{words}"}}'
    return f"""
model_specs:
  - {{name: big, {slow}, parameters: 9}}
  - {{name: small, {slow}, parameters: 1}}
ensemble:
  output_aggregation_method: tandem
  output_aggregation_params: {{levels: {{low: 20}}, judge: "fixed:low"}}
server: {{{options}}}
"""


@pytest.fixture(scope="module")
def journal(tmp_path_factory):
    return tmp_path_factory.mktemp("journal") / "engines.jsonl"


@pytest.fixture(scope="module")
def slow(serve, journal):
    limits = {
        "max_stop": 2,
        "max_answers": 3,
        "max_output_tokens": 500,
        "max_prompt_tokens": 30,
        "keep_alive": 0.2,
    }
    return serve(yaml(journal, **limits), env=HERE)


@pytest.fixture(scope="module")
def busy(serve, journal):
    return serve(
        yaml(journal, max_running=1, max_queued=1, max_queued_tokens=40, timeout=3, first_token_timeout=1),
        env=HERE,
    )


def noted(journal):
    return [json.loads(line) for line in journal.read_text().splitlines()] if journal.exists() else []


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("model", ["ensemble", "big"])
@pytest.mark.parametrize("after", [0.15, 0.8])  # while the mentor writes, and while the intern does
async def test_a_client_that_leaves_stops_every_engine_within_a_second(slow, journal, stream, model, after):
    before = len(noted(journal))
    body = {**ASK, "stream": stream, "model": model, "n": 2}
    async with httpx.AsyncClient(timeout=30) as client:
        asking = asyncio.create_task(client.post(slow.url + CHAT, json=body))
        await asyncio.to_thread(until, lambda: len(noted(journal)) >= before + 2)
        await asyncio.sleep(after)
        asking.cancel()
        left = time.time()
    await asyncio.to_thread(
        until,
        lambda: (
            sum(what == "begins" for what, *_ in noted(journal)[before:]) * 2 == len(noted(journal)[before:])
        ),
    )
    events = noted(journal)[before:]
    assert sum(what == "stopped" for what, *_ in events) >= 2
    assert max(at for what, _, at in events if what == "stopped") < left + 1.0
    await asyncio.to_thread(until, lambda: slow.get("/status").json()["running"] == 0)
    assert 'outcome="disconnected"' in slow.get("/metrics").text


@pytest.mark.parametrize(
    ("change", "says", "code"),
    [
        ({"stop": ["a", "b", "c"]}, "at most 2 stop strings", "out_of_bounds"),
        ({"n": 4}, "at most 3 answers", "out_of_bounds"),
        ({"max_tokens": 501}, "at most 500", "out_of_bounds"),
        (
            {"messages": [{"role": "user", "content": "word " * 40}]},
            "maximum context length is 30 tokens",
            "context_length_exceeded",
        ),
        ({"temperatur": 1}, "did you mean 'temperature'", "unknown_field"),
        ({"temperature": 3}, "less than or equal to 2", "invalid_value"),
        ({"response_format": {"type": "json_object"}}, "response_format", "unsupported"),
        ({"tools": [{"type": "function"}]}, "tools", "unsupported"),
        ({"top_logprobs": 3}, "logprobs: true", "invalid_value"),
        ({"model": "bigg"}, "did you mean 'big'", "model_not_found"),
        ({"ensemble": {"params": {"judge": "fixed:high"}}}, "may not set 'judge'", None),
        ({"ensemble": {"path": "evil/model"}}, "ensemble.path", "invalid_value"),
        ({"model_specs": ["evil/model"]}, "unknown field 'model_specs'", "unknown_field"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "only text",
            "invalid_value",
        ),
        ({"continue_final_message": True}, "last message of the assistant", "unsupported"),
        ({"logprobs": True, "extract_after": "</think>"}, "extract_after", None),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(slow, change, says, code):
    refused = slow.post(CHAT, ASK | change)
    assert refused.status_code in (400, 404)
    error = refused.json()["error"]
    assert says in error["message"]
    assert error["code"] == (code or error["code"])
    assert refused.json()["error"].keys() == {"message", "type", "param", "code"}


def test_a_silent_stream_is_kept_alive(serve):
    words = yaml(keep_alive=0.1).replace("delay: 0.02", "delay: 0.35").replace("low: 20", "low: 1")
    server = serve(words, env=HERE)
    with httpx.stream(
        "POST", server.url + CHAT, json={**ASK, "stream": True, "max_tokens": 2}, timeout=30
    ) as answer:
        lines = [line for line in answer.iter_lines() if line]
    assert lines[0] == ": keep-alive"
    assert lines.count(": keep-alive") >= 5
    assert lines[-1] == "data: [DONE]"


async def test_beyond_the_queue_there_is_429_at_once_and_nothing_is_lost(busy):
    ask = {**ASK, "model": "big", "max_tokens": 30}
    async with httpx.AsyncClient(timeout=30) as client:
        first = asyncio.create_task(client.post(busy.url + CHAT, json=ask))
        await asyncio.to_thread(until, lambda: busy.get("/status").json()["running"] == 1)
        long = {**ask, "messages": [{"role": "user", "content": "word " * 41}]}
        refused = await client.post(busy.url + CHAT, json=long)
        assert refused.status_code == 429
        assert (
            "tokens wait" in refused.json()["error"]["message"]
            or "prompts of" in refused.json()["error"]["message"]
        )
        second = asyncio.create_task(client.post(busy.url + CHAT, json={**ask, "max_tokens": 5}))
        await asyncio.to_thread(until, lambda: busy.get("/status").json()["queued"] == 1)
        started = time.monotonic()
        third = await client.post(busy.url + CHAT, json=ask)
        assert time.monotonic() - started < 0.9  # a place in the queue is waited for for 1 s
        assert third.status_code == 429
        assert int(third.headers["retry-after"]) >= 1
        assert third.json()["error"]["type"] == "rate_limit_error"
        assert [(await task).status_code for task in (first, second)] == [200, 200]
    assert busy.get("/status").json()["queued"] == busy.get("/status").json()["running"] == 0


async def test_deadlines_end_a_request_and_what_waited_goes_on(busy, journal):
    async with httpx.AsyncClient(timeout=30) as client:
        started = time.monotonic()
        long = asyncio.create_task(
            client.post(busy.url + CHAT, json={**ASK, "model": "big", "max_tokens": 400})
        )
        await asyncio.to_thread(until, lambda: busy.get("/status").json()["running"] == 1)
        waiting = await client.post(busy.url + CHAT, json={**ASK, "model": "big", "max_tokens": 5})
        assert waiting.status_code == 504
        assert "no token within 1 s" in waiting.json()["error"]["message"]
        late = await long
        assert late.status_code == 504
        assert "no end within 3 s" in late.json()["error"]["message"]
        assert 2.8 < time.monotonic() - started < 6.0
        again = await client.post(busy.url + CHAT, json={**ASK, "model": "big", "max_tokens": 5})
        assert again.status_code == 200
    assert noted(journal)[-3][0] == "stopped"


async def test_a_deadline_in_a_stream_is_its_last_event(busy):
    body = {**ASK, "model": "big", "stream": True, "max_tokens": 400}
    async with (
        httpx.AsyncClient(timeout=30) as client,
        client.stream("POST", busy.url + CHAT, json=body) as answer,
    ):
        lines = [line async for line in answer.aiter_lines() if line]
    assert answer.status_code == 200
    assert "no end within 3 s" in json.loads(lines[-2].removeprefix("data: "))["error"]["message"]
    assert lines[-1] == "data: [DONE]"


async def test_a_server_that_is_stopped_ends_what_is_in_flight(serve, journal):
    server = serve(yaml(journal), env=HERE)
    body = {**ASK, "model": "big", "stream": True, "max_tokens": 60}
    async with httpx.AsyncClient(timeout=30) as client:
        asking = asyncio.create_task(client.post(server.url + CHAT, json=body))
        await asyncio.to_thread(until, lambda: server.get("/status").json()["running"] == 1)
        stopping = asyncio.create_task(asyncio.to_thread(server.stop))
        answer = await asking
    assert answer.text.endswith("data: [DONE]\n\n")
    assert answer.text.count('"content":"') == 61  # the role, and 60 words
    assert await stopping == 0


@pytest.mark.parametrize("told", [[signal.SIGTERM] * 2, [signal.SIGINT, signal.SIGTERM], [signal.SIGTERM]])
async def test_a_drain_that_is_cut_tells_every_client_and_says_one_line_a_request(serve, journal, told):
    drain = 20 if len(told) == 2 else 0.5
    server = serve(yaml(journal, max_running=3, drain=drain), env=HERE)
    ask = {**ASK, "model": "big", "max_tokens": 400}
    async with httpx.AsyncClient(timeout=40) as client:
        asked = []
        for number, stream in enumerate([True, False, True, False]):
            named = {"X-Request-Id": f"cut-{number}"}
            asking = client.post(server.url + CHAT, json={**ask, "stream": stream}, headers=named)
            asked.append(asyncio.create_task(asking))
            if number == 2:
                await asyncio.to_thread(until, lambda: server.get("/status").json()["running"] == 3)
        await asyncio.to_thread(until, lambda: server.get("/status").json()["queued"] == 1)
        begun = time.monotonic()
        for number in told:
            server.process.send_signal(number)
            await asyncio.sleep(0.5)
        answers = await asyncio.gather(*asked)
        assert await asyncio.to_thread(server.process.wait, 30) == 0
    assert time.monotonic() - begun < 6
    for answer, stream in zip(answers, [True, False, True, False], strict=True):
        assert answer.status_code == (200 if stream else 503)
        last = (
            answer.text.removesuffix("\n\ndata: [DONE]\n\n").rpartition("data: ")[2]
            if stream
            else answer.text
        )
        assert json.loads(last)["error"]["code"] == "server_stopped"
    log = server.said()
    for number in range(4):
        (line,) = [line for line in log.splitlines() if f"request_id=cut-{number} " in line]
        assert "outcome=stopped" in line
    assert "Traceback" not in log
    said = [line for line in log.splitlines() if "/health" not in line]
    assert len(said) == 6  # where it serves, four requests, and that they are cut off


def test_a_server_answers_once_its_models_are_loaded(serve):
    server = serve(yaml().replace("delay: 0.02", "loading: 2.5"), env=HERE, ready=False)
    end = time.monotonic() + 60
    while True:
        try:
            health = server.get("/health")
            break
        except httpx.TransportError:
            assert time.monotonic() < end
            time.sleep(0.05)
    assert (health.status_code, health.json()) == (503, {"status": "loading"})
    early = server.post(CHAT, ASK)
    assert early.status_code == 503
    assert early.headers["retry-after"]
    assert server.get("/v1/models").status_code == 200
    while server.get("/health").status_code != 200:
        assert time.monotonic() < end
        time.sleep(0.1)
    assert server.post(CHAT, {**ASK, "max_tokens": 3}).status_code == 200


def test_models_that_cannot_be_loaded_end_the_server_with_one_line(serve):
    server = serve(yaml().replace("delay: 0.02", "broken: true"), env=HERE, ready=False)
    assert server.process.wait(60) == 2
    assert "cannot be loaded: big has no weights" in server.said().strip().splitlines()[-1]
    assert "Traceback" not in server.said()


def test_a_log_is_json_where_wanted_and_holds_words_only_where_wanted(serve):
    quiet = serve(yaml(), "--log-format", "json", env=HERE)
    quiet.post(CHAT, {"messages": [{"role": "user", "content": "my secret"}], "max_tokens": 2})
    last = json.loads(quiet.said('"outcome"').splitlines()[-1])
    assert (last["path"], last["status"], last["model"], last["outcome"]) == (CHAT, 200, "ensemble", "ok")
    assert last["first_token_seconds"] > 0
    assert "my secret" not in quiet.said()
    loud = serve(yaml(log_prompts="true"), "--log-format", "json", env=HERE)
    loud.post(CHAT, {"messages": [{"role": "user", "content": "my secret"}], "max_tokens": 2})
    loud.said("my secret")


def test_results_are_kept_where_wanted(serve):
    server = serve(yaml() + "debug: {save_results: true}\n", env=HERE)
    for stream in (False, True):
        server.post(CHAT, {**ASK, "max_tokens": 2, "stream": stream})
    (file,) = (server.log.parent / "saves" / "logs").glob("api_session_*.jsonl")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["answers"][0]["text"] for row in rows] == ["w0 w1"] * 2
    assert rows[0]["request"]["messages"][0]["content"] == "2 + 2?"
    assert sum(spent["cost"]["completion_tokens"] for spent in rows[0]["spent"]) == 22


@pytest.mark.parametrize("more", [{}, {"logprobs": True}])
def test_of_a_long_answer_every_token_counts_whether_or_not_logprobs_keep_them_apart(slow, more):
    answer = slow.post(CHAT, {**ASK, "max_tokens": 200, **more}).json()
    (choice,), usage = answer["choices"], answer["usage"]
    assert choice["message"]["content"] == " ".join(f"w{number}" for number in range(200))
    assert choice["message"]["reasoning_content"] == " ".join(f"w{number}" for number in range(20))
    assert (usage["completion_tokens"], usage["completion_tokens_details"]["reasoning_tokens"]) == (220, 20)
    assert [segment["length"] for segment in choice["metadata"]["attribution"]["segments"]] == [20, 200]
    assert len(choice["logprobs"]["content"] if more else range(200)) == 200


def test_where_a_model_is_asked_is_for_the_log_and_not_for_clients(serve):
    far = """
model_specs:
  - {name: far, engine: openai, path: "m", base_url: "http://127.0.0.1:9/v1", patience: {tries: 1}}
  - {name: near, engine: echo}
ensemble:
  models: [far, near]
  output_aggregation_method: vote
  on_error: drop
"""
    server = serve(far)
    refused = server.post(CHAT, {**ASK, "model": "far"})
    assert refused.status_code == 502
    assert "far failed" in refused.json()["error"]["message"]
    dropped = server.post(CHAT, ASK)
    assert dropped.status_code == 200
    assert "dropped far" in dropped.text
    streamed = server.post(CHAT, {**ASK, "stream": True})
    assert "dropped far" in streamed.text
    for answer in (refused, dropped, streamed):
        assert "127.0.0.1" not in answer.text
        assert "http" not in answer.text
    assert "far failed at http://127.0.0.1:9/v1" in server.said()


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("m failed at https://10.0.0.5:8080/v1: refused", "m failed: refused"),
        ("m failed at http://inner.example/v1/x?y=z.", "m failed."),
        ("no route to inner.example:443 (try http://[::1]:80/)", "no route to [address] (try [address])"),
        ("cannot reach 10.1.2.3:99 or [fe80::1]:80", "cannot reach [address] or [address]"),
        ("cannot reach localhost:8000", "cannot reach [address]"),
        ("HTTP 400 prompt has 12:30 and v1.2.3 in it", "HTTP 400 prompt has 12:30 and v1.2.3 in it"),
        ("judge: /srv/models/judge has no weights", "judge: [path] has no weights"),
        ("'/home/me/a b.yaml', ~/weights/x.gguf and ../x", "'[path] b.yaml', [path] and [path]"),
        (r"cannot read C:\models\x.gguf: denied", "cannot read [path]: denied"),
        ("12 tokens/s and/or org/model (1 / 2)", "12 tokens/s and/or org/model (1 / 2)"),
    ],
)
def test_addresses_and_paths_are_taken_out_of_what_is_told(said, told):
    assert public(said) == told


def test_metrics_and_status_say_what_was_done(serve):
    server = serve(yaml(), env=HERE)
    answer = server.post(CHAT, {**ASK, "max_tokens": 5}).json()
    server.post(CHAT, {**ASK, "nonsense": 1})
    server.said(" 400")  # the line, and the count of what was refused, come after the answer
    lines = dict(
        line.rsplit(" ", 1) for line in server.get("/metrics").text.splitlines() if not line.startswith("#")
    )
    assert lines['ensemblehub_requests_total{endpoint="chat",model="ensemble",outcome="ok"}'] == "1.0"
    assert lines['ensemblehub_errors_total{status="400"}'] == "1.0"
    assert lines['ensemblehub_verdicts_total{level="low",model="ensemble",sufficient="true"}'] == "1.0"
    assert lines['ensemblehub_time_to_first_token_seconds_count{model="ensemble"}'] == "1.0"
    for line in answer["usage"]["cost_details"]["spent"]:
        key = f'engine="{line["engine"]}",kind="completion",purpose="{line["purpose"]}"'
        assert float(lines[f"ensemblehub_tokens_total{{{key}}}"]) == line["completion_tokens"]
    status = server.get("/status").json()
    assert status["status"] == "ready"
    assert status["model_count"] == 2
    assert "tandem" in status["available_methods"]["output_aggregation"]
