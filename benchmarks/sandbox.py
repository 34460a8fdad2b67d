"""What the sandbox withstands, and what it costs: `python -m benchmarks.sandbox --humaneval FILE`.

Every program of `benchmarks.hostile_programs` runs in every form of isolation that works here.  None may pass; each
must end as the table says and in time; nothing of it may be left: no process, no file, no shared memory, no change to
a file of the user's; and a right program that runs beside it in the same form must pass.  Then, with HumanEval's file,
all canonical solutions must pass and all stubs fail, in each form; and a run's time is measured, one after the other
with the forms in turn, and two at once from threads and from asyncio.

Writes `sandbox.json` and `sandbox.md`.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import hashlib
import json
import os
import platform
import re
import select
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ensemblehub
from benchmarks.hostile_programs import HOSTILE, MARK, SECRET, SHARED_BYTES, TEST, TIME, Hostile
from ensemblehub.concurrency import for_each
from ensemblehub.errors import ConfigError
from ensemblehub.lab.tasks.sandbox import Outcome, isolation, run_tests
from ensemblehub.lab.tasks.sandbox_forms import FORMS, Form, Isolation, python

WALL, ENDLESS, LATE = (
    20.0,
    1.0,
    2.0,
)  # seconds a program has, if it never ends, and until it must be gone after that
MEMORY = 256  # MiB of address space for each of its processes
PEAK = 2.5 * MEMORY  # of resident memory of all of a run's processes
KEPT = b"what is in the FIFO"
SOLUTION = "def solution(x):\n    return x * x\n"
NEIGHBOUR = "import time\ndef f(x):\n    time.sleep(0.1)\n    return x * x\n"
PLACES = (
    "/tmp",
    "/var/tmp",
    "/dev/shm",
    "/etc",
    str(Path.home()),
    str(Path(ensemblehub.__file__).parent / "tasks"),
)
_SUBREAPER = 36


@dataclass(frozen=True)
class Trial:
    """How a hostile program fared.

    Attributes:
        peak_mb: the most resident memory of all processes of the run, sampled; MiB.
        wrong: what should not have been, one line each; none if it was contained.
    """

    name: str
    form: Form
    passed: bool
    reason: str
    seconds: float
    peak_mb: float
    wrong: tuple[str, ...]


class Surroundings:
    """What hostile programs reach for: files, sockets, a FIFO, a terminal, a block device, a process with a secret.

    Attributes:
        device: the block device, a loop device on a file; None where there can be none, and `no_device` says why.
    """

    def __init__(self) -> None:
        ctypes.CDLL(None).prctl(
            _SUBREAPER, 1, 0, 0, 0
        )  # what loses its parent comes to this process, and is seen
        self.folder = Path(tempfile.mkdtemp(prefix="surroundings-"))
        (self.folder / "canary").write_text("canary")
        self.server = socket.create_server(("127.0.0.1", 0))
        self.server.setblocking(False)
        self.datagrams = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.datagrams.setblocking(False)
        self.datagrams.bind(str(self.folder / "datagrams"))
        self.bystander = subprocess.Popen(
            [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, env={SECRET: "hush"}
        )
        (self.folder / "problems.jsonl").write_text(json.dumps({"canonical_solution": SOLUTION}) + "\n")
        self.stream = socket.socket(socket.AF_UNIX)
        self.stream.setblocking(False)
        self.stream.bind(str(self.folder / "stream"))
        self.stream.listen()
        os.mkfifo(self.folder / "fifo")
        self.fifo = os.open(self.folder / "fifo", os.O_RDWR | os.O_NONBLOCK)
        os.write(self.fifo, KEPT)
        self.master, self.terminal = os.openpty()
        os.set_blocking(self.master, False)
        (self.folder / "disk").write_bytes(bytes(1 << 20))
        self.device, self.no_device = _loop_device(self.folder / "disk")
        self.before = self._look()

    def close(self) -> None:
        self.bystander.kill()
        self.bystander.communicate()
        self.server.close()
        self.datagrams.close()
        self.stream.close()
        if self.device:
            subprocess.run(["losetup", "-d", self.device], check=True)
        for descriptor in (self.fifo, self.master, self.terminal):
            os.close(descriptor)
        shutil.rmtree(self.folder)

    def fill(self, program: str) -> str:
        """The program with the names of these things in it."""
        names = {
            "outside": self.folder,
            "package": Path(ensemblehub.__file__).parent,
            "port": self.server.getsockname()[1],
            "datagrams": self.folder / "datagrams",
            "stream": self.folder / "stream",
            "fifo": self.folder / "fifo",
            "terminal": os.ttyname(self.terminal),
            "device": self.device or self.folder / "no-device",
        }
        for name, value in names.items():
            program = program.replace(f"{{{name}}}", str(value))
        return program

    def _look(self) -> dict[str, Any]:
        found: dict[str, Any] = {f"in {path}": self._marked(path) for path in PLACES}
        for path in (self.folder, self.folder / "canary", self.folder / "disk"):
            status = path.stat()
            found[path.name] = (status.st_mode, status.st_size, status.st_mtime_ns, status.st_nlink)
        found["files"] = sorted(path.name for path in self.folder.iterdir())
        found["packages"] = hashlib.sha256(b"".join(source.read_bytes() for source in _sources())).hexdigest()
        shared = Path("/proc/sysvipc/shm").read_text().splitlines()
        found["shared memory"] = sum(SHARED_BYTES in line.split() for line in shared)
        found["message queues"] = len(Path("/proc/sysvipc/msg").read_text().splitlines())
        return found

    @staticmethod
    def _marked(path: str) -> list[str]:
        return [name for name in os.listdir(path) if MARK in name] if os.path.isdir(path) else []

    def changed(self) -> list[str]:
        """What is not as it was, one line each."""
        now = self._look()
        said = [f"{what}: {now[what]}, was {was}" for what, was in self.before.items() if now[what] != was]
        for receive in (self.server.accept, self.stream.accept, lambda: self.datagrams.recv(1)):
            try:
                receive()
            except BlockingIOError:
                continue
            said.append("somebody came by the network")
        if os.read(self.fifo, 99) != KEPT:
            said.append("the FIFO is not as it was")
        os.write(self.fifo, KEPT)
        if select.select([self.master], [], [], 0)[0]:
            said.append(f"somebody wrote into the terminal: {os.read(self.master, 99)!r}")
        if self.bystander.poll() is not None:
            said.append("another process was killed")
        self.before = now
        return said


def _loop_device(file: Path) -> tuple[str | None, str]:
    """A loop device on the file; or None, and why there is none."""
    if os.geteuid() != 0 or not shutil.which("losetup"):
        return None, "a loop device needs root and `losetup`"
    made = subprocess.run(["losetup", "--show", "-f", str(file)], capture_output=True, text=True)
    return (made.stdout.strip(), "") if made.returncode == 0 else (None, made.stderr.strip())


def _sources() -> list[Path]:
    return sorted(Path(ensemblehub.__file__).parent.glob("tasks/*.py"))


def processes() -> dict[int, float]:
    """Resident MiB of every process below this one, zombies too, by its number.

    One that is being started still is this one, memory and all, and has none of its own.  Its command is therefore
    read before its size: it may become another program between the two.
    """
    parents, sizes, starting = dict[int, int](), dict[int, float](), _command(os.getpid())
    for entry in Path("/proc").glob("[0-9]*"):
        is_starting = _command(int(entry.name)) == starting
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except (OSError, ValueError):
            continue
        parents[int(entry.name)] = int(fields[1])
        size = int(fields[21]) * os.sysconf("SC_PAGE_SIZE") / 2**20
        sizes[int(entry.name)] = 0.0 if is_starting else size
    found, own = {os.getpid()}, os.getpid()
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return {pid: sizes[pid] for pid in found - {own}}


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # it has ended
        return b""


@contextmanager
def watched() -> Iterator[list[float]]:
    """Samples of the memory of all processes below this one, in MiB, while the block runs."""
    samples, over = [0.0], threading.Event()

    def watch() -> None:
        while not over.wait(0.05):
            samples.append(sum(processes().values()))

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield samples
    finally:
        over.set()
        watching.join()


def trial(hostile: Hostile, form: Form, around: Surroundings) -> Trial:
    """Run one program in one form, and look at what it left."""
    known, wall = list(processes()), ENDLESS if TIME in hostile.expected(form) else WALL
    with watched() as samples:
        outcome = run_tests(
            around.fill(hostile.program), hostile.test, "f", form=form, wall_seconds=wall, memory_mb=MEMORY
        )
    wrong = around.changed()
    left = [pid for pid in processes() if pid not in known]
    if left:
        wrong.append(f"{len(left)} processes are left")
        for pid in left:
            os.kill(pid, signal.SIGKILL)
    peak = max(samples) - sum(size for pid, size in processes().items() if pid in known)
    if outcome.passed:
        wrong.append("it passed")
    if not re.search(hostile.expected(form), outcome.reason):
        wrong.append(f"it ended otherwise than by /{hostile.expected(form)}/")
    if outcome.seconds > wall + LATE:
        wrong.append(f"it took {outcome.seconds:.1f} s")
    if peak > PEAK:
        wrong.append(f"it held {peak:.0f} MiB")
    return Trial(
        hostile.name, form, outcome.passed, outcome.reason, outcome.seconds, max(peak, 0.0), tuple(wrong)
    )


def neighboured(hostile: Sequence[Hostile], form: Form, around: Surroundings) -> Trial:
    """What becomes of a right program that runs again and again beside the dangerous ones, in one form."""
    over, failed, count = threading.Event(), list[str](), 0

    def neighbour() -> None:
        nonlocal count
        while not over.is_set():
            outcome = run_tests(NEIGHBOUR, TEST, "f", form=form, wall_seconds=60)
            count += 1
            if not outcome.passed:
                failed.append(outcome.reason)

    beside = threading.Thread(target=neighbour)
    signals = [attack for attack in hostile if attack.dangerous]
    beside.start()
    started = time.monotonic()
    try:
        for attack in signals:
            run_tests(around.fill(attack.program), TEST, "f", form=form, wall_seconds=WALL, memory_mb=MEMORY)
    finally:
        over.set()
        beside.join()
    wrong = around.changed() + [f"the neighbour failed: {reason}" for reason in failed]
    said = f"{count} runs of a right program beside {len(signals)} hostile ones: {len(failed)} failed"
    return Trial("neighbour", form, False, said, time.monotonic() - started, 0.0, tuple(wrong))


def hold(forms: Sequence[Isolation]) -> list[Trial]:
    """Every program in every form."""
    around, out = Surroundings(), list[Trial]()
    try:
        for where in forms:
            safe = [
                program
                for program in HOSTILE
                if where.filtered or where.form != "limits" or not program.dangerous
            ]
            for number, hostile in enumerate(safe):
                out.append(trial(hostile, where.form, around))
                _progress(f"{where.form}: {number + 1} of {len(safe)} hostile programs")
            out.append(neighboured(safe, where.form, around))
    finally:
        around.close()
    return out


def grade(record: dict[str, str], body: str, form: Form) -> Outcome:
    """Run a completion of one of HumanEval's records."""
    return run_tests(
        record["prompt"] + body,
        record["test"],
        record["entry_point"],
        prompt=record["prompt"],
        wall_seconds=30,
        form=form,
    )


def humaneval(path: Path, forms: Sequence[Form]) -> dict[str, Any]:
    """Canonical solutions one by one with the forms in turn, stubs two at once; who failed, and how long it took."""
    records = [json.loads(line) for line in path.read_bytes().split(b"\n") if line]
    times: dict[str, list[float]] = {form: [] for form in forms}
    out: dict[str, Any] = {form: {"records": len(records), "refused": [], "accepted": []} for form in forms}
    bare = list[float]()
    for number, record in enumerate(records):
        started = time.perf_counter()
        subprocess.run([*python(), "-c", "pass"], check=True, env={})
        bare.append(time.perf_counter() - started)
        for form in forms:
            started = time.perf_counter()
            outcome = grade(record, record["canonical_solution"], form)
            times[form].append(time.perf_counter() - started)
            if not outcome.passed:
                out[form]["refused"].append(f"{record['task_id']}: {outcome.reason}")
        _progress(f"HumanEval: {number + 1} of {len(records)} canonical solutions")
    for form in forms:
        out[form]["milliseconds"] = {"p50": _ms(times[form], 50), "p90": _ms(times[form], 90)}
        for how, run in (("threads", _threads), ("asyncio", _asyncio)):
            started = time.perf_counter()
            outcomes = run(records, form)
            out[form][f"{how}_per_second"] = round(len(records) / (time.perf_counter() - started), 1)
            passed = [
                record["task_id"] for record, outcome in zip(records, outcomes, strict=True) if outcome.passed
            ]
            out[form]["accepted"] += [f"{name} ({how})" for name in passed]
        _progress(f"HumanEval: stubs in {form}")
    return {"bare_interpreter_milliseconds": {"p50": _ms(bare, 50), "p90": _ms(bare, 90)}, "forms": out}


def _threads(records: Sequence[dict[str, str]], form: Form) -> list[Outcome]:
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda record: grade(record, "    pass\n", form), records))


def _asyncio(records: Sequence[dict[str, str]], form: Form) -> list[Outcome]:
    async def graded(record: dict[str, str]) -> Outcome:
        return await asyncio.to_thread(grade, record, "    pass\n", form)

    return asyncio.run(for_each(records, graded, limit=2))


def _ms(seconds: Sequence[float], percent: int) -> float:
    return round(1000 * statistics.quantiles(seconds, n=100, method="inclusive")[percent - 1], 1)


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def report(record: dict[str, Any], trials: Sequence[Trial]) -> str:
    """The result as Markdown."""
    forms = list(record["forms"])
    out = [
        "# The sandbox: what it withstands, and what it costs",
        "",
        f"Written by `{record['command']}`.",
        "",
    ]
    out += [f"- `{form}`: a program {text}." for form, text in record["forms"].items()]
    conditions = ", ".join(f"{name} {value}" for name, value in record["conditions"].items())
    out += ["", f"Conditions: {conditions}.", ""]
    if "humaneval" in record:
        out += _humaneval_table(record["humaneval"], forms)
    programs = len({trial.name for trial in trials if trial.name != "neighbour"})
    bad = sum(bool(trial.wrong) for trial in trials)
    passed = sum(trial.passed for trial in trials)
    out += [
        "## Hostile programs",
        "",
        f"{programs} programs, {len(trials)} runs: {passed} passed, {bad} not contained.  Each has {WALL:g} s "
        f"({ENDLESS:g} s if it never ends) and {MEMORY} MiB; looked for "
        "afterwards: processes, zombies, files, shared memory, a connection, a changed file.  Exceptions are what "
        "attempts came to; `DONE` is what a form lets through: reading, and writing into what is private and thrown "
        "away.",
        "",
        f"| program | what it tries | {' | '.join(f'{form} | s' for form in forms)} |",
        f"|---|---|{'---|--:|' * len(forms)}",
    ]
    tries = {program.name: program.tries for program in HOSTILE} | {
        "neighbour": "not to be disturbed by any of them"
    }
    by = {(trial.name, trial.form): trial for trial in trials}
    for name, what in tries.items():
        cells = [_cells(by.get((name, form))) for form in forms]
        out.append(f"| {name} | {what} | {' | '.join(cells)} |")
    return "\n".join(out) + "\n"


def _cells(trial: Trial | None) -> str:
    if trial is None:
        return "not run: its system calls are not filtered | "
    text = re.sub(r"^line \d+ of the test: (AssertionError: )?", "", trial.reason)
    text = re.sub(r"[^ -~]|[|`\[\]*_<>]", lambda found: f"&#{ord(found[0])};", text[:70])
    found = "; ".join(("**NOT CONTAINED**", *trial.wrong, text)) if trial.wrong else text
    return f"{found} | {trial.seconds:.2f}"


def _humaneval_table(found: dict[str, Any], forms: Sequence[str]) -> list[str]:
    bare = found["bare_interpreter_milliseconds"]
    out = [
        "## HumanEval",
        "",
        "| form | canonical solutions pass | stubs fail, from threads and from asyncio | ms a run, median | 90 % | "
        "runs/s, two threads | runs/s, asyncio |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for form in forms:
        outcome = found["forms"][form]
        count = outcome["records"]
        out.append(
            f"| {form} | {count - len(outcome['refused'])}/{count} | "
            f"{2 * count - len(outcome['accepted'])}/{2 * count} | "
            f"{outcome['milliseconds']['p50']} | {outcome['milliseconds']['p90']} | {outcome['threads_per_second']} | "
            f"{outcome['asyncio_per_second']} |"
        )
    return [*out, "", f"Starting the bare interpreter alone took {bare['p50']} ms (median) in between.", ""]


def conditions() -> dict[str, Any]:
    """Where it ran."""
    bwrap = shutil.which("bwrap")
    version = (
        subprocess.run([bwrap, "--version"], capture_output=True, text=True).stdout.split()
        if bwrap
        else ["absent"]
    )
    return {
        "Python": platform.python_version(),
        "Linux": platform.release().partition("-")[0],
        "machine": platform.machine(),
        "CPUs": os.cpu_count(),
        "user": "root" if os.geteuid() == 0 else "not root",
        "bubblewrap": version[-1],
        "load": round(os.getloadavg()[0], 1),
    }


def available(names: Sequence[Form]) -> list[Isolation]:
    """The forms that work here; says which do not."""
    found = []
    for form in names:
        try:
            found.append(isolation(form))
        except ConfigError as error:
            print(f"left out: {error}", file=sys.stderr)
    return found


def main() -> None:
    """Run, write, and fail where something was not contained or graded wrongly."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--humaneval", type=Path, metavar="FILE", help="HumanEval.jsonl; without it that part is left out"
    )
    parser.add_argument(
        "--form", action="append", choices=FORMS, help="only this form; may be given again (default: all)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("results/grading"), help="folder (default: %(default)s)"
    )
    options = parser.parse_args()
    if options.humaneval and not options.humaneval.is_file():
        parser.error(f"no such file: {options.humaneval}")
    forms = available(options.form or FORMS)
    if not forms:
        parser.error("none of these forms works here")
    record: dict[str, Any] = {
        "command": "python -m benchmarks.sandbox" + (" --humaneval FILE" if options.humaneval else ""),
        "conditions": conditions(),
        "forms": {where.form: where.about for where in forms},
    }
    trials = hold(forms)
    record["trials"] = [asdict(trial) for trial in trials]
    if options.humaneval:
        record["humaneval"] = humaneval(options.humaneval, [where.form for where in forms])
    _progress("")
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "sandbox.json").write_text(json.dumps(record, indent=1) + "\n")
    (options.out / "sandbox.md").write_text(report(record, trials))
    wrong = [
        f"{trial.form}: {trial.name}: {'; '.join(trial.wrong)} ({trial.reason})"
        for trial in trials
        if trial.wrong
    ]
    for form, outcome in record.get("humaneval", {"forms": {}})["forms"].items():
        wrong += [
            f"{form}: {len(outcome[what])} {what}: {outcome[what][:3]}"
            for what in ("refused", "accepted")
            if outcome[what]
        ]
    print(f"{len(trials)} hostile runs, {len(wrong)} things wrong; see {options.out}/sandbox.md")
    if wrong:
        raise SystemExit("\n".join(wrong))


if __name__ == "__main__":
    main()
