"""The server as one starts it by hand, and curl against it."""

import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONSOLE = str(Path(sys.executable).with_name("ensemblehub"))
CHAT = "/v1/chat/completions"
HELLO = {"model": "ensemble", "messages": [{"role": "user", "content": "Hello"}]}
STARTS = {
    "file": [sys.executable, "ensemblehub/api.py"],
    "module": [sys.executable, "-m", "ensemblehub.api"],
    "console": [CONSOLE, "serve"],
}
ECHO = """
model_specs:
  - {name: big, engine: echo, replies: {"": "Goal: greet. Planning: greet."}, parameters: 9, delay: 0.01}
  - {name: small, engine: echo, replies: {"": "Hello to you."}, parameters: 1, delay: 0.01}
ensemble:
  output_aggregation_method: tandem
  output_aggregation_params: {levels: {low: 2}, judge: "fixed:low"}
"""
LOOP = """
model_specs:
  - {name: first, engine: echo, replies: {"": "Hello"}}
  - {name: second, engine: echo, replies: {"": "to you."}}
ensemble: {output_aggregation_method: loop}
"""
pytestmark = pytest.mark.skipif(
    shutil.which("curl") is None and not os.environ.get("ENSEMBLEHUB_REQUIRE_CURL"), reason="needs curl"
)


def curl(*arguments, fails=False):
    done = subprocess.run(
        ["curl", "-sS", "--max-time", "60", *arguments], capture_output=True, text=True, timeout=90
    )
    assert bool(done.returncode) == fails, done.stderr
    return done.stdout


def asked(url, body, *flags):
    return curl(*flags, url + CHAT, "-H", "Content-Type: application/json", "-d", json.dumps(body))


def events(text):
    """The objects of a stream that ended as it should."""
    *parts, end = text.removesuffix("\n\n").split("\n\n")
    assert end == "data: [DONE]"
    assert all(part.startswith("data: ") for part in parts)
    return [json.loads(part.removeprefix("data: ")) for part in parts]


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@pytest.fixture
def start(tmp_path):
    """`start(command, *flags)` starts a server in the repository's root; returns it and where it says that it is."""
    started = []

    def begin(command, *flags, **surroundings):
        log = tmp_path / f"log{len(started)}"
        # What Ctrl-C does is not to depend on whether the tests run in the background, where SIGINT is ignored.
        launch = [
            sys.executable,
            "-c",
            "import os, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)",
        ]
        launch[-1] += "; os.execv(sys.argv[1], sys.argv[1:])"
        plain = {key: value for key, value in os.environ.items() if key not in ("API_HOST", "API_PORT")}
        env = {**plain, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **surroundings}
        with log.open("w") as file:
            process = subprocess.Popen(
                [*launch, *command, *flags], stdout=file, stderr=file, cwd=ROOT, env=env
            )
        started.append(process)
        process.said = log.read_text
        return process

    yield begin
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait()


def address(process, seconds=90, ready="200"):
    """Where a server says that it is, once it is ready."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert process.poll() is None, process.said()
        if found := re.search(r"at (http://\S+) \(the page\)", process.said()):
            code = subprocess.run(
                ["curl", "-s", "-o", os.devnull, "-w", "%{http_code}", f"{found[1]}/health"],
                capture_output=True,
                text=True,
                timeout=30,
            ).stdout
            if code == ready:
                return found[1]
        time.sleep(0.1)
    raise AssertionError(f"not ready after {seconds} s: {process.said()}")


@pytest.fixture
def echo(tmp_path):
    path = tmp_path / "echo.yaml"
    path.write_text(ECHO)
    return [sys.executable, "-m", "ensemblehub.api", str(path)]


@pytest.mark.parametrize("how", STARTS)
@pytest.mark.parametrize(("text", "method"), [(LOOP, "loop"), (None, "tandem")], ids=["config", "no config"])
def test_a_server_answers_curl_however_it_is_started(start, tmp_path, how, text, method):
    """Without a config it serves the built-in pair."""
    config = [tmp_path / "config.yaml"] if text else []
    for path in config:
        path.write_text(text)
    server = start([*STARTS[how], *map(str, config)], API_PORT="0")
    url = address(server)
    reply = json.loads(asked(url, HELLO))
    assert reply["object"] == "chat.completion"
    (choice,) = reply["choices"]
    assert choice["message"]["content"]
    assert choice["message"]["role"] == "assistant"
    assert choice["finish_reason"] == "stop"
    assert choice["metadata"]["method"] == method
    assert reply["usage"]["total_tokens"] > 0
    chunks = events(asked(url, {**HELLO, "stream": True}, "-N"))
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert (
        "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)
        == choice["message"]["content"]
    )
    server.send_signal(signal.SIGINT)
    assert server.wait(40) == 0
    assert "Traceback" not in server.said()


def test_curl_reads_a_stream_as_it_is_written(start, echo):
    url = address(start(echo, API_PORT="0"))
    shown = asked(url, {**HELLO, "stream": True}, "-N", "-i")
    head, _, body = shown.replace("\r\n", "\n").partition("\n\n")
    assert head.startswith("HTTP/1.1 200")
    assert "content-type: text/event-stream" in head.lower()
    assert body.endswith("data: [DONE]\n\n")
    deltas = [chunk["choices"][0]["delta"] for chunk in events(body)]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "Goal: greet."
    assert [delta["content"] for delta in deltas if delta.get("content")] == ["Hello", " to", " you."]


def streaming(url, body):
    """The command that asks for a chat and prints what comes as it comes."""
    head = ["curl", "-sSN", "--max-time", "60", url + CHAT, "-H", "Content-Type: application/json"]
    return [*head, "-d", body]


def test_the_stream_is_not_held_back(start, echo):
    slow = ["--set", "model_specs.1.delay=0.5"]
    url = address(start(echo, *slow, API_PORT="0"))
    body = json.dumps({**HELLO, "stream": True})
    command = streaming(url, body)
    came = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if '"content":"' in line and '"content":""' not in line:
                came.append(time.monotonic())
    assert process.returncode == 0
    assert len(came) == 3
    assert all(late - early > 0.3 for early, late in itertools.pairwise(came))


def test_curl_is_told_what_is_wrong(start, echo):
    url = address(start(echo, API_PORT="0"))
    wrong = json.loads(asked(url, {**HELLO, "model": "ensembl"}))
    assert "did you mean 'ensemble'" in wrong["error"]["message"]
    plain = json.loads(curl(url + CHAT, "-d", json.dumps(HELLO)))  # curl says that this is a form
    assert "JSON" in plain["error"]["message"]
    curl("--fail", url + "/v1/nothing", fails=True)


def test_the_address_comes_from_the_environment_and_flags_go_before_it(start, echo):
    port, other = free_port(), free_port()
    assert address(start(echo, API_HOST="localhost", API_PORT=str(port))) == f"http://127.0.0.1:{port}"
    curl(f"http://127.0.0.1:{port}/health")
    flags = ["--port", str(other), "--host", "127.0.0.1"]
    assert (
        address(start(echo, *flags, API_HOST="203.0.113.7", API_PORT=str(port)))
        == f"http://127.0.0.1:{other}"
    )
    three = address(start(echo, "--set", f"server.port={port}", API_PORT="0"))
    assert three != f"http://127.0.0.1:{port}"


@pytest.mark.parametrize("how", STARTS)
def test_a_port_that_is_taken_is_one_line(start, tmp_path, how):
    path = tmp_path / "config.yaml"
    path.write_text(ECHO)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = start([*STARTS[how], str(path)], API_PORT=str(port))
        assert server.wait(60) == 2
    (line,) = server.said().strip().splitlines()
    assert line.startswith(f"ensemblehub: cannot listen on 127.0.0.1:{port}: ")


@pytest.mark.parametrize("how", STARTS)
@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("ensembel: {}\n", "did you mean 'ensemble'"),
        ("model_specs: [\n", "config.yaml"),
        (ECHO.replace("tandem", "tandm"), "did you mean 'tandem'"),
        (None, "config.yaml"),
    ],
    ids=["unknown key", "no YAML", "unknown method", "no file"],
)
def test_a_config_with_an_error_is_one_line(start, tmp_path, how, text, says):
    path = tmp_path / "config.yaml"
    if text is not None:
        path.write_text(text)
    server = start([*STARTS[how], str(path)], API_PORT="0")
    assert server.wait(60) == 2
    (line,) = server.said().strip().splitlines()
    assert line.startswith("ensemblehub: ")
    assert says in line


@pytest.mark.parametrize("variable", [{"API_PORT": "many"}, {"API_PORT": "70000"}])
def test_a_port_that_is_none_is_one_line(start, echo, variable):
    server = start(echo, **variable)
    assert server.wait(60) == 2
    (line,) = server.said().strip().splitlines()
    assert variable["API_PORT"] in line


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("told", [signal.SIGTERM, signal.SIGINT])
def test_being_told_to_stop_lets_an_answer_in_flight_end(start, echo, told, stream):
    server = start(echo, "--set", "model_specs.1.delay=0.4", API_PORT="0")
    url = address(server)
    body = json.dumps({**HELLO, "stream": stream})
    command = streaming(url, body)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        begun = time.monotonic()
        while json.loads(curl(url + "/status"))["running"] == 0:
            assert time.monotonic() < begun + 5
        server.send_signal(told)
        text = process.stdout.read()
    assert process.returncode == 0
    if stream:
        said = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in events(text))
    else:
        said = json.loads(text)["choices"][0]["message"]["content"]
    assert said == "Hello to you."
    assert server.wait(40) == 0
    assert "Traceback" not in server.said()


def test_ctrl_c_while_models_load_ends_quietly(start, echo):
    where = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])}
    loading = ["--set", "model_specs.1.engine=slow:SlowEngine", "--set", "model_specs.1.loading=20"]
    server = start(echo, *loading, API_PORT="0", **where)
    url = address(server, ready="503")
    assert json.loads(curl(url + "/health")) == {"status": "loading"}
    server.send_signal(signal.SIGINT)
    assert server.wait(10) == 0
    assert "Traceback" not in server.said()
