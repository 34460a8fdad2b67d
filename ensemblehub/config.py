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
from typing import Any, ClassVar, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, field_validator, model_validator

from ensemblehub import registry, studio
from ensemblehub.errors import ConfigError, did_you_mean
from ensemblehub.schema import Sampling
from ensemblehub.yaml_file import YamlFile

log = logging.getLogger(__name__)
LONGEST = 16384  # tokens of an answer whose length nobody limits
NO_EFFECT = {"padding_side": "nothing is padded", "low_cpu_mem": "weights are always loaded so"}


class _Section(BaseModel):
    """A part of the file whose keys are all known; `key:` without a value is the default."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())
    nullable: ClassVar[frozenset[str]] = frozenset()  # keys whose null is not their default

    @model_validator(mode="before")
    @classmethod
    def _default(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        return {
            key: data[key] for key in data if data[key] is not None or key not in cls.model_fields.keys() - cls.nullable
        }


class _Spec(BaseModel):
    """One model or scorer; keys besides the named ones are its own options.

    Attributes:
        name: how bills and choices call it; its path, or its kind, where omitted.
    """

    model_config = ConfigDict(extra="allow", frozen=True, protected_namespaces=())
    name: str = ""
    engine: str = "hf"

    @model_validator(mode="before")
    @classmethod
    def _default(cls, data: Any) -> Any:
        """Keys of the reference are as if omitted where they are null."""
        keys = {
            "name",
            "engine",
            "weight",
            "path",
            "device",
            "max_memory",
            "quantization",
            "num_gpus",
            "enable_thinking",
        }
        if not isinstance(data, Mapping):
            return data
        return {key: data[key] for key in data if data[key] is not None or key not in keys}

    def model_post_init(self, _: Any) -> None:
        if not self.name:
            object.__setattr__(self, "name", str(self.extra.get("path", self.engine)))

    @property
    def extra(self) -> dict[str, Any]:
        """The keys besides the named ones, as they were given."""
        return self.model_extra or {}

    @property
    def options(self) -> dict[str, Any]:
        """Its own options; `path: studio:NAME` stands for a model that ships."""
        options = {key: value for key, value in self.extra.items() if key not in NO_EFFECT}
        if "path" in options:
            options["path"] = studio.resolve(str(options["path"]))
        return options


class ModelSpec(_Spec):
    """One engine."""


class RewardSpec(_Spec):
    """One scorer.

    Attributes:
        engine: its kind: `perplexity` (the reference's `hf_gen`), `reward_model` (`hf_rm`) or `api`.
        weight: its share in the weighted mean.
    """

    engine: str = "hf_rm"
    weight: float = Field(default=1.0, gt=0)


SpecT = TypeVar("SpecT", bound=_Spec)


def _named(specs: Sequence[SpecT], what: str) -> list[SpecT]:
    """The specs, those without a name of their own numbered where they would share one."""
    taken = [spec.name for spec in specs if "name" in spec.model_fields_set]
    if len(set(taken)) < len(taken):
        raise ValueError(f"two {what} share a name: {', '.join(taken)}")
    named: list[SpecT] = []
    for spec in specs:
        name, number = spec.name, 1
        while "name" not in spec.model_fields_set and name in taken:
            number += 1
            name = f"{spec.name}-{number}"
        taken.append(name)
        named.append(spec if name == spec.name else spec.model_copy(update={"name": name}))
    return named


class StrategySpec(_Section):
    """A strategy by name and its options."""

    method: str
    params: dict[str, Any] = Field(default_factory=dict)


class Generation(_Section):
    """Defaults of a request.

    Attributes:
        max_tokens: tokens of the answer; null: half of the shortest context among the models, at most 16,384.
        temperature: 0 is greedy.
        do_sample: false is greedy whatever the temperature; true draws, at temperature 1.0 where none is given.
        stop_strings, stop_sequences: strings that end the answer and are not part of it.
        extract_after: what is kept of the answer is the text behind the last of these marks.
    """

    nullable: ClassVar[frozenset[str]] = frozenset({"max_tokens"})

    max_tokens: int | None = Field(default=512, ge=1)
    temperature: float = Field(default=0.0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0)
    repetition_penalty: float = Field(default=1.0, gt=0)
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    do_sample: bool | None = None
    stop_strings: list[str] = Field(default_factory=list)
    stop_sequences: list[str] = Field(default_factory=list)
    extract_after: list[str] = Field(default_factory=list)
    seed: int | None = None

    @field_validator("stop_strings", "stop_sequences", "extract_after", mode="before")
    @classmethod
    def _list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _draws(self) -> Generation:
        if self.do_sample and "temperature" in self.model_fields_set and self.temperature == 0:
            raise ValueError("do_sample: true draws tokens, which needs a temperature above 0")
        return self

    def sampling(self, context: int = 0) -> Sampling:
        """The request's sampling.

        Args:
            context: the shortest among the models, in tokens; 0 where unknown.
        """
        warm = 1.0 if self.do_sample and "temperature" not in self.model_fields_set else self.temperature
        return Sampling(
            max_tokens=self.max_tokens or min(LONGEST, max(1, context // 2) if context else LONGEST),
            temperature=0.0 if self.do_sample is False else warm,
            top_p=self.top_p,
            top_k=self.top_k,
            stop=(*self.stop_strings, *self.stop_sequences),
            seed=self.seed,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            repetition_penalty=self.repetition_penalty,
        )

    def extracted(self, text: str) -> str:
        """What is kept of an answer: the text behind the last mark of `extract_after`; all of it without one."""
        ends = [at + len(mark) for mark in self.extract_after if mark and (at := text.rfind(mark)) >= 0]
        return text[max(ends) :].strip() if ends else text


class EnsembleSection(_Section):
    """Which strategies, and how text is generated.

    Attributes:
        max_rounds, score_threshold, progressive: options of the aggregation that the reference writes here; those
            among `output_aggregation_params` go before them.
        reward_specs: scorers, as at top level.
    """

    model_selection_method: str = "all"
    model_selection_params: dict[str, Any] = Field(default_factory=dict)
    output_aggregation_method: str = "single"
    output_aggregation_params: dict[str, Any] = Field(default_factory=dict)
    score_normalization: Literal["none", "minmax", "standard"] = "none"
    reward_specs: list[RewardSpec] = Field(default_factory=list)
    max_rounds: int | None = None
    score_threshold: float | None = None
    progressive: dict[str, Any] = Field(default_factory=dict)
    generation: Generation = Field(default_factory=lambda: Generation())


class ServerSection(_Section):
    """Where a server listens."""

    host: str = "0.0.0.0"
    port: int = Field(default=8000, ge=0, le=65535)


class DebugSection(_Section):
    """What to watch.

    Attributes:
        show_input_details, show_output_details: print every request, and every answer with its bill, on standard
            error.
        enable_thinking: of the chat template, for `hf` models that do not say themselves.
        save_results: keep what a server answers.
    """

    show_input_details: bool = False
    show_output_details: bool = False
    enable_thinking: bool | None = None
    save_results: bool = False


class ModelStats(_Section):
    """Statistics of the models, for a selection that uses them and names none."""

    stats_file: str | None = None
    stats: dict[str, Any] | None = None


class ExperimentSection(_Section):
    """What the pipeline runs on (`collect | train | calibrate | evaluate | report`)."""

    task: str = "studio_math"
    results: Path = Path("results/studio_math")
    judge: Literal["mlp", "logistic"] = "mlp"
    preset: Literal["default", "paper"] = "default"
    aim: str = "max-accuracy"
    concurrency: int = Field(default=32, ge=1)


class Config(_Section):
    """The whole file.

    Attributes:
        engine_options: options by engine kind, for models that do not give them themselves.
    """

    model_specs: list[ModelSpec] = Field(min_length=1)
    reward_specs: list[RewardSpec] = Field(default_factory=list)
    ensemble: EnsembleSection = Field(default_factory=lambda: EnsembleSection())
    engine_options: dict[str, dict[str, Any] | None] = Field(default_factory=dict)
    model_stats: ModelStats = Field(default_factory=lambda: ModelStats())
    experiment: ExperimentSection = Field(default_factory=lambda: ExperimentSection())
    server: ServerSection = Field(default_factory=lambda: ServerSection())
    debug: DebugSection = Field(default_factory=lambda: DebugSection())
    _file: YamlFile | None = PrivateAttr(default=None)

    @field_validator("model_specs", mode="after")
    @classmethod
    def _models(cls, specs: list[ModelSpec]) -> list[ModelSpec]:
        for spec in specs:
            if "name" not in spec.model_fields_set and "path" not in spec.extra:
                raise ValueError("a model needs a path or a name")
        return _named(specs, "models")

    @model_validator(mode="after")
    def _all_scorers(self) -> Config:
        scorers = _named([*self.reward_specs, *self.ensemble.reward_specs], "scorers")
        object.__setattr__(self, "reward_specs", scorers)
        object.__setattr__(self, "ensemble", self.ensemble.model_copy(update={"reward_specs": []}))
        return self

    @property
    def selection(self) -> StrategySpec:
        """The selection strategy."""
        section, stats = self.ensemble, self.model_stats.model_dump(exclude_none=True)
        if section.model_selection_params.keys() & {"stats_file", "stats"}:
            stats = {}
        used = _known(registry.SELECTIONS, section.model_selection_method, stats)
        return StrategySpec(method=section.model_selection_method, params=used | section.model_selection_params)

    @property
    def aggregation(self) -> StrategySpec:
        """The aggregation strategy."""
        section = self.ensemble
        used = _known(registry.AGGREGATIONS, section.output_aggregation_method, self._wide)
        if section.output_aggregation_method == "progressive":
            used |= section.progressive  # so that unknown keys are found
        return StrategySpec(method=section.output_aggregation_method, params=used | section.output_aggregation_params)

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

    @property
    def notes(self) -> list[str]:
        """What the file says in vain, a line each: keys that cannot do anything, or not with these strategies."""
        return [f"{self._at(*where)}{'.'.join(map(str, where))} has no effect: {why}" for where, why in self._idle()]

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
        if self.debug.save_results:
            yield ("debug", "save_results"), "`ensemblehub infer` always saves, and there is no server yet"
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
    def read(cls, path: Path, changes: Sequence[str] = ()) -> Config:
        """Read a YAML file.

        Args:
            changes: `key.key=value`, applied over the file; the value is YAML, a list is indexed by number.

        Raises:
            ConfigError: one line: file, line, what is wrong, and the nearest name for an unknown key.
        """
        file = YamlFile.read(path)
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
        value = yaml.safe_load(text)
        for part in parents:
            if isinstance(data, dict) and data.get(part) is None:
                data[part] = {}
            data = data[part]
        data[last] = value
    except (ValueError, LookupError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot set {change!r} (expected KEY.KEY=VALUE): {error}") from error


def _explain(file: YamlFile, error: ValidationError) -> str:
    first = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")  # a mistyped key explains most
    where = [part for part in first["loc"] if isinstance(part, str | int)]
    if first["type"] == "extra_forbidden":
        return f"{file.at(*where)}: {did_you_mean(str(where[-1]), _keys(where[:-1]), 'key')}"
    reason = first["msg"].removeprefix("Value error, ")
    return f"{file.at(*where)}: {'.'.join(map(str, where))}: {reason}"


def _keys(where: Iterable[str | int]) -> list[str]:
    """The keys of a section."""
    section: type[BaseModel] = Config
    for part in where:
        inner = section.model_fields[str(part)].annotation if part in section.model_fields else None
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            section = inner
    return list(section.model_fields)
