"""What an answer in turns costs against its length: `python -m benchmarks.turns`.

`loop` writes with the built-in pair, 64 tokens a turn and past every end of text, on one CPU thread; once with
the engines' prefix cache, and once without, where each turn reads all of the text again.  Counted are the
tokens that went through a model, and seconds on the clock and of the CPU; the plot shows the latter, which
other programs disturb less.  The aim: with the cache at most 1.05 x writers x (prompt + length).
Writes `turns.csv`, `turns.json`, `turns.png` and `turns.svg`.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import json
import random
import statistics
import time
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch

from ensemblehub import builtin
from ensemblehub.cost import UsageLedger
from ensemblehub.ensemble_methods.output_aggregation.loop import Loop
from ensemblehub.generators.hf.engine import HFEngine, HFOptions
from ensemblehub.lab.builtin import word_problems
from ensemblehub.schema import Chat, Message, Request, Sampling, UsageLine

mpl.use("Agg")
from matplotlib import pyplot as plt

AIM = 1.05
Measured = dict[str, Any]


def questions(count: int) -> list[Chat]:
    """Questions of five steps."""
    rng = random.Random(0)
    return [Chat((Message("user", word_problems.draw(rng, steps=5).text),)) for _ in range(count)]


def computed(calls: Sequence[UsageLine]) -> int:
    """Tokens that went through a model: those read and not cached, and all written but each turn's last."""
    costs = [call.cost for call in calls]
    return sum(cost.prompt_tokens - cost.cached_tokens + cost.completion_tokens - 1 for cost in costs)


async def measure(kind: str, cache: int, chat: Chat, length: int, turn: int) -> Measured:
    """One answer, by engines that have computed nothing yet."""
    paths = {name: builtin.resolve(f"builtin:{name}") for name in ("mentor", "intern")}
    engines = [
        HFEngine(name, HFOptions(path, device="cpu", prefix_cache_tokens=cache))
        for name, path in paths.items()
    ]
    for engine in engines:
        await engine.load()
    request, ledger = Request(chat, Sampling(max_tokens=length, ignore_eos=True)), UsageLedger()
    whole = len(engines) * (engines[0].count(request) + length)
    started, busy = time.perf_counter(), time.process_time()
    async with aclosing(Loop(max_new_tokens_per_round=turn).run(request, engines, ledger)) as pieces:
        written = sum([len(piece.tokens) async for piece in pieces])
    seconds, busy, tokens = time.perf_counter() - started, time.process_time() - busy, computed(ledger.calls)
    for engine in engines:
        await engine.close()
    if written != length:
        raise SystemExit(f"{written} tokens were written, not {length}")
    counted = {"computed": tokens, "share": tokens / whole}
    return {"kind": kind, "length": length, **counted, "seconds": seconds, "cpu_seconds": busy}


def summary(rows: Sequence[Measured]) -> list[Measured]:
    """By kind and length: mean tokens, median seconds, and the largest share of writers x (prompt + length)."""
    cells = dict.fromkeys((row["kind"], row["length"]) for row in rows)
    out = []
    for kind, length in cells:
        own = [row for row in rows if (row["kind"], row["length"]) == (kind, length)]
        out.append(
            {
                "kind": kind,
                "length": length,
                "questions": len(own),
                "computed": statistics.mean(row["computed"] for row in own),
                "share": max(row["share"] for row in own),
                "seconds": statistics.median(row["seconds"] for row in own),
                "cpu_seconds": statistics.median(row["cpu_seconds"] for row in own),
            }
        )
    return out


def plot(cells: Sequence[Measured], folder: Path) -> None:
    """Tokens and seconds against length."""
    mpl.rcParams["svg.hashsalt"] = "ensemblehub"
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.8))
    for column, label, axis in zip(
        ("computed", "cpu_seconds"), ("tokens computed", "CPU seconds"), axes, strict=True
    ):
        for kind in dict.fromkeys(cell["kind"] for cell in cells):
            own = [cell for cell in cells if cell["kind"] == kind]
            axis.plot([cell["length"] for cell in own], [cell[column] for cell in own], "o-", label=kind)
        axis.set(xlabel="tokens of the answer", ylabel=label, ylim=(0, None), xlim=(0, None))
        axis.grid(alpha=0.3)
        axis.legend()
    figure.suptitle("loop: built-in mentor and intern in turns of 64 tokens")
    for name in ("turns.png", "turns.svg"):
        metadata = {"Date": None} if name.endswith("svg") else None
        figure.savefig(folder / name, dpi=150, bbox_inches="tight", metadata=metadata)
    plt.close(figure)


async def main() -> None:
    """Measure, print, write; fails where the aim is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--questions", type=int, default=5, help="questions per length (default: %(default)s)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("results/benchmarks"), help="folder (default: %(default)s)"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    chats, lengths, turn = questions(options.questions), [64, 128, 256, 512, 768, 1024, 1536], 64
    await measure("warm-up", 0, chats[0], turn, turn)
    rows = [
        await measure(kind, cache, chat, length, turn)
        for length in lengths
        for chat in chats
        for kind, cache in (("prefix cache", HFOptions.prefix_cache_tokens), ("no cache", 0))
    ]
    cells = summary(rows)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "turns.json").write_text(
        json.dumps({"turn": turn, "aim": AIM, "cells": cells}, indent=1) + "\n"
    )
    with (options.out / "turns.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, list(cells[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(cells)
    plot(cells, options.out)
    print(f"{'':<12} {'length':>6} {'computed':>9} {'share, worst':>12} {'seconds':>8} {'CPU':>6}")
    for cell in cells:
        costs = f"{cell['computed']:>9.0f} {cell['share']:>12.3f} {cell['seconds']:>8.2f} {cell['cpu_seconds']:>6.2f}"
        print(f"{cell['kind']:<12} {cell['length']:>6} {costs}")
    worst = max(cell["share"] for cell in cells if cell["kind"] == "prefix cache")
    if worst > AIM:
        raise SystemExit(f"computed {worst:.3f} x writers x (prompt + length), more than {AIM}")


if __name__ == "__main__":
    asyncio.run(main())
