"""The simulation of `benchmarks/pools.py` against what was measured: `python -m benchmarks.pool_cases`.

Measured is the built-in pair (Tandem, greedy, the `hf` engine, one thread) with 1, 2 and 4 questions at a time, in
processor seconds of the process: on one core these are what its clock would show without other load.  What a
pass costs is measured apart from that, on each model by itself (1, 2 and 4 rows that write, prompts of three lengths
that are read), and so is a judgement; nothing is fitted on the cases.

Aim: throughput, median and 90th percentile of the latency within 15 % at 1, 2 and 4.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
import simpy

from benchmarks.pools import Question, Server, Speed, Tandem, closed_loop
from benchmarks.server_load import conditions, keep, told
from ensemblehub import builtin
from ensemblehub.concurrency import for_each
from ensemblehub.config import Config
from ensemblehub.cost import UsageLedger
from ensemblehub.ensemble import AsyncEnsemble
from ensemblehub.generators.base import Engine
from ensemblehub.lab.tasks.builtin_math import BuiltinMath
from ensemblehub.results import collect
from ensemblehub.schema import Chat, Message, Request, Result, Sampling

FOLDER = Path("results/scale")
AT_ONCE = (1, 2, 4)
ROWS = 32
WITHIN = 0.15
SHORT, LONG = 8, 72  # tokens written
LENGTHS = (1, 4, 10)  # problems in a prompt that is read


async def _stream(engine: Engine, text: str, tokens: int) -> None:
    sampling = Sampling(max_tokens=tokens, temperature=0.0, ignore_eos=True)
    request = Request(Chat((Message("user", text),)), sampling)
    async for _ in engine.stream(request, UsageLedger().meter("answer")):
        pass


async def _writing(engine: Engine, texts: Sequence[str], tokens: int) -> float:
    started = time.process_time()
    await asyncio.gather(*(_stream(engine, text, tokens) for text in texts))
    return time.process_time() - started


async def _reading(engine: Engine, text: str) -> tuple[int, float]:
    ledger, started = UsageLedger(), time.process_time()
    await engine.score(Request(Chat((Message("user", text),)), Sampling()), ledger.meter("judge"))
    spent = time.process_time() - started
    cost = ledger.total
    return cost.prompt_tokens - cost.cached_tokens, spent


async def speed(engine: Engine, texts: Iterator[str]) -> Speed:
    """What the passes of a model cost; each text is used once, so that nothing is cached."""
    steps = []
    for rows in AT_ONCE:
        took = {
            tokens: [await _writing(engine, [next(texts) for _ in range(rows)], tokens) for _ in range(3)]
            for tokens in (SHORT, LONG)
        }
        steps.append((rows, (median(took[LONG]) - median(took[SHORT])) / (LONG - SHORT)))
    read = [
        await _reading(engine, " ".join(next(texts) for _ in range(count)))
        for count in LENGTHS
        for _ in range(4)
    ]
    slope, base = np.polyfit(*zip(*read, strict=True), 1)
    return Speed(tuple(steps), float(slope), float(base))


def question(result: Result, ledger: UsageLedger) -> Question:
    """What Tandem did, by its ledger."""
    intern = [call.cost for call in ledger.calls if call.engine == "intern"]
    mentor = [call.cost for call in ledger.calls if call.engine == "mentor"]
    shown = tuple(verdict.mentor_tokens for verdict in result.verdicts if verdict.mentor_tokens)
    prompt = intern[0].prompt_tokens
    insight = shown[-1] if shown else 0
    return Question(
        prompt=prompt,
        mentor_prompt=mentor[0].prompt_tokens if mentor else 0,
        checkpoints=shown,
        closing=intern[-1].prompt_tokens - prompt - insight,
        answer=intern[-1].completion_tokens,
    )


async def measured(ensemble: AsyncEnsemble, chats: Sequence[Chat], at_once: int) -> dict[str, Any]:
    """Answer all; seconds are the process' own."""
    latencies = list[float]()

    async def answer(chat: Chat) -> Question:
        ledger, began = UsageLedger(), time.process_time()
        result = await collect(ensemble.stream(Request(chat, ensemble.sampling), ledger), ledger)
        latencies.append(time.process_time() - began)
        return question(result, ledger)

    started = time.process_time()
    asked = await for_each(chats, answer, limit=at_once)
    return {"seconds": time.process_time() - started, "latencies": latencies, "questions": asked}


def simulated(speeds: dict[str, Speed], judging: float, asked: Sequence[Question], at_once: int) -> Any:
    """The same by the simulation: everything on one core."""
    env = simpy.Environment()
    core = simpy.Resource(env)
    mentor, intern = (Server(env, speeds[name], ROWS, 65536, core) for name in ("mentor", "intern"))
    tandem = Tandem(env, [mentor], [intern], pauses=True, judging=judging, core=core)
    return {"latencies": closed_loop(tandem, asked, at_once), "seconds": env.now}


def figures(run: dict[str, Any]) -> dict[str, float]:
    """Questions a second, and latencies."""
    low, high = np.percentile(run["latencies"], [50, 90])
    return {"rate": len(run["latencies"]) / run["seconds"], "p50": float(low), "p90": float(high)}


async def judgement(ensemble: AsyncEnsemble, chats: Sequence[Chat]) -> float:
    """Seconds of the judge itself for one reading."""
    spent = list[float]()
    for chat in chats:
        ledger = UsageLedger()
        await collect(ensemble.stream(Request(chat, ensemble.sampling), ledger), ledger)
        spent += [call.cost.seconds for call in ledger.calls if call.engine == "judge"]
    return median(spent)


async def case(count: int, rounds: int) -> dict[str, Any]:
    """Measure costs and cases in turn, so that what disturbs the machine disturbs both."""
    config = Config.read(builtin.CONFIG)
    task = BuiltinMath()
    items = list(task.items("test", count))
    chats, found = [task.request(item) for item in items], list[dict[str, Any]]()
    more = (item.text for item in task.items("train"))
    for _ in range(rounds):
        runs = {}
        async with AsyncEnsemble.from_config(config) as ensemble:
            engines = {engine.name: engine for engine in ensemble.engines}
            for engine in engines.values():
                await _writing(engine, [next(more) for _ in range(4)], SHORT)  # warm-up
            before = {name: await speed(engine, more) for name, engine in engines.items()}
            judging = await judgement(ensemble, [task.request(item) for item in task.items("calibration", 4)])
        for at_once in AT_ONCE:
            async with AsyncEnsemble.from_config(config) as ensemble:
                for engine in ensemble.engines:
                    await _writing(engine, ["Count."], SHORT)
                runs[at_once] = await measured(ensemble, chats, at_once)
        found.append({"speeds": before, "judging": judging, "runs": runs})
    return compared(found)


def middle(speeds: Sequence[Speed]) -> Speed:
    """The median of each figure."""
    steps = tuple((rows, median(dict(speed.steps)[rows] for speed in speeds)) for rows in AT_ONCE)
    return Speed(steps, median(speed.read for speed in speeds), median(speed.reading for speed in speeds))


def compared(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Measured and simulated figures, the medians of all rounds."""
    speeds = {name: middle([each["speeds"][name] for each in found]) for name in ("mentor", "intern")}
    judging = median(each["judging"] for each in found)
    asked = found[0]["runs"][1]["questions"]
    measured_ = {
        at_once: {
            name: median(figures(each["runs"][at_once])[name] for each in found)
            for name in ("rate", "p50", "p90")
        }
        for at_once in AT_ONCE
    }
    rows = []
    for at_once in AT_ONCE:
        theirs = figures(simulated(speeds, judging, asked, at_once))
        ours = measured_[at_once]
        rows.append(
            {
                "at_once": at_once,
                "measured": ours,
                "simulated": theirs,
                "off": {name: theirs[name] / ours[name] - 1 for name in ours},
            }
        )
    return {
        "speeds": {name: asdict(speed) for name, speed in speeds.items()},
        "judging": judging,
        "rounds": len(found),
        "cases": rows,
        "questions": [asdict(each) for each in asked],
    }


def table(record: dict[str, Any]) -> str:
    """The record in words."""
    asked = record["questions"]
    shown = mean(each["checkpoints"][-1] if each["checkpoints"] else 0 for each in asked)
    lines = [
        told(record["conditions"]),
        f"{len(asked)} questions, {record['rounds']} rounds (medians), processor seconds; {shown:.0f} mentor tokens a "
        f"question; a judgement {1000 * record['judging']:.2f} ms",
    ]
    for name, costs in record["speeds"].items():
        steps = ", ".join(f"{1000 * seconds:.2f} ms at {rows}" for rows, seconds in costs["steps"])
        lines.append(
            f"{name}: a step {steps}; reading {1000 * costs['reading']:.2f} ms and {1e6 * costs['read']:.0f} µs a token"
        )
    for row in record["cases"]:
        parts = [
            f"{name} {ours:.3g} measured, {row['simulated'][name]:.3g} simulated ({row['off'][name]:+.0%})"
            for name, ours in row["measured"].items()
        ]
        lines.append(f"{row['at_once']} at a time: {'; '.join(parts)}")
    return "\n".join(lines)


def missed(record: dict[str, Any]) -> list[str]:
    """Figures that are off by more than the aim."""
    return [
        f"{name} at {row['at_once']} at a time is off by {off:+.0%}"
        for row in record["cases"]
        for name, off in row["off"].items()
        if abs(off) > WITHIN
    ]


def main() -> None:
    """Measure, simulate, keep; fails where the aim is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--questions", type=int, default=32, help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder (default: %(default)s)")
    options = parser.parse_args()
    where = conditions()
    record = {"conditions": where, **asyncio.run(case(options.questions, options.rounds))}
    keep(options.out, "pool_cases", record, table(record), missed(record))


if __name__ == "__main__":
    main()
