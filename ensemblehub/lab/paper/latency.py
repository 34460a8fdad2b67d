"""Table 13: wall seconds per question, one question at a time, every method live."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace

import numpy as np

from ensemblehub.cost import UsageLedger
from ensemblehub.ensemble_methods.output_aggregation.tandem import Tandem
from ensemblehub.generators.base import Engine
from ensemblehub.lab import metrics
from ensemblehub.lab.paper.study import Study, trained
from ensemblehub.lab.paper.tables import Table, TableRow
from ensemblehub.lab.pipeline.collect import written
from ensemblehub.lab.pipeline.pipeline import Pipeline
from ensemblehub.lab.pipeline.progress import progress
from ensemblehub.lab.tasks.base import Item
from ensemblehub.schema import Request
from ensemblehub.tandem import insights
from ensemblehub.tandem.insights import LEVEL_0

COLUMNS = ("method", "n", "seconds", "interval", "times the mentor", "judging")
QUESTIONS = 60
Way = Callable[[Request], Awaitable[float]]  # answers, and says how many seconds of it were judging


def run(study: Study) -> list[Table]:
    """Every method on the same questions; the first of them warms up and does not count."""
    pipeline = study.pipeline()
    trained(study, pipeline)
    items = pipeline.items("test", min(study.limit or QUESTIONS, QUESTIONS) + 1)
    seconds, judging = asyncio.run(timed(pipeline, items))
    mentor = np.array(seconds["mentor"])
    rows: list[TableRow] = []
    for method, each in seconds.items():
        own = np.array(each)
        low, high = metrics.paired_bootstrap(own, np.zeros(len(own)))
        share = float(np.sum(judging[method]) / own.sum())
        rows.append(
            {
                "method": method,
                "n": len(own),
                "seconds": f"{own.mean():.4f}",
                "interval": f"[{low:.4f}, {high:.4f}]",
                "times the mentor": f"{own.sum() / mentor.sum():.3f}",
                "judging": f"{share:.1%}",
            }
        )
    notes = [
        f"Wall seconds of one question at a time on `{study.benchmark}`, 95 % bootstrap interval of the mean; methods "
        "in an order that turns from question to question, since what one has read is warm for the next."
    ]
    return [Table("latency", f"{study.benchmark}: seconds per question", rows, COLUMNS, notes, "latency")]


async def timed(
    pipeline: Pipeline, items: Sequence[Item]
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds of every question by method, and those that went into judging."""
    ensemble, tandem = pipeline.ensemble()
    async with ensemble:
        ways = ways_of(tandem, ensemble.engines)
        seconds, judging = ({name: list[float]() for name in ways} for _ in range(2))
        with progress("latency", len(items)) as step:
            for turn, item in enumerate(items):
                ask = pipeline.task.ask(item, pipeline.sampling)
                names = list(ways)
                for name in names[turn % len(names) :] + names[: turn % len(names)]:
                    started = time.perf_counter()
                    judged = await ways[name](ask)
                    if turn:
                        seconds[name].append(time.perf_counter() - started)
                        judging[name].append(judged)
                step()
    return seconds, judging


def ways_of(tandem: Tandem, engines: Sequence[Engine]) -> dict[str, Way]:
    """Every method by name: the models alone, a hand-off at each level, and Tandem."""
    mentor, _ = tandem.roles(engines)

    async def alone(thinking: bool | None, request: Request) -> float:
        await written(mentor, replace(request, prompt=replace(insights.chat_of(request), thinking=thinking)))
        return 0.0

    async def run_tandem(how: Tandem, request: Request) -> float:
        ledger = UsageLedger()
        async with aclosing(how.run(request, engines, ledger)) as events:
            async for _ in events:
                continue
        return sum(call.cost.seconds for call in ledger.calls if call.purpose == "judge")

    def handed_over(level: str) -> Way:
        return lambda request: run_tandem(
            replace(tandem, judge=f"fixed:{level}", start_with_intern=level == LEVEL_0), request
        )

    return {
        "intern": handed_over(LEVEL_0),
        "mentor": lambda request: alone(None, request),
        "mentor_concise": lambda request: alone(False, request),
        **{f"fixed_{level}": handed_over(level) for level in tandem.levels},
        "tandem": lambda request: run_tandem(tandem, request),
    }
