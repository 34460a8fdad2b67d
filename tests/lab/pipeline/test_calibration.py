"""The cascade by hand, and thresholds against brute force."""

import itertools
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemblehub import builtin
from ensemblehub.config import Config
from ensemblehub.errors import ConfigError
from ensemblehub.lab.pipeline import calibration
from ensemblehub.lab.pipeline.calibration import Objective, calibrate
from ensemblehub.lab.pipeline.cascade import MENTOR, Outcomes, best_shares, oracle, random_mix, replay
from ensemblehub.lab.pipeline.pipeline import Pipeline
from ensemblehub.tandem.artifact import load_judge
from tests.lab.pipeline.scripted import HAND


def synthetic(n, levels=3, seed=0, fallback="best"):
    random = np.random.default_rng(seed)
    ease = random.normal(0, 1.2, (n, 1)) + 0.5 * np.arange(levels)
    reached = np.cumsum(random.uniform(5, 20, (n, levels)), axis=1)
    mentor_tokens = random.integers(1, levels + 1, n)  # some mentors end early
    return Outcomes(
        probabilities=1 / (1 + np.exp(-ease - random.normal(0, 0.7, (n, levels)))),
        correct=random.random((n, levels)) < 1 / (1 + np.exp(-ease)),
        cost=reached + random.uniform(1, 20, (n, levels)),
        judging=np.cumsum(random.uniform(0, 1, (n, levels)), axis=1),
        reached=reached,
        mentor_correct=random.random(n) < 0.7,
        mentor_cost=random.uniform(40, 120, n),
        visited=np.arange(levels) < np.where(random.random(n) < 0.8, levels, mentor_tokens)[:, None],
        fallback=fallback,
    )


# Replay


def test_replay_by_hand():
    cascade = replay(HAND, [0.5, 0.5])
    assert cascade.chosen.tolist() == [0, 1, 0, 1]  # the last two: never sufficient, the best is taken
    assert cascade.correct.tolist() == [True, True, True, True]
    # stopped at 0: 10 + 1; stopped at 1: 30 + 3; back to 0 after all levels: 10 − 2 + 21 + 3; best is the last: 33
    assert cascade.cost.tolist() == [11, 33, 32, 33]


def test_fallback_to_the_last_level():
    cascade = replay(replace(HAND, fallback="last"), [0.5, 0.5])
    assert cascade.chosen.tolist() == [0, 1, 1, 1]
    assert cascade.cost.tolist() == [11, 33, 33, 33]


def test_fallback_to_the_mentor():
    cascade = replay(replace(HAND, fallback="mentor"), [0.5, 0.5])
    assert cascade.chosen.tolist() == [0, 1, MENTOR, MENTOR]
    assert cascade.correct.tolist() == [True, True, False, True]
    assert cascade.cost.tolist() == [11, 33, 124, 124]  # 21 to reach the last level, 3 of judging, 100


def test_a_mentor_that_ended_early_leaves_the_last_checkpoint():
    early = replace(HAND, visited=np.array([[1, 1], [1, 0], [1, 1], [1, 0]], bool))
    cascade = replay(early, [0.5, 0.5])
    assert cascade.chosen.tolist() == [0, 0, 0, 0]
    assert cascade.cost.tolist() == [11, 11, 32, 11]
    assert replay(replace(early, fallback="last"), [0.5, 0.0]).chosen.tolist() == [0, 0, 1, 0]


def test_a_probability_on_the_threshold_suffices():
    assert replay(HAND, [0.4, 0.5]).chosen.tolist() == [0, 1, 0, 1]
    assert replay(HAND, [0.4, 0.5]).cost[2] == 11


def test_always_and_never():
    assert replay(HAND, [calibration.ALWAYS] * 2).chosen.tolist() == [0] * 4
    assert replay(replace(HAND, fallback="last"), [calibration.NEVER] * 2).chosen.tolist() == [1] * 4


# The grid


@pytest.mark.parametrize("fallback", ["best", "last", "mentor"])
@pytest.mark.parametrize("levels", [1, 2, 3])
def test_the_surface_is_every_replay(fallback, levels):
    outcomes = synthetic(60, levels, fallback=fallback)
    grids = [calibration.candidates(column, 5) for column in outcomes.heard.T]
    accuracy, cost = calibration.surface(outcomes, grids)
    for at in itertools.product(*(range(len(grid)) for grid in grids)):
        cascade = replay(outcomes, [grid[index] for grid, index in zip(grids, at, strict=True)])
        assert accuracy[at] == pytest.approx(cascade.correct.mean())
        assert cost[at] == pytest.approx(cascade.cost.mean())


def brute_force(outcomes, serves, better):
    """Indices of the best combination, by replaying each."""
    grids = [calibration.candidates(column) for column in outcomes.heard.T]
    cascades = {
        at: replay(outcomes, [grid[index] for grid, index in zip(grids, at, strict=True)])
        for at in itertools.product(*(range(len(grid)) for grid in grids))
    }
    means = {at: (cascade.correct.mean(), cascade.cost.mean()) for at, cascade in cascades.items()}
    return max(better(*mean) for mean in means.values() if serves(*mean))


def test_without_smoothing_the_choice_is_that_of_brute_force(monkeypatch):
    monkeypatch.setattr(calibration, "SMOOTHINGS", 0)
    outcomes = synthetic(30, 2)
    budget = 0.35 * outcomes.mentor_cost.mean()
    for text, serves in {"max-accuracy": lambda a, c: True, "budget:0.35": lambda a, c: c <= budget}.items():
        accuracy, cost = brute_force(outcomes, serves, lambda a, c: (round(a, 9), -c))
        found = replay(outcomes, calibrate(outcomes, Objective.parse(text)).thresholds)
        assert found.correct.mean() == pytest.approx(accuracy)
        assert found.cost.mean() == pytest.approx(-cost)


def test_smoothing_by_hand(monkeypatch):
    monkeypatch.setattr(calibration, "SMOOTHINGS", 1)
    assert calibration.smoothed(np.array([0.0, 4.0, 0.0, 0.0])).tolist() == [1, 2, 1, 0]


def test_candidates_lie_between_probabilities():
    found = calibration.candidates(np.array([0.2, 0.4, 0.4, 0.8, -1.0]), 4)
    assert found == pytest.approx([0.0, 0.3, 0.6, 1.01])
    assert calibration.candidates(np.full(5, 0.3)).tolist() == [0.0, 1.01]


def test_four_levels_of_two_thousand_questions_take_seconds():
    started = time.process_time()
    found = calibrate(synthetic(2000, 4), Objective())
    assert time.process_time() - started < 20
    assert found.thresholds.shape == (4,)


# Aims


def test_what_a_harmful_level_deserves_is_never():
    outcomes = synthetic(500, 2, seed=2)
    outcomes = replace(
        outcomes, correct=np.column_stack([np.zeros(500, bool), outcomes.correct[:, 1]]), fallback="last"
    )
    outcomes = replace(outcomes, visited=np.ones((500, 2), bool))
    found = calibrate(outcomes, Objective())
    assert (replay(outcomes, found.thresholds).chosen == 1).all()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.2, 1.2), st.sampled_from(["best", "last", "mentor"]))
def test_a_budget_holds_on_the_calibration_data(seed, share, fallback):
    outcomes = synthetic(40, 2, seed, fallback)
    try:
        found = calibrate(outcomes, Objective("budget", share))
    except ConfigError:
        cheapest = replay(outcomes, [calibration.ALWAYS] * 2)
        assert cheapest.cost.mean() > share * outcomes.mentor_cost.mean()
        return
    cascade = replay(outcomes, found.thresholds)
    assert cascade.cost.mean() <= share * outcomes.mentor_cost.mean() * (1 + 1e-9)
    assert found.expected["cost_vs_mentor"] == pytest.approx(
        cascade.cost.mean() / outcomes.mentor_cost.mean()
    )


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 10_000),
    st.sampled_from(["best", "last", "mentor"]),
    st.lists(st.floats(0, 1.01), min_size=3, max_size=3),
)
def test_a_run_costs_at_least_its_answer_and_its_judging(seed, fallback, thresholds):
    outcomes = synthetic(30, 3, seed, fallback)
    cascade, row = replay(outcomes, thresholds), np.arange(30)
    answered = np.where(cascade.chosen == MENTOR, outcomes.mentor_cost, outcomes.cost[row, cascade.chosen])
    assert (cascade.cost >= answered + outcomes.judging[:, 0] - 1e-9).all()
    assert outcomes.visited[row, cascade.chosen][cascade.chosen != MENTOR].all()


def test_min_accuracy_is_met_with_room_for_chance_and_cheaper_than_the_best():
    outcomes = synthetic(1500, 3)
    most, enough = calibrate(outcomes, Objective()), calibrate(outcomes, Objective("min-accuracy", 0.55))
    assert enough.expected["accuracy"] > 0.55
    assert enough.expected["cost_vs_mentor"] < most.expected["cost_vs_mentor"]


def test_aims_out_of_reach_name_the_best_there_is():
    with pytest.raises(ConfigError, match=r"no thresholds reach an accuracy of 0.999: the best is 0\.\d{4}"):
        calibrate(synthetic(100), Objective("min-accuracy", 0.999))
    with pytest.raises(
        ConfigError, match=r"no thresholds keep the budget of 0.01: the cheapest cost 0\.\d{3}"
    ):
        calibrate(synthetic(100), Objective("budget", 0.01))


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("budgt:0.5", "did you mean 'budget'"),
        ("budget", "needs a number"),
        ("max-accuracy:1", "takes no number"),
        ("max-accuracy:0", "takes no number"),
        ("budget:x", "'x' is not a number"),
        ("min-accuracy:90", "cannot be 90"),
        ("budget:nan", "cannot be nan"),
        ("budget:$0", "cannot be 0"),
        ("min-accuracy:$1", "'\\$1' is not a number"),
    ],
)
def test_aims_that_cannot_be(text, match):
    with pytest.raises(ConfigError, match=match):
        Objective.parse(text)


def test_a_budget_in_tflops_is_a_share_of_what_the_mentor_computes():
    outcomes = synthetic(200)
    tflops = replace(
        outcomes,
        **{name: 1e12 * getattr(outcomes, name) for name in ("cost", "judging", "reached", "mentor_cost")},
    )
    share = calibrate(outcomes, Objective.parse("budget:0.5"))
    amount = 0.5 * outcomes.mentor_cost.mean()
    found = calibrate(tflops, Objective("budget", amount, "tflops"))
    assert found.thresholds.tolist() == share.thresholds.tolist()
    with pytest.raises(ConfigError, match=r"the budget of 0\.1TFLOPs: the cheapest cost \d+\.?\d*TFLOPs"):
        calibrate(tflops, Objective.parse("budget:0.1TFLOPs"))
    with pytest.raises(ConfigError, match=r"the budget of \$3 is for costs in another unit"):
        calibrate(tflops, Objective.parse("budget:$3"))


@pytest.mark.parametrize(
    "text", ["max-accuracy", "budget:0.6", "budget:$0.002", "budget:1.5TFLOPs", "min-accuracy:0.8"]
)
def test_an_objective_is_written_as_it_is_read(text):
    assert str(Objective.parse(text)) == text


def test_expected_numbers_are_those_of_the_replay():
    outcomes = synthetic(400)
    found = calibrate(outcomes, Objective())
    cascade, expected = replay(outcomes, found.thresholds), found.expected
    assert expected["accuracy"] == pytest.approx(cascade.correct.mean())
    low, high = expected["accuracy_interval"]
    assert low < expected["accuracy"] < high
    assert sum(expected["shares"].values()) == pytest.approx(1)
    assert expected["cross_validated_accuracy"] <= expected["accuracy"] + 0.02


# Bounds and baselines


def test_oracle_takes_the_cheapest_right_level_or_the_cheapest():
    correct = [[0, 1, 1], [0, 0, 0], [1, 1, 1]]
    cost = [[1, 5, 4], [3, 2, 9], [1, 1, 0.5]]
    assert oracle(correct, cost).tolist() == [2, 1, 2]


def test_the_best_mix_at_a_cost_is_on_the_upper_hull():
    points = [(1, 0.2), (3, 0.3), (5, 0.8), (9, 0.7)]
    assert best_shares(points, 3).tolist() == [0.5, 0, 0.5, 0]  # 0.5, above the point itself
    assert best_shares(points, 6).tolist() == [0, 0, 0.75, 0.25]
    assert best_shares(points, 1).tolist() == [1, 0, 0, 0]
    assert best_shares([(1, 0.2), (1, 0.4)], 1).tolist() == [0, 1]
    assert best_shares(points, 0.9) is None
    assert best_shares(points, 9.1) is None


def test_random_mix_by_hand():
    accuracy, cost = random_mix([[1, 0], [1, 1]], [[10, 20], [30, 40]], [3, 1])
    assert accuracy == pytest.approx(0.75 * 1 + 0.25 * 0.5)
    assert cost == pytest.approx(0.75 * 20 + 0.25 * 30)


def test_the_judge_that_ships_is_not_changed(tmp_path, caplog):
    """Before, `ensemblehub calibrate` without a file changed the thresholds in the installed package."""
    shutil.copytree("results/builtin_math/collected", tmp_path / "collected")
    config = Config.read(Path(builtin.CONFIG), [f"experiment.results={tmp_path}"])
    ships = Path(builtin.resolve("builtin:judge"))
    before = {path: path.read_bytes() for path in ships.iterdir()}
    found = Pipeline(config).calibrate("max-accuracy")
    assert {path: path.read_bytes() for path in ships.iterdir()} == before
    assert caplog.messages == [f"the judge is written to {tmp_path}/judge: name that as `judge` to serve it"]
    after = Pipeline(config)  # as `evaluate` and `report` begin
    assert after.judge_folder == tmp_path / "judge"
    assert after.ensemble()[1].artifact.thresholds == found["thresholds"]
    assert found["thresholds"] != load_judge(ships).thresholds
