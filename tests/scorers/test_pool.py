"""Weighted pools: means, normalisation, and who judges what."""

import asyncio
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemblehub.cost import UsageLedger
from ensemblehub.errors import EngineError
from ensemblehub.schema import Request, Text
from ensemblehub.scorers.base import Scorer
from ensemblehub.scorers.pool import Pool, normalized


class Fixed(Scorer):
    """Looks scores up by text."""

    def __init__(self, name, scores, delay=0.0):
        self.name, self.scores, self.delay, self.asked, self.ended = name, scores, delay, [], False

    @property
    def model(self):
        return self.name

    async def score(self, request, texts, meter):
        self.asked.append(list(texts))
        try:
            await asyncio.sleep(self.delay)
            if isinstance(self.scores, Exception):
                raise self.scores
            return [self.scores[text] for text in texts]
        finally:
            self.ended = True


def score(pool, texts, authors=()):
    return asyncio.run(pool.score(Request(Text("q")), texts, UsageLedger().meter("score"), authors))


def test_the_weighted_mean():
    pool = Pool((Fixed("x", {"a": 1.0, "b": 3.0}), Fixed("y", {"a": 5.0, "b": -1.0})), (3.0, 1.0))
    assert score(pool, ["a", "b"]) == [2.0, 2.0]
    assert score(pool, []) == []


def test_minmax_and_standard_by_hand():
    scores = {"a": 1.0, "b": 2.0, "c": 6.0}
    assert score(Pool((Fixed("x", scores),), (2.0,), "minmax"), ["a", "b", "c"]) == [0.0, 0.2, 1.0]
    deviation = (14 / 3) ** 0.5  # mean 3: (4 + 1 + 9) / 3
    expected = [-2 / deviation, -1 / deviation, 3 / deviation]
    assert score(Pool((Fixed("x", scores),), (2.0,), "standard"), ["a", "b", "c"]) == pytest.approx(expected)


@pytest.mark.parametrize(("how", "value"), [("none", 0.1), ("minmax", 0.5), ("standard", 0.0)])
def test_equal_scores_and_a_single_text(how, value):
    pool = Pool((Fixed("x", {"a": 0.1, "b": 0.1, "c": 0.1}),), (1.0,), how)
    assert score(pool, ["a", "b", "c"]) == pytest.approx([value] * 3)
    assert score(pool, ["a"]) == pytest.approx([value])


def test_a_scorer_does_not_judge_its_own_text():
    x, y = Fixed("x", {"a": 1.0, "b": 2.0, "c": 3.0}), Fixed("y", {"a": 10.0, "b": 20.0, "c": 30.0})
    assert score(Pool((x, y), (1.0, 1.0)), ["a", "b", "c"], ["x", "y", "z"]) == [10.0, 2.0, 16.5]
    assert (x.asked, y.asked) == ([["b", "c"]], [["a", "c"]])


def test_a_text_that_only_its_writer_could_judge_is_judged_by_all():
    x = Fixed("x", {"a": 1.0, "b": 2.0})
    assert score(Pool((x,), (1.0,)), ["a", "b"], ["x", "y"]) == [1.0, 2.0]


def test_each_scorer_normalises_over_the_texts_it_judges():
    x, y = Fixed("x", {"a": 99.0, "b": 2.0, "c": 4.0}), Fixed("y", {"a": 1.0, "b": 0.0, "c": 3.0})
    # x judges b and c: 0 and 1; y judges a, b, c: 1/3, 0, 1
    expected = [1 / 3, 0.0, 1.0]
    assert score(Pool((x, y), (1.0, 1.0), "minmax"), ["a", "b", "c"], ["x", "z", "z"]) == pytest.approx(
        expected
    )


@pytest.mark.parametrize("scores", [{"a": float("nan")}, {"a": float("inf")}])
def test_what_is_no_number_is_an_error(scores):
    with pytest.raises(EngineError, match="'x' gave"):
        score(Pool((Fixed("x", scores),), (1.0,)), ["a"])


def test_a_scorer_that_fails_ends_the_others_and_is_never_a_score():
    slow = Fixed("slow", {"a": 1.0}, delay=60)
    with pytest.raises(EngineError, match="broken"):
        score(Pool((slow, Fixed("x", EngineError("broken"))), (1.0, 1.0)), ["a"])
    assert slow.ended


finite = st.floats(-1e6, 1e6)


@given(st.lists(finite, min_size=1, max_size=20))
def test_normalised_scores_keep_their_order_and_scale(scores):
    for how in ("none", "minmax", "standard"):
        given_ = normalized(scores, how)
        pairs = list(zip(scores, given_, strict=True))
        assert all(b <= d for a, b in pairs for c, d in pairs if a <= c)
    assert all(0 <= score <= 1 for score in normalized(scores, "minmax"))
    if max(scores) - min(scores) > 1e-3:
        standard = normalized(scores, "standard")
        assert statistics.fmean(standard) == pytest.approx(0, abs=1e-4)
        assert statistics.pstdev(standard) == pytest.approx(1, abs=1e-4)
