"""`ensemblehub serve --ray` over models without vLLM (`make test-ray`)."""

import json
import re
import signal
import socket
import subprocess
import sys
import time

import httpx2
import pytest

pytest.importorskip("ray", reason="Ray has an environment of its own: make test-ray")
CONFIG = """
model_specs:
  - {name: big, engine: echo, replies: {"": "Goal: add. Planning: add both. Retrieval: none."}, parameters: 9}
  - {name: small, engine: echo, replies: {"": "The answer is 12."}, parameters: 1}
  - {name: slow, engine: echo, replies: {"": "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20"}, delay: 0.3}
ensemble:
  models: [big, small]
  output_aggregation_method: tandem
  output_aggregation_params: {levels: {low: 2, high: 4}, judge: "fixed:high"}
"""


@pytest.fixture(scope="module")
def client(tmp_path_factory, cluster):
    """A client of a server with one replica."""
    folder = tmp_path_factory.mktemp("server")
    (folder / "config.yaml").write_text(CONFIG)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "ensemblehub", "serve", "config.yaml", cluster, "--port", str(port)]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([*command, "--api_key", "secret"], cwd=folder, stdout=log, stderr=log)
    with httpx2.Client(
        base_url=f"http://127.0.0.1:{port}", headers={"authorization": "Bearer secret"}, timeout=60
    ) as asked:
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline and process.poll() is None:
            try:
                if asked.get("/health").status_code == 200:
                    break
            except httpx2.TransportError:
                pass
            time.sleep(0.2)
        else:
            raise AssertionError((folder / "log").read_text())
        yield asked
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0


def chat(model, **more):
    return {"model": model, "messages": [{"role": "user", "content": "7 + 5?"}], **more}


def running(client):
    """Answers that are generated now."""
    return float(
        re.search(r"^ensemblehub_running(?:\{.*\})? (\S+)", client.get("/metrics").text, re.MULTILINE)[1]
    )


def test_an_ensemble_answers_with_its_usage(client):
    reply = client.post("/v1/chat/completions", json=chat("ensemble"))
    assert reply.status_code == 200
    assert reply.json()["choices"][0]["message"]["content"] == "The answer is 12."
    assert reply.json()["usage"]["completion_tokens"] > 0
    assert client.get("/v1/models", headers={"authorization": "Bearer other"}).status_code == 401
    assert "ensemblehub_requests_total" in client.get("/metrics").text


def test_echo_with_logprobs_passes(client):
    body = {"model": "small", "prompt": "7 + 5", "echo": True, "logprobs": 1, "max_tokens": 1}
    found = client.post("/v1/completions", json=body).json()["choices"][0]["logprobs"]
    assert len(found["tokens"]) == 4


def test_a_stream_comes_token_by_token_and_stops_with_its_client(client):
    times = []
    with client.stream("POST", "/v1/chat/completions", json=chat("slow", stream=True)) as reply:
        for line in reply.iter_lines():
            if line.startswith("data: {") and json.loads(line[6:])["choices"][0]["delta"].get("content"):
                times.append(time.monotonic())
            if len(times) == 4:
                break
        assert times[-1] - times[0] > 0.6
        assert running(client) == 1
    deadline = time.monotonic() + 3  # the whole answer would take six
    while running(client) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert running(client) == 0
