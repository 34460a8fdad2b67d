"""The 16 numbers a judge sees, worked out by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemblehub.errors import RequestError
from ensemblehub.schema import ScoredToken
from ensemblehub.tandem.features import FEATURE_NAMES, features, sequences


def read(*pairs):
    return [ScoredToken("x", 1, logprob, entropy, 0, 0, 1) for logprob, entropy in pairs]


def named(perplexity, entropy):
    return dict(
        zip(FEATURE_NAMES, features(np.array(perplexity, float), np.array(entropy, float)), strict=True)
    )


def test_there_are_sixteen_names_perplexity_first():
    assert len(FEATURE_NAMES) == len(set(FEATURE_NAMES)) == 16
    assert FEATURE_NAMES[0] == "perplexity_mean"
    assert FEATURE_NAMES[15] == "entropy_trend"


def test_sequences_leave_out_tokens_without_a_prediction():
    perplexity, entropy = sequences(read((None, None), (math.log(0.5), 0.3), (0.0, 0.0)))
    assert perplexity == pytest.approx([2.0, 1.0])
    assert entropy.tolist() == [0.3, 0.0]


def test_perplexity_is_clipped_at_a_thousand_without_overflow():
    perplexity, _ = sequences(read((-5000.0, 1.0), (-math.inf, 1.0), (-math.log(999), 1.0)))
    assert perplexity == pytest.approx([1000.0, 1000.0, 999.0])


def test_nothing_to_read_is_a_clear_error():
    with pytest.raises(RequestError, match="nothing to judge"):
        sequences(read((None, None)))


def test_statistics_by_hand():
    found = named([1, 2, 3, 10], [4, 0, 2, 2])
    expected = {
        "mean": 4,
        "std": math.sqrt(12.5),
        "median": 2.5,
        "max": 10,
        "min": 1,
        "p25": 1.75,
        "p75": 4.75,
    }
    assert {name: found[f"perplexity_{name}"] for name in expected} == pytest.approx(expected)
    assert found["perplexity_trend"] == pytest.approx(6.5 - 1.5)
    assert found["entropy_mean"] == 2
    assert found["entropy_std"] == pytest.approx(math.sqrt(2))
    assert found["entropy_trend"] == pytest.approx(0)


@pytest.mark.parametrize(
    ("values", "trend"),
    [
        ([5.0], 0.0),
        ([1.0, 2.0, 6.0], 3.0),  # the middle token belongs to the second half
        ([1.0] * 19 + [3.0] * 20, 2.0),  # 39 tokens: halves of 19 and 20
        ([1.0] * 20 + [3.0] * 20, 2.0),  # exactly 40
        ([0.0] * 20 + [100.0] * 7 + [1.0] * 20, 1.0),  # the middle does not count from 40 on
    ],
)
def test_trend(values, trend):
    assert named(values, values)["entropy_trend"] == pytest.approx(trend)


@given(st.lists(st.tuples(st.floats(-50, 0), st.floats(0, 12)), min_size=1, max_size=90))
def test_features_are_finite_and_in_order(pairs):
    found = named(*sequences(read(*pairs)))
    for of in ("perplexity", "entropy"):
        ordered = [found[f"{of}_{name}"] for name in ("min", "p25", "median", "p75", "max")]
        assert ordered == sorted(ordered)
        assert math.isfinite(found[f"{of}_trend"])
        assert found[f"{of}_std"] >= 0
