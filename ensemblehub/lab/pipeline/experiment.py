"""What an experiment's configuration describes: the ensemble, the benchmark, and what was collected of it."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

from ensemblehub import builtin
from ensemblehub.config import Config
from ensemblehub.ensemble import AsyncEnsemble
from ensemblehub.ensemble_methods.output_aggregation.tandem import Tandem
from ensemblehub.errors import ArtifactError, ConfigError
from ensemblehub.generators.base import Engine
from ensemblehub.lab.journal import differences, told
from ensemblehub.lab.pipeline import collect, splits
from ensemblehub.lab.pipeline.records import Collected
from ensemblehub.lab.tasks import task_named
from ensemblehub.lab.tasks.base import Item, Task
from ensemblehub.tandem.artifact import RULES
from ensemblehub.tandem.insights import LEVEL_0

log = logging.getLogger(__name__)
NEWER = ("engines", "sampling", "asked")  # settings that older data did not record
HEADER = ("task", "split", "mentor", "intern", "prompts", "max_tokens", "temperature")


def with_experiment(config: Config, **settings: Any) -> Config:
    """The configuration with some settings of its `experiment` section replaced."""
    return config.model_copy(update={"experiment": config.experiment.model_copy(update=settings)})


def with_aggregation(config: Config, **options: Any) -> Config:
    """The configuration with some options of its aggregation replaced."""
    params = config.ensemble.output_aggregation_params | options
    section = config.ensemble.model_copy(update={"output_aggregation_params": params})
    return config.model_copy(update={"ensemble": section})


def with_sampling(config: Config, max_tokens: int, stop: Sequence[str]) -> Config:
    """The configuration with the length and the stop strings that its questions were asked with, which a prompt
    profile may set; `config` itself where it has them already.
    """
    known = config.ensemble.generation.sampling()
    if (known.max_tokens, known.stop) == (max_tokens, tuple(stop)):
        return config
    given = {"max_tokens": max_tokens, "stop_strings": list(stop), "stop_sequences": []}
    generation = config.ensemble.generation.model_copy(update=given)
    section = config.ensemble.model_copy(update={"generation": generation})
    return config.model_copy(update={"ensemble": section})


def tandem_of(ensemble: AsyncEnsemble) -> Tandem:
    """The ensemble's aggregation.

    Raises:
        ConfigError: it is not Tandem.
    """
    if not isinstance(ensemble.aggregation, Tandem):
        raise ConfigError("the pipeline runs Tandem: set `output_aggregation_method: tandem`")
    return ensemble.aggregation


class Experiment:
    """A configured Tandem on a benchmark, and the folder that its results lie in.

    A judge that ships with the package (`builtin:NAME`) is not changed: `train` and `calibrate` write `judge/` in
    that folder, and the steps after them use that one.
    """

    def __init__(self, config: Config, task: Task | None = None) -> None:
        """Take the benchmark that the configuration names, or `task`."""
        self.config, self.settings = config, config.experiment
        self.task = task or task_named(self.settings.task, self.settings.data, self.settings.prompt)
        self.sampling = self.task.sampling(config.ensemble.generation.sampling())
        self.folder = self.settings.results
        self._ships = str(config.aggregation.params.get("judge", "")).startswith("builtin:")
        if self._ships and (self.folder / "judge" / "judge.json").exists():
            self.config = with_aggregation(config, judge=str(self.folder / "judge"))
        self._hashed: dict[tuple[str, int | None], dict[str, str]] = {}
        self.served: dict[str, str] = {}  # models by engine, for engines whose address changes

    @property
    def judge_folder(self) -> Path:
        """The folder of the configured judge.

        Raises:
            ConfigError: the configuration names a rule, which has nothing to train.
        """
        judge = self.config.aggregation.params.get("judge", "")
        if not judge or str(judge).partition(":")[0] in (*RULES, "fixed"):
            raise ConfigError(
                f"judge {judge!r} is a rule; name a folder for the trained one, such as results/judge"
            )
        return Path(builtin.resolve(str(judge)))

    @property
    def saved_folder(self) -> Path:
        """The folder that the judge is written to."""
        if not self._ships:
            return self.judge_folder
        log.warning("the judge is written to %s/judge: name that as `judge` to serve it", self.folder)
        return self.folder / "judge"

    def ensemble(self, **options: Any) -> tuple[AsyncEnsemble, Tandem]:
        """The configured Tandem, with some of its options replaced.

        Raises:
            ConfigError: the configured aggregation is not Tandem.
        """
        ensemble = AsyncEnsemble.from_config(with_aggregation(self.config, **options))
        return ensemble, tandem_of(ensemble)

    def unjudged(self) -> tuple[AsyncEnsemble, Tandem]:
        """The configured Tandem without its judge, which may have yet to be trained."""
        return self.ensemble(judge=f"fixed:{LEVEL_0}")

    def deciding(self, engines: Sequence[Engine]) -> dict[str, Any]:
        """The settings that decide what the engines write: models, their options, and the sampling."""
        found = deciding(self.config, engines, self.served)
        return {"engines": found, "sampling": asdict(self.sampling)}

    def header(self, split: str, ensemble: AsyncEnsemble, tandem: Tandem) -> dict[str, Any]:
        """The settings that a split is collected with, except its questions."""
        header = collect.settings(tandem, ensemble.engines, self.task.name, split, self.sampling)
        if about := self.task.about(split):
            header["questions"] = about
        return as_json(header | self.deciding(ensemble.engines))

    def items(self, split: str, limit: int | None = None) -> list[Item]:
        """The questions of a split."""
        return list(self.task.items(split, limit))

    def collected(self, split: str) -> Collected:
        """A collected split of this experiment.

        Raises:
            ArtifactError: it is missing, damaged, or holds what does not belong to the split.
        """
        data, where = Collected.load(self.folder / "collected", split), f"{self.folder}/collected/{split}"
        lacking = [name for name in HEADER if name not in data.header]
        lacking += [
            f"run of {row.id}: mentor_concise" for row in data.rows if "mentor_concise" not in row.runs
        ]
        if lacking:
            raise ArtifactError(f"{where} is damaged (it has no {lacking[0]}): collect it again (--force)")
        if data.header["task"] != self.task.name:
            raise ArtifactError(f"{where} is of the task {data.header['task']}, not {self.task.name}")
        return self._with_hashes(data, split)

    def collected_items(self, collected: Collected, limit: int | None = None) -> list[Item]:
        """The questions of the test split that were collected.

        Raises:
            ArtifactError: a question was changed since it was collected.
        """
        known = {row.id: row.question for row in collected.rows}
        found = (item for item in self.task.items("test", limit) if item.id in known)
        items = list(islice(found, len(known)))
        for item in items:
            if known[item.id] not in ("", splits.digest(item)):
                raise ArtifactError(
                    f"{item.id} was changed since it was collected: collect it again (--force)"
                )
        return items

    def learning(self, split: str) -> Collected:
        """A collected split to train or to choose on, without the questions of later splits.

        Where `calibration` is a part of `train` (public benchmarks), train leaves its questions out.

        Raises:
            ArtifactError: as `collected`; or it is a copy of the test.
        """
        data = self.collected(split)
        if split == "train":
            data = self.without_calibration(data)
        keys, where = [row.key for row in data.rows], f"{self.folder}/collected/{split}"
        return data.part(splits.unshared(keys, self.questions("test"), where, "test"))

    def without_calibration(self, data: Collected) -> Collected:
        """The collected questions that are not for calibration."""
        if "calibration" not in self.task.splits:
            return data
        held = {*self._digests("calibration"), *self.questions("calibration")}
        return data.part([at for at, row in enumerate(data.rows) if not {row.id, row.key} & held])

    def questions(self, split: str) -> set[str]:
        """Hashes of a split's questions: the collected ones, else the benchmark's own where at hand."""
        if split not in self.task.splits:
            return set()
        if self.has_collected(split):
            data = Collected.load(self.folder / "collected", split)
            if data.header.get("task") == self.task.name:
                return {row.key for row in self._with_hashes(data, split).rows}
        try:
            return set(self._digests(split).values())
        except ConfigError:
            return set()

    def has_collected(self, split: str) -> bool:
        """Whether a split is collected completely."""
        return (self.folder / "collected" / f"{split}.jsonl.gz").exists()

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

    def check_drafts(self, data: Collected, tandem: Tandem) -> None:
        """Check that a split was collected with the draft of this Tandem, if it has one.

        Raises:
            ArtifactError: it was not.
        """
        wanted, found = tandem.drafting_by, data.header.get("draft")
        if wanted and found != list(wanted):
            was = f"with a draft judged by {found[0]!r}" if found else "without a `draft`"
            where = f"{self.folder}/collected/{data.header['split']}"
            raise ArtifactError(
                f"{where} was collected {was}, not by {wanted[0]!r}: `ensemblehub collect` adds it"
            )

    def _with_hashes(self, data: Collected, split: str) -> Collected:
        """The data with the hash of every question, checked against the benchmark's split where at hand."""
        try:
            known = self._digests(split, len(data.rows))
        except ConfigError:  # the benchmark's file is elsewhere
            return data
        for row in data.rows:
            if row.id not in known or row.question not in ("", known[row.id]):
                raise ArtifactError(
                    f"{self.folder}/collected/{split} holds a question that is none of {split}, or was "
                    f"changed since: {row.id}; collect it again (--force)"
                )
        return replace(data, rows=[replace(row, question=known[row.id]) for row in data.rows])

    def _digests(self, split: str, n: int | None = None) -> dict[str, str]:
        """Hashes of the benchmark's questions, by id: the first `n` of a split."""
        if (split, n) not in self._hashed:
            self._hashed[split, n] = {item.id: splits.digest(item) for item in self.items(split, n or None)}
        return self._hashed[split, n]


def deciding(
    config: Config, engines: Sequence[Engine], served: Mapping[str, str] | None = None
) -> dict[str, dict[str, Any]]:
    """The models and their options that decide what the engines write, by engine.

    Args:
        served: Models by engine, for engines whose address changes.
    """
    specs, served = {spec.name: spec for spec in config.members}, served or {}
    found: dict[str, dict[str, Any]] = {}
    for engine in engines:
        options = config.deciding(specs[engine.name])
        if engine.name in served:
            options.pop("base_url", None)
        if engine.model != engine.name:  # which says more than the path that leads there
            options.pop("path", None)
        found[engine.name] = {"model": served.get(engine.name, engine.model), **options}
    return found


def as_json(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as they are when they come back from a file."""
    known: dict[str, Any] = json.loads(json.dumps(settings, default=str))
    return known


def differing_settings(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """What differs; data from before some settings were recorded is taken to have been made with the same.

    Scores of drafts are more than is wanted without a draft.
    """
    if "draft" not in wanted:
        found = {key: value for key, value in found.items() if key != "draft"}
    known = {key: value for key, value in wanted.items() if key in found or key not in NEWER}
    return list(differences(found, known))
