"""The two child processes of `sandbox`: standard library only, run by path, never imported by the package.

`check` holds the nonce and runs the benchmark's own code (its prompt and its test).  `work` holds the
program under test and answers calls; it never sees the nonce or the test.  Between them go calls and
plain values as JSON lines, so no object of the program, with its own `__eq__` say, reaches the test.
"""

from __future__ import annotations

import builtins
import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
import traceback
import types
from collections.abc import Callable
from typing import Any, BinaryIO, NoReturn

MEGABYTE = 1 << 20
REPLY_BYTES = 8 * MEGABYTE
FILE_BYTES = MEGABYTE
OPEN_FILES = 64
_NEW_NAMESPACES = 0x10000000 | 0x20000000 | 0x40000000 | 0x08000000  # user, process ids, network, IPC
_PDEATHSIG, _DUMPABLE, _CAPBSET_DROP, _SUBREAPER, _NO_NEW_PRIVS = 1, 4, 24, 36, 38  # prctl options
_CAPABILITY_VERSION = 0x20080522


class WorkerFailed(BaseException):
    """The program under test did not answer a call; no `except Exception` of a test swallows it."""


# -- plain values ------------------------------------------------------------------------------------------


def encode(value: Any) -> Any:
    """A plain value in JSON's terms; subclasses of built-in types become those types.

    Raises:
        TypeError: the value is not plain data.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, float):
        return float(value)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return ["int", hex(value)]
    if isinstance(value, complex):
        return ["complex", [value.real, value.imag]]
    if isinstance(value, bytes | bytearray):
        return ["bytes", bytes(value).hex()]
    if isinstance(value, dict):
        return ["dict", [[encode(key), encode(item)] for key, item in dict.items(value)]]
    for kind in (list, tuple, set, frozenset):
        if isinstance(value, kind):
            return [kind.__name__, [encode(item) for item in value]]
    raise TypeError(f"{type(value).__name__} is not plain data")


_BUILD: dict[str, Callable[[Any], Any]] = {
    "int": lambda text: int(text, 16),
    "complex": lambda parts: complex(*parts),
    "bytes": bytes.fromhex,
    "dict": lambda pairs: {decode(key): decode(item) for key, item in pairs},
    "list": lambda items: [decode(item) for item in items],
    "tuple": lambda items: tuple(decode(item) for item in items),
    "set": lambda items: {decode(item) for item in items},
    "frozenset": lambda items: frozenset(decode(item) for item in items),
}


def decode(data: Any) -> Any:
    """The value that `encode` wrote; any input gives plain data or an error."""
    if not isinstance(data, list):
        return data
    kind, payload = data
    return _BUILD[kind](payload)


# -- limits ------------------------------------------------------------------------------------------------


def _limit(seconds: int, megabytes: int) -> None:
    size = megabytes * MEGABYTE
    for which, most in (
        (resource.RLIMIT_AS, size), (resource.RLIMIT_CPU, seconds + 1), (resource.RLIMIT_FSIZE, FILE_BYTES),
        (resource.RLIMIT_NOFILE, OPEN_FILES), (resource.RLIMIT_CORE, 0),
    ):  # fmt: skip
        hard = resource.getrlimit(which)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(which, (most, most))


def _guard_checker() -> None:
    """Nobody may look into this process; whoever loses its parent below it becomes its child."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        libc.prctl(_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        libc.prctl(_DUMPABLE, 0, 0, 0, 0)
        libc.prctl(_SUBREAPER, 1, 0, 0, 0)


def _isolate_worker() -> None:
    """No new processes, no privileges; where the kernel allows, no network and no sight of other processes."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        libc.prctl(_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if libc.unshare(_NEW_NAMESPACES) == 0:
            child = os.fork()  # the first process of the new namespace; when it ends, all of it ends
            if child:
                os.waitpid(child, 0)
                os._exit(0)
            libc.prctl(_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        _drop_privileges(libc)
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))


def _drop_privileges(libc: ctypes.CDLL) -> None:
    libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0)
    for capability in range(64):
        libc.prctl(_CAPBSET_DROP, capability, 0, 0, 0)
    libc.capset((ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0), (ctypes.c_uint32 * 6)())


def _silence() -> None:
    """Nothing to read, and what is printed is thrown away."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    os.close(nothing)


# -- the checker -------------------------------------------------------------------------------------------


def check() -> NoReturn:
    """Run the test against the worker and write the verdict, signed with the nonce, to standard output."""
    job = json.load(sys.stdin)
    verdict = os.dup(1)
    _guard_checker()
    worker = subprocess.Popen(
        [sys.executable, "-I", "-S", "-B", os.path.abspath(__file__), "work"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env={},
    )  # fmt: skip
    _silence()
    _limit(job["seconds"], job["megabytes"])
    reason = _reason(job, worker)
    line = json.dumps({"nonce": job["nonce"], "passed": not reason, "reason": reason})
    os.write(verdict, line.encode() + b"\n")
    while True:  # the parent ends this process after everything below it
        signal.pause()


def _reason(job: dict[str, Any], worker: subprocess.Popen[bytes]) -> str:
    """Why the test failed, empty if it passed."""
    failures: list[str] = []
    try:
        _tell(worker, {key: job[key] for key in ("program", "entry_point", "seconds", "megabytes")})
        _hear(worker)  # the program is loaded

        def candidate(*args: Any, **kwargs: Any) -> Any:
            try:
                _tell(worker, {"args": encode(args), "kwargs": encode(kwargs)})
                return _hear(worker)
            except WorkerFailed as failure:
                failures.append(str(failure))
                raise

        candidate.__name__ = job["entry_point"]
        _run_test(job, candidate)
    except BaseException as error:
        failures.append(_line(error))
    return failures[0] if failures else ""


def _run_test(job: dict[str, Any], candidate: Callable[..., Any]) -> None:
    namespace: dict[str, Any] = {"__name__": "test"}
    exec(compile(job["prompt"], "<prompt>", "exec"), namespace)
    namespace[job["entry_point"]] = candidate
    exec(compile(job["test"], "<test>", "exec"), namespace)
    namespace["check"](candidate)


def _tell(worker: subprocess.Popen[bytes], message: dict[str, Any]) -> None:
    assert worker.stdin is not None
    try:
        worker.stdin.write(json.dumps(message).encode() + b"\n")
        worker.stdin.flush()
    except OSError as error:
        raise WorkerFailed("the program ended its process") from error


def _hear(worker: subprocess.Popen[bytes]) -> Any:
    assert worker.stdout is not None
    line = worker.stdout.readline(REPLY_BYTES)
    if not line.endswith(b"\n"):
        raise WorkerFailed("the program ended its process" if len(line) < REPLY_BYTES else "the result is too long")
    try:
        kind, payload = json.loads(line)
        if kind == "return":
            return decode(payload)
        name, text = str(payload[0]), str(payload[1])
    except Exception as error:
        raise WorkerFailed("the result is not plain data") from error
    if kind == "raise":
        raise _exception(name, text)
    raise WorkerFailed(f"{name}: {text}")


def _exception(name: str, text: str) -> Exception:
    """The built-in exception of that name, for tests that expect one."""
    found = getattr(builtins, name, None)
    if isinstance(found, type) and issubclass(found, Exception):
        try:
            return found(text)
        except TypeError:
            pass
    return RuntimeError(f"{name}: {text}")


def _line(error: BaseException) -> str:
    """One line about an error: where in the test, and what."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == "<test>"]
    where = f"line {lines[-1]} of the test: " if lines else ""
    text = " ".join(str(error).split())
    what = text if isinstance(error, WorkerFailed) else f"{type(error).__name__}{': ' if text else ''}{text}"
    return (where + what)[:300]


# -- the worker --------------------------------------------------------------------------------------------


def work() -> None:
    """Load the program, then answer calls until the input ends."""
    calls, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    _silence()
    job = json.loads(calls.readline())
    _isolate_worker()
    _limit(job["seconds"], job["megabytes"])
    module = types.ModuleType("solution")
    sys.modules["solution"] = module

    def load() -> None:
        exec(compile(job["program"], "<program>", "exec"), module.__dict__)
        if not callable(getattr(module, job["entry_point"], None)):
            raise NameError(f"the program defines no function {job['entry_point']!r}")

    _reply(replies, _attempt(load, "failed"))
    function = getattr(module, job["entry_point"], None)
    while function is not None and (line := calls.readline()):
        call = json.loads(line)
        args, kwargs = decode(call["args"]), decode(call["kwargs"])
        _reply(replies, _attempt(lambda: function(*args, **kwargs), "raise"))  # noqa: B023


def _attempt(action: Callable[[], Any], on_error: str) -> list[Any]:
    try:
        return ["return", encode(action())]
    except BaseException as error:
        kind = on_error if isinstance(error, Exception) else "failed"
        return [kind, [type(error).__name__, " ".join(str(error).split())[:300]]]


def _reply(replies: BinaryIO, message: list[Any]) -> None:
    replies.write(json.dumps(message).encode() + b"\n")
    replies.flush()


if __name__ == "__main__":
    {"check": check, "work": work}[sys.argv[1]]()
