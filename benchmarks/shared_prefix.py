"""Questions that arrive together read the system text they share once: `python -m benchmarks.shared_prefix MODEL`.

Questions are asked at once as a Tandem asks its mentor (profile `instruct`: system text, question), three ways in one
process, in turns: `apart` shares nothing, `finished` starts from answers that are over (as before rows waited for
each other), `together` is the engine as it is.  Counted are the prompt tokens computed per question, from the
ledger, and seconds.  Answers are compared token by token; where two part, the gap in nats between the two most
probable tokens there is told, since sums in another order move logprobs by rounding.
MODEL is a .gguf file, a folder or `builtin:mentor`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

from benchmarks.engine_overhead import RESULTS
from ensemblehub import builtin
from ensemblehub.cost import UsageLedger
from ensemblehub.generators.base import Engine
from ensemblehub.generators.batching import scheduler
from ensemblehub.schema import Chat, Message, Request, Sampling, Token
from ensemblehub.tandem.insights import PROFILES

WAYS = ("apart", "finished", "together")


def questions(path: Path, count: int) -> list[str]:
    """The first questions of a JSON Lines file of GSM8K, HumanEval or MBPP."""
    lines = path.read_text(encoding="utf-8").splitlines()[:count]
    rows = [json.loads(line) for line in lines]
    return [row.get("question") or row.get("prompt") or row["text"] for row in rows]


def engine_of(path: str, rows: int, cache: int) -> Engine:
    """The engine of a model on one thread."""
    if path.endswith(".gguf"):
        from ensemblehub.generators.llama_cpp.engine import LlamaCppEngine, LlamaCppOptions

        return LlamaCppEngine(
            "model", LlamaCppOptions(path, threads=1, batch_rows=rows, prefix_cache_tokens=cache, n_ctx=2048)
        )
    import torch

    from ensemblehub.generators.hf.engine import HFEngine, HFOptions

    torch.set_num_threads(1)
    home = builtin.resolve(path)
    return HFEngine("model", HFOptions(home, device="cpu", batch_rows=rows, prefix_cache_tokens=cache))


async def asked(engine: Engine, requests: Sequence[Request]) -> dict[str, Any]:
    """All requests at once: what they wrote, what that took, and what of the prompts was computed."""
    ledger = UsageLedger()

    async def answer(request: Request) -> list[Token]:
        stream = engine.stream(request, ledger.meter("insight"))
        return [token async for piece in stream for token in piece.tokens]

    started = time.perf_counter()
    answers = await asyncio.gather(*map(answer, requests))
    seconds = time.perf_counter() - started
    usage = ledger.total
    return {
        "answers": answers,
        "seconds": seconds,
        "prompt": usage.prompt_tokens / len(requests),
        "computed": (usage.prompt_tokens - usage.cached_tokens) / len(requests),
        "rate": usage.completion_tokens / seconds,
    }


def parting(left: Sequence[Token], right: Sequence[Token]) -> float | None:
    """The gap in nats between the two most probable tokens where answers part; None where they do not."""
    for ours, theirs in zip(left, right, strict=True):
        if ours.id != theirs.id:
            return min(token.top[0].logprob - token.top[1].logprob for token in (ours, theirs))
    return None


async def measured(options: argparse.Namespace) -> dict[str, Any]:
    """Every way in turns; medians over rounds."""
    system = Message("system", PROFILES["instruct"].request)
    sampling = Sampling(max_tokens=options.tokens, ignore_eos=True, top_logprobs=2)
    texts = questions(options.questions, options.limit)
    requests = [Request(Chat((system, Message("user", text))), sampling) for text in texts]
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for turn in range(options.rounds):
        for way in WAYS if turn % 2 == 0 else WAYS[::-1]:
            engine = engine_of(options.model, options.rows, 0 if way == "apart" else 65536)
            await engine.load()
            threshold = 10**9 if way == "finished" else scheduler.SHARED
            with mock.patch.object(scheduler, "SHARED", threshold):
                found[way].append(await asked(engine, requests))
            await engine.close()
            print(f"round {turn + 1}, {way}: {found[way][-1]['seconds']:.1f} s", flush=True)
    first, *others = [found[way][0]["answers"] for way in WAYS]
    pairs = [pair for answers in others for pair in zip(first, answers, strict=True)]
    gaps = [gap for gap in (parting(*pair) for pair in pairs) if gap is not None]
    figures = {
        way: {name: median(row[name] for row in rows) for name in ("computed", "prompt", "seconds", "rate")}
        for way, rows in found.items()
    }
    return {"partings": gaps, "ways": figures}


def lines(record: dict[str, Any]) -> list[str]:
    """A record as a person reads it."""
    out = [
        f"{record['model']}, {record['questions']} questions of {record['source']} at once, {record['rows']} rows, "
        f"{record['tokens']} tokens each, {record['rounds']} rounds; {record['conditions']}"
    ]
    for way, row in record["ways"].items():
        out.append(
            f"  {way:<9} {row['computed']:>6.1f} of {row['prompt']:.1f} prompt tokens computed per question, "
            f"{row['seconds']:>7.2f} s, {row['rate']:>7.1f} tokens/s written"
        )
    gaps, pairs = record["partings"], 2 * record["questions"]
    near = f", at most {max(gaps):.1e} nats between the two most probable tokens there" if gaps else ""
    out.append(f"  answers that part from `apart`: {len(gaps)} of {pairs}{near}")
    return out


def main() -> None:
    """Measure one model, and keep what was measured of others."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="a .gguf file, a folder or builtin:mentor")
    parser.add_argument(
        "--questions", type=Path, required=True, help="gsm8k_test.jsonl, humaneval.jsonl, mbpp.jsonl"
    )
    parser.add_argument("--limit", type=int, default=32, help="questions (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=16, help="rows of a pass (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=32, help="tokens of an answer (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each way (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder (default: %(default)s)")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    found = asyncio.run(measured(options))
    path = Path(options.model)
    record = {
        "model": f"{path.parent.name}/{path.name}" if path.suffix == ".gguf" else options.model,
        "source": options.questions.stem,
        "questions": options.limit,
        **{name: getattr(options, name) for name in ("rows", "tokens", "rounds")},
        "conditions": f"one thread, load before {load:.1f}, python {platform.python_version()}",
        **found,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "shared_prefix.json"
    kept = json.loads(file.read_text()) if file.exists() else []
    records = [row for row in kept if row["model"] != record["model"]] + [record]
    file.write_text(json.dumps(records, indent=1) + "\n")
    text = "\n".join(line for row in records for line in lines(row))
    file.with_suffix(".txt").write_text(text + "\n")
    print("\n".join(lines(record)))


if __name__ == "__main__":
    main()
