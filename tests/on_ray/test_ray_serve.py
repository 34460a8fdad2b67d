"""`ensemblehub serve --ray` over models without vLLM (`make test-ray`).

In place of Ray Serve LLM, `echo` models of a deployment of their own answer at /models; the server reaches them
through the engine `openai`, as it does models of vLLM.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx2
import pytest

from ensemblehub.api import ray_serve
from ensemblehub.config import Config
from tests.waiting import until

ray = pytest.importorskip("ray", reason="Ray has an environment of its own: make test-ray")
COUNTED = " ".join(map(str, range(100)))  # 30 seconds of tokens
SPECS = [
    {"name": "big", "engine": "echo", "replies": {"": "Goal: add. Planning: add both. Retrieval: none."}},
    {"name": "small", "engine": "echo", "replies": {"": "The answer is 12."}},
    {"name": "slow", "engine": "echo", "replies": {"": COUNTED}, "delay": 0.3},
    {"name": "brisk", "engine": "echo", "replies": {"": "one two three four five six"}, "delay": 0.2},
]
TANDEM = {"mentor": "far-big", "intern": "far-small", "levels": {"low": 2, "high": 4}, "judge": "fixed:high"}


@pytest.fixture(scope="module")
def client(tmp_path_factory, cluster):
    """A client of a server with one replica, over models in another application of Ray Serve."""
    folder = tmp_path_factory.mktemp("server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}{ray_serve.PREFIX}/v1"
    far = [
        {"name": f"far-{spec['name']}", "engine": "openai", "path": spec["name"], "base_url": url}
        for spec in SPECS
    ]
    methods = {"output_aggregation_method": "tandem", "output_aggregation_params": TANDEM}
    ensemble = {"models": ["far-big", "far-small"], **methods}
    (folder / "config.yaml").write_text(json.dumps({"model_specs": [*SPECS, *far], "ensemble": ensemble}))
    command = [sys.executable, "-m", "ensemblehub", "serve", "config.yaml", cluster, "--port", str(port)]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([*command, "--api_key", "secret"], cwd=folder, stdout=log, stderr=log)
    headers = {"authorization": "Bearer secret"}
    with httpx2.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=60) as asked:
        until(lambda: process.poll() is not None or is_up(asked), seconds=240)
        assert process.poll() is None, (folder / "log").read_text()
        with connected(cluster):
            serve_models(cluster)
        yield asked
        for number in (signal.SIGINT, signal.SIGTERM):  # the second one does not interrupt the end
            process.send_signal(number)
            time.sleep(0.3)
        assert process.wait(60) == 0
        assert "Traceback" not in (folder / "log").read_text()
        with connected(cluster):
            from ray import serve

            running = serve.status().applications.keys()
            assert ray_serve.NAME not in running
            assert "models" in running  # another one is left alone
            assert asked.get(f"{ray_serve.PREFIX}/health").status_code == 200
            assert asked.get("/health").status_code == 404
            serve.shutdown()


def is_up(client):
    try:
        return client.get("/health").status_code == 200
    except httpx2.TransportError:
        return False


@contextmanager
def connected(cluster):
    ray.init(address=cluster.partition("=")[2], logging_level="ERROR", log_to_driver=False)
    try:
        yield
    finally:
        ray.shutdown()


def serve_models(cluster, name="models", prefix=ray_serve.PREFIX, replicas=(1, 1), **server):
    from ray import serve

    config = Config.from_dict({"model_specs": SPECS, "server": server})
    serve.run(ray_serve.application(config, (), replicas), name=name, route_prefix=prefix)


def chat(model, **more):
    return {"model": model, "messages": [{"role": "user", "content": "7 + 5?"}], **more}


def metric(client, name, labels="", at=""):
    """A value of /metrics of the server, or of the application `at` a prefix; 0 where there is none."""
    text = client.get(f"{at}/metrics").text
    found = re.search(rf"^ensemblehub_{name}(?:{{{labels}}})? (\S+)", text, re.MULTILINE)
    return float(found[1]) if found else 0.0


KILLS = 10  # of replicas, one after another


def test_an_ensemble_answers_with_its_usage(client):
    reply = client.post("/v1/chat/completions", json=chat("ensemble"))
    assert reply.status_code == 200, reply.text
    assert reply.json()["choices"][0]["message"]["content"] == "The answer is 12."
    assert reply.json()["usage"]["completion_tokens"] > 0
    assert client.get("/v1/models", headers={"authorization": "Bearer other"}).status_code == 401
    assert metric(client, "requests_total", '.*model="ensemble",outcome="ok"') == 1
    assert metric(client, "requests_total", '.*model="big",outcome="ok"', at=ray_serve.PREFIX) == 1


def test_echo_with_logprobs_passes(client):
    body = {"model": "small", "prompt": "7 + 5", "echo": True, "logprobs": 1, "max_tokens": 1}
    for at in ("", ray_serve.PREFIX):
        found = client.post(f"{at}/v1/completions", json=body).json()["choices"][0]["logprobs"]
        assert len(found["tokens"]) == 4


@pytest.mark.parametrize("model", ["slow", "far-slow"])
def test_a_stream_comes_token_by_token_and_stops_with_its_client(client, model):
    times = []
    with client.stream("POST", "/v1/chat/completions", json=chat(model, stream=True)) as reply:
        for line in reply.iter_lines():
            if line.startswith("data: {") and json.loads(line[6:])["choices"][0]["delta"].get("content"):
                times.append(time.monotonic())
            if len(times) == 4:
                assert metric(client, "running") == 1  # asked here: the end of the loop closes the connection
                break
    assert times[-1] - times[0] > 0.6
    left = f'.*model="{model}",outcome="disconnected"'
    until(lambda: metric(client, "requests_total", left), seconds=15)
    assert metric(client, "running") == 0
    if model == "far-slow":
        left = '.*model="slow",outcome="disconnected"'
        until(lambda: metric(client, "requests_total", left, at=ray_serve.PREFIX), seconds=15)
        assert metric(client, "running", at=ray_serve.PREFIX) == 0


def test_replicas_grow_with_the_requests_in_flight_and_go_when_they_end(client, cluster, monkeypatch):
    from ray import serve

    deployment = serve.deployment

    def soon(*given, autoscaling_config, **more):
        """Ray waits for 600 seconds before it ends a replica; 5 here."""
        return deployment(*given, autoscaling_config=autoscaling_config | {"downscale_delay_s": 5}, **more)

    def replicas():
        deployment = serve.status().applications["grown"].deployments["ensemblehub"]
        return deployment.replica_states.get("RUNNING", 0)

    def ask(_):
        return client.post("/grown/v1/chat/completions", json=chat("slow"), timeout=300).status_code

    with connected(cluster), ThreadPoolExecutor(8) as pool:
        monkeypatch.setattr(serve, "deployment", soon)
        serve_models(cluster, "grown", "/grown", (1, 2), max_running=4)
        assert replicas() == 1
        asked = [pool.submit(ask, number) for number in range(16)]  # four times 30 seconds of one replica
        until(lambda: replicas() == 2, seconds=240)
        assert {each.result() for each in asked} == {200}
        until(lambda: replicas() == 1, seconds=120)
        assert client.get("/grown/health").status_code == 200
        serve.delete("grown")


def test_a_killed_replica_is_replaced_and_no_answer_is_wrong(client, cluster):
    url, asked = "/killed/v1/chat/completions", []

    def replicas():
        found = subprocess.run(["pgrep", "-f", "^ray::ServeReplica:killed:"], capture_output=True, text=True)
        return found.stdout.split()

    def ask(number):
        """An answer; one that the killed replica wrote is lost with an error, and is asked for again."""
        for _ in range(20):
            try:
                reply = client.post(url, json=chat("brisk"), timeout=60)
            except httpx2.TransportError:
                continue
            asked.append(reply.status_code)
            if reply.status_code == 200:
                return reply.json()["choices"][0]["message"]["content"]
            time.sleep(0.5)
        return f"no answer to {number}"

    with connected(cluster), ThreadPoolExecutor(4) as pool:
        serve_models(cluster, "killed", "/killed", (2, 2))
        until(lambda: len(replicas()) == 2, seconds=120)
        answers = [pool.submit(ask, number) for number in range(10 * KILLS)]
        for done in range(5, 10 * KILLS, 10):  # with answers on both sides of it
            until(lambda done=done: sum(each.done() for each in answers) >= done, seconds=120)
            victim = replicas()[0]
            os.kill(int(victim), signal.SIGKILL)
            until(lambda victim=victim: len(set(replicas()) - {victim}) == 2, seconds=120)
        assert {each.result() for each in answers} == {"one two three four five six"}
        assert asked.count(200) == 10 * KILLS
