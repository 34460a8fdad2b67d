import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemblehub import registry
from ensemblehub.client import Ensemble
from ensemblehub.cost import UsageLedger, dollars
from ensemblehub.ensemble_methods.candidates import Candidate, write_all
from ensemblehub.schema import Cost, ModelInfo, Piece, Price


def test_flops_by_hand():
    info = ModelInfo(parameters=10, active=10, attention_flops=3.0)
    assert info.flops(2, 5) == 3 * 20 + 3.0 * (3 + 4 + 5)
    assert info.flops(5, 5) == 0
    cost = (
        UsageLedger().meter("answer").record("m", info, prompt_tokens=4, cached_tokens=3, completion_tokens=3)
    )
    assert cost.prefill_flops == 20 + 3 * 4
    assert cost.decode_flops == 2 * 20 + 3 * (5 + 6)  # the prefill yields the first token


def test_price():
    info = ModelInfo(price=Price(prompt=2.0, completion=10.0, cached=0.5))
    assert dollars(info, 1000, 400, 100) == pytest.approx((600 * 2 + 400 * 0.5 + 100 * 10) / 1e6)
    assert dollars(ModelInfo(price=Price(2.0, 10.0)), 1000, 400, 0) == pytest.approx(1000 * 2 / 1e6)


costs = st.builds(
    Cost,
    *(st.integers(0, 1000) for _ in range(4)),
    *(st.integers(0, 10**9).map(float) for _ in range(2)),
    st.just(0.0),
    st.just(0.0),
    st.just(1),
)


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(["insight", "judge", "answer"]), costs)))
def test_parts_add_up_to_the_total(calls):
    ledger = UsageLedger()
    for engine, purpose, cost in calls:
        ledger.add(engine, purpose, cost)
    assert sum((line.cost for line in ledger.usage.lines), Cost()) == ledger.total
    assert ledger.total.calls == len(calls)


def test_what_an_earlier_request_left_in_a_cache_is_told_apart_from_what_this_one_did():
    info = ModelInfo(parameters=10, active=10)  # 20 FLOPs a token
    first, again = UsageLedger(), UsageLedger()
    for ledger, cached in ((first, (0, 2, 3)), (again, (3, 4, 3))):
        read, write = ledger.meter("judge"), ledger.meter("answer")
        read.record("m", info, prompt_tokens=3, cached_tokens=cached[0], ids=[1, 2, 9])
        read.record("m", info, prompt_tokens=4, cached_tokens=cached[1], ids=[1, 2, 3, 9])
        write.record(
            "m", info, prompt_tokens=4, cached_tokens=cached[2], completion_tokens=2, ids=[1, 2, 3, 9, 5, 6]
        )
    assert first.total.spared_flops == 0
    assert again.total.spared_flops == 20 * (3 + 2)  # the second call began like the first for two tokens
    assert again.total.flops < first.total.flops
    assert again.total.cold_flops == first.total.cold_flops == first.total.flops


def test_predictions_are_those_of_an_earlier_reading_and_of_what_was_written_behind_it():
    info = ModelInfo(parameters=10, active=10)  # 20 FLOPs a token
    question, draft = [1, 2, 3, 4], [1, 2, 3, 4, 5, 6]
    first, again = UsageLedger(), UsageLedger()
    for ledger, cached in ((first, (0, 0, 3, 4)), (again, (3, 4, 3, 7))):
        meter = ledger.meter("answer")
        meter.record("m", info, prompt_tokens=4, cached_tokens=cached[0], completion_tokens=2, ids=draft)
        meter.record("m", info, prompt_tokens=4, cached_tokens=cached[1], ids=question, reading=True)
        meter.record("m", info, prompt_tokens=4, cached_tokens=cached[2], completion_tokens=2, ids=draft)
        meter.record("m", info, prompt_tokens=7, cached_tokens=cached[3], ids=[*draft, 7], reading=True)
    assert first.total.flops == 20 * (5 + 4 + 2 + 3)  # a written token is computed once it is read
    assert again.total.flops == 20 * (2 + 0 + 2 + 0)
    assert first.total.cold_flops == again.total.cold_flops == first.total.flops


def test_calls_beside_each_other_do_not_know_what_the_others_compute():
    info = ModelInfo(parameters=10, active=10)  # 20 FLOPs a token
    first, again = UsageLedger(), UsageLedger()
    for ledger, at_first, at_samples in ((first, 0, 1), (again, 1, 3)):
        ledger.meter("select").record("m", info, prompt_tokens=1, cached_tokens=at_first, ids=[1])
        asked = {"prompt_tokens": 3, "cached_tokens": at_samples, "completion_tokens": 2}
        branches = [ledger.branch(), ledger.branch()]
        for branch, written in zip(branches, (8, 9), strict=True):
            branch.meter("propose").record("m", info, **asked, ids=[1, 2, 3, written])
            ledger.join(branch)
        ledger.meter("judge").record("m", info, prompt_tokens=5, cached_tokens=4, ids=[1, 2, 3, 9, 5])
    assert [call.purpose for call in first.calls] == ["select", "propose", "propose", "judge"]
    # each sample reads two tokens and computes one of those that it writes
    assert first.total.flops == 20 * (1 + 3 + 3 + 1)
    assert again.total.flops == 20 * (0 + 1 + 1 + 1)
    assert first.total.cold_flops == again.total.cold_flops == first.total.flops


def test_samples_beside_each_other_cost_the_same_however_soon_they_end():
    class Recorded:  # an answer that `--reuse` finds: it is there without waiting
        name = "m"

        async def stream(self, request, meter):
            meter.record(
                "m", ModelInfo(parameters=10, active=10), prompt_tokens=3, cached_tokens=3, ids=[1, 2, 3]
            )
            yield Piece("", "m", "propose", finish="stop")

    ledger = UsageLedger()
    asyncio.run(write_all([Candidate(Recorded(), None, name) for name in "ab"], ledger))
    assert [call.cost.cold_flops for call in ledger.calls] == [20 * 3, 20 * 3]  # each reads the whole prompt
    asyncio.run(write_all([Candidate(Recorded(), None, "c")], ledger))
    assert ledger.calls[-1].cost.cold_flops == 0


def test_the_cache_of_one_engine_is_not_that_of_another():
    info, ledger = ModelInfo(parameters=10, active=10), UsageLedger()
    meter = ledger.meter("judge")
    meter.record("a", info, prompt_tokens=5, ids=[1, 2, 3, 4, 5])
    cost = meter.record("b", info, prompt_tokens=5, cached_tokens=5, ids=[1, 2, 3, 4, 5])
    assert cost.spared_flops == 20 * 5


def test_without_ids_the_lengths_of_calls_bound_what_is_this_requests_own():
    info, ledger = ModelInfo(parameters=10, active=10), UsageLedger()
    meter = ledger.meter("answer")
    assert meter.record("api", info, prompt_tokens=6, cached_tokens=4).spared_flops == 20 * 4
    assert meter.record("api", info, prompt_tokens=9, cached_tokens=8).spared_flops == 20 * 2
    assert meter.record("api", info, prompt_tokens=9, cached_tokens=7).spared_flops == 0


ids = st.lists(st.integers(0, 2), max_size=8)


@given(st.lists(st.tuples(ids, st.integers(0, 8)), max_size=5))
def test_what_is_reused_is_the_longest_common_start_within_what_was_cached(calls):
    ledger, before = UsageLedger(), []
    for tokens, cached in calls:
        starts = [n for n in range(min(cached, len(tokens)) + 1) for call in before if call[:n] == tokens[:n]]
        assert ledger.reused("m", tokens, cached) == max(starts, default=0)
        before.append(tokens)


@pytest.mark.parametrize(
    ("strategy", "options", "temperature"),
    [
        ("cascade", {"accept": "agreement:2"}, 0.7),
        ("vote", {"samples": 3, "window": 1}, 0.7),
        ("vote", {"samples": 2, "accept": "ask"}, 0.7),
        ("fuse", {"samples": 2, "layers": 2, "template": "builtin"}, 0.7),
        ("reward_based", {"max_new_tokens_per_round": 8}, 0.0),
    ],
)
def test_the_cold_cost_of_samples_is_what_they_cost_with_empty_caches(strategy, options, temperature):
    models = [{"name": name, "engine": "numpy", "path": f"builtin:{name}"} for name in ("mentor", "intern")]
    judges = [{"engine": "perplexity", "model": model["name"]} for model in models]
    aggregation = registry.build(
        registry.lookup(registry.AGGREGATIONS, strategy, "aggregation"), options, strategy
    )
    with Ensemble(models, aggregation=aggregation, scorers=judges) as ensemble:
        asked = {"max_tokens": 24, "temperature": temperature, "seed": 1}
        first, again = (ensemble.generate("There are 3 mugs. How many?", **asked).cost for _ in range(2))
    assert first.cold_flops == first.flops
    assert again.flops < first.flops
    assert again.cold_flops == pytest.approx(first.cold_flops, rel=1e-9)
