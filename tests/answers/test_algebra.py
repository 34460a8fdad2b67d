"""The processes that compare expressions: limits, many threads, forks, and nothing left behind."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ensemblehub.answers import algebra
from ensemblehub.answers.algebra import TooCostlyError, Workers
from ensemblehub.answers.equality import equal_answers
from ensemblehub.errors import EnsembleHubError
from tests.waiting import alive, until

COSTLY = (
    "((9!)!)!",
    "\\sum_{k=1}^{99999} \\frac{1}{k}",
    "\\int_0^1 e^{x^{x^x}} dx",
    "\\binom{99999999}{49999999}",
)


def running(workers):
    return [worker.process.pid for worker in workers._alive if worker.process.poll() is None]


@pytest.fixture
def workers():
    own = Workers(2)
    yield own
    own.close()
    assert not running(own)


def test_one_warm_process_does_the_work(workers):
    assert workers.compare("x^2-1", "(x-1)(x+1)", "value") is True
    (first,) = running(workers)
    assert workers.compare("x^2-1", "(x-1)^2", "value") is False
    assert workers.compare("2x > 4", "x > 2", "relation") is True
    assert workers.compare("\\frac{", "}{", "value") is None
    assert running(workers) == [first]


@pytest.mark.slow
@pytest.mark.parametrize("expression", COSTLY)
def test_what_costs_too_much_is_given_up_and_the_next_is_answered(workers, expression):
    started = time.monotonic()
    with pytest.raises(TooCostlyError):
        workers.compare("x+1", expression, "value")
    assert time.monotonic() - started < algebra.WALL_SECONDS + 10
    assert workers.compare("2\\sqrt{2}", "\\sqrt{8}", "value") is True


def test_memory_files_and_time_are_bounded(workers):
    assert workers.compare("x x", "x^2", "value") is True
    (pid,) = running(workers)
    limits = Path(f"/proc/{pid}/limits").read_text().splitlines()
    soft = {line[:26].strip(): line[26:].split()[0] for line in limits[1:]}
    assert int(soft["Max address space"]) == algebra.MEGABYTES << 20
    assert soft["Max file size"] == soft["Max core file size"] == "0"
    assert int(soft["Max cpu time"]) < 60


def test_a_worker_that_hangs_is_ended_at_the_deadline(workers, monkeypatch):
    assert workers.compare("x x", "x^2", "value") is True
    monkeypatch.setattr(algebra, "WALL_SECONDS", 0.5)
    (pid,) = running(workers)
    os.kill(pid, signal.SIGSTOP)
    started = time.monotonic()
    with pytest.raises(TooCostlyError):
        workers.compare("x+x", "2x", "value")
    assert time.monotonic() - started < 5
    monkeypatch.undo()
    assert workers.compare("x+x", "2x", "value") is True
    assert running(workers) != [pid]


def test_a_worker_that_was_killed_is_replaced(workers):
    assert workers.compare("x x", "x^2", "value") is True
    (pid,) = running(workers)
    os.kill(pid, signal.SIGKILL)
    time.sleep(0.2)
    assert workers.compare("x x", "x^2", "value") is True
    assert len(running(workers)) == 1


def test_many_threads_get_each_their_own_answer(workers):
    pairs = [(f"{a}x+{b}x", f"{a + b + (a % 3 == 0)}x", a % 3 != 0) for a in range(12) for b in range(1, 9)]
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda pair: workers.compare(pair[0], pair[1], "value"), pairs))
    assert found == [pair[2] for pair in pairs]
    assert len(running(workers)) <= 2


@pytest.mark.slow
def test_a_costly_one_in_one_thread_leaves_the_others_right(workers):
    failed = []

    def costly():
        try:
            workers.compare("x+1", COSTLY[1], "value")
        except TooCostlyError:
            failed.append(True)

    thread = threading.Thread(target=costly)
    thread.start()
    for number in range(30):
        assert workers.compare(f"x+{number}", f"{number}+x", "value") is True
    thread.join()
    assert failed == [True]


def test_from_asyncio():
    async def main():
        pairs = [(f"{number}y+y", f"{number + 1}y") for number in range(20)]
        return await asyncio.gather(*(asyncio.to_thread(equal_answers, *pair) for pair in pairs))

    assert asyncio.run(main()) == [True] * 20


def test_a_forked_child_has_workers_of_its_own():
    assert equal_answers("z+z+z", "3z")
    inherited, child = algebra._workers, os.fork()
    if child == 0:
        fine = algebra._workers is not inherited and equal_answers("z+z+z+1", "3z+1")
        algebra.close()
        os._exit(0 if fine else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert equal_answers("z+z+z+2", "3z+2")


def test_a_worker_that_cannot_start_is_an_error_and_no_answer(workers, monkeypatch):
    monkeypatch.setattr(algebra, "MEGABYTES", 20)
    with pytest.raises(EnsembleHubError, match="does not start"):
        workers.compare("x", "y", "value")
    monkeypatch.undo()
    assert workers.compare("x", "y", "value") is False


SCRIPT = """
    import sys, threading, time
    from ensemblehub.answers import algebra, equality as answers
    heavy = {"math_verify", "sympy", "torch", "numpy", "datasets"}
    assert not heavy & set(sys.modules), heavy & set(sys.modules)
    assert answers.equal_answers("x+x", "2x")
    assert not heavy & set(sys.modules)
    print(*(worker.process.pid for worker in algebra._workers._alive), flush=True)
    if sys.argv[1] == "busy":
        threading.Thread(target=answers.equal_answers, args=("x", "((9!)!)!"), daemon=True).start()
        time.sleep(1)
    if sys.argv[1] == "wait":
        time.sleep(60)
"""


@pytest.mark.parametrize("ending", ["idle", "busy", "wait"])
def test_nothing_is_left_when_the_program_ends(ending):
    program = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), ending],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path.cwd(),
    )
    pids = [int(pid) for pid in program.stdout.readline().split()]
    assert pids
    if ending == "wait":
        program.kill()
    assert program.wait(timeout=60) == (-signal.SIGKILL if ending == "wait" else 0)
    until(lambda: not alive(pids))
    program.stdout.close()
