"""A server as a process of its own, as a user starts it."""

import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx2 as httpx
import pytest


@dataclass
class Running:
    """A server that answers at `url`; its log grows in `log`."""

    url: str
    log: Path
    process: subprocess.Popen = field(repr=False)

    def get(self, path, **options):
        return httpx.get(self.url + path, timeout=60, **options)

    def post(self, path, body, **options):
        return httpx.post(self.url + path, json=body, timeout=120, **options)

    def said(self, what="", seconds=10):
        """The log, once `what` stands in it: a request's line comes after its answer."""
        end = time.monotonic() + seconds
        while what not in (text := self.log.read_text()):
            assert time.monotonic() < end, f"no {what!r} in the log: {text[-2000:]}"
            time.sleep(0.02)
        return text

    @property
    def memory(self):
        """Resident MiB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) / 1024

    def stop(self, number=signal.SIGTERM, timeout=40):
        self.process.send_signal(number)
        return self.process.wait(timeout)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as one:
        return one.getsockname()[1]


@pytest.fixture
def anyio_backend():
    """What asynchronous tests run on."""
    return "asyncio"


@pytest.fixture(scope="module")
def serve(tmp_path_factory):
    """`serve(yaml, *flags)` starts `ensemblehub serve` and waits until it is ready; None serves the built-in pair."""
    servers = []

    def start(text=None, *flags, env=None, ready=True, descriptors=None):
        folder = tmp_path_factory.mktemp("server")
        config = [str(folder / "config.yaml")] if text is not None else []
        if text is not None:
            (folder / "config.yaml").write_text(text)
        port, log = free_port(), folder / "log"
        command = [sys.executable, "-m", "ensemblehub.api", *config, "--port", str(port), *flags]
        if descriptors is not None:
            command = ["sh", "-c", f'ulimit -n {descriptors}; exec "$@"', "sh", *command]
        surroundings = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **(env or {})}
        with log.open("w") as file:
            process = subprocess.Popen(command, stdout=file, stderr=file, cwd=folder, env=surroundings)
        server = Running(f"http://127.0.0.1:{port}", log, process)
        servers.append(server)
        if ready:
            wait(server)
        return server

    yield start
    for server in servers:
        if server.process.poll() is None:
            server.process.kill()
        server.process.wait()


def wait(server, seconds=90):
    """Until it is ready."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert server.process.poll() is None, server.said()
        try:
            if httpx.get(server.url + "/health", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass  # not listening yet
        time.sleep(0.1)
    raise AssertionError(f"not ready after {seconds} s: {server.said()}")
