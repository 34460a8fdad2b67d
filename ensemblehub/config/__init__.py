"""One YAML file, validated at the edge.

Knows the shape of the file, the reference toolkit's own shape included, and says where it is wrong, with file,
line and the nearest name.  Knows no engine and no strategy: their options are checked against their own
dataclasses when they are built.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, Field, PrivateAttr, ValidationError, field_validator, model_validator

from ensemblehub import registry
from ensemblehub.config.sections import (
    NO_EFFECT,
    DebugSection,
    EnsembleSection,
    ExperimentSection,
    ModelSpec,
    ModelStats,
    RewardSpec,
    Section,
    ServerSection,
    StrategySpec,
    named,
)
from ensemblehub.config.yaml_file import YamlFile, parsed
from ensemblehub.errors import ConfigError, did_you_mean

log = logging.getLogger(__name__)
WHERE_IT_RUNS = {  # and how patiently; not what it says
    "device",
    "max_memory",
    "num_gpus",
    "threads",
    "batch_rows",
    "batch",
    "n_gpu_layers",
    "prefix_cache_tokens",
    "tensor_parallel_size",
    "pipeline_parallel_size",
    "gpu_memory_utilization",
    "lookahead",
    "api_key_env",
    "patience",
    "concurrency",
}
DEFAULT = "ensemble"  # the name of the ensemble that is not given one


class Config(Section):
    """The whole file.

    Attributes:
        ensemble: the one that a command uses, and that a server calls `ensemble`.
        ensembles: more of them, by the name under which a server offers them, over the same models.
        engine_options: options by engine kind, for models that do not give them themselves.
    """

    model_specs: list[ModelSpec] = Field(min_length=1)
    reward_specs: list[RewardSpec] = Field(default_factory=list)
    ensemble: EnsembleSection = Field(default_factory=lambda: EnsembleSection())
    ensembles: dict[str, EnsembleSection] = Field(default_factory=dict)
    engine_options: dict[str, dict[str, Any] | None] = Field(default_factory=dict)
    model_stats: ModelStats = Field(default_factory=lambda: ModelStats())
    experiment: ExperimentSection = Field(default_factory=lambda: ExperimentSection())
    server: ServerSection = Field(default_factory=lambda: ServerSection())
    debug: DebugSection = Field(default_factory=lambda: DebugSection())
    _file: YamlFile | None = PrivateAttr(default=None)
    _place: tuple[str, ...] = PrivateAttr(default=("ensemble",))

    @field_validator("model_specs", mode="after")
    @classmethod
    def _models(cls, specs: list[ModelSpec]) -> list[ModelSpec]:
        for spec in specs:
            if "name" not in spec.model_fields_set and "path" not in spec.extra:
                raise ValueError("a model needs a path or a name")
        return named(specs, "models")

    @model_validator(mode="after")
    def _names(self) -> Config:
        models = [spec.name for spec in self.model_specs]
        for name in self.ensembles:
            if name in (*models, DEFAULT) or not name:
                raise ValueError(
                    f"ensembles: {name!r} is the name of a model, or of the one under `{DEFAULT}`"
                )
            if self.ensembles[name].reward_specs:
                raise ValueError(f"ensembles: {name}: reward_specs stand at top level or under `{DEFAULT}`")
        for section in (self.ensemble, *self.ensembles.values()):
            for model in section.models:
                if model not in models:
                    raise ValueError(did_you_mean(model, models, "model"))
        return self

    @model_validator(mode="after")
    def _all_scorers(self) -> Config:
        scorers = named([*self.reward_specs, *self.ensemble.reward_specs], "scorers")
        object.__setattr__(self, "reward_specs", scorers)
        object.__setattr__(self, "ensemble", self.ensemble.model_copy(update={"reward_specs": []}))
        return self

    def named(self, name: str) -> Config:
        """The configuration whose `ensemble` is the one called `name`.

        Raises:
            ConfigError: there is none.
        """
        if name == DEFAULT:
            return self
        if name not in self.ensembles:
            raise ConfigError(did_you_mean(name, [DEFAULT, *self.ensembles], "ensemble"))
        config = self.model_copy(update={"ensemble": self.ensembles[name]})
        config._place = ("ensembles", name)
        return config

    @property
    def members(self) -> list[ModelSpec]:
        """The models of the ensemble, in its order."""
        by_name = {spec.name: spec for spec in self.model_specs}
        return [by_name[name] for name in self.ensemble.models] or self.model_specs

    @property
    def selection(self) -> StrategySpec:
        """The selection strategy."""
        section, stats = self.ensemble, self.model_stats.model_dump(exclude_none=True)
        if section.model_selection_params.keys() & {"stats_file", "stats"}:
            stats = {}
        used = _known(registry.SELECTIONS, section.model_selection_method, stats)
        return StrategySpec(
            method=section.model_selection_method, params=used | section.model_selection_params
        )

    @property
    def aggregation(self) -> StrategySpec:
        """The aggregation strategy."""
        section = self.ensemble
        used = _known(registry.AGGREGATIONS, section.output_aggregation_method, self._wide)
        if section.output_aggregation_method == "progressive":
            used |= section.progressive  # so that unknown keys are found
        return StrategySpec(
            method=section.output_aggregation_method, params=used | section.output_aggregation_params
        )

    @property
    def _wide(self) -> dict[str, Any]:
        """The aggregation's options that the reference writes beside its method."""
        wide = {"max_rounds": self.ensemble.max_rounds, "score_threshold": self.ensemble.score_threshold}
        return {key: value for key, value in wide.items() if value is not None}

    def options(self, spec: ModelSpec) -> dict[str, Any]:
        """The options of a model's engine: its own, then those of all models on that engine."""
        shared = dict(self.engine_options.get(spec.engine) or {})
        if spec.engine == "hf":
            if self.debug.enable_thinking is not None:
                shared.setdefault("enable_thinking", self.debug.enable_thinking)
            if shared.pop("use_eager_attention", False):
                shared.setdefault("attn_implementation", "eager")
        return {key: value for key, value in shared.items() if key not in NO_EFFECT} | spec.options

    def deciding(self, spec: ModelSpec) -> dict[str, Any]:
        """The options of a model's engine that decide what it says, not where and how patiently it runs."""
        return {key: value for key, value in self.options(spec).items() if key not in WHERE_IT_RUNS}

    @property
    def notes(self) -> list[str]:
        """What the file says in vain, a line each: keys that cannot do anything, or not with these strategies."""
        return [
            f"{self._at(*where)}{'.'.join(map(str, where))} has no effect: {why}"
            for where, why in self._idle()
        ]

    def _idle(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        for key, why in NO_EFFECT.items():
            said = [index for index, spec in enumerate(self.model_specs) if key in spec.extra]
            if said:
                yield ("model_specs", said[0], key), why
        for engine, options in self.engine_options.items():
            if engine not in {spec.engine for spec in self.model_specs}:
                yield ("engine_options", engine), f"no model runs on the engine {engine!r}"
            for key in NO_EFFECT.keys() & (options or {}).keys():
                yield ("engine_options", engine, key), NO_EFFECT[key]
        section, wide = self.ensemble, self._wide
        chosen, method = section.model_selection_method, section.output_aggregation_method
        for key in wide.keys() - _known(registry.AGGREGATIONS, method, wide).keys():
            yield ("ensemble", key), f"the aggregation {method!r} has no such option"
        if section.progressive and method != "progressive":
            yield ("ensemble", "progressive"), f"the aggregation is {method!r}"
        stats = self.model_stats.model_dump(exclude_none=True)
        for key in stats.keys() - _known(registry.SELECTIONS, chosen, stats).keys():
            yield ("model_stats", key), f"the selection {chosen!r} has no such option"

    def warn(self) -> None:
        """Warn of every note once."""
        for note in self.notes:
            _warn(note)

    def _at(self, *where: str | int) -> str:
        if self._file is None:
            return ""
        if where[0] == "ensemble":
            where = (*self._place, *where[1:])
        if where[0] == "reward_specs" and where[0] not in self._file.data:
            where = ("ensemble", *where)
        return f"{self._file.at(*where)}: "

    @contextmanager
    def within(self, *where: str | int) -> Iterator[None]:
        """Errors about what stands at `where` say its file and line."""
        try:
            yield
        except ConfigError as error:
            raise type(error)(f"{self._at(*where, *error.option)}{error}") from error

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Config:
        """Validate what a YAML file would hold.

        Raises:
            ConfigError: One line: what is wrong, with the nearest name for an unknown key.
        """
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise ConfigError(_explain(None, error)) from error

    @classmethod
    def read(cls, path: Path, changes: Sequence[str] = ()) -> Config:
        """Read a YAML file.

        Args:
            changes: `key.key=value`, applied over the file; the value is YAML, a list is indexed by number.

        Raises:
            ConfigError: one line: file, line, what is wrong, and the nearest name for an unknown key.
        """
        file = YamlFile.read(path.expanduser())
        for change in changes:
            _apply(file.data, change)
        try:
            config = cls.model_validate(file.data)
        except ValidationError as error:
            raise ConfigError(_explain(file, error)) from error
        object.__setattr__(config, "_file", file)
        return config


def _known(table: Mapping[str, str], method: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `options` that the strategy has; imports it only where there are any."""
    if not options:
        return {}
    fields = {field.name for field in dataclasses.fields(registry.lookup(table, method, "method"))}
    return {key: value for key, value in options.items() if key in fields}


@lru_cache(maxsize=1024)
def _warn(note: str) -> None:
    log.warning(note)


def _apply(data: Any, change: str) -> None:
    """Set one value in the file's data."""
    where, equals, text = change.partition("=")
    *parents, last = [int(part) if part.isdigit() else part for part in where.split(".")]
    try:
        if not equals:
            raise ValueError("it has no =")
        _, value = parsed(text)
        for part in parents:
            if isinstance(data, dict) and data.get(part) is None:
                data[part] = {}
            data = data[part]
        data[last] = value
    except (ValueError, LookupError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot set {change!r} (expected KEY.KEY=VALUE): {error}") from error


def _explain(file: YamlFile | None, error: ValidationError) -> str:
    first = min(
        error.errors(), key=lambda one: one["type"] != "extra_forbidden"
    )  # a mistyped key explains most
    where = [part for part in first["loc"] if isinstance(part, str | int)]
    at = f"{file.at(*where)}: " if file else ""
    if first["type"] == "extra_forbidden":
        return f"{at}{did_you_mean(str(where[-1]), _keys(where[:-1]), 'key')}"
    reason = first["msg"].removeprefix("Value error, ")
    return f"{at}{'.'.join(map(str, where))}: {reason}"


def _keys(where: Iterable[str | int]) -> list[str]:
    """The keys of a section."""
    section: type[BaseModel] = Config
    for part in where:
        inner = section.model_fields[str(part)].annotation if part in section.model_fields else None
        for kind in (inner, *get_args(inner)):  # get_args: the values of a mapping
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                section = kind
    return list(section.model_fields)
