"""Running a model's program against a benchmark's test.

Three processes.  This one starts a *checker*, which runs the benchmark's own code and holds a random nonce;
the checker starts a *worker*, which runs the program under test and only ever receives arguments and returns
plain values.  A verdict counts if it comes from the checker with the nonce.  Both children have resource
limits (time, memory, file size, open files, no new processes), an empty environment and nothing to read; what
they print is thrown away.  In the end everything below the checker is killed, and the process group with it.

The worker is isolated in one of three forms; the strongest that works here is found by running it, once per
process, unless `ENSEMBLEHUB_SANDBOX` or an argument requires one, and every outcome names its form:

- `bubblewrap`: a root of its own, read-only, with the interpreter, its standard library and the system's
  libraries and nothing else; a private /tmp; no network; its own process, IPC, host and user namespaces.
- `namespaces` (Linux 5.12, where an ordinary user may make namespaces): the same, made without bubblewrap.
- `limits`: Landlock (Linux 5.13) hides the contents of all other files, /proc and devices included.  Where it
  or the filter of system calls is missing, a program could read the right answers in this process's memory or
  in a file, so this form grades nothing there unless it is asked for by name.

On Linux on x86_64 and aarch64 both children also have their system calls filtered (`sandbox_filter`), in
every form: no processes, threads, programs, signals, sockets or locks; in `limits`, and in the checker, no
writing to files either.
`isolation()` says what a program can do here, and `docs/sandbox.md` what each form does not stop.

Any exception that leaves the program fails it, unless the test has a handler that names it
(`expected_exceptions`).

Limits of the method: arguments and results are plain data (numbers, strings, bytes, lists, tuples, sets,
dicts), and a test does not see its arguments changed in place.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import re
import secrets
import selectors
import signal
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ensemblehub.errors import ConfigError, SandboxError
from ensemblehub.lab.tasks.sandbox_filter import filter_bytes
from ensemblehub.lab.tasks.sandbox_forms import (
    FORMS,
    VARIABLE,
    Form,
    Isolation,
    form_named,
    present,
    python,
    required,
    seen,
    ways,
    worker_command,
)

PROGRAM_CHARACTERS = 1 << 20
_CHILD = Path(__file__).with_name("sandbox_child.py").resolve()
_ISOLATE = _CHILD.with_name("sandbox_isolate.py")
_HANDLER = re.compile(
    r"(?:(?:\b|(?<=\\n))except\b\*?|(?:[rR]aises|RaisesRegex|suppress)\()\s*\(?((?:\s*[\w.]+\s*,?)*)"
)
_LOOSE = f"hides no files or filters no system calls here, so it grades nothing unless {VARIABLE}=limits asks for it"
_VERDICT_BYTES = 1 << 16
_KILL_ROUNDS = 200
_PROBE_SECONDS = 60
_PROBING = threading.Lock()


@dataclass(frozen=True)
class Outcome:
    """How a run went: whether the test passed, why not in one line, the wall time,
    and the form of isolation.
    """

    passed: bool
    reason: str
    seconds: float
    form: Form


def run_tests(
    program: str,
    test: str,
    entry_point: str,
    *,
    prompt: str = "",
    wall_seconds: float = 10,
    memory_mb: int = 512,
    form: Form | None = None,
) -> Outcome:
    """Run HumanEval's `check(candidate)` against `entry_point` of `program`; safe in any thread.

    Args:
        program: the untrusted source, complete.
        test: trusted source that defines `check(candidate)`.  Bare assertions, MBPP's form, are such a source
            inside `def check(candidate): ...`: there `entry_point` is the candidate.
        prompt: trusted source whose definitions the test may use besides the candidate (HumanEval/32's
            `poly`); it must compile by itself.
        wall_seconds: for everything together, start-up included.
        memory_mb: address space of each child, in MiB.
        form: the isolation that is required; `isolation()` chooses where it is None.

    Raises:
        ConfigError: the required form does not work here.
        SandboxError: the sandbox failed, whatever the program.
    """
    where = isolation(form)
    if len(program) > PROGRAM_CHARACTERS:
        return Outcome(False, f"the program has more than {PROGRAM_CHARACTERS:,} characters", 0.0, where.form)
    return _run(where, program, test, entry_point, prompt, wall_seconds, memory_mb)


def isolation(form: Form | None = None) -> Isolation:
    """How programs are isolated in this process; the first call tries it, which takes a moment.

    Args:
        form: the form that is required; by default `ENSEMBLEHUB_SANDBOX`, else the strongest that works.

    Raises:
        ConfigError: the required form does not work here, and why; or there is no such form.
        SandboxError: no form works here that a program cannot get around; each with what it lacks.
    """
    wanted = form_named(form) if form else required()
    failures = []
    for candidate in (wanted,) if wanted else FORMS:
        with _PROBING:
            found = _probe(candidate)
        if isinstance(found, Isolation) and (wanted or found.tight):
            return found
        failures.append(f"{candidate}: {_LOOSE if isinstance(found, Isolation) else found}")
    if wanted:
        raise ConfigError(f"the sandbox's form {wanted!r} is required but does not work here: {found}")
    raise SandboxError(f"no form of the sandbox works here: {'; '.join(failures)}")


@functools.cache
def _probe(form: Form) -> Isolation | str:
    """The form as it works here, with all of its protections or as many as there are;
    or why it does not work.
    """
    if not present(form):
        return "bwrap is not installed" if form == "bubblewrap" else "this is not Linux"
    test, why = "def check(candidate):\n    assert candidate(2) == 4\n", ""
    for where in ways(form, bool(filter_bytes(write=True))):
        try:
            outcome = _run(where, "def f(x):\n    return x * x\n", test, "f", "", _PROBE_SECONDS, 512)
        except SandboxError as error:
            why = why or str(error)
            continue
        if outcome.passed:
            return where
        why = why or outcome.reason
    return why


def _run(
    where: Isolation,
    program: str,
    test: str,
    entry_point: str,
    prompt: str,
    wall_seconds: float,
    memory_mb: int,
) -> Outcome:
    started, nonce = time.monotonic(), secrets.token_hex(16)
    job = {
        "program": program,
        "test": test,
        "entry_point": entry_point,
        "prompt": prompt,
        "nonce": nonce,
        "expected": expected_exceptions(test),
        "seconds": math.ceil(wall_seconds),
        "megabytes": memory_mb,
        "parent": os.getpid(),
        "isolate": _ISOLATE.read_text(),
        "isolation": (where.form, where.hidden, seen(where.form)),
        "worker": worker_command(where.form, _CHILD),
        "checker_filter": "",
        "worker_filter": "",
    }
    if where.filtered:
        job["checker_filter"] = filter_bytes(write=False).hex()
        job["worker_filter"] = filter_bytes(write=where.form != "limits").hex()
    with tempfile.TemporaryDirectory(prefix="sandbox-", ignore_cleanup_errors=True) as folder:
        checker = _start(job, folder)
        try:
            line = _first_line(checker, started + wall_seconds)
        finally:
            _kill_all(checker)
    seconds = time.monotonic() - started
    if line is None:
        return Outcome(False, f"took longer than {wall_seconds:g} s", seconds, where.form)
    passed, reason = _verdict(line, nonce, where)
    return Outcome(passed, reason, seconds, where.form)


def expected_exceptions(test: str) -> list[str]:
    """The exceptions that a test says it expects of the candidate, by name, from its handlers and
    `assertRaises`.

    Handlers of everything (`except Exception`) expect nothing: they would forgive any mistake.
    """
    listed = [names.partition(" as ")[0] for names in _HANDLER.findall(test)]
    found = {name.rpartition(".")[2] for names in listed for name in re.findall(r"[\w.]+", names)}
    return sorted(found - {"Exception", "BaseException"})


def _start(job: dict[str, Any], folder: str) -> subprocess.Popen[bytes]:
    """The checker, with the job in an unnamed file as its input: never in a path, argument or environment."""
    with tempfile.TemporaryFile() as file:
        file.write(json.dumps(job).encode())
        file.seek(0)
        return subprocess.Popen(
            [*python(), str(_CHILD), "check"],
            stdin=file,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={},
            start_new_session=True,
        )


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


def _verdict(line: bytes, nonce: str, where: Isolation) -> tuple[bool, str]:
    try:
        said = json.loads(line)
        signed = secrets.compare_digest(str(said["nonce"]), nonce)
        if signed and "failure" not in said:
            return said["passed"] is True, _printable(str(said["reason"]))
    except (ValueError, KeyError, TypeError):
        signed = False
    if signed:
        raise SandboxError(f"the sandbox ({where.form}) did not start: {_printable(str(said['failure']))}")
    return False, "the checker ended without a verdict"


def _printable(text: str) -> str:
    """The text with what no terminal or file should get (control characters, lone surrogates) as escapes."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text
    )


def _kill_all(checker: subprocess.Popen[bytes]) -> None:
    """Stop the checker, kill what it has below it, round by round while any is left,
    then its process group.
    """
    _kill(checker.pid, signal.SIGSTOP)  # it may be about to start the worker
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


def _kill(pid: int, number: int = signal.SIGKILL) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def _descendants(root: int) -> list[int]:
    """The living processes below `root`, by /proc; none where there is no /proc."""
    children: dict[int, list[int]] = {}
    ended = set()
    with contextlib.suppress(FileNotFoundError):
        for name in filter(str.isdigit, os.listdir("/proc")):
            with (
                contextlib.suppress(OSError, ValueError, IndexError),
                open(f"/proc/{name}/stat", "rb") as file,
            ):
                state, parent = file.read().rpartition(b")")[2].split(None, 2)[:2]
                children.setdefault(int(parent), []).append(int(name))
                if state in b"ZX":
                    ended.add(int(name))
    found = list(children.get(root, ()))
    for pid in found:
        found.extend(children.get(pid, ()))
    return [pid for pid in found if pid not in ended]
