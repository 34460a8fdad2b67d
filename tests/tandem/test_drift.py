"""The drift test by hand, its false alarms, and how soon it notices."""

import random

import pytest

from ensemblehub.tandem import drift
from ensemblehub.tandem.drift import BINS, DriftTest, bin_of, histogram


def test_bins():
    assert [bin_of(score) for score in (0.0, 0.499, 0.5, 1.0, -0.1, 1.01)] == [0, 49, 50, 99, 0, 99]
    counts = histogram([0.1, 0.1, 0.999])
    assert (counts[10], counts[99], sum(counts), len(counts)) == (2, 1, 3, BINS)


def test_a_score_by_hand(monkeypatch):
    """Of 3 reference scores one is larger and one equal; the new one makes it 2 equal of 4."""
    test = DriftTest(histogram([0.9, 0.5, 0.1]))
    monkeypatch.setattr(test._random, "random", lambda: 0.25)
    test.add(0.5)
    off = (1 + 0.25 * 2) / 4 - 0.5  # p = 0.375
    # three bets of a third; what jumps stays a third at the first score
    assert test.evidence == pytest.approx((1 + (1 - off) + (1 + off)) / 3)
    test.add(0.95)
    p = 0.25 / 5
    parts = [(0.99 * part + 0.01 / 3) for part in ((1 - off) / 3, 1 / 3, (1 + off) / 3)]
    wanted = sum(part * (1 + bet * (p - 0.5)) for part, bet in zip(parts, drift.BETS, strict=True))
    assert test.evidence == pytest.approx(wanted)


def draws(seed, mean):
    source = random.Random(seed)
    while True:
        yield min(max(source.gauss(mean, 0.2), 0), 1)


def first_alarm(seed, before, after, at, most, rate=drift.RATE):
    """The score at which it alarms, of `most`, where the mean changes from `before` to `after`."""
    usual, other = draws(seed, before), draws(-seed - 1, after)
    test = DriftTest(histogram([next(usual) for _ in range(500)]), rate, seed + 10**6)
    for index in range(most):
        if test.add(next(usual if index < at else other)):
            return index
    return None


def test_false_alarms_are_as_rare_as_stated():
    """400 streams of 500 scores from the reference's distribution: at most 10 % alarm, plus three deviations."""
    alarms = sum(first_alarm(seed, 0.6, 0.6, 500, 500, rate=0.1) is not None for seed in range(400))
    assert alarms / 400 <= 0.1 + 3 * (0.1 * 0.9 / 400) ** 0.5


@pytest.mark.parametrize("after", [0.5, 0.7])
def test_half_a_deviation_is_noticed_within_hundreds_of_questions(after):
    delays = [first_alarm(seed, 0.6, after, 0, 1000) for seed in range(20)]
    assert all(delay is not None for delay in delays)
    assert sorted(delays)[10] < 150


def test_it_notices_after_a_long_time_without_drift():
    delays = [first_alarm(seed, 0.6, 0.45, 2000, 3000) for seed in range(2, 7)]
    assert all(2000 < delay < 2600 for delay in delays)


def test_every_period_begins_anew_and_an_alarm_stays(monkeypatch):
    monkeypatch.setattr(drift, "PERIOD", 50)
    test = DriftTest(histogram([0.2] * 100 + [0.3] * 100))
    raised = [test.add(0.9) for _ in range(51)]
    assert raised.count(True) == 1
    assert test.alarmed
    assert test.evidence < 2  # one score into the second period
