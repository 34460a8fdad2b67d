"""`collect | train | calibrate | evaluate | report`: each a function of one configuration, each resumable.

Everything is written under the configuration's `experiment.results`: `collected/SPLIT.*`, `judge/`,
`rides.jsonl`, `summary.json`, `table.md` and the plot.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ensemblehub import studio
from ensemblehub.config import Config
from ensemblehub.ensemble_methods.ensemble import Ensemble
from ensemblehub.ensemble_methods.output_aggregation.tandem import Tandem
from ensemblehub.errors import ArtifactError, ConfigError
from ensemblehub.experiments import collect as collecting
from ensemblehub.experiments import evaluate as evaluating
from ensemblehub.experiments import replay
from ensemblehub.experiments import report as reporting
from ensemblehub.experiments.evaluate import Ride
from ensemblehub.experiments.progress import progress
from ensemblehub.results import LEVEL_0, Collected, Journal
from ensemblehub.tandem import calibration, sufficiency
from ensemblehub.tandem.estimates import Length
from ensemblehub.tandem.judges import FeatureJudge
from ensemblehub.tasks.base import Item, Task, task_named

CHECKED = 100  # questions whose baselines are run again live
TIMED = 50  # rides timed one at a time


class Pipeline:
    """The experiment that a configuration describes."""

    def __init__(self, config: Config) -> None:
        self.config, self.settings = config, config.experiment
        self.task: Task = task_named(self.settings.task, self.settings.data)
        self.sampling = config.ensemble.generation.sampling()
        self.folder = self.settings.results

    def ensemble(self, **options: Any) -> tuple[Ensemble, Tandem]:
        """The configured Tandem, with some of its options replaced.

        Raises:
            ConfigError: the configured aggregation is not Tandem.
        """
        params = {**self.config.aggregation.params, **options}
        section = self.config.ensemble.model_copy(update={"output_aggregation_params": params})
        ensemble = Ensemble.from_config(self.config.model_copy(update={"ensemble": section}))
        if not isinstance(ensemble.aggregation, Tandem):
            raise ConfigError("the pipeline runs Tandem: set `output_aggregation_method: tandem`")
        return ensemble, ensemble.aggregation

    def items(self, split: str, limit: int | None) -> list[Item]:
        """The questions of a split."""
        return list(self.task.items(split, limit))

    def collect(self, split: str, limit: int | None = None, force: bool = False) -> Collected:
        """Collect a split (see `experiments/collect.py`), or read it if it is complete already."""
        ensemble, tandem = self.ensemble(judge=f"fixed:{LEVEL_0}")
        header = collecting.settings(tandem, ensemble.engines, self.task.name, split, self.sampling)
        header["n"] = len(items := self.items(split, limit))
        if about := self.task.about(split):
            header["questions"] = about
        folder = self.folder / "collected"
        if not force and (folder / f"{split}.npz").exists():
            done = Collected.load(folder, split)
            if done.header == json.loads(json.dumps(header)):
                return done
            raise ArtifactError(f"{folder}/{split} was collected with other settings; use --force to replace it")
        journal = Journal(folder / f"{split}.partial.jsonl", json.loads(json.dumps(header)), force)
        with progress(f"collect {split}", len(items), len(journal.rows)) as step:
            asyncio.run(self._collect(ensemble, tandem, items, journal, step))
        return collecting.finish(journal, header, [item.id for item in items], folder, split)

    async def _collect(
        self, ensemble: Ensemble, tandem: Tandem, items: list[Item], journal: Journal, step: Any
    ) -> None:
        async with ensemble:
            await collecting.collect(
                tandem, ensemble.engines, self.task, items, self.sampling, journal, self.settings.concurrency, step
            )

    def train(self) -> dict[str, Any]:
        """Train the judge on the collected `train` split; returns its report on held-out questions.

        Where `calibration` is a part of `train` (public benchmarks), its questions are left out.
        """
        data = self._apart(Collected.load(self.folder / "collected", "train"))
        levels = list(data.levels)
        labels = replay.table(data, levels, lambda run: run.correct).astype(bool)
        tokens = replay.table(data, levels, lambda run: run.mentor_tokens)
        judge, report = sufficiency.train_judge(
            self.settings.judge, data.features, labels, tokens, preset=self.settings.preset
        )
        alone = [row.runs["mentor"] for row in data.rows]
        length = Length.fit([run.mentor_read for run in alone], [run.mentor_tokens for run in alone])
        artifact = sufficiency.Artifact(
            judge,
            **{key: data.header[key] for key in ("mentor", "intern", "prompts", "levels")},
            data={"task": self.task.name, "split": "train", "n": len(data.rows)},
            metrics=report,
            estimates={"mentor_alone_tokens": length},
        )
        artifact.save(self.judge_folder)
        return report

    def _apart(self, data: Collected) -> Collected:
        """The collected questions that are not for calibration."""
        held = {item.id for item in self.items("calibration", None)} if "calibration" in self.task.splits else set()
        kept = [index for index, row in enumerate(data.rows) if row.id not in held]
        return data.part(kept) if len(kept) < len(data.rows) else data

    def calibrate(self, aim: str | None = None) -> dict[str, Any]:
        """Choose one threshold per level on the collected `calibration` split, never on test data."""
        wanted = calibration.Aim.parse(aim or self.settings.aim)
        data = Collected.load(self.folder / "collected", "calibration")
        artifact = sufficiency.load(self.judge_folder)
        if not isinstance(artifact.judge, FeatureJudge):
            raise ConfigError(f"the judge in {self.judge_folder} has nothing to calibrate")
        _, tandem = self.ensemble()
        levels = [level for level, _ in tandem.budgets]
        chosen = calibration.calibrate(replay.outcomes(data, artifact.judge, levels, tandem.fallback), wanted)
        thresholds = dict(zip(levels, map(float, chosen.thresholds), strict=True))
        made = dict(artifact.data) | {"calibrated": {"aim": str(wanted), "n": len(data.rows), **chosen.expected}}
        replace(artifact, thresholds=thresholds, data=made).save(self.judge_folder)
        return {"aim": str(wanted), "n": len(data.rows), "thresholds": thresholds, **chosen.expected}

    @property
    def judge_folder(self) -> Path:
        """Where the configured judge is kept.

        Raises:
            ConfigError: the configuration names a rule, which has nothing to train.
        """
        judge = self.config.aggregation.params.get("judge", "")
        if not judge or str(judge).partition(":")[0] in {"entropy", "perplexity", "fixed"}:
            raise ConfigError(f"judge {judge!r} is a rule; name a folder for the trained one, such as results/judge")
        return Path(studio.resolve(str(judge)))

    def evaluate(self, limit: int | None = None, force: bool = False, checks: bool = True) -> list[Ride]:
        """Run Tandem live on the test split.

        With `checks`, also answer a sample of the questions with every baseline again, to prove that the
        collected answers are what a live run writes, and time single rides.
        """
        collected = Collected.load(self.folder / "collected", "test")
        known = {row.id for row in collected.rows}
        items = [item for item in self.items("test", limit) if item.id in known]
        ensemble, tandem = self.ensemble()
        settings = {"collected": collected.header, "options": asdict(tandem), "n": len(items)}
        settings["judge"] = tandem.verdicts.record()
        journal = Journal(self.folder / "rides.jsonl", json.loads(json.dumps(settings, default=str)), force)
        with progress("evaluate", len(items), len(journal.rows)) as step:
            rides = asyncio.run(self._evaluate(ensemble, items, journal, step))
        journal.close()
        if checks:
            found = asyncio.run(self._check(collected, items[:: max(1, len(items) // CHECKED)][:CHECKED]))
            (self.folder / "checks.json").write_text(json.dumps(found, indent=1) + "\n")
        return rides

    async def _evaluate(
        self, ensemble: Ensemble, items: list[Item], journal: Journal, step: Callable[[], None]
    ) -> list[Ride]:
        async with ensemble:
            return await evaluating.evaluate(
                ensemble, self.task, items, self.sampling, journal, self.settings.concurrency, step
            )

    async def _check(self, collected: Collected, items: list[Item]) -> dict[str, Any]:
        rows = {row.id: row for row in collected.rows}
        async with Ensemble.from_config(self.config) as ensemble:
            again = await evaluating.reproduced(
                ensemble, self.task, items, rows, self.sampling, self.settings.concurrency
            )
        async with Ensemble.from_config(self.config) as ensemble:  # nothing of these questions is cached
            timing = await evaluating.overhead(ensemble, self.task, items[:TIMED], self.sampling)
        return {"checked": len(items), "reproduced": again, **timing}

    def report(self) -> str:
        """Write table, summary and plot from collected data and rides; returns the table as Markdown."""
        collected = Collected.load(self.folder / "collected", "test")
        journal, checks = self.folder / "rides.jsonl", self.folder / "checks.json"
        if not journal.exists():
            raise ArtifactError(f"{journal} is missing: run `ensemblehub evaluate`")
        rides = [Ride(**json.loads(line)) for line in journal.read_text().splitlines()[1:]]
        by_id = {row.id: index for index, row in enumerate(collected.rows)}
        rides = sorted((ride for ride in rides if ride.id in by_id), key=lambda ride: by_id[ride.id])
        if not rides:
            raise ArtifactError(
                f"{journal} holds no ride on the collected questions: run `ensemblehub evaluate --force`"
            )
        part = collected.part([by_id[ride.id] for ride in rides])
        rows = reporting.summary(self.task.name, reporting.methods(part, rides), [row.steps for row in part.rows])
        notes = reporting.notes(part, json.loads(checks.read_text()) if checks.exists() else None)
        reporting.write(self.folder, rows, notes, f"{self.task.name}: Tandem and its baselines")
        return (self.folder / "table.md").read_text()
