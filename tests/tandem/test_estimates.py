from dataclasses import asdict

import numpy as np
import pytest

from ensemblehub.lab.judges.curve_fitting import answer_lengths
from ensemblehub.schema import ModelInfo
from ensemblehub.tandem.estimates import estimated_mentor_alone

CARD = ModelInfo(parameters=100, active=100, attention_flops=2.0)


def test_a_line_with_an_interval():
    rng = np.random.default_rng(0)
    prompts = rng.integers(20, 120, 2000)
    stored = asdict(answer_lengths(prompts, 30 + 4 * prompts + rng.normal(0, 10, 2000)))
    assert stored["slope"] == pytest.approx(4, abs=0.05)
    assert stored["high"] - stored["low"] == pytest.approx(2 * 1.96 * 10, rel=0.1)
    mean, low, high = estimated_mentor_alone({"mentor_alone_tokens": stored}, CARD, 50)
    assert low < mean < high
    assert mean == pytest.approx(CARD.flops(0, 50 + 230 - 1), rel=0.02)


def test_without_collected_data_nothing_is_estimated():
    assert estimated_mentor_alone({}, CARD, 50) is None


def test_questions_of_one_length_give_their_mean():
    assert answer_lengths([10, 10], [20, 40]).intercept == 30
