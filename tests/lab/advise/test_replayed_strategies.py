"""Strategies over samples by hand, which judges are replayed, and all of them live on the built-in pair."""

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.advise_replay import compared
from ensemblehub import builtin
from ensemblehub.config import Config
from ensemblehub.ensemble import AsyncEnsemble
from ensemblehub.lab.advise.escalations import escalations, thinking
from ensemblehub.lab.advise.levels import trained
from ensemblehub.lab.advise.pair import trained_judge, with_rule
from ensemblehub.lab.advise.record import InternAnswer, Recorded
from ensemblehub.lab.advise.samples import _vote, _voted, best_of
from ensemblehub.lab.advise.strategies import NO_THINKING, strategies
from ensemblehub.lab.advise.strategy import SHOWN_TESTS, limits_of, thresholds_of
from ensemblehub.lab.pipeline.records import Collected, Row, Run
from ensemblehub.lab.tasks import task_named
from ensemblehub.schema import Price
from ensemblehub.tandem.features import FEATURE_NAMES
from ensemblehub.tandem.judges import EntropyRule


def drawn(answers, passed=()):
    runs = [Run(answer == "9", "stop", 0, 0, 2, 3, 0.0, False, "") for answer in answers]
    tests = passed or [None] * len(answers)
    return [
        InternAnswer(run, answer, None, share)
        for run, answer, share in zip(runs, answers, tests, strict=True)
    ]


@pytest.mark.parametrize(
    ("answers", "at_once", "singly", "in_pairs"),
    [
        (["9", "4", "9", "9"], (0, 4), (0, 3), (0, 4)),  # after three, the last could only make a tie
        (["4", "4", "9", "9"], (0, 4), (0, 2), (0, 2)),  # a tie goes to the first
        (["4", "9", "9", "9"], (1, 4), (1, 4), (1, 4)),
        ([None, "9", "4", "4"], (2, 4), (2, 4), (2, 4)),
        ([None, None, None, None], (0, 4), (0, 4), (0, 4)),
    ],
)
def test_a_vote_draws_what_it_needs(answers, at_once, singly, in_pairs):
    found = [_voted(drawn(answers), 4, window) for window in (None, 1, 2)]
    assert found == [at_once, singly, in_pairs]


def test_samples_of_a_later_window_find_their_prompt_in_the_cache():
    recorded = SimpleNamespace(
        drafts=[[*drawn(["9"]), *drawn(["9", "4", "9", "9"])]],
        name=lambda role: role,
        cost=lambda run: 5,
        repeated_cost=lambda run: 3,
    )
    ways = [("", {"samples": 4}), ("", {"samples": 4, "window": 1}), ("", {"samples": 4, "window": 2})]
    found = _vote(recorded, "vote", ways)
    assert found.cost.tolist() == [[4 * 5, 5 + 2 * 3, 2 * 5 + 2 * 3]]  # one at a time, three are enough


def test_of_samples_that_pass_equally_many_tests_the_first_is_given():
    rows = [(["4", "9", "9"], [0.5, 0.5, 1.0]), (["9", "4", "4"], [0.0, 0.0, 0.0])]
    greedy, cut = drawn(["4"]), drawn(["4", "9", "9"], [1.0, 0.5, 0.0])
    cut[0] = replace(cut[0], run=replace(cut[0].run, finish="length"))
    recorded = SimpleNamespace(
        drafts=[*([*greedy, *drawn(answers, passed)] for answers, passed in rows), [*greedy, *cut]],
        name=lambda role: role,
        cost=lambda run: run.intern_tokens,
        repeated_cost=lambda run: run.intern_tokens,
    )
    (strategy,) = best_of(recorded)
    assert [title for title, _ in strategy.settings] == ["2 samples", "3 samples"]
    assert strategy.correct.tolist() == [[0, 1], [1, 1], [1, 1]]
    assert strategy.cost.tolist() == [[6, 9], [6, 9], [6, 9]]


@pytest.mark.parametrize(
    ("split", "changes", "said"),
    [
        ("test", [], ""),
        ("train", [], "it was trained on questions of builtin_math (train), which are asked"),
        ("test", ["ensemble.output_aggregation_params.levels={low: 7}"], "made for levels"),
        ("test", ["ensemble.output_aggregation_params.judge=nowhere"], "no judge in nowhere"),
        ("test", ["ensemble.output_aggregation_params.judge=entropy:1.0"], None),
    ],
)
def test_a_trained_judge_of_this_pair_is_replayed(split, changes, said, caplog):
    config = Config.read(Path(builtin.CONFIG), [f"model_specs.{at}.engine=numpy" for at in (0, 1)] + changes)
    ensemble = AsyncEnsemble.from_config(with_rule(config))
    tandem = ensemble.aggregation
    found = trained_judge(config, tandem, *tandem.roles(ensemble.engines), ("builtin_math", split))
    assert (found is None) == (said != "")
    assert (said or "") in caplog.text
    if found:
        assert found[0] == "builtin:judge"


@pytest.mark.slow
def test_the_built_in_pair_answers_and_costs_as_it_was_replayed(tmp_path):
    """Answers are cut short, for time; `benchmarks.advise_replay` has whole ones."""
    changes = [f"model_specs.{at}.engine=numpy" for at in (0, 1)]
    more = ["ensemble.generation.seed=0", "ensemble.generation.max_tokens=60"]
    config = Config.read(Path(builtin.CONFIG), [*changes, *more])
    rows = compared(config, task_named("builtin_math", None, "plain"), "test", 10, tmp_path, 10)
    assert [row for row in rows if not row.whole] == []
    assert {
        "tandem by its trained judge",
        "tandem with draft by entropy",
        "mentor, thinking where it is unsure",
        "cascade by log-probability, lost questions by entropy",
    } < {row.strategy for row in rows}


def test_a_trained_judge_is_served_without_what_was_calibrated_to_give_up():
    """It is replayed without; the judge's folder may have it."""

    def run(mentor_tokens, intern_read):
        return Run(True, "stop", 50 if mentor_tokens else 0, mentor_tokens, intern_read, 80, 0.1, False, "")

    runs = {"none": run(0, 40), "low": run(20, 65), "mentor": run(300, 0)}
    cards = {name: {"parameters": size, "active": size} for name, size in (("mentor", 9), ("intern", 1))}
    readings = [[np.full((2, 4), value, np.float16) for value in (1.0, 2.0)] for _ in range(2)]
    table = np.array([[[1.0] * 16, [2.0] * 16], [[3.0] * 16, [4.0] * 16]], np.float32)
    rows = [Row(name, "s", 1, 1, "", 5, runs) for name in "ab"]
    collected = Collected({"levels": {"none": 0, "low": 20}, "cards": cards}, rows, table, readings)
    (found,) = trained(Recorded(collected, [[], []], judge=("saves/judge", EntropyRule(1.0))), slice(None))
    for _, changes in found.settings:
        params = "ensemble.output_aggregation_params"
        assert changes[f"{params}.give_up"] == {"none": 0.0, "low": 0.0}
        assert changes[f"{params}.judge"] == "saves/judge"


def thinking_rows(**changes):
    """Three questions: a doubtful answer without thinking, a probable one, and one that was cut off."""

    def run(right, read, tokens, probability, finish="stop"):
        return Run(right, finish, read, tokens, 0, 0, 0.1, False, "9", logprob=math.log(probability))

    short = [run(False, 20, 10, 0.9), run(True, 20, 12, 0.99), run(False, 20, 8, 0.999, "length")]
    long = [run(True, 21, 30, 0.8), run(False, 21, 40, 0.8), run(True, 21, 50, 0.8)]
    rows = [
        Row(name, "s", 1, 1, "", 5, {"mentor": long[at], "mentor_concise": short[at]}, shared=30 - 10 * at)
        for at, name in enumerate("abc")
    ]
    return [replace(rows[0], **changes), *rows[1:]]


def recorded_rows(rows, prices=None):
    cards = {name: {"parameters": size, "active": size} for name, size in (("mentor", 9), ("intern", 1))}
    header = {"levels": {"none": 0}, "cards": cards, "roles": {"mentor": "big", "intern": "small"}}
    return Recorded(Collected(header, rows, np.zeros((3, 1, 0), np.float32), [[]] * 3), [[]] * 3, prices)


def test_a_mentor_that_thinks_where_it_is_unsure():
    (found,) = thinking(recorded_rows(thinking_rows()), slice(None))
    at = [changes["ensemble.output_aggregation_params"]["threshold"] for _, changes in found.settings]
    chosen = next(index for index, limit in enumerate(at) if 0.9 < limit <= 0.99)
    assert found.correct[:, chosen].tolist() == [1, 1, 1]
    # 18 FLOPs a token; all of a prompt but its last token may be known already
    assert found.cost[:, chosen].tolist() == [18 * (29 + 50 - 20), 18 * 31, 18 * (27 + 70 - 10)]
    assert found.settings[chosen][1]["ensemble.models"] == ["big"]
    price = Price(1e6, 1e6)  # a dollar a token: every prompt is paid for
    (found,) = thinking(recorded_rows(thinking_rows(), (price, price)), slice(None))
    assert found.cost[:, chosen].tolist() == pytest.approx([30 + 51, 32, 28 + 71])


ENTROPIES, PROBABILITIES = (4.0, 1.0, 2.0), (0.5, 0.3, 0.4)  # of three questions, and of the drafts


def with_lost(*given, **named):
    return {
        strategy.name: strategy for strategy in escalations(recorded_drafts(*given, **named), slice(None))
    }


def recorded_drafts(prices=None, reading=True, samples=((), (), ()), short=None, **criteria):
    """Three questions that the mentor alone answers right.

    Args:
        samples: further answers of the intern.
        short: the mentor's answers without thinking; None: it has no switch.
        criteria: fields of its drafts, one value a question.
    """
    rows, drafts = [], []
    for at, entropy in enumerate(ENTROPIES):
        mentor, own = (
            Run(True, "stop", 50, 20, 0, 0, 0.1, False, ""),
            Run(False, "stop", 0, 0, 40, 10, 0.1, False, ""),
        )
        runs = {"none": own, "mentor": mentor, "mentor_concise": short[at] if short else mentor}
        rows.append(Row("abc"[at], "s", 1, 1, "", 5, runs, thinking_switch=bool(short)))
        features = [entropy if name == "entropy_mean" else 0.0 for name in FEATURE_NAMES]
        read = {"reading": features, "read": 38} if reading else {}
        given = {"logprob": math.log(PROBABILITIES[at])} | {name: of[at] for name, of in criteria.items()}
        drafts.append([InternAnswer(own, "9", **given, **read), *drawn(samples[at])])
    return replace(recorded_rows(rows, prices), drafts=drafts)


def test_a_draft_is_kept_where_the_question_is_lost():
    found = with_lost()["cascade by log-probability, lost questions by entropy"]
    for at, (title, changes) in enumerate(found.settings):
        options = changes["ensemble.output_aggregation_params"]
        limit, enough = float(options["lost"].removeprefix("entropy:")), options["threshold"]
        kept = [
            probability >= enough or entropy > limit
            for entropy, probability in zip(ENTROPIES, PROBABILITIES, strict=True)
        ]
        assert found.correct[:, at].tolist() == [not own for own in kept]
        # 2 FLOPs a token of the intern and 18 of the mentor; the last token of the question is read twice
        assert found.cost[:, at].tolist() == [2 * (1 + 49) + 18 * 69 * (not own) for own in kept]
        assert title == f"logprob from {enough:.3f}, entropy up to {limit:.3g}"
        assert found.scores[:, at] == pytest.approx([limit / (limit + entropy) for entropy in ENTROPIES])
    assert {tuple(right) for right in found.correct.T.tolist()} == {(0, 1, 0), (0, 1, 1)}
    priced = with_lost((Price(1e6, 1e6), Price(1e6, 1e6)))[
        "cascade by log-probability, lost questions by entropy"
    ]
    assert set(priced.cost.ravel().tolist()) <= {38 + 50, 38 + 50 + 70}


def test_every_draft_is_kept_by_no_setting():
    """It would be the intern alone under another name."""
    found = with_lost(samples=(("4", "4"), ("4", "9"), ("9", "9")), tests=(0.0, 0.0, 1.0))
    assert [title for title, _ in found["cascade by shown tests"].settings] == [f"{SHOWN_TESTS} from 1.000"]
    assert found["cascade by shown tests"].correct.tolist() == [[1], [1], [0]]  # all drafts are wrong
    agreement = found["cascade by agreement"]
    assert [title for title, _ in agreement.settings] == ["agreement:2 from 0.500", "agreement:2 from 1.000"]
    assert agreement.correct.tolist() == [[1, 1], [0, 1], [0, 0]]
    # 2 FLOPs a token of the intern, 49 of its draft and 3 of each sample behind the prompt; 18 of the mentor,
    # 69 of its answer
    assert agreement.cost.tolist() == [
        [2 * 55 + 18 * 69 * asked for asked in row] for row in ((1, 1), (0, 1), (0, 0))
    ]
    assert [title for title, _ in found["cascade by log-probability"].settings] == [
        "logprob from 0.400",
        "logprob from 0.500",
    ]
    alike = with_lost(samples=(("9",),) * 3, tests=(1.0, 1.0, 1.0), logprob=(-0.1,) * 3)
    assert [name for name in alike if "cascade" in name] == []


def test_the_lowest_score_of_all_is_no_threshold_and_the_next_one_is():
    few = np.repeat([0.0, 1.0], [99, 1])  # all of its quantiles are 0
    assert thresholds_of(few).tolist() == [1.0]
    assert thresholds_of(np.repeat([0.0, 0.25, 1.0], [50, 10, 40])).tolist() == [0.25, 1.0]
    assert thresholds_of(np.ones(5)).tolist() == thresholds_of(np.array([])).tolist() == []
    assert thresholds_of(np.array([0.5, 0.7]), least=0.1).tolist() == [0.7]
    assert thresholds_of(np.array([0.5, 0.7]), least=0.6).tolist() == [0.7]
    many = np.linspace(0, 1, 33)
    assert thresholds_of(many).tolist() == many[2:-1:2].tolist()
    assert limits_of(np.repeat([1.0, 2.0], [1, 99])).tolist() == [1.00001]
    assert limits_of(np.ones(5)).tolist() == []
    assert limits_of(np.array([1.0, 2.0, 4.0]), most=1.5).tolist() == [1.00001]


def test_a_mentor_that_answers_without_thinking_where_the_draft_is_not_kept():
    """Of three questions it has the second one wrong so, and writes 6 tokens in place of 20."""
    short = [Run(at != 1, "stop", 50, 6, 0, 0, 0.1, False, "") for at in range(3)]
    found = {strategy.name: strategy for strategy in strategies(recorded_drafts(short=short))}
    quiet = found["cascade by log-probability, no thinking"]
    for at, (title, changes) in enumerate(quiet.settings):
        enough = changes["ensemble.output_aggregation_params"]["threshold"]
        asked = [probability < enough for probability in PROBABILITIES]
        assert quiet.correct[:, at].tolist() == [asked[0], 0, asked[2]]
        assert quiet.cost[:, at].tolist() == [2 * 49 + 18 * 55 * more for more in asked]
        assert title == f"logprob from {enough:.3f}"
        assert changes[NO_THINKING] is False
    named = dict(found["cascade by log-probability"].settings)
    assert all(NO_THINKING not in changes for changes in named.values())
    alike = strategies(recorded_drafts())
    assert [strategy.name for strategy in alike if "no thinking" in strategy.name] == []


def test_a_recording_without_readings_lacks_it():
    assert [name for name in with_lost(reading=False) if "lost" in name] == []


def test_without_log_probabilities_or_a_switch_it_is_left_out():
    runs = {name: replace(run, logprob=None) for name, run in thinking_rows()[0].runs.items()}
    for changes in ({"runs": runs}, {"thinking_switch": False}):
        assert list(thinking(recorded_rows(thinking_rows(**changes)), slice(None))) == []
