"""Where the mentor is stopped because no insight will help: replayed by hand, chosen, and run live."""

import asyncio
import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemblehub import builtin
from ensemblehub.config import Config
from ensemblehub.errors import ArtifactError, ConfigError
from ensemblehub.lab.pipeline import calibration, replayed
from ensemblehub.lab.pipeline.calibration import Grid, Objective, calibrate, limits_of
from ensemblehub.lab.pipeline.cascade import MENTOR, Outcomes, replay
from ensemblehub.lab.pipeline.certificate_path import along, path_of
from ensemblehub.lab.pipeline.evaluate import run_live
from ensemblehub.lab.pipeline.pipeline import Pipeline
from ensemblehub.lab.pipeline.replay import outcomes
from ensemblehub.tandem.artifact import JudgeArtifact, load_judge
from ensemblehub.tandem.judges import EntropyRule
from tests.lab.pipeline.scripted import HAND, YAML

NAN = float("nan")


GIVING_UP = "    fallback: mentor\n    give_up: {{none: calibrated}}\nexperiment:"


# Replay


@pytest.mark.parametrize(
    ("fallback", "chosen", "cost"),
    [
        ("best", [0, 0, 0, 0], [11, 11, 32, 11]),  # the third goes on, to no avail: 10 − 2 + 21 + 3
        ("last", [0, 0, 1, 0], [11, 11, 33, 11]),
        ("mentor", [0, MENTOR, MENTOR, MENTOR], [11, 103, 124, 103]),  # 2 + 1 + 100 and 21 + 3 + 100
    ],
)
def test_questions_given_up_at_the_first_level(fallback, chosen, cost):
    run = replay(replace(HAND, fallback=fallback).giving_up([0.3, 0]), [0.5, 0.5])
    assert run.chosen.tolist() == chosen
    assert run.cost.tolist() == cost


def test_a_probability_on_the_limit_goes_on_and_one_that_suffices_is_not_given_up():
    assert replay(HAND.giving_up([0.2, 0]), [0.5, 0.5]).chosen.tolist() == [0, 1, 0, 0]
    run = replay(replace(HAND, fallback="mentor").giving_up(0.3), [0.2, 0.5])
    assert run.chosen.tolist() == [0, 0, 0, MENTOR]


def test_a_draft_that_is_given_up_stands():
    drafted = replace(HAND, drafted=True)
    assert replay(drafted, [0.95, 0.95]).chosen.tolist() == [
        1,
        1,
        1,
        1,
    ]  # insights are compared with each other
    assert replay(drafted.giving_up([0.3, 0]), [0.95, 0.95]).chosen.tolist() == [1, 0, 1, 0]


def synthetic(n, levels=3, seed=0, fallback="best", drafted=False):
    random = np.random.default_rng(seed)
    ease = random.normal(0, 1.2, (n, 1)) + 0.5 * np.arange(levels)
    reached = np.cumsum(random.uniform(5, 20, (n, levels)), axis=1)
    ended = np.where(random.random(n) < 0.8, levels, random.integers(1, levels + 1, n))
    return Outcomes(
        probabilities=1 / (1 + np.exp(-ease - random.normal(0, 0.7, (n, levels)))),
        correct=random.random((n, levels)) < 1 / (1 + np.exp(-ease)),
        cost=reached + random.uniform(1, 20, (n, levels)),
        judging=np.cumsum(random.uniform(0, 1, (n, levels)), axis=1),
        reached=reached,
        mentor_correct=random.random(n) < 0.7,
        mentor_cost=random.uniform(40, 120, n),
        visited=np.arange(levels) < ended[:, None],
        fallback=fallback,
        drafted=drafted,
    )


def one_by_one(found, thresholds, below):
    """Level and cost of every question, decided in the order in which `Tandem.run` and `choose` decide."""
    for row, (said, visited) in enumerate(zip(found.probabilities, found.visited, strict=True)):
        seen = []
        for level in np.flatnonzero(visited):
            seen.append(level)
            if said[level] >= thresholds[level] or said[level] < below[level]:
                break
        last = seen[-1]
        spent = found.reached[row, last] + found.judging[row, last]
        if said[last] >= thresholds[last] or found.fallback == "last":
            chosen = last
        elif found.fallback == "mentor":
            yield MENTOR, spent + found.mentor_cost[row]
            continue
        else:
            chosen = max((seen[1:] if found.drafted else seen) or seen, key=lambda level: said[level])
        yield chosen, spent + found.cost[row, chosen] - found.reached[row, chosen]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10_000),
    st.sampled_from(["best", "last", "mentor"]),
    st.booleans(),
    *[st.lists(st.floats(0, 1), min_size=3, max_size=3)] * 2,
)
def test_every_replay_is_what_the_strategy_decides_question_by_question(
    seed, fallback, drafted, thresholds, below
):
    found = synthetic(20, 3, seed, fallback, drafted)
    run = replay(found.giving_up(below), thresholds)
    chosen, cost = zip(*one_by_one(found, thresholds, below), strict=True)
    assert run.chosen.tolist() == list(chosen)
    assert run.cost == pytest.approx(np.array(cost))


# The choice


@pytest.mark.parametrize("fallback", ["best", "last", "mentor"])
@pytest.mark.parametrize("asked", [[NAN, 0.2], [NAN, NAN], [0.3, 0.1]])
def test_the_grid_is_every_replay(fallback, asked):
    found = synthetic(9, 2, fallback=fallback)
    grid = Grid.of(found, asked)
    accuracy, cost = grid.surface(found)
    assert (grid.give_up[0] == np.nan_to_num(asked)).all()
    assert (len(grid.give_up) > 5) == np.isnan(asked).any()
    for place, at in enumerate(itertools.product(*map(range, accuracy.shape))):
        thresholds, below = grid.limits([place])[0]
        run = replay(found.giving_up(below), thresholds)
        assert accuracy[at] == pytest.approx(run.correct.mean())
        assert cost[at] == pytest.approx(run.cost.mean())


# Of 40 questions, 10 are right alone and said to be; 10 no insight helps, which is seen; 20 the second level helps.
KINDS = np.repeat([0, 1, 2], [10, 10, 20])
UNHELPED = Outcomes(
    probabilities=np.stack([np.array([0.9, 0.1, 0.4])[KINDS], np.array([0.9, 0.2, 0.8])[KINDS]], axis=1)
    + np.linspace(0, 0.05, 40)[:, None],
    correct=np.stack([KINDS == 0, KINDS != 1], axis=1),
    cost=np.tile([10.0, 30.0], (40, 1)),
    judging=np.zeros((40, 2)),
    reached=np.tile([2.0, 21.0], (40, 1)),
    mentor_correct=np.ones(40, bool),
    mentor_cost=np.full(40, 40.0),
    visited=np.ones((40, 2), bool),
)


def test_giving_up_questions_that_no_insight_helps_saves_what_their_insights_cost(monkeypatch):
    monkeypatch.setattr(calibration, "SMOOTHINGS", 0)
    without = calibrate(UNHELPED, Objective())
    found = calibrate(UNHELPED, Objective(), [NAN, 0])
    assert without.give_up.tolist() == [0, 0]
    assert 0.1 < found.give_up[0] < 0.4
    assert found.give_up[1] == 0
    assert found.expected["accuracy"] == without.expected["accuracy"] == 0.75
    # 10 answers of 10 and 20 of 30; the 10 that no insight helps cost 10, or with the insight 30
    assert found.expected["cost_vs_mentor"] == pytest.approx((10 * 10 + 20 * 30 + 10 * 10) / 40 / 40)
    assert without.expected["cost_vs_mentor"] == pytest.approx((10 * 10 + 20 * 30 + 10 * 30) / 40 / 40)
    assert calibrate(UNHELPED, Objective("budget", 0.51), [NAN, NAN]).expected["accuracy"] == 0.75
    assert calibrate(UNHELPED, Objective("budget", 0.51)).expected["accuracy"] < 0.75
    assert calibrate(UNHELPED, Objective(), [0.15, 0.0]).give_up.tolist() == [0.15, 0]


def test_where_giving_up_gains_nothing_the_thresholds_are_those_without():
    """If accuracies were smoothed over give-up limits, too, 0.56 would be chosen here."""
    found, aim = synthetic(200, 2, seed=4), Objective("budget", 0.45)
    without, asked = calibrate(found, aim), calibrate(found, aim, [NAN, NAN])
    assert asked.thresholds.tolist() == without.thresholds.tolist()
    assert asked.give_up.tolist() == [0, 0]


def test_a_certified_path_gives_up_where_that_saves_and_loses_nothing():
    asked, found = [NAN, NAN], replace(UNHELPED, fallback="mentor")
    for loss in ("lost-correct", "net"):
        plain, lower = (along(found, path_of(found, loss, limits)) for limits in (0.0, asked))
        assert plain.losses(loss)[:, 0].mean() == lower.losses(loss)[:, 0].mean() == 0
        assert lower.shares[0] < plain.shares[0]  # the mentor without having written an insight
        for lost, share in zip(plain.losses(loss).mean(axis=0), plain.shares, strict=True):
            better = (lower.losses(loss).mean(axis=0) <= lost + 1e-9) & (lower.shares <= share + 1e-9)
            assert better.any()
    # nothing lost: 10 alone, 20 with an insight, 10 by the mentor once the question is read
    assert lower.shares[0] == pytest.approx((10 * 10 + 20 * 30 + 10 * 42) / 40 / 40)


def test_only_judged_levels_can_be_calibrated():
    assert limits_of(None, ["none", "low"]).tolist() == [0, 0]
    found = limits_of({"none": "calibrated", "low": 0.2}, ["none", "low"])
    assert np.isnan(found[0])
    assert found[1] == 0.2
    with pytest.raises(
        ConfigError, match="`give_up` is `calibrated` at 'none', but only low, high are judged"
    ):
        limits_of({"none": "calibrated"}, ["low", "high"])


# The artifact, the strategy, the pipeline


def configured(*changes, engine="numpy"):
    options = (f"ensemble.output_aggregation_params.{change}" for change in changes)
    return Config.read(builtin.CONFIG, [f"model_specs.{at}.engine={engine}" for at in (0, 1)] + [*options])


def test_a_judge_keeps_its_limits_the_file_has_the_last_word_and_older_judges_never_give_up(tmp_path):
    judge = JudgeArtifact(
        EntropyRule(1.0), thresholds={"none": 0.9, "low": 0.8}, give_up={"none": 0.2, "low": 0.1}
    )
    judge.save(tmp_path)
    assert load_judge(tmp_path).give_up == {"none": 0.2, "low": 0.1}

    def limits(*changes):
        _, tandem = Pipeline(configured(f"judge={tmp_path}", *changes)).ensemble()
        return list(tandem.give_up_limits.values())

    assert limits() == limits("give_up={low: calibrated}") == [0.2, 0.1, 0, 0]
    assert limits("give_up={none: 0, medium: 0.3}") == [0, 0.1, 0.3, 0]
    assert limits("draft=logprob") == [0, 0.1, 0, 0]  # level none was another thing's
    replace(judge, give_up=None).save(tmp_path)
    assert "give_up" not in json.loads((tmp_path / "judge.json").read_text())
    assert limits() == limits("give_up={none: calibrated}") == [0, 0, 0, 0]
    replace(judge, levels={"none": 0, "low": 9}, give_up={"lwo": 0.2}).save(tmp_path)
    with pytest.raises(ArtifactError, match=r"give_up: .*did you mean 'low'"):
        load_judge(tmp_path)
    with pytest.raises(ConfigError, match="give_up"):
        limits("give_up={none: sometimes}")


FIRST = "thresholds={none: 0.8, low: 0.95, medium: 0.9, high: 0.9}"
CASES = {
    "best": ("start_with_intern=true", FIRST, "give_up={none: 0.1, low: 0.3, medium: 0.6}"),
    "mentor": ("start_with_intern=true", FIRST, "give_up={none: 0.05, medium: 0.6}"),
    "last": (
        "start_with_intern=false",
        "thresholds={low: 0.95, medium: 0.9, high: 0.9}",
        "give_up={low: 0.3, medium: 0.6}",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("fallback", CASES)
def test_the_built_in_pair_gives_up_where_the_replay_does(fallback):
    pipeline = Pipeline(configured(f"fallback={fallback}", *CASES[fallback]))
    data = pipeline.collected("test").part(list(range(8)))
    ensemble, tandem = pipeline.ensemble()

    async def live():
        async with ensemble:
            items = pipeline.items("test", 8)
            return [await run_live(ensemble, pipeline.task, item, pipeline.sampling) for item in items]

    runs = asyncio.run(live())
    check = replayed.against_live(data, tandem, runs)
    assert (check.checked, check.levels, check.correct, check.texts) == (8, 8, 8, 8)
    levels = [checkpoint.level for checkpoint in tandem.checkpoints]
    found = outcomes(data, tandem.artifact.judge, levels, fallback)
    found = found.giving_up([tandem.give_up_limits[level] for level in levels])
    visits = [len(run.probabilities) for run in runs]
    assert found.ends([point.threshold for point in tandem.checkpoints]).tolist() == [
        count - 1 for count in visits
    ]
    assert len(set(visits)) > 1
    run = replay(found, [point.threshold for point in tandem.checkpoints])
    # an intern reads a token more at every checkpoint than is charged, and the mentor's prompts share some
    assert run.cost == pytest.approx(np.array([line.flops for line in runs]), rel=0.01)
    read_once = (np.array(visits) == 1) & (run.chosen != MENTOR)
    assert run.cost[read_once].tolist() == [
        line.flops for line, once in zip(runs, read_once, strict=True) if once
    ]


@pytest.mark.slow
def test_where_to_give_up_is_calibrated_kept_by_the_judge_and_reported(tmp_path):
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    path = tmp_path / "echo.yaml"
    path.write_text(YAML.replace("experiment:", GIVING_UP).format(folder=tmp_path))
    pipeline = Pipeline(Config.read(path))
    for split in ("train", "calibration", "test"):
        data = pipeline.collect(split, 80)
    pipeline.train()
    chosen, kept = pipeline.calibrate("max-accuracy"), load_judge(tmp_path / "judge")
    assert (kept.thresholds, kept.give_up or {}) == (chosen["thresholds"], chosen["give_up"])
    said = outcomes(data, kept.judge, ["none", "low", "high"], "mentor").probabilities[:, 0]
    limit = float(said.min() + said.max()) / 2
    replace(kept, thresholds={"none": 1.01, "low": 0, "high": 0}, give_up={"none": limit}).save(
        tmp_path / "judge"
    )
    levels = [run.chosen for run in pipeline.evaluate(40)]
    assert levels == ["mentor" if value < limit else "low" for value in said[:40]]
    assert set(levels) == {"mentor", "low"}
    assert "the same level on 40, equally right on 40, the same text on 40" in pipeline.report()
    assert f"; given up below none {limit:.3f})" in pipeline.report_replayed([str(tmp_path / "judge")])
