"""Writing: the tokens are those of transformers, whoever shares the step, and no text is torn."""

import asyncio
import math
import random
import threading
from contextlib import aclosing

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import hf_bench
import torch
from hf_bench import WORDS, run

from ensemblehub.errors import ConfigError, ContextOverflowError, EngineError, RequestError
from ensemblehub.generators.batching import sampling as hf_sampling
from ensemblehub.generators.hf.engine import HFEngine, HFOptions
from ensemblehub.schema import Chat, Message, Request, Sampling, Text, TokenIds


def ask(content, **sampling):
    return Request(
        Chat((Message("user", content),)), Sampling(**{"max_tokens": 12, "ignore_eos": True} | sampling)
    )


def prompts(count):
    rng = random.Random(1)
    return [" ".join(rng.choices(WORDS, k=rng.randint(1, 30))) for _ in range(count)]


def generated(bench, ids, count):
    tensor = torch.tensor([list(ids)])
    out = bench.model.network.generate(
        tensor, attention_mask=torch.ones_like(tensor), max_new_tokens=count, do_sample=False
    )
    return out[0, len(ids) :].tolist()


@pytest.mark.parametrize("family", ["qwen", "llama", "sliding", "mistral"])
def test_greedy_tokens_are_those_of_transformers_alone_and_in_a_batch(family, bench, request):
    async def main():
        async with bench(request.getfixturevalue(family), prefix_cache_tokens=0) as b:
            asked = [ask(text, max_tokens=20, ignore_eos=False) for text in prompts(9)]
            expected = [generated(b, b.engine.render(request).ids, 20) for request in asked]
            alone = [await b.ids(request) for request in asked]
            together = await asyncio.gather(*map(b.ids, asked))
            assert alone == expected
            assert together == expected
            assert any(rows > 1 for rows, width in b.passes if width == 1)

    run(main())


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_rows_of_one_length_are_masked_by_every_kernel(kernel, bench):
    async def main():
        async with bench(prefix_cache_tokens=0, attn_implementation=kernel) as b:
            drawn = random.Random(2)
            prompts = [tuple(drawn.choices(range(10, 300), k=30)) for _ in range(4)]
            asked = [Request(TokenIds(ids), Sampling(max_tokens=20, ignore_eos=True)) for ids in prompts]
            expected = [generated(b, ids, 20) for ids in prompts]
            assert await asyncio.gather(*map(b.ids, asked)) == expected
            assert [await b.ids(request) for request in asked] == expected
            scored = await b.engine.score(asked[0], b.meter)
            lines = b.fresh(prompts[0])[:-1]
            wanted = [line[index].item() for line, index in zip(lines, prompts[0][1:], strict=True)]
            assert [token.logprob for token in scored.tokens[1:]] == pytest.approx(wanted, abs=1e-4)

    run(main())


def test_a_row_joins_and_leaves_while_others_write(bench):
    async def main():
        async with bench(prefix_cache_tokens=0, batch_rows=4) as b:
            asked = [
                ask(text, max_tokens=length)
                for text, length in zip(prompts(11), [40, 3, 17, 29, 5, 8, 33, 1, 2, 21, 13], strict=True)
            ]
            alone = [await b.ids(request) for request in asked]

            async def late(index):
                await asyncio.sleep(0.003 * index)
                return await b.ids(asked[index])

            assert await asyncio.gather(*map(late, range(len(asked)))) == alone
            assert max(rows for rows, _ in b.passes) <= 4

    run(main())


def test_prefix_cache_changes_no_text_and_continuing_reuses_the_answer(bench):
    async def main():
        async with bench() as b:
            request = ask("the quick brown fox jumps over", max_tokens=24)
            first = await b.text(request)
            assert b.take_usage().cached_tokens == 0
            assert await b.text(request) == first
            again = b.take_usage()
            assert again.cached_tokens == again.prompt_tokens - 1
            # The answer so far is re-tokenised, so only as much as gives the same tokens is reused.
            head = "".join(
                token.text
                for piece in await b.pieces(ask("lazy dogs sing", max_tokens=9))
                for token in piece.tokens
            )
            b.take_usage()
            await b.text(ask("lazy dogs sing", max_tokens=5).continued(head))
            assert b.take_usage().cached_tokens >= b.engine.count(ask("lazy dogs sing"))

    run(main())


def test_stop_strings_never_show_even_across_tokens(bench):
    async def main():
        async with bench() as b:
            whole = await b.text(ask("nine small birds", max_tokens=40))
            tokens = [
                token.text
                for piece in await b.pieces(ask("nine small birds", max_tokens=40))
                for token in piece.tokens
            ]
            assert whole == "".join(tokens)
            for start, length in [(3, 2), (7, 5), (10, 9), (15, 1)]:
                stop = whole[start : start + length]
                pieces = await b.pieces(ask("nine small birds", max_tokens=40, stop=("\u2603 never", stop)))
                text = "".join(piece.text for piece in pieces)
                assert text == whole[: whole.index(stop)]
                assert pieces[-1].finish == "stop"
                assert "".join(token.text for piece in pieces for token in piece.tokens) == text

    run(main())


def test_finish_tells_stop_from_length_and_the_end_token_is_no_text(bench):
    async def main():
        async with bench() as b:
            free = await b.pieces(ask("rain and sun", max_tokens=6))
            assert free[-1].finish == "length"
            third = [token.id for piece in free for token in piece.tokens][2]
            cut = await b.pieces(ask("rain and sun", max_tokens=6, stop_token_ids=(third,)))
            tokens = [token for piece in cut for token in piece.tokens]
            assert cut[-1].finish == "stop"
            assert tokens[-1].id == third
            assert tokens[-1].text == ""
            b.take_usage()
            await b.pieces(ask("rain and sun", max_tokens=6, stop_token_ids=(third,)))
            assert b.take_usage().completion_tokens == len(tokens) <= 3

    run(main())


def test_min_tokens_forbids_the_end(bench):
    async def main():
        async with bench() as b:
            first = (await b.ids(ask("rain and sun")))[0]
            ids = await b.ids(ask("rain and sun", stop_token_ids=(first,), min_tokens=4))
            assert len(ids) >= 4
            assert first not in ids[:4]

    run(main())


def test_seeds_reproduce_whoever_shares_the_step(bench):
    async def main():
        async with bench() as b:
            warm = {"temperature": 1.0, "max_tokens": 16}
            alone = await b.ids(ask("the quick brown", seed=7, **warm))
            crowd = await asyncio.gather(
                *[b.ids(ask("the quick brown", seed=seed, **warm)) for seed in range(12)]
            )
            assert crowd[7] == alone
            assert len({tuple(ids) for ids in crowd}) > 6
            greedy = await b.ids(ask("the quick brown", max_tokens=16))
            assert await b.ids(ask("the quick brown", temperature=2.0, top_k=1, max_tokens=16)) == greedy
            assert await b.ids(ask("the quick brown", temperature=2.0, top_p=1e-6, max_tokens=16)) == greedy

    run(main())


def test_temperature_samples_the_distribution(bench):
    async def main():
        async with bench() as b:
            asked = [ask("birds", temperature=0.7, seed=seed, max_tokens=1) for seed in range(600)]
            first = [ids[0] for ids in await asyncio.gather(*map(b.ids, asked))]
            logprobs = b.fresh(b.engine.render(asked[0]).ids)[-1]
            expected = torch.softmax(logprobs / 0.7, -1)
            for index in expected.topk(4).indices.tolist():
                share, wanted = first.count(index) / 600, expected[index].item()
                assert abs(share - wanted) < 4 * math.sqrt(wanted * (1 - wanted) / 600)

    run(main())


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"min_p": 0.6}, [0, 1, 0, 1, 0]),
        ({"min_p": 0.25}, [1, 1, 0, 1, 1]),
        ({"min_p": 1.0}, [0, 1, 0, 0, 0]),
        ({"min_p": 0.4, "top_k": 2}, [0, 1, 0, 1, 0]),
        ({"min_p": 0.4, "top_p": 0.9}, [0, 1, 0, 1, 1]),
        ({"min_p": 0.4, "top_p": 0.7}, [0, 1, 0, 1, 0]),
        ({}, [1, 1, 0, 1, 1]),
    ],
)
def test_min_p_leaves_out_tokens_by_their_share_of_the_top_token(options, kept):
    rows = torch.tensor([[0.1, 0.4, 0.0, 0.3, 0.2]] * 2)
    left = hf_sampling._limited([Sampling(temperature=1.0, **options), Sampling(temperature=1.0)], rows)
    assert (left[0] > 0).int().tolist() == kept
    assert (left[1] > 0).int().tolist() == [1, 1, 0, 1, 1]  # a row without a limit is left as it is


def test_penalties_and_bias_are_those_of_transformers(bench):
    async def main():
        async with bench() as b:
            request = ask("over lazy dogs", repetition_penalty=1.7, max_tokens=20)
            tensor = torch.tensor([b.engine.render(request).ids])
            wanted = b.model.network.generate(
                tensor,
                attention_mask=torch.ones_like(tensor),
                max_new_tokens=20,
                do_sample=False,
                repetition_penalty=1.7,
                eos_token_id=None,
            )
            assert await b.ids(request) == wanted[0, tensor.shape[1] :].tolist()
            assert await b.ids(ask("over lazy dogs", logit_bias={9: 1e4}, max_tokens=3)) == [9, 9, 9]
            assert (
                len(set(await b.ids(ask("over", logit_bias={9: 500.0}, presence_penalty=1e4, max_tokens=9))))
                == 9
            )

    run(main())


def test_logprobs_entropies_and_alternatives_are_those_of_a_direct_pass(bench):
    async def main():
        async with bench() as b:
            request = ask("while nine small birds", temperature=1.3, seed=3, top_logprobs=3, max_tokens=15)
            ids = b.engine.render(request).ids
            tokens = [token for piece in await b.pieces(request) for token in piece.tokens]
            lines = b.fresh([*ids, *(token.id for token in tokens)])[len(ids) - 1 : -1]
            for token, line in zip(tokens, lines, strict=True):
                assert token.logprob == pytest.approx(line[token.id].item(), abs=1e-4)
                assert token.entropy == pytest.approx(-(line.exp() * line).sum().item(), abs=1e-4)
                assert [alternative.id for alternative in token.top] == line.topk(3).indices.tolist()

    run(main())


def test_parts_of_characters_keep_their_bytes(bench):
    """All byte tokens are among the alternatives of a random model, and bytes 0 to 255 of no text can be chosen."""

    async def main():
        async with bench() as b:
            spelled = b.engine.vocabulary.tokens
            broken = [
                index for index, data in enumerate(spelled) if "\ufffd" in data.decode(errors="replace")
            ]
            parts = {index: spelled[index] for index in broken}
            assert len(parts) > 100
            request = ask(
                "over", top_logprobs=len(spelled), logit_bias=dict.fromkeys(parts, 1e4), max_tokens=6
            )
            tokens = [token for piece in await b.pieces(request) for token in piece.tokens]
            assert [token.part for token in tokens] == [parts[token.id] for token in tokens]
            for token in tokens:
                assert {other.id: other.part for other in token.top if other.part is not None} == parts
            request = ask("over", logit_bias={spelled.index(b"a"): 1e4}, max_tokens=2)
            assert [token.part for piece in await b.pieces(request) for token in piece.tokens] == [None, None]
            scored = await b.engine.score(Request(Text("né 😀")), b.meter)
            assert [token.part for token in scored.tokens] == [parts.get(token.id) for token in scored.tokens]
            assert any(token.part for token in scored.tokens)

    run(main())


def test_characters_are_never_split(bench):
    async def main():
        async with bench() as b:
            spelling = {bytes_: index for index, bytes_ in enumerate(b.engine.vocabulary.tokens)}
            emoji = [spelling[bytes([byte])] for byte in "é😀".encode()]
            step = 10_000.0
            seen, script = [], iter([*emoji, *emoji])
            row_ids = []
            forward = b.model.forward

            def scripted(slots, starts, ids, *, keep):
                logits = forward(slots, starts, ids, keep=keep)
                row_ids.append(next(script))
                logits[:, -1, row_ids[-1]] = step
                return logits

            b.model.forward = scripted
            async for piece in b.engine.stream(ask("rain", max_tokens=len(emoji) * 2), b.meter):
                seen.append(piece.text)
            assert "".join(seen) == "é😀é😀"
            assert not any("\ufffd" in text for text in seen)

    run(main())


def test_closing_stops_the_model_and_bills_what_it_wrote(bench):
    async def main():
        async with bench(lookahead=4) as b:
            async with aclosing(b.engine.stream(ask("the quick", max_tokens=300), b.meter)) as stream:
                taken = 0
                async for piece in stream:
                    taken += len(piece.tokens)
                    if taken >= 10:
                        break
            cost, passes = b.take_usage(), len(b.passes)
            await asyncio.sleep(0.1)
            assert len(b.passes) == passes == cost.completion_tokens  # the prefill yields the first token
            assert cost.completion_tokens - cost.discarded_tokens == taken
            assert cost.discarded_tokens <= 4
            assert cost.calls == 1
            assert cost.seconds > 0

    run(main())


@pytest.mark.parametrize("lookahead", [0, 1, 6])
def test_an_unread_row_pauses_and_others_go_on(bench, lookahead):
    async def main():
        async with bench(lookahead=lookahead) as b:
            request = ask("the quick", max_tokens=40)
            whole = await b.ids(request)
            b.take_usage()
            async with aclosing(b.engine.stream(request, b.meter)) as stream:
                piece = await anext(stream)
                await asyncio.sleep(0.15)
                paused = len(b.passes)
                await asyncio.sleep(0.1)
                assert len(b.passes) == paused
                other = await b.ids(ask("lazy dogs", max_tokens=30))  # another row runs and shifts slots
                assert len(other) == 30
                ids = [token.id for token in piece.tokens]
                async for piece in stream:
                    assert len(piece.tokens) <= max(1, lookahead)
                    ids += [token.id for token in piece.tokens]
            assert ids == whole
            assert b.take_usage().discarded_tokens == 0

            async with aclosing(b.engine.stream(request, b.meter)) as stream:
                passes = len(b.passes)
                await anext(stream)
                await b.until(lambda: len(b.passes) > passes + lookahead)
                await asyncio.sleep(0.05)
            assert b.take_usage().discarded_tokens == lookahead

    run(main())


def test_cancelling_the_reader_bills_once(bench):
    async def main():
        async with bench() as b:
            task = asyncio.create_task(b.text(ask("the quick", max_tokens=400)))
            await b.until(lambda: len(b.passes) >= 5)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await b.until(lambda: b.ledger.calls)  # the generator is closed by the event loop
            cost, passes = b.take_usage(), len(b.passes)
            assert cost.calls == 1
            assert cost.completion_tokens == passes
            await asyncio.sleep(0.05)
            assert len(b.passes) == passes

    run(main())


def test_a_failing_model_is_an_error_is_billed_and_the_engine_lives_on(bench):
    async def main():
        async with bench() as b:
            expected = await b.ids(ask("lazy dogs"))
            forward, calls = b.model.forward, iter(range(1000))

            def failing(*args, **kwargs):
                if next(calls) == 5:
                    raise RuntimeError("out of memory\nlong trace")
                return forward(*args, **kwargs)

            b.take_usage()
            b.model.forward = failing
            with pytest.raises(EngineError, match=r"out of memory long trace$") as caught:
                await b.ids(ask("the quick brown fox", max_tokens=30))
            assert isinstance(caught.value.__cause__, RuntimeError)
            assert b.take_usage().completion_tokens == 5
            assert await b.ids(ask("lazy dogs")) == expected

    run(main())


def test_overflow_and_bad_requests_are_refused_before_anything_is_computed(bench):
    async def main():
        async with bench() as b:
            long = Request(TokenIds(tuple(range(10, 300))), Sampling(max_tokens=223))
            with pytest.raises(ContextOverflowError, match=r"512 tokens.*290 in the prompt, 223 in the"):
                await b.text(long)
            with pytest.raises(RequestError):
                await b.text(ask("rain", max_tokens=0))
            with pytest.raises(RequestError):
                await b.text(Request(Text("")))
            with pytest.raises(RequestError, match="no token id 400"):
                await b.text(Request(TokenIds((5, 400)), Sampling(max_tokens=2)))
            with pytest.raises(RequestError, match="no token id -1"):
                await b.text(ask("rain", logit_bias={-1: 2.0}))
            assert not b.passes
            assert not b.ledger.calls
            assert (
                len(
                    await b.ids(
                        Request(TokenIds(tuple(range(10, 300))), Sampling(max_tokens=222, ignore_eos=True))
                    )
                )
                == 222
            )

    run(main())


def test_a_default_is_cut_to_the_room_there_is(bench):
    async def main():
        async with bench() as b:
            for prompt in (TokenIds((5,) * 500), Text("fox " * 480)):
                request = Request(prompt, Sampling(max_tokens=64, fit_context=True, ignore_eos=True))
                room = 512 - b.engine.count(request)
                assert 0 < room < 64
                pieces = await b.pieces(request)
                assert sum(len(piece.tokens) for piece in pieces) == room
                assert pieces[-1].finish == "length"
                b.take_usage()
            with pytest.raises(
                ContextOverflowError, match=r"513 tokens .512 in the prompt, 1 in the completion"
            ):
                await b.ids(Request(TokenIds((5,) * 512), Sampling(fit_context=True)))

    run(main())


def test_whatever_goes_wrong_no_reader_waits_for_ever(bench):
    async def main():
        async with bench() as b:
            b.model.slots.take = lambda: 1 / 0
            with pytest.raises(EngineError, match="division"):
                await b.text(ask("the quick"))
            del b.model.slots.take
            assert len(await b.ids(ask("the quick"))) == 12

    run(main())


@pytest.mark.parametrize("how", ["stream", "score", "decoder"])
def test_logits_that_are_not_numbers_are_an_error_and_the_engine_lives_on(bench, how):
    async def main():
        async with bench() as b:
            expected = await b.ids(ask("lazy dogs"))
            forward = b.model.forward

            def spoiling(*args, **kwargs):
                logits = forward(*args, **kwargs)
                logits[..., 3] = float("nan")
                return logits

            async def asked():
                if how == "stream":
                    await b.ids(ask("the quick brown fox"))
                elif how == "score":
                    await b.engine.score(ask("the quick brown fox"), b.meter)
                else:
                    await b.engine.decoder(ask("the quick brown fox"), b.meter).step()

            b.model.forward = spoiling
            with pytest.raises(
                EngineError, match=r"tiny: the model failed: its logits are not numbers \(NaN\)$"
            ):
                await asked()
            b.model.forward = forward
            await asked()
            assert await b.ids(ask("lazy dogs")) == expected

    run(main())


def test_a_row_whose_logits_are_not_numbers_takes_no_other_with_it(bench):
    async def main():
        async with bench(lookahead=12) as b:
            calm, other = (
                ask("lazy dogs", temperature=1.0, seed=3),
                ask("the quick brown fox", temperature=1.0, seed=4),
            )
            expected = await b.ids(calm)
            forward, submit, together = b.model.forward, b.engine._worker.submit, []
            come = threading.Semaphore(0)

            def counting(row):
                submit(row)
                come.release()

            def spoiling(slots, *args, **kwargs):
                logits = forward(slots, *args, **kwargs)
                if not b.passes[1:]:  # the first pass lasts until both have come
                    assert all(come.acquire(timeout=10) for _ in range(2))
                if len(slots) == 2:
                    together.append(slots)
                    logits[1] = float("nan")
                return logits

            b.passes.clear()
            b.model.forward, b.engine._worker.submit = spoiling, counting
            answers = await asyncio.gather(b.ids(calm), b.ids(other), return_exceptions=True)
            assert len(together) == 1
            assert answers[0] == expected
            assert "not numbers (NaN)" in str(answers[1])

    run(main())


def test_a_thread_that_ends_fails_its_rows_and_all_that_come(bench):
    async def main():
        async with bench() as b:

            def ending(*_, **__):
                raise SystemExit("the library gave up")

            other = b.engine.decoder(ask("lazy dogs"), b.meter)
            await other.step()
            b.model.forward = ending
            with pytest.raises(EngineError, match="tiny: the model failed: the library gave up"):
                await b.text(ask("the quick"))
            with pytest.raises(EngineError, match="gave up"):
                await other.step([5])
            other.close()
            for _ in range(2):
                with pytest.raises(EngineError, match="tiny ended: SystemExit"):
                    await b.text(ask("the quick"))

    run(main())


def test_close_ends_the_thread_and_fails_running_rows(bench, no_engine_threads):
    async def main():
        async with bench() as b:
            task = asyncio.create_task(b.text(ask("the quick", max_tokens=400)))
            await b.until(lambda: len(b.passes) >= 3)
            await b.engine.close()
            with pytest.raises(EngineError, match="closed"):
                await task
            assert b.cost.calls == 1
            with pytest.raises(EngineError, match="closed"):
                await b.text(ask("the quick"))

    run(main())


def test_info_is_known_before_weights(qwen, no_engine_threads):
    engine = HFEngine("tiny", HFOptions(qwen, device="cpu"))
    network = hf_bench.transformers.AutoModelForCausalLM.from_pretrained(qwen)
    total = sum(weight.numel() for weight in network.parameters())
    assert engine.info.parameters == engine.info.active == total  # the tied head counts, the table does not
    assert engine.info.attention_flops == 4 * 3 * 4 * 16
    assert (engine.info.context, engine.info.vocabulary) == (512, network.config.vocab_size)
    assert "cpu, float32, not quantised" in engine.describe()


def test_experts_that_are_not_asked_are_not_active(tmp_path):
    config = hf_bench.transformers.Qwen3MoeConfig(
        **hf_bench.SHAPE, head_dim=16, num_experts=8, num_experts_per_tok=2, moe_intermediate_size=32
    )
    engine = HFEngine("moe", HFOptions(hf_bench.save(tmp_path, config), device="cpu"))
    experts = 3 * 8 * 3 * 48 * 32
    embedding = config.vocab_size * 48
    assert engine.info.parameters - engine.info.active == embedding + experts * 6 // 8

    async def main():
        async with hf_bench.Bench(str(tmp_path)) as b:
            asked = [ask(text) for text in prompts(4)]
            expected = [generated(b, b.engine.render(request).ids, 12) for request in asked]
            free = [Request(request.prompt, Sampling(max_tokens=12)) for request in asked]
            assert await asyncio.gather(*map(b.ids, free)) == expected

    run(main())


def test_what_cannot_be_loaded_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match="cannot load") as caught:
        HFEngine("none", HFOptions(str(tmp_path / "nothing")))
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="quantization '4bit' needs a cuda device"):
        HFOptions("x", device="cpu", quantization="4bit")
