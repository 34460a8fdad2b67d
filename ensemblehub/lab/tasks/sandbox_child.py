"""The two child processes of `sandbox`: standard library only, run by path, never imported by the package.

`check` holds the nonce and runs the benchmark's own code (its prompt and its test).  `work` holds the
program under test and answers calls; it never sees the nonce or the test.  Between them go calls and
plain values as JSON lines, so no object of the program, with its own `__eq__` say, reaches the test.
Before the program is loaded `work` says that it has isolated itself as the job's form demands; a form
that cannot be kept is a failure of the sandbox, not of the program.
"""

from __future__ import annotations

import builtins
import ctypes
import json
import os
import resource
import signal
import sys
import types

TYPE_CHECKING = False  # importing `typing` would cost each of the two a tenth of its start
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import FrameType
    from typing import Any, BinaryIO, NoReturn

MEGABYTE = 1 << 20
REPLY_BYTES = 32 * MEGABYTE
FILE_BYTES = MEGABYTE
OPEN_FILES = 64
GRACE_SECONDS = 5  # after the time is up; then the children end by themselves, should nobody end them
_PDEATHSIG = 1
_DUMPABLE = 4
_SECCOMP = 22
_SUBREAPER = 36
_NO_NEW_PRIVS = 38  # prctl options
_SECCOMP_FILTER = 2
READY = b"ready\n"


class WorkerFailed(BaseException):
    """The program under test did not answer a call; no `except Exception` of a test swallows it."""


class NotIsolated(BaseException):
    """The worker could not isolate itself."""


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
        (resource.RLIMIT_AS, size),
        (resource.RLIMIT_CPU, seconds + 1),
        (resource.RLIMIT_FSIZE, FILE_BYTES),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(which)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(which, (most, most))


def _guard_checker(parent: int, seconds: int) -> None:
    """Nobody may look into this process; whoever loses its parent below it becomes its child;
    it ends with `parent`.
    """
    signal.alarm(seconds + GRACE_SECONDS)
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        libc.prctl(_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        libc.prctl(_DUMPABLE, 0, 0, 0, 0)
        libc.prctl(_SUBREAPER, 1, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def _demand(done: bool, what: str) -> None:
    if not done:
        raise OSError(ctypes.get_errno(), f"the kernel refuses {what}: {os.strerror(ctypes.get_errno())}")


class _Filter(ctypes.Structure):
    """The kernel's `struct sock_fprog`."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def _filter_calls(instructions: bytes) -> None:
    """Let the kernel refuse system calls from now on, by a filter that `sandbox_filter` made; none if it is
    empty.

    Raises:
        OSError: the kernel refuses it.
    """
    if instructions:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0)
        program = _Filter(len(instructions) // 8, instructions)
        _demand(
            libc.prctl(_SECCOMP, _SECCOMP_FILTER, ctypes.byref(program), 0, 0) == 0,
            "a filter of system calls",
        )


def _silence() -> None:
    """Nothing to read, and what is printed is thrown away."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    os.close(nothing)


# -- the checker -------------------------------------------------------------------------------------------


class ProgramWorker:
    """The worker's process: what it reads, writes and complains.  `subprocess` takes 10 ms to import,
    and this none.
    """

    def __init__(self, command: list[str]) -> None:
        (its_calls, calls) = os.pipe()
        (replies, its_replies) = os.pipe()
        (errors, its_errors) = os.pipe()
        its = (its_calls, its_replies, its_errors)
        os.posix_spawn(
            command[0],
            command,
            {},
            file_actions=[(os.POSIX_SPAWN_DUP2, descriptor, number) for number, descriptor in enumerate(its)],
        )
        for descriptor in its:
            os.close(descriptor)
        self.calls, self.replies = os.fdopen(calls, "wb"), os.fdopen(replies, "rb")
        self.errors = os.fdopen(errors, "rb")


def check() -> NoReturn:
    """Run the test against the worker and write the verdict, signed with the nonce, to standard output."""
    job = json.load(sys.stdin)
    verdict = os.dup(1)
    _guard_checker(job["parent"], job["seconds"])
    try:
        worker = ProgramWorker(job["worker"])
        signal.signal(
            signal.SIGCHLD, signal.SIG_IGN
        )  # what ends below this process is no zombie of anybody's
        _silence()
        _limit(job["seconds"], job["megabytes"])
        _filter_calls(bytes.fromhex(job["checker_filter"]))
        _start(worker, job)
    except (OSError, NotIsolated) as error:
        said: dict[str, Any] = {"failure": " ".join(str(error).split())}
    else:
        reason = _reason(job, worker)
        said = {"passed": not reason, "reason": reason}
    os.write(verdict, json.dumps({"nonce": job["nonce"], **said}).encode() + b"\n")
    while True:  # the parent ends this process after everything below it
        signal.pause()


def _start(worker: ProgramWorker, job: dict[str, Any]) -> None:
    """Send the worker its job and wait until it has isolated itself.

    Raises:
        NotIsolated: it cannot; the text is what it last wrote to standard error.
    """
    parts = ("program", "entry_point", "seconds", "megabytes", "isolate", "isolation", "worker_filter")
    try:
        _tell(worker, {key: job[key] for key in parts})
        ready = worker.replies.readline(REPLY_BYTES) == READY
    except WorkerFailed:
        ready = False
    if not ready:
        lines = worker.errors.read(REPLY_BYTES).decode(errors="replace").strip().splitlines()
        raise NotIsolated(lines[-1] if lines else "it ended before the program was loaded")


def _reason(job: dict[str, Any], worker: ProgramWorker) -> str:
    """Why the test failed, empty if it passed."""
    failures: list[str] = []
    try:
        _hear(worker)  # the program is loaded

        def candidate(*args: Any, **kwargs: Any) -> Any:
            try:
                _tell(worker, {"args": encode(args), "kwargs": encode(kwargs)})
                return _hear(worker, job["expected"])
            except WorkerFailed as failure:
                failures.append(_where(sys._getframe(1)) + str(failure))
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


def _tell(worker: ProgramWorker, message: dict[str, Any]) -> None:
    try:
        worker.calls.write(json.dumps(message).encode() + b"\n")
        worker.calls.flush()
    except OSError as error:
        raise WorkerFailed("the program ended its process") from error


def _hear(worker: ProgramWorker, expected: Sequence[str] = ()) -> Any:
    """What the worker answers; an exception is raised as such only if the test expects it."""
    line = worker.replies.readline(REPLY_BYTES)
    if not line.endswith(b"\n"):
        raise WorkerFailed(
            "the program ended its process" if len(line) < REPLY_BYTES else "the result is too long"
        )
    try:
        kind, payload = json.loads(line)
        if kind == "return":
            return decode(payload)
        name = str(payload[0])
        text = str(payload[1])
        bases = [str(base) for base in payload[2]]
    except Exception as error:
        raise WorkerFailed("the result is not plain data") from error
    if kind == "raise" and any(base in expected for base in bases):
        raise _exception(bases, text)
    raise WorkerFailed(f"{name}: {text}" if text else name)


def _exception(bases: list[str], text: str) -> Exception:
    """The built-in exception that the program raised, or the nearest above it that can be made of a text."""
    for name in bases:
        found = getattr(builtins, name, None)
        if isinstance(found, type) and issubclass(found, Exception):
            if issubclass(found, StopIteration | StopAsyncIteration):  # would end the test's loops instead
                break
            try:
                return found(text)
            except TypeError:
                continue
    raise WorkerFailed(f"{bases[0]}: {text}" if text else bases[0])


def _where(frame: FrameType | None) -> str:
    """Which line of the test runs, from a frame that it called."""
    while frame is not None and frame.f_code.co_filename != "<test>":
        frame = frame.f_back
    return f"line {frame.f_lineno} of the test: " if frame is not None else ""


def _line(error: BaseException) -> str:
    """One line about an error: where in the test, and what."""
    lines, at = [], error.__traceback__
    while at is not None:
        if at.tb_frame.f_code.co_filename == "<test>":
            lines.append(at.tb_lineno)
        at = at.tb_next
    where = f"line {lines[-1]} of the test: " if lines else ""
    text = " ".join(str(error).split())
    what = text if isinstance(error, WorkerFailed) else f"{type(error).__name__}{': ' if text else ''}{text}"
    return (where + what)[:300]


# -- the worker --------------------------------------------------------------------------------------------


def work() -> None:
    """Load the program, then answer calls until the input ends."""
    calls, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    job = json.loads(calls.readline())
    own: dict[str, Any] = {"__name__": "sandbox_isolate"}
    exec(compile(job["isolate"], "sandbox_isolate.py", "exec"), own)
    own["isolate"](*job["isolation"])
    _limit(job["seconds"], job["megabytes"])
    _silence()
    _filter_calls(bytes.fromhex(job["worker_filter"]))
    replies.write(READY)
    replies.flush()
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
    kind = on_error
    try:
        value = action()
        kind = "failed"  # a result that is not plain data is no exception of the program's
        return ["return", encode(value)]
    except BaseException as error:
        bases = [base.__name__ for base in type(error).__mro__ if base.__module__ == "builtins"]
        return [kind, [type(error).__name__, " ".join(str(error).split())[:300], bases]]


def _reply(replies: BinaryIO, message: list[Any]) -> None:
    replies.write(json.dumps(message).encode() + b"\n")
    replies.flush()


if __name__ == "__main__":
    {"check": check, "work": work}[sys.argv[1]]()
