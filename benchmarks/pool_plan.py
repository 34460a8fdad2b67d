"""Large pools by the simulation of `benchmarks/pools.py`: `python -m benchmarks.pool_plan`.

Questions are the built-in pair's 2,000 test questions as Tandem answered them (`results/builtin_math`), all token
counts times 7.8, so that level `high` is the paper's 1,000 tokens.  Servers have published throughputs (`MENTOR`,
`INTERN`).  Asked is how latency grows with the rate of questions, with and without early stop of the mentor
and prefix-aware routing, for short questions and for questions with 3,000 tokens of context; then how many servers
1,000 questions a second take, and how long a million questions.  It refuses to run where `pool_cases` missed its aim.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from statistics import mean
from typing import Any

import numpy as np
import simpy

from benchmarks.pool_cases import FOLDER
from benchmarks.pools import Question, Router, Server, Speed, Tandem, least_loaded, open_loop, prefix_aware
from ensemblehub.lab.pipeline.records import Collected

PAIR = Path("results/builtin_math")
SCALE = 1000 / 128
CONTEXT = 3000
# Qwen3-32B, fp16, one H100 NVL, vLLM 0.8.5, 32 rows: 1,000 ShareGPT requests (217,393 tokens read, 200,516 written)
# in 306.78 s, github.com/vllm-project/vllm/issues/17788: 48.96 ms a pass, 46.4 without what it reads.  Reading: 13,699
# tokens/s of Qwen2.5-72B on two H100, github.com/tenstorrent/tt-inference-server/issues/143: as many parameters a GPU.
MENTOR = Speed(((32, 0.0464),), 1 / 13_699)
MENTOR_ROWS = 32
# Llama-3.1-8B, fp16, one H100, vLLM 0.21.0: time per token at 1, 4 and 16 rows (its throughput is highest at 16),
# yobitelcomm.github.io/bench/recipes/concurrency-sweep.  Reading: 17,600 tokens/s of Qwen2.5-7B on an RTX 4090,
# github.com/tenstorrent/tt-inference-server/issues/125: a lower bound for an H100.
INTERN = Speed(((1, 0.00648), (4, 0.00659), (16, 0.01094)), 1 / 17_601)
INTERN_ROWS = 16
CACHE = 200_000  # tokens of a server's prefix cache
SERVERS = (6, 6)
SECONDS = 200.0
RATES = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 9.0, 10.0, 12.0)
FULL = 0.8  # load that servers are planned for
SLOW, BUSY = (
    2.0,
    0.97,
)  # saturated: p90 is so many times that of the lowest rate, or the load of a pool so high


@dataclass(frozen=True)
class Way:
    """A way to run the pools."""

    name: str
    early_stop: bool
    route: Router


WAYS = (
    Way("early stop, prefix-aware", True, prefix_aware),
    Way("early stop, least loaded", True, least_loaded),
    Way("no early stop, prefix-aware", False, prefix_aware),
)


def workload(context: int = 0) -> list[Question]:
    """The test questions, with so many tokens of context before each."""
    collected = {row.id: row for row in Collected.load(PAIR / "collected", "test").rows}
    levels = {"low": 24, "medium": 64, "high": 128}
    found = []
    for line in (PAIR / "runs.jsonl").read_text().splitlines()[1:]:
        run = json.loads(line)
        row = collected[run["id"].replace("studio_math", "builtin_math")]
        spans = [min(levels[name], run["mentor_tokens"]) for name in levels if name in run["probabilities"]]
        alone = row.runs["none"]
        whole = max((each.mentor_tokens for each in row.runs.values()), default=0)
        found.append(
            Question(
                prompt=context + scaled(alone.intern_read),
                mentor_prompt=context + scaled(alone.intern_read),
                checkpoints=tuple(map(scaled, spans)),
                closing=row.closing,
                answer=scaled(run["intern_tokens"]),
                rest=max(0, scaled(whole) - scaled(spans[-1])) if spans else 0,
            )
        )
    return found


def scaled(tokens: int) -> int:
    """Tokens of the plan for tokens of the built-in pair."""
    return max(1, round(SCALE * tokens))


def run(questions: Sequence[Question], rate: float, way: Way, servers: tuple[int, int]) -> dict[str, Any]:
    """Latency, load and tokens at a rate."""
    env = simpy.Environment()

    def pool(count: int, speed: Speed, rows: int) -> list[Server]:
        return [Server(env, speed, rows, CACHE, simpy.Resource(env)) for _ in range(count)]

    mentors, interns = pool(servers[0], MENTOR, MENTOR_ROWS), pool(servers[1], INTERN, INTERN_ROWS)
    tandem = Tandem(env, mentors, interns, way.route, way.early_stop)
    number = iter(range(1 << 40))

    def draw(random: Random) -> tuple[object, Question]:
        return next(number), random.choice(questions)

    def forget() -> Any:
        """The first half is a warm-up."""
        yield env.timeout(SECONDS / 2)
        for server in (*mentors, *interns):
            server.wrote = server.read = server.hits = 0

    env.process(forget())
    took = open_loop(tandem, draw, rate, SECONDS)
    middle, high = np.percentile(took, [50, 90]) if took else (math.inf, math.inf)

    def load(group: Sequence[Server]) -> float:
        """What was computed, as a share of what full passes could compute."""
        speed, rows = group[0].speed, group[0].rows
        full = sum(each.wrote * speed.write(rows) / rows + each.read * speed.read for each in group)
        return full / (SECONDS / 2) / len(group)

    return {
        "rate": rate,
        "done": len(took) / (SECONDS / 2),
        "p50": float(middle),
        "p90": float(high),
        "mentor_load": load(mentors),
        "intern_load": load(interns),
        "mentor_wrote": sum(server.wrote for server in mentors) / (SECONDS / 2),
        "intern_read": sum(server.read for server in interns) / (SECONDS / 2),
        "intern_cached": sum(server.hits for server in interns) / (SECONDS / 2),
    }


def holds(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The highest rate before saturation."""
    good = [
        row
        for row in rows
        if row["p90"] <= SLOW * rows[0]["p90"] and max(row["mentor_load"], row["intern_load"]) <= BUSY
    ]
    return max(good, key=lambda row: row["rate"])


def sweep(context: int, told: Callable[[str], object]) -> dict[str, Any]:
    """All ways over all rates, until two rates are beyond saturation."""
    questions = workload(context)
    found: dict[str, Any] = {"context": context, "tokens": tokens(questions), "ways": {}}
    for way in WAYS:
        rows = list[dict[str, Any]]()
        for rate in RATES:
            rows.append(run(questions, rate, way, SERVERS))
            last = rows[-1]
            shares = f"mentors {last['mentor_load']:.0%}, interns {last['intern_load']:.0%}"
            told(f"{context} {way.name} {rate:g}/s: p50 {last['p50']:.1f}, p90 {last['p90']:.1f} s, {shares}")
            if last["p90"] > 2 * SLOW * rows[0]["p90"]:
                break
        found["ways"][way.name] = {"rows": rows}
    return found


def tokens(questions: Sequence[Question]) -> dict[str, float]:
    """Means per question."""
    return {
        "prompt": mean(each.prompt for each in questions),
        "insight": mean(each.checkpoints[-1] if each.checkpoints else 0 for each in questions),
        "mentor_whole": mean(
            (each.checkpoints[-1] if each.checkpoints else 0) + each.rest for each in questions
        ),
        "reads": mean(1 + len(each.checkpoints) for each in questions),
        "answer": mean(each.answer for each in questions),
    }


def plan(found: dict[str, Any]) -> list[str]:
    """Servers for 1,000 questions a second and hours for a million, by the rate that the pools hold."""
    lines = []
    for name, way in found["ways"].items():
        held = holds(way["rows"])
        loads = (held["mentor_load"], held["intern_load"])
        mentors, interns = (
            math.ceil(1000 / held["rate"] * count * load / FULL)
            for count, load in zip(SERVERS, loads, strict=True)
        )
        lines.append(
            f"{found['context']:,} tokens of context, {name}: holds {held['rate']:g}/s with p50 "
            f"{held['p50']:.1f} s, p90 {held['p90']:.1f} s, "
            f"mentors at {loads[0]:.0%}, interns at {loads[1]:.0%}; 1,000/s: {mentors} mentor and {interns} intern "
            f"servers at {FULL:.0%}; 10^6 questions: {1000 * mentors * FULL / 3600:.0f} and "
            f"{1000 * interns * FULL / 3600:.0f} server hours at full passes"
        )
    return lines


def plot(cases: Sequence[dict[str, Any]], folder: Path) -> None:
    """Latency and load over the rate."""
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    mpl.rcParams["svg.hashsalt"] = "ensemblehub"
    figure, axes = plt.subplots(2, len(cases), figsize=(9, 6.4), sharex=True, squeeze=False)
    for column, case in enumerate(cases):
        for name, way in case["ways"].items():
            rates = [row["rate"] for row in way["rows"]]
            axes[0][column].plot(rates, [row["p90"] for row in way["rows"]], "o-", label=name)
            (line,) = axes[1][column].plot(rates, [row["mentor_load"] for row in way["rows"]], "o-")
            axes[1][column].plot(
                rates, [row["intern_load"] for row in way["rows"]], "o--", color=line.get_color()
            )
        axes[0][column].set(
            title=f"{case['context']:,} tokens of context", yscale="log", ylabel="p90 latency, s"
        )
        axes[1][column].set(xlabel="questions a second", ylabel="load (dashed: interns)", ylim=(0, 1.05))
    axes[0][0].legend(fontsize=8)
    for axis in axes.flat:
        axis.grid(alpha=0.3)
    figure.tight_layout(rect=(0, 0, 1, 0.97))
    figure.suptitle(f"{SERVERS[0]} mentor and {SERVERS[1]} intern servers")
    figure.savefig(folder / "pool_plan.svg", bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    """Simulate, draw, keep.

    Raises:
        SystemExit: The simulation has not reproduced the measured cases.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder (default: %(default)s)")
    parser.add_argument(
        "--kept", action="store_true", help="plan and draw from pool_plan.json of an earlier run"
    )
    parser.add_argument(
        "--images", type=Path, default=Path("docs/images"), help="folder of the plot (default: %(default)s)"
    )
    options = parser.parse_args()
    cases_ = json.loads((options.out / "pool_cases.json").read_text())
    if cases_["missed"]:
        raise SystemExit(f"the simulation does not reproduce what was measured: {cases_['missed']}")
    kept = options.out / "pool_plan.json"
    if options.kept:
        cases = json.loads(kept.read_text())["cases"]
    else:
        cases = [sweep(context, lambda line: print(line, flush=True)) for context in (0, CONTEXT)]
        speeds = {"mentor": asdict(MENTOR), "intern": asdict(INTERN)}
        kept.write_text(json.dumps({"speeds": speeds, "cases": cases}, indent=1) + "\n")
    text = "\n".join(line for case in cases for line in plan(case))
    plot(cases, options.images)
    (options.out / "pool_plan.txt").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
