"""Models that take turns in one memory: few swaps, no call waits for ever, and answers as without turns."""

import asyncio
import weakref
from contextlib import aclosing, asynccontextmanager
from types import SimpleNamespace

import pytest

from ensemblehub.config import Config
from ensemblehub.configured import engine_of
from ensemblehub.cost import UsageLedger
from ensemblehub.ensemble import AsyncEnsemble
from ensemblehub.ensemble_methods.roles import require
from ensemblehub.errors import CapabilityError, ConfigError, EngineError
from ensemblehub.generators import swap
from ensemblehub.generators.echo import EchoEngine, EchoOptions
from ensemblehub.generators.swap import SwapGroup, SwappedEngine
from ensemblehub.schema import Request, Sampling, Text

WORDS = " ".join(map(str, range(40)))
ASK = Request(Text("question"), Sampling(max_tokens=40))


class Memory:
    """Room for one model; fails the test when two are in it."""

    def __init__(self):
        self.inside = None


class ScriptedEngine(EchoEngine):
    """An echo engine with a model that has to be in memory whenever it computes."""

    def __init__(self, name, memory, seconds=0.01, **options):
        super().__init__(name, EchoOptions(replies={"": WORDS}, **options))
        self.memory = memory
        self.seconds = seconds
        self.failures = []
        self.closed = False

    def prepare_swap(self):
        pass

    async def load(self):
        assert self.memory.inside is None
        await asyncio.sleep(self.seconds)
        if self.closed:
            raise EngineError(f"{self.name} is closed", self.name)
        if self.failures:
            raise self.failures.pop()
        self.memory.inside = self

    async def unload(self):
        self.memory.inside = None

    async def close(self):
        self.closed = True
        if self.memory.inside is self:
            self.memory.inside = None

    async def stream(self, request, meter):
        async with aclosing(super().stream(request, meter)) as pieces:
            async for piece in pieces:
                assert self.memory.inside is self
                yield piece

    async def score(self, request, meter):
        assert self.memory.inside is self
        await asyncio.sleep(0.001)
        assert self.memory.inside is self
        return await super().score(request, meter)


def pair(**options):
    group, memory = SwapGroup(), Memory()
    return group, *(SwappedEngine(ScriptedEngine(name, memory, **options), group) for name in "ab")


async def text(engine, request=ASK):
    return "".join([piece.text async for piece in engine.stream(request, UsageLedger().meter("answer"))])


def run(work, seconds=120):
    return asyncio.run(asyncio.wait_for(work, seconds))


def test_many_questions_of_a_tandem_share_the_swaps():
    memory, group = Memory(), SwapGroup()
    mentor = SwappedEngine(ScriptedEngine("mentor", memory, parameters=9), group)
    intern = SwappedEngine(ScriptedEngine("intern", memory, parameters=1), group)
    options = {
        "levels": {"low": 4, "medium": 8, "high": 12},
        "judge": "entropy:0.5",
    }  # entropies are 1: never enough

    async def answers(count):
        ensemble = AsyncEnsemble.tandem(mentor, intern, **options)
        questions = [f"question {number}" for number in range(count)]
        results = await ensemble.generate(questions, max_tokens=4)
        return results, sum(group.loads.values())

    (alone,), swaps = run(answers(1))
    assert [verdict.level for verdict in alone.verdicts] == ["low", "medium", "high"]
    assert 6 <= swaps <= 7  # from mentor to intern and back for every level
    group.loads.clear()
    results, swaps = run(answers(30))
    assert {result.text for result in results} == {alone.text}
    assert swaps <= 12  # and not 30 times as many


def test_clients_that_ask_by_turns_do_not_swap_at_every_question(monkeypatch):
    monkeypatch.setattr(swap, "SHORTEST", 2.0)
    group, a, b = pair()

    async def client(engine):
        for _ in range(60):
            assert await text(engine) == WORDS
            await asyncio.sleep(0.001)  # the model is idle, and another client waits

    async def both_clients():
        await asyncio.gather(client(a), client(b))

    run(both_clients())
    assert sum(group.loads.values()) <= 6  # for 120 questions


def test_a_busy_model_gives_way_when_its_turn_is_over_and_its_streams_go_on():
    group, a, b = pair(delay=0.03)

    async def busy():
        streams = [asyncio.create_task(text(a)) for _ in range(4)]
        await asyncio.sleep(0.1)
        first = await text(b, Request(Text("question"), Sampling(max_tokens=2)))
        assert not any(stream.done() for stream in streams)
        return first, await asyncio.gather(*streams)

    first, others = run(busy())
    assert first == "0 1"
    assert others == [WORDS] * 4
    assert group.loads == {"a": 2, "b": 1}


def test_streams_of_both_models_may_be_open_at_once():
    group, a, b = pair()

    async def interleaved():
        meter = UsageLedger().meter("answer")
        async with aclosing(a.stream(ASK, meter)) as first, aclosing(b.stream(ASK, meter)) as second:
            return [(await anext(first)).text + (await anext(second)).text for _ in range(3)]

    assert run(interleaved()) == ["00", " 1 1", " 2 2"]
    assert group.loads == {"a": 3, "b": 3}


def test_calls_that_are_cancelled_while_they_wait_leave_nothing_behind():
    group, a, b = pair(seconds=0.05, delay=0.001)

    async def cancelled():
        running = asyncio.create_task(text(a))
        await asyncio.sleep(0.06)
        waiting = [asyncio.create_task(text(b)) for _ in range(20)]
        for pause, call in enumerate(waiting):  # before, during and after the swap
            await asyncio.sleep(0.005 * (pause % 3))
            call.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert await running == WORDS
        assert await asyncio.gather(text(a), text(b), text(a)) == [WORDS] * 3

    run(cancelled())
    assert group._running == 0
    assert group._waiting == []


def test_a_model_that_cannot_be_loaded_fails_its_requests_and_is_tried_again():
    _, a, b = pair()

    async def failing():
        b._engine.failures = [RuntimeError("CUDA\nout of memory")]
        assert await text(a) == WORDS
        outcomes = await asyncio.gather(text(b), text(b), return_exceptions=True)
        for outcome in outcomes:
            assert isinstance(outcome, EngineError)
            assert str(outcome) == "b cannot be loaded: CUDA out of memory"
        b._engine.failures = [ConfigError("no such file")]
        with pytest.raises(ConfigError, match="no such file"):
            await text(b)
        assert await asyncio.gather(text(a), text(b)) == [WORDS] * 2

    run(failing())


def test_closing_ends_what_waits():
    _, a, b = pair(seconds=0.1)

    async def closing():
        first, second = asyncio.create_task(text(a)), asyncio.create_task(text(b))
        await asyncio.sleep(0.05)  # a is being loaded
        await asyncio.gather(a.close(), b.close())
        outcomes = await asyncio.gather(first, second, return_exceptions=True)
        assert [str(outcome) for outcome in outcomes] == ["a is closed", "b is closed"]

    run(closing())


def test_loading_an_ensemble_loads_every_model_once():
    group, a, b = pair()

    async def loaded():
        async with AsyncEnsemble([a, b], aggregation="loop"):
            return dict(group.loads)

    assert run(loaded()) == {"a": 1, "b": 1}


def test_a_configuration_says_which_models_swap(tmp_path):
    path = tmp_path / "some.yaml"
    path.write_text("model_specs:\n- {name: e, engine: echo}\n- {name: f, engine: echo, swap: true}\n")
    config = Config.read(path)
    assert config.notes == [f"{path}:3: swap has no effect: no other model swaps"]
    with pytest.raises(CapabilityError, match=r"some.yaml:3: engine 'f' has no model that could be unloaded"):
        AsyncEnsemble.from_config(config)
    path.write_text("model_specs:\n- {name: e, engine: echo, swap: sometimes}\n")
    with pytest.raises(
        ConfigError, match=r"some.yaml:2: model_specs.0.swap: Input should be a valid boolean"
    ):
        Config.read(path)


SWAPPED = [{"path": "builtin:mentor", "swap": True}, {"path": "builtin:intern", "swap": True}]


@asynccontextmanager
async def one_row(**options):
    """An hf engine of the built-in intern, and a ledger."""
    pytest.importorskip("transformers")
    config = Config.from_dict({"model_specs": [{"path": "builtin:intern", "engine": "hf", **options}]})
    engine = engine_of(config, config.model_specs[0])
    engine.prepare_swap()
    try:
        yield engine, UsageLedger()
    finally:
        await engine.close()


def test_models_that_swap_answer_as_without(tmp_path):
    pytest.importorskip("transformers")
    from ensemblehub import builtin
    from ensemblehub.lab.tasks.builtin_math import BuiltinMath

    task = BuiltinMath()
    questions = [task.request(item) for item in task.items("test", 3)]

    async def answers(changes):
        config = Config.read(builtin.CONFIG, changes)
        async with AsyncEnsemble.from_config(config) as ensemble:
            results = await ensemble.generate(questions)
            return results, ensemble.engines

    expected, _ = run(answers([]))
    results, engines = run(answers(["model_specs.0.swap=true", "model_specs.1.swap=true"]))
    assert sum(engine.loads for engine in engines) <= 12
    for result, other in zip(results, expected, strict=True):
        assert (result.text, result.insight) == (other.text, other.insight)
        assert [verdict.level for verdict in result.verdicts] == [verdict.level for verdict in other.verdicts]
        assert result.cost.completion_tokens == other.cost.completion_tokens
        assert result.cost.prompt_tokens == other.cost.prompt_tokens


@pytest.mark.parametrize("kept", [65536, 0])
def test_a_row_goes_on_after_its_model_was_unloaded(kept):
    request = Request(Text("There are 3 mugs. There are 4 more plates than mugs."), Sampling(max_tokens=24))

    async def written(unload):
        async with one_row(prefix_cache_tokens=kept) as (engine, ledger):
            parts = []
            async with aclosing(engine.stream(request, ledger.meter("answer"))) as pieces:
                async for piece in pieces:
                    parts.append(piece.text)
                    if unload and len(parts) in (3, 9):
                        network = weakref.ref(engine._worker._model.network)
                        await engine.unload()
                        assert network() is None  # the weights are gone
                        await engine.load()
            return "".join(parts), ledger.total

    text, cost = run(written(False))
    again, reread = run(written(True))
    assert again == text
    assert reread.completion_tokens == cost.completion_tokens
    prompt = cost.prompt_tokens
    assert reread.prompt_tokens == (prompt if kept else prompt + (prompt + 2) + (prompt + 8))


def test_a_stream_is_closed_while_its_model_is_unloaded():
    async def closed():
        async with one_row() as (engine, ledger):
            stream = engine.stream(ASK, ledger.meter("answer"))
            await anext(stream)
            await engine.unload()
            await asyncio.wait_for(stream.aclose(), 5)
            assert ledger.total.calls == 1
            assert ledger.total.prompt_tokens > 0
            await engine.load()
            stream = engine.stream(ASK, ledger.meter("answer"))
            await anext(stream)
            await engine.unload()
            reading = asyncio.create_task(anext(stream))
            await asyncio.sleep(0.01)
            await engine.close()  # with a row that waits for the model
            with pytest.raises(EngineError, match="closed"):
                await reading

    run(closed())


@pytest.mark.parametrize("method", ["gac", "distribution"])
def test_a_mixture_of_tokens_is_refused_and_swap_named_as_the_reason(method):
    pytest.importorskip("transformers")
    reason = "decode of models that take turns would swap at every token"
    expected = rf"{method} needs decode of engine '.*', which it lacks; it has `swap: true`, and {reason}$"
    with pytest.raises(CapabilityError, match=expected):
        AsyncEnsemble(SWAPPED, aggregation=method)
    engines = AsyncEnsemble(SWAPPED, aggregation="loop").engines
    for engine in engines:
        with pytest.raises(CapabilityError, match=rf"gives no next-token distributions: .*{reason}"):
            engine.decoder(ASK, UsageLedger().meter("answer"))


def test_swap_is_no_reason_for_what_a_model_lacks_anyway():
    _, a, _ = pair()
    assert "tools" not in a.capabilities
    assert (a.why_not("tools"), a.why_not("score")) == ("", "")
    with pytest.raises(CapabilityError, match=r"^vote needs tools of engine 'a', which it lacks$"):
        require(a, {"tools"}, "vote")


def test_metrics_count_the_swaps():
    pytest.importorskip("fastapi")
    from ensemblehub.api.monitoring import Monitor

    _, a, b = pair()

    async def metrics():
        await asyncio.gather(text(a), text(b))
        idle = SimpleNamespace(running=0, queued=0, queued_tokens=0)
        return Monitor(idle, SimpleNamespace(), (), [a, b]).exposition().decode().splitlines()

    lines = run(metrics())
    assert 'ensemblehub_model_loads_total{engine="a"} 1.0' in lines
    assert 'ensemblehub_model_loads_total{engine="b"} 1.0' in lines
