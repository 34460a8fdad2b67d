"""Tandem at 1, 8 and 32 questions at a time: `python -m benchmarks.tandem_concurrency hf|llama_cpp|vllm`.

The built-in pair, the shipped judge, greedy, float32.  Questions per minute (median of rounds over the same questions,
fresh engines in each, with a bootstrap interval), and what the intern computed of the insights:

* once: the share of the insight tokens shown at the last checkpoint that the intern never computed again.  At every
  further call it computes what is not cached; what of that lies before the end of the last call's insight was
  computed twice.
* cached: the share of the answer's prompt that came from the cache, and of its whole blocks (vLLM keeps whole blocks).
* judging: the share of all FLOPs that went into reading again and judging.
* discarded: tokens that the mentor wrote and nobody read.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import engines
from ensemblehub.concurrency import for_each
from ensemblehub.config import Config
from ensemblehub.cost import UsageLedger
from ensemblehub.ensemble import AsyncEnsemble
from ensemblehub.lab.pipeline.evaluate import ColdCost
from ensemblehub.lab.pipeline.records import Collected
from ensemblehub.lab.tasks.base import Item
from ensemblehub.lab.tasks.builtin_math import BuiltinMath
from ensemblehub.results import collect
from ensemblehub.schema import Request, Result

RESULTS = Path("results/benchmarks")
COLLECTED = Path("results/builtin_math/collected")
AT_ONCE = (1, 8, 32)
AIM = 0.90  # of the insight text is never computed twice, on engines with a prefix cache of their own
Runs = list[tuple[Result, UsageLedger]]


async def answered(config: Config, items: Sequence[Item], at_once: int) -> tuple[float, Runs, AsyncEnsemble]:
    """Answer all questions with fresh engines; returns the seconds, and every run with its usage."""
    task = BuiltinMath()
    async with AsyncEnsemble.from_config(config) as ensemble:

        async def answer(item: Item) -> tuple[Result, UsageLedger]:
            ledger, request = UsageLedger(), Request(task.request(item), ensemble.sampling)
            return await collect(ensemble.stream(request, ledger), ledger), ledger

        started = time.perf_counter()
        runs = await for_each(items, answer, limit=at_once)
        return time.perf_counter() - started, runs, ensemble


def shares(runs: Runs, ensemble: AsyncEnsemble) -> dict[str, float]:
    """What the intern computed once, what came from the cache, what judging cost, what was discarded."""
    closing = Collected.load(COLLECTED, "test").rows[0].closing  # template tokens after the insight
    infos = {engine.name: engine.info for engine in ensemble.engines}
    insight = again = cached = prompt = blocks = judging = flops = discarded = 0.0
    for result, ledger in runs:
        calls = [call.cost for call in ledger.calls if call.engine == "intern" and call.cost.prompt_tokens]
        shown = [0, *(verdict.mentor_tokens for verdict in result.verdicts)]
        insight += shown[-1]
        for before, call, known in zip(calls, calls[1:], shown[1:], strict=False):
            again += min(known, max(0, before.prompt_tokens - closing - call.cached_tokens))
        answer = calls[-1]
        cached, prompt = cached + answer.cached_tokens, prompt + answer.prompt_tokens
        blocks += (answer.prompt_tokens - 1) // engines.BLOCK * engines.BLOCK
        cold = ColdCost.of(ledger.calls, infos, "intern")
        judging, flops = judging + cold.judging_flops, flops + cold.flops
        wrote = sum(call.cost.completion_tokens for call in ledger.calls if call.engine == "mentor")
        discarded += wrote - shown[-1]
    return {
        "once": 1 - again / insight,
        "cached": cached / prompt,
        "cached of whole blocks": cached / blocks,
        "judging": judging / flops,
        "discarded a question": discarded / len(runs),
    }


async def measured(engine: str, config: Config, questions: int, rounds: int) -> list[dict[str, Any]]:
    """A row for each number of questions at a time."""
    items = list(BuiltinMath().items("test", questions))
    rows, texts = list[dict[str, Any]](), list[str]()
    for at_once in AT_ONCE:
        rates = []
        for _ in range(rounds):
            seconds, runs, ensemble = await answered(config, items, at_once)
            rates.append(60 * len(items) / seconds)
        texts = texts or [result.text for result, _ in runs]
        same = sum(result.text == text for (result, _), text in zip(runs, texts, strict=True))
        low, high = np.percentile(
            np.median(np.random.default_rng(0).choice(rates, (4000, rounds)), axis=1), [2.5, 97.5]
        )
        row = {"engine": engine, "at once": at_once, "questions": len(items), "rounds": rounds}
        row |= {"per minute": float(np.median(rates)), "interval": [float(low), float(high)]}
        rows.append(row | {"as alone": same, **shares(runs, ensemble)})
        print(line(rows[-1]), flush=True)
    return rows


def line(row: dict[str, Any]) -> str:
    """A row as a person reads it."""
    low, high = row["interval"]
    whole = (
        row["engine"] == "vllm"
    )  # which keeps whole blocks, and reads anew where it gives logprobs of a prompt
    once = "" if whole else f"insight computed once {row['once']:.1%}; "
    blocks = f" ({row['cached of whole blocks']:.1%} of its whole blocks)" if whole else ""
    return (
        f"{row['engine']:<9} {row['at once']:>2} at once: {row['per minute']:.0f} questions a minute "
        f"[{low:.0f}, {high:.0f}] ({row['questions']} questions, {row['rounds']} rounds); {row['as alone']} texts as "
        f"alone; {once}of the answer's prompt cached {row['cached']:.1%}{blocks}; "
        f"judging {row['judging']:.1%} of FLOPs; discarded "
        f"{row['discarded a question']:.1f} mentor tokens a question"
    )


def main() -> None:
    """Measure one engine, and keep what was measured of the others."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("engine", choices=["hf", "llama_cpp", "vllm"])
    parser.add_argument("--questions", type=int, default=64, help="(default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder (default: %(default)s)")
    options = parser.parse_args()
    conditions = {
        "cpus": len(os.sched_getaffinity(0)),
        "threads": 1,
        "load before": round(os.getloadavg()[0], 2),
    }
    with engines.started(options.engine) as specs:
        rows = asyncio.run(measured(options.engine, engines.pair(specs), options.questions, options.rounds))
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "tandem_concurrency.json"
    kept = json.loads(path.read_text()) if path.exists() else []
    rows = [row for row in kept if row["engine"] != options.engine] + [
        row | {"conditions": conditions} for row in rows
    ]
    path.write_text(json.dumps(rows, indent=1) + "\n")
    path.with_suffix(".txt").write_text("\n".join(map(line, rows)) + "\n")


if __name__ == "__main__":
    main()
