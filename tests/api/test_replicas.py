"""Two replicas behind a balancer: sticky conversations, streams, one budget, and a replica that is killed."""

import hashlib
import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2 as httpx
import pytest
import yaml

from ensemblehub.config import Config

COMPOSE = Path(__file__).parents[2] / "examples/compose"
NGINX = os.environ.get("ENSEMBLEHUB_NGINX") or shutil.which("nginx")
KEY = {"Authorization": "Bearer secret"}
CLIENT = httpx.Client(headers=KEY | {"Connection": "close"}, timeout=30, verify=False)
ANSWER = "1 2 3 4 5"
CHAT = {"messages": [{"role": "user", "content": "Count, please."}]}
SPENT = 2 + 5  # tokens that such a chat reads and writes


def config(file):
    specs = [
        {"name": "quick", "engine": "echo", "replies": {"": ANSWER}},
        {"name": "slow", "engine": "echo", "replies": {"": ANSWER}, "delay": 0.2},
    ]
    server = {"key_budget": {"tokens": 10**9}, "key_budget_file": str(file), "stored_responses": 100}
    return json.dumps({"model_specs": specs, "ensemble": {"models": ["quick"]}, "server": server})


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


class Hashing:
    """nginx.conf without nginx: connections go by the hash of the header, and to the next replica if one is gone."""

    def __init__(self, port, backends):
        self.backends, self.listener = backends, socket.create_server(("127.0.0.1", port))
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                client = self.listener.accept()[0]
            except OSError:
                return
            threading.Thread(target=self.serve, args=(client,), daemon=True).start()

    def serve(self, client):
        head = b""
        while b"\r\n\r\n" not in head and (part := client.recv(65536)):
            head += part
        found = re.search(rb"(?i)\r\nx-conversation-id: *(.*?)\r\n", head)
        digest = hashlib.sha256(found[1] if found else os.urandom(8)).digest()[0]
        for turn in range(len(self.backends)):
            try:
                server = socket.create_connection(self.backends[(digest + turn) % len(self.backends)])
                break
            except OSError:
                continue
        server.sendall(head)
        threading.Thread(target=self.pump, args=(client, server), daemon=True).start()
        self.pump(server, client)

    def pump(self, source, target):
        try:
            while part := source.recv(65536):
                target.sendall(part)
            target.shutdown(socket.SHUT_RDWR)
        except OSError:
            target.close()


@pytest.fixture(scope="module")
def budgets(tmp_path_factory):
    return tmp_path_factory.mktemp("budgets") / "spent.sqlite"


@pytest.fixture(scope="module")
def replicas(serve, budgets):
    return [serve(config(budgets), "--api-key", "secret") for _ in range(2)]


@pytest.fixture(scope="module")
def balancer(replicas, tmp_path_factory):
    """The address of nginx with the file of the examples, where there is nginx."""
    port, folder = free_port(), tmp_path_factory.mktemp("nginx")
    places = [each.url.removeprefix("http://") for each in replicas]
    if not NGINX:
        proxy = Hashing(port, [("127.0.0.1", int(place.rpartition(":")[2])) for place in places])
        yield f"http://127.0.0.1:{port}"
        proxy.listener.close()
        return
    text = (
        (COMPOSE / "nginx.conf")
        .read_text()
        .replace("/tmp/", f"{folder}/")
        .replace("listen 8000", f"listen 127.0.0.1:{port}")
    )
    for number, place in enumerate(places, 1):
        text = text.replace(f"replica-{number}:8000", place)
    (folder / "nginx.conf").write_text(text)
    running = subprocess.Popen(
        [NGINX, "-c", str(folder / "nginx.conf"), "-p", str(folder), "-g", "daemon off;"]
    )
    end = time.monotonic() + 10
    while running.poll() is None and time.monotonic() < end:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            break
        except OSError:
            time.sleep(0.02)
    assert running.poll() is None
    yield f"http://127.0.0.1:{port}"
    running.terminate()
    running.wait()


def spent(file):
    with sqlite3.connect(file) as budgets:
        return sum(tokens for (tokens,) in budgets.execute("SELECT tokens FROM spent"))


def ask(url, body=CHAT, conversation=None):
    headers = {"X-Conversation-Id": conversation} if conversation else {}
    return CLIENT.post(f"{url}/v1/chat/completions", json=body, headers=headers)


def text_of(reply):
    return reply.json()["choices"][0]["message"]["content"]


def test_turns_of_a_conversation_find_what_their_replica_has_stored(balancer, replicas):
    homes = []
    for number in range(8):
        headers, body = {"X-Conversation-Id": f"talk {number}"}, {"model": "quick", "input": "Count."}
        first = CLIENT.post(f"{balancer}/v1/responses", json=body, headers=headers).json()
        again = CLIENT.post(
            f"{balancer}/v1/responses", json=body | {"previous_response_id": first["id"]}, headers=headers
        )
        assert again.status_code == 200, again.text
        found = [CLIENT.get(f"{each.url}/v1/responses/{first['id']}").status_code for each in replicas]
        assert sorted(found) == [200, 404]  # in the memory of one of them
        homes.append(found.index(200))
    assert set(homes) == {0, 1}


def test_a_stream_comes_through_token_by_token(balancer):
    body = {**CHAT, "model": "slow", "stream": True}
    with CLIENT.stream("POST", f"{balancer}/v1/chat/completions", json=body) as reply:
        times = [time.monotonic() for line in reply.iter_lines() if '"content"' in line]
    assert len(times) >= 5
    assert times[-1] - times[0] > 0.5


def test_both_replicas_count_one_budget_and_lose_nothing(balancer, budgets):
    before = spent(budgets)
    with ThreadPoolExecutor(16) as pool:
        replies = list(pool.map(lambda _: ask(balancer), range(96)))
    assert {text_of(reply) for reply in replies} == {ANSWER}
    assert spent(budgets) - before == 96 * SPENT


def test_a_killed_replica_costs_retries_and_no_answer(balancer, replicas, budgets):
    """Last, because one replica is gone behind it."""
    before, tries = spent(budgets), []

    def answer(number):
        for attempt in range(6):
            tries.append(number)
            try:
                reply = ask(balancer, {**CHAT, "model": "slow"}, f"talk {number}")
            except httpx.TransportError:
                continue  # cut off in the middle
            if reply.status_code == 200:
                return text_of(reply)
            assert reply.status_code in (502, 504), reply.text
            time.sleep(0.1 * attempt)
        raise AssertionError("no answer")

    with ThreadPoolExecutor(24) as pool:
        answers = [pool.submit(answer, number) for number in range(24)]
        time.sleep(0.6)
        replicas[0].process.send_signal(signal.SIGKILL)
        assert {each.result() for each in answers} == {ANSWER}
    assert len(tries) > 24  # some were cut off
    assert 24 * SPENT <= spent(budgets) - before < len(tries) * SPENT


def test_the_compose_file_fits_its_balancer_and_configuration():
    compose = yaml.safe_load((COMPOSE / "replicas.yaml").read_text())
    upstream = re.findall(r"server (\S+):8000", (COMPOSE / "nginx.conf").read_text())
    assert set(upstream) == set(compose["services"]) - {"nginx"}
    settings = Config.from_dict(yaml.safe_load(compose["configs"]["replica"]["content"])).server
    for name in upstream:
        replica = compose["services"][name]
        assert f"budgets:/config/{settings.key_budget_file.parent}" in replica["volumes"]
        assert replica["command"][1] == replica["configs"][0]["target"]
        assert "ports" not in replica
