"""Decoding speed of the `hf` engine against transformers' own `generate`, in one run: `python -m benchmarks`.

Both write the same number of tokens greedily with the builtin mentor on one CPU thread, for 1, 8 and 64
requests at a time.  Ratios are what counts; absolute speeds belong to the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from contextlib import aclosing

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ensemblehub import builtin
from ensemblehub.cost import UsageLedger
from ensemblehub.generators.hf.engine import HFEngine, HFOptions
from ensemblehub.lab.builtin import corpus, word_problems
from ensemblehub.schema import Request, Sampling, Text


def prompts(count: int) -> list[str]:
    """Questions of five steps, as the mentor is asked them."""
    rng = random.Random(0)
    return [corpus.prompt(word_problems.draw(rng, steps=5).text, think=True) for _ in range(count)]


async def ours(engine: HFEngine, texts: list[str], tokens: int) -> float:
    """Seconds the engine takes."""

    async def one(text: str) -> None:
        request = Request(Text(text), Sampling(max_tokens=tokens, ignore_eos=True))
        async with aclosing(engine.stream(request, UsageLedger().meter("answer"))) as pieces:
            async for _ in pieces:
                pass

    started = time.perf_counter()
    await asyncio.gather(*map(one, texts))
    return time.perf_counter() - started


def theirs(path: str, texts: list[str], tokens: int) -> float:
    """Seconds `generate` takes on one left-padded batch."""
    tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    batch = tokenizer(texts, return_tensors="pt", padding=True, return_token_type_ids=False)
    started = time.perf_counter()
    model.generate(**batch, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)
    return time.perf_counter() - started


async def main() -> None:
    """Print one line per number of requests."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=128, help="tokens per request (default: %(default)s)")
    tokens = parser.parse_args().tokens
    torch.set_num_threads(1)
    path = builtin.resolve("builtin:mentor")
    print(f"{'requests':>8} {'hf engine, tokens/s':>20} {'generate, tokens/s':>20} {'ratio':>6}")
    for rows in (1, 8, 64):
        texts = prompts(rows)
        engine = HFEngine("mentor", HFOptions(path=path, prefix_cache_tokens=0))
        await engine.load()
        await ours(engine, texts, 8)
        seconds, reference = await ours(engine, texts, tokens), theirs(path, texts, tokens)
        await engine.close()
        written = rows * tokens
        print(
            f"{rows:>8} {written / seconds:>20.0f} {written / reference:>20.0f} {reference / seconds:>6.2f}"
        )


if __name__ == "__main__":
    asyncio.run(main())
