"""Requests that arrive together read their common prefix once, and write what they write alone."""

import asyncio
import random
import threading
from contextlib import suppress

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from hf_bench import Bench, run

from ensemblehub.errors import EngineError
from ensemblehub.schema import Request, Sampling, TokenIds

DRAWN = random.Random(5)
SYSTEM = tuple(DRAWN.choices(range(10, 300), k=190))
OTHER = tuple(DRAWN.choices(range(10, 300), k=100))


def asked(*parts, tokens=8, **sampling):
    return Request(TokenIds(sum(parts, ())), Sampling(max_tokens=tokens, ignore_eos=True, **sampling))


def questions(count, length=20):
    drawn = random.Random(7)
    return [tuple(drawn.choices(range(10, 300), k=length)) for _ in range(count)]


class Counted(Bench):
    """Counts the tokens that each forward pass computes; `gate` holds it up while it is clear."""

    def __init__(self, path, **options):
        super().__init__(path, **{"batch_rows": 16} | options)
        self.computed = []
        self.gate = threading.Event()
        self.gate.set()
        self.failing = []  # raised by the next passes

    async def __aenter__(self):
        await super().__aenter__()
        forward = self.model.forward

        def counted(slots, starts, ids, *, keep):
            self.computed.append(sorted(map(len, ids)))
            self.gate.wait(20)
            if self.failing:
                raise self.failing.pop()
            return forward(slots, starts, ids, keep=keep)

        self.model.forward = counted
        return self

    @property
    def read(self):
        """Tokens of prompts computed since the last call."""
        passes, self.computed = self.computed, []
        return sum(count for counts in passes for count in counts if count > 1)


class LlamaCounted(Counted):
    def __init__(self, original, path, **options):
        from ensemblehub.generators.llama_cpp.engine import LlamaCppEngine, LlamaCppOptions

        super().__init__(original)
        options = {"threads": 1, "kv": "f32", "batch_rows": 16} | options
        self.engine = LlamaCppEngine("tiny", LlamaCppOptions(str(path), **options))


@pytest.fixture(scope="module")
def gguf(qwen, tmp_path_factory):
    pytest.importorskip("gguf")
    pytest.importorskip("llama_cpp")
    from ensemblehub.generators.llama_cpp.gguf_export import export

    return export(qwen, tmp_path_factory.mktemp("gguf"), "f32")


@pytest.fixture(params=["hf", "llama_cpp"])
def bench(request, qwen):
    if request.param == "hf":
        return lambda **options: Counted(qwen, **options)
    path = request.getfixturevalue("gguf")
    return lambda **options: LlamaCounted(qwen, path, **options)


async def without(bench, requests):
    """What each request brings where nothing is shared."""
    async with bench(prefix_cache_tokens=0) as b:
        return await asyncio.gather(*map(b.ids, requests))


def test_a_common_prefix_is_read_once_and_changes_no_token(bench):
    async def main():
        requests = [asked(SYSTEM, question) for question in questions(16)]
        expected = await without(bench, requests)
        async with bench(prefix_cache_tokens=0) as b:
            await asyncio.gather(*map(b.ids, requests))
            assert b.read == 16 * 210
            assert b.take_usage().cached_tokens == 0
        async with bench() as b:
            assert await asyncio.gather(*map(b.ids, requests)) == expected
            assert b.read == 190 + 16 * 20
            spent = b.take_usage()
            assert (spent.prompt_tokens, spent.cached_tokens) == (16 * 210, 15 * 190)

    run(main())


def test_samples_of_a_prompt_read_it_once(bench):
    async def main():
        requests = [asked(SYSTEM, temperature=1.0, seed=seed) for seed in range(9)]
        expected = await without(bench, requests)
        async with bench() as b:
            assert await asyncio.gather(*map(b.ids, requests)) == expected
            assert len(set(map(tuple, expected))) > 4
            assert b.read == 190
            assert b.take_usage().cached_tokens == 8 * 189

    run(main())


def test_scores_share_a_prefix_with_their_predictions(bench):
    async def main():
        requests = [asked(SYSTEM, question) for question in questions(9)]
        async with bench(prefix_cache_tokens=0) as b:
            expected = [await b.engine.score(request, b.meter) for request in requests]
        async with bench() as b:
            together = await asyncio.gather(*[b.engine.score(request, b.meter) for request in requests])
            assert b.read == 190 + 9 * 20 + 8  # the last shared token again, for what it predicts
            for scored, wanted in zip(together, expected, strict=True):
                ours, theirs = ([t.logprob for t in reading.tokens[1:]] for reading in (scored, wanted))
                assert ours == pytest.approx(theirs, abs=1e-4)

    run(main())


def test_a_reading_waits_for_no_writer_which_has_no_predictions(bench):
    async def main():
        async with bench() as b:
            b.gate.clear()
            writer = asyncio.create_task(b.ids(asked(SYSTEM, tokens=4)))
            await b.until(lambda: b.computed)
            reader = asyncio.create_task(b.engine.score(asked(SYSTEM), b.meter))
            await asyncio.sleep(0.05)
            b.gate.set()
            await asyncio.gather(writer, reader)
            assert b.read == 2 * 190

    run(main())


def test_who_arrives_while_another_writes_starts_from_its_prefix(bench):
    async def main():
        first, second = (asked(SYSTEM, question, tokens=60) for question in questions(2))
        expected = await without(bench, [first, second])
        async with bench() as b:
            stream = b.engine.stream(first, b.meter)
            written = [token.id for _ in range(5) for token in (await anext(stream)).tokens]
            assert await b.ids(second) == expected[1]
            assert b.read == 210 + 20
            assert written + [token.id async for piece in stream for token in piece.tokens] == expected[0]

    run(main())


def test_different_prefixes_are_read_side_by_side_and_writers_go_on(bench):
    async def main():
        requests = [asked(prefix, question) for question in questions(6) for prefix in (SYSTEM, SYSTEM[::-1])]
        expected = await without(bench, requests)
        async with bench() as b:
            stream = b.engine.stream(asked(OTHER, tokens=40), b.meter)
            await anext(stream)
            b.gate.clear()
            tasks = [asyncio.create_task(b.ids(request)) for request in requests]
            drained = asyncio.create_task(anext(stream))
            await asyncio.sleep(0.05)
            b.computed.clear()
            b.gate.set()
            assert await asyncio.gather(*tasks) == expected
            await drained
            await stream.aclose()
            assert b.read <= 2 * 190 + 12 * 20

    run(main())


def test_a_short_prefix_or_none_is_not_waited_for(bench):
    async def main():
        for options, shared in (({}, 31), ({"prefix_cache_tokens": 60}, 60)):
            async with bench(**options) as b:
                b.gate.clear()
                blocker = asyncio.create_task(b.ids(asked(SYSTEM, tokens=1)))
                await b.until(lambda b=b: b.computed)
                tasks = [asyncio.create_task(b.ids(asked(OTHER[:shared], q))) for q in questions(8)]
                await asyncio.sleep(0.05)
                b.gate.set()
                await asyncio.gather(blocker, *tasks)
                assert [shared + 20] * 8 in b.computed  # all in one pass

    run(main())


def test_groups_within_groups_share_what_each_has_in_common(bench):
    async def main():
        few = [OTHER[:40], OTHER[40:80]]
        requests = [asked(SYSTEM, group, question) for group in few for question in questions(4)]
        expected = await without(bench, requests)
        async with bench() as b:
            assert await asyncio.gather(*map(b.ids, requests)) == expected
            assert b.read == 190 + 2 * 40 + 8 * 20

    run(main())


@pytest.mark.parametrize("how", ["cancelled", "failed"])
def test_where_the_reading_row_ends_early_the_next_one_reads(how, bench):
    async def main():
        requests = [asked(SYSTEM, question) for question in questions(8)]
        expected = await without(bench, requests)
        async with bench() as b:
            b.gate.clear()
            leader = asyncio.create_task(b.ids(requests[0]))
            await b.until(lambda: b.computed)
            others = [asyncio.create_task(b.ids(request)) for request in requests[1:]]
            await asyncio.sleep(0.05)
            if how == "failed":
                b.failing.append(MemoryError("out of memory"))
            else:
                leader.cancel()
                await asyncio.sleep(0.05)
            b.gate.set()
            with pytest.raises(EngineError if how == "failed" else asyncio.CancelledError):
                await leader
            assert await asyncio.gather(*others) == expected[1:]
            assert b.read == (210 + 190 + 7 * 20 if how == "failed" else 210 + 7 * 20)

    run(main())


def test_a_decoder_that_is_not_stepped_holds_nobody_up(bench):
    async def main():
        requests = [asked(SYSTEM, question) for question in questions(3)]
        expected = await without(bench, requests)
        async with bench() as b:
            decoders = [b.engine.decoder(request, b.meter) for request in requests]
            lines = await asyncio.gather(*[decoder.step() for decoder in decoders])
            assert b.read == 190 + 3 * 20
            assert [int(line.logprobs.argmax()) for line in lines] == [ids[0] for ids in expected]
            await decoders[0].step(DRAWN.choices(range(10, 300), k=20))
            assert await asyncio.gather(*map(b.ids, requests)) == expected
            for decoder in decoders:
                decoder.close()

    run(main())


def test_no_memory_for_a_row_is_the_failure_of_that_row(bench):
    async def main():
        async with bench() as b:
            taken, write = [], b.model.slots.write

            def full(*args):
                taken.append(args)
                if len(taken) == 2:
                    raise MemoryError("no memory left")
                write(*args)

            b.model.slots.write = full
            requests = [asked(SYSTEM, question) for question in questions(6)]
            done = await asyncio.gather(*map(b.ids, requests), return_exceptions=True)
            assert [type(result) for result in done].count(EngineError) == 1
            assert sum(isinstance(result, list) for result in done) == 5

    run(main())


@pytest.mark.parametrize("seed", range(4))
def test_whatever_arrives_and_leaves_in_whatever_order(seed, bench):
    async def main():
        drawn = random.Random(seed)
        stems = [SYSTEM[: drawn.randint(20, 190)] + OTHER[: drawn.randint(0, 60)] for _ in range(5)]
        requests = [
            asked(drawn.choice(stems), question, tokens=drawn.randint(1, 12)) for question in questions(24, 7)
        ]
        expected = await without(bench, requests)
        async with bench(batch_rows=6, prefix_cache_tokens=drawn.choice([300, 5000])) as b:

            async def late(request):
                await asyncio.sleep(drawn.random() * 0.05)
                return await b.ids(request)

            tasks = [asyncio.create_task(late(request)) for request in requests]
            left = set(drawn.sample(range(24), 6))
            for index in sorted(left):
                await asyncio.sleep(drawn.random() * 0.02)
                tasks[index].cancel()
            for index, task in enumerate(tasks):
                with suppress(asyncio.CancelledError):
                    assert await task == expected[index]
                assert index in left or not task.cancelled()

    run(main())
