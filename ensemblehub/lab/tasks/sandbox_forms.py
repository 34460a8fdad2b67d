"""The forms of isolation that the sandbox knows, strongest first, and how each starts the process of the
program.
"""

from __future__ import annotations

import functools
import os
import shutil
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from ensemblehub.errors import ConfigError, did_you_mean

Form = Literal["bubblewrap", "namespaces", "limits"]
FORMS: tuple[Form, ...] = get_args(Form)
VARIABLE = "ENSEMBLEHUB_SANDBOX"

TEMPORARY_BYTES = 16 << 20
Kind = Literal["show", "hide", "link", "device", "list"]
_CHILD = "/sandbox_child.py"
_DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
_SYSTEM = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/nix/store", "/gnu/store", "/etc/ld.so.cache")
_PRIVATE = "sees the interpreter alone, read-only, and a private /tmp; no network, no other processes"
_ABOUT: dict[Form, str] = {
    "bubblewrap": _PRIVATE,
    "namespaces": _PRIVATE,
    "limits": "reads the interpreter alone, and sees which other files and processes there are",
}
_OPEN = "reads this user's files, and the memory of this user's processes: it can find the right answers"
_CALLS = "processes, signals and sockets are refused"


@dataclass(frozen=True)
class Isolation:
    """How programs are kept apart here.

    Attributes:
        form: which of `FORMS`.
        filtered: whether system calls are filtered too (`sandbox_filter`).
        hidden: whether the files of this machine are hidden: by the form itself, in `limits` by Landlock.
    """

    form: Form
    filtered: bool
    hidden: bool = True

    @property
    def tight(self) -> bool:
        """Whether a program can neither find the right answers nor change what is the user's;
        else only on demand.
        """
        return self.form != "limits" or (self.filtered and self.hidden)

    @property
    def about(self) -> str:
        """What a program can do, in one line."""
        sees = _ABOUT[self.form] if self.hidden else _OPEN
        if not self.filtered:
            return f"{sees}; system calls are NOT filtered"
        return f"{sees}; {_CALLS}{', writing too' if self.form == 'limits' else ''}"

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


def ways(form: Form, filterable: bool) -> list[Isolation]:
    """The form with all of its protections, then with fewer, as far as this system may have them."""
    hiding = (True, False) if form == "limits" and sys.platform == "linux" else (form != "limits",)
    return [
        Isolation(form, filtered, hidden)
        for hidden in hiding
        for filtered in ((True, False) if filterable else (False,))
    ]


def worker_command(form: Form, child: Path) -> list[str]:
    """What starts the process of the program, `child` as its script."""
    if form != "bubblewrap":
        return [*python(), str(child), "work"]
    return [*_bubblewrap(child), *python(), _CHILD, "work"]


def python() -> list[str]:
    """The interpreter with nothing but its standard library,
    by its own path also in a virtual environment.
    """
    return [_interpreter(), "-I", "-S", "-B"]


def _interpreter() -> str:
    return os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)


def _bubblewrap(child: Path) -> list[str]:
    """`bwrap` with its options.

    No /proc and no other devices than these, so that it works where a container's own /proc is masked.  /tmp
    comes first, as the interpreter may lie below it.  The capability to mount is for the worker, which gives
    /tmp a bound on files and then drops it.
    """
    unshare = ("--unshare-all", "--unshare-user", "--uid", "65534", "--gid", "65534", "--hostname", "sandbox")
    rights = (
        "--die-with-parent",
        "--new-session",
        "--clearenv",
        "--cap-drop",
        "ALL",
        "--cap-add",
        "CAP_SYS_ADMIN",
    )
    options = {
        "show": ("--ro-bind", "{0}", "{1}"),
        "hide": ("--tmpfs", "{1}", "--remount-ro", "{1}"),
        "link": ("--symlink", "{0}", "{1}"),
        "device": ("--dev-bind", "{0}", "{1}"),
    }
    root = [part.format(source, path) for kind, source, path in view() for part in options[kind]]
    private = ("--size", str(TEMPORARY_BYTES), "--tmpfs", "/tmp")
    end = ("--ro-bind", str(child), _CHILD, "--remount-ro", "/", "--chdir", "/tmp", "--")
    return [shutil.which("bwrap") or "/usr/bin/bwrap", *unshare, *rights, *private, *root, *end]


def seen(form: Form) -> tuple[tuple[Kind, str, str], ...]:
    """What the worker itself has to arrange for in a form, as (kind, source, path)."""
    return view() if form == "namespaces" else rules() if form == "limits" else ()


@functools.cache
def view() -> tuple[tuple[Kind, str, str], ...]:
    """What a program sees of the machine, as (kind, source, path).

    The interpreter and the libraries it is linked to are shown, without the packages installed for it.
    """
    own = (_interpreter(), f"{sys.base_prefix}/lib", f"{sys.base_prefix}/lib64", sysconfig.get_path("stdlib"))
    out: list[tuple[Kind, str, str]] = []
    shown: list[str] = []
    for path in (*_SYSTEM, *own):
        if os.path.islink(path):
            out.append(("link", os.readlink(path), path))
        elif os.path.exists(path) and not any(Path(path).is_relative_to(above) for above in shown):
            shown.append(path)
            out.append(("show", path, path))
    out += [
        ("hide", "", path) for path in _packages() if any(Path(path).is_relative_to(above) for above in shown)
    ]
    return (*out, *(("device", path, path) for path in _DEVICES))


def _packages() -> list[str]:
    """The folders of packages that are installed for this interpreter or the system's."""
    base = {"base": sys.base_prefix, "platbase": sys.base_exec_prefix}
    known = {sysconfig.get_path(name, "posix_prefix", vars=dict(base)) for name in ("purelib", "platlib")}
    found = {
        str(path) for top in ("/usr", *base.values()) for path in Path(top).glob("lib*/python3*/*-packages")
    }
    return sorted(path for path in known | found if os.path.isdir(path) and not os.path.islink(path))


@functools.cache
def rules() -> tuple[tuple[Kind, str, str], ...]:
    """The view as Landlock has it, which can allow and not forbid.

    A folder with something hidden in it is a list of names, and what else is in it is shown piece by piece.
    """
    hidden = [path for kind, _, path in view() if kind == "hide"]
    waiting = [path for kind, _, path in view() if kind == "show"]
    out: list[tuple[Kind, str, str]] = [entry for entry in view() if entry[0] == "device"]
    while waiting:
        path = waiting.pop()
        if not any(Path(folder).is_relative_to(path) for folder in hidden):
            out.append(("show", path, path))
        elif path not in hidden:
            out.append(("list", path, path))
            waiting += [entry.path for entry in os.scandir(path) if not entry.is_symlink()]
    return tuple(out)
