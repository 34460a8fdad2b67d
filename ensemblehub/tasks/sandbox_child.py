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
    from collections.abc import Callable
    from typing import Any, BinaryIO, NoReturn

MEGABYTE = 1 << 20
REPLY_BYTES = 8 * MEGABYTE
FILE_BYTES = MEGABYTE
OPEN_FILES = 64
GRACE_SECONDS = 5  # after the time is up; then the children end by themselves, should nobody end them
# user, process ids, network, IPC, host name, mounts
_NEW_NAMESPACES = 0x10000000 | 0x20000000 | 0x40000000 | 0x08000000 | 0x04000000 | 0x00020000
_NOBODY = 65534
_PDEATHSIG, _DUMPABLE, _SECCOMP, _CAPBSET_DROP, _SUBREAPER, _NO_NEW_PRIVS = 1, 4, 22, 24, 36, 38  # prctl options
_SECCOMP_FILTER = 2
_CAPABILITY_VERSION = 0x20080522
_MOUNT_SETATTR, _AT_FDCWD, _AT_RECURSIVE = 442, -100, 0x8000
_PRIVATE = 1 << 18
_READ_ONLY, _NO_SETUID, _NO_DEVICES, _NO_PROGRAMS = 1, 2, 4, 8  # of mount(2), and the first two of mount_setattr(2)
READY = b"ready\n"
_FOLDER = b"size=16m,nr_inodes=1024,mode=700"


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
        (resource.RLIMIT_AS, size), (resource.RLIMIT_CPU, seconds + 1), (resource.RLIMIT_FSIZE, FILE_BYTES),
        (resource.RLIMIT_NOFILE, OPEN_FILES), (resource.RLIMIT_CORE, 0),
    ):  # fmt: skip
        hard = resource.getrlimit(which)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(which, (most, most))


def _guard_checker(parent: int, seconds: int) -> None:
    """Nobody may look into this process; whoever loses its parent below it becomes its child; it ends with `parent`."""
    signal.alarm(seconds + GRACE_SECONDS)
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        libc.prctl(_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        libc.prctl(_DUMPABLE, 0, 0, 0, 0)
        libc.prctl(_SUBREAPER, 1, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def _isolate_worker(form: str) -> None:
    """Take the job's form of isolation and give up all privileges.

    Raises:
        OSError: the kernel refuses it.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if form == "bubblewrap":
            _mount(libc, b"/tmp", 0, _FOLDER)  # where it is refused, bubblewrap's own stays: its files are not counted
            os.chdir("/tmp")
        elif form == "namespaces":
            _enter_namespaces(libc)
        _drop_privileges(libc)
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))


def _enter_namespaces(libc: ctypes.CDLL) -> None:
    """New namespaces; all files are read-only, /proc is empty, and the working folder is private and small."""
    user, group, folder = os.geteuid(), os.getegid(), os.getcwd()
    _demand(libc.unshare(_NEW_NAMESPACES) == 0, "new namespaces")
    for name, line in (("setgroups", "deny"), ("uid_map", f"{_NOBODY} {user} 1"), ("gid_map", f"{_NOBODY} {group} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(line)
    attributes = (ctypes.c_uint64 * 4)(_READ_ONLY | _NO_SETUID, 0, _PRIVATE, 0)
    call = (_MOUNT_SETATTR, _AT_FDCWD, b"/", _AT_RECURSIVE, attributes, ctypes.c_size_t(32))
    _demand(libc.syscall(*call) == 0, "a read-only file system")
    _demand(_mount(libc, b"/proc", _READ_ONLY, b"size=4k,nr_inodes=2"), "an empty /proc")
    _demand(_mount(libc, os.fsencode(folder), 0, _FOLDER), "a private folder")
    os.chdir(folder)
    child = os.fork()  # the first process of the new namespace; when it ends, all of it ends
    if child:
        os.waitpid(child, 0)
        os._exit(0)
    libc.prctl(_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _mount(libc: ctypes.CDLL, path: bytes, flags: int, options: bytes) -> bool:
    """Put an empty file system in memory at `path`."""
    flags |= _NO_SETUID | _NO_DEVICES | _NO_PROGRAMS
    done: int = libc.mount(b"tmpfs", path, b"tmpfs", ctypes.c_ulong(flags), options)
    return done == 0


def _demand(done: bool, what: str) -> None:
    if not done:
        raise OSError(ctypes.get_errno(), f"the kernel refuses {what}: {os.strerror(ctypes.get_errno())}")


def _drop_privileges(libc: ctypes.CDLL) -> None:
    libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0)
    for capability in range(64):
        libc.prctl(_CAPBSET_DROP, capability, 0, 0, 0)
    libc.capset((ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0), (ctypes.c_uint32 * 6)())


class _Filter(ctypes.Structure):
    """The kernel's `struct sock_fprog`."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def _filter_calls(instructions: bytes) -> None:
    """Let the kernel refuse system calls from now on, by a filter that `sandbox_filter` made; none if it is empty.

    Raises:
        OSError: the kernel refuses it.
    """
    if instructions:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0)
        program = _Filter(len(instructions) // 8, instructions)
        _demand(libc.prctl(_SECCOMP, _SECCOMP_FILTER, ctypes.byref(program), 0, 0) == 0, "a filter of system calls")


def _silence() -> None:
    """Nothing to read, and what is printed is thrown away."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    os.close(nothing)


# -- the checker -------------------------------------------------------------------------------------------


class Worker:
    """The worker's process: what it reads, writes and complains.  `subprocess` takes 10 ms to import, and this none."""

    def __init__(self, command: list[str]) -> None:
        (its_calls, calls), (replies, its_replies), (errors, its_errors) = os.pipe(), os.pipe(), os.pipe()
        its = (its_calls, its_replies, its_errors)
        os.posix_spawn(
            command[0], command, {}, file_actions=[(os.POSIX_SPAWN_DUP2, one, number) for number, one in enumerate(its)]
        )
        for one in its:
            os.close(one)
        self.calls, self.replies = os.fdopen(calls, "wb"), os.fdopen(replies, "rb")
        self.errors = os.fdopen(errors, "rb")


def check() -> NoReturn:
    """Run the test against the worker and write the verdict, signed with the nonce, to standard output."""
    job = json.load(sys.stdin)
    verdict = os.dup(1)
    _guard_checker(job["parent"], job["seconds"])
    try:
        worker = Worker(job["worker"])
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # what ends below this process is no zombie of anybody's
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


def _start(worker: Worker, job: dict[str, Any]) -> None:
    """Send the worker its job and wait until it has isolated itself.

    Raises:
        NotIsolated: it cannot; the text is what it last wrote to standard error.
    """
    parts = ("program", "entry_point", "seconds", "megabytes", "form", "worker_filter")
    try:
        _tell(worker, {key: job[key] for key in parts})
        ready = worker.replies.readline(REPLY_BYTES) == READY
    except WorkerFailed:
        ready = False
    if not ready:
        lines = worker.errors.read(REPLY_BYTES).decode(errors="replace").strip().splitlines()
        raise NotIsolated(lines[-1] if lines else "it ended before the program was loaded")


def _reason(job: dict[str, Any], worker: Worker) -> str:
    """Why the test failed, empty if it passed."""
    failures: list[str] = []
    try:
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


def _tell(worker: Worker, message: dict[str, Any]) -> None:
    try:
        worker.calls.write(json.dumps(message).encode() + b"\n")
        worker.calls.flush()
    except OSError as error:
        raise WorkerFailed("the program ended its process") from error


def _hear(worker: Worker) -> Any:
    line = worker.replies.readline(REPLY_BYTES)
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
    _isolate_worker(job["form"])
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
