"""How the `llama_cpp` engine compares with the `hf` engine and with llama.cpp's own Python class:
`python -m benchmarks.llama_cpp_agreement`, which `make test-llamacpp` runs.

1. Agreement: both engines answer the same prompts greedily in float32.  How many texts differ, and where they part,
   how much likelier each engine finds its own token than the other's, in nats (a difference of logits).
2. Speed, one request at a time and one CPU thread: the engine, which streams text with logprobs and exact entropy,
   against `llama_cpp.Llama`: bare token ids, a streamed completion, and one with logprobs.  They take turns in one
   run.  Ratios are what counts; absolute speeds belong to the machine, and ratios of CPU time hold on a busy one too.
   What the engine does for a token costs about the same whatever the model's size, so small models show it most.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import tempfile
import time
from collections.abc import Sequence
from contextlib import aclosing
from itertools import zip_longest
from pathlib import Path
from statistics import median
from typing import Any

import llama_cpp
import torch

from benchmarks.engine_overhead import random_model
from ensemblehub import builtin
from ensemblehub.concurrency import for_each
from ensemblehub.cost import UsageLedger
from ensemblehub.generators.base import Engine
from ensemblehub.generators.hf.engine import HFEngine, HFOptions
from ensemblehub.generators.llama_cpp.engine import LlamaCppEngine, LlamaCppOptions
from ensemblehub.generators.llama_cpp.gguf_export import export
from ensemblehub.lab.tasks.builtin_math import BuiltinMath
from ensemblehub.schema import Request, Sampling, Token

MODELS = ("builtin:intern", "builtin:mentor")
TOLERATED = 0.05  # how much slower than llama_cpp.Llama the engine may be


def requests(count: int, tokens: int, top: int = 0) -> list[Request]:
    """The first test problems, to be answered greedily."""
    task = BuiltinMath()
    sampling = Sampling(max_tokens=tokens, top_logprobs=top)
    return [Request(task.request(item), sampling) for item in task.items("test", count)]


async def written(engine: Engine, asked: Sequence[Request], together: int) -> list[list[Token]]:
    """The tokens of every answer."""

    async def answer(request: Request) -> list[Token]:
        async with aclosing(engine.stream(request, UsageLedger().meter("answer"))) as pieces:
            return [token async for piece in pieces for token in piece.tokens]

    return await for_each(asked, answer, limit=together)


def parting(hf: Sequence[Token], ours: Sequence[Token]) -> dict[str, Any] | None:
    """Where two answers part, and by how much each engine prefers its own token there (nats); None: nowhere."""
    pairs = enumerate(zip_longest(hf, ours))
    parted = next(((at, a, b) for at, (a, b) in pairs if a is None or b is None or a.id != b.id), None)
    if parted is None:
        return None
    place, left, right = parted
    gaps: dict[str, float | None] = {"hf": None, "llama_cpp": None}
    if left is not None and right is not None:
        for name, own, other in (("hf", left, right), ("llama_cpp", right, left)):
            known = {alternative.id: alternative.logprob for alternative in own.top}
            if own.logprob is not None and other.id in known:
                gaps[name] = own.logprob - known[other.id]
    return {"token": place, "gap": gaps}


def deviation(hf: Sequence[Token], ours: Sequence[Token], name: str) -> float:
    """Largest difference of a number of the tokens, up to where the answers part."""
    largest = 0.0
    for left, right in zip(hf, ours, strict=False):
        if left.id != right.id:
            break
        largest = max(largest, abs(getattr(left, name) - getattr(right, name)))
    return largest


async def agreement(model: str, path: Path, asked: Sequence[Request]) -> list[dict[str, Any]]:
    """Rows of the first table: one for each precision of the KV cache."""
    hf = HFEngine("hf", HFOptions(builtin.resolve(model), device="cpu"))
    wanted, rows = await written(hf, asked, 64), []
    await hf.close()
    for kv in ("f32", "f16"):
        ours = LlamaCppEngine("llama_cpp", LlamaCppOptions(str(path), threads=1, kv=kv, batch_rows=8))
        pairs = list(zip(wanted, await written(ours, asked, 8), strict=True))
        await ours.close()
        parted = [found for left, right in pairs if (found := parting(left, right))]
        rows.append(
            {
                "model": model,
                "kv": kv,
                "prompts": len(pairs),
                "tokens": sum(map(len, wanted)),
                "differ": len(parted),
                "partings": parted,
                "logprob": max(deviation(*pair, "logprob") for pair in pairs),
                "entropy": max(deviation(*pair, "entropy") for pair in pairs),
            }
        )
    return rows


class Stopwatch:
    """Wall and CPU seconds since it was made."""

    def __init__(self) -> None:
        self._started = time.perf_counter(), time.process_time()

    def per(self, tokens: int) -> tuple[float, float]:
        """Both, per token."""
        wall, cpu = self._started
        return (time.perf_counter() - wall) / tokens, (time.process_time() - cpu) / tokens


def theirs(llama: Any, prompts: Sequence[Sequence[int]], tokens: int, kind: str) -> tuple[float, float]:
    """Wall and CPU seconds that `llama_cpp.Llama` takes per token."""
    written, started = 0, Stopwatch()
    for ids in prompts:
        if kind == "token ids":
            for place, index in enumerate(llama.generate(list(ids), temp=0.0), 1):
                if place == tokens or index == llama.token_eos():
                    break
            written += place
            continue
        extra = {"logprobs": 1} if kind == "text, logprobs" else {}
        for _ in llama.create_completion(list(ids), max_tokens=tokens, temperature=0.0, stream=True, **extra):
            pass
        written += llama.n_tokens - len(ids) + 1  # the last one is not computed
    return started.per(written)


async def speed(model: str, path: Path, asked: Sequence[Request], repeats: int) -> dict[str, Any]:
    """One row of the second table: tokens per second, median of the turns."""
    engine = LlamaCppEngine("ours", LlamaCppOptions(str(path), threads=1, prefix_cache_tokens=0))
    prompts = [engine.render(request).ids for request in asked]
    shape = {"model_path": str(path), "n_ctx": engine.info.context, "n_threads": 1, "n_threads_batch": 1}
    plain = llama_cpp.Llama(**shape, verbose=False)
    scoring = llama_cpp.Llama(**shape, verbose=False, logits_all=True)
    kinds = {"token ids": plain, "text": plain, "text, logprobs": scoring}
    names = ("engine", "engine, 4 together", *kinds)
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for turn in range(repeats + 1):
        took = {}
        for name, together in (("engine", 1), ("engine, 4 together", 4)):
            started = Stopwatch()
            took[name] = started.per(sum(map(len, await written(engine, asked, together))))
        most = asked[0].sampling.max_tokens
        took |= {kind: theirs(llama, prompts, most, kind) for kind, llama in kinds.items()}
        if turn:  # the first one warms up
            for name, value in took.items():
                seconds[name].append(value)
    await engine.close()
    for llama in (plain, scoring):
        llama.close()
    rates = {name: 1 / median(wall for wall, _ in values) for name, values in seconds.items()}
    slower: dict[str, dict[str, float]] = {"wall": {}, "cpu": {}}
    for kind in kinds:
        for index, clock in enumerate(slower):
            turns = zip(seconds["engine"], seconds[kind], strict=True)
            slower[clock][kind] = median(own[index] / other[index] for own, other in turns) - 1
    parameters = engine.info.parameters
    return {"model": model, "parameters": parameters, "tokens_per_second": rates, "slower": slower}


def larger(folder: Path) -> Path:
    """A model of about the size of small chat models, in 8 bits."""
    return export(str(random_model(folder)), folder / "random-gguf", "q8_0")


def lines(record: dict[str, Any]) -> list[str]:
    """The record as a person reads it."""
    out = [
        f"{'model':<14} {'KV':>4} {'prompts':>8} {'tokens':>7} {'differ':>7} {'logprob':>9} {'entropy':>9}"
    ]
    for row in record["agreement"]:
        largest = f"{row['logprob']:>9.1e} {row['entropy']:>9.1e}"
        out.append(
            f"{row['model']:<14} {row['kv']:>4} {row['prompts']:>8} {row['tokens']:>7} {row['differ']:>7} {largest}"
        )
        for parting in row["partings"]:
            gaps = ", ".join(
                f"{name} {'?' if gap is None else f'{gap:.1e}'}" for name, gap in parting["gap"].items()
            )
            out.append(
                f"    parts at token {parting['token']}; its own token over the other's, in nats: {gaps}"
            )
    out += ["", "largest difference of a token's logprob and entropy in nats, up to where answers part", ""]
    names = list(record["speed"][0]["tokens_per_second"])
    out.append(f"{'tokens/s':<14} {'parameters':>11} " + " ".join(f"{name:>18}" for name in names))
    for row in record["speed"]:
        rates = " ".join(f"{row['tokens_per_second'][name]:>18.0f}" for name in names)
        out.append(f"{row['model']:<14} {row['parameters']:>11,} {rates}")
    out += [
        "",
        "how much longer the engine takes for one request at a time than llama_cpp.Llama (median of turns)",
    ]
    for row in record["speed"]:
        for clock, ratios in row["slower"].items():
            slower = ", ".join(f"{kind} {value:+.1%}" for kind, value in ratios.items())
            out.append(f"{row['model']:<14} {clock:>4} time: {slower}")
    met = [
        f"{row['model']} ({kind})"
        for row in record["speed"]
        for kind, value in row["slower"]["wall"].items()
        if value <= TOLERATED
    ]
    out.append(f"the aim of at most {TOLERATED:+.0%} wall time is met by: {'; '.join(met) or 'none'}")
    conditions = ", ".join(f"{name} {value}" for name, value in record["conditions"].items())
    out += ["", f"conditions: {conditions}"]
    return out


async def main() -> None:
    """Print both tables and keep them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=200, help="prompts to answer (default: %(default)s)")
    parser.add_argument(
        "--tokens", type=int, default=256, help="tokens of an answer at most (default: %(default)s)"
    )
    parser.add_argument("--timed", type=int, default=8, help="prompts of a timed turn (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=7, help="timed turns (default: %(default)s)")
    parser.add_argument(
        "--out", type=Path, default=Path("results/benchmarks"), help="folder (default: %(default)s)"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    conditions = {
        "llama_cpp_python": llama_cpp.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cpus": len(os.sched_getaffinity(0)),
        "threads": 1,
        "load before": round(os.getloadavg()[0], 2),
    }
    record: dict[str, Any] = {"conditions": conditions, "agreement": [], "speed": []}
    with tempfile.TemporaryDirectory() as folder:
        files = {model: export(builtin.resolve(model), Path(folder, model.split(":")[1])) for model in MODELS}
        asked = requests(options.timed, options.tokens)
        record["speed"] = [await speed(model, path, asked, options.repeats) for model, path in files.items()]
        asked = requests(min(2, options.timed), min(128, options.tokens))
        record["speed"].append(await speed("random, 8 bits", larger(Path(folder)), asked, options.repeats))
        asked = requests(options.prompts, options.tokens, top=5)
        for model, path in files.items():
            record["agreement"] += await agreement(model, path, asked)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "llama_cpp_agreement.json").write_text(json.dumps(record, indent=1) + "\n")
    text = "\n".join(lines(record))
    (options.out / "llama_cpp_agreement.txt").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    asyncio.run(main())
