"""`collect | train | calibrate | evaluate | report`: each a function of one configuration, each resumable.

Everything is written under the configuration's `experiment.results`: `collected/SPLIT.*`, `judge/`,
`rides.jsonl`, `summary.json`, `table.md` and the plot.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ensemblehub import builtin
from ensemblehub.artifacts import content_of, differences, parsed, told, write_atomically
from ensemblehub.config import Config
from ensemblehub.ensemble import AsyncEnsemble
from ensemblehub.ensemble_methods.output_aggregation.tandem import Tandem
from ensemblehub.errors import ArtifactError, ConfigError
from ensemblehub.generators.base import Engine
from ensemblehub.journal import Journal
from ensemblehub.lab.judges.training import train_judge
from ensemblehub.lab.pipeline import calibration, parallel, replay, splits
from ensemblehub.lab.pipeline import collect as collecting
from ensemblehub.lab.pipeline import evaluate as evaluating
from ensemblehub.lab.pipeline import report as reporting
from ensemblehub.lab.pipeline.evaluate import TandemRun
from ensemblehub.lab.pipeline.parallel import Placement
from ensemblehub.lab.pipeline.progress import progress
from ensemblehub.lab.pipeline.records import Collected
from ensemblehub.lab.tasks.base import Item, Task, task_named
from ensemblehub.tandem.artifact import JudgeArtifact, load_judge
from ensemblehub.tandem.estimates import Length
from ensemblehub.tandem.insights import LEVEL_0

NEWER = ("engines", "sampling", "asked")  # settings that older data did not record
HEADER = ("task", "split", "mentor", "intern", "prompts", "max_tokens", "temperature")
CHECKED = 100  # questions whose baselines are run again live
TIMED = 50  # rides timed one at a time


class Pipeline:
    """The experiment that a configuration describes."""

    def __init__(self, config: Config) -> None:
        self.config, self.settings = config, config.experiment
        self.task: Task = task_named(self.settings.task, self.settings.data)
        self.sampling = config.ensemble.generation.sampling()
        self.folder = self.settings.results
        self._hashed: dict[tuple[str, int | None], dict[str, str]] = {}
        self.served: dict[str, str] = {}  # models by engine, where an address that changes does not tell

    def ensemble(self, **options: Any) -> tuple[AsyncEnsemble, Tandem]:
        """The configured Tandem, with some of its options replaced.

        Raises:
            ConfigError: the configured aggregation is not Tandem.
        """
        params = {**self.config.aggregation.params, **options}
        section = self.config.ensemble.model_copy(update={"output_aggregation_params": params})
        ensemble = AsyncEnsemble.from_config(self.config.model_copy(update={"ensemble": section}))
        if not isinstance(ensemble.aggregation, Tandem):
            raise ConfigError("the pipeline runs Tandem: set `output_aggregation_method: tandem`")
        return ensemble, ensemble.aggregation

    def items(self, split: str, limit: int | None) -> list[Item]:
        """The questions of a split."""
        return list(self.task.items(split, limit))

    def collect(
        self, split: str, limit: int | None = None, force: bool = False, places: Sequence[Placement] = ()
    ) -> Collected:
        """Collect a split (see `experiments/collect.py`), or read it if it is complete already.

        Args:
            places: where worker processes run, one each; without any, this process does it all.
        """
        ensemble, tandem = self.ensemble(judge=f"fixed:{LEVEL_0}")
        items, folder = self.items(split, limit), self.folder / "collected"
        header = self._header(split, ensemble, tandem) | {"n": len(items), "asked": splits.asked(*items)}
        partial = folder / f"{split}.partial.jsonl"
        if not force and (folder / f"{split}.jsonl.gz").exists():
            done = Collected.load(folder, split)
            if differing := differing_settings(done.header, header):
                raise ArtifactError(
                    f"{folder}/{split} was collected with other settings: {told(differing)}; use --force to replace it"
                )
            partial.unlink(missing_ok=True)  # the process was killed before it could
            return done
        journal = Journal(partial, header, force)
        with progress(f"collect {split}", len(items), len(journal.rows)) as step:
            if places:
                parallel.collect(self.config, items, journal, places, self.settings.concurrency, step)
            else:
                asyncio.run(self._collect(ensemble, tandem, items, journal, step))
        return collecting.finish(journal, header, [item.id for item in items], folder, split)

    def _header(self, split: str, ensemble: AsyncEnsemble, tandem: Tandem) -> dict[str, Any]:
        """What a split is collected with, but for its questions."""
        header = collecting.settings(tandem, ensemble.engines, self.task.name, split, self.sampling)
        if about := self.task.about(split):
            header["questions"] = about
        return as_json(header | self.deciding(ensemble.engines))

    def deciding(self, engines: Sequence[Engine]) -> dict[str, Any]:
        """What decides the text of a configuration's engines: which models, with which options, and the sampling."""
        specs = {spec.name: spec for spec in self.config.members}
        found: dict[str, dict[str, Any]] = {}
        for engine in engines:
            options = self.config.deciding(specs[engine.name])
            if engine.name in self.served:
                options.pop("base_url", None)
            if engine.model != engine.name:  # which says more than the path that leads there
                options.pop("path", None)
            found[engine.name] = {"model": self.served.get(engine.name, engine.model), **options}
        return {"engines": found, "sampling": asdict(self.sampling)}

    def collected(self, split: str) -> Collected:
        """A collected split of this experiment.

        Raises:
            ArtifactError: it is missing, damaged, or holds what does not belong to the split.
        """
        folder = self.folder / "collected"
        data = Collected.load(folder, split)
        lacking = [name for name in HEADER if name not in data.header]
        lacking += [
            f"run of {row.id}: mentor_concise" for row in data.rows if "mentor_concise" not in row.runs
        ]
        if lacking:
            raise ArtifactError(
                f"{folder}/{split} is damaged (it has no {lacking[0]}): collect it again (--force)"
            )
        if data.header["task"] != self.task.name:
            raise ArtifactError(
                f"{folder}/{split} is of the task {data.header['task']}, not {self.task.name}"
            )
        return self._belonging(data, split)

    def _belonging(self, data: Collected, split: str) -> Collected:
        """The same, where the benchmark is at hand: checked to be of the split, every question with its hash."""
        try:
            known = self._digests(split, len(data.rows))
        except ConfigError:  # the benchmark's file is elsewhere
            return data
        for row in data.rows:
            if row.id not in known or row.question not in ("", known[row.id]):
                raise ArtifactError(
                    f"{self.folder}/collected/{split} holds a question that is none of {split}, or was changed since: "
                    f"{row.id}; collect it again (--force)"
                )
        return replace(data, rows=[replace(row, question=known[row.id]) for row in data.rows])

    def _digests(self, split: str, n: int | None = None) -> dict[str, str]:
        """Hashes of the benchmark's questions, by id: the first `n` of a split."""
        if (split, n) not in self._hashed:
            self._hashed[split, n] = {item.id: splits.digest(item) for item in self.items(split, n or None)}
        return self._hashed[split, n]

    def questions(self, split: str) -> set[str]:
        """Hashes of a split's questions: the collected ones, else the benchmark's own, where they are at hand."""
        if split not in self.task.splits:
            return set()
        if (self.folder / "collected" / f"{split}.jsonl.gz").exists():
            data = Collected.load(self.folder / "collected", split)
            if data.header.get("task") == self.task.name:
                return {row.key for row in self._belonging(data, split).rows}
        try:
            return set(self._digests(split).values())
        except ConfigError:
            return set()

    async def _collect(
        self, ensemble: AsyncEnsemble, tandem: Tandem, items: list[Item], journal: Journal, step: Any
    ) -> None:
        async with ensemble:
            await collecting.collect(
                tandem,
                ensemble.engines,
                self.task,
                items,
                self.sampling,
                journal,
                self.settings.concurrency,
                step,
            )

    def train(self) -> dict[str, Any]:
        """Train the judge on the collected `train` split; returns its report on held-out questions.

        Where `calibration` is a part of `train` (public benchmarks), its questions are left out.
        """
        data = self.learning("train")
        levels = list(data.levels)
        labels = replay.table(data, levels, lambda run: run.correct).astype(bool)
        tokens = replay.table(data, levels, lambda run: run.mentor_tokens)
        judge, report = train_judge(
            self.settings.judge,
            data.features,
            labels,
            tokens,
            sequences=data.sequences,
            preset=self.settings.preset,
        )
        alone = [row.runs["mentor"] for row in data.rows]
        length = Length.fit([run.mentor_read for run in alone], [run.mentor_tokens for run in alone])
        artifact = JudgeArtifact(
            judge,
            **{key: data.header[key] for key in ("mentor", "intern", "prompts", "levels")},
            data={"task": self.task.name, "split": "train", "n": len(data.rows)},
            metrics=report,
            estimates={"mentor_alone_tokens": length},
        )
        artifact.save(self.judge_folder)
        return report

    def learning(self, split: str) -> Collected:
        """A collected split to train or to choose on, without questions of the splits that are kept for later.

        Raises:
            ArtifactError: as `collected`; or it is a copy of the test.
        """
        data = self._apart(self.collected(split)) if split == "train" else self.collected(split)
        keys, where = [row.key for row in data.rows], f"{self.folder}/collected/{split}"
        return data.part(splits.unshared(keys, self.questions("test"), where, "test"))

    def _apart(self, data: Collected) -> Collected:
        """The collected questions that are not for calibration."""
        if "calibration" not in self.task.splits:
            return data
        held = {*self._digests("calibration"), *self.questions("calibration")}
        return data.part([at for at, row in enumerate(data.rows) if not {row.id, row.key} & held])

    def calibrate(self, aim: str | None = None) -> dict[str, Any]:
        """Choose one threshold per level on the collected `calibration` split, never on test data."""
        wanted = calibration.Objective.parse(aim or self.settings.aim)
        artifact = load_judge(self.judge_folder)
        if not artifact.judge.reads:
            raise ConfigError(f"the judge in {self.judge_folder} has nothing to calibrate")
        _, tandem = self.ensemble()
        data = self.learning("calibration")
        self._check_calibration(data, tandem, artifact)
        levels = [checkpoint.level for checkpoint in tandem.checkpoints]
        chosen = calibration.calibrate(replay.outcomes(data, artifact.judge, levels, tandem.fallback), wanted)
        thresholds = dict(zip(levels, map(float, chosen.thresholds), strict=True))
        made = dict(artifact.data) | {
            "calibrated": {"aim": str(wanted), "n": len(data.rows), **chosen.expected}
        }
        replace(artifact, thresholds=thresholds, data=made).save(self.judge_folder)
        return {"aim": str(wanted), "n": len(data.rows), "thresholds": thresholds, **chosen.expected}

    def _check_calibration(self, data: Collected, tandem: Tandem, artifact: JudgeArtifact) -> None:
        """Check that thresholds for this judge and these levels can be chosen on this data.

        Raises:
            ArtifactError: there is no question, or the judge or the levels are others than what was collected.
        """
        where, header = f"{self.folder}/collected/calibration", data.header
        if not data.rows:
            raise ArtifactError(f"{where} has no questions to choose thresholds on")
        self.check_levels(data, tandem)
        if found := artifact.check(header["mentor"], header["intern"], header["prompts"], levels=data.levels):
            raise ArtifactError(f"{where} is not what the judge in {self.judge_folder} is for: {found[0]}")

    def check_levels(self, data: Collected, tandem: Tandem) -> None:
        """Check that a split was collected at the configured levels.

        Raises:
            ArtifactError: it was not; says which.
        """
        if differing := list(differences(data.levels, {LEVEL_0: 0, **tandem.levels}, "levels")):
            where = f"{self.folder}/collected/{data.header['split']}"
            raise ArtifactError(
                f"{where} was collected at other levels: {told(differing)}; collect it again (--force)"
            )

    @property
    def judge_folder(self) -> Path:
        """Where the configured judge is kept.

        Raises:
            ConfigError: the configuration names a rule, which has nothing to train.
        """
        judge = self.config.aggregation.params.get("judge", "")
        if not judge or str(judge).partition(":")[0] in {"entropy", "perplexity", "fixed"}:
            raise ConfigError(
                f"judge {judge!r} is a rule; name a folder for the trained one, such as results/judge"
            )
        return Path(builtin.resolve(str(judge)))

    def evaluate(self, limit: int | None = None, force: bool = False, checks: bool = True) -> list[TandemRun]:
        """Run Tandem live on the test split.

        With `checks`, also answer a sample of the questions with every baseline again, to prove that the
        collected answers are what a live run writes, and time single rides.
        """
        collected = self.collected("test")
        if not force:
            self._check_collected(collected)
        for split in {"train", "calibration"} & set(self.task.splits):
            if (self.folder / "collected" / f"{split}.jsonl.gz").exists():
                keys = [row.key for row in collected.rows]
                splits.check_apart(keys, self.questions(split), f"{self.folder}/collected/test", split)
        items = self.collected_items(collected, limit)
        if not items:
            raise ArtifactError(f"{self.folder}/collected/test has no questions: collect it again (--force)")
        rides = self.ride(collected, items, "rides", force)
        if checks:
            found = asyncio.run(self._check(collected, items[:: max(1, len(items) // CHECKED)][:CHECKED]))
            write_atomically(self.folder / "checks.json", json.dumps(asdict(found), indent=1) + "\n")
        return rides

    def _check_collected(self, collected: Collected) -> None:
        """Check that the baselines were collected from the configured pair.

        Raises:
            ArtifactError: they were not; says what differs.
        """
        ensemble, tandem = self.ensemble()
        now = self._header("test", ensemble, tandem) | {
            key: collected.header.get(key) for key in ("n", "asked")
        }
        if differing := differing_settings(collected.header, now):
            raise ArtifactError(
                f"{self.folder}/collected/test was collected with other settings: {told(differing)}; collect it again, "
                "or use --force to ride all the same"
            )

    def collected_items(self, collected: Collected, limit: int | None = None) -> list[Item]:
        """The questions of the test split that were collected.

        Raises:
            ArtifactError: a question was changed since it was collected.
        """
        known = {row.id: row.question for row in collected.rows}
        items = [item for item in self.items("test", limit) if item.id in known]
        for item in items:
            if known[item.id] not in ("", splits.digest(item)):
                raise ArtifactError(
                    f"{item.id} was changed since it was collected: collect it again (--force)"
                )
        return items

    def ride(
        self, collected: Collected, items: Sequence[Item], name: str, force: bool = False, **options: Any
    ) -> list[TandemRun]:
        """Answer questions live with the configured Tandem, some of its options replaced; kept in `NAME.jsonl`."""
        ensemble, tandem = self.ensemble(**options)
        settings = self.deciding(ensemble.engines) | {
            "prompts": tandem.words.fingerprint,
            "judge": tandem.artifact.record(),
            "weights": hashlib.sha256(tandem.artifact.weights).hexdigest(),
            "thresholds": tandem.level_thresholds,
            "options": {
                key: value for key, value in asdict(tandem).items() if key != "judge"
            },  # wherever it lies
            "asked": splits.asked(*items),
            "n": len(items),
            "collected": collected.header,
        }
        journal = Journal(self.folder / f"{name}.jsonl", as_json(settings), force)
        try:
            if force and name == "rides":
                (self.folder / "checks.json").unlink(missing_ok=True)  # of the rides that were there
            with progress("evaluate", len(items), len(journal.rows)) as step:
                return asyncio.run(self._evaluate(ensemble, items, journal, step))
        finally:
            journal.close()

    async def _evaluate(
        self, ensemble: AsyncEnsemble, items: Sequence[Item], journal: Journal, step: Callable[[], None]
    ) -> list[TandemRun]:
        async with ensemble:
            return await evaluating.evaluate(
                ensemble, self.task, items, self.sampling, journal, self.settings.concurrency, step
            )

    async def _check(self, collected: Collected, items: list[Item]) -> reporting.Checks:
        rows = {row.id: row for row in collected.rows}
        async with AsyncEnsemble.from_config(self.config) as ensemble:
            again = await evaluating.reproduced(
                ensemble, self.task, items, rows, self.sampling, self.settings.concurrency
            )
        async with AsyncEnsemble.from_config(self.config) as ensemble:  # nothing of these questions is cached
            timing = await evaluating.overhead(ensemble, self.task, items[:TIMED], self.sampling)
        return reporting.Checks(len(items), again, **timing, grading=self.task.grading())

    def report(self) -> str:
        """Write table, summary and plot from collected data and rides; returns the table as Markdown."""
        collected = self.collected("test")
        settings, rides = evaluating.read_rides(self.folder / "rides.jsonl")
        by_id = {row.id: index for index, row in enumerate(collected.rows)}
        rides = sorted((ride for ride in rides if ride.id in by_id), key=lambda ride: by_id[ride.id])
        self._check_rides(settings, rides, collected)
        part = collected.part([by_id[ride.id] for ride in rides])
        rows = reporting.summary(
            self.task.name, reporting.methods(part, rides), [row.steps for row in part.rows]
        )
        notes = [*reporting.notes(part, self._checks()), *foreign(settings, collected.header)]
        return reporting.write(self.folder, rows, notes, f"{self.task.name}: Tandem and its baselines")

    def _checks(self) -> reporting.Checks | None:
        path = self.folder / "checks.json"
        again = "run `ensemblehub evaluate`, or remove it"
        return parsed(reporting.Checks, content_of(path, again), path, again) if path.exists() else None

    def _check_rides(
        self, settings: dict[str, Any], rides: Sequence[TandemRun], collected: Collected
    ) -> None:
        """Check that a table can be made of rides and collected runs.

        Raises:
            ArtifactError: there is no ride, or they rode over other data or at other levels.
        """
        path = self.folder / "rides.jsonl"
        if not rides:
            raise ArtifactError(f"{path} holds no ride on the collected questions: {evaluating.AGAIN}")
        made = settings.get("collected")
        same = made if isinstance(made, dict) else collected.header
        if differing := differing_settings(same, collected.header | {"n": same.get("n")}):
            raise ArtifactError(
                f"{path} was made over other collected data: {told(differing)}; {evaluating.AGAIN}"
            )
        levels = {*collected.levels, "mentor"}
        if unknown := next((ride for ride in rides if ride.chosen not in levels), None):
            raise ArtifactError(
                f"{path}: {unknown.id} stopped at {unknown.chosen!r}, which was not collected"
            )


def as_json(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as they are when they come back from a file."""
    known: dict[str, Any] = json.loads(json.dumps(settings, default=str))
    return known


def differing_settings(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """What differs; data of before some settings were recorded is taken to have been made with the same."""
    return list(
        differences(found, {key: value for key, value in wanted.items() if key in found or key not in NEWER})
    )


def foreign(settings: dict[str, Any], header: dict[str, Any]) -> list[str]:
    """A note where Tandem rode with other models or another sampling than its baselines, as `--force` makes it."""
    pairs = [
        ({key: header[key]}, {key: settings[key]}) for key in NEWER[:2] if key in header and key in settings
    ]
    found = [line for before, now in pairs for line in differences(now, before)]
    return [f"Tandem and its baselines were run with different settings: {told(found)}."] if found else []
