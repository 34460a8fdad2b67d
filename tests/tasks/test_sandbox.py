"""A program passes by being right and in no other way, and nothing of it stays."""

# ruff: noqa: E501  (programs as data)

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemblehub.tasks import sandbox, sandbox_child
from ensemblehub.tasks.sandbox import run_tests

# A hostile program may kill what it can reach, other tests' sandboxes included: one worker runs them all.
pytestmark = pytest.mark.xdist_group("sandbox")

TEST = "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(3) == 9\n"
RIGHT = "def f(x):\n    return x * x\n"
WRONG = "def f(x):\n    return x + 2\n"
FORGED = json.dumps({"nonce": "0" * 32, "passed": True, "reason": ""})


@pytest.fixture(params=["namespaces", "without"])
def isolation(request, monkeypatch, tmp_path):
    """With what the kernel offers, and as on a kernel that refuses new namespaces."""
    if request.param == "without":
        child = tmp_path / "sandbox_child.py"
        source = Path(sandbox_child.__file__).read_text()
        assert source.count("_NEW_NAMESPACES = ") == 1
        child.write_text(source.replace("_NEW_NAMESPACES = ", "_NEW_NAMESPACES = -1  # "))
        monkeypatch.setattr(sandbox, "_CHILD", child)
    return request.param


HOSTILE = {
    "exits at once": "import os\nos._exit(0)\n",
    "exits in the call": "import os\ndef f(x):\n    os._exit(0)\n",
    "sys.exit at once": "import sys\nsys.exit(0)\n",
    "sys.exit in the call": "import sys\ndef f(x):\n    sys.exit(0)\n",
    "SystemExit": "def f(x):\n    raise SystemExit\n",
    "KeyboardInterrupt": "def f(x):\n    raise KeyboardInterrupt\n",
    "BaseException": "def f(x):\n    raise BaseException('no')\n",
    "own exception": "class Odd(Exception):\n    __str__ = None\ndef f(x):\n    raise Odd\n",
    "right, then exits": RIGHT + "g = f\ndef f(x):\n    import os\n    return g(x) if x == 2 else os._exit(0)\n",
    "no function": "g = 1\n",
    "not a function": "f = 4\n",
    "does not compile": "def f(x:\n",
    "prints a verdict": f"print('''{FORGED}''', flush=True)\n" + WRONG,
    "writes a verdict everywhere": (
        f"import os\nfor number in range(30):\n    try:\n        os.write(number, b'''{FORGED}\\n''')\n"
        "    except OSError:\n        pass\n" + WRONG
    ),
    "own check": WRONG + "def check(candidate):\n    return None\n",
    "check in builtins": WRONG + "import builtins\nbuiltins.check = lambda candidate: None\nbuiltins.AssertionError = int\n",
    "check by gc": WRONG + (
        "import gc\nfor one in gc.get_objects():\n    if type(one) is dict:\n        for name in ('check', '_reason', '_run_test'):\n"
        "            if name in one:\n                one[name] = lambda *a: ''\n"
    ),
    "frames": WRONG + (
        "import sys\nframe = sys._getframe()\nwhile frame:\n"
        "    frame.f_globals.update(encode=lambda value: True, _reason=lambda *a: '', decode=lambda data: 4)\n"
        "    frame = frame.f_back\n"
    ),
    "open descriptors": WRONG + "import os\nos.closerange(0, 64)\n",
    "always equal": "class Same:\n    __eq__ = lambda self, other: True\n    __hash__ = None\ndef f(x):\n    return Same()\n",
    "always equal int": "class Same(int):\n    __eq__ = lambda self, other: True\n    __hash__ = None\ndef f(x):\n    return Same(7)\n",
    "always equal text": "class Same(str):\n    __eq__ = lambda self, other: True\n    __hash__ = None\ndef f(x):\n    return Same('7')\n",
    "own class, faked": "class Same:\n    __class__ = int\n    __eq__ = lambda self, other: True\ndef f(x):\n    return Same()\n",
    "recursion": "def f(x):\n    return f(x)\n",
    "deep recursion": "import sys\nsys.setrecursionlimit(10**9)\ndef f(x):\n    return f(x) + 1\n",
    "deep result": "def f(x):\n    out = []\n    for _ in range(900):\n        out = [out]\n    return out\n",
    "memory": "def f(x):\n    return len(bytearray(10**10))\n",
    "memory bit by bit": "def f(x):\n    out = []\n    while True:\n        out.append(bytearray(10**7))\n",
    "long result": "def f(x):\n    return 'a' * (20 << 20)\n",
    "kills its checker": (
        "import os, signal\nfor name in os.listdir('/proc'):\n    try:\n"
        "        if b'sandbox_child' in open(f'/proc/{name}/cmdline', 'rb').read():\n"
        "            os.kill(int(name), signal.SIGKILL)\n    except (OSError, ValueError):\n        pass\n" + WRONG
    ),
    "kills its group": "import os, signal\nos.killpg(0, signal.SIGKILL)\n" + WRONG,
}  # fmt: skip
ENDLESS = {
    "loop": "def f(x):\n    while True:\n        pass\n",
    "loop at once": "while True:\n    pass\n",
    "output": "def f(x):\n    while True:\n        print('x' * 10000)\n",
    "raw output": "import os\ndef f(x):\n    while True:\n        try:\n            os.write(1, b'x' * 10000)\n        except OSError:\n            pass\n",
    "waits": "import time\ndef f(x):\n    time.sleep(1000)\n",
    "catches everything": "def f(x):\n    while True:\n        try:\n            while True:\n                pass\n        except BaseException:\n            pass\n",
}


def test_right_passes_and_wrong_fails(isolation):
    assert run_tests(RIGHT, TEST, "f").passed
    outcome = run_tests(WRONG, TEST, "f")
    assert not outcome.passed
    assert outcome.reason == "line 3 of the test: AssertionError"


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_programs_fail(name, isolation):
    outcome = run_tests(HOSTILE[name], TEST, "f", wall_seconds=20)
    assert not outcome.passed
    assert outcome.reason
    assert "\n" not in outcome.reason


@pytest.mark.parametrize("name", ENDLESS)
def test_endless_programs_end_at_the_wall_time(name):
    outcome = run_tests(ENDLESS[name], TEST, "f", wall_seconds=1)
    assert not outcome.passed
    assert outcome.reason == "took longer than 1 s"
    assert outcome.seconds < 5


def test_the_checker_cannot_be_looked_into(isolation):
    program = """
import os
def f():
    seen = []
    for name in os.listdir("/proc"):
        try:
            if not name.isdigit() or b"sandbox_child.py\\0check" not in open(f"/proc/{name}/cmdline", "rb").read():
                continue
        except OSError:
            continue
        seen.append("found")
        for what in ("mem", "environ", "maps"):
            try:
                open(f"/proc/{name}/{what}", "rb").read(1)
                seen.append(what)
            except PermissionError:
                pass
        for number in range(64):
            try:
                os.close(os.open(f"/proc/{name}/fd/{number}", os.O_WRONLY))
                seen.append(f"descriptor {number}")
            except (PermissionError, FileNotFoundError):
                pass
    return sorted(set(map(str, seen)))
"""
    assert (
        run_tests(program, "def check(candidate):\n    assert candidate() == ['found'], candidate()\n", "f").reason
        == ""
    )


def test_the_environment_and_the_input_are_empty(monkeypatch, isolation):
    monkeypatch.setenv("SECRET_KEY", "hush")
    program = (
        "import os, sys\ndef f():\n    return [*os.environ, sys.stdin.read(), open('/proc/self/environ').read()]\n"
    )
    test = "def check(candidate):\n    seen = [one for one in candidate() if 'LC_CTYPE' not in one]\n    assert not any(seen), seen\n"
    assert run_tests(program, test, "f").reason == ""


def test_no_process_stays(tmp_path, isolation):
    beat = tmp_path / "beat"
    program = f"""
import os, time
def f(x):
    try:
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                while True:
                    with open({str(beat)!r}, "a") as file:
                        file.write(".")
                    time.sleep(0.01)
            os._exit(0)
        time.sleep(0.2)
    except OSError:
        pass
    return x * x
"""
    run_tests(program, TEST, "f")
    before = beat.stat().st_size if beat.exists() else 0
    time.sleep(0.3)
    assert (beat.stat().st_size if beat.exists() else 0) == before


def test_no_thread_stays(tmp_path, isolation):
    beat = tmp_path / "beat"
    program = f"""
import threading, time
def run():
    while True:
        with open({str(beat)!r}, "a") as file:
            file.write(".")
        time.sleep(0.01)
def f(x):
    threading.Thread(target=run).start()
    return x * x
"""
    run_tests(program, TEST, "f")
    before = beat.stat().st_size if beat.exists() else 0
    time.sleep(0.3)
    assert (beat.stat().st_size if beat.exists() else 0) == before


def test_the_folder_is_fresh_and_goes_away():
    program = "import os\ndef f(x):\n    open('left', 'w').close()\n    raise ValueError(os.getcwd(), os.listdir())\n"
    outcome = run_tests(program, TEST, "f")
    folder = outcome.reason.split("'")[1]
    assert "['left']" in outcome.reason
    assert "sandbox-" in folder
    assert not os.path.exists(folder)


def test_files_are_limited():
    program = "def f(x):\n    open('big', 'wb').write(b'x' * (5 << 20))\n    return x * x\n"
    assert not run_tests(program, TEST, "f").passed


def test_runs_in_any_thread():
    with ThreadPoolExecutor(4) as pool:
        outcomes = list(pool.map(lambda program: run_tests(program, TEST, "f"), [RIGHT, WRONG] * 4))
    assert [outcome.passed for outcome in outcomes] == [True, False] * 4


def test_a_test_may_expect_an_exception():
    test = "def check(candidate):\n    try:\n        candidate(1)\n    except ValueError as error:\n        assert str(error) == 'no'\n    else:\n        assert False\n"
    assert run_tests("def f(x):\n    raise ValueError('no')\n", test, "f").passed
    assert not run_tests("def f(x):\n    raise KeyError('no')\n", test, "f").passed


def test_a_forgiving_test_does_not_forgive_a_dead_program():
    test = "def check(candidate):\n    try:\n        candidate(1)\n    except BaseException:\n        pass\n"
    assert not run_tests("import os\ndef f(x):\n    os._exit(0)\n", test, "f").passed


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
    | st.complex_numbers(allow_nan=False),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text() | st.integers(), inner)
    | st.sets(st.integers()) | st.frozensets(st.text()),
    max_leaves=20,
)  # fmt: skip


@given(PLAIN)
def test_plain_values_arrive_as_they_were(value):
    back = sandbox_child.decode(json.loads(json.dumps(sandbox_child.encode(value))))
    assert back == value
    assert type(back) is type(value)


def test_long_integers_arrive():
    assert run_tests("def f(x):\n    return 7 ** 20000\n", "def check(c):\n    assert c(0) == 7 ** 20000\n", "f").passed
