"""How the worker of `sandbox` isolates itself before it loads a program; standard library only.

`sandbox_child` runs this file's text, since a worker may see no file of the package.  Linux's calls by
`ctypes`: namespaces and a root of its own in the form `namespaces`, Landlock in `limits`, never privileges.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import stat
import struct
import sys

# user, process ids, network, IPC, host name, mounts
NEW_NAMESPACES = 0x10000000 | 0x20000000 | 0x40000000 | 0x08000000 | 0x04000000 | 0x00020000
FOLDER = b"size=16m,nr_inodes=1024,mode=700"  # the program's /tmp
_NOBODY = 65534
_PDEATHSIG = 1
_CAPBSET_DROP = 24
_NO_NEW_PRIVS = 38  # prctl options
_CAPABILITY_VERSION = 0x20080522
_READ_ONLY = 1
_NO_SETUID = 2
_NO_DEVICES = 4
_NO_PROGRAMS = 8  # of mount(2) and of mount_setattr(2)
_REMOUNT = 32
_BIND = 4096
_RECURSIVE = 16384
_PRIVATE = 1 << 18  # of mount(2)
_DETACH = 2  # of umount2(2)
_MOUNT_SETATTR = 442
_AT_FDCWD = -100
_AT_RECURSIVE = 0x8000
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
CREATE_RULESET = 444  # Landlock's calls
_ADD_RULE, _RESTRICT_SELF = 445, 446
_WRITE_FILE = 2
_READ_FILE = 4
_READ_FOLDER = 8  # its rights
_FILE_RIGHTS = ((1, 0x1FFF), (2, 1 << 13), (3, 1 << 14), (5, 1 << 15))  # and the version that brought them
_ANYTHING_TCP = _ANYTHING_SCOPED = 3


def isolate(form: str, hidden: bool, view: list[tuple[str, str, str]]) -> None:
    """Take a form of isolation and give up all privileges.

    Args:
        hidden: whether files are to be hidden.
        view: what of them stays to be seen, as `sandbox_forms.view` says it.

    Raises:
        OSError: the kernel refuses it.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if (
            form == "bubblewrap"
        ):  # where this is refused, the files in its /tmp are bounded in size, not in number
            libc.mount(None, b"/tmp", None, ctypes.c_ulong(_REMOUNT | _NO_SETUID | _NO_DEVICES), FOLDER)
        elif form == "namespaces":
            _enter_namespaces(libc, view)
        _drop_privileges(libc)
        if form == "limits" and hidden:
            _hide_files(libc, view)
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))


def _demand(done: bool, what: str) -> None:
    if not done:
        raise OSError(ctypes.get_errno(), f"the kernel refuses {what}: {os.strerror(ctypes.get_errno())}")


def _drop_privileges(libc: ctypes.CDLL) -> None:
    libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0)
    for capability in range(64):
        libc.prctl(_CAPBSET_DROP, capability, 0, 0, 0)
    libc.capset((ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0), (ctypes.c_uint32 * 6)())


# -- namespaces --------------------------------------------------------------------------------------------


def _enter_namespaces(libc: ctypes.CDLL, view: list[tuple[str, str, str]]) -> None:
    """New namespaces, a root with nothing but the view, and a first process for them, which this becomes."""
    user, group = os.geteuid(), os.getegid()
    _demand(libc.unshare(NEW_NAMESPACES) == 0, "new namespaces")
    for name, line in (
        ("setgroups", "deny"),
        ("uid_map", f"{_NOBODY} {user} 1"),
        ("gid_map", f"{_NOBODY} {group} 1"),
    ):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(line)
    _change_root(libc, view)
    child = os.fork()  # the first process of the new namespace; when it ends, all of it ends
    if child:
        os.waitpid(child, 0)
        os._exit(0)
    libc.prctl(_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _change_root(libc: ctypes.CDLL, view: list[tuple[str, str, str]]) -> None:
    """A new root, built on the working folder: the view, and a private,
    small /tmp below which some of it may lie.
    """
    root = os.getcwd()
    _mount(libc, None, "/", _RECURSIVE | _PRIVATE)
    _mount(libc, "tmpfs", root, _NO_SETUID | _NO_DEVICES, b"size=256k,nr_inodes=1024,mode=755")
    os.mkdir(f"{root}/tmp")
    _mount(libc, "tmpfs", f"{root}/tmp", _NO_SETUID | _NO_DEVICES | _NO_PROGRAMS, FOLDER)
    for kind, source, path in view:
        _place(libc, kind, source, root + path)
    os.chdir(root)
    call = _PIVOT_ROOT.get(os.uname().machine)
    done = call is not None and libc.syscall(call, b".", b".") == 0
    _demand(done and libc.umount2(b".", _DETACH) == 0, "a root of its own")
    _protect(libc, "/", _READ_ONLY | _NO_SETUID | _NO_DEVICES, 0)
    os.chdir("/tmp")


def _place(libc: ctypes.CDLL, kind: str, source: str, path: str) -> None:
    """Put one thing of the view at `path`, below the new root."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if kind == "link":
        os.symlink(source, path)
    elif kind == "hide":
        flags = _READ_ONLY | _NO_SETUID | _NO_DEVICES | _NO_PROGRAMS
        _mount(libc, "tmpfs", path, flags, b"size=4k,nr_inodes=2,mode=755")
    else:
        if os.path.isdir(source):
            os.makedirs(path, exist_ok=True)
        else:
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
        _mount(libc, source, path, _BIND | _RECURSIVE)
        _protect(libc, path, _NO_SETUID | (_NO_PROGRAMS if kind == "device" else _READ_ONLY | _NO_DEVICES))


def _mount(
    libc: ctypes.CDLL, source: str | None, path: str, flags: int, options: bytes | None = None
) -> None:
    kind = b"tmpfs" if source == "tmpfs" else None
    what = os.fsencode(source) if source else None
    done = libc.mount(what, os.fsencode(path), kind, ctypes.c_ulong(flags), options)
    _demand(done == 0, f"to mount {source or 'private mounts'}")


def _protect(libc: ctypes.CDLL, path: str, attributes: int, how: int = _AT_RECURSIVE) -> None:
    """Add attributes to a mount and, by default, to all below it."""
    size = struct.pack("=4Q", attributes, 0, 0, 0)
    call = (_MOUNT_SETATTR, _AT_FDCWD, os.fsencode(path), how, size, ctypes.c_size_t(len(size)))
    _demand(libc.syscall(*call) == 0, "a read-only file system")


# -- Landlock ----------------------------------------------------------------------------------------------


def _hide_files(libc: ctypes.CDLL, view: list[tuple[str, str, str]]) -> None:
    """Let the kernel refuse all of the file system but the view; this process cannot be undone from it."""
    version = libc.syscall(CREATE_RULESET, None, ctypes.c_size_t(0), 1)
    _demand(version >= 1, "to hide files by Landlock")
    rights = sum(some for since, some in _FILE_RIGHTS if version >= since)
    handled = struct.pack("=3Q", rights, _ANYTHING_TCP, _ANYTHING_SCOPED)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    rules = libc.syscall(CREATE_RULESET, handled, ctypes.c_size_t(size), 0)
    _demand(rules >= 0, "to hide files by Landlock")
    for kind, _, path in view:
        _allow(libc, rules, kind, path)
    _demand(libc.syscall(_RESTRICT_SELF, rules, 0) == 0, "to hide files by Landlock")
    os.close(rules)


def _allow(libc: ctypes.CDLL, rules: int, kind: str, path: str) -> None:
    """Except one path, and what is below it, from what is hidden."""
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        rights = {"show": _READ_FILE, "list": 0, "device": _READ_FILE | _WRITE_FILE}[kind]
        rule = struct.pack("=Qi", rights | (_READ_FOLDER if folder else 0), descriptor)
        _demand(libc.syscall(_ADD_RULE, rules, 1, rule, 0) == 0, f"to show {path}")
    finally:
        os.close(descriptor)
