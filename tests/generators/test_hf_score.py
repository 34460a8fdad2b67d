"""Reading: scores and distributions are those of a direct pass, and what was read is not read again."""

import asyncio
import math
import random
import threading
import time
from itertools import pairwise

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
from hf_bench import WORDS, run

from ensemblehub.errors import EngineError, RequestError
from ensemblehub.schema import Chat, Message, Request, Sampling, Text, TokenIds


def ask(*contents, prefix="", **sampling):
    messages = tuple(Message(role, text) for role, text in zip(("system", "user"), contents, strict=False))
    return Request(Chat(messages), Sampling(**{"max_tokens": 8, "ignore_eos": True} | sampling), prefix)


def sentence(seed, words):
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def check(bench, scored, ids):
    """Every token's logprob, entropy and best logprob against a float64 softmax of a fresh pass."""
    lines = bench.fresh(ids)
    assert [token.id for token in scored.tokens] == list(ids)
    assert scored.tokens[0].logprob is None
    assert scored.tokens[0].entropy is None
    assert scored.tokens[0].best is None
    for place, token in enumerate(scored.tokens[1:]):
        assert token.logprob == pytest.approx(lines[place, token.id].item(), abs=1e-5)
        assert token.entropy == pytest.approx(-(lines[place].exp() * lines[place]).sum().item(), abs=1e-5)
        assert token.best == pytest.approx(lines[place].max().item(), abs=1e-5)


@pytest.mark.parametrize("family", ["qwen", "llama", "sliding"])
def test_score_is_that_of_a_direct_pass(family, bench, request):
    async def main():
        async with bench(request.getfixturevalue(family)) as b:
            asked = [ask("be brief", sentence(seed, 3 + 5 * seed)) for seed in range(6)]
            for query, scored in zip(
                asked, await asyncio.gather(*[b.engine.score(a, b.meter) for a in asked]), strict=True
            ):
                check(b, scored, b.engine.render(query).ids)
            cost = b.take_usage()
            assert cost.completion_tokens == 0
            assert cost.prompt_tokens == sum(b.engine.count(request) for request in asked)
            assert len(b.passes) < len(asked)  # waiting requests share passes

    run(main())


def test_a_long_prompt_is_read_in_parts(bench, monkeypatch):
    monkeypatch.setattr("ensemblehub.generators.batching.batches.CHUNK", 64)

    async def main():
        async with bench() as b:
            request = ask("be brief", sentence(0, 200))
            for ids in (
                b.engine.render(request).ids,
                (7,),
                tuple(range(9, 138)),
            ):  # 129: one token beyond two parts
                check(b, await b.engine.score(Request(TokenIds(ids)), b.meter), ids)
            b.passes.clear()
            await b.engine.score(ask("so", sentence(4, 200)), b.meter)
            assert {width for _, width in b.passes[:-1]} == {64}

    run(main())


def test_an_extended_reading_computes_only_the_new_tokens(bench):
    async def main():
        async with bench() as b:
            question, insight = sentence(1, 20), sentence(2, 30)
            levels = [
                question,
                *(f"{question}\nInsights:\n{insight[:cut]}" for cut in (20, 60, 90, len(insight))),
            ]
            read = []
            for text in levels:
                request = ask("Use the insights.", text)
                check(b, await b.engine.score(request, b.meter), b.engine.render(request).ids)
                read.append(b.take_usage())
            for before, now in pairwise(read):
                # All but the closing template tokens, a re-tokenised last word and the boundary token.
                assert now.cached_tokens >= before.prompt_tokens - 6
            computed = sum(cost.prompt_tokens - cost.cached_tokens for cost in read)
            assert computed <= read[-1].prompt_tokens + 6 * len(levels)

            again = await b.engine.score(ask("Use the insights.", levels[2]), b.meter)
            check(b, again, b.engine.render(ask("Use the insights.", levels[2])).ids)
            same = b.take_usage()
            assert same.cached_tokens == same.prompt_tokens  # nothing at all

            answer = await b.text(ask("Use the insights.", levels[-1]))
            reused = b.take_usage()
            assert reused.prompt_tokens - reused.cached_tokens == 1
            longer = ask("Use the insights.", levels[-1], prefix=answer + " and sun")
            check(b, await b.engine.score(longer, b.meter), b.engine.render(longer).ids)

    run(main())


def test_scoring_after_writing_knows_no_more_than_was_read(bench):
    async def main():
        async with bench() as b:
            request = ask("be brief", sentence(3, 12))
            ids = [token.id for piece in await b.pieces(request) for token in piece.tokens]
            whole = (*b.engine.render(request).ids, *ids)
            given = Request(TokenIds(whole))
            b.take_usage()
            check(b, await b.engine.score(given, b.meter), whole)
            assert b.take_usage().cached_tokens == 0  # the prompt's predictions were never looked at
            check(b, await b.engine.score(Request(TokenIds((*whole, 9))), b.meter), (*whole, 9))
            assert b.take_usage().cached_tokens == len(whole) - 1

    run(main())


def test_score_is_the_same_after_any_history(bench):
    """Random mixtures of reading, writing and abandoning never change a reading."""
    rng = random.Random(5)
    texts = [sentence(7, 6) + sentence(seed, rng.randint(1, 12)) for seed in range(6)]

    async def ask_at_random(b, text):
        kind = rng.choice(("score", "write", "abandon", "step"))
        if kind == "score":
            request = ask("s", text[: rng.randint(1, len(text))])
            check(b, await b.engine.score(request, b.meter), b.engine.render(request).ids)
        elif kind == "write":
            await b.text(ask("s", text, temperature=1.0, max_tokens=rng.randint(1, 9)))
        elif kind == "abandon":
            stream = b.engine.stream(ask("s", text, max_tokens=50), b.meter)
            await anext(stream)
            await stream.aclose()
        else:
            decoder = b.engine.decoder(ask("s", text), b.meter)
            await decoder.step()
            await decoder.step([7, 8], 0)
            decoder.close()

    async def main():
        async with bench(prefix_cache_tokens=200, batch_rows=3) as b:
            for _ in range(12):
                await asyncio.gather(*[ask_at_random(b, rng.choice(texts)) for _ in range(5)])
            cache = b.engine._worker.cache
            assert 0 < cache.tokens <= 200
            slots = b.model.slots
            await b.until(lambda: len(slots.free) == slots.capacity[0])  # every slot came back

    run(main())


def test_origins_say_which_message_and_which_characters(bench):
    async def main():
        async with bench() as b:
            request = ask("be brief", "the quick brown fox", prefix=" jumps over")
            scored = await b.engine.score(request, b.meter)
            texts = ["be brief", "the quick brown fox", " jumps over"]
            for index, text in enumerate(texts):
                tokens = scored.of(index)
                assert "".join(token.text for token in tokens) == text
                assert all(text[token.start : token.end] == token.text for token in tokens)
            template = [token.text for token in scored.tokens if token.message is None]
            assert template == ["<|system|>", "<|end|>", "<|user|>", "<|end|>", "<|assistant|>"]
            assert "".join(token.text for token in scored.of(1, start=10)) == " brown fox"

    run(main())


def test_decoder_equals_a_fresh_pass_through_appends_and_drops(bench):
    async def main():
        async with bench() as b:
            request = ask("be brief", "nine small birds")
            decoder = b.engine.decoder(request, b.meter)
            ids, rng = list(b.engine.render(request).ids), random.Random(0)
            prompt = len(ids)
            for append, drop in [
                ((), 0),
                ((5,), 0),
                ((6, 7, 8), 0),
                ((), 2),
                ((9,), 1),
                ((), 0),
                ((4, 4), 2),
            ]:
                ids = [*ids[: len(ids) - drop], *append]
                got = (await decoder.step(append, drop)).logprobs
                assert got.shape == (b.engine.info.vocabulary,)
                assert str(got.dtype) == "float32"
                assert torch.allclose(torch.from_numpy(got).double(), b.fresh(ids)[-1], atol=1e-5)
            with pytest.raises(RequestError, match="cannot drop"):
                await decoder.step((), len(ids) - prompt + 1)
            with pytest.raises(RequestError):
                await decoder.step([rng.randrange(9)] * 512)
            decoder.close()
            decoder.close()
            cost = b.take_usage()
            assert (cost.prompt_tokens, cost.completion_tokens, cost.discarded_tokens, cost.calls) == (
                prompt,
                8,
                5,
                1,
            )
            with pytest.raises(RequestError, match="closed"):
                await decoder.step()

    run(main())


def test_reading_a_draft_is_one_pass_and_gives_every_distribution(bench, monkeypatch):
    async def main():
        async with bench() as b:
            request = ask("be brief", "nine small birds")
            decoder = b.engine.decoder(request, b.meter)
            ids = list(b.engine.render(request).ids)
            for append, drop in [((5, 6, 7), 0), ((9, 4), 1), ((8,), 2)]:
                kept = len(ids) - drop
                ids = [*ids[:kept], *append]
                b.passes.clear()
                got = await decoder.read(append, drop)
                assert len(b.passes) == 1
                assert len(got) == len(append)
                fresh = b.fresh(ids)
                for at, one_got in enumerate(got):
                    assert torch.allclose(
                        torch.from_numpy(one_got.logprobs).double(), fresh[kept + at], atol=1e-5
                    )
            b.passes.clear()
            assert torch.allclose(
                torch.from_numpy((await decoder.step()).logprobs).double(), fresh[-1], atol=1e-5
            )
            assert not b.passes  # it was known
            with pytest.raises(RequestError, match="nothing to read"):
                await decoder.read(())
            decoder.close()

    run(main())
    monkeypatch.setattr("ensemblehub.generators.batching.batches.CHUNK", 8)

    async def in_parts():
        async with bench() as b:
            request = ask("be brief", "nine small birds")
            decoder, draft = b.engine.decoder(request, b.meter), list(range(5, 30))
            got = await decoder.read(draft)
            fresh = b.fresh([*b.engine.render(request).ids, *draft])[-len(draft) :]
            assert len(b.passes) > 3
            assert torch.allclose(
                torch.stack([torch.from_numpy(line.logprobs) for line in got]).double(), fresh, atol=1e-5
            )
            decoder.close()

    run(in_parts())


def test_a_cancelled_step_is_billed_for_what_it_read(bench):
    async def main():
        async with bench() as b:
            decoder = b.engine.decoder(ask("be brief", "nine small birds"), b.meter)
            counted = b.model.forward

            def slow(*args, **options):
                logits = counted(*args, **options)
                time.sleep(0.2)
                return logits

            b.model.forward = slow
            stepping = asyncio.create_task(decoder.step())
            await b.until(lambda: b.passes)
            stepping.cancel()
            with pytest.raises(asyncio.CancelledError):
                await stepping
            decoder.close()
            assert b.take_usage().prompt_tokens == b.engine.count(ask("be brief", "nine small birds"))

    run(main())


def test_decoders_encode_what_stands_in_the_middle(bench):
    async def main():
        async with bench() as b:
            decoder = b.engine.decoder(ask("be brief", "rain"), b.meter)
            text = " birds sing<|end|> é😀"
            ids = decoder.encode(text)
            assert b"".join(decoder.vocabulary.tokens[index] for index in ids).decode() == text
            assert not set(ids) & decoder.vocabulary.special
            assert decoder.encode("") == []
            decoder.close()

    run(main())


def test_decoders_that_wait_share_a_pass_with_rows_that_write(bench):
    async def main():
        async with bench(lookahead=30) as b:
            decoders = [b.engine.decoder(ask("s", sentence(seed, 5)), b.meter) for seed in range(6)]
            await asyncio.gather(*[decoder.step() for decoder in decoders])
            b.passes.clear()
            forward, released = b.model.forward, threading.Event()

            def held(*args, **options):  # the writing row's first pass lasts until all six ask
                logits = forward(*args, **options)
                b.model.forward = forward
                released.wait(10)
                return logits

            b.model.forward = held
            writing = asyncio.create_task(b.ids(ask("be brief", "rain", max_tokens=30)))
            await b.until(lambda: b.passes)
            stepping = [asyncio.create_task(decoder.step([5])) for decoder in decoders]
            await b.until(lambda: all(decoder._row.asked for decoder in decoders))
            released.set()
            await asyncio.gather(*stepping)
            assert b.passes[0][0] == 1
            assert b.passes[1] == (7, 1)
            assert len(await writing) == 30
            for decoder in decoders:
                decoder.close()

    run(main())


def test_a_failing_score_is_billed_for_what_it_read(bench):
    async def main():
        async with bench() as b:

            def failing(*_, **__):
                raise RuntimeError("broken")

            b.model.forward = failing
            with pytest.raises(EngineError, match="broken"):
                await b.engine.score(ask("be brief", "rain"), b.meter)
            decoder = b.engine.decoder(ask("be brief", "rain"), b.meter)
            with pytest.raises(EngineError, match="broken"):
                await decoder.step()
            with pytest.raises(EngineError, match="broken"):
                await decoder.step()
            decoder.close()
            assert b.cost.calls == 2
            assert b.cost.prompt_tokens == 0

    run(main())


def test_parts_add_up_to_the_total(bench):
    async def main():
        async with bench() as b:
            for purpose in ("judge", "answer"):
                meter = b.ledger.meter(purpose)
                await b.engine.score(ask("be brief", "rain and sun"), meter)
                async for _ in b.engine.stream(ask("be brief", "rain and sun"), meter):
                    pass
            total = b.ledger.total
            assert total.calls == 4
            assert total.flops == pytest.approx(sum(line.cost.flops for line in b.ledger.usage.lines))
            assert math.isclose(total.seconds, sum(line.cost.seconds for line in b.ledger.usage.lines))
            assert {line.purpose for line in b.ledger.usage.lines} == {"judge", "answer"}

    run(main())


def test_texts_and_ids_are_prompts_too(bench):
    async def main():
        async with bench() as b:
            ids = b.engine.render(Request(Text("the quick<|end|> brown"))).ids
            assert 1 in ids  # a raw text may hold special tokens
            few = Sampling(max_tokens=9)
            assert await b.ids(Request(Text("the quick<|end|> brown"), few)) == await b.ids(
                Request(TokenIds(ids), few)
            )
            scored = await b.engine.score(Request(Text("the quick"), prefix=" brown"), b.meter)
            assert "".join(token.text for token in scored.of(0)) == "the quick"
            assert "".join(token.text for token in scored.of(1)) == " brown"

    run(main())
