"""Collecting by several worker processes: each has its own GPUs, engines and questions; one journal.

Only the parent writes.  A worker that dies leaves its questions to the others; when the parent dies, the
workers end.  Not `concurrent.futures`, where one dead worker breaks the whole pool, nor `pebble`, whose
workers take one task at a time: here, each loads its models once and answers many questions in batches.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import sys
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from ensemblehub.config import Config
from ensemblehub.errors import ConfigError, EngineError, EnsembleHubError
from ensemblehub.lab.journal import Journal
from ensemblehub.lab.pipeline.collect import Collector
from ensemblehub.lab.pipeline.experiment import Experiment
from ensemblehub.lab.pipeline.failures import about
from ensemblehub.lab.tasks.base import Item

TRIES = 3  # workers that may die over one question


@dataclass(frozen=True)
class CollectJob:
    """Collects questions with the Tandem of a configuration; see `ray_data.Job`."""

    config: Config

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Callable[[Item], Awaitable[dict[str, Any]]]]:
        """Load the models; yields the function that collects a question."""
        experiment = Experiment(self.config)
        ensemble, tandem = experiment.unjudged()
        async with ensemble:
            collector = Collector(tandem, ensemble.engines, experiment.task, experiment.sampling)

            async def collect(item: Item) -> dict[str, Any]:
                with about(experiment.task, item):
                    return await collector.collect(item)

            yield collect


@dataclass(frozen=True)
class Placement:
    """Where one worker runs.

    Attributes:
        gpus: the GPUs it sees, the mentor's first; empty leaves what it inherits.
        mentor, intern: options of the two models there, as in YAML.
    """

    gpus: tuple[str, ...] = ()
    mentor: dict[str, Any] = field(default_factory=dict)
    intern: dict[str, Any] = field(default_factory=dict)


def placements(workers: int, gpus: str = "", mentor_gpus: str = "", intern_gpus: str = "") -> list[Placement]:
    """One placement per worker: equal shares of the mentors' and of the interns' GPUs, or of `gpus` for both.

    Args:
        workers: how many; 0 means one per GPU for the mentor, or one where none is named.
        gpus, mentor_gpus, intern_gpus: numbers with commas, such as "0,1,2,3".

    Raises:
        ConfigError: a list is wrong, overlaps another, or cannot be shared evenly.
    """
    shared, mentors, interns = (_numbers(text) for text in (gpus, mentor_gpus, intern_gpus))
    if shared and (mentors or interns):
        raise ConfigError("--gpus is for both models: give it, or --mentor-gpus and --intern-gpus")
    twice = [gpu for gpu in mentors if gpu in interns]
    if twice:
        raise ConfigError(f"GPU {twice[0]} is in --mentor-gpus and in --intern-gpus")
    workers = workers or len(mentors or shared) or 1
    named = {"gpus": shared, "mentor-gpus": mentors, "intern-gpus": interns}
    own = [_share(numbers, workers, what) for what, numbers in named.items()]
    return [_placed(*(parts[number] for parts in own)) for number in range(workers)]


def _numbers(text: str) -> list[str]:
    found = [part.strip() for part in text.split(",") if part.strip()]
    wrong = next((part for part in found if not part.isdigit()), None)
    if wrong is not None or len(set(found)) < len(found):
        raise ConfigError(f"GPUs are numbers with commas, each once, such as 0,1,2,3; not {text!r}")
    return found


def _share(gpus: list[str], workers: int, what: str) -> list[list[str]]:
    if len(gpus) % workers:
        raise ConfigError(f"--{what} names {len(gpus)} GPUs, which {workers} workers cannot share evenly")
    each = len(gpus) // workers
    return [gpus[number * each : (number + 1) * each] for number in range(workers)]


def _placed(shared: list[str], mentor: list[str], intern: list[str]) -> Placement:
    if shared:
        options = _on(0, len(shared))
        return Placement(tuple(shared), options, options)
    first = len(mentor)
    return Placement(
        (*mentor, *intern), _on(0, first) if mentor else {}, _on(first, len(intern)) if intern else {}
    )


def _on(first: int, count: int) -> dict[str, Any]:
    """Options of a model on `count` of the visible GPUs."""
    if count == 1:
        return {"device": f"cuda:{first}"}
    if first == 0:
        return {"num_gpus": count}
    return {"max_memory": {first + index: "80GiB" for index in range(count)}}


@dataclass
class WorkerProcess:
    """A process and the questions it is answering."""

    number: int
    process: BaseProcess
    pipe: Connection
    ready: bool = False
    asked: dict[str, Item] = field(default_factory=dict)


def collect(
    config: Config,
    items: Sequence[Item],
    journal: Journal,
    places: Sequence[Placement],
    concurrency: int,
    step: Callable[[], None],
) -> None:
    """Collect every item that the journal does not hold yet.

    Raises:
        EnsembleHubError: what a worker failed with, or that all of them died; the journal keeps what is done.
    """
    missing = deque(item for item in items if item.id not in journal.rows)
    deaths: Counter[str] = Counter()
    workers = [_started(number, config, place) for number, place in enumerate(places, 1)]
    try:
        while missing or any(worker.asked for worker in workers):
            for worker in workers:
                while worker.ready and missing and len(worker.asked) < concurrency:
                    item = missing.popleft()
                    worker.asked[item.id] = item
                    _send(worker, item)
            if not workers:
                raise EngineError("all workers died; the same command collects the rest")
            for pipe in wait([worker.pipe for worker in workers]):
                worker = next(worker for worker in workers if worker.pipe is pipe)
                try:
                    kind, value = worker.pipe.recv()
                except (EOFError, OSError):
                    workers.remove(worker)
                    _bury(worker, missing, deaths)
                    continue
                if kind == "error":
                    raise EngineError(f"worker {worker.number}: {value}")
                if kind == "row":
                    worker.asked.pop(value["id"])
                    journal.append(value)
                    step()
                worker.ready = True
    finally:
        for worker in workers:
            worker.process.kill()
            worker.process.join()
            worker.pipe.close()


def _started(number: int, config: Config, place: Placement) -> WorkerProcess:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(
        target=run, args=(theirs, config.model_dump_json(), place), name=f"worker {number}", daemon=True
    )
    process.start()
    theirs.close()
    return WorkerProcess(number, process, ours)


def _send(worker: WorkerProcess, item: Item) -> None:
    try:
        worker.pipe.send(item)
    except OSError:
        worker.ready = False  # it died: reading from it says so


def _bury(worker: WorkerProcess, missing: deque[Item], deaths: Counter[str]) -> None:
    """Give the questions of a dead worker to the others.

    Raises:
        EngineError: too many died over the same question.
    """
    worker.process.join()
    died = f"worker {worker.number} died (exit status {worker.process.exitcode})"
    print(f"{died}; {len(worker.asked)} questions go to others", file=sys.stderr)
    deaths.update(worker.asked.keys())
    worst = next((name for name, count in deaths.items() if count >= TRIES), None)
    if worst is not None:
        raise EngineError(f"{TRIES} workers died over {worst}; the same command collects the rest")
    missing.extendleft(reversed(worker.asked.values()))


def run(pipe: Connection, config: str, place: Placement) -> None:
    """The main function of a worker: questions in, rows out, until the parent closes the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    if place.gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(place.gpus)
    else:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    try:
        asyncio.run(_work(pipe, _placed_config(Config.model_validate_json(config), place)))
    except* (EOFError, BrokenPipeError):
        pipe.close()  # the parent is gone
    except* EnsembleHubError as group:
        pipe.send(("error", str(group.exceptions[0])))


def _placed_config(config: Config, place: Placement) -> Config:
    """The configuration with the devices of this worker, for models that run in this process."""
    if not place.gpus:
        return config
    ensemble, tandem = Experiment(config).unjudged()
    mentor, intern = tandem.roles(ensemble.engines)
    options = {mentor.name: place.mentor, intern.name: place.intern}
    specs = [
        spec.model_copy(update=options.get(spec.name, {})) if spec.engine == "hf" else spec
        for spec in config.model_specs
    ]
    return config.model_copy(update={"model_specs": specs})


async def _work(pipe: Connection, config: Config) -> None:
    async with CollectJob(config).opened() as collect_row, asyncio.TaskGroup() as tasks:

        async def answer(item: Item) -> None:
            try:
                pipe.send(("row", await collect_row(item)))
            except EnsembleHubError as error:
                pipe.send(("error", str(error)))

        pipe.send(("ready", None))
        while True:
            tasks.create_task(answer(await asyncio.to_thread(pipe.recv)))
