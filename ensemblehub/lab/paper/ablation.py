"""The insight-type ablation: a section is taken out of the recorded insight before the intern reads it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from ensemblehub.artifacts import parsed
from ensemblehub.concurrency import for_each
from ensemblehub.ensemble import AsyncEnsemble
from ensemblehub.ensemble_methods.output_aggregation.tandem import Tandem
from ensemblehub.lab.journal import ANEW, Journal
from ensemblehub.lab.paper import gpra
from ensemblehub.lab.paper.study import Study, collected
from ensemblehub.lab.paper.tables import Table
from ensemblehub.lab.pipeline import report, splits
from ensemblehub.lab.pipeline.collect import written
from ensemblehub.lab.pipeline.experiment import as_json
from ensemblehub.lab.pipeline.pipeline import Pipeline
from ensemblehub.lab.pipeline.progress import progress
from ensemblehub.lab.pipeline.records import Collected, Run
from ensemblehub.lab.tasks.base import Item
from ensemblehub.tandem.insights import LEVEL_0, Dialogue

COLUMNS = ("method", "n", "accuracy", "difference", "intern_tokens", "leak_share", "truncated_share")
FULL = "full insight"
VARIANTS: dict[str, Callable[[str], str]] = {
    **{f"no {section.lower()}": partial(gpra.without, section=section) for section in gpra.SECTIONS},
    "unstructured": gpra.unstructured,
}


def run(study: Study) -> list[Table]:
    """The intern after each variant of the whole insight; differences are to the full one."""
    pipeline = study.pipeline()
    data = collected(study, pipeline, "test")
    runs = answers(study, pipeline, data)
    answered = [
        report.fixed(data, FULL, list(data.levels)[-1]),
        *(
            report.of_runs(
                data, name, [runs[f"{row.id}/{name}"] for row in data.rows], {name: len(data.rows)}
            )
            for name in VARIANTS
        ),
        report.fixed(data, "no insight", LEVEL_0),
    ]
    baselines = [report.fixed(data, name, name) for name in ("mentor", "mentor_concise")]
    steps = [row.steps for row in data.rows]
    rows = report.summary(study.benchmark, [*answered, *baselines], steps, against=FULL)
    sections = [gpra.sections(row.insight) for row in data.rows]
    had = ", ".join(f"{name} {sum(name in found for found in sections)}" for name in gpra.SECTIONS)
    notes = [
        report.notes(data, None, "the full insight")[0],
        f"Of {len(sections)} insights so many have the section: {had}.",
    ]
    return [
        Table(
            "ablation",
            f"{study.benchmark} without a part of the insight",
            rows[: len(answered)],
            COLUMNS,
            notes,
            "ablation",
        )
    ]


def answers(study: Study, pipeline: Pipeline, data: Collected) -> dict[str, Run]:
    """The intern's run for every question and variant, by `QUESTION/VARIANT`; kept in `ablation.jsonl`."""
    items = {item.id: item for item in pipeline.collected_items(data)}
    ensemble, tandem = pipeline.unjudged()
    settings = pipeline.deciding(ensemble.engines) | {
        "prompts": tandem.words.fingerprint,
        "variants": list(VARIANTS),
    }
    settings |= {"asked": splits.asked(*items.values()), "collected": data.header}
    path = study.folder / "ablation.jsonl"
    variants = [
        Variant(f"{row.id}/{name}", items[row.id], row.runs[list(data.levels)[-1]], change(row.insight))
        for row in data.rows
        for name, change in VARIANTS.items()
    ]
    with closing(Journal(path, as_json(settings), study.force)) as journal:
        missing = journal.missing(variants)
        with progress("ablation", len(variants), len(variants) - len(missing)) as step:
            asyncio.run(_answer(pipeline, ensemble, tandem, missing, journal, step))
    return {
        key: parsed(Run, json.dumps(row.get("run")), f"{path}: {key}", ANEW)
        for key, row in journal.rows.items()
    }


@dataclass(frozen=True)
class Variant:
    """A question with a variant of its insight; `full` is the run after the whole insight."""

    id: str
    item: Item
    full: Run
    insight: str


async def _answer(
    pipeline: Pipeline,
    ensemble: AsyncEnsemble,
    tandem: Tandem,
    missing: Sequence[Variant],
    journal: Journal,
    step: Callable[[], None],
) -> None:
    _, intern = tandem.roles(ensemble.engines)

    async def work(variant: Variant) -> dict[str, Any]:
        item, insight = variant.item, variant.insight
        ask = pipeline.task.ask(item, pipeline.sampling)
        request = Dialogue(ask, tandem.words, tandem.insight_mode).intern_request(insight)
        answer = await written(intern, request)
        cost = answer.usage.total
        grade = await asyncio.to_thread(pipeline.task.grade, item, answer.text)
        run = replace(
            variant.full,
            correct=grade.correct,
            finish=answer.finish,
            intern_read=cost.prompt_tokens,
            intern_tokens=cost.completion_tokens,
            seconds=cost.seconds,
            leak=await asyncio.to_thread(pipeline.task.leaks, item, insight),
            text=answer.text,
        )
        return {"id": variant.id, "run": asdict(run)}

    await intern.load()
    try:
        limit = pipeline.settings.concurrency
        await for_each(missing, work, limit=limit, keep=journal.append, progress=step)
    finally:
        await ensemble.close()
