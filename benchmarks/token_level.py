"""What token-level ensembling costs: `python -m benchmarks.token_level`.

1. `gac` over two models against the sum of both models' own decoding of as many tokens, for 1 and 8 requests at
   a time, the three taking turns in one run.  Ratios are what counts; absolute speeds belong to the machine.
2. Mapping and mixing for one row and step, on two synthetic vocabularies of 150,000 tokens that share two thirds.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing
from statistics import median

import numpy as np

from ensemblehub import builtin
from ensemblehub.cost import UsageLedger
from ensemblehub.ensemble import AsyncEnsemble
from ensemblehub.ensemble_methods import mixing
from ensemblehub.ensemble_methods.model_selection.all import All
from ensemblehub.ensemble_methods.output_aggregation.distribution import DistributionMixture
from ensemblehub.ensemble_methods.output_aggregation.gac import GaC
from ensemblehub.ensemble_methods.token_level import TokenLevel
from ensemblehub.ensemble_methods.union_vocabulary import union_of
from ensemblehub.generators.base import Vocabulary
from ensemblehub.generators.hf.engine import HFEngine, HFOptions
from ensemblehub.lab.builtin import corpus, word_problems
from ensemblehub.schema import Request, Sampling, Text

SIZE = 150_000


def prompts(count: int) -> list[str]:
    """Questions of five steps, as the mentor is asked them."""
    rng = random.Random(0)
    return [corpus.prompt(word_problems.draw(rng, steps=5).text, think=True) for _ in range(count)]


async def alone(engine: HFEngine, texts: list[str], tokens: int) -> float:
    """Seconds one engine takes."""

    async def ask(text: str) -> None:
        request = Request(Text(text), Sampling(max_tokens=tokens, ignore_eos=True))
        async with aclosing(engine.stream(request, UsageLedger().meter("answer"))) as pieces:
            async for _ in pieces:
                pass

    started = time.perf_counter()
    await asyncio.gather(*map(ask, texts))
    return time.perf_counter() - started


async def together(engines: Sequence[HFEngine], method: TokenLevel, texts: list[str], tokens: int) -> float:
    """Seconds the ensemble takes."""
    ensemble = AsyncEnsemble(engines, All(), method)

    async def answered(text: str) -> None:
        request = Request(Text(text), Sampling(max_tokens=tokens, ignore_eos=True))
        async with aclosing(ensemble.stream(request)) as pieces:
            async for _ in pieces:
                pass

    started = time.perf_counter()
    await asyncio.gather(*map(answered, texts))
    return time.perf_counter() - started


async def decoding(models: Sequence[str], tokens: int, repeats: int) -> None:
    """Print what two models cost together, relative to the sum of each alone."""
    methods: dict[str, TokenLevel] = {
        "gac": GaC(),
        "distribution top_k=10": DistributionMixture(top_k=10),
        "gac every=disputed": GaC(every="disputed"),
    }
    print(f"{'requests':>8} {'first alone':>12} {'second alone':>12}", *[f"{name:>22}" for name in methods])
    for rows in (1, 8):
        texts = prompts(rows)
        engines = [HFEngine(path, HFOptions(builtin.resolve(path), prefix_cache_tokens=0)) for path in models]
        await asyncio.gather(*[engine.load() for engine in engines])
        own_times, ratios = [], []
        for turn in range(repeats + 1):
            own = [await alone(engine, texts, tokens) for engine in engines]
            both = [await together(engines, method, texts, tokens) for method in methods.values()]
            if turn:  # the first one warms up
                own_times.append(own)
                ratios.append([seconds / sum(own) for seconds in both])
        await asyncio.gather(*[engine.close() for engine in engines])
        times = [f"{median(column):>10.2f} s" for column in zip(*own_times, strict=True)]
        spread = [
            f"{median(ratio):>10.3f} ({min(ratio):.2f}-{max(ratio):.2f})"
            for ratio in zip(*ratios, strict=True)
        ]
        print(f"{rows:>8}", *times, *spread)


def synthetic(seed: int, shared: int = SIZE * 2 // 3) -> Vocabulary:
    """A vocabulary of which the first `shared` tokens, in another order, are in every other one too."""
    tokens = [f"token {index}".encode() for index in range(shared)]
    tokens += [f"token {seed}/{index}".encode() for index in range(SIZE - shared - 1)]
    random.Random(seed).shuffle(tokens)
    return Vocabulary((*tokens, b""), frozenset({SIZE - 1}), frozenset({SIZE - 1}), f"synthetic {seed}")


def milliseconds(call: Callable[[], object], repeats: int = 200) -> float:
    """Median time of a call."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - started))
    return median(times)


def mapping() -> None:
    """Print the time of mapping and mixing two large distributions."""
    vocabularies = [synthetic(1), synthetic(2)]
    started = time.perf_counter()
    union = union_of(vocabularies, [SIZE, SIZE])
    made = time.perf_counter() - started
    logits = np.random.default_rng(0).normal(scale=3, size=(2, SIZE)).astype(np.float32)
    lines = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    entries = len(union.vocabulary.tokens)
    print(f"\nunion of {SIZE:,} and {SIZE:,} tokens: {entries:,} entries, made once in {made:.2f} s")

    def step(mixer: mixing.Mixer) -> int:
        parts = [view.probabilities(line) for view, line in zip(union.views, lines, strict=True)]
        return mixing.choose(mixer(parts, [1.0, 1.0]), Sampling(), 0.5)

    for name, mixer in (("mean", mixing.mean), ("geometric", mixing.geometric), ("max", mixing.maximum)):
        print(f"{name:>10}: {milliseconds(lambda mixer=mixer: step(mixer)):.2f} ms per row and step")


async def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--models", nargs=2, default=("builtin:mentor", "builtin:intern"), help="paths of two models"
    )
    parser.add_argument("--tokens", type=int, default=128, help="tokens per request (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=7, help="measured turns (default: %(default)s)")
    options = parser.parse_args()
    await decoding(options.models, options.tokens, options.repeats)
    mapping()


if __name__ == "__main__":
    asyncio.run(main())
