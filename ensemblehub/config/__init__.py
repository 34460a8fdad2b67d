"""The YAML file that names the models and how they work together, validated when it is read.

Errors have file, line and the nearest name.  Options of engines and strategies are checked against their own
dataclasses when they are built.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast, get_args

import yaml
from pydantic import BaseModel, Field, PrivateAttr, ValidationError, field_validator, model_validator

from ensemblehub.config.old_keys import MOVED, Place, Translation, translate, warn_once
from ensemblehub.config.sections import (
    DebugSection,
    EnsembleSection,
    ExperimentSection,
    ModelSpec,
    RewardSpec,
    Section,
    ServerSection,
    Spec,
    StrategySpec,
)
from ensemblehub.config.yaml_file import YamlFile, parsed
from ensemblehub.errors import ConfigError, did_you_mean

WHERE_IT_RUNS = {  # options that decide where and how patiently a model runs, not what it says
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
T = TypeVar("T")
SpecT = TypeVar("SpecT", bound=Spec)
DEFAULT = "ensemble"  # name of the ensemble under the key `ensemble`


class Config(Section):
    """The whole file.

    Attributes:
        model_specs: The models.
        reward_specs: The scorers.
        ensemble: The ensemble that commands use; a server calls it `ensemble`.
        ensembles: More ensembles over the same models, by the name under which a server offers them.
        engine_options: Defaults for the options of all models on an engine, by engine.
        sweep: Cells that `ensemblehub bench` makes of the file: changes by name, or lists of values by key.
    """

    model_specs: list[ModelSpec] = Field(min_length=1)
    reward_specs: list[RewardSpec] = Field(default_factory=list)
    ensemble: EnsembleSection = Field(default_factory=lambda: EnsembleSection())
    ensembles: dict[str, EnsembleSection] = Field(default_factory=dict)
    engine_options: dict[str, dict[str, Any] | None] = Field(default_factory=dict)
    sweep: dict[str, Any] = Field(default_factory=dict)
    experiment: ExperimentSection = Field(default_factory=lambda: ExperimentSection())
    server: ServerSection = Field(default_factory=lambda: ServerSection())
    debug: DebugSection = Field(default_factory=lambda: DebugSection())
    _file: YamlFile | None = PrivateAttr(default=None)
    _translation: Translation = PrivateAttr(default_factory=Translation)
    _place: tuple[str, ...] = PrivateAttr(default=("ensemble",))
    _shared: dict[Any, Any] = PrivateAttr(default_factory=dict)

    @field_validator("model_specs", mode="after")
    @classmethod
    def _models(cls, specs: list[ModelSpec]) -> list[ModelSpec]:
        for spec in specs:
            if "name" not in spec.model_fields_set and "path" not in spec.extra:
                raise ValueError("a model needs a path or a name")
        return _numbered(specs, "models")

    @field_validator("reward_specs", mode="after")
    @classmethod
    def _scorers(cls, specs: list[RewardSpec]) -> list[RewardSpec]:
        return _numbered(specs, "scorers")

    @field_validator("sweep", mode="after")
    @classmethod
    def _cells(cls, entries: dict[str, Any]) -> dict[str, Any]:
        lists = [isinstance(entry, list) and bool(entry) for entry in entries.values()]
        if not all(lists) and not all(isinstance(entry, dict) for entry in entries.values()):
            raise ValueError("give every key a list of values, or every cell a mapping of changes")
        return entries

    @model_validator(mode="after")
    def _names(self) -> Config:
        models = [spec.name for spec in self.model_specs]
        for name in self.ensembles:
            if name in (*models, DEFAULT) or not name:
                raise ValueError(
                    f"ensembles: {name!r} is the name of a model, or of the one under `{DEFAULT}`"
                )
        for section in (self.ensemble, *self.ensembles.values()):
            for model in section.models:
                if model not in models:
                    raise ValueError(did_you_mean(model, models, "model"))
        return self

    def named(self, name: str) -> Config:
        """The configuration with the ensemble called `name` as its `ensemble`.

        Raises:
            ConfigError: No ensemble has that name.
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
        section = self.ensemble
        return StrategySpec(method=section.model_selection_method, params=section.model_selection_params)

    @property
    def aggregation(self) -> StrategySpec:
        """The aggregation strategy."""
        section = self.ensemble
        return StrategySpec(
            method=section.output_aggregation_method, params=section.output_aggregation_params
        )

    def options(self, spec: ModelSpec) -> dict[str, Any]:
        """The options of a model's engine: the defaults of `engine_options`, then its own."""
        return (self.engine_options.get(spec.engine) or {}) | spec.options

    def deciding(self, spec: ModelSpec) -> dict[str, Any]:
        """The engine options of a model that affect its output, without those of where it runs."""
        return {key: value for key, value in self.options(spec).items() if key not in WHERE_IT_RUNS}

    def beside(self, folder: str, file: str) -> Path:
        """A folder named in the file: relative to the file's own folder where it holds `file` there, else to the
        working directory.
        """
        own = (self._file.path.parent if self._file else Path()) / folder
        return own if (own / file).exists() else Path(folder)

    def to_yaml(self) -> str:
        """What the file and its changes give, as the text of a file."""
        given = self.model_dump(exclude_unset=True, mode="json")
        return yaml.safe_dump(given, sort_keys=False, allow_unicode=True)

    @property
    def notes(self) -> list[str]:
        """Warnings for old names and for keys that have no effect, one line each."""
        return [f"{self._at(*place)}{text}" for place, text in (*self._translation.notes, *self._unused())]

    def _unused(self) -> Iterator[tuple[Place, str]]:
        for engine in self.engine_options.keys() - {spec.engine for spec in self.model_specs}:
            text = f"engine_options.{engine} has no effect: no model runs on the engine {engine!r}"
            yield ("engine_options", engine), text

        swapped = [index for index, spec in enumerate(self.model_specs) if spec.swap]
        if len(swapped) == 1:
            yield ("model_specs", swapped[0], "swap"), "swap has no effect: no other model swaps"

    def shared(self, make: Callable[[], T]) -> T:
        """The one result of `make` that all parts of this configuration share."""
        if make not in self._shared:
            self._shared[make] = make()
        return cast(T, self._shared[make])

    def warn(self) -> None:
        """Log each of `notes` once."""
        for note in self.notes:
            warn_once(note)

    def _at(self, *where: str | int) -> str:
        if self._file is None:
            return ""
        if where[0] == "ensemble":
            where = (*self._place, *where[1:])
        return f"{self._file.at(*self._translation.origin(where))}: "

    @contextmanager
    def within(self, *where: str | int) -> Iterator[None]:
        """Put file and line of the value at `where` before the errors that are raised."""
        try:
            yield
        except ConfigError as error:
            raise type(error)(f"{self._at(*where, *error.option)}{error}") from error

    @classmethod
    def read(
        cls, path: Path, changes: Sequence[str] = (), methods: Mapping[str, str] | None = None
    ) -> Config:
        """Read a YAML file.

        Args:
            changes: `key.key=value`, applied over the file; the value is YAML, a list is indexed by number.
            methods: Methods by strategy (`model_selection`, `output_aggregation`), applied over the changes;
                one that differs from the file's starts with its default options.

        Raises:
            ConfigError: one line: file, line, what is wrong, and the nearest name for an unknown key.
        """
        file = YamlFile.read(path.expanduser())
        for change in changes:
            _apply(file.data, change)
        for strategy, method in (methods or {}).items():
            _set_method(file.data, strategy, method)
        return cls._validated(file.data, file)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], changes: Sequence[str] = ()) -> Config:
        """Validate what a YAML file would hold, with `changes` as for `read`.

        Raises:
            ConfigError: One line: what is wrong, with the nearest name for an unknown key.
        """
        own = copy.deepcopy(dict(data))
        for change in changes:
            _apply(own, change)
        return cls._validated(own, None)

    @classmethod
    def _validated(cls, data: dict[str, Any], file: YamlFile | None) -> Config:
        translation = Translation()
        try:
            translate(data, translation)
            config = cls.model_validate(data)
        except (ConfigError, ValidationError) as error:
            where, text = _explained(error)
            at = f"{file.at(*translation.origin(where))}: " if file else ""
            raise ConfigError(at + text) from error
        config._file, config._translation = file, translation
        return config


def _numbered(specs: Sequence[SpecT], what: str) -> list[SpecT]:
    """The specs; those without a `name` get a number where they would share one."""
    taken = [spec.name for spec in specs if "name" in spec.model_fields_set]
    if len(set(taken)) < len(taken):
        raise ValueError(f"two {what} share a name: {', '.join(taken)}")
    numbered: list[SpecT] = []
    for spec in specs:
        if "name" not in spec.model_fields_set:
            names = (spec.name, *(f"{spec.name}-{number}" for number in range(2, len(specs) + 2)))
            name = next(name for name in names if name not in taken)
            taken.append(name)
            spec = spec.model_copy(update={"name": name})
        numbered.append(spec)
    return numbered


def _apply(data: Any, change: str) -> None:
    """Set one value in the file's data."""
    where, equals, text = change.partition("=")
    *parents, last = [int(part) if part.isdecimal() else part for part in where.split(".")]
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


def _set_method(data: dict[str, Any], strategy: str, method: str) -> None:
    """Set a strategy's method in the file's data, and drop the options of another one."""
    if data.get("ensemble") is None:
        data["ensemble"] = {}
    section, key = data["ensemble"], f"{strategy}_method"
    if not isinstance(section, dict):
        return  # refused by the validation
    if method != (section.get(key) or EnsembleSection.model_fields[key].default):
        section[key] = method
        section[f"{strategy}_params"] = {}


def _explained(error: ConfigError | ValidationError) -> tuple[Place, str]:
    """Place and text of the first error, a mistyped key before the errors that follow from it."""
    if isinstance(error, ConfigError):
        return error.option, str(error)
    first = min(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    where = tuple(part for part in first["loc"] if isinstance(part, str | int))
    if first["type"] == "extra_forbidden":
        return where, did_you_mean(str(where[-1]), _keys(where[:-1]), "key")
    reason = first["msg"].removeprefix("Value error, ")
    return where, f"{'.'.join(map(str, where))}: {reason}"


def _keys(where: Sequence[str | int]) -> list[str]:
    """The keys of a section."""
    section: type[BaseModel] = Config
    for part in where:
        inner = section.model_fields[str(part)].annotation if part in section.model_fields else None
        for kind in (inner, *get_args(inner)):  # get_args: the values of a mapping
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                section = kind
    return [*section.model_fields, *MOVED.get(".".join(map(str, where)), ())]
