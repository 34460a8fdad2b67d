"""No hostile program passes, and none leaves anything behind, in any form of the sandbox that works here."""

import sys
from collections import Counter

import pytest
from sandbox_here import filtered, working

if sys.platform != "linux":
    pytest.skip("what is left is looked for in /proc", allow_module_level=True)

from benchmarks import sandbox as benchmark
from benchmarks.hostile_programs import HOSTILE
from ensemblehub.lab.tasks.sandbox_forms import FORMS

BY_NAME = {program.name: program for program in HOSTILE}


@pytest.fixture(scope="module")
def around():
    surroundings = benchmark.Surroundings()
    yield surroundings
    surroundings.close()


def test_there_are_many_and_each_has_a_name():
    assert len(HOSTILE) >= 40
    assert Counter(program.name for program in HOSTILE).most_common(1)[0][1] == 1


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", BY_NAME)
def test_a_hostile_program_is_contained(name, form, around):
    if form == "limits" and BY_NAME[name].dangerous:
        filtered(form)  # without, it could do harm
    working(form)
    if "{device}" in BY_NAME[name].program and not around.device:
        pytest.skip(f"no block device to attack: {around.no_device}")
    trial = benchmark.trial(BY_NAME[name], form, around)
    assert trial.wrong == (), trial.reason


@pytest.mark.parametrize("form", FORMS)
def test_a_neighbour_is_not_disturbed(form, around):
    filtered(form)  # without, it would be
    trial = benchmark.neighboured(HOSTILE, form, around)
    assert trial.wrong == ()


def test_the_trial_notices_what_it_looks_for(around):
    """A wrong table is caught: a right program, one that ends otherwise, and a file that is left."""
    right = benchmark.Hostile("right", "", "def f(x):\n    return x * x\n", "never")
    assert set(benchmark.trial(right, "limits", around).wrong) == {
        "it passed",
        "it ended otherwise than by /never/",
    }
    (around.folder / "canary").write_text("changed")
    other = benchmark.Hostile("other", "", "def f(x):\n    return 1\n", "AssertionError: 1")
    assert any(line.startswith("canary: ") for line in benchmark.trial(other, "limits", around).wrong)
    assert benchmark.trial(other, "limits", around).wrong == ()
