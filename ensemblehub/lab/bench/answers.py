"""Ask the questions of a benchmark, grade the answers, and keep a row of each that survives a kill."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from ensemblehub.artifacts import hash_of
from ensemblehub.concurrency import for_each
from ensemblehub.config import WHERE_IT_RUNS, Config
from ensemblehub.cost import UsageLedger
from ensemblehub.ensemble import AsyncEnsemble
from ensemblehub.ensemble_methods.identity import trained
from ensemblehub.errors import ArtifactError, ContextOverflowError, EngineError, EnsembleHubError
from ensemblehub.lab.bench.calls import Calls, ReusedEngine
from ensemblehub.lab.bench.cells import Cell
from ensemblehub.lab.bench.rows import AnswerRow, parse_row
from ensemblehub.lab.bench.summary import Tally
from ensemblehub.lab.journal import ANEW, Journal, unpack
from ensemblehub.lab.pipeline import splits
from ensemblehub.lab.pipeline.experiment import as_json, deciding
from ensemblehub.lab.pipeline.failures import about
from ensemblehub.lab.pipeline.progress import progress
from ensemblehub.lab.tasks.base import Grade, Item, Task
from ensemblehub.ray_cluster import Cluster
from ensemblehub.ray_data import answers, unfailed
from ensemblehub.results import attempt
from ensemblehub.schema import Request, Result, Sampling

Errors = Literal["stop", "wrong"]


@dataclass(frozen=True)
class Ask:
    """One question, asked for one of its samples."""

    item: Item
    sample: int = 0

    @property
    def id(self) -> str:
        """Key of its row: the question's id, with the sample's number from the second sample on."""
        return f"{self.item.id}#{self.sample}" if self.sample else self.item.id


@dataclass(frozen=True)
class Questions:
    """Questions of a benchmark, each asked `samples` times.

    Attributes:
        thinking: `enable_thinking` of every chat; None leaves the task's own.
    """

    task: Task
    split: str
    items: Sequence[Item]
    samples: int = 1
    thinking: bool | None = None

    @property
    def about(self) -> dict[str, Any]:
        """What decides which questions they are and how they are asked."""
        return {"task": self.task.name, "split": self.split, "prompt": self.task.prompt}

    @property
    def asks(self) -> list[Ask]:
        """Every question and sample: the first sample of every question, then the second."""
        return [Ask(item, sample) for sample in range(self.samples) for item in self.items]

    def request(self, ask: Ask, sampling: Sampling) -> Request:
        """The request of an answer; samples but the first have seeds of their own."""
        request = replace(self.task.ask(ask.item, sampling, self.thinking), id=ask.id)
        return request.seeded(ask.sample) if ask.sample else request

    def prompted(self, item: Item) -> str:
        """A hash of how a question is put: its chat, and what the prompt profile sets besides."""
        return hash_of(asdict(self.task.ask(item, Sampling(), self.thinking)))


@dataclass(frozen=True)
class Bench:
    """Asks cells the same questions.

    Attributes:
        folder: Where the journals of the cells are.
        errors: `stop` ends the run when a model fails; `wrong` counts the answer as wrong.  A question that
            does not fit into a model's context is wrong in any case.
        cluster: Where Ray answers; there, a failure stops the run once all other questions are answered.
        calls: Calls that were made for other cells, and need not be made again.
    """

    questions: Questions
    folder: Path
    force: bool = False
    errors: Errors = "stop"
    cluster: Cluster | None = None
    calls: Calls | None = None

    def answered(self, cell: Cell) -> list[AnswerRow]:
        """Ask a cell what it has not answered yet; its rows, in the order of the questions.

        Raises:
            ArtifactError: The journal was begun with other settings, is damaged, or in use.
            EnsembleHubError: The run stopped; says how many answers are kept.
        """
        asks, ensemble = self.questions.asks, AsyncEnsemble.from_config(cell.config)
        path = self.folder / f"{cell.file}.jsonl"
        unpack(path, self.force)
        settings = {"cell": cell.name, **settings_of_cell(cell.config, ensemble, self.questions)}
        with closing(Journal(path, as_json(settings), self.force)) as journal:
            self._check(journal)
            known = [parse_row(path, journal.rows[ask.id]) for ask in asks if ask.id in journal.rows]
            tally = Tally(known, len(asks))
            missing = journal.missing(asks)
            with progress(cell.name, len(asks), len(known), lambda: str(tally)) as step:
                try:
                    if missing:
                        self._answer(missing, CellJob(cell.config, self), journal, tally, step)
                except EnsembleHubError as error:
                    kept = f"{len(tally.rows)} of {len(asks)} answers of {cell.name} are kept"
                    raise EnsembleHubError(f"{error} ({kept}: the same command goes on)") from error
        rows = {row.id: row for row in tally.rows}
        return [rows[ask.id] for ask in asks]

    def _answer(
        self,
        asks: Sequence[Ask],
        job: CellJob,
        journal: Journal,
        tally: Tally,
        step: Callable[[], None],
    ) -> None:
        def keep(row: AnswerRow) -> None:
            journal.append(asdict(row))
            tally.rows.append(row)

        async def here() -> None:
            async with job.opened() as answer:
                tally.begin()
                await for_each(asks, answer, limit=limit, keep=keep, progress=step)

        limit = job.config.experiment.concurrency
        if self.cluster is None:
            return asyncio.run(here())
        tally.begin()
        for row in unfailed(answers(job.portable(), asks, self.cluster, limit)):
            keep(row)
            step()
        return None

    async def _row_of(self, ensemble: AsyncEnsemble, ask: Ask) -> AnswerRow:
        """Answer and grade a question."""
        questions, item = self.questions, ask.item
        ledger = UsageLedger()
        request = questions.request(ask, ensemble.sampling)
        result, failure = await attempt(ensemble.stream(request, ledger), ledger)
        if failure and not self._is_wrong(failure):
            with about(questions.task, item):
                raise failure
        error = str(failure or "")
        insight, total = result.insight, ledger.total
        text = ensemble.generation.extracted(result.text)
        grade = await asyncio.to_thread(questions.task.grade, item, text)
        leak = bool(insight) and await asyncio.to_thread(questions.task.leaks, item, insight)
        return AnswerRow(
            id=ask.id,
            question=item.id,
            sample=ask.sample,
            asked=splits.asked(item),
            prompted=questions.prompted(item),
            subject=item.subject,
            level=item.level,
            **_graded(grade, error),
            in_form=questions.task.in_form(item, text),
            finish=result.finish,
            error=error,
            leak=leak,
            read=total.prompt_tokens - total.cached_tokens,
            written=total.completion_tokens,
            flops=total.flops,
            cold_flops=total.cold_flops,
            usd=total.usd,
            seconds=total.seconds,
            wall=result.seconds,
            text=result.text,
            **_decisions(result),
        )

    def _is_wrong(self, failure: Exception) -> bool:
        return isinstance(failure, ContextOverflowError) or (
            self.errors == "wrong" and isinstance(failure, EngineError)
        )

    def _check(self, journal: Journal) -> None:
        """Check that rows answer the questions as they are now, and as they are put now."""
        for ask in self.questions.asks if journal.rows else ():
            row = journal.rows.get(ask.id)
            now = {"asked": splits.asked(ask.item), "prompted": self.questions.prompted(ask.item)}
            if row and {key: row.get(key) for key in now} != now:
                what = "question" if row.get("asked") != now["asked"] else "prompt of question"
                raise ArtifactError(
                    f"{journal.path}: the {what} {ask.item.id} was changed since it was answered; {ANEW}"
                )


@dataclass(frozen=True)
class CellJob:
    """Answers the questions of a bench with the ensemble of a configuration; see `ray_data.Job`."""

    config: Config
    bench: Bench

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Callable[[Ask], Awaitable[AnswerRow]]]:
        """Load the models; yields the function that answers a question."""
        async with AsyncEnsemble.from_config(self.config) as ensemble:
            if calls := self.bench.calls:
                known = deciding(self.config, ensemble.engines)
                ensemble.engines = [
                    ReusedEngine(engine, known[engine.name], calls) for engine in ensemble.engines
                ]
            yield partial(self.bench._row_of, ensemble)

    def portable(self) -> CellJob:
        """The job without the questions, which come one by one."""
        return replace(self, bench=replace(self.bench, questions=replace(self.bench.questions, items=())))


def _graded(grade: Grade, error: str) -> dict[str, Any]:
    suites = {name: passed and not error for name, passed in grade.suites.items()}
    correct = grade.correct and not error
    return {"correct": correct, "graded": grade.answer, "reason": error or grade.reason, "suites": suites}


def _decisions(result: Result) -> dict[str, Any]:
    """How an answer came about: insight, decisions, and cost by engine and purpose."""
    record = result.to_dict()
    return {key: record[key] for key in ("insight", "verdicts", "choices")} | {
        "usage": record["usage"]["lines"]
    }


def settings_of_cell(config: Config, ensemble: AsyncEnsemble, questions: Questions) -> dict[str, Any]:
    """All that decides a cell's answers but the questions themselves, as JSON."""
    asked = ensemble.aggregation.uses_scorers
    scorers = [spec.model_dump(exclude=WHERE_IT_RUNS) for spec in config.reward_specs] if asked else []
    scale = config.ensemble.score_normalization
    settings = questions.about | {
        "engines": {name: portable(options) for name, options in deciding(config, ensemble.engines).items()},
        "sampling": asdict(questions.task.sampling(ensemble.sampling)),
        "extract_after": ensemble.generation.extract_after,
        "selection": config.selection.model_dump(),
        "aggregation": config.aggregation.model_dump(),
        "scorers": scorers,
        "on_error": config.ensemble.on_error,
        "trained": trained({**config.selection.params, **config.aggregation.params}),
    }
    return settings | ({"score_normalization": scale} if scorers and scale != "none" else {})


def portable(options: dict[str, Any]) -> dict[str, Any]:
    """Options with the last part of absolute paths only: a result is the same wherever its models lie."""
    return {
        key: Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value
        for key, value in options.items()
    }
