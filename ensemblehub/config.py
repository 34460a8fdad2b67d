"""One YAML file, validated at the edge.

Knows the shape of the file and says where it is wrong, with file, line and the nearest name.  Knows no
engine and no strategy: their options are checked against their own dataclasses when they are built.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ensemblehub import studio
from ensemblehub.errors import ConfigError, did_you_mean


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class ModelSpec(BaseModel):
    """One engine; keys besides `name` and `engine` are that engine's own options."""

    model_config = ConfigDict(extra="allow", frozen=True, protected_namespaces=())
    name: str
    engine: str = "hf"

    @property
    def options(self) -> dict[str, Any]:
        """The engine's own options; `path: studio:NAME` stands for a model that ships."""
        options = dict(self.model_extra or {})
        if "path" in options:
            options["path"] = studio.resolve(str(options["path"]))
        return options


class StrategySpec(_Section):
    """A strategy by name and its options."""

    method: str
    params: dict[str, Any] = Field(default_factory=dict)


class Generation(_Section):
    """Defaults of a request."""

    max_tokens: int = Field(default=512, ge=1)
    temperature: float = Field(default=0.0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0)
    seed: int | None = None


class EnsembleSection(_Section):
    """Which strategies, and how text is generated."""

    model_selection_method: str = "all"
    model_selection_params: dict[str, Any] = Field(default_factory=dict)
    output_aggregation_method: str = "single"
    output_aggregation_params: dict[str, Any] = Field(default_factory=dict)
    generation: Generation = Field(default_factory=lambda: Generation())


class ExperimentSection(_Section):
    """What the pipeline runs on (`collect | train | calibrate | evaluate | report`)."""

    task: str = "studio_math"
    results: Path = Path("results/studio_math")
    judge: Literal["mlp", "logistic"] = "mlp"
    preset: Literal["default", "paper"] = "default"
    aim: str = "max-accuracy"
    concurrency: int = Field(default=32, ge=1)


class Config(_Section):
    """The whole file."""

    model_specs: list[ModelSpec] = Field(min_length=1)
    ensemble: EnsembleSection = Field(default_factory=lambda: EnsembleSection())
    experiment: ExperimentSection = Field(default_factory=lambda: ExperimentSection())

    @property
    def selection(self) -> StrategySpec:
        """The selection strategy."""
        return StrategySpec(method=self.ensemble.model_selection_method, params=self.ensemble.model_selection_params)

    @property
    def aggregation(self) -> StrategySpec:
        """The aggregation strategy."""
        return StrategySpec(
            method=self.ensemble.output_aggregation_method, params=self.ensemble.output_aggregation_params
        )

    @classmethod
    def read(cls, path: Path, changes: Sequence[str] = ()) -> Config:
        """Read a YAML file.

        Args:
            changes: `key.key=value`, applied over the file; the value is YAML, a list is indexed by number.

        Raises:
            ConfigError: one line: file, line, what is wrong, and the nearest name for an unknown key.
        """
        try:
            source = path.read_text(encoding="utf-8")
            data, node = yaml.safe_load(source), yaml.compose(source)
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror or error}") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            mark = getattr(error, "problem_mark", None)
            at = f":{mark.line + 1}" if mark else ""
            raise ConfigError(f"{path}{at}: not YAML: {getattr(error, 'problem', None) or error}") from error
        if not isinstance(data, dict):
            raise ConfigError(f"{path}: empty, or not a mapping; it needs at least `model_specs:`")
        for change in changes:
            _apply(data, change)
        try:
            config = cls.model_validate(data)
        except ValidationError as error:
            raise ConfigError(_explain(path, node, error)) from error
        names = [spec.name for spec in config.model_specs]
        if len(set(names)) < len(names):
            raise ConfigError(f"{path}: two models share a name: {', '.join(names)}")
        return config


def _apply(data: Any, change: str) -> None:
    """Set one value in the file's data."""
    where, equals, text = change.partition("=")
    *parents, last = [int(part) if part.isdigit() else part for part in where.split(".")]
    try:
        if not equals:
            raise ValueError("it has no =")
        value = yaml.safe_load(text)
        for part in parents:
            data = data[part] if isinstance(part, int) else data.setdefault(part, {})
        data[last] = value
    except (ValueError, LookupError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot set {change!r} (expected KEY.KEY=VALUE): {error}") from error


def _explain(path: Path, node: yaml.Node | None, error: ValidationError) -> str:
    first = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")  # a mistyped key explains most
    where = [part for part in first["loc"] if isinstance(part, str | int)]
    line = _line(node, where)
    if first["type"] == "extra_forbidden":
        return f"{path}:{line}: {did_you_mean(str(where[-1]), _known(where[:-1]), 'key')}"
    return f"{path}:{line}: {'.'.join(map(str, where))}: {first['msg']}"


def _known(where: list[str | int]) -> list[str]:
    section: type[BaseModel] = Config
    for part in where:
        inner = section.model_fields[part].annotation if part in section.model_fields else None
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            section = inner
    return list(section.model_fields)


def _line(node: yaml.Node | None, where: list[str | int]) -> int:
    line = 1
    for part in where:
        if isinstance(node, yaml.MappingNode):
            pairs: Mapping[str, tuple[yaml.Node, yaml.Node]] = {key.value: (key, value) for key, value in node.value}
            if part not in pairs:
                break
            key, node = pairs[str(part)]
            line = key.start_mark.line + 1
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
    return line
