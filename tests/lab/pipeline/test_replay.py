"""Costs of collected runs in dollars, by hand."""

from dataclasses import replace

import numpy as np
import pytest

from ensemblehub.cost import ModelInfo, Price
from ensemblehub.lab.pipeline.cascade import replay as cascade
from ensemblehub.lab.pipeline.records import Collected, DraftScore, Row, Run
from ensemblehub.lab.pipeline.replay import in_dollars, outcomes
from ensemblehub.tandem.judges import EntropyRule

LEVELS = ["none", "low"]


def run(mentor_read, mentor_tokens, intern_read, intern_tokens):
    return Run(True, "stop", mentor_read, mentor_tokens, intern_read, intern_tokens, 0.1, False, "")


@pytest.fixture
def data():
    """One question; the mentor writes 20 tokens of insight on a prompt of 50, or 300 alone."""
    runs = {"none": run(0, 0, 40, 100), "low": run(50, 20, 65, 80), "mentor": run(50, 300, 0, 0)}
    cards = {name: {"parameters": size, "active": size} for name, size in (("mentor", 9), ("intern", 1))}
    header = {"levels": {"none": 0, "low": 20}, "cards": cards}
    sequences = [[np.ones((2, 4), np.float16)] * 2]
    return Collected(header, [Row("a", "s", 1, 1, "", 5, runs)], np.ones((1, 2, 16), np.float32), sequences)


def test_dollars_by_hand(data):
    assert ModelInfo(**data.header["cards"]["mentor"]).price is None
    judged = outcomes(data, EntropyRule(1.0), LEVELS, "mentor")
    found = in_dollars(judged, data, LEVELS, Price(2, 10), Price(0.1, 0.4))
    # per million: the intern alone 40 · 0.1 + 100 · 0.4; at low 50 · 2 + 20 · 10 for the insight,
    # 65 · 0.1 + 80 · 0.4 for the answer
    assert found.cost[0] * 1e6 == pytest.approx([44, 300 + 38.5])
    assert found.judging[0] * 1e6 == pytest.approx(
        [4, 4 + 6.5]
    )  # prompts that the intern reads for the judge
    assert found.mentor_cost[0] * 1e6 == pytest.approx(50 * 2 + 300 * 10)
    assert cascade(found, [0.0, 0.0]).cost[0] * 1e6 == pytest.approx(48)
    assert cascade(found, [2.0, 0.0]).cost[0] * 1e6 == pytest.approx(349)
    assert cascade(found, [2.0, 2.0]).cost[0] * 1e6 == pytest.approx(
        300 + 10.5 + 3100
    )  # then the mentor by itself
    assert found.unit == found.part(np.array([True])).unit == "usd"


def test_an_intern_that_runs_here_costs_no_dollars(data):
    judged = outcomes(data, EntropyRule(1.0), LEVELS, "best")
    found = in_dollars(judged, data, LEVELS, Price(2, 10), Price(0, 0))
    assert found.cost[0] * 1e6 == pytest.approx([0, 300])
    assert not found.judging.any()


def test_flops_of_checkpoints_by_hand(data):
    found = outcomes(data, EntropyRule(1.0), LEVELS, "mentor")
    insight = 18 * (50 + 19)
    # Read: the whole prompt; of the question's checkpoint five closing tokens, and one that predicts the next.
    read = 2 * (65 + 5 + 1)
    assert cascade(found, [2.0, 0.0]).cost[0] == insight + read + 2 * (1 + 79)  # the last token once more
    assert cascade(found, [2.0, 2.0]).cost[0] == insight + read + 18 * (50 + 299)
    (row,) = data.rows
    equal = {name: replace(run, cut=0) for name, run in row.runs.items()}
    again = outcomes(replace(data, rows=[replace(row, runs=equal)]), EntropyRule(1.0), LEVELS, "mentor")
    assert cascade(again, [2.0, 0.0]).cost[0] == insight + 2 * (65 + 1 + 79)  # a known prompt costs nothing


@pytest.fixture
def drafted(data):
    """The same with a draft whose criterion asks the mentor and two more samples of the intern."""
    score = DraftScore(0.7, flops=5e6, mentor_read=10, mentor_tokens=1, intern_read=80, intern_tokens=200)
    return replace(data, rows=[replace(data.rows[0], draft=score)])


def test_flops_of_a_draft_by_hand(drafted):
    found = outcomes(drafted, EntropyRule(1.0), LEVELS, "best", drafted=True)
    assert found.probabilities[0] == pytest.approx([0.7, 0.5])
    # Two FLOPs a token of the intern, 18 of the mentor.  The draft: 40 read, 99 more passes to write 100.
    kept = 2 * (40 + 99) + 5e6
    # After it: the insight, its whole prompt, the last token of that once more, and the answer.
    anew = kept + 18 * (50 + 19) + 2 * (65 + 1 + 79)
    assert cascade(found, [0.7, 0.0]).cost[0] == kept
    assert cascade(found, [0.8, 0.5]).cost[0] == anew
    unread = cascade(found, [0.8, 0.6])
    assert (unread.chosen[0], unread.cost[0]) == (1, anew)  # the best insight, not the likelier draft
    mentor = cascade(replace(found, fallback="mentor"), [0.8, 0.6])
    assert mentor.cost[0] == anew - 2 * (1 + 79) + 18 * (50 + 299)  # nothing is read once more
    ended = replace(found, visited=np.array([[True, False]]))
    assert cascade(ended, [0.8, 0.6]).chosen[0] == 0
    assert cascade(ended, [0.8, 0.6]).cost[0] == kept


def test_a_question_that_the_drafts_judge_has_read_is_not_read_again(data):
    score = DraftScore(
        0.7, flops=2.0 * 40 + 3, mentor_read=0, mentor_tokens=0, intern_read=40, intern_tokens=0
    )
    row = replace(data.rows[0], draft=replace(score, question_flops=2.0 * 40))
    found = outcomes(replace(data, rows=[row]), EntropyRule(1.0), LEVELS, "best", drafted=True)
    kept = 2 * (40 + 99) + 2 * 40 + 3  # the draft, then the question for the judge of drafts
    assert cascade(found, [0.7, 0.0]).cost[0] == kept
    # The insight; of its prompt what is new, the 5 closing tokens of the template and the one before among it;
    # the answer.
    anew = kept + 18 * (50 + 19) + 2 * (65 - 40 + 6) + 2 * (1 + 79)
    assert cascade(found, [0.8, 0.5]).cost[0] == anew


def test_dollars_of_a_draft_by_hand(drafted):
    judged = outcomes(drafted, EntropyRule(1.0), LEVELS, "best", drafted=True)
    found = in_dollars(judged, drafted, LEVELS, Price(2, 10), Price(0.1, 0.4))
    kept = 40 * 0.1 + 100 * 0.4 + (10 * 2 + 10) + (80 * 0.1 + 200 * 0.4)
    assert cascade(found, [0.7, 0.0]).cost[0] * 1e6 == pytest.approx(kept)
    assert cascade(found, [0.8, 0.5]).cost[0] * 1e6 == pytest.approx(kept + 300 + 6.5 + 38.5)
