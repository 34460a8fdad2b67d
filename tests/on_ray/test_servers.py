"""`infer --ray --server` against two running servers, one of which dies (`make test-ray`)."""

import json
import signal
import subprocess
import sys
import threading

import httpx2
import pytest

from ensemblehub import cli
from tests.api.conftest import free_port
from tests.waiting import until

pytest.importorskip("ray", reason="Ray has an environment of its own: make test-ray")
QUESTIONS = 48
SERVED = {"name": "echo", "engine": "echo", "delay": 0.1, "replies": {"": "it is 12"}}


class Server:
    """`ensemblehub serve` on a port of its own, as a process."""

    def __init__(self, folder, port):
        self.folder, self.port = folder, port
        self.url = f"http://127.0.0.1:{port}"
        self.start()

    def start(self):
        command = [sys.executable, "-m", "ensemblehub", "serve", "served.yaml", "--port", str(self.port)]
        with (self.folder / f"{self.port}.log").open("a") as log:
            self.process = subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log)
        until(self.is_up, seconds=120)

    def is_up(self):
        assert self.process.poll() is None, (self.folder / f"{self.port}.log").read_text()
        try:
            return httpx2.get(f"{self.url}/health", timeout=60).status_code == 200
        except httpx2.TransportError:
            return False

    def answered(self):
        """Requests that it has answered since it was started."""
        found = [line for line in httpx2.get(f"{self.url}/metrics", timeout=60).text.splitlines()
            if line.startswith("ensemblehub_requests_total") and 'outcome="ok"' in line]  # fmt: skip
        return sum(float(line.rpartition(" ")[2]) for line in found)

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def servers(tmp_path):
    (tmp_path / "served.yaml").write_text(json.dumps({"model_specs": [SERVED]}))
    lines = (json.dumps({"prompt": f"question {number}"}) for number in range(QUESTIONS))
    (tmp_path / "in.jsonl").write_text("\n".join(lines) + "\n")
    found = []
    try:
        for _ in range(2):
            found.append(Server(tmp_path, free_port()))
        patience = {"tries": 2, "backoff": 0.1, "breaker_seconds": 1}
        far = {"name": "far", "engine": "openai", "path": "echo", "base_url": f"{found[0].url}/v1"}
        (tmp_path / "far.yaml").write_text(json.dumps({"model_specs": [far | {"patience": patience}]}))
        yield found
    finally:
        for server in found:
            server.kill()


def infer(folder, out, *more):
    paths = ["--input_path", str(folder / "in.jsonl"), "--output_path", str(folder / out)]
    with pytest.raises(SystemExit) as exit_:
        cli.main(["infer", str(folder / "far.yaml"), *paths, *more])
    return exit_.value.code


def rows(path):
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


def told(found):
    """Rows without what differs between two runs."""
    return {row["key"]: (row["prompt"], row["predict"], row["error"], row["config"]) for row in found}


def pool(cluster, servers):
    named = (option for server in servers for option in ("--server", f"far={server.url}/v1"))
    return (cluster, "--workers", "2", "--batch_size", "2", *named)


def test_two_servers_answer_as_one_does(tmp_path, cluster, servers):
    assert infer(tmp_path, "plain.jsonl") == 0
    before = [server.answered() for server in servers]
    assert infer(tmp_path, "out.jsonl", *pool(cluster, servers)) == 0
    assert told(rows(tmp_path / "out.jsonl")) == told(rows(tmp_path / "plain.jsonl"))
    asked = [server.answered() - count for server, count in zip(servers, before, strict=True)]
    assert min(asked) > 0
    assert sum(asked) == QUESTIONS


def test_a_server_that_dies_costs_what_was_in_flight_and_the_same_command_asks_it_again(
    tmp_path, cluster, servers
):
    out, dying = tmp_path / "out.jsonl", servers[1]

    def kill():
        until(lambda: len(rows(out)) >= 8 and dying.answered() >= 2, seconds=300)
        dying.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    status = infer(tmp_path, "out.jsonl", *pool(cluster, servers))
    killer.join()
    first = {row["key"]: row for row in rows(out)}
    failed = [row for row in first.values() if row["error"]]
    assert len(first) == len(rows(out)) == QUESTIONS
    assert status == bool(failed)
    assert len(failed) <= 4  # what its worker had in flight, and not what came after
    assert all(row["predict"] is None for row in failed)
    dying.start()
    assert infer(tmp_path, "out.jsonl", *pool(cluster, servers)) == 0
    last = {row["key"]: row for row in rows(out)}
    assert len(last) == len(rows(out)) == QUESTIONS
    assert {row["predict"] for row in last.values()} == {"it is 12"}
    assert all(last[key] == row for key, row in first.items() if not row["error"])
