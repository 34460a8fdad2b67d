"""`collect | train | calibrate | evaluate | report`: each a function of one configuration, each resumable.

Everything is written under the configuration's `experiment.results`: `collected/SPLIT.*`, `judge/`,
`runs.jsonl`, `summary.json`, `table.md` and the plot.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ensemblehub.artifacts import write_atomically
from ensemblehub.concurrency import for_each
from ensemblehub.cost import Price
from ensemblehub.ensemble import AsyncEnsemble
from ensemblehub.ensemble_methods.output_aggregation.tandem import Tandem
from ensemblehub.errors import ArtifactError, ConfigError
from ensemblehub.lab.journal import Journal, told
from ensemblehub.lab.judges.curve_fitting import answer_lengths
from ensemblehub.lab.judges.training import median_rule, train_judge
from ensemblehub.lab.pipeline import (
    calibration,
    collect,
    evaluate,
    parallel,
    replay,
    replayed,
    report,
    splits,
)
from ensemblehub.lab.pipeline.evaluate import TandemRun
from ensemblehub.lab.pipeline.experiment import Experiment, as_json, differing_settings
from ensemblehub.lab.pipeline.failures import about
from ensemblehub.lab.pipeline.parallel import Placement
from ensemblehub.lab.pipeline.progress import progress
from ensemblehub.lab.pipeline.records import Collected
from ensemblehub.lab.pipeline.report import Checks
from ensemblehub.lab.tasks.base import Item
from ensemblehub.ray_cluster import Cluster
from ensemblehub.ray_data import answers, unfailed
from ensemblehub.shards import Shard
from ensemblehub.tandem.artifact import RULES, JudgeArtifact, load_judge
from ensemblehub.tandem.judges import Judge

log = logging.getLogger(__name__)
CHECKED = 100  # questions whose baselines are run again live
TIMED = 50  # runs timed one at a time
NOT_COLLECTED = ("confirm", "continue_draft")  # options of Tandem that make other runs


class Pipeline(Experiment):
    """The steps of an experiment."""

    def collect(
        self,
        split: str,
        limit: int | None = None,
        force: bool = False,
        places: Sequence[Placement] = (),
        cluster: Cluster | None = None,
    ) -> Collected:
        """Collect a split (see `collect.py`), or read it if it is complete already.

        A larger `limit` than before extends what was collected; a `draft` that it lacks is added to it.

        Args:
            places: where worker processes run, one each; without any, this process does it all.
            cluster: where Ray does it instead.
        """
        ensemble, tandem = self.unjudged()
        replay.warn_of_unknown_sizes(tandem.roles(ensemble.engines))
        items, folder = self.items(split, limit), self.folder / "collected"
        settings = self.header(split, ensemble, tandem)
        header = settings | {"n": len(items), "asked": splits.asked(*items)}
        partial, done = folder / f"{split}.partial.jsonl", None
        if not force and self.has_collected(split):
            done = Collected.load(folder, split)
            first = items[: len(done.rows)]
            now = settings | {"n": len(first), "asked": splits.asked(*first)}
            drafted = done.header.get("draft") == settings.get("draft", done.header.get("draft"))
            if differing := differing_settings(done.header | {"draft": settings.get("draft")}, now):
                raise ArtifactError(
                    f"{folder}/{split} was collected with other settings: {told(differing)}; "
                    "use --force to replace it"
                )
            if len(first) == len(items) and drafted:
                partial.unlink(missing_ok=True)  # the process was killed before it could
                return done
        with closing(Journal(partial, settings, force)) as journal:
            splits.check_unchanged(journal, items)
            if done and drafted:
                collect.take_over(done, journal)
            elif done:
                asyncio.run(self._add_drafts(done, first, journal))
            if places:
                with progress(f"collect {split}", len(items), len(journal.rows)) as step:
                    parallel.collect(self.config, items, journal, places, self.settings.concurrency, step)
            else:
                self._collect_into(journal, items, f"collect {split}", cluster)
            return collect.finish(journal, header, [item.id for item in items], folder, split)

    def collect_shard(self, shard: Shard, split: str, limit: int | None = None, force: bool = False) -> Path:
        """Collect the questions of a shard into the journal that is returned, for `ensemblehub merge`."""
        ensemble, tandem = self.unjudged()
        items = [item for item in self.items(split, limit) if shard.holds(splits.asked(item))]
        path = shard.within(self.folder) / "collected" / f"{split}.partial.jsonl"
        with closing(Journal(path, self.header(split, ensemble, tandem), force)) as journal:
            splits.check_unchanged(journal, items)
            self._collect_into(journal, items, f"collect {split} {shard}")
        return path

    async def _add_drafts(self, done: Collected, items: Sequence[Item], journal: Journal) -> None:
        """Collected questions into the journal, with the configured draft."""
        ensemble, tandem = self.unjudged()
        known = {row["id"]: row for row in collect.unfolded(done)}
        collector = collect.Collector(tandem, ensemble.engines, self.task, self.sampling)

        async def work(item: Item) -> dict[str, Any]:
            with about(self.task, item):
                return await collector.with_draft(item, known[item.id])

        missing, limit = journal.missing(items), self.settings.concurrency
        with progress(f"drafts {done.header['split']}", len(items), len(items) - len(missing)) as step:
            async with ensemble:
                await for_each(missing, work, limit=limit, keep=journal.append, progress=step)

    def _collect_into(
        self, journal: Journal, items: Sequence[Item], title: str, cluster: Cluster | None = None
    ) -> None:
        """Collect what a journal does not hold yet; loads no model where it holds everything."""
        missing = journal.missing(items)
        if not missing:
            return
        job, limit = parallel.CollectJob(self.config), self.settings.concurrency

        async def here() -> None:
            async with job.opened() as answer:
                await for_each(missing, answer, limit=limit, keep=journal.append, progress=step)

        with progress(title, len(items), len(items) - len(missing)) as step:
            if cluster is None:
                asyncio.run(here())
                return
            for row in unfailed(answers(job, missing, cluster, limit)):
                journal.append(row)
                step()

    def train(self) -> dict[str, Any]:
        """Train the judge on the collected `train` split; returns its report on held-out questions."""
        data, settings = self.learning("train"), self.settings
        levels = list(data.levels)
        labels = replay.table(data, levels, lambda run: run.correct).astype(bool)
        tokens = replay.table(data, levels, lambda run: run.mentor_tokens)
        judge: Judge
        if settings.judge in RULES:
            judge, metrics = median_rule(settings.judge, data.features), dict[str, Any]()
        else:
            judge, metrics = train_judge(
                settings.judge,
                data.features,
                labels,
                tokens,
                sequences=data.sequences,
                preset=settings.preset,
            )
        alone = [row.runs["mentor"] for row in data.rows]
        length = answer_lengths(
            [run.mentor_read for run in alone], [run.mentor_tokens for run in alone], data.thinking
        )
        artifact = JudgeArtifact(
            judge,
            **{key: data.header[key] for key in ("mentor", "intern", "prompts", "levels")},
            data={"task": self.task.name, "split": "train", "n": len(data.rows)},
            metrics=metrics,
            estimates={"mentor_alone_tokens": asdict(length)},
        )
        artifact.save(self.saved_folder)
        return metrics

    def calibrate(self, aim: str | None = None) -> dict[str, Any]:
        """Choose one threshold per level on the collected `calibration` split, never on test data.

        With them, one probability to give up below, for the levels where `give_up` is `calibrated`.

        Raises:
            ConfigError: as `objective` and `calibration`, or no thresholds serve the aim.
            ArtifactError: as `calibration`.
        """
        objective, prices = self.objective(aim)
        artifact, tandem, data = self.calibration()
        levels = [checkpoint.level for checkpoint in tandem.checkpoints]
        outcomes = replay.outcomes(data, artifact.judge, levels, tandem.fallback, bool(tandem.draft))
        if prices is None:
            data.check_sizes()
        else:
            outcomes = replay.in_dollars(outcomes, data, levels, *prices)
        chosen = calibration.calibrate(outcomes, objective, calibration.limits_of(tandem.give_up, levels))
        thresholds, give_up = calibration.by_level(levels, chosen.thresholds, chosen.give_up)
        about = made_for(tandem, str(objective), data)
        made = dict(artifact.data) | {"calibrated": about | chosen.expected}
        replace(artifact, thresholds=thresholds, give_up=give_up, data=made).save(self.saved_folder)
        return about | {"thresholds": thresholds, "give_up": give_up, **chosen.expected}

    def objective(self, aim: str | None = None) -> tuple[calibration.Objective, tuple[Price, Price] | None]:
        """What thresholds are chosen for, and the pair's prices where its budget is in dollars.

        Args:
            aim: by default that of the configuration.

        Raises:
            ConfigError: there is no such aim, or the configured pair's costs in its unit are unknown.
        """
        objective = calibration.Objective.parse(aim or self.settings.aim)
        ensemble, tandem = self.unjudged()
        pair = tandem.roles(ensemble.engines)
        if objective.unit == "usd":
            return objective, replay.prices(*(engine.info for engine in pair))
        replay.check_sizes(pair, f"{str(objective)!r} counts FLOPs")
        return objective, None

    def calibration(self) -> tuple[JudgeArtifact, Tandem, Collected]:
        """The judge, the strategy that uses it, and the questions on which its thresholds are chosen.

        Raises:
            ConfigError: the judge has nothing to calibrate, or an option of the Tandem is not in what was
                collected.
            ArtifactError: the questions are not there, or of another judge.
        """
        artifact = load_judge(self.judge_folder)
        if not artifact.judge.reads:
            raise ConfigError(f"the judge in {self.judge_folder} has nothing to calibrate")
        _, tandem = self.ensemble()
        for option in NOT_COLLECTED:
            if getattr(tandem, option) is not None:
                raise ConfigError(f"thresholds are chosen without `{option}`: its outcomes are not collected")
        if tandem.thresholds:
            log.warning(
                "`thresholds` of the file have precedence: remove them to use those that are calibrated"
            )
        data = self.learning("calibration")
        self._check_calibration(data, tandem, artifact)
        return artifact, tandem, data

    def evaluate(self, limit: int | None = None, force: bool = False, checks: bool = True) -> list[TandemRun]:
        """Run Tandem live on the test split.

        With `checks`, also answer a sample of the questions with every baseline again, to prove that the
        collected answers are what a live run writes, and time single runs.
        """
        collected = self.collected("test")
        if not force:
            self._check_collected(collected)
        for split in {"train", "calibration"} & set(self.task.splits):
            if self.has_collected(split):
                keys = [row.key for row in collected.rows]
                splits.check_apart(keys, self.questions(split), f"{self.folder}/collected/test", split)
        items = self.collected_items(collected, limit)
        if not items:
            raise ArtifactError(f"{self.folder}/collected/test has no questions: collect it again (--force)")
        runs = self.run_tandem(collected, items, "runs", force)
        if checks:
            found = asyncio.run(self._check(collected, items[:: max(1, len(items) // CHECKED)][:CHECKED]))
            write_atomically(self.folder / "checks.json", json.dumps(asdict(found), indent=1) + "\n")
        return runs

    def report(self) -> str:
        """Write table, summary and plot from collected data and runs; returns the table as Markdown."""
        collected = self.collected("test")
        path = evaluate.runs_file(self.folder)
        settings, runs = evaluate.read_runs(path)
        by_id = {row.id: index for index, row in enumerate(collected.rows)}
        runs = sorted((run for run in runs if run.id in by_id), key=lambda run: by_id[run.id])
        evaluate.check_runs(path, settings, runs, collected)
        part = collected.part([by_id[run.id] for run in runs])
        steps = [row.steps for row in part.rows]
        rows = report.summary(self.task.name, report.methods(part, runs), steps)
        notes = [
            *report.notes(part, self._checked(part, settings, runs)),
            *evaluate.foreign(settings, collected.header),
        ]
        return report.write(self.folder, rows, notes, f"{self.task.name}: Tandem and its baselines")

    def report_replayed(self, judges: Sequence[str], split: str = "test") -> str:
        """Write table, summary and plot of collected data with judges replayed on them, without live runs.

        Args:
            judges: As the option `judge` of `tandem`: folders of trained ones, or rules; see `replayed`.
        """
        collected, (_, tandem) = self.collected(split), self.ensemble()
        self.check_levels(collected, tandem)
        found = replayed.resolved(judges, collected, tandem)
        methods = replayed.methods(collected, found, tandem.fallback)
        told = report.summary(self.task.name, methods, [row.steps for row in collected.rows])
        rows = [row | more for row, more in zip(told, replayed.compared(methods), strict=True)]
        notes = [report.notes(collected, None)[0], replayed.note(found)]
        title = f"{self.task.name}: Tandem and its baselines, replayed"
        return report.write(self.folder, rows, notes, title, replayed.COLUMNS)

    def run_tandem(
        self, collected: Collected, items: Sequence[Item], name: str, force: bool = False, **options: Any
    ) -> list[TandemRun]:
        """Answer questions live with the configured Tandem and replaced `options`, into `NAME.jsonl`."""
        ensemble, tandem = self.ensemble(**options)
        settings = self.deciding(ensemble.engines) | {
            "prompts": tandem.words.fingerprint,
            "judge": tandem.artifact.record(),
            "weights": hashlib.sha256(tandem.artifact.weights).hexdigest(),
            "thresholds": tandem.level_thresholds,
            "options": {key: value for key, value in asdict(tandem).items() if key != "judge"},
            "asked": splits.asked(*items),
            "n": len(items),
            "collected": collected.header,
        }
        journal = Journal(evaluate.runs_file(self.folder, name), as_json(settings), force)
        try:
            if force and name == "runs":
                (self.folder / "checks.json").unlink(missing_ok=True)  # of the runs that were there
            with progress("evaluate", len(items), len(journal.rows)) as step:
                concurrency = self.settings.concurrency
                return asyncio.run(
                    evaluate.evaluate(ensemble, self.task, items, self.sampling, journal, concurrency, step)
                )
        finally:
            journal.close()

    def _check_calibration(self, data: Collected, tandem: Tandem, artifact: JudgeArtifact) -> None:
        """Check that thresholds for this judge and these levels can be chosen on this data.

        Raises:
            ArtifactError: there is no question, or the judge or the levels are others than what was
                collected.
        """
        where, header = f"{self.folder}/collected/calibration", data.header
        if not data.rows:
            raise ArtifactError(f"{where} has no questions to choose thresholds on")
        self.check_levels(data, tandem)
        self.check_drafts(data, tandem)
        if found := artifact.check(header["mentor"], header["intern"], header["prompts"], levels=data.levels):
            raise ArtifactError(f"{where} is not what the judge in {self.judge_folder} is for: {found[0]}")

    def _check_collected(self, collected: Collected) -> None:
        """Check that the baselines were collected from the configured pair.

        Raises:
            ArtifactError: they were not; says what differs.
        """
        kept = {key: collected.header.get(key) for key in ("n", "asked")}
        if differing := differing_settings(collected.header, self.header("test", *self.ensemble()) | kept):
            raise ArtifactError(
                f"{self.folder}/collected/test was collected with other settings: {told(differing)}; "
                "collect it again, or use --force to run all the same"
            )

    async def _check(self, collected: Collected, items: list[Item]) -> Checks:
        rows = {row.id: row for row in collected.rows}
        async with AsyncEnsemble.from_config(self.config) as ensemble:
            again = await evaluate.reproduced(
                ensemble, self.task, items, rows, self.sampling, self.settings.concurrency
            )
        async with AsyncEnsemble.from_config(self.config) as ensemble:  # nothing of these questions is cached
            timing = await evaluate.overhead(ensemble, self.task, items[:TIMED], self.sampling)
        return Checks(len(items), again, **timing, grading=self.task.grading())

    def _checked(
        self, collected: Collected, settings: dict[str, Any], runs: Sequence[TandemRun]
    ) -> Checks | None:
        """The checks of `evaluate`, and the judge replayed against live runs that it still is the judge of."""
        checks = report.read_checks(self.folder)
        if not checks:
            return None
        tandem, options = self.ensemble()[1], settings.get("options", {})
        artifact = tandem.artifact
        asked = ("thresholds", "give_up", "start_with_intern", "draft", "fallback")
        now = {key: getattr(tandem, key) for key in asked}
        then, made = {key: options.get(key) for key in now}, settings.get("judge", {})
        for key in ("kind", "mentor", "intern", "prompts", "levels"):
            now[key], then[key] = artifact.record()[key], made.get(key)
        now["limits"], then["limits"] = artifact.thresholds, made.get("thresholds")
        now["lower"], then["lower"] = artifact.give_up, made.get("give_up")
        now["weights"] = hashlib.sha256(artifact.weights).hexdigest()
        then["weights"] = settings.get("weights", now["weights"])  # older data did not record it
        replayable = not any(getattr(tandem, option) is not None for option in NOT_COLLECTED)
        replayable &= not tandem.draft or bool(collected.drafts)
        if as_json(now) == then and artifact.judge.reads and replayable:
            checks = replace(checks, replay=replayed.against_live(collected, tandem, runs))
            write_atomically(self.folder / "checks.json", json.dumps(asdict(checks), indent=1) + "\n")
        return checks


def made_for(tandem: Tandem, aim: str, data: Collected) -> dict[str, Any]:
    """What a judge's thresholds are chosen for, as the judge keeps it."""
    about = {"aim": aim, "n": len(data.rows), "fallback": tandem.fallback}
    return about | ({"draft": tandem.draft} if tandem.draft else {})
