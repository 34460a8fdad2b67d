"""Training a judge of drafts: `python -m ensemblehub.lab.judges.drafts CONFIG OUT`.

The smallest model of a configuration answers the training questions of a benchmark alone, and the judge
learns from the perplexity and entropy of its answers' tokens whether they are right.  `accept: OUT` of
`cascade` and its relatives uses it; with a configuration of `tandem`, whose intern is asked in the words of
its profile, `draft: OUT` does.  Answers are kept in OUT/drafts.jsonl, so
that a run that was killed goes on where it was.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ensemblehub.concurrency import for_each
from ensemblehub.config import Config
from ensemblehub.cost import UsageLedger
from ensemblehub.ensemble import AsyncEnsemble
from ensemblehub.ensemble_methods.acceptance import reading_of
from ensemblehub.ensemble_methods.roles import smallest
from ensemblehub.errors import ArtifactError, EnsembleHubError
from ensemblehub.generators.base import Engine
from ensemblehub.journal import Lines
from ensemblehub.lab.judges.training import KINDS, train_judge
from ensemblehub.lab.pipeline.experiment import tandem_of, with_aggregation
from ensemblehub.lab.pipeline.progress import progress
from ensemblehub.lab.pipeline.selection import members
from ensemblehub.lab.tasks import task_named
from ensemblehub.lab.tasks.base import Item, Task
from ensemblehub.output import fingerprint
from ensemblehub.results import collect
from ensemblehub.schema import Request
from ensemblehub.tandem.artifact import JudgeArtifact
from ensemblehub.tandem.features import features
from ensemblehub.tandem.insights import DRAFT, LEVEL_0, Dialogue


def author_of(config: Config) -> tuple[AsyncEnsemble, Engine, Callable[[Request], Request]]:
    """Who drafts, and how it is asked: a Tandem's intern in the words of the profile, or the smallest model."""
    if config.aggregation.method != "tandem":
        ensemble = members(config)
        return ensemble, smallest(ensemble.engines, None, "drafts"), lambda request: request
    plain = {"judge": f"fixed:{LEVEL_0}", "draft": None, "confirm": None, "continue_draft": None}
    ensemble = AsyncEnsemble.from_config(with_aggregation(config, **plain))
    tandem = tandem_of(ensemble)
    _, intern = tandem.roles(ensemble.engines)
    return (
        ensemble,
        intern,
        lambda request: Dialogue(request, tandem.words, tandem.insight_mode).intern_request(),
    )


async def drafted(engine: Engine, task: Task, item: Item, request: Request) -> dict[str, Any]:
    """An answer of the engine, graded, with its tokens' perplexity and entropy."""
    ledger = UsageLedger()
    result = await collect(engine.stream(request, ledger.meter("answer")), ledger)
    grade = await asyncio.to_thread(task.grade, item, result.text)
    reading = reading_of([token for piece in result.pieces for token in piece.tokens])
    kept = {name: np.round(getattr(reading, name), 5).tolist() for name in ("perplexity", "entropy")}
    return {"id": item.id, "correct": grade.correct, **kept}


def record(config: Config, task: Task, split: str, limit: int | None, path: Path) -> list[dict[str, Any]]:
    """The drafts of a split's questions, from the file as far as they are there.

    Raises:
        ArtifactError: the file holds drafts of another configuration.
    """
    made = {"config": fingerprint(config), "task": task.name, "split": split}
    ensemble, engine, put = author_of(config)
    items = list(islice(task.items(split, limit), limit))
    lines = Lines(path)
    try:
        lines.mend()
        known = {row["id"]: row for row in lines.found}
        if any({key: row.get(key) for key in made} != made for row in lines.found):
            raise ArtifactError(f"{path} holds drafts of another configuration, task or split")
        missing = [item for item in items if item.id not in known]

        def keep(row: dict[str, Any]) -> None:
            lines.append(row)
            known[row["id"]] = row

        async def run(step: Callable[[], None]) -> None:
            async def work(item: Item) -> dict[str, Any]:
                request = put(task.ask(item, ensemble.sampling))
                return {**await drafted(engine, task, item, request), **made}

            await engine.load()
            await for_each(missing, work, limit=config.experiment.concurrency, keep=keep, progress=step)
            await engine.close()

        with progress("drafts", len(items), len(items) - len(missing)) as step:
            asyncio.run(run(step))
    finally:
        lines.close()
    return [known[item.id] for item in items]


def train(
    rows: Sequence[Mapping[str, Any]], kind: str, author: str, made_from: Mapping[str, Any]
) -> JudgeArtifact:
    """A judge of one model's drafts.

    Raises:
        ArtifactError: too few drafts, or all of them right or wrong.
    """
    sequences = [np.array([row["perplexity"], row["entropy"]]) for row in rows]
    judge, report = train_judge(
        kind,
        np.stack([features(*sequence) for sequence in sequences])[:, None],
        np.array([[row["correct"]] for row in rows]),
        np.array([[sequence.shape[1]] for sequence in sequences]),
        sequences=[[sequence.astype(np.float16)] for sequence in sequences],
        level=False,
    )
    return JudgeArtifact(judge, intern=author, levels={DRAFT: 0}, data=dict(made_from), metrics=report)


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m ensemblehub.lab.judges.drafts",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", type=Path, help="YAML file; its smallest model writes the drafts")
    parser.add_argument("out", type=Path, help="folder of the judge")
    parser.add_argument("--task", help="benchmark (default: experiment.task of the file)")
    parser.add_argument("--split", default="train", help="(default: %(default)s)")
    parser.add_argument("--limit", type=int, help="questions at most (default: all)")
    parser.add_argument("--judge", choices=KINDS, default="logistic", help="(default: %(default)s)")
    options = parser.parse_args(arguments)
    config = Config.read(options.config)
    task = task_named(options.task or config.experiment.task)
    rows = record(config, task, options.split, options.limit, options.out / "drafts.jsonl")
    _, author, _ = author_of(config)
    artifact = train(
        rows, options.judge, author.model, {"task": task.name, "split": options.split, "n": len(rows)}
    )
    artifact.save(options.out)
    print(
        json.dumps(
            {"drafts": len(rows), "right": sum(row["correct"] for row in rows)} | dict(artifact.metrics)
        )
    )


if __name__ == "__main__":
    try:
        main()
    except EnsembleHubError as error:
        sys.exit(f"drafts: {' '.join(str(error).split())}")
