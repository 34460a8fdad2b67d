"""The forms of isolation that the sandbox knows, strongest first, and how each starts the process of the program.

Knows command lines; `sandbox` finds out which of them work here.
"""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from ensemblehub.errors import ConfigError, did_you_mean

Form = Literal["bubblewrap", "namespaces", "limits"]
FORMS: tuple[Form, ...] = get_args(Form)
VARIABLE = "ENSEMBLEHUB_SANDBOX"

TEMPORARY_BYTES = 16 << 20
_CHILD = "/sandbox_child.py"
_DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
_SYSTEM = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache")
_ABOUT: dict[Form, str] = {
    "bubblewrap": "sees the interpreter alone, read-only, and a private /tmp; no network",
    "namespaces": "sees this machine's files, read-only, and a private folder; no network, no other processes",
    "limits": "sees this machine's files and processes",
}
_CALLS = "processes, signals and sockets are refused"


@dataclass(frozen=True)
class Isolation:
    """How programs are kept apart here.

    Attributes:
        form: which of `FORMS`.
        filtered: whether system calls are filtered too (`sandbox_filter`).
    """

    form: Form
    filtered: bool

    @property
    def about(self) -> str:
        """What a program can do, in one line."""
        if not self.filtered:
            return f"{_ABOUT[self.form]}; system calls are NOT filtered"
        return f"{_ABOUT[self.form]}; {_CALLS}{', writing too' if self.form == 'limits' else ''}"

    def __str__(self) -> str:
        return f"{self.form} ({self.about})"


def required() -> Form | None:
    """The form that the environment's `ENSEMBLEHUB_SANDBOX` requires; None where it leaves the choice.

    Raises:
        ConfigError: there is no such form.
    """
    name = os.environ.get(VARIABLE, "")
    return form_named(name) if name not in ("", "auto") else None


def form_named(name: str) -> Form:
    """The form of that name.

    Raises:
        ConfigError: there is none.
    """
    for form in FORMS:
        if name == form:
            return form
    raise ConfigError(f"{VARIABLE}: {did_you_mean(name, ('auto', *FORMS), 'form of sandbox')}")


def present(form: Form) -> bool:
    """Whether it is worth trying."""
    if form == "bubblewrap":
        return shutil.which("bwrap") is not None
    return form == "limits" or sys.platform == "linux"


def worker_command(form: Form, child: Path) -> list[str]:
    """What starts the process of the program, `child` as its script."""
    if form != "bubblewrap":
        return [*python(), str(child), "work"]
    return [*_bubblewrap(child), *python(), _CHILD, "work"]


def python() -> list[str]:
    """The interpreter with nothing but its standard library."""
    return [os.path.realpath(sys.executable), "-I", "-S", "-B"]


def _bubblewrap(child: Path) -> list[str]:
    """`bwrap` with its options.

    No /proc and no other devices than these, so that it works where a container's own /proc is masked.  The
    capability to mount is for the worker, which gives /tmp a bound on files and then drops it.
    """
    unshare = ("--unshare-all", "--unshare-user", "--uid", "65534", "--gid", "65534", "--hostname", "sandbox")
    rights = ("--die-with-parent", "--new-session", "--clearenv", "--cap-drop", "ALL", "--cap-add", "CAP_SYS_ADMIN")
    mounts = ("--ro-bind", str(child), _CHILD, "--size", str(TEMPORARY_BYTES), "--tmpfs", "/tmp", "--remount-ro", "/")
    return [shutil.which("bwrap") or "/usr/bin/bwrap", *unshare, *rights, *_root(), *mounts, "--chdir", "/tmp", "--"]


def _root() -> Iterator[str]:
    """The interpreter and the libraries it is linked to, without the packages installed for it."""
    executable = Path(os.path.realpath(sys.executable))
    own = (str(executable), f"{sys.base_prefix}/lib", f"{sys.base_prefix}/lib64", sysconfig.get_path("stdlib"))
    bound: list[str] = []
    for path in (*_SYSTEM, *own):
        if os.path.islink(path):
            yield from ("--symlink", os.readlink(path), path)
        elif os.path.exists(path) and not any(Path(path).is_relative_to(one) for one in bound):
            bound.append(path)
            yield from ("--ro-bind", path, path)
    base = {"base": sys.base_prefix, "platbase": sys.base_exec_prefix}
    packages = {sysconfig.get_path(name, "posix_prefix", vars=base) for name in ("purelib", "platlib")}
    for path in sorted({*packages, "/usr/lib/python3/dist-packages"}):
        if os.path.isdir(path) and not os.path.islink(path):
            yield from ("--tmpfs", path, "--remount-ro", path)
    for device in _DEVICES:
        yield from ("--dev-bind", device, device)
