"""Token-level ensembling of the built-in models: a pair of one vocabulary, and one of another (`guest`)."""

import asyncio
import random
from contextlib import aclosing

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from ensemblehub import builtin
from ensemblehub.cost import UsageLedger
from ensemblehub.ensemble import AsyncEnsemble
from ensemblehub.ensemble_methods.model_selection.all import All
from ensemblehub.ensemble_methods.output_aggregation.distribution import DistributionMixture
from ensemblehub.ensemble_methods.output_aggregation.gac import GaC
from ensemblehub.ensemble_methods.output_aggregation.single import Single
from ensemblehub.errors import EngineError
from ensemblehub.generators.hf.engine import HFEngine, HFOptions
from ensemblehub.lab.builtin import corpus, word_problems
from ensemblehub.schema import Request, Sampling, Text

RNG = random.Random(5)
QUESTIONS = [corpus.prompt(word_problems.draw(RNG, steps=3).text, think=False) for _ in range(4)]


PATHS = {name: f"builtin:{name}" for name in ("mentor", "intern", "guest")} | {"again": "builtin:mentor"}


def run(names, work):
    """`work` with loaded engines of these names."""

    async def main():
        engines = [HFEngine(name, HFOptions(builtin.resolve(PATHS[name]))) for name in names]
        try:
            return await work(*engines)
        finally:
            await asyncio.gather(*[engine.close() for engine in engines])

    return asyncio.run(asyncio.wait_for(main(), 120))


def request(question, **sampling):
    return Request(Text(question), Sampling(**{"max_tokens": 90} | sampling))


async def answers(engines, method, questions=QUESTIONS, **sampling):
    hub = AsyncEnsemble(engines, All(), method)
    return await asyncio.gather(*[hub.generate(request(question, **sampling)) for question in questions])


def texts(results):
    return [(result.text, result.finish) for result in results]


def test_a_model_with_itself_writes_and_costs_what_it_does_alone():
    async def work(mentor, again):
        alone = await answers([mentor], Single())
        both = await answers([mentor, again], GaC())
        assert texts(both) == texts(alone)
        assert texts(
            await answers([mentor, again], DistributionMixture(method="geometric", top_k=10))
        ) == texts(alone)
        assert texts(await answers([mentor, again], GaC(every="disputed"))) == texts(alone)
        ended = await answers([mentor], Single(), max_tokens=30, ignore_eos=True)
        assert texts(await answers([mentor, again], GaC(), max_tokens=30, ignore_eos=True)) == texts(ended)
        for first, second in zip(alone, both, strict=True):
            (own,), pair = first.usage.lines, second.usage.lines
            for line in pair:
                assert line.purpose == "answer"
                assert line.cost.completion_tokens == own.cost.completion_tokens
                assert line.cost.decode_flops == pytest.approx(own.cost.decode_flops)

    run(["mentor", "again"], work)


def test_weights_one_and_zero_are_the_first_model():
    async def work(mentor, guest):
        alone = texts(await answers([mentor], Single()))
        for other in (0, 1e-9):  # not asked; asked, and too light to matter
            weights = {"guest": other}
            assert texts(await answers([mentor, guest], GaC(weights=weights))) == alone
            assert texts(await answers([mentor, guest], DistributionMixture(weights=weights))) == alone

    run(["mentor", "guest"], work)


def test_different_vocabularies_agree_on_what_is_disputed():
    async def work(mentor, guest):
        assert mentor.vocabulary.fingerprint != guest.vocabulary.fingerprint
        counts = []
        for every, some in (
            (GaC(), GaC(every="disputed")),
            (DistributionMixture(top_k=10), DistributionMixture(top_k=10, every="disputed", draft=5)),
        ):
            each, disputed = await answers([mentor, guest], every), await answers([mentor, guest], some)
            assert texts(disputed) == texts(each)
            assert {result.finish for result in each} == {"stop"}
            assert all(result.text.count("\\boxed{") == 1 for result in each)
            counts += [[line.cost.completion_tokens for line in result.usage.lines] for result in each]
        assert any(first != second for first, second in counts)  # they do not spell it alike

    run(["mentor", "guest"], work)


def test_a_prefix_is_continued_and_a_stop_string_is_not_shown():
    async def work(mentor, guest):
        hub = AsyncEnsemble([mentor, guest], All(), GaC())
        whole = (await hub.generate(request(QUESTIONS[0]))).text
        head, tail = whole[: whole.index("Work")], whole[whole.index("Work") :]
        rest = await hub.generate(request(QUESTIONS[0]).continued(head))
        assert rest.text == tail
        stopped = await hub.generate(request(QUESTIONS[0], stop=("swer: \\box",)))
        assert stopped.text == whole[: whole.index("swer: \\box")]

    run(["mentor", "guest"], work)


def test_sampling_is_the_seeds_whoever_shares_the_steps():
    async def work(mentor, guest):
        warm = {"temperature": 1.0, "top_p": 0.95, "seed": 3, "max_tokens": 30}
        for method in (GaC(), GaC(every="disputed")):
            crowd = texts(await answers([mentor, guest], method, **warm))
            alone = [
                (await answers([mentor, guest], method, [question], **warm))[0] for question in QUESTIONS
            ]
            assert texts(alone) == crowd

    run(["mentor", "guest"], work)


def test_concurrent_requests_share_forward_passes():
    async def work(mentor, intern):
        await asyncio.gather(mentor.load(), intern.load())
        passes = {}
        for engine in (mentor, intern):
            model = engine._worker.loaded.result()

            def counted(slots, *rest, _forward=model.forward, _name=engine.name, **options):
                passes.setdefault(_name, []).append(len(slots))
                return _forward(slots, *rest, **options)

            model.forward = counted
        await answers([mentor, intern], GaC(), max_tokens=30, ignore_eos=True)
        for rows in passes.values():
            assert sum(rows) >= 30 * len(QUESTIONS)
            assert len(rows) <= 60  # 180 if each request had passes of its own

    run(["mentor", "intern"], work)


def test_closing_early_frees_the_rows_and_records_them():
    async def work(mentor, intern):
        ledger = UsageLedger()
        hub = AsyncEnsemble([mentor, intern], All(), GaC())
        async with aclosing(hub.stream(request(QUESTIONS[0]), ledger)) as events:
            async for _ in events:
                break
        assert {line.engine for line in ledger.usage.lines} == {"mentor", "intern"}
        assert all(
            line.cost.prompt_tokens == mentor.count(request(QUESTIONS[0])) for line in ledger.usage.lines
        )
        async with asyncio.timeout(10):
            while mentor._worker._rows or intern._worker._rows:  # noqa: ASYNC110
                await asyncio.sleep(0.005)

    run(["mentor", "intern"], work)


def test_a_failing_model_is_an_error_and_the_other_is_recorded():
    async def work(mentor, intern):
        await asyncio.gather(mentor.load(), intern.load())
        model, calls = intern._worker.loaded.result(), []
        forward = model.forward

        def failing(*args, **options):
            calls.append(1)
            if len(calls) == 3:
                raise RuntimeError("broken")
            return forward(*args, **options)

        model.forward = failing
        ledger = UsageLedger()
        with pytest.raises(EngineError, match="intern: the model failed: broken"):
            async for _ in AsyncEnsemble([mentor, intern], All(), GaC()).stream(
                request(QUESTIONS[0]), ledger
            ):
                pass
        assert {line.engine for line in ledger.usage.lines} == {"mentor", "intern"}
        assert ledger.total.completion_tokens >= 4

    run(["mentor", "intern"], work)
