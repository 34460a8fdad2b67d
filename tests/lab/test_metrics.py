"""The statistics against numbers worked out by hand."""

import math

import numpy as np
import pytest

from ensemblehub.lab import metrics


def test_wilson_interval_of_half_of_a_hundred():
    # centre 0.5 and half-width 1.96 · sqrt(0.25/100 + 3.8416/40000) / (1 + 3.8416/100) = 0.0962
    assert metrics.wilson_interval(50, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)


def test_wilson_interval_stays_a_share_at_the_ends():
    low, high = metrics.wilson_interval(10, 10)
    assert (low, high) == pytest.approx((0.7225, 1.0), abs=1e-4)
    assert metrics.wilson_interval(0, 0) == (0.0, 1.0)


def test_paired_bootstrap_of_equal_answers_is_nothing():
    answers = np.array([1, 0, 1, 1, 0])
    assert metrics.paired_bootstrap(answers, answers) == (0.0, 0.0)


def test_paired_bootstrap_matches_the_normal_interval_and_its_seed():
    first, second = np.tile([1, 1, 1, 0], 250), np.tile([1, 0, 0, 1], 250)
    low, high = metrics.paired_bootstrap(first, second)
    # differences 0, 1, 1, −1: mean 0.25, variance 0.75 − 0.0625 = 0.6875
    half = 1.96 * math.sqrt(0.6875 / 1000)
    assert (low, high) == pytest.approx((0.25 - half, 0.25 + half), abs=0.004)
    assert metrics.paired_bootstrap(first, second) == (low, high)


def test_the_interval_of_a_ratio_by_hand_and_on_draws():
    # a - 1 · b is -1 and +1: a spread of 1.96 · 1 / (2 · sqrt(2))
    assert metrics.ratio_interval([1, 3], [2, 2]) == pytest.approx((1 - 0.693, 1 + 0.693), abs=1e-3)
    random, inside = np.random.default_rng(0), 0
    for _ in range(400):
        base = random.gamma(4, size=200)
        low, high = metrics.ratio_interval(0.5 * base * random.gamma(9, 1 / 9, size=200), base)
        inside += low <= 0.5 <= high
    assert 0.92 < inside / 400 < 0.98


def test_calibration_error_of_two_bins_by_hand():
    # sorted: 0.1, 0.2 | 0.8, 0.9 with labels 0, 1 | 1, 1: |0.5 − 0.15| and |1 − 0.85|, half the weight each
    error = metrics.calibration_error([1, 0, 1, 1], [0.2, 0.1, 0.9, 0.8], bins=2)
    assert error == pytest.approx(0.5 * 0.35 + 0.5 * 0.15)


def test_calibration_error_with_fewer_answers_than_bins():
    assert metrics.calibration_error([1, 0], [0.75, 0.5]) == pytest.approx((0.25 + 0.5) / 2)


def test_judge_report_by_hand():
    pytest.importorskip("sklearn")
    report = metrics.judge_report([1, 1, 0, 0], [0.9, 0.4, 0.6, 0.1])
    assert report["auc"] == 0.75  # of the four pairs only (0.4, 0.6) is out of order
    assert report["f1"] == 0.5  # one right of two said, one found of two true
    assert report["brier"] == pytest.approx((0.01 + 0.36 + 0.36 + 0.01) / 4)
    assert report["brier_base_rate"] == 0.25


def test_judge_report_of_one_label_has_no_auc():
    pytest.importorskip("sklearn")
    assert math.isnan(metrics.judge_report([1, 1], [0.5, 0.6])["auc"])


@pytest.mark.parametrize("n", [*range(1, 200), 500, 1319, 2000, 10**6])
def test_an_interval_holds_its_share_and_stays_within_0_and_1(n):
    # at n = 10, 38, 164 the plain formula gives 0.9999999999999999 for all right
    for right in {0, 1, n // 3, n - 1, n}:
        low, high = metrics.wilson_interval(right, n)
        assert 0 <= low <= right / n <= high <= 1
    assert metrics.wilson_interval(0, n)[0] == 0
    assert metrics.wilson_interval(n, n)[1] == 1


# Table 1 of the paper: method, inference length L_L + L_S, TFLOPs.  The mentor's share of the length is not
# printed; it follows from the other two and lands on the levels' own budgets.
GUIDED = [("low", 2735, 44.76, 100), ("medium", 2853, 71.96, 500), ("high", 2930, 104.62, 1000)]


def test_paper_table_1_single_models():
    assert metrics.paper_flops(0, 0, 7e9, 2732) / 1e12 == pytest.approx(38.25, abs=0.005)
    assert metrics.paper_flops(32e9, 2630, 0, 0) / 1e12 == pytest.approx(168.35, abs=0.04)


@pytest.mark.parametrize(("level", "length", "tflops", "budget"), GUIDED)
def test_paper_table_1_guided(level, length, tflops, budget):
    mentor = (tflops * 1e12 / 2 - 7e9 * length) / 32e9
    assert mentor == pytest.approx(budget, rel=0.02), level
    assert metrics.paper_flops(32e9, mentor, 7e9, length - mentor) / 1e12 == pytest.approx(tflops, abs=0.01)
