"""Training a judge of drafts: `python -m ensemblehub.lab.judges.drafts CONFIG OUT`.

The smallest model of a configuration answers the training questions of a benchmark alone, and the judge
learns from the perplexity and entropy of its answers' tokens (with --question, of the questions' tokens as
well) whether they are right.  `accept: OUT` of
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
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ensemblehub.artifacts import hash_of
from ensemblehub.concurrency import for_each
from ensemblehub.config import Config
from ensemblehub.cost import UsageLedger
from ensemblehub.ensemble import AsyncEnsemble
from ensemblehub.ensemble_methods import question
from ensemblehub.ensemble_methods.acceptance import reading_of
from ensemblehub.ensemble_methods.roles import smallest
from ensemblehub.errors import ArtifactError, EnsembleHubError
from ensemblehub.generators.base import Engine
from ensemblehub.journal import Lines
from ensemblehub.lab.judges.training import KINDS, train_judge
from ensemblehub.lab.pipeline.experiment import tandem_of, with_aggregation
from ensemblehub.lab.pipeline.failures import about
from ensemblehub.lab.pipeline.progress import progress
from ensemblehub.lab.pipeline.selection import members
from ensemblehub.lab.tasks import task_named
from ensemblehub.lab.tasks.base import Item, Task
from ensemblehub.output import fingerprint
from ensemblehub.results import collect
from ensemblehub.schema import Request
from ensemblehub.tandem.artifact import JudgeArtifact
from ensemblehub.tandem.features import Vector, features, sequences
from ensemblehub.tandem.insights import DRAFT, LEVEL_0, Dialogue

WITH_QUESTION = ("logistic", "mlp", "gb")  # kinds over features, of which those of the question are more


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


async def drafted(
    engine: Engine, task: Task, item: Item, request: Request, with_question: bool = False
) -> dict[str, Any]:
    """An answer of the engine, graded, with its tokens' perplexity and entropy, and those of the question."""
    ledger = UsageLedger()
    result = await collect(engine.stream(request, ledger.meter("answer")), ledger)
    grade = await asyncio.to_thread(task.grade, item, result.text)
    reading = reading_of([token for piece in result.pieces for token in piece.tokens])
    found = {"id": item.id, "correct": grade.correct, **_kept(reading.perplexity, reading.entropy)}
    if with_question:
        found["question"] = _kept(*sequences(await question.read(engine, request, ledger.meter("judge"))))
    return found


def _kept(perplexity: Vector, entropy: Vector) -> dict[str, list[float]]:
    return {"perplexity": np.round(perplexity, 5).tolist(), "entropy": np.round(entropy, 5).tolist()}


def record(
    config: Config, task: Task, split: str, limit: int | None, path: Path, with_question: bool = False
) -> list[dict[str, Any]]:
    """The drafts of a split's questions, from the file as far as they are there.

    Args:
        with_question: have the model read the question, too.

    Raises:
        ArtifactError: the file holds drafts of another configuration.
    """
    made = {"config": fingerprint(config), "task": task.name, "split": split, "with_question": with_question}
    ensemble, engine, put = author_of(config)
    items, sampling = list(islice(task.items(split, limit), limit)), task.sampling(ensemble.sampling)
    lines = Lines(path)
    try:
        lines.mend()
        known = {row["id"]: row for row in lines.found}
        if any({key: row.get(key, False) for key in made} != made for row in lines.found):
            raise ArtifactError(f"{path} holds drafts of another configuration, task or split")
        asked = {item.id: hash_of(asdict(put(task.ask(item, sampling)))) for item in items}
        if any(known.get(name, {}).get("asked", now) != now for name, now in asked.items()):
            raise ArtifactError(f"{path} holds drafts of other questions or prompts")
        missing = [item for item in items if item.id not in known]

        def keep(row: dict[str, Any]) -> None:
            lines.append(row)
            known[row["id"]] = row

        async def run(step: Callable[[], None]) -> None:
            async def work(item: Item) -> dict[str, Any]:
                request = put(task.ask(item, sampling))
                with about(task, item):
                    row = await drafted(engine, task, item, request, with_question)
                return {**row, **made, "asked": asked[item.id]}

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
    """A judge of one model's drafts; empty ones, which are never accepted, are left out.

    Raises:
        ArtifactError: too few drafts, or all of them right or wrong.
    """
    rows = [row for row in rows if len(row["perplexity"])]
    read = [np.array([row["perplexity"], row["entropy"]]) for row in rows]
    tables = [np.stack([features(*sequence) for sequence in read])]
    if with_question := all("question" in row for row in rows):
        asked = [(row["question"]["perplexity"], row["question"]["entropy"]) for row in rows]
        tables.append(np.stack([features(*map(np.array, pair)) for pair in asked]))
    judge, report = train_judge(
        kind,
        np.concatenate(tables, axis=1)[:, None],
        np.array([[row["correct"]] for row in rows]),
        np.array([[sequence.shape[1]] for sequence in read]),
        sequences=None if with_question else [[sequence.astype(np.float16)] for sequence in read],
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
    parser.add_argument(
        "--data", type=Path, help="its questions in the public form (default: as in the file)"
    )
    parser.add_argument("--split", default="train", help="(default: %(default)s)")
    parser.add_argument("--limit", type=int, help="questions at most (default: all)")
    parser.add_argument("--judge", choices=KINDS, default="logistic", help="(default: %(default)s)")
    parser.add_argument(
        "--question", action="store_true", help="also learn from the question's tokens, which the model reads"
    )
    options = parser.parse_args(arguments)
    if options.question and options.judge not in WITH_QUESTION:
        parser.error(f"--question goes with --judge {', '.join(WITH_QUESTION)}")
    config = Config.read(options.config)
    set_there = config.experiment
    task = task_named(options.task or set_there.task, options.data or set_there.data, set_there.prompt)
    rows = record(config, task, options.split, options.limit, options.out / "drafts.jsonl", options.question)
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
