"""The image of `Dockerfile`, built and run: `python -m benchmarks.container_image` (as root).

Needs no Docker daemon and no registry of images.  `mmdebstrap` makes a base of Debian's packages under the name
that `Dockerfile` starts from, buildah executes the file's instructions on it with chroot isolation, and the image's
entry point, user and health check are run, until the server has answered a question.  The official base may differ,
so the base has a line of its own.  The machine's certificates and `/etc/pip.conf` are mounted while the image is
built.  Writes `results/benchmarks/container_image.txt`; everything else is removed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import psutil

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "results/benchmarks/container_image.txt"
PACKAGES = "python3,python3-venv,python-is-python3,ca-certificates"
MOUNTED = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pip.conf")
TOOLS = ("mmdebstrap", "buildah", "xargs")
SIZES = """chroot "$1" dpkg-query -W -f '${Package}=${Version}\\n' | xargs chroot "$1" apt-cache show > """
URL = "http://127.0.0.1:8000"
KEY = "secret"
QUESTION = "There are 8 bowls. There are 3 more mugs than bowls. How many mugs are there?"
ANSWER = "\\boxed{11}"
MEGABYTE = 10**6
UNITS = {"kB": 10**3, "MB": 10**6, "GB": 10**9}
START_LIMIT = 60.0  # seconds


@dataclass(frozen=True)
class Store:
    """buildah with its images and containers in a folder."""

    folder: Path

    def __call__(self, *arguments: str) -> str:
        """Run buildah; returns its output.

        Raises:
            RuntimeError: it failed; with the end of what it printed.
        """
        return shell([*self.command, *arguments])

    @property
    def command(self) -> list[str]:
        place = ["--root", str(self.folder / "store"), "--runroot", str(self.folder / "run")]
        return ["buildah", *place, "--storage-driver", "vfs"]

    def size(self, image: str) -> float:
        """Megabytes of an image, as buildah rounds them."""
        number, unit = self("images", "--format", "{{.Size}}", image).split()
        return float(number) * UNITS[unit] / MEGABYTE


def shell(command: list[str]) -> str:
    """Run a command in the repository's root; returns what it printed.

    Raises:
        RuntimeError: it failed; with the end of what it printed.
    """
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stdout[-500:]} {done.stderr[-1500:]}")
    return done.stdout


def base_names() -> tuple[str, str]:
    """The image that `Dockerfile` starts from, and its release of Debian."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    version = re.search(r"^ARG PYTHON=(\S+)", text, re.MULTILINE)
    images = set(re.findall(r"^FROM (\S+)", text, re.MULTILINE))
    if version is None or len(images) != 1:
        raise RuntimeError("Dockerfile is expected to start from one image, with its version in ARG PYTHON")
    image = images.pop().replace("${PYTHON}", version[1])
    return image, image.rsplit("-", 1)[1]


def make_base(store: Store, image: str, release: str) -> tuple[int, int]:
    """Make the base; returns number and bytes of its packages."""
    archive, records = store.folder / "base.tar", store.folder / "packages.txt"
    hook = f"--customize-hook={SIZES}{records}"
    shell(["mmdebstrap", "--variant=minbase", f"--include={PACKAGES}", hook, release, str(archive)])
    container = store("from", "scratch").strip()
    store("add", "--quiet", container, str(archive), "/")
    store("commit", "--quiet", "--rm", container, image)
    archive.unlink()
    sizes = re.findall(r"^Size: (\d+)$", records.read_text(encoding="utf-8"), re.MULTILINE)
    return len(sizes), sum(map(int, sizes))


def build(store: Store) -> tuple[int, int]:
    """Execute `Dockerfile`; returns number and bytes of the wheels that pip fetched, as pip says them."""
    mounts = [f"--volume={path}:{path}:ro" for path in MOUNTED if Path(path).exists()]
    how = ["--isolation=chroot", "--pull-never", "--format=docker"]
    log = store("build", *how, *mounts, "--tag", "ensemblehub", ".")
    sizes = re.findall(r"^ +Downloading \S+ \(([\d.]+) (kB|MB|GB)\)", log, re.MULTILINE)
    return len(sizes), round(sum(float(number) * UNITS[unit] for number, unit in sizes))


@contextmanager
def started(store: Store) -> Iterator[tuple[psutil.Process, float]]:
    """Run the image's entry point as its user until its health check passes.

    Yields:
        the server's process, and the seconds until it was healthy.

    Raises:
        RuntimeError: it ended or did not become healthy; with what the server printed.
    """
    config = json.loads(store("inspect", "--type", "image", "ensemblehub"))["Docker"]["config"]
    container = store("from", "--pull-never", "ensemblehub").strip()
    run = ["run", "--isolation=chroot", f"--env=ENSEMBLEHUB_API_KEY={KEY}", container, "--"]
    check = config["Healthcheck"]["Test"][1:]
    with (store.folder / "server.log").open("w+") as log:
        line = [*store.command, *run, *config["Entrypoint"], *config["Cmd"]]
        begun = time.monotonic()
        process = subprocess.Popen(line, cwd=ROOT, stdout=log, stderr=log)
        try:
            while subprocess.run([*store.command, *run, *check], capture_output=True).returncode:
                if process.poll() is not None or time.monotonic() - begun > START_LIMIT:
                    log.seek(0)
                    raise RuntimeError(f"the container is not healthy: {log.read()[-1500:]}")
            healthy = time.monotonic() - begun
            yield psutil.Process(process.pid).children(recursive=True)[-1], healthy
        finally:
            process.terminate()
            process.wait(timeout=30)
            store("rm", container)


def ask() -> str:
    """The server's answer to the question."""
    body = {"model": "ensemble", "messages": [{"role": "user", "content": QUESTION}]}
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    request = Request(f"{URL}/v1/chat/completions", json.dumps(body).encode(), headers)
    with urlopen(request, timeout=60) as reply:
        answered: dict[str, Any] = json.load(reply)
    return str(answered["choices"][0]["message"]["content"])


def first_answer(store: Store) -> tuple[float, float]:
    """Seconds from the start to a passed health check, and from there to an answer.

    Raises:
        RuntimeError: the answer is wrong, the page is not there, or the server has rights.
    """
    with started(store) as (server, healthy):
        begun = time.perf_counter()
        answer = ask()
        answered = time.perf_counter() - begun
        with urlopen(URL, timeout=10) as reply:
            page = reply.read().decode()
        rights = re.search(r"^CapEff:\s*(\S+)", Path(f"/proc/{server.pid}/status").read_text(), re.MULTILINE)
        user = set(server.uids()), rights and int(rights[1], 16)
    if not answer.endswith(ANSWER) or "<!doctype html>" not in page or user != ({10001}, 0):
        raise RuntimeError(f"answer {answer!r}, user and capabilities {user}, page {page[:80]!r}")
    return healthy, answered


def measure(store: Store) -> list[str]:
    """Every step once; a line each."""
    image, release = base_names()
    times = [time.perf_counter()]
    packages, package_bytes = make_base(store, image, release)
    times.append(time.perf_counter())
    wheels, wheel_bytes = build(store)
    times.append(time.perf_counter())
    healthy, answered = first_answer(store)
    again = sum(first_answer(store))
    base, built = times[1] - times[0], times[2] - times[1]
    base_size = store.size(image)
    above = store.size("ensemblehub") - base_size
    return [
        f"base of Debian's packages       {base:6.1f} s  {packages} packages, {package_bytes / MEGABYTE:.1f} MB"
        f"  on the disk {base_size:.0f} MB",
        f"image, the steps of Dockerfile  {built:6.1f} s  {wheels} wheels, {wheel_bytes / MEGABYTE:.1f} MB"
        f"  on the disk {above:.0f} MB above the base",
        f"start until healthy             {healthy:6.1f} s",
        f"first answer                    {answered:6.1f} s",
        f"all, base and image made        {base + built + healthy + answered:6.1f} s  again {again:.1f} s",
    ]


def main() -> None:
    """Build, run, and write the table."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        raise SystemExit(f"not installed: {', '.join(missing)}")
    with socket.socket() as taken:
        if taken.connect_ex(("127.0.0.1", 8000)) == 0:
            raise SystemExit("port 8000, where the image serves, is in use")
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as temporary:
        lines = measure(Store(Path(temporary)))
    head = [
        "From nothing to the first answer of a container of `Dockerfile`: every step once, seconds; what was",
        "downloaded, without what pip needs to build the project's own wheel. Executed by buildah with chroot",
        "isolation, on a base that mmdebstrap made of Debian's packages; user 10001 without capabilities, the image's",
        "health check, a key. `again` is a second container of the same image.",
        f"{platform.system()} {platform.machine()}, {psutil.cpu_count()} cores, load {load:.1f} before.",
        "",
    ]
    RESULT.write_text("\n".join([*head, *lines]) + "\n", encoding="utf-8")
    print(*lines, sep="\n")


if __name__ == "__main__":
    main()
