"""The inputs of a table (a pair, a benchmark, a folder), and the runs that every table starts with.

A `Study` gives pipelines; what they collect is kept under `folder` and never made twice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ensemblehub import builtin, registry
from ensemblehub.config import Config
from ensemblehub.config.old_keys import current
from ensemblehub.config.sections import ModelSpec
from ensemblehub.errors import ArtifactError, ConfigError, did_you_mean
from ensemblehub.lab.pipeline import report
from ensemblehub.lab.pipeline.calibration import Objective
from ensemblehub.lab.pipeline.evaluate import TandemRun
from ensemblehub.lab.pipeline.experiment import with_aggregation, with_experiment
from ensemblehub.lab.pipeline.pipeline import Pipeline
from ensemblehub.lab.pipeline.records import Collected
from ensemblehub.lab.pipeline.report import MethodRuns
from ensemblehub.tandem.artifact import load_judge

BUILTIN = "builtin"
Edit = Callable[[Config], Config]
PAIRS: dict[str, Path] = {
    BUILTIN: builtin.CONFIG,
    "builtin-guest": builtin.CONFIG,
    **builtin.PAIRS,
}
# What stands for a public benchmark where the built-in pair, which knows no other problems, is asked.
STANDS_FOR = {"humaneval": "builtin_code", "humaneval_plus": "builtin_code", "mbpp": "builtin_code"}


@dataclass(frozen=True)
class Study:
    """What one table is made from.

    Attributes:
        pair: a name in `PAIRS`, or a YAML file of one's own that runs Tandem.
        task: the benchmark; with a built-in pair, a public one means the built-in of its kind.
        out: folder under which everything is kept, one folder for each benchmark and pair.
        data: file or folder of the benchmark, where it is not to be found.
        judge: an artifact's folder or a rule that is used as it is; by default one is trained.
        limit: only so many questions of every split.
        max_tokens: of an answer; the pair's own by default.
        changes: changes to the pair's file, as in `--set`; what the other fields say wins over them.
        force: start anew, even over data made with other settings.
    """

    pair: str
    task: str
    out: Path
    data: Path | None = None
    judge: str | None = None
    limit: int | None = None
    max_tokens: int | None = None
    changes: tuple[str, ...] = ()
    force: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "pair", current("pair", self.pair))

    @property
    def is_builtin(self) -> bool:
        """Whether the pair ships with the package."""
        return self.pair.startswith(BUILTIN)

    @property
    def benchmark(self) -> str:
        """The benchmark whose questions are asked."""
        if not self.is_builtin or self.task.startswith(BUILTIN):
            return self.task
        return STANDS_FOR.get(self.task, "builtin_math")

    @property
    def folder(self) -> Path:
        """Where what belongs to this study is kept."""
        name = self.benchmark if self.pair == BUILTIN else f"{self.benchmark}_{Path(self.pair).stem}"
        return self.out / (f"{name}_{self.max_tokens}" if self.max_tokens else name)

    def pipeline(self, part: str = "", *edits: Edit) -> Pipeline:
        """The pipeline over the pair's file, edited; what it writes lies in `folder`/`part`.

        The study's own settings give way to `changes`, and both to `edits`.

        Raises:
            ConfigError: no such pair, or the file is wrong.
        """
        folder = self.folder / part
        config = Config.read(self._file(), self.changes)
        own = {"task": self.benchmark, "results": folder, "data": self.data}
        own = {key: value for key, value in own.items() if value and not self._changes(f"experiment.{key}")}
        config = with_experiment(config, **own)
        if self.pair == "builtin-guest":
            config = with_model(config, 1, path="builtin:guest")
        if self.max_tokens and not self._changes("ensemble.generation.max_tokens"):
            generation = config.ensemble.generation.model_copy(update={"max_tokens": self.max_tokens})
            section = config.ensemble.model_copy(update={"generation": generation})
            config = config.model_copy(update={"ensemble": section})
        if not self._changes("ensemble.output_aggregation_params.judge"):
            config = with_aggregation(config, judge=self.judge or str(folder / "judge"))
        for edit in edits:
            config = edit(config)
        check_keys(config)
        return Pipeline(config)

    def _changes(self, key: str) -> bool:
        """Whether `changes` set the key."""
        return any(change.partition("=")[0].strip() == key for change in self.changes)

    def _file(self) -> Path:
        if self.pair not in PAIRS and not self.pair.endswith((".yaml", ".yml")):
            raise ConfigError(f"{did_you_mean(self.pair, PAIRS, 'pair')}; or a YAML file")
        return PAIRS.get(self.pair, Path(self.pair))

    def of(self, **changes: Any) -> Study:
        """The same study with something else in place."""
        return replace(self, **changes)


@dataclass(frozen=True)
class StudyRuns:
    """A pair's collected test split and Tandem's live runs over it."""

    pipeline: Pipeline
    test: Collected
    runs: list[TandemRun]

    def methods(self) -> list[MethodRuns]:
        """Every method of the main table, Tandem last."""
        return report.methods(self.test, self.runs)

    @property
    def steps(self) -> list[int]:
        """Needed steps of every question."""
        return [row.steps for row in self.test.rows]

    @property
    def highest(self) -> str:
        """The fixed hand-off at the highest level, by its name in tables."""
        return f"fixed_{list(self.test.levels)[-1]}"

    @property
    def where(self) -> str:
        """The conditions, for a note."""
        return report.notes(self.test, None)[0]


def with_model(config: Config, number: int, **options: Any) -> Config:
    """The configuration with some options of one of its models replaced."""
    specs = list(config.model_specs)
    specs[number] = ModelSpec.model_validate(specs[number].model_dump(exclude_unset=True) | options)
    return config.model_copy(update={"model_specs": specs})


def check_keys(config: Config) -> None:
    """Look for the key of every API, before anything is loaded or fetched.

    Raises:
        ConfigError: the environment variable is not set.
    """
    for spec in config.model_specs:
        if spec.engine in ("openai", "api"):
            from ensemblehub.generators.openai.endpoint import key_of
            from ensemblehub.generators.openai.options import Address, OpenAIOptions

            options: OpenAIOptions = registry.build(OpenAIOptions, spec.options, f"model {spec.name!r}")
            key_of(Address.of(options).key_variable, f"model {spec.name!r}")


def collected(study: Study, pipeline: Pipeline, split: str) -> Collected:
    """A split of the study, collected unless it is there."""
    return pipeline.collect(split, study.limit, study.force)


def trained(study: Study, pipeline: Pipeline) -> None:
    """The study's own judge, trained on `train` and calibrated on `calibration`,
    unless it is there or one is given.
    """
    if study.judge is None and (study.force or not _calibrated(pipeline)):
        pipeline.objective()  # refused before anything is collected
        collected(study, pipeline, "train")
        collected(study, pipeline, "calibration")
        pipeline.train()
        pipeline.calibrate()


def _calibrated(pipeline: Pipeline) -> bool:
    """Whether the judge is there, of the kind that is asked for,
    and calibrated for the aim that is asked for.
    """
    if not (pipeline.judge_folder / "judge.json").exists():
        return False
    artifact, asked = load_judge(pipeline.judge_folder), pipeline.settings
    made = artifact.data.get("calibrated")
    aim = made.get("aim") if isinstance(made, dict) else None
    kind, preset = artifact.judge.kind, artifact.metrics.get("preset", asked.preset)
    return (kind, preset, aim) == (asked.judge, asked.preset, str(Objective.parse(asked.aim)))


def study_runs(study: Study, part: str = "", *edits: Edit) -> StudyRuns:
    """Collect, train, calibrate and run live: what most tables start with.

    Raises:
        ArtifactError: there is not one question in the test split.
    """
    pipeline = study.pipeline(part, *edits)
    test = collected(study, pipeline, "test")
    if not test.rows:
        raise ArtifactError(f"{study.benchmark} has no test questions")
    trained(study, pipeline)
    runs = pipeline.run_tandem(test, pipeline.collected_items(test), "runs", study.force)
    return StudyRuns(pipeline, test, runs)
