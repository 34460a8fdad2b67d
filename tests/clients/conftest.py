"""A server of this project in its own environment, for clients that live in another one (`make test-clients`)."""

import os
import re
import secrets
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.waiting import until

HERE = Path(__file__).parent
CONFIG = """
model_specs:
  - {name: big, engine: echo, replies: {"": "Goal: add. Planning: add. Retrieval: none."}, parameters: 9, context: 300}
  - {name: small, engine: echo, replies: {"Sure": "Yes, 4.", "": "It is 4."}, parameters: 1, context: 300}
  - {name: caller, engine: "caller:CallingEngine", replies: {"": "The tool says 4."}, parameters: 5, context: 300}
  - {name: frail, engine: echo, replies: {"": "One two three four."}, fail_after: 2, parameters: 1}
  - {name: silent, engine: echo, replies: {"": "never said"}, fail_after: 0, parameters: 1}
  - {name: slow, engine: echo, replies: {"": "1 2 3 4 5 6 7 8 9"}, delay: 0.3, parameters: 1}
  - {name: late, engine: echo, replies: {"": "Here."}, delay: 1.5, parameters: 1}
ensemble:
  models: [big, small]
  output_aggregation_method: tandem
  output_aggregation_params: {levels: {low: 2, high: 4}, judge: "fixed:high"}
  generation: {max_tokens: 16}
server: {keep_alive: 1}
"""


@pytest.fixture(scope="session")
def start(tmp_path_factory):
    """`start(command, port, path)` starts a process and waits until `path` is answered on a port of loopback.

    `statuses` are those that count as an answer; the rest is added to its environment.
    """
    processes = []

    def begin(command, port, path="/health", statuses=(200,), **surroundings):
        log = tmp_path_factory.mktemp("process") / "log"
        with log.open("w") as file:
            env = {**os.environ, **surroundings}
            processes.append(subprocess.Popen(command, stdout=file, stderr=file, cwd=log.parent, env=env))
        wait(f"http://127.0.0.1:{port}{path}", processes[-1], log, statuses)
        return f"http://127.0.0.1:{port}"

    yield begin
    for process in processes:
        process.terminate()
    for process in processes:
        process.wait(30)


def wait(url, process, log, statuses, seconds=300):
    import httpx2 as httpx

    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text()
        try:
            if httpx.get(url, timeout=5).status_code in statuses:
                return
        except httpx.TransportError:
            pass  # not listening yet
        time.sleep(0.2)
    raise AssertionError(f"{url} does not answer after {seconds} s: {log.read_text()[-3000:]}")


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@pytest.fixture(scope="session")
def url(start, tmp_path_factory):
    """Where the server answers, up to `/v1`; `ENSEMBLEHUB_PYTHON` is the Python of its environment."""
    if "ENSEMBLEHUB_PYTHON" not in os.environ:  # another environment may hold some of the clients
        pytest.skip("the clients have environments of their own: make test-clients")
    config, port = tmp_path_factory.mktemp("server") / "config.yaml", free_port()
    config.write_text(CONFIG)
    command = [os.environ["ENSEMBLEHUB_PYTHON"], "-m", "ensemblehub.api", str(config), "--port", str(port)]
    paths = os.pathsep.join([str(HERE), str(HERE.parents[1])])
    return start(command, port, PYTHONPATH=paths) + "/v1"


@pytest.fixture(scope="session")
def proxy(start, url, tmp_path_factory):
    """Where LiteLLM's proxy answers, with the server behind it, and the key that it wants."""
    key = f"sk-{secrets.token_hex(32)}"
    config, port = tmp_path_factory.mktemp("proxy") / "proxy.yaml", free_port()
    models = "".join(
        f"  - model_name: {name}\n    litellm_params: {{model: openai/{name}, api_base: '{url}', api_key: none}}\n"
        for name in ("ensemble", "caller")
    )
    config.write_text(f"model_list:\n{models}")
    command = [str(Path(sys.executable).with_name("litellm")), "--config", str(config), "--port", str(port)]
    known = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_MASTER_KEY": key}
    return {"base_url": start(command, port, "/health/liveliness", **known) + "/v1", "api_key": key}


@pytest.fixture
def stopped(url):
    """`stopped()` waits until one more answer of the model `slow` was stopped, and nothing runs."""
    import httpx2 as httpx

    base = url.removesuffix("/v1")

    def count():
        text = httpx.get(f"{base}/metrics").text
        found = re.findall(r'requests_total\{.*model="slow",outcome="disconnected"\} (\S+)', text)
        return sum(map(float, found))

    before = count()

    return lambda: until(lambda: count() > before and not httpx.get(f"{base}/status").json()["running"])
