"""Running a model's program against a benchmark's test.

Three processes.  This one starts a *checker*, which runs the benchmark's own code and holds a random
nonce; the checker starts a *worker*, which runs the program under test and only ever receives arguments
and returns plain values.  A verdict counts if it comes from the checker with the nonce.  Both children
have resource limits, an empty environment, a temporary folder to work in and nothing to read; what they
print is thrown away.  In the end everything below the checker is killed, and the process group with it.

On Linux the worker also gives up all privileges and, where the kernel lets an ordinary user do so, enters
its own process, network and user namespaces: no network, no look at other processes' memory or
environment.  *Not* isolated is the file system: a program can read what this user can read and write
where this user can write.  Where namespaces are refused, a program that kills its checker may leave a
process behind.

Limits of the form: arguments and results are plain data (numbers, strings, bytes, lists, tuples, sets,
dicts), and a test does not see its arguments changed in place.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_CHILD = Path(__file__).with_name("sandbox_child.py").resolve()
_VERDICT_BYTES = 1 << 16
_KILL_ROUNDS = 200


@dataclass(frozen=True)
class Outcome:
    """How a run went: whether the test passed, why not in one line, and the wall time it took."""

    passed: bool
    reason: str
    seconds: float


def run_tests(
    program: str,
    test: str,
    entry_point: str,
    *,
    prompt: str = "",
    wall_seconds: float = 10,
    memory_mb: int = 512,
) -> Outcome:
    """Run HumanEval's `check(candidate)` against `entry_point` of `program`; safe in any thread.

    Args:
        program: the untrusted source, complete.
        test: trusted source that defines `check(candidate)`.
        prompt: trusted source whose definitions the test may use besides the candidate (HumanEval/32's
            `poly`); it must compile by itself.
        wall_seconds: for everything together, start-up included.
        memory_mb: address space of each child, in MiB.
    """
    started, nonce = time.monotonic(), secrets.token_hex(16)
    job = {
        "program": program, "test": test, "entry_point": entry_point, "prompt": prompt, "nonce": nonce,
        "seconds": math.ceil(wall_seconds), "megabytes": memory_mb,
    }  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="sandbox-", ignore_cleanup_errors=True) as folder:
        checker = _start(job, folder)
        try:
            line = _first_line(checker, started + wall_seconds)
        finally:
            _kill_all(checker)
    seconds = time.monotonic() - started
    if line is None:
        return Outcome(False, f"took longer than {wall_seconds:g} s", seconds)
    passed, reason = _verdict(line, nonce)
    return Outcome(passed, reason, seconds)


def _start(job: dict[str, Any], folder: str) -> subprocess.Popen[bytes]:
    """The checker, with the job in an unnamed file as its input: never in a path, argument or environment."""
    with tempfile.TemporaryFile() as file:
        file.write(json.dumps(job).encode())
        file.seek(0)
        return subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", str(_CHILD), "check"],
            stdin=file, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            cwd=folder, env={}, start_new_session=True,
        )  # fmt: skip


def _first_line(checker: subprocess.Popen[bytes], deadline: float) -> bytes | None:
    """What the checker writes up to its first line end or its end; None when the time is up first."""
    assert checker.stdout is not None
    descriptor, read = checker.stdout.fileno(), b""
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        while b"\n" not in read and len(read) < _VERDICT_BYTES:
            if not selector.select(max(0.0, deadline - time.monotonic())):
                return None
            part = os.read(descriptor, _VERDICT_BYTES)
            if not part:
                break
            read += part
    return read


def _verdict(line: bytes, nonce: str) -> tuple[bool, str]:
    try:
        said = json.loads(line)
        if secrets.compare_digest(str(said["nonce"]), nonce):
            return said["passed"] is True, str(said["reason"])
    except (ValueError, KeyError, TypeError):
        pass
    return False, "the checker ended without a verdict"


def _kill_all(checker: subprocess.Popen[bytes]) -> None:
    """Kill what the checker has below it, round by round while any is left, then its process group."""
    for _ in range(_KILL_ROUNDS):
        alive = _descendants(checker.pid)
        if not alive:
            break
        for pid in alive:
            _kill(pid)
        time.sleep(0.002)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(checker.pid, signal.SIGKILL)
    _kill(checker.pid)
    checker.wait()
    if checker.stdout is not None:
        checker.stdout.close()


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)


def _descendants(root: int) -> list[int]:
    """The living processes below `root`, by /proc; none where there is no /proc."""
    children: dict[int, list[int]] = {}
    ended = set()
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            pid = int(entry.parent.name)
            state, parent = entry.read_text(errors="replace").rpartition(")")[2].split()[:2]
            children.setdefault(int(parent), []).append(pid)
            if state in "ZX":
                ended.add(pid)
    found = list(children.get(root, ()))
    for pid in found:
        found.extend(children.get(pid, ()))
    return [pid for pid in found if pid not in ended]
