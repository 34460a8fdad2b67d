"""Replayed judges beside what they have to beat."""

import numpy as np
import pytest

from ensemblehub.lab.pipeline.replayed import OVER_FIXED, OVER_MIX, compared
from ensemblehub.lab.pipeline.report import MethodRuns


def runs(method, correct, flops):
    right = np.array(correct, float)
    return MethodRuns(method, {}, right, *[right * 0] * 2, right * 0 + flops, *[right * 0] * 5)


def test_a_row_is_compared_with_the_mix_at_its_cost_and_the_best_level():
    rows = [
        runs("intern", [1, 0, 0, 0], 1),
        runs("mentor", [1, 1, 1, 0], 5),
        runs("fixed_low", [1, 1, 0, 0], 4),
        runs("fixed_high", [1, 0, 0, 0], 6),
        runs("judge", [1, 1, 0, 1], 3),
    ]
    intern, mentor, low, high, judge = compared(rows)
    assert judge[OVER_MIX] == pytest.approx(0.25)  # half of each model is right on 1, 1/2, 1/2 and 0 of 4
    assert judge[OVER_FIXED] == pytest.approx(0.25)
    assert (intern[OVER_MIX], mentor[OVER_MIX], low[OVER_FIXED]) == (0, 0, 0)
    assert judge[f"{OVER_MIX}_low"] <= 0.25 <= judge[f"{OVER_MIX}_high"]
    assert OVER_MIX not in high  # no mix costs that
