"""Best of n: what is scored, what is kept, what is recorded."""

import asyncio
import math
from contextlib import aclosing

import pytest

from ensemblehub import registry
from ensemblehub.cost import UsageLedger
from ensemblehub.ensemble import AsyncEnsemble
from ensemblehub.ensemble_methods.model_selection.all import All
from ensemblehub.ensemble_methods.model_selection.random import RandomSelection
from ensemblehub.ensemble_methods.output_aggregation.best_of import BestOf
from ensemblehub.errors import ConfigError, EngineError
from ensemblehub.generators.echo import EchoEngine, EchoOptions
from ensemblehub.schema import Chat, Cost, Message, Request, Sampling

CHAT = Chat((Message("user", "Say something."),))


class Longest:
    """A pool that likes long texts and remembers what it was asked."""

    scorers = ("one",)

    def __init__(self):
        self.asked = []

    async def score(self, request, texts, meter, authors=()):
        self.asked.append((request, list(texts), list(authors)))
        meter.ledger.add("judge", meter.purpose, Cost(prompt_tokens=7, calls=1))
        return [float(len(text)) for text in texts]


class Broken(Longest):
    async def score(self, request, texts, meter, authors=()):
        raise EngineError("the scorer failed")


def members(*replies, **options):
    return [
        EchoEngine(name, EchoOptions({"": reply}, **options))
        for name, reply in zip("abcd", replies, strict=False)
    ]


def best(engines, pool=None, ledger=None, prefix="", aggregation=None, **sampling):
    hub = AsyncEnsemble(engines, All(), (aggregation or BestOf()).with_scorers(pool or Longest()))
    return asyncio.run(hub.generate(Request(CHAT, Sampling(**sampling), prefix)))


def test_the_best_is_kept_and_the_others_are_recorded_as_discarded():
    result = best(members("one", "one two three", "one two"))
    assert result.text == "one two three"
    assert result.finish == "stop"
    (choice,) = result.choices
    assert choice.about == "answer"
    assert choice.chosen == ("b",)
    assert choice.scores == (("a", 3.0), ("b", 13.0), ("c", 7.0))
    assert choice.reason == "b scores 13, the best of 3"
    costs = {(line.engine, line.purpose): line.cost for line in result.usage.lines}
    assert [costs[name, "propose"].completion_tokens for name in "abc"] == [1, 3, 2]
    assert [costs[name, "propose"].discarded_tokens for name in "abc"] == [1, 0, 2]
    assert costs["judge", "score"].prompt_tokens == 7


def test_of_equal_scores_the_first_is_given_and_it_is_said():
    (choice,) = best(members("ab", "xyz", "abc", "123")).choices
    assert choice.chosen == ("b",)
    assert choice.reason == "b scores 3, the best of 4, equal to c and d; b comes first in order"


def test_scorers_judge_continuations_of_the_request_and_are_told_the_authors():
    pool = Longest()
    best(members("one two", "one"), pool, prefix="one")
    request, texts, authors = pool.asked[0]
    assert request.prefix == "one"
    assert texts == [" two", ""]
    assert authors == ["a", "b"]
    best(members("one two", "one"), pool, aggregation=BestOf(exclude_self_scoring=False))
    assert pool.asked[1][2] == []


def test_each_engine_writes_its_samples_and_one_engine_is_enough():
    pool = Longest()
    result = best(members("one two"), pool, aggregation=BestOf(samples=3), temperature=0.7, seed=1)
    assert len(pool.asked[0][1]) == 3
    assert result.choices[0].chosen == ("a#1",)
    assert result.cost.completion_tokens == 6
    assert result.cost.discarded_tokens == 4


def test_at_temperature_0_each_engine_writes_one_sample():
    pool = Longest()
    result = best(members("one two", "one two three"), pool, aggregation=BestOf(samples=3))
    assert pool.asked[0][1] == ["one two", "one two three"]
    assert result.text == "one two three"
    assert result.choices[0].chosen == ("b",)
    assert result.cost.completion_tokens == 5


def test_limits_of_the_request_hold_for_every_candidate():
    result = best(members("a b c d", "a b STOP c d e"), max_tokens=3, stop=("STOP",))
    assert (result.text, result.finish) == ("a b c", "length")
    assert (
        result.cost.completion_tokens == 3 + 3
    )  # the white space before the stop string is a token of its own


def test_candidates_are_written_at_the_same_time():
    order = []

    class Logged(EchoEngine):
        async def stream(self, request, meter):
            async with aclosing(super().stream(request, meter)) as pieces:
                async for piece in pieces:
                    order.append(self.name)
                    yield piece

    best([Logged(name, EchoOptions({"": "one two three"})) for name in "abc"])
    assert [sorted(order[start : start + 3]) for start in (0, 3, 6)] == [["a", "b", "c"]] * 3


@pytest.mark.parametrize("fault", ["member", "scorer"])
def test_a_failure_is_raised_as_it_is_and_everything_is_recorded(fault):
    engines, ledger = members("one two three " * 9, "one"), UsageLedger()
    if fault == "member":
        engines[0] = EchoEngine("a", EchoOptions({"": "one two three"}, fail_after=2))
    pool = Longest() if fault == "member" else Broken()
    hub = AsyncEnsemble(engines, All(), BestOf().with_scorers(pool))

    async def run():
        return [event async for event in hub.stream(Request(CHAT), ledger)]

    with pytest.raises(
        EngineError, match="a failed after 2 tokens" if fault == "member" else "the scorer failed"
    ):
        asyncio.run(run())
    assert ledger.total.completion_tokens == sum(engine.written for engine in engines)


def test_what_cannot_work_is_refused():
    with pytest.raises(ConfigError, match="best_of needs a scorer: add `reward_specs:`"):
        AsyncEnsemble(members("a", "b"), All(), BestOf())
    with pytest.raises(ConfigError, match="at least 2 engines"):
        AsyncEnsemble(members("a", "b"), RandomSelection(k=1), BestOf().with_scorers(Longest()))
    with pytest.raises(ConfigError, match=r"samples.*greater than or equal to 1 .got 0"):
        AsyncEnsemble(members("a", "b"), All(), BestOf(samples=0).with_scorers(Longest()))
    with pytest.raises(ConfigError, match="did you mean 'samples'"):
        registry.build(BestOf, {"smples": 2}, "aggregation 'best_of'")


def test_a_criterion_may_judge_in_place_of_scorers():
    engines = [
        EchoEngine(name, EchoOptions({"": name}, logprob=logprob))
        for name, logprob in (("a", -0.5), ("b", -0.1))
    ]
    result = asyncio.run(AsyncEnsemble(engines, All(), BestOf(accept="logprob")).generate(Request(CHAT)))
    assert result.text == "b"
    assert result.choices[0].scores == (
        ("a", pytest.approx(math.exp(-0.5))),
        ("b", pytest.approx(math.exp(-0.1))),
    )
    with pytest.raises(ConfigError, match=r"best_of: accept: .*did you mean 'logprob'"):
        AsyncEnsemble(engines, All(), BestOf(accept="logprop"))
    with pytest.raises(ConfigError, match=r"^best_of: accept: logprob takes no value, got '0.9'$"):
        AsyncEnsemble(engines, All(), BestOf(accept="logprob:0.9"))  # which has no threshold
    with pytest.raises(ConfigError, match="best_of: `accept: never` accepts no answer; leave `accept` out"):
        AsyncEnsemble(engines, All(), BestOf(accept="never"))


def test_an_empty_answer_scores_0():
    engines = members("", "b", logprob=-0.5)
    result = asyncio.run(AsyncEnsemble(engines, All(), BestOf(accept="logprob")).generate(Request(CHAT)))
    assert result.text == "b"
    assert result.choices[0].scores == (("a", 0.0), ("b", pytest.approx(math.exp(-0.5))))


def test_an_answer_that_was_cut_off_scores_0_by_a_criterion():
    engines = [
        EchoEngine(name, EchoOptions({"": reply}, logprob=logprob))
        for name, reply, logprob in (("a", "so so so so", -0.02), ("b", "b", -0.5))
    ]
    hub = AsyncEnsemble(engines, All(), BestOf(accept="logprob"))
    result = asyncio.run(hub.generate(Request(CHAT, Sampling(max_tokens=3))))
    assert (result.text, result.finish) == ("b", "stop")
    assert result.choices[0].scores == (("a", 0.0), ("b", pytest.approx(math.exp(-0.5))))
