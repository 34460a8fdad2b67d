"""From an empty environment to the first answer: `python -m benchmarks.first_answer`.

Builds the wheel, then for each way of installing it starts with empty caches and measures the time until
`ensemblehub ask` has answered, what was downloaded and what it takes on the disk.  `hf` installs the extra with
torch, which the default install does without.  The notebook runs to its first answer, installing by its first cell.
`uv` and `pipx` are taken from PATH.  Writes `results/benchmarks/first_answer.txt`.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

RESULT = Path("results/benchmarks/first_answer.txt")
ASK = ["ensemblehub", "ask", "There are 8 bowls. There are 3 more mugs than bowls. How many mugs are there?"]
NOTEBOOK = Path(__file__).parents[1] / "examples" / "notebook.ipynb"
FIRST_CELLS = """
import json, os, sys
os.environ["ENSEMBLEHUB_SOURCE"] = sys.argv[2]
names = {}
for cell in json.load(open(sys.argv[1]))["cells"]:
    text = "".join(cell["source"])
    if text.startswith("## Ride"):
        break
    if cell["cell_type"] == "code":
        exec(text, names)
"""
MEGABYTE = 10**6
CACHES = ("XDG_CACHE_HOME", "UV_CACHE_DIR", "PIP_CACHE_DIR", "PIPX_HOME")


def run(command: list[str], folder: Path) -> str:
    """Run a command with all caches and its home in a folder; returns its output.

    Raises:
        RuntimeError: it failed; with the end of what it printed.
    """
    caches = {name: str(folder / "caches" / name.lower()) for name in CACHES}
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    kept = {**env, **caches, "UV_PYTHON": sys.executable, "CC": "/bin/false", "CXX": "/bin/false"}
    done = subprocess.run(command, cwd=folder, env=kept, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stdout[-500:]} {done.stderr[-1500:]}")
    return done.stdout


def with_pip(wheel: Path, extra: str, folder: Path) -> list[list[str]]:
    """Commands that install into an environment of their own and ask."""
    target = str(folder / "environment")
    install = [f"{target}/bin/python", "-m", "pip", "install", "-q", "--no-compile", f"{wheel}{extra}"]
    return [[sys.executable, "-m", "venv", target], install, [f"{target}/bin/ensemblehub", *ASK[1:]]]


def with_uvx(wheel: Path, extra: str, folder: Path) -> list[list[str]]:
    """The command that installs and asks at once."""
    return [["uvx", "-q", "--from", f"{wheel}{extra}", *ASK]]


def with_pipx(wheel: Path, extra: str, folder: Path) -> list[list[str]]:
    """The command that installs and asks at once."""
    return [["pipx", "run", "-q", "--spec", f"{wheel}{extra}", *ASK]]


def with_notebook(wheel: Path, extra: str, folder: Path) -> list[list[str]]:
    """Commands that make an environment and run the notebook's cells up to the first answer."""
    target = str(folder / "environment")
    return [
        [sys.executable, "-m", "venv", target],
        [f"{target}/bin/python", "-c", FIRST_CELLS, str(NOTEBOOK), f"{wheel}{extra}"],
    ]


WAYS: dict[str, tuple[Callable[[Path, str, Path], list[list[str]]], str, str]] = {
    "uvx ensemblehub ask": (with_uvx, "", "uvx"),
    "pipx run ensemblehub ask": (with_pipx, "", "pipx"),
    "venv, pip install ensemblehub": (with_pip, "", sys.executable),
    "examples/notebook.ipynb": (with_notebook, "[eval]", sys.executable),
    "venv, pip install ensemblehub[hf]": (with_pip, "[hf]", sys.executable),
}


def downloaded(wheel: Path, extra: str, folder: Path) -> tuple[int, int]:
    """Number and bytes of the wheels that an install fetches, the project's own among them."""
    fetch = [sys.executable, "-m", "pip", "download", "-q", "--only-binary", ":all:", "-d", "wheels"]
    run([*fetch, f"{wheel}{extra}"], folder)
    files = list((folder / "wheels").iterdir())
    return len(files), sum(file.stat().st_size for file in files)


def measure(way: str, wheel: Path, folder: Path) -> list[float]:
    """Seconds to the first answer from nothing, and to one more; bytes on the disk."""
    commands, extra, _ = WAYS[way]
    asked = commands(wheel, extra, folder)
    started = time.perf_counter()
    for command in asked:
        output = run(command, folder)
    first = time.perf_counter() - started
    if "Answer:" not in output:
        raise RuntimeError(f"{way} gave no answer: {output[-500:]}")
    started = time.perf_counter()
    run(asked[-1], folder)
    again = time.perf_counter() - started
    size = sum(file.lstat().st_size for file in folder.rglob("*") if file.is_file() and not file.is_symlink())
    return [first, again, size]


def main() -> None:
    """Measure every way that this machine has, and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, help="how often each way is measured (3)")
    parser.add_argument("--only", choices=WAYS, help="measure this way alone, and keep the other lines")
    options = parser.parse_args()
    root = Path(__file__).parents[1]
    kept = (root / RESULT).read_text().splitlines() if options.only else []
    lines = []
    with tempfile.TemporaryDirectory() as temporary:
        run(
            [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", temporary, str(root)],
            Path(temporary),
        )
        (wheel,) = Path(temporary).glob("*.whl")
        for way, (_, extra, tool) in WAYS.items():
            if options.only not in (None, way):
                lines += [line for line in kept if line.startswith(f"{way} ")]
                continue
            if shutil.which(tool) is None:
                lines.append(f"{way:<36} not measured: {tool} is not installed")
                continue
            taken = []
            for index in range(options.rounds):
                folder = Path(temporary) / f"{len(lines)}_{index}"
                folder.mkdir()
                taken.append(measure(way, wheel, folder))
                shutil.rmtree(folder)
            fetched = Path(temporary) / f"fetched_{len(lines)}"
            fetched.mkdir()
            count, size = downloaded(wheel, extra, fetched)
            shutil.rmtree(fetched)
            first, again = (sorted(row[place] for row in taken) for place in (0, 1))
            middle = options.rounds // 2
            lines.append(
                f"{way:<36} {first[middle]:6.1f} s ({first[0]:.1f} to {first[-1]:.1f})  again {again[middle]:5.2f} s  "
                f"{count:3} wheels, {size / MEGABYTE:6.1f} MB  on the disk {taken[0][2] / MEGABYTE:6.0f} MB"
            )
            print(lines[-1], flush=True)
    head = [
        "Seconds from an empty environment with empty caches to the first answer of `ensemblehub ask`, upper median of "
        f"{options.rounds} rounds (range);",
        "seconds of the same command once more; wheels downloaded, this project's with the built-in models among them;",
        f"bytes of environment and caches. No compiler. Python {platform.python_version()}, {platform.system()} "
        f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, package index on the local network.",
        "",
    ]
    head = kept[: kept.index("") + 1] if kept else head
    (root / RESULT).write_text("\n".join([*head, *lines]) + "\n")


if __name__ == "__main__":
    main()
