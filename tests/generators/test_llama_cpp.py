"""The llama.cpp engine generates, scores and records usage as the hf engine does, on files of `export-gguf`."""

import asyncio
import json
import math
import random
import shutil
from contextlib import aclosing
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("gguf", reason="gguf is not installed; `make test-llamacpp` installs it")
pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed; `make test-llamacpp` builds it")

import hf_bench
import torch
from hf_bench import WORDS, run
from transformers import AutoModelForCausalLM

from ensemblehub import builtin
from ensemblehub.cli import main as command
from ensemblehub.config import Config
from ensemblehub.ensemble import AsyncEnsemble
from ensemblehub.ensemble_methods.model_selection.all import All
from ensemblehub.ensemble_methods.output_aggregation.tandem import Tandem
from ensemblehub.errors import ConfigError, ContextOverflowError, EngineError, RequestError
from ensemblehub.generators.hf.engine import HFEngine, HFOptions
from ensemblehub.generators.llama_cpp.engine import LlamaCppEngine, LlamaCppOptions
from ensemblehub.generators.llama_cpp.gguf_export import export
from ensemblehub.lab.tasks.builtin_math import BuiltinMath
from ensemblehub.registry import build
from ensemblehub.schema import Chat, Message, Request, Sampling, Text, TokenIds

CLOSE = 2e-4  # nats


class Bench(hf_bench.Bench):
    """The engine on an exported folder; `fresh` is a pass of the model that was exported."""

    def __init__(self, path, original, **options):
        super().__init__(original)
        self.hf = self.engine
        self.original = original
        options = {"threads": 1, "kv": "f32"} | options
        self.engine = LlamaCppEngine("tiny", LlamaCppOptions(str(path), **options))

    def fresh(self, ids):
        network = AutoModelForCausalLM.from_pretrained(self.original, dtype=torch.float32)
        with torch.no_grad():
            return network(input_ids=torch.tensor([list(ids)])).logits[0].double().log_softmax(-1)

    async def close(self):
        await self.engine.close()
        await self.hf.close()

    async def __aexit__(self, *_):
        await self.close()

    async def theirs(self, request):
        """Tokens of the hf engine."""
        stream = self.hf.stream(request, self.ledger.meter("propose"))
        return [token async for piece in stream for token in piece.tokens]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A function from a model's folder to its GGUF file."""
    made = {}

    def path_of(folder, kind="f32"):
        if (folder, kind) not in made:
            made[folder, kind] = export(folder, tmp_path_factory.mktemp("gguf"), kind)
        return made[folder, kind]

    return path_of


@pytest.fixture
def bench(qwen, exported):
    return lambda original=qwen, **options: Bench(exported(original), original, **options)


def ask(*contents, prefix="", **sampling):
    roles = ("user",) if len(contents) == 1 else ("system", "user")
    messages = tuple(Message(role, text) for role, text in zip(roles, contents, strict=True))
    return Request(Chat(messages), Sampling(**{"max_tokens": 12, "ignore_eos": True} | sampling), prefix)


def sentences(count, words=30):
    rng = random.Random(1)
    return [" ".join(rng.choices(WORDS, k=rng.randint(1, words))) for _ in range(count)]


def check(bench, scored, ids):
    lines = bench.fresh(ids)
    assert [token.id for token in scored.tokens] == list(ids)
    assert scored.tokens[0].logprob is None
    for line, token in zip(lines[:-1], scored.tokens[1:], strict=True):
        assert token.logprob == pytest.approx(line[token.id].item(), abs=CLOSE)
        assert token.entropy == pytest.approx(-(line.exp() * line).sum().item(), abs=CLOSE)
        assert token.best == pytest.approx(line.max().item(), abs=CLOSE)


@pytest.mark.parametrize("family", ["qwen", "llama"])
def test_greedy_tokens_are_those_of_the_hf_engine_alone_and_together(family, bench, request):
    async def main():
        async with bench(request.getfixturevalue(family), prefix_cache_tokens=0) as b:
            asked = [ask(text, max_tokens=20, ignore_eos=False) for text in sentences(9)]
            expected = [[token.id for token in await b.theirs(request)] for request in asked]
            assert [await b.ids(request) for request in asked] == expected
            assert await asyncio.gather(*map(b.ids, asked)) == expected
            assert any(rows > 1 for rows, width in b.passes if width == 1)

    run(main())


def test_the_model_info_is_that_of_the_hf_engine_before_anything_is_loaded(
    qwen, llama, exported, no_engine_threads
):
    for folder in (qwen, llama):
        engine = LlamaCppEngine("tiny", LlamaCppOptions(str(exported(folder))))
        theirs = HFEngine("tiny", HFOptions(folder, device="cpu"))
        assert engine.info == theirs.info
        assert engine.footprint.token == 2 * theirs.footprint.token / 4  # float16, not float32
        reading = 512 * (2 * 48 + 3 * 96) * 4 + 8 * 2048 * engine.info.vocabulary
        assert engine.placement.activations == reading
        assert "llama.cpp on cpu, F32" in engine.describe()
        assert engine.model.startswith(f"{Path(folder).name}@")
        assert engine.count(ask("the quick")) == theirs.count(ask("the quick"))
    assert LlamaCppEngine("tiny", LlamaCppOptions(str(exported(qwen)), n_ctx=64)).info.context == 64


def test_sampling_is_that_of_the_hf_engine(bench):
    async def main():
        async with bench() as b:
            ways = [
                {"temperature": 1.0, "seed": 7},
                {"temperature": 0.8, "top_p": 0.9, "top_k": 30, "seed": 3},
                {"repetition_penalty": 1.7},
                {"presence_penalty": 3.0, "frequency_penalty": 1.0},
                {"logit_bias": {9: 1e4}},
                {"temperature": 2.0, "top_k": 1},
            ]
            for way in ways:
                request = ask("over lazy dogs", max_tokens=16, **way)
                assert await b.ids(request) == [token.id for token in await b.theirs(request)]
            crowd = [ask("over lazy dogs", max_tokens=16, temperature=1.0, seed=seed) for seed in range(9)]
            together = await asyncio.gather(*map(b.ids, crowd))
            assert together == [await b.ids(request) for request in crowd]
            assert len({tuple(ids) for ids in together}) > 5

    run(main())


def test_logprobs_entropies_and_alternatives_are_those_of_a_direct_pass(bench):
    async def main():
        async with bench() as b:
            request = ask("while nine small birds", temperature=1.3, seed=3, top_logprobs=3, max_tokens=15)
            ids = b.engine.render(request).ids
            tokens = [token for piece in await b.pieces(request) for token in piece.tokens]
            lines = b.fresh([*ids, *(token.id for token in tokens)])[len(ids) - 1 : -1]
            for token, line in zip(tokens, lines, strict=True):
                assert token.logprob == pytest.approx(line[token.id].item(), abs=CLOSE)
                assert token.entropy == pytest.approx(-(line.exp() * line).sum().item(), abs=CLOSE)
                assert [alternative.id for alternative in token.top] == line.topk(3).indices.tolist()

    run(main())


def test_what_was_read_is_not_read_again_and_changes_no_text(bench):
    async def main():
        async with bench() as b:
            request = ask("the quick brown fox jumps over", max_tokens=24)
            first = await b.text(request)
            assert b.take_usage().cached_tokens == 0
            assert await b.text(request) == first
            again = b.take_usage()
            assert again.cached_tokens == again.prompt_tokens - 1

    run(main())


def test_stop_strings_ends_and_limits(bench):
    async def main():
        async with bench() as b:
            free = await b.pieces(ask("nine small birds", max_tokens=40))
            whole = "".join(piece.text for piece in free)
            ids = [token.id for piece in free for token in piece.tokens]
            assert free[-1].finish == "length"
            assert whole == "".join(token.text for piece in free for token in piece.tokens)
            for start, length in [(3, 2), (7, 5), (15, 1)]:
                stop = whole[start : start + length]
                pieces = await b.pieces(ask("nine small birds", max_tokens=40, stop=("\u2603 never", stop)))
                assert "".join(piece.text for piece in pieces) == whole[: whole.index(stop)]
                assert pieces[-1].finish == "stop"
            end = next(index for index in ids if ids.count(index) == 1)
            b.take_usage()
            cut = await b.pieces(ask("nine small birds", max_tokens=40, stop_token_ids=(end,)))
            tokens = [token for piece in cut for token in piece.tokens]
            assert (cut[-1].finish, tokens[-1].id, tokens[-1].text) == ("stop", end, "")
            assert b.take_usage().completion_tokens == len(tokens) == ids.index(end) + 1
            forbidden = await b.ids(ask("nine small birds", stop_token_ids=(ids[0],), min_tokens=4))
            assert len(forbidden) >= 4
            assert ids[0] not in forbidden[:4]

    run(main())


@pytest.mark.parametrize("kept", [65536, 0])
def test_rows_go_on_after_the_model_was_unloaded(kept, bench):
    async def main():
        async with bench(prefix_cache_tokens=kept) as b:
            asked = [ask(text, max_tokens=20) for text in sentences(3)]
            expected = [await b.ids(request) for request in asked]
            streams = [b.engine.stream(request, b.meter) for request in asked]
            written = [[] for _ in streams]
            for step in range(20):
                for ids, stream in zip(written, streams, strict=True):
                    ids += [token.id for token in (await anext(stream)).tokens]
                if step in (4, 11):
                    await b.engine.unload()
                    assert b.model._model is None
                    await b.engine.load()
            assert written == expected
            for stream in streams:
                await stream.aclose()

    run(main())


def test_characters_are_never_split(bench):
    async def main():
        async with bench() as b:
            spelling = {spelt: index for index, spelt in enumerate(b.engine.vocabulary.tokens)}
            emoji = [spelling[bytes([byte])] for byte in "é😀".encode()]
            forward, script, seen = b.model.forward, iter([*emoji, *emoji]), []

            def scripted(slots, starts, ids, *, keep):
                logits = forward(slots, starts, ids, keep=keep)
                logits[:, -1, next(script)] = 10_000.0
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
            assert len(b.passes) == passes == cost.completion_tokens
            assert cost.completion_tokens - cost.discarded_tokens == taken
            assert (cost.calls, cost.discarded_tokens <= 4, cost.seconds > 0) == (1, True, True)

    run(main())


def test_more_paused_rows_than_sequences_hold_nobody_up(bench):
    async def main():
        async with bench(batch_rows=2) as b:
            asked = [ask(text, max_tokens=14) for text in sentences(6)]
            whole = [await b.ids(request) for request in asked]
            streams = [b.engine.stream(request, b.meter) for request in asked]
            read = [[token.id for token in (await anext(stream)).tokens] for stream in streams]
            await asyncio.sleep(0.05)
            passes = len(b.passes)
            await asyncio.sleep(0.05)
            assert len(b.passes) == passes  # all are paused
            assert len(await b.ids(ask("lazy dogs", max_tokens=30))) == 30  # another passes them
            for index in random.Random(2).choices(range(6), k=30):  # now this one reads, now that
                async for piece in streams[index]:
                    read[index] += [token.id for token in piece.tokens]
                    break
            for index, stream in enumerate(streams):
                async for piece in stream:
                    read[index] += [token.id for token in piece.tokens]
            assert read == whole
            assert await asyncio.gather(*map(b.ids, asked)) == whole

    run(main())


def test_rows_that_step_together_lie_side_by_side_and_none_is_lost(bench):
    async def main():
        async with bench(batch_rows=6) as b:
            sampled, texts = random.Random(3), sentences(6)
            decoders = [b.engine.decoder(ask(text), b.meter) for text in texts]
            ids = [list(b.engine.render(ask(text)).ids) for text in texts]
            await asyncio.gather(*[decoder.step() for decoder in decoders])
            seen = []
            neighbours = b.model.slots.neighbours

            def watched(slots):
                seen.append(neighbours(slots))
                return seen[-1]

            b.model.slots.neighbours = watched
            for index in range(12):
                some = sorted(sampled.sample(range(6), sampled.randint(1, 5)))
                lines = await asyncio.gather(*[decoders[row].step([index + row]) for row in some])
                for row, line in zip(some, lines, strict=True):
                    ids[row].append(index + row)
                    assert np.allclose(line.logprobs, b.fresh(ids[row])[-1].numpy(), atol=CLOSE)
            assert max(map(len, seen)) > 2
            assert all(sorted(line) == list(range(min(line), min(line) + len(line))) for line in seen)
            for decoder in decoders:
                decoder.close()

    run(main())


def test_a_window_that_was_passed_is_not_gone_back_to(bench):
    """Of a model with sliding attention, a row that made room for another goes on, but cannot be cut back."""

    async def main():
        async with bench(batch_rows=1, prefix_cache_tokens=0) as b:
            b.model.slots._windowed = True
            decoder = b.engine.decoder(ask("nine small birds"), b.meter)
            first = (await decoder.step([5, 6, 7])).logprobs
            assert np.allclose((await decoder.read([6, 7], 2))[-1].logprobs, first, atol=CLOSE)
            await b.ids(ask("lazy dogs"))
            await decoder.step([8])
            with pytest.raises(EngineError, match="cannot cut back"):
                await decoder.step([], 2)
            decoder.close()
            assert len(await b.ids(ask("lazy dogs"))) == 12

    run(main())


@pytest.mark.parametrize("family", ["qwen", "llama"])
def test_score_is_that_of_a_direct_pass(family, bench, request):
    async def main():
        async with bench(request.getfixturevalue(family)) as b:
            asked = [ask("be brief", text) for text in sentences(6, words=60)]
            for query, scored in zip(
                asked, await asyncio.gather(*[b.engine.score(a, b.meter) for a in asked]), strict=True
            ):
                check(b, scored, b.engine.render(query).ids)
                theirs = await b.hf.score(query, b.meter)
                assert [(t.message, t.start, t.end) for t in scored.tokens] == [
                    (t.message, t.start, t.end) for t in theirs.tokens
                ]
            assert b.take_usage().completion_tokens == 0

    run(main())


def test_an_extended_reading_computes_only_the_new_tokens(bench):
    async def main():
        async with bench() as b:
            question, insight = sentences(1, 20)[0], " ".join(WORDS * 2)
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
                assert now.cached_tokens >= before.prompt_tokens - 6
            check(b, await b.engine.score(request, b.meter), b.engine.render(request).ids)
            same = b.take_usage()
            assert same.cached_tokens == same.prompt_tokens
            await b.text(request)
            reused = b.take_usage()
            assert reused.prompt_tokens - reused.cached_tokens == 1

    run(main())


def test_a_reading_is_the_same_after_any_history(bench):
    rng = random.Random(5)
    texts = [f"the quick {text}" for text in sentences(6, 12)]

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
            for _ in range(10):
                await asyncio.gather(*[ask_at_random(b, rng.choice(texts)) for _ in range(5)])
            slots = b.model.slots
            await b.until(lambda: len(slots._spare) == 3)  # every sequence came back
            assert not slots._saved
            assert len(slots.free) == slots._made

    run(main())


def test_a_decoder_steps_drops_and_reads_as_the_hf_engines(bench):
    async def main():
        async with bench() as b:
            request = ask("be brief", "nine small birds")
            ours, theirs = (
                b.engine.decoder(request, b.meter),
                b.hf.decoder(request, b.ledger.meter("propose")),
            )
            assert ours.vocabulary == theirs.vocabulary
            assert ours.encode(" birds<|end|>é") == theirs.encode(" birds<|end|>é")
            for append, drop in [
                ((), 0),
                ((5,), 0),
                ((6, 7, 8), 0),
                ((), 2),
                ((9,), 1),
                ((), 0),
                ((4, 4), 2),
            ]:
                got, wanted = await ours.step(append, drop), await theirs.step(append, drop)
                assert got.logprobs.shape == wanted.logprobs.shape
                assert np.allclose(got.logprobs, wanted.logprobs, atol=CLOSE)
            for append, drop in [((5, 6, 7), 0), ((9, 4), 1), (tuple(range(5, 90)), 2)]:
                got, wanted = await ours.read(append, drop), await theirs.read(append, drop)
                for left, right in zip(got, wanted, strict=True):
                    assert np.allclose(left.logprobs, right.logprobs, atol=CLOSE)
            with pytest.raises(RequestError, match="cannot drop"):
                await ours.step((), 200)
            ours.close()
            theirs.close()
            spent = {line.purpose: line.cost for line in b.ledger.usage.lines}
            for name in ("prompt_tokens", "completion_tokens", "discarded_tokens", "calls"):
                assert getattr(spent["answer"], name) == getattr(spent["propose"], name)
            with pytest.raises(RequestError, match="closed"):
                await ours.step()

    run(main())


def test_overflow_and_bad_requests_are_refused_before_anything_is_computed(bench):
    async def main():
        async with bench(batch_rows=2) as b:
            ids = tuple(range(10, 300))
            with pytest.raises(ContextOverflowError, match=r"512 tokens.*290 in the prompt, 223 in the"):
                await b.text(Request(TokenIds(ids), Sampling(max_tokens=223)))
            with pytest.raises(RequestError):
                await b.text(Request(Text("")))
            with pytest.raises(RequestError, match="no token id 400"):
                await b.text(Request(TokenIds((5, 400)), Sampling(max_tokens=2)))
            assert not b.passes
            assert not b.ledger.calls
            full = [
                Request(TokenIds(ids[: 290 - i]), Sampling(max_tokens=222 + i, ignore_eos=True))
                for i in range(3)
            ]
            assert list(map(len, await asyncio.gather(*map(b.ids, full)))) == [
                222,
                223,
                224,
            ]  # the cache is full

    run(main())


def test_a_default_is_cut_to_the_room_there_is(bench):
    async def main():
        async with bench() as b:
            asked = Sampling(max_tokens=223, fit_context=True, ignore_eos=True)
            assert len(await b.ids(Request(TokenIds((5,) * 500), asked))) == 12

    run(main())


def test_what_ends_an_answer_is_what_file_tokenizer_and_template_say(qwen, exported, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(exported(qwen).parent, tmp_path / "m")
    (tmp_path / "m/generation_config.json").write_text(json.dumps({"eos_token_id": 3}))
    engine = LlamaCppEngine("tiny", LlamaCppOptions("~/m/model.gguf", tokenizer="~/m"))
    assert engine.vocabulary.end == {1, 3}
    assert LlamaCppEngine("tiny", LlamaCppOptions("~/m/model.gguf")).vocabulary.end == {1, 3}


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
            with pytest.raises(EngineError, match=r"out of memory long trace$"):
                await b.ids(ask("the quick brown fox", max_tokens=30))
            assert b.take_usage().completion_tokens == 5
            assert await b.ids(ask("lazy dogs")) == expected

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


def test_what_cannot_be_loaded_is_one_line(tmp_path, qwen, exported):
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + bytes(60))
    for path in (tmp_path / "nothing.gguf", tmp_path / "model.gguf"):
        with pytest.raises(ConfigError, match="cannot read") as caught:
            LlamaCppEngine("none", LlamaCppOptions(str(path)))
        assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="option 'batch_rows': Input should be greater than or equal to 1"):
        build(LlamaCppOptions, {"path": "x", "batch_rows": 0}, "m")

    async def load(**options):
        engine = LlamaCppEngine("tiny", LlamaCppOptions(str(exported(qwen)), **options))
        try:
            await engine.load()
        finally:
            await engine.close()

    told = r"no tokenizer: .* slow tokenizer to a fast one\.; without `tokenizer`, the file's own is used$"
    with pytest.raises(ConfigError, match=told) as caught:
        run(load(tokenizer=str(tmp_path)))
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="is not the tokenizer of"):
        run(load(tokenizer=builtin.resolve("builtin:intern")))
    other = tmp_path / "other.gguf"
    other.write_bytes(exported(qwen).read_bytes().replace(b"qwen3", b"qwenX"))
    engine = LlamaCppEngine("other", LlamaCppOptions(str(other), tokenizer=qwen))
    with pytest.raises(ConfigError, match="unknown model architecture: 'qwenX'") as caught:
        run(engine.load())
    run(engine.close())
    assert "\n" not in str(caught.value)
    cut = tmp_path / "cut.gguf"
    whole = exported(qwen).read_bytes()
    cut.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ConfigError, match=r"cannot (read|load)"):
        LlamaCppEngine("cut", LlamaCppOptions(str(cut)))


@pytest.mark.parametrize(("kind", "close"), [("f16", 0.02), ("bf16", 0.2), ("q8_0", 0.5)])
def test_smaller_files_say_nearly_the_same(kind, close, tmp_path, monkeypatch, capsys):
    folder = builtin.resolve("builtin:intern")
    command(["export-gguf", "builtin:intern", str(tmp_path), "--kind", kind])
    assert str(tmp_path / "model.gguf") in capsys.readouterr().out
    request = Request(BuiltinMath().request(next(BuiltinMath().items("test", 1))), Sampling(max_tokens=40))

    async def main():
        async with Bench(tmp_path / "model.gguf", folder, kv="f16") as b:
            assert kind.upper() in b.engine.describe()
            ours, theirs = await b.engine.score(request, b.meter), await b.hf.score(request, b.meter)
            gaps = [
                abs(a.logprob - c.logprob) for a, c in zip(ours.tokens[1:], theirs.tokens[1:], strict=True)
            ]
            assert np.mean(gaps) < close

    run(main())


def test_what_cannot_be_exported_is_said(sliding, mistral, tmp_path, capsys):
    with pytest.raises(ConfigError, match="sliding attention"):
        export(sliding, tmp_path)
    with pytest.raises(ConfigError, match="not mistral"):
        export(mistral, tmp_path)
    with pytest.raises(ConfigError, match="no folder"):
        export("nowhere/at-all", tmp_path)
    with pytest.raises(SystemExit) as caught:
        command(["export-gguf", "nowhere/at-all", str(tmp_path)])
    assert caught.value.code == 2
    assert "no folder" in capsys.readouterr().err


def test_a_run_with_a_llama_cpp_intern_is_the_run_with_hf(exported, tmp_path):
    items = list(BuiltinMath().items("test", 6))
    tandem = Tandem(**{**Config.read(builtin.CONFIG).aggregation.params, "judge": "entropy:0.35"})

    def runs(intern):
        async def main():
            mentor = HFEngine("mentor", HFOptions(builtin.resolve("builtin:mentor"), device="cpu"))
            async with AsyncEnsemble([mentor, intern], All(), tandem) as hub:
                asked = [Request(BuiltinMath().request(item), Sampling(max_tokens=300)) for item in items]
                return await asyncio.gather(*map(hub.generate, asked))

        return run(main())

    folder = builtin.resolve("builtin:intern")
    ours = runs(LlamaCppEngine("intern", LlamaCppOptions(str(exported(folder)), threads=1, kv="f32")))
    theirs = runs(HFEngine("intern", HFOptions(folder, device="cpu")))
    assert len({result.verdicts[-1].level for result in theirs}) > 1
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.text == other.text
        assert mine.insight == other.insight
        assert [verdict.level for verdict in mine.verdicts] == [verdict.level for verdict in other.verdicts]
        for verdict, same in zip(mine.verdicts, other.verdicts, strict=True):
            assert math.isclose(verdict.probability, same.probability, abs_tol=CLOSE)
        assert mine.cost.completion_tokens == other.cost.completion_tokens
        assert mine.cost.flops == pytest.approx(other.cost.flops, rel=0.02)
        assert mine.cost.cached_tokens > 0


def test_formats_and_tools_are_those_of_the_hf_engine(bench):
    pytest.importorskip("llguidance")
    point = {
        "type": "object",
        "properties": {"x": {"type": "integer", "minimum": 0, "maximum": 99}, "far": {"type": "boolean"}},
        "required": ["x", "far"],
        "additionalProperties": False,
    }
    form = {"response_format": {"type": "json_schema", "json_schema": {"name": "point", "schema": point}}}
    tool = {"type": "function", "function": {"name": "move", "parameters": point, "strict": True}}
    call = {"tools": [tool], "tool_choice": "required", "parallel_tool_calls": False}

    async def main():
        async with bench(tool_parser="hermes") as b:
            b.hf = HFEngine("tiny", HFOptions(b.original, device="cpu", tool_parser="hermes"))
            for engine in (b.engine, b.hf):
                tokenizer = engine.tokenizer.tokenizer
                tokenizer.chat_template = (
                    "{% if tools %}{{ tools | length }}{% endif %}" + tokenizer.chat_template
                )
            plain = ask("the quick", max_tokens=200, temperature=1.0, ignore_eos=False)
            asked = [
                replace(plain, sampling=replace(plain.sampling, seed=seed), extra=extra)
                for seed in range(4)
                for extra in (form, call)
            ]
            together = await asyncio.gather(*map(b.pieces, asked))
            for request, pieces in zip(asked, together, strict=True):
                theirs = [piece async for piece in b.hf.stream(request, b.ledger.meter("propose"))]
                tokens = [token for piece in pieces for token in piece.tokens]
                others = [token for piece in theirs for token in piece.tokens]
                assert [token.id for token in tokens] == [token.id for token in others]
                for token, other in zip(tokens, others, strict=True):
                    assert token.logprob == pytest.approx(other.logprob, abs=CLOSE)
                calls = [part["function"] for piece in pieces for part in piece.tool_calls]
                written = "".join(part["arguments"] for part in calls) or "".join(
                    piece.text for piece in pieces
                )
                assert set(json.loads(written)) == {"x", "far"}
                assert pieces[-1].finish == theirs[-1].finish == ("tool_calls" if calls else "stop")
                assert bool(calls) == (request.extra is call)

    run(main())
