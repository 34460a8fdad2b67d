"""The filter decides as its table says, on both machines; a small interpreter of its code stands in for the kernel."""

import errno
import os
import platform
import struct
import sys

import pytest

from ensemblehub.lab.tasks import sandbox_filter
from ensemblehub.lab.tasks.sandbox_filter import filter_bytes

ALLOW, REFUSE, UNKNOWN = 0x7FFF0000, 0x50000 | errno.EPERM, 0x50000 | errno.ENOSYS
NAMES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
# read, openat, kill, socket, socketpair, fcntl, prlimit64, unlinkat
NUMBERS = {"x86_64": (0, 257, 62, 41, 53, 72, 302, 263), "aarch64": (63, 56, 129, 198, 199, 25, 261, 35)}

# bind, connect, listen, flock, syslog, inotify_init1, msgrcv
PLACED = {"x86_64": (49, 42, 50, 73, 103, 294, 70), "aarch64": (200, 203, 201, 32, 116, 26, 188)}


def decide(code, machine, number, *arguments):
    """What the kernel would do: runs the filter over one call."""
    data = struct.pack("<iIQ6Q", number, NAMES[machine], 0, *arguments, *[0] * (6 - len(arguments)))
    instructions, at, accumulator = list(struct.iter_unpack("=HBBI", code)), 0, 0
    while True:
        operation, true, false, value = instructions[at]
        at += 1
        if operation == 0x06:
            return value
        if operation == 0x20:
            (accumulator,) = struct.unpack_from("<I", data, value)
            continue
        holds = {0x15: accumulator == value, 0x35: accumulator >= value, 0x45: bool(accumulator & value)}[
            operation
        ]
        at += true if holds else false


@pytest.fixture(params=["x86_64", "aarch64"])
def machine(request, monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: request.param)
    monkeypatch.setattr(sys, "platform", "linux")
    return request.param


def test_what_is_refused_and_what_is_not(machine):
    read, openat, kill, socket, pair, fcntl, prlimit, unlinkat = NUMBERS[machine]
    for write in (True, False):
        code = filter_bytes(write=write)
        assert decide(code, machine, read, 0, 0, 100) == ALLOW
        assert decide(code, machine, kill, 1, 9) == REFUSE
        assert decide(code, machine, socket, 2, 1) == REFUSE
        assert (
            decide(code, machine, pair, 1, 1 | 0o2000000) == ALLOW
        )  # a pair of streams, as asyncio makes it
        assert decide(code, machine, pair, 1, 2) == REFUSE
        assert [decide(code, machine, fcntl, 3, command) for command in (1, 8, 10, 15)] == [ALLOW] + [
            REFUSE
        ] * 3
        assert [decide(code, machine, fcntl, 3, lock) for lock in (5, 6, 7, 37, 38, 1024)] == [ALLOW] + [
            REFUSE
        ] * 5
        assert [decide(code, machine, call, 3) for call in PLACED[machine]] == [REFUSE] * len(PLACED[machine])
        assert decide(code, machine, prlimit, 0, 7) == ALLOW
        assert decide(code, machine, prlimit, 1, 7) == REFUSE
        assert decide(code, machine, openat, 0, 0, os.O_RDONLY | os.O_CLOEXEC) == ALLOW
        writing = ALLOW if write else REFUSE
        for flags in (os.O_WRONLY, os.O_RDWR, os.O_CREAT, os.O_WRONLY | os.O_APPEND):
            assert decide(code, machine, openat, 0, 0, flags) == writing
        assert decide(code, machine, unlinkat) == writing
        assert decide(code, machine, 463) == UNKNOWN
        assert decide(code, machine, 0x40000000 + 62, 1, 9) == REFUSE


def test_another_architectures_calls_are_refused(machine):
    other = next(name for name in NAMES if name != machine)
    assert decide(filter_bytes(write=True), other, NUMBERS[other][0]) == REFUSE


def test_jumps_and_length_fit_the_kernel(machine):
    instructions = list(struct.iter_unpack("=HBBI", filter_bytes(write=False)))
    assert len(instructions) <= 4096
    assert all(
        at + 1 + max(true, false) < len(instructions)
        for at, (_, true, false, _) in enumerate(instructions[:-1])
    )


def test_there_is_none_for_other_systems(monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    assert filter_bytes(write=True) == b""
    assert not sandbox_filter.known()
