"""`loop`, `random` and `switch`: who writes, and for how long."""

import asyncio
from collections import Counter

import pytest

from ensemblehub.ensemble import AsyncEnsemble
from ensemblehub.ensemble_methods.base import Selection
from ensemblehub.ensemble_methods.model_selection.all import All
from ensemblehub.ensemble_methods.output_aggregation.loop import Loop
from ensemblehub.ensemble_methods.output_aggregation.random import RandomAggregation
from ensemblehub.ensemble_methods.output_aggregation.switch import Switch
from ensemblehub.errors import CapabilityError, ConfigError
from ensemblehub.generators.echo import EchoEngine, EchoOptions
from ensemblehub.registry import AGGREGATIONS, build, lookup
from ensemblehub.schema import Request, Sampling, Text

STORY = " ".join(str(number) for number in range(60))


class One(Selection):
    """Takes the first engine."""

    async def select(self, request, engines, ledger):
        return [engines[0]]


class NoPrefix(EchoEngine):
    capabilities = frozenset()


def engine(name, parameters=1_000_000, kind=EchoEngine):
    return kind(name, EchoOptions({"": STORY}, parameters=parameters))


def answer(strategy, engines, selection=None, **sampling):
    hub = AsyncEnsemble(engines, selection or All(), strategy)
    return asyncio.run(hub.generate(Request(Text("Count."), Sampling(**sampling))))


def turns(result):
    return [(piece.engine, len(piece.tokens)) for piece in result.pieces]


def test_loop_goes_round_in_the_order_of_the_configuration():
    result = answer(Loop(max_new_tokens_per_round=25), [engine("a"), engine("b"), engine("c")])
    assert result.text == STORY
    assert turns(result) == [("a", 25), ("b", 25), ("c", 10)]
    assert result.finish == "stop"
    assert result.cost.completion_tokens == 60


@pytest.mark.parametrize(
    "strategy", [Loop(max_new_tokens_per_round=5), RandomAggregation(max_new_tokens_per_round=5)]
)
def test_a_lone_engine_writes_in_one_go(strategy):
    result = answer(strategy, [engine("a"), engine("b")], One())
    assert turns(result) == [("a", 60)]
    assert result.cost.calls == 1


def test_random_draws_by_the_seed_and_all_alike():
    engines = [engine("a"), engine("b"), engine("c")]

    def drawn(seed):
        result = answer(RandomAggregation(max_new_tokens_per_round=1, max_repeat=0), engines, seed=seed)
        assert result.text == STORY
        return [piece.engine for piece in result.pieces if piece.tokens]

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)
    counts = Counter(name for seed in range(20) for name in drawn(seed))
    assert all(count == pytest.approx(400, rel=0.2) for count in counts.values())
    assert len(counts) == 3


def test_random_draws_anew_for_every_question_of_one_seed():
    hub = AsyncEnsemble([engine("a"), engine("b")], All(), RandomAggregation(max_new_tokens_per_round=60))
    first = {
        asyncio.run(hub.generate(Request(Text(f"Count to {number}."), Sampling(seed=0)))).pieces[0].engine
        for number in range(20)
    }
    assert first == {"a", "b"}


def test_random_without_a_seed_draws_anew():
    engines = [engine("a"), engine("b")]
    runs = {tuple(turns(answer(RandomAggregation(max_new_tokens_per_round=1), engines))) for _ in range(5)}
    assert len(runs) == 5


def test_switch_goes_from_the_largest_to_the_smallest():
    engines = [engine("small", 1), engine("large", 9), engine("middle", 5)]
    result = answer(Switch(switch_after_tokens=20), engines)
    assert turns(result) == [("large", 20), ("small", 40)]
    assert result.text == STORY


def test_switch_is_over_where_the_largest_ends():
    assert turns(answer(Switch(), [engine("large", 9), engine("small", 1)])) == [("large", 60)]
    result = answer(Switch(switch_after_tokens=20), [engine("large", 9), engine("small", 1)], max_tokens=20)
    assert turns(result) == [("large", 20)]
    assert result.finish == "length"


def test_switch_asks_of_the_small_only_that_it_can_continue():
    answer(Switch(switch_after_tokens=20), [engine("large", 9, NoPrefix), engine("small", 1)])
    with pytest.raises(CapabilityError, match="switch needs prefix of engine 'small'"):
        answer(Switch(), [engine("large", 9), engine("small", 1, NoPrefix)])


@pytest.mark.parametrize("strategy", [Loop(), RandomAggregation()])
def test_an_engine_that_cannot_continue_is_refused_before_loading(strategy):
    with pytest.raises(CapabilityError, match="needs prefix of engine 'b'"):
        AsyncEnsemble([engine("a"), engine("b", kind=NoPrefix)], All(), strategy)


def test_switch_needs_two():
    with pytest.raises(ConfigError, match="switch needs at least 2 engines"):
        answer(Switch(), [engine("a"), engine("b")], One())


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("loop", "max_new_tokens_per_round"),
        ("random", "max_new_tokens_per_round"),
        ("switch", "switch_after_tokens"),
    ],
)
def test_options_are_named_as_in_yaml_and_checked(name, option):
    kind = lookup(AGGREGATIONS, name, "aggregation")
    strategy = build(kind, {option: 7, "max_rounds": 9, "max_repeat": 2, "max_tokens": 99}, name)
    assert (getattr(strategy, option), strategy.max_rounds, strategy.max_repeat, strategy.max_tokens) == (
        7,
        9,
        2,
        99,
    )
    with pytest.raises(ConfigError, match=f"{name}: option '{option}'.*greater than or equal to 1 .got 0"):
        AsyncEnsemble([engine("a"), engine("b")], All(), build(kind, {option: 0}, name))


def test_defaults_are_the_references():
    assert (Loop().max_rounds, Loop().max_repeat, Loop().max_new_tokens_per_round) == (500, 3, 500)
    assert (RandomAggregation().max_new_tokens_per_round, Switch().switch_after_tokens) == (32, 500)
