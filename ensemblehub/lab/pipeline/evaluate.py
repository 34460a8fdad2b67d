"""Run Tandem live on a split, and take the baselines from collected data after proving them equal.

Costs are cold: what one run reuses of another run's prefix (such as the template's opening) is charged as if
it had been computed, so that a table does not depend on the order of the questions.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from ensemblehub.artifacts import content_of, entries, parsed
from ensemblehub.concurrency import for_each
from ensemblehub.cost import UsageLedger
from ensemblehub.ensemble import AsyncEnsemble
from ensemblehub.errors import ArtifactError
from ensemblehub.lab.journal import Journal, differences, settings_of, told
from ensemblehub.lab.pipeline.collect import Collector
from ensemblehub.lab.pipeline.experiment import NEWER, differing_settings, tandem_of
from ensemblehub.lab.pipeline.failures import about
from ensemblehub.lab.pipeline.records import Collected, Row, with_current_names
from ensemblehub.lab.tasks.base import Item, Task
from ensemblehub.results import collect
from ensemblehub.schema import ModelInfo, Result, Sampling, UsageLine

AGAIN = "run `ensemblehub evaluate --force`"


@dataclass(frozen=True)
class TandemRun:
    """One live run, graded, with its cost.

    Attributes:
        chosen: the level the answer came from.
        probabilities: the judge's, by visited level.
        flops: FLOPs of every call, without cached prefixes of other questions; `judging_flops` is judging's
            part.
        seconds: the engines' own time; `wall` the run's.
    """

    __pydantic_config__: ClassVar[Any] = {"allow_inf_nan": False}

    id: str
    correct: bool
    chosen: str
    probabilities: dict[str, float]
    mentor_tokens: int
    intern_tokens: int
    flops: float
    judging_flops: float
    seconds: float
    judging_seconds: float
    wall: float
    leak: bool
    finish: str | None
    answer: str | None
    text: str

    @classmethod
    def from_json(cls, row: dict[str, Any], path: Path) -> TandemRun:
        """The inverse of `dataclasses.asdict` for a row of the journal at `path`.

        Raises:
            ArtifactError: a field is missing or of another type.
        """
        return parsed(cls, json.dumps(row), f"{path}: {row.get('id')}", AGAIN)


async def run_live(ensemble: AsyncEnsemble, task: Task, item: Item, sampling: Sampling) -> TandemRun:
    """Answer one question live."""
    ledger = UsageLedger()
    request = task.ask(item, sampling)
    result = await collect(ensemble.stream(request, ledger), ledger)
    grade = await asyncio.to_thread(task.grade, item, result.text)
    tandem = tandem_of(ensemble)
    mentor, intern = tandem.roles(ensemble.engines)
    cost = ColdCost.of(ledger.calls, {mentor.name: mentor.info, intern.name: intern.info}, intern.name)
    return TandemRun(
        item.id,
        grade.correct,
        tandem.chosen(result.verdicts),
        {verdict.level: verdict.probability for verdict in result.verdicts},
        _written(result, mentor.name),
        _written(result, intern.name),
        cost.flops,
        cost.judging_flops,
        cost.seconds,
        cost.judging_seconds,
        result.seconds,
        task.leaks(item, result.insight),
        result.finish,
        grade.answer,
        result.text,
    )


def _written(result: Result, engine: str) -> int:
    return sum(line.cost.completion_tokens for line in result.usage.lines if line.engine == engine)


@dataclass(frozen=True)
class ColdCost:
    """The cold cost of a run and the part that judging added.

    Judging is what is computed beyond what the same answer at the chosen level needs without a judge; reading
    that the answer reuses is not judging.
    """

    flops: float
    judging_flops: float
    seconds: float
    judging_seconds: float

    @classmethod
    def of(cls, calls: Sequence[UsageLine], infos: dict[str, ModelInfo], intern: str) -> ColdCost:
        """Add up the calls of one run."""
        cold = list(_cold(calls, infos))
        judged = [call.cost for call in cold if call.purpose == "judge"]
        read = sum(cost.prefill_flops for cost in judged)
        reused = sum(
            infos[intern].flops(0, call.cost.cached_tokens)
            for call in cold
            if call.purpose == "answer" and call.engine == intern
        )
        judging = sum(cost.flops for cost in judged) - reused
        reading_seconds = sum(cost.seconds for cost in judged if cost.prefill_flops)
        classifier_seconds = sum(cost.seconds for cost in judged if not cost.prefill_flops)
        seconds = sum(call.cost.seconds for call in cold)
        share = (read - reused) / read if read else 0.0
        return cls(
            sum(call.cost.flops for call in cold),
            judging,
            seconds,
            classifier_seconds + reading_seconds * share,
        )


def _cold(calls: Sequence[UsageLine], infos: dict[str, ModelInfo]) -> list[UsageLine]:
    """The calls, with the first of each engine charged for the whole of its prompt, and its first judgement.

    A judgement wants predictions of the whole prompt, which an answer written before it, a draft, has not left.
    """
    seen, cold = set[tuple[str, bool]](), list[UsageLine]()
    for call in calls:
        judges = call.purpose == "judge"
        first = (call.engine, judges) not in seen and (judges or (call.engine, True) not in seen)
        seen.add((call.engine, judges))
        if call.engine in infos and first:
            whole = infos[call.engine].flops(0, call.cost.prompt_tokens)
            call = replace(call, cost=replace(call.cost, cached_tokens=0, prefill_flops=whole))
        cold.append(call)
    return cold


async def evaluate(
    ensemble: AsyncEnsemble,
    task: Task,
    items: Sequence[Item],
    sampling: Sampling,
    journal: Journal,
    concurrency: int,
    progress: Callable[[], None],
) -> list[TandemRun]:
    """Run Tandem on every question, `concurrency` at a time; finished runs are synced to the journal."""

    async def work(item: Item) -> dict[str, Any]:
        with about(task, item):
            return asdict(await run_live(ensemble, task, item, sampling))

    async with ensemble:
        missing = journal.missing(items)
        await for_each(missing, work, limit=concurrency, keep=journal.append, progress=progress)
    return [TandemRun.from_json(journal.rows[item.id], journal.path) for item in items]


def runs_file(folder: Path, name: str = "runs") -> Path:
    """The journal of live runs `NAME.jsonl`; under its former name (`rides.jsonl`) where only that exists."""
    path, former = folder / f"{name}.jsonl", folder / f"{name.replace('runs', 'rides')}.jsonl"
    return former if former.exists() and not path.exists() else path


def read_runs(path: Path) -> tuple[dict[str, Any], list[TandemRun]]:
    """The settings of a journal of live runs, and the runs; a torn last line does not count.

    Raises:
        ArtifactError: it is missing or damaged.
    """
    try:
        found, _ = entries(with_current_names(content_of(path, "run `ensemblehub evaluate`")))
    except ValueError as error:
        raise ArtifactError(f"{path} is damaged ({error}): {AGAIN}") from error
    settings, rows = settings_of(path, found)
    runs = {row.get("id"): TandemRun.from_json(row, path) for row in rows}
    return settings, list(runs.values())


def check_runs(path: Path, settings: dict[str, Any], runs: Sequence[TandemRun], collected: Collected) -> None:
    """Check that a table can be made of live and collected runs.

    Raises:
        ArtifactError: there is no live run, or it is over other data or at other levels.
    """
    if not runs:
        raise ArtifactError(f"{path} holds no run on the collected questions: {AGAIN}")
    made = settings.get("collected")
    same = made if isinstance(made, dict) else collected.header
    if differing := differing_settings(same, collected.header | {"n": same.get("n")}):
        raise ArtifactError(f"{path} was made over other collected data: {told(differing)}; {AGAIN}")
    levels = {*collected.levels, "mentor"}
    if unknown := next((run for run in runs if run.chosen not in levels), None):
        raise ArtifactError(f"{path}: {unknown.id} stopped at {unknown.chosen!r}, which was not collected")


def foreign(settings: dict[str, Any], header: dict[str, Any]) -> list[str]:
    """A note where Tandem ran with other models or sampling than its baselines, as `--force` allows."""
    found = [
        line
        for key in NEWER[:2]
        if key in header and key in settings
        for line in differences({key: settings[key]}, {key: header[key]})
    ]
    return [f"Tandem and its baselines were run with different settings: {told(found)}."] if found else []


async def reproduced(
    ensemble: AsyncEnsemble,
    task: Task,
    items: Sequence[Item],
    rows: dict[str, Row],
    sampling: Sampling,
    concurrency: int,
) -> dict[str, int]:
    """How many collected baseline answers a live run writes again, letter by letter, by method."""
    collector = Collector(tandem_of(ensemble), ensemble.engines, task, sampling)

    async def work(item: Item) -> dict[str, bool]:
        made = await collector.collect(item)
        return {name: run["text"] == rows[item.id].runs[name].text for name, run in made["runs"].items()}

    same = await for_each(items, work, limit=concurrency)
    return {name: sum(row[name] for row in same) for name in same[0]} if same else {}


async def overhead(
    ensemble: AsyncEnsemble, task: Task, items: Sequence[Item], sampling: Sampling
) -> dict[str, Any]:
    """One run at a time: wall time over the engines' own time, and judging's share of the wall time."""
    runs = [await run_live(ensemble, task, item, sampling) for item in items]
    wall, busy = sum(run.wall for run in runs), sum(run.seconds for run in runs)
    return {
        "timed": len(runs),
        "wall_over_engine_seconds": wall / busy,
        "judging_share_of_wall": sum(run.judging_seconds for run in runs) / wall,
    }
