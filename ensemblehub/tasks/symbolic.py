"""Whether two expressions are equal, by `math_verify` in processes that can be killed.

Symbolic algebra has no bound: a tower of powers never ends, and its own time limit works on the main thread only.  So a
few worker processes compare, each with a memory limit; one that does not answer in time is killed, and the next
comparison starts another.  Knows no benchmark.
"""

from __future__ import annotations

import atexit
import importlib.util
import json
import os
import queue
import selectors
import subprocess
import sys
import threading
import time
from contextlib import suppress

from ensemblehub.errors import MissingExtraError

SECONDS = 5.0  # for one comparison
START = 60.0  # for a worker to be ready
WORKERS = 2
MEGABYTES = 2048  # address space of a worker


class Worker:
    """A process that compares; one comparison at a time."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "ensemblehub.tasks.symbolic_worker", str(MEGABYTES)]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env, bufsize=0)
        self._read = b""

    def ask(self, gold: str, answer: str, seconds: float) -> bool | None:
        """Its verdict; None where there is none in time."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps([gold, answer]).encode() + b"\n")
            line = self.line(seconds)
            return None if line is None else line == b"true"
        return None

    def line(self, seconds: float) -> bytes | None:
        """The next line that it writes; None when the time is up, or it ended."""
        assert self.process.stdout is not None
        end = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._read:
                if not selector.select(max(0.0, end - time.monotonic())):
                    return None
                part = os.read(self.process.stdout.fileno(), 4096)
                if not part:
                    return None
                self._read += part
        line, _, self._read = self._read.partition(b"\n")
        return line

    def kill(self) -> None:
        """End it; ending it twice is harmless."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()


class Pool:
    """A few workers, started when they are needed, for any number of threads."""

    def __init__(self, size: int = WORKERS) -> None:
        self._idle: queue.LifoQueue[Worker | None] = queue.LifoQueue()
        for _ in range(size):
            self._idle.put(None)
        self._all: set[Worker] = set()
        self._lock, self._closed = threading.Lock(), False

    def equal(self, gold: str, answer: str, seconds: float = SECONDS) -> bool:
        """Whether they are equal; False where that takes longer than `seconds` or more memory than there is."""
        worker = self._idle.get()
        try:
            if worker is None or worker.process.poll() is not None:
                worker = self._started()
            said = worker.ask(gold, answer, seconds)
            if said is None:
                self._end(worker)
                worker = None
            return bool(said)
        finally:
            self._idle.put(worker)

    def close(self) -> None:
        """Kill all workers."""
        with self._lock:
            self._closed, workers = True, list(self._all)
        for worker in workers:
            self._end(worker)

    def _started(self) -> Worker:
        worker = Worker()
        with self._lock:
            self._all.add(worker)
        if worker.line(START) != b"ready":
            self._end(worker)
            raise RuntimeError("the process that compares answers does not start")
        return worker

    def _end(self, worker: Worker) -> None:
        worker.kill()
        with self._lock:
            self._all.discard(worker)


_POOL = Pool()
atexit.register(_POOL.close)


def equal(gold: str, answer: str) -> bool:
    """Whether two LaTeX expressions mean the same; safe in any thread.

    Raises:
        MissingExtraError: `math_verify` is not installed.
    """
    if importlib.util.find_spec("math_verify") is None:
        raise MissingExtraError("comparing these answers needs math-verify: pip install 'ensemblehub[eval]'")
    return _POOL.equal(gold, answer)
