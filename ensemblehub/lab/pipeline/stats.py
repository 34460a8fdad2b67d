"""`ensemblehub stats`: each model's perplexity and confidence on questions, which `zscore` compares with."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ensemblehub.artifacts import write_atomically
from ensemblehub.concurrency import for_each
from ensemblehub.config import Config
from ensemblehub.cost import UsageLedger
from ensemblehub.data import BadExample, read_items
from ensemblehub.ensemble_methods.model_selection import zscore
from ensemblehub.ensemble_methods.model_selection.zscore import QuestionReading, Stats, ZScore
from ensemblehub.ensemble_methods.roles import require
from ensemblehub.errors import ConfigError, RequestError
from ensemblehub.generators.base import Engine
from ensemblehub.lab.pipeline.progress import progress
from ensemblehub.lab.pipeline.selection import members
from ensemblehub.schema import Request

log = logging.getLogger(__name__)


def measure(config: Config, questions: Sequence[Request], output: Path) -> dict[str, Any]:
    """Let every engine of the configuration read the questions, and write its statistics, by engine name.

    Raises:
        ConfigError: an engine cannot score, fewer than two questions can be read, or they all look the same.
    """
    ensemble = members(config)
    for engine in ensemble.engines:
        require(engine, ZScore.requires, "stats")

    async def run(step: Callable[[], None]) -> list[list[QuestionReading]]:
        async with ensemble:
            pairs = [(engine, request) for engine in ensemble.engines for request in questions]
            limit = config.experiment.concurrency
            found = await for_each(pairs, lambda pair: _reading(*pair), limit=limit, progress=step)
        n = len(questions)
        each = [found[at : at + n] for at in range(0, len(found), n)]
        return [[reading for reading in own if reading is not None] for own in each]

    with progress("stats", len(questions) * len(ensemble.engines)) as step:
        readings = asyncio.run(run(step))
    found = {
        engine.name: asdict(statistics(engine, own))
        for engine, own in zip(ensemble.engines, readings, strict=True)
    }
    write_atomically(output, json.dumps(found, indent=1) + "\n")
    return found


async def _reading(engine: Engine, request: Request) -> QuestionReading | None:
    try:
        return await zscore.read(engine, request, UsageLedger())
    except RequestError as error:
        log.warning("question %s is left out: %s", request.id, error)
        return None


def statistics(engine: Engine, readings: Sequence[QuestionReading]) -> Stats:
    """Means and standard deviations (of a sample, n − 1) of one engine.

    Raises:
        ConfigError: fewer than two readings, or readings that are all the same.
    """
    if len(readings) < 2:
        raise ConfigError(f"statistics of {engine.name!r} need at least 2 questions, not {len(readings)}")
    table = np.array([(reading.ppl, reading.conf) for reading in readings])
    (ppl, conf), (ppl_std, conf_std) = table.mean(axis=0), table.std(axis=0, ddof=1)
    if not (ppl_std > 0 and conf_std > 0):
        raise ConfigError(
            f"{engine.name!r} reads all {len(readings)} questions alike: they have no deviation"
        )
    return Stats(float(ppl), float(ppl_std), float(conf), float(conf_std), len(readings), engine.model)


def questions(path: Path, limit: int | None = None) -> list[Request]:
    """The questions of a data file; items that ask nothing are left out with a warning.

    Raises:
        ConfigError: the file cannot be read.
    """
    found = list[Request]()
    for item in islice(read_items(path), limit):
        if isinstance(item, BadExample):
            log.warning("item %d of %s is left out: %s", item.number, path, item.reason)
        else:
            found.append(Request(item.prompt, id=item.id))
    return found
