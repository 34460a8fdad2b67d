"""What an engine costs over the library that it runs: `python -m benchmarks.engine_overhead hf|vllm|llama_cpp`.

hf: the engine's streams against a hand-written `model.generate`, batches of equal prompts, float32, one thread.
vllm: 256 requests at once against vLLM's own `LLM.generate`, and against the streams of its own asynchronous engine,
which tells what of the difference is vLLM's.  The same tokens on both sides, greedy, of fixed length;
texts that differ void the comparison.  Sides take turns (A B B A) in one process; the ratio is the median over turns,
with a bootstrap interval.  Ratios are what counts.
llama_cpp: 16 requests on the file of `--model` against llama.cpp's batch interface by hand, a sequence a
row, on one thread each. Both also in CPU seconds, which other processes disturb less; requests one at a time
against `llama_cpp.Llama` are measured by `benchmarks.llama_cpp_agreement`.
"""

from __future__ import annotations

import argparse
import asyncio
import inspect
import json
import os
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ensemblehub import builtin
from ensemblehub.cost import UsageLedger
from ensemblehub.generators.base import Engine
from ensemblehub.schema import Request, Sampling, TokenIds

RESULTS = Path("results/benchmarks")
AIMS = {
    "hf": 1.03,
    "vllm": 1 / 0.95,
    "llama_cpp": 1 / 0.95,
}  # seconds of the engine over those of the library, at most
Ids = list[list[int]]
Side = Callable[[], Awaitable[Ids]]


async def written(engine: Engine, prompts: Sequence[Sequence[int]], tokens: int) -> Ids:
    """The ids that the engine's streams bring, all prompts at once."""
    sampling = Sampling(max_tokens=tokens, ignore_eos=True)

    async def written(ids: Sequence[int]) -> list[int]:
        request = Request(TokenIds(tuple(ids)), sampling)
        async with aclosing(engine.stream(request, UsageLedger().meter("answer"))) as pieces:
            return [int(token.id or 0) async for piece in pieces for token in piece.tokens]

    return list(await asyncio.gather(*map(written, prompts)))


async def turns(ours: Side, theirs: Side, rounds: int) -> dict[str, Any]:
    """Seconds of both sides in turns, after one of each that warms up, and whether they wrote the same."""
    same = await ours() == await theirs()
    ratios, seconds = [], {"engine": list[float](), "library": list[float]()}
    computed = {"engine": list[float](), "library": list[float]()}
    for number in range(rounds):
        took = {}
        order = [("engine", ours), ("library", theirs)]
        for name, side in order if number % 2 == 0 else order[::-1]:
            started, cpu = time.perf_counter(), time.process_time()
            await side()
            took[name] = time.perf_counter() - started
            seconds[name].append(took[name])
            computed[name].append(time.process_time() - cpu)
        ratios.append(took["engine"] / took["library"])
    of_cpu = [own / other for own, other in zip(computed["engine"], computed["library"], strict=True)]
    return {
        "rounds": rounds,
        "same": same,
        "ratio": float(np.median(ratios)),
        "interval": interval(ratios),
        "seconds": {name: float(np.median(values)) for name, values in seconds.items()},
        "cpu ratio": float(np.median(of_cpu)),
        "cpu interval": interval(of_cpu),
        "cpu seconds": {name: float(np.median(values)) for name, values in computed.items()},
    }


def interval(ratios: Sequence[float]) -> list[float]:
    """95 % bootstrap interval of the median."""
    drawn = np.random.default_rng(0).choice(ratios, (4000, len(ratios)))
    return [float(bound) for bound in np.percentile(np.median(drawn, axis=1), [2.5, 97.5])]


def prompts_of(rows: int, length: int, vocabulary: int) -> list[list[int]]:
    """Random prompts of one length, ids that stand for text."""
    rng = np.random.default_rng(rows)
    return rng.integers(32, vocabulary - 32, (rows, length)).tolist()


def random_model(folder: Path) -> Path:
    """A Qwen3 model of 77 million parameters; random weights are as fast as learned ones."""
    import torch
    import transformers

    source = folder / "random"
    shutil.copytree(
        builtin.resolve("builtin:mentor"), source, ignore=shutil.ignore_patterns("model.safetensors")
    )
    config = transformers.AutoConfig.from_pretrained(source)
    config.hidden_size, config.intermediate_size, config.num_hidden_layers = 768, 2048, 12
    config.num_attention_heads, config.num_key_value_heads, config.head_dim = 12, 4, 64
    config.layer_types = ["full_attention"] * config.num_hidden_layers
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(source)
    return source


async def hf(folder: Path, quick: bool) -> list[dict[str, Any]]:
    """The `hf` engine against `model.generate`."""
    import torch
    import transformers

    from ensemblehub.generators.hf.engine import HFEngine, HFOptions

    torch.set_num_threads(1)
    found = []
    models = {"builtin:mentor": Path(builtin.resolve("builtin:mentor"))}
    if not quick:
        models["random, 77 M"] = random_model(folder)
    for name, path in models.items():
        model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        engine = HFEngine("engine", HFOptions(str(path), device="cpu", prefix_cache_tokens=0, batch_rows=32))
        await engine.load()
        large = name.startswith("random")
        for rows in (1, 4) if quick else (1, 8, 16, 32):
            tokens = 16 if quick else 32 if large else 96
            prompts = prompts_of(rows, 48, model.config.vocab_size)

            async def ours(prompts: Ids = prompts, tokens: int = tokens, engine: Engine = engine) -> Ids:
                return await written(engine, prompts, tokens)

            async def theirs(prompts: Ids = prompts, tokens: int = tokens, model: Any = model) -> Ids:
                with torch.inference_mode():
                    ids = torch.tensor(prompts)
                    out = model.generate(
                        ids,
                        attention_mask=torch.ones_like(ids),
                        max_new_tokens=tokens,
                        min_new_tokens=tokens,
                        do_sample=False,
                        pad_token_id=0,
                        eos_token_id=None,
                    )
                return out[:, ids.shape[1] :].tolist()

            rounds = 2 if quick else 6 if large and rows == 32 else 10
            row = {"engine": "hf", "model": name, "requests": rows, "tokens": tokens}
            found.append(row | await turns(ours, theirs, rounds))
            print(line(found[-1]), flush=True)
        await engine.close()
    return found


@contextmanager
def paused(processes: Sequence[Any]) -> Iterator[None]:
    """Other processes stand still in here."""
    for process in processes:
        process.suspend()
    try:
        yield
    finally:
        for process in processes:
            process.resume()


async def vllm(_: Path, quick: bool) -> list[dict[str, Any]]:
    """The `vllm` engine against `LLM.generate`, the other's processes, which spin as they wait, paused meanwhile."""
    import psutil
    import vllm as library
    from vllm.sampling_params import RequestOutputKind

    from ensemblehub.generators.vllm.engine import VLLMEngine, VLLMOptions

    path, rows, tokens = builtin.resolve("builtin:mentor"), 16 if quick else 256, 16 if quick else 64
    prompts = prompts_of(rows, 48, 1024)
    engine = VLLMEngine("engine", VLLMOptions(path, dtype="float32"))
    await engine.load()
    of_engine = psutil.Process().children(recursive=True)
    model = library.LLM(path, dtype="float32", enforce_eager=True, block_size=32, max_num_seqs=256)
    sampling = library.SamplingParams(
        temperature=0.0, max_tokens=tokens, ignore_eos=True, detokenize=True, logprobs=0
    )

    of_library = [child for child in psutil.Process().children(recursive=True) if child not in of_engine]

    async def ours() -> Ids:
        with paused(of_library):
            return await written(engine, prompts, tokens)

    async def theirs() -> Ids:
        asked = [library.TokensPrompt(prompt_token_ids=ids) for ids in prompts]
        with paused(of_engine):
            outputs = await asyncio.to_thread(model.generate, asked, sampling, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]

    host = engine._started()

    async def streamed() -> Ids:
        asked = [library.TokensPrompt(prompt_token_ids=ids) for ids in prompts]
        plain = library.SamplingParams(
            temperature=0.0, max_tokens=tokens, ignore_eos=True, detokenize=False, logprobs=0
        )
        plain.output_kind = RequestOutputKind.DELTA

        async def written(prompt: Any) -> list[int]:
            parts = host.llm.generate(prompt, plain, host.request_id())
            return [index async for part in parts for index in part.outputs[0].token_ids]

        async def every() -> Ids:
            return list(await asyncio.gather(*map(written, asked)))

        with paused(of_library):
            return await asyncio.wrap_future(host.run(every()))

    row, found = {"engine": "vllm", "model": "builtin:mentor", "requests": rows, "tokens": tokens}, []
    for name, side in (("LLM.generate", theirs), ("AsyncLLM", streamed)):
        found.append(row | {"library": name} | await turns(ours, side, 2 if quick else 8))
        print(line(found[-1]), flush=True)
    await engine.close()
    return found


async def llama_cpp(file: Path, quick: bool) -> list[dict[str, Any]]:
    """The `llama_cpp` engine with 16 rows against llama.cpp's batch interface."""
    from benchmarks.llama_batch import LlamaBatch
    from ensemblehub.generators.llama_cpp.engine import LlamaCppEngine, LlamaCppOptions

    rows, length, tokens = 16, 8, 8 if quick else 24
    options = LlamaCppOptions(str(file), threads=1, batch_rows=rows, n_ctx=128, prefix_cache_tokens=0)
    engine, library = LlamaCppEngine("engine", options), LlamaBatch(file, rows, 128, threads=1)
    await engine.load()
    text = engine.tokenizer.encode(
        inspect.getsource(argparse)
    )  # words, so that no two tokens are equally likely
    prompts = [text[start : start + length] for start in range(0, rows * length, length)]

    async def ours() -> Ids:
        return await written(engine, prompts, tokens)

    async def theirs() -> Ids:
        return await asyncio.to_thread(library.generate, prompts, tokens)

    row = {"engine": "llama_cpp", "model": engine.model.partition("@")[0], "requests": rows, "tokens": tokens}
    found = row | {"library": "llama_decode"} | await turns(ours, theirs, 2 if quick else 6)
    print(line(found), flush=True)
    await engine.close()
    library.close()
    return [found]


def line(row: dict[str, Any]) -> str:
    """A result as a person reads it."""
    low, high = row["interval"]
    aim = AIMS[row["engine"]]
    verdict = "void: the tokens differ" if not row["same"] else "met" if row["ratio"] <= aim else "missed"
    rates = ""
    if row["engine"] != "vllm":  # computes in processes of its own
        speeds = {name: row["requests"] * row["tokens"] / value for name, value in row["cpu seconds"].items()}
        rates = "of CPU seconds {:.3f} [{:.3f}, {:.3f}]".format(row["cpu ratio"], *row["cpu interval"])
        rates += f", {speeds['engine']:.1f} and {speeds['library']:.1f} tokens per CPU second; "
    return (
        f"{row['engine']:<5} {row['model']:<14} {row['requests']:>4} requests, {row['tokens']} tokens each: "
        f"{row['ratio']:.3f} times the seconds of "
        f"{row.get('library', 'model.generate')} [{low:.3f}, {high:.3f}], {row['rounds']} turns; "
        f"{rates}aim {aim:.3f}: {verdict}"
    )


def main() -> None:
    """Measure one engine, and keep what was measured of the others."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("engine", choices=["hf", "vllm", "llama_cpp"])
    parser.add_argument("--model", type=Path, metavar="FILE", help="the GGUF file of llama_cpp")
    parser.add_argument("--quick", action="store_true", help="small, to see that it runs")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder (default: %(default)s)")
    options = parser.parse_args()
    if (options.engine == "llama_cpp") != bool(options.model):
        parser.error("--model goes with llama_cpp")
    if options.quick and options.out == RESULTS:
        parser.error(
            f"--quick needs an --out of its own: what it measures would replace what {RESULTS} holds"
        )
    load = round(os.getloadavg()[0], 2)
    measure = {"hf": hf, "vllm": vllm, "llama_cpp": llama_cpp}[options.engine]
    with tempfile.TemporaryDirectory() as folder:
        rows = asyncio.run(measure(options.model or Path(folder), options.quick))
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "engine_overhead.json"
    kept = json.loads(path.read_text()) if path.exists() else []
    conditions = {"cpus": len(os.sched_getaffinity(0)), "threads": 1, "load before": load}
    rows = [row for row in kept if row["engine"] != options.engine] + [
        row | {"conditions": conditions} for row in rows
    ]
    path.write_text(json.dumps(rows, indent=1) + "\n")
    path.with_suffix(".txt").write_text("\n".join(map(line, rows)) + "\n")


if __name__ == "__main__":
    main()
