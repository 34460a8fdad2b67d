from dataclasses import asdict

import numpy as np
import pytest

from ensemblehub.generators.echo import EchoEngine, EchoOptions
from ensemblehub.generators.openai.engine import OpenAIEngine
from ensemblehub.generators.openai.options import OpenAIOptions
from ensemblehub.lab.judges.curve_fitting import answer_lengths
from ensemblehub.lab.pipeline.records import Collected
from ensemblehub.schema import Chat, Message, ModelInfo, Request, Sampling
from ensemblehub.tandem.estimates import Length, estimated_mentor_alone

CARD = ModelInfo(parameters=100, active=100, attention_flops=2.0)
STORED = {"intercept": 100.0, "slope": 0.0, "low": -50.0, "high": 100.0, "n": 9}
PROMPT = Chat((Message("user", "how many boats are there"),))  # five tokens of `echo`


class Mentor(EchoEngine):
    """Has a template with a switch for thinking that is on by default; two FLOPs a token."""

    def __init__(self, thinking=None, context=0):
        super().__init__("mentor", EchoOptions(parameters=1, context=context))
        self._thinking = thinking

    @property
    def thinking(self):
        return self._thinking

    def same_prompt(self, first, second):
        def thinks(request):
            mode = self._thinking if request.prompt.thinking is None else request.prompt.thinking
            return mode is not False

        return thinks(first) == thinks(second)


def estimate(sampling=None, asked=None, engine=None, recorded=None, context=0):
    request = Request(Chat(PROMPT.messages, asked), sampling or Sampling())
    stored = {"mentor_alone_tokens": {**STORED, "thinking": recorded}}
    return estimated_mentor_alone(stored, request, Mentor(engine, context))


def test_a_line_with_an_interval():
    rng = np.random.default_rng(0)
    prompts = rng.integers(20, 120, 2000)
    stored = answer_lengths(prompts, 30 + 4 * prompts + rng.normal(0, 10, 2000))
    assert stored.slope == pytest.approx(4, abs=0.05)
    assert stored.high - stored.low == pytest.approx(2 * 1.96 * 10, rel=0.1)
    mean, low, high = stored.flops(CARD, 50)
    assert low < mean < high
    assert mean == pytest.approx(CARD.flops(0, 50 + 230 - 1), rel=0.02)


def test_without_collected_data_nothing_is_estimated():
    assert estimated_mentor_alone({}, Request(PROMPT), Mentor()) is None


def test_questions_of_one_length_give_their_mean():
    assert answer_lengths([10, 10], [20, 40]).intercept == 30


@pytest.mark.parametrize(
    ("sampling", "context", "flops"),
    [
        # two FLOPs for each of five prompt tokens, and for each token written but the last
        (Sampling(max_tokens=512), 0, (2 * (5 + 99), 2 * (5 + 49), 2 * (5 + 199))),
        (Sampling(max_tokens=150), 0, (2 * (5 + 99), 2 * (5 + 49), 2 * (5 + 149))),
        (Sampling(max_tokens=64), 0, (2 * (5 + 63), 2 * (5 + 49), 2 * (5 + 63))),
        (Sampling(max_tokens=32), 0, (2 * (5 + 31),) * 3),
        (Sampling(max_tokens=512, max_completion_tokens=20), 0, (2 * (5 + 19),) * 3),
        (Sampling(max_tokens=8, max_completion_tokens=20), 0, (2 * (5 + 7),) * 3),
        (Sampling(max_tokens=512, fit_context=True), 35, (2 * (5 + 29),) * 3),
        (Sampling(max_tokens=1), 0, (2 * 5,) * 3),
    ],
)
def test_the_mentor_writes_no_more_than_the_request_allows(sampling, context, flops):
    assert estimate(sampling, context=context) == flops


@pytest.mark.parametrize(
    ("recorded", "engine", "asked", "known"),
    [
        (None, None, None, True),
        (None, None, True, True),  # the template's default
        (None, None, False, False),
        (None, False, None, False),
        (None, False, True, False),  # what the default is cannot be told here
        (False, False, None, True),
        (False, None, False, True),
        (False, None, None, False),
        (False, False, True, False),
        (True, None, None, True),
        (True, True, False, False),
    ],
)
def test_nothing_is_estimated_where_the_mentor_thinks_otherwise_than_recorded(recorded, engine, asked, known):
    assert (estimate(asked=asked, engine=engine, recorded=recorded) is not None) == known


@pytest.mark.parametrize("asked", [None, True, False])
def test_a_template_without_a_switch_thinks_as_recorded(monkeypatch, asked):
    monkeypatch.setattr(Mentor, "same_prompt", lambda *_: True)
    assert estimate(asked=asked, engine=False)


def test_the_mode_is_kept_with_the_lengths():
    header = {
        "mentor": "models/big",
        "engines": {"small": {"model": "models/small"}, "big": {"model": "models/big"}},
    }
    assert Collected(header, [], np.empty(0), []).thinking is None
    assert Collected({"mentor": "models/big"}, [], np.empty(0), []).thinking is None  # older data
    off = {"chat_template_kwargs": {"enable_thinking": False}}
    for options in ({"enable_thinking": False}, {"extra_body": off}):
        changed = {**header, "engines": {"big": {"model": "models/big", **options}}}
        mode = Collected(changed, [], np.empty(0), []).thinking
        assert asdict(answer_lengths([10, 10], [20, 40], mode))["thinking"] is False
    assert Length(**STORED).thinking is None


def test_the_mode_of_an_api_is_in_its_extra_body():
    off = {"chat_template_kwargs": {"enable_thinking": False}}
    for body, mode in ((off, False), ({}, None), ({"chat_template_kwargs": {}}, None)):
        options = OpenAIOptions("m", base_url="http://127.0.0.1:1/v1", extra_body=body)
        assert OpenAIEngine("far", options).thinking is mode
