"""A program passes by being right and in no other way; what does not work is said, and never graded as a program's.

The hostile programs have a test of their own, `test_hostile_programs`.
"""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sandbox_here import filtered, working

from ensemblehub.errors import ConfigError, SandboxError
from ensemblehub.lab.tasks import sandbox, sandbox_child, sandbox_isolate
from ensemblehub.lab.tasks.sandbox import isolation, run_tests
from ensemblehub.lab.tasks.sandbox_forms import FORMS, VARIABLE
from tests.waiting import until

TEST = "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(3) == 9\n"
RIGHT = "def f(x):\n    return x * x\n"
WRONG = "def f(x):\n    return x + 2\n"


@pytest.fixture(params=FORMS)
def form(request):
    """Every form that works here."""
    return working(request.param).form


@pytest.fixture
def anew(monkeypatch):
    """A process that has not tried the forms yet, without the requirement that the user may have set."""
    monkeypatch.delenv(VARIABLE, raising=False)
    sandbox._probe.cache_clear()
    yield
    sandbox._probe.cache_clear()


def test_right_passes_and_wrong_fails(form):
    outcome = run_tests(RIGHT, TEST, "f", form=form)
    assert outcome.passed
    assert outcome.form == form
    outcome = run_tests(WRONG, TEST, "f", form=form)
    assert not outcome.passed
    assert outcome.reason == "line 3 of the test: AssertionError"


def test_bare_assertions_are_a_test_once_they_stand_in_check(form):
    source = "assert f(2) == 4\nassert f(3) == 9, 'three'"
    test = f"def check(candidate):\n    exec(compile({source!r}, '<test>', 'exec'), globals())\n"
    assert run_tests(RIGHT, test, "f", form=form).passed
    assert run_tests(WRONG, test, "f", form=form).reason == "line 2 of the test: AssertionError: three"


# -- the form ----------------------------------------------------------------------------------------------


def test_the_strongest_form_that_works_is_taken(anew):
    working = []
    for form in FORMS:
        try:
            working.append(isolation(form))
        except ConfigError:
            continue
    assert isolation() == working[0]
    assert run_tests(RIGHT, TEST, "f").form == working[0].form


def test_the_environment_may_require_a_form(anew, monkeypatch):
    monkeypatch.setenv(VARIABLE, "limits")
    assert isolation().form == "limits"
    assert run_tests(RIGHT, TEST, "f").form == "limits"
    monkeypatch.setenv(VARIABLE, "auto")
    assert isolation().form in FORMS
    monkeypatch.setenv(VARIABLE, "bublewrap")
    with pytest.raises(ConfigError, match="did you mean 'bubblewrap'"):
        run_tests(RIGHT, TEST, "f")


def test_a_required_form_that_is_absent_is_an_error_and_no_weaker_one(anew, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv(VARIABLE, "bubblewrap")
    with pytest.raises(
        ConfigError, match="'bubblewrap' is required but does not work here: bwrap is not installed"
    ):
        run_tests(RIGHT, TEST, "f")
    monkeypatch.delenv(VARIABLE)
    assert run_tests(RIGHT, TEST, "f").form != "bubblewrap"


def fake_bubblewrap(folder, monkeypatch, script):
    path = folder / "bwrap"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


def test_a_bubblewrap_that_is_there_but_does_not_work_is_not_taken(anew, monkeypatch, tmp_path):
    fake_bubblewrap(tmp_path, monkeypatch, "echo 'bwrap: No permissions to create new namespace' >&2; exit 1")
    with pytest.raises(ConfigError, match="No permissions to create new namespace"):
        isolation("bubblewrap")
    assert isolation().form != "bubblewrap"


def test_a_sandbox_that_fails_is_no_verdict_on_the_program(anew, monkeypatch, tmp_path):
    working("bubblewrap")
    for script in ("exit 0", "echo broken >&2; exit 1", "kill -9 $$"):
        fake_bubblewrap(tmp_path, monkeypatch, script)
        with pytest.raises(SandboxError, match="did not start"):
            run_tests(RIGHT, TEST, "f", form="bubblewrap")
    monkeypatch.setattr(sandbox, "worker_command", lambda form, child: [str(tmp_path / "absent")])
    with pytest.raises(SandboxError, match="did not start"):
        run_tests(RIGHT, TEST, "f", form="bubblewrap")


def changed(folder, monkeypatch, **constants):
    """A worker that isolates itself with other constants."""
    source = Path(sandbox_isolate.__file__).read_text()
    for name, value in constants.items():
        assert source.count(f"\n{name} = ") == 1
        source = source.replace(f"\n{name} = ", f"\n{name} = {value}  # ")
    (folder / "isolate.py").write_text(source)
    monkeypatch.setattr(sandbox, "_ISOLATE", folder / "isolate.py")


def test_a_kernel_that_refuses_namespaces(anew, monkeypatch, tmp_path):
    assert working("limits").tight
    sandbox._probe.cache_clear()
    changed(tmp_path, monkeypatch, NEW_NAMESPACES=-1)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="the kernel refuses new namespaces"):
        isolation("namespaces")
    assert isolation().form == "limits"


def test_limits_that_hide_nothing_grade_nothing_unless_they_are_asked_for(anew, monkeypatch, tmp_path):
    """A kernel without namespaces and without Landlock: a program could read the answers in the grader's memory."""
    changed(tmp_path, monkeypatch, NEW_NAMESPACES=-1, CREATE_RULESET=9999)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        SandboxError, match=r"limits: hides no files .* unless ENSEMBLEHUB_SANDBOX=limits asks for it"
    ):
        run_tests(RIGHT, TEST, "f")
    monkeypatch.setenv(VARIABLE, "limits")
    where = isolation()
    assert (where.form, where.hidden, where.tight) == ("limits", False, False)
    assert "reads this user's files, and the memory" in str(where)
    assert run_tests(RIGHT, TEST, "f").passed


def test_limits_without_a_filter_grade_nothing_unless_they_are_asked_for(anew, monkeypatch, tmp_path):
    changed(tmp_path, monkeypatch, NEW_NAMESPACES=-1)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sandbox, "filter_bytes", lambda *, write: b"")
    with pytest.raises(SandboxError, match="unless ENSEMBLEHUB_SANDBOX=limits asks for it"):
        isolation()
    assert run_tests(RIGHT, TEST, "f", form="limits").passed


def test_it_is_said_where_system_calls_are_not_filtered(anew, monkeypatch, form):
    monkeypatch.setattr(sandbox, "filter_bytes", lambda *, write: b"")
    sandbox._probe.cache_clear()
    assert not isolation(form).filtered
    assert "system calls are NOT filtered" in str(isolation(form))
    assert run_tests(RIGHT, TEST, "f", form=form).passed
    assert not run_tests(WRONG, TEST, "f", form=form).passed


def test_a_kernel_that_refuses_the_filter(anew, monkeypatch):
    monkeypatch.setattr(sandbox, "filter_bytes", lambda *, write: b"\xff" * 8)
    assert not isolation("limits").filtered


def test_a_checker_that_cannot_filter_is_no_verdict(anew, monkeypatch):
    filtered("limits")
    monkeypatch.setattr(sandbox, "filter_bytes", lambda *, write: b"\xff" * 8)
    with pytest.raises(SandboxError, match="the kernel refuses a filter of system calls"):
        run_tests(RIGHT, TEST, "f", form="limits")


# -- what a program has ------------------------------------------------------------------------------------


def test_the_folder_is_fresh_and_goes_away(form):
    program = "import os\ndef f(x):\n    open('left', 'w').close()\n    raise ValueError(os.getcwd(), os.listdir())\n"
    for _ in range(2):
        reason = run_tests(program, TEST, "f", form=form).reason
        if form == "limits" and filtered(form):
            assert "PermissionError" in reason  # nothing can be written there
        else:
            assert "ValueError: ('/tmp', ['left'])" in reason
    assert not os.path.exists("/tmp/left")


@pytest.mark.parametrize("private", ["bubblewrap", "namespaces"])
def test_a_program_sees_the_interpreter_and_nothing_else(private):
    working(private)
    program = (
        "import os\ndef f(x):\n    return [os.listdir('/'), "
        "sorted(os.listdir('/dev')), os.path.exists('/proc/self')]\n"
    )
    above = {Path(path).parts[1] for path in (sys.base_prefix, os.path.realpath(sys.executable))}
    allowed = {"sandbox_child.py", "dev", "etc", "gnu", "lib", "lib64", "nix", "tmp", "usr", *above}
    test = (
        "def check(candidate):\n    root, devices, proc = candidate(0)\n"
        f"    assert set(root) <= {allowed}, root\n"
        "    assert devices == ['null', 'random', 'urandom', 'zero'] and not proc\n"
    )
    assert run_tests(program, test, "f", form=private).reason == ""


@pytest.fixture(scope="module")
def python_below_tmp():
    """An interpreter that was unpacked below /tmp, with a package in it that knows the answers."""
    left_out = (
        "test",
        "idlelib",
        "tkinter",
        "ensurepip",
        "__pycache__",
        "config-*",
        "*-packages",
        "lib2to3",
        "pydoc_data",
    )
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    with tempfile.TemporaryDirectory(prefix="python-", dir="/tmp") as folder:
        library, program = Path(folder, "lib", version), Path(folder, "bin", version)
        ignored = shutil.ignore_patterns(*left_out)
        shutil.copytree(sysconfig.get_path("stdlib"), library, ignore=ignored, symlinks=True)
        program.parent.mkdir()
        shutil.copy(os.path.realpath(sys.executable), program)
        (library / "site-packages" / "more").mkdir(parents=True)
        (library / "site-packages" / "more" / "answers.py").write_text(RIGHT)
        yield program


def test_where_python_lies_below_tmp(form, python_below_tmp):
    script = (
        "import sys\nsys.path.insert(0, sys.argv[1])\nfrom ensemblehub.lab.tasks.sandbox import run_tests\n"
        "for program in sys.argv[4:]:\n    print(run_tests(program, sys.argv[2], 'f', form=sys.argv[3]).reason)\n"
    )
    packages = python_below_tmp.parents[1] / "lib" / python_below_tmp.name / "site-packages" / "more"
    cheat = f"import sys\nsys.path.append({str(packages)!r})\nfrom answers import f\n"
    command = [str(python_below_tmp), "-I", "-c", script, str(Path(sandbox.__file__).parents[3]), TEST, form]
    done = subprocess.run([*command, RIGHT, cheat], capture_output=True, text=True, timeout=120)
    passed, refused, _ = done.stdout.split("\n")
    assert passed == "", done.stderr
    assert refused.startswith(("ModuleNotFoundError", "PermissionError"))


def test_temporary_files_work_where_there_is_a_private_folder(form):
    program = "import tempfile\ndef f(x):\n    file = tempfile.TemporaryFile()\n    return file.write(bytes(x * x))\n"
    assert run_tests(program, TEST, "f", form=form).passed == (form != "limits")


def test_what_ordinary_programs_use_works(form):
    program = (
        "import asyncio, collections, datetime, decimal, fractions, hashlib, random, re, sqlite3, zlib\n"
        "async def g(x):\n    await asyncio.sleep(0)\n    return x * x\n"
        "def f(x):\n    print(hashlib.md5(b'x').hexdigest(), datetime.datetime.now(), flush=True)\n"
        "    return asyncio.run(g(x)) + int(sqlite3.connect(':memory:').execute('select 0').fetchone()[0])\n"
    )
    assert run_tests(program, TEST, "f", form=form).reason == ""


def test_installed_packages_are_not_there(form):
    outcome = run_tests("import pytest\n" + RIGHT, TEST, "f", form=form)
    assert outcome.reason == "ModuleNotFoundError: No module named 'pytest'"


# -- together and apart ------------------------------------------------------------------------------------


def test_runs_in_any_thread(form):
    with ThreadPoolExecutor(4) as pool:
        outcomes = list(
            pool.map(lambda program: run_tests(program, TEST, "f", form=form), [RIGHT, WRONG] * 4)
        )
    assert [outcome.passed for outcome in outcomes] == [True, False] * 4


def test_the_form_is_found_once_when_many_threads_ask_first(anew, monkeypatch):
    tried, run = [], sandbox._run
    monkeypatch.setattr(sandbox, "_run", lambda where, *a: tried.append(where) or run(where, *a))
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda _: isolation("limits"), range(8)))
    assert len(found) == 1
    assert len(tried) == 1


def test_runs_from_asyncio_without_holding_it_up(form):
    slow = "import time\ndef f(x):\n    time.sleep(0.2)\n    return x * x\n"

    async def both():
        done, ticks = asyncio.Event(), 0

        async def tick():
            nonlocal ticks
            while not done.is_set():
                await asyncio.sleep(0.01)
                ticks += 1

        ticking = asyncio.create_task(tick())
        outcomes = await asyncio.gather(
            *(asyncio.to_thread(run_tests, program, TEST, "f", form=form) for program in (slow, WRONG))
        )
        done.set()
        await ticking
        return outcomes, ticks

    outcomes, ticks = asyncio.run(both())
    assert [outcome.passed for outcome in outcomes] == [True, False]
    assert ticks > 10


def living(mark):
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and death signals")
def test_nothing_stays_when_the_caller_is_killed(form, tmp_path):
    child = shutil.copy(sandbox._CHILD, tmp_path)  # a path of its own, to know its processes by
    script = (
        "from pathlib import Path\nfrom ensemblehub.lab.tasks import sandbox\n"
        f"sandbox._CHILD = Path({str(child)!r})\n"
        "slow = 'import time\\ndef f(x):\\n    time.sleep(60)\\n'\n"
        f"sandbox.run_tests(slow, {TEST!r}, 'f', wall_seconds=60, form={form!r})\n"
    )
    caller = subprocess.Popen([sys.executable, "-c", script])
    mark, end = str(child).encode(), time.monotonic() + 30
    while len(living(mark)) < 2 and time.monotonic() < end:
        time.sleep(0.05)
    time.sleep(0.5)
    assert len(living(mark)) >= 2
    caller.send_signal(signal.SIGKILL)
    caller.wait()
    until(lambda: not living(mark))


# -- the test's side ---------------------------------------------------------------------------------------


def test_a_test_may_expect_an_exception():
    test = "def check(candidate):\n    try:\n        candidate(1)\n    except ValueError as error:\n        assert str(error) == 'no'\n    else:\n        assert False\n"  # noqa: E501
    assert run_tests("def f(x):\n    raise ValueError('no')\n", test, "f").passed
    assert not run_tests("def f(x):\n    raise KeyError('no')\n", test, "f").passed


EXPECTING = {
    "except (KeyError, ValueError) as error": ("KeyError", "ValueError"),
    "except builtins.OSError": ("OSError",),
    "except* TypeError": ("TypeError",),
    "with self.assertRaises(IndexError):": ("IndexError",),
    "with pytest.raises((ValueError, TypeError), match='x')": ("TypeError", "ValueError"),
    "with self.assertRaisesRegex(ValueError, 'x')": ("ValueError",),
    "with contextlib.suppress(LookupError):": ("LookupError",),
    "exec('try:\\n    f(1)\\nexcept ZeroDivisionError:\\n    pass')": ("ZeroDivisionError",),
    "except Exception": (),
    "except:": (),
    "except BaseException as error": (),
    "raise ValueError": (),
    "assert str(ValueError)": (),
}


@pytest.mark.parametrize("test", EXPECTING)
def test_the_exceptions_that_a_test_expects(test):
    assert sandbox.expected_exceptions(test) == list(EXPECTING[test])


@pytest.mark.parametrize(
    ("raised", "expected", "passes"),
    [
        ("ValueError('no')", "ValueError", True),
        ("UnicodeError('no')", "ValueError", True),
        ("bytes([255]).decode()", "ValueError", True),  # an exception that takes five arguments
        ("type('Own', (LookupError,), {})('no')", "LookupError", True),
        ("KeyError('no')", "ValueError", False),
        ("ValueError('no')", "Exception", False),
        ("StopIteration", "(ValueError, StopIteration)", False),
        ("KeyboardInterrupt", "KeyboardInterrupt", False),
        ("SystemExit", "SystemExit", False),
        ("GeneratorExit", "GeneratorExit", False),
    ],
)
def test_an_exception_passes_only_where_it_is_expected_by_name(raised, expected, passes):
    program = f"def f(x):\n    raise {raised}\n"
    test = f"def check(candidate):\n    try:\n        candidate(1)\n    except {expected}:\n        pass\n"
    outcome = run_tests(program, test, "f")
    assert outcome.passed == passes, outcome.reason


@pytest.mark.parametrize(
    "error", ["StopIteration", "StopAsyncIteration", "GeneratorExit", "SystemExit", "ValueError"]
)
def test_no_exception_ends_the_loop_of_a_test(error):
    program = f"def f(x):\n    if x > 2:\n        raise {error}\n    return x * x\n"
    for loop in (
        "list(map(candidate, [2, 3]))",
        "[*map(candidate, [2, 3])]",
        "dict(zip([2, 3], map(candidate, [2, 3])))",
    ):
        outcome = run_tests(program, f"def check(candidate):\n    assert 4 in {loop} or True\n", "f")
        assert not outcome.passed
        assert outcome.reason == f"line 2 of the test: {error}"


def test_a_forgiving_test_does_not_forgive_a_dead_program():
    test = "def check(candidate):\n    try:\n        candidate(1)\n    except BaseException:\n        pass\n"
    assert not run_tests("import os\ndef f(x):\n    os._exit(0)\n", test, "f").passed


def test_the_benchmarks_own_code_writes_no_files(form, tmp_path):
    filtered(form)
    test = f"def check(candidate):\n    open({str(tmp_path / 'left')!r}, 'w')\n"
    assert "PermissionError" in run_tests(RIGHT, test, "f", form=form).reason
    assert list(tmp_path.iterdir()) == []


def test_a_reason_is_one_printable_line():
    for text in ("\x1b[2J", "\ud800", "a\nb", "\x00"):
        outcome = run_tests(f"def f(x):\n    raise ValueError({text!r})\n", TEST, "f")
        assert outcome.reason.isprintable()
        assert outcome.reason.startswith("line 2 of the test: ValueError: ")


def test_a_gigantic_program_is_not_even_started():
    outcome = run_tests(RIGHT + "#" * (1 << 20), TEST, "f")
    assert outcome.reason == "the program has more than 1,048,576 characters"


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.complex_numbers(allow_nan=False),
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text() | st.integers(), inner)
        | st.sets(st.integers())
        | st.frozensets(st.text())
    ),
    max_leaves=20,
)


@given(PLAIN)
def test_plain_values_arrive_as_they_were(value):
    back = sandbox_child.decode(json.loads(json.dumps(sandbox_child.encode(value))))
    assert back == value
    assert type(back) is type(value)


def test_long_integers_arrive():
    assert run_tests(
        "def f(x):\n    return 7 ** 20000\n", "def check(c):\n    assert c(0) == 7 ** 20000\n", "f"
    ).passed
