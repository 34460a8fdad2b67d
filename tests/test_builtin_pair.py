"""Tandem on the pair that ships: the promises a user relies on, with real models."""

import asyncio
import json
import re
import subprocess
import sys
from contextlib import aclosing
from itertools import pairwise

import pytest

pytest.importorskip("transformers")

from ensemblehub import builtin
from ensemblehub.config import Config
from ensemblehub.cost import UsageLedger
from ensemblehub.ensemble import AsyncEnsemble
from ensemblehub.lab.builtin import corpus
from ensemblehub.lab.pipeline.collect import Collector
from ensemblehub.lab.pipeline.evaluate import ColdCost
from ensemblehub.lab.pipeline.records import Run
from ensemblehub.lab.tasks.builtin_math import BuiltinMath
from ensemblehub.results import fold
from ensemblehub.schema import Chat, Cost, Message, Piece, Request, Sampling, Text
from ensemblehub.tandem.insights import PROFILES, Dialogue

SAMPLING = Sampling(max_tokens=400)
ITEMS = list(BuiltinMath().items("test", 12))


def builtin_pair(**options):
    config = Config.read(builtin.CONFIG)
    engine = options.pop("engine", {})
    specs = [spec.model_copy(update=engine) for spec in config.model_specs]
    params = {**config.aggregation.params, **options}
    section = config.ensemble.model_copy(update={"output_aggregation_params": params})
    return AsyncEnsemble.from_config(config.model_copy(update={"ensemble": section, "model_specs": specs}))


def answers(hub, items=ITEMS, together=True):
    async def run():
        async with hub:
            asks = [hub.generate(Request(BuiltinMath().request(item), SAMPLING)) for item in items]
            return list(await asyncio.gather(*asks)) if together else [await ask for ask in asks]

    return asyncio.run(run())


def told(results):
    return [
        (result.insight, result.text, [verdict.level for verdict in result.verdicts]) for result in results
    ]


@pytest.fixture(scope="module")
def runs():
    return answers(builtin_pair())


def test_runs_use_more_than_one_level_and_the_parts_equal_the_total(runs):
    assert len({result.verdicts[-1].level for result in runs}) > 1
    for result in runs:
        assert sum((line.cost for line in result.usage.lines), Cost()) == result.cost
        assert result.cost.discarded_tokens == 0
        assert "boxed" in result.text


def test_the_prefix_cache_changes_the_cost_and_never_the_text(runs):
    cold = answers(builtin_pair(engine={"prefix_cache_tokens": 0}))
    assert told(cold) == told(runs)
    assert sum(result.cost.cached_tokens for result in cold) == 0
    assert sum(result.cost.flops for result in cold) > sum(result.cost.flops for result in runs)


def test_runs_together_write_what_each_writes_alone(runs):
    assert told(answers(builtin_pair(), together=False)) == told(runs)


def test_each_checkpoint_and_the_answer_read_at_most_16_tokens_again():
    hub = builtin_pair(judge="entropy:0.000001")  # never sufficient: every level is visited

    async def usage(item):
        ledger = UsageLedger()
        async for _ in hub.stream(Request(BuiltinMath().request(item), SAMPLING), ledger):
            pass
        return ledger.calls

    async def run():
        async with hub:
            return [await usage(item) for item in ITEMS[:6]]

    for calls in asyncio.run(run()):
        reads = [call.cost for call in calls if call.engine == "intern"]
        assert len(reads) >= 3
        for before, after in pairwise(reads):
            new = max(0, after.prompt_tokens - before.prompt_tokens)
            assert after.prompt_tokens - after.cached_tokens <= new + 16


def test_the_live_run_at_a_fixed_level_is_what_collecting_replays():
    hub, task = builtin_pair(judge="fixed:medium"), BuiltinMath()

    async def run():
        async with hub:
            collector = Collector(hub.aggregation, hub.engines, task, SAMPLING)
            rows = [await collector.collect(item) for item in ITEMS[:3]]
        fresh = builtin_pair(judge="fixed:medium")
        async with fresh:
            ledgers = [UsageLedger() for _ in ITEMS[:3]]
            lives = []
            for item, ledger in zip(ITEMS[:3], ledgers, strict=True):
                events = [
                    event async for event in fresh.stream(Request(task.request(item), SAMPLING), ledger)
                ]
                lives.append(fold(events, ledger, 0.0))
        return rows, lives, ledgers, {engine.name: engine.info for engine in fresh.engines}

    rows, lives, ledgers, infos = asyncio.run(run())
    for row, live, ledger in zip(rows, lives, ledgers, strict=True):
        run_ = Run(**row["runs"]["medium"])
        assert run_.text == live.text
        cold = ColdCost.of(ledger.calls, infos, "intern")
        assert cold.flops == pytest.approx(run_.flops(infos["mentor"], infos["intern"]), rel=1e-9)
        assert cold.judging_flops == 0


def test_closing_in_mid_insight_stops_the_mentor_and_bills_it():
    hub = builtin_pair(judge="fixed:high")

    async def run():
        ledger, tokens = UsageLedger(), 0
        ask = Request(BuiltinMath().request(ITEMS[0]), SAMPLING)
        async with hub, aclosing(hub.stream(ask, ledger)) as stream:
            async for event in stream:
                tokens += len(event.tokens) if isinstance(event, Piece) else 0
                if tokens >= 10:
                    break
        return ledger, tokens

    ledger, tokens = asyncio.run(run())
    (line,) = [line for line in ledger.usage.lines if line.engine == "mentor"]
    assert line.cost.completion_tokens == tokens
    assert not [line for line in ledger.usage.lines if line.purpose == "answer"]


def test_the_prompts_are_those_the_models_were_trained_on():
    hub = builtin_pair()
    profile = PROFILES["builtin"]
    request = Request(Chat((Message("user", "How many?"),)), SAMPLING)
    mentor, intern = hub.engines
    tokens = mentor.render(Dialogue(request, profile).mentor_request(5)).ids
    trained = Text(corpus.prompt("How many?", "Give insights only."))
    assert tokens == mentor.render(Request(trained)).ids
    guided = intern.render(Dialogue(request, profile).intern_request("Goal: x")).ids
    trained = Text(corpus.prompt("How many?", "Use the insights.", "Goal: x"))
    assert guided == intern.render(Request(trained)).ids


def test_the_models_that_ship_are_small_and_apart():
    hub = builtin_pair()
    mentor, intern = (engine.info for engine in hub.engines)
    ratio = (mentor.token_flops + 100 * mentor.attention_flops) / (
        intern.token_flops + 100 * intern.attention_flops
    )
    assert 5 <= ratio <= 12
    assert min(mentor.context, intern.context) >= 2048
    folder = builtin.CONFIG.parent / "weights"
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= 40e6


@pytest.mark.slow
def test_the_demo_as_a_child_process(tmp_path):
    command = [sys.executable, "-m", "ensemblehub", "demo", "--limit", "8"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "mentor · insight" in done.stdout or "intern · answer" in done.stdout
    assert re.search(r"tandem", done.stdout)
    rows = json.loads((tmp_path / "saves/demo/summary.json").read_text())
    methods = {row["method"] for row in rows}
    assert {
        "intern",
        "mentor",
        "mentor_concise",
        "fixed_low",
        "fixed_high",
        "random_mix",
        "oracle",
        "tandem",
    } <= methods
    assert all(row["n"] == 8 for row in rows)
    assert (tmp_path / "saves/demo/pareto.png").stat().st_size > 1000
