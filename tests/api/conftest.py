"""A server as a process of its own, as a user starts it, and a browser in front of it."""

import os
import shutil
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

    def said(self, what="", seconds=60):
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

    @property
    def cpu(self):
        """Seconds that it has computed for, in all its threads."""
        times = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(times[11]) + int(times[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self, number=signal.SIGTERM, timeout=40):
        self.process.send_signal(number)
        return self.process.wait(timeout)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


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


QUIET = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)


@pytest.fixture(scope="module")
def chromium():
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        reason = "there is no chromium on this machine"
        (pytest.fail if os.environ.get("ENSEMBLEHUB_REQUIRE_BROWSER") == "1" else pytest.skip)(reason)
    from playwright.sync_api import sync_playwright  # of the extra `clients`

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=QUIET.split())
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium):
    """`visit(server)` opens the page; at the end, nothing may have gone wrong in it or left its server."""
    from playwright.sync_api import expect

    contexts, said, asked = [], [], []

    def start(server, ready=True, **options):
        context = chromium.new_context(reduced_motion="reduce", **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(15_000)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append((request.url, server.url)))
        page.goto(server.url)
        if ready:
            expect(page.get_by_label("Ensemble")).to_be_enabled()
        return page

    start.said = said
    yield start
    assert asked
    assert [url for url, own in asked if not url.startswith((own + "/", "blob:" + own, "data:"))] == []
    for context in contexts:
        context.close()
    assert said == []
