"""Symbolic comparison in processes of its own: a few of them, started when first needed, under limits.

Safe in any thread. A worker that takes too much time or memory is ended and replaced; one process stays warm
between comparisons. Programs are started afresh (never forked with threads about), and a forked child of this
process starts workers of its own.

`pebble` (5.2) was tried: it starts all workers for the first comparison, runs the caller's `__main__` in
each, so a script without a guard fails, bounds only wall time, and an idle worker that was killed breaks its
pool.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import json
import os
import queue
import selectors
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

from ensemblehub.errors import EnsembleHubError, MissingExtraError

Kind = Literal["value", "relation"]

SECONDS = 1.0  # of processor time for one comparison
WALL_SECONDS = 30.0  # for one comparison, on a machine that others use too
START_SECONDS = 120.0
MEGABYTES = 1024  # of address space
WORKERS = max(1, min(4, os.cpu_count() or 1))
_WORKER = Path(__file__).with_name("algebra_worker.py").resolve()
_REPLY_BYTES = 64


class TooCostlyError(Exception):
    """A comparison went over its limits."""


@dataclass
class TimeLimit:
    """Seconds of processor time that several comparisons may take together."""

    seconds: float


class AlgebraWorker:
    """A worker process; used by one thread at a time."""

    def __init__(self) -> None:
        command = [sys.executable, "-P", "-B", str(_WORKER), str(MEGABYTES)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
        )
        try:
            ready = self._line(START_SECONDS)
        except BaseException as error:
            self.close()
            if isinstance(error, TooCostlyError):
                raise EnsembleHubError("the process that compares answers does not start") from error
            raise
        if ready != b"ready\n":
            self.close()
            raise EnsembleHubError(f"the process that compares answers does not start: {ready!r}")

    def ask(self, question: list[str | float | None]) -> tuple[bool | str | None, float]:
        """What the process finds, "costly" where it gave up, and its seconds;
        `TooCostlyError` where it is no more.
        """
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(question).encode() + b"\n")
            self.process.stdin.flush()
        except OSError as error:
            raise TooCostlyError from error
        found, seconds = json.loads(self._line(WALL_SECONDS))
        return found, seconds

    def _line(self, seconds: float) -> bytes:
        assert self.process.stdout is not None
        descriptor = self.process.stdout.fileno()
        read = b""
        deadline = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(descriptor, selectors.EVENT_READ)
            while not read.endswith(b"\n"):
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise TooCostlyError
                part = os.read(descriptor, _REPLY_BYTES)
                if not part:
                    raise TooCostlyError
                read += part
        return read

    def close(self) -> None:
        """End the process, whatever it does."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):
                if pipe is not None:
                    pipe.close()


class Workers:
    """At most `count` workers for any number of threads."""

    def __init__(self, count: int = WORKERS) -> None:
        self._places: queue.LifoQueue[AlgebraWorker | None] = queue.LifoQueue()  # the warmest first
        self._alive: set[AlgebraWorker] = set()
        self._lock = threading.Lock()
        for _ in range(count):
            self._places.put(None)

    def compare(
        self,
        gold: str,
        answer: str,
        kind: Kind,
        within: Fraction | None = None,
        budget: TimeLimit | None = None,
    ) -> bool | None:
        """Whether two expressions are equal; None where one of them is not understood.

        Args:
            within: how far two numbers may be apart; None compares exactly.
            budget: what this and other comparisons may take together; the time is taken from it.

        Raises:
            TooCostlyError: it went over its limits.
            MissingExtraError: `math_verify` is not installed.
            EnsembleHubError: no worker can be started.
        """
        if importlib.util.find_spec("math_verify") is None:
            raise MissingExtraError(
                "comparing these answers needs math-verify: pip install 'ensemblehub[eval]'"
            )
        budget = budget or TimeLimit(SECONDS)
        if budget.seconds <= 0:
            raise TooCostlyError
        question = [gold, answer, kind, None if within is None else str(within), min(SECONDS, budget.seconds)]
        worker = self._places.get()
        try:
            if worker is None or worker.process.poll() is not None:
                worker = self._replace(worker)
            found, seconds = worker.ask(question)
        except BaseException:
            self._end(worker)  # it may be in the middle of an answer
            worker = None
            raise
        finally:
            self._places.put(worker)
        budget.seconds -= seconds
        if isinstance(found, str):
            raise TooCostlyError
        return found

    def _replace(self, worker: AlgebraWorker | None) -> AlgebraWorker:
        self._end(worker)
        fresh = AlgebraWorker()
        with self._lock:
            self._alive.add(fresh)
        return fresh

    def _end(self, worker: AlgebraWorker | None) -> None:
        if worker is not None:
            worker.close()
            with self._lock:
                self._alive.discard(worker)

    def close(self) -> None:
        """End all workers; a later comparison starts new ones."""
        with self._lock:
            alive, self._alive = self._alive, set()
        for worker in alive:
            worker.close()


_workers = Workers()


def compare(
    gold: str, answer: str, kind: Kind, within: Fraction | None = None, budget: TimeLimit | None = None
) -> bool | None:
    """`Workers.compare` of this process's workers."""
    return _workers.compare(gold, answer, kind, within, budget)


def close() -> None:
    """End this process's workers."""
    _workers.close()


def _afresh() -> None:
    """In a forked child: the parent's workers are not ours."""
    global _workers
    _workers = Workers()


atexit.register(close)
os.register_at_fork(after_in_child=_afresh)
