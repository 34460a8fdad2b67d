"""The filter of system calls (seccomp) that the sandbox's two children put on themselves, as bytes.

Refused, with EPERM: to make processes or threads, to start another program, to signal, trace or reschedule
anybody, to open, bind or connect a socket, to lock or watch files, to read the kernel's log, to share memory
or queues, to enter namespaces or mount, and what only widens the reach of a hostile program (io_uring, bpf,
keys, ...).  With `write=False` also to open for writing, create, rename, remove or change any file.  Calls
newer than the table are answered with ENOSYS, as an older kernel would.
"""

from __future__ import annotations

import errno
import platform
import struct
import sys
from dataclasses import dataclass
from typing import Literal

# Numbers on x86_64 and aarch64; None where there is no such call.  From 424 on they are the same.
_NEVER: dict[str, tuple[int | None, int | None]] = {
    "fork": (57, None),
    "vfork": (58, None),
    "clone": (56, 220),
    "clone3": (435, 435),
    "execve": (59, 221),
    "execveat": (322, 281),
    "unshare": (272, 97),
    "setns": (308, 268),
    "ptrace": (101, 117),
    "kcmp": (312, 272),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438),
    "pidfd_send_signal": (424, 424),
    "kill": (62, 129),
    "tkill": (200, 130),
    "tgkill": (234, 131),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "prctl": (157, 167),
    "setpgid": (109, 154),
    "setsid": (112, 157),
    "setpriority": (141, 140),
    "ioprio_set": (251, 30),
    "sched_setscheduler": (144, 119),
    "sched_setparam": (142, 118),
    "sched_setattr": (314, 274),
    "sched_setaffinity": (203, 122),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    "socket": (41, 198),
    "bind": (49, 200),
    "connect": (42, 203),
    "listen": (50, 201),
    "accept": (43, 202),
    "accept4": (288, 242),
    "flock": (73, 32),
    "syslog": (103, 116),
    "inotify_init": (253, None),
    "inotify_init1": (294, 26),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "shmget": (29, 194),
    "shmat": (30, 196),
    "shmctl": (31, 195),
    "msgget": (68, 186),
    "msgctl": (71, 187),
    "msgsnd": (69, 189),
    "msgrcv": (70, 188),
    "semget": (64, 190),
    "semctl": (66, 191),
    "semop": (65, 193),
    "semtimedop": (220, 192),
    "mq_open": (240, 180),
    "mq_unlink": (241, 181),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "personality": (135, 92),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "seccomp": (317, 277),
    "fanotify_init": (300, 262),
    "memfd_secret": (447, 447),
    "landlock_create_ruleset": (444, 444),
}
_WRITING: dict[str, tuple[int | None, int | None]] = {
    "openat2": (437, 437),
    "creat": (85, None),
    "truncate": (76, 45),
    "mkdir": (83, None),
    "mkdirat": (258, 34),
    "rmdir": (84, None),
    "unlink": (87, None),
    "unlinkat": (263, 35),
    "rename": (82, None),
    "renameat": (264, 38),
    "renameat2": (316, 276),
    "link": (86, None),
    "linkat": (265, 37),
    "symlink": (88, None),
    "symlinkat": (266, 36),
    "mknod": (133, None),
    "mknodat": (259, 33),
    "chmod": (90, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "chown": (92, None),
    "fchown": (93, 55),
    "lchown": (94, None),
    "fchownat": (260, 54),
    "utime": (132, None),
    "utimes": (235, None),
    "utimensat": (280, 88),
    "futimesat": (261, None),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
}
_NEWEST = 450  # of the table; what comes after it is unknown here


@dataclass(frozen=True)
class _Condition:
    """A call that is refused for some arguments: if one has any of these bits, or is one of these values."""

    numbers: tuple[int | None, int | None]
    argument: int
    test: Literal["bits", "equals"]
    values: tuple[int, ...]


_ALWAYS_SOME = (
    _Condition((302, 261), 0, "bits", (0xFFFFFFFF,)),  # prlimit64 of another process
    _Condition((53, 199), 1, "bits", (0xE,)),  # socketpair but of streams: datagrams can be sent elsewhere
    # fcntl: F_SETOWN, F_SETSIG, F_SETOWN_EX signal whom one likes; locks, leases and F_NOTIFY hold up or
    # watch others
    _Condition((72, 25), 1, "equals", (8, 10, 15, 6, 7, 37, 38, 1024, 1026)),
    # ioctl: FIOSETOWN and SIOCSPGRP do too; TIOCSTI types into a terminal; FS_IOC_SETFLAGS and FSSETXATTR
    _Condition((16, 29), 1, "equals", (0x8901, 0x8902, 0x5412, 0x541C, 0x40086602, 0x401C5820)),
)
_WRITE_FLAGS = 0o1 | 0o2 | 0o100 | 0o1000  # O_WRONLY, O_RDWR, O_CREAT, O_TRUNC
_WRITING_SOME = (
    _Condition((2, None), 1, "bits", (_WRITE_FLAGS,)),  # open
    _Condition((257, 56), 2, "bits", (_WRITE_FLAGS,)),  # openat
)

_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column above, and name in the filter
_X32 = 0x40000000
# struct seccomp_data: number, architecture, instruction pointer, six arguments of 8 bytes (little-endian)
_NUMBER = 0
_ARCHITECTURE = 4
_ARGUMENTS = 16
_LOAD = 0x20
_IF_EQUAL = 0x15
_IF_AT_LEAST = 0x35
_IF_BITS = 0x45
_RETURN = 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000


def known() -> bool:
    """Whether there is a filter for this system."""
    return sys.platform == "linux" and platform.machine() in _MACHINES and sys.maxsize > 1 << 32


def filter_bytes(*, write: bool) -> bytes:
    """The filter for this machine, an array of `struct sock_filter`; empty where none is known.

    Args:
        write: whether files may be written, where the file system allows it.
    """
    if not known():
        return b""
    column, architecture = _MACHINES[platform.machine()]
    refuse = (_RETURN, 0, 0, _ERRNO | errno.EPERM)
    code = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_IF_EQUAL, 1, 0, architecture),
        refuse,
        (_LOAD, 0, 0, _NUMBER),
        (_IF_AT_LEAST, 0, 1, _X32),
        refuse,
        (_IF_AT_LEAST, 0, 1, _NEWEST + 1),
        (_RETURN, 0, 0, _ERRNO | errno.ENOSYS),
    ]
    for numbers in (_NEVER | ({} if write else _WRITING)).values():
        number = numbers[column]
        if number is not None:
            code += [(_IF_EQUAL, 0, 1, number), refuse]
    for condition in _ALWAYS_SOME + (() if write else _WRITING_SOME):
        code += _conditional(condition, condition.numbers[column], refuse)
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in [*code, (_RETURN, 0, 0, _ALLOW)])


def _conditional(
    condition: _Condition, number: int | None, refuse: tuple[int, int, int, int]
) -> list[tuple[int, int, int, int]]:
    """Instructions that refuse some arguments of one call, and end with the number loaded again."""
    if number is None:
        return []
    jump = _IF_BITS if condition.test == "bits" else _IF_EQUAL
    tests = [instruction for value in condition.values for instruction in ((jump, 0, 1, value), refuse)]
    inner = [(_LOAD, 0, 0, _ARGUMENTS + 8 * condition.argument), *tests, (_LOAD, 0, 0, _NUMBER)]
    return [(_IF_EQUAL, 0, len(inner), number), *inner]
