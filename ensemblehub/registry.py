"""The lazy tables: a name in YAML, and the file that holds what it names.

Adding an engine, a strategy or a scorer is a file plus a line here.  Code outside this package is
named `package.module:Class` in YAML.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
import os
import re
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ensemblehub.errors import ConfigError, did_you_mean, one_line

ENGINES = {
    "api": "ensemblehub.generators.openai.engine:OpenAIEngine",
    "echo": "ensemblehub.generators.echo:EchoEngine",
    "hf": "ensemblehub.generators.hf.engine:HFEngine",
    "llama_cpp": "ensemblehub.generators.llama_cpp.engine:LlamaCppEngine",
    "numpy": "ensemblehub.generators.numpy.engine:NumpyEngine",
    "openai": "ensemblehub.generators.openai.engine:OpenAIEngine",
    "vllm": "ensemblehub.generators.vllm.engine:VLLMEngine",
}
SELECTIONS = {
    "all": "ensemblehub.ensemble_methods.model_selection.all:All",
    "learned": "ensemblehub.ensemble_methods.model_selection.learned:Learned",
    "model_judgment": "ensemblehub.ensemble_methods.model_selection.model_judgment:ModelJudgment",
    "random": "ensemblehub.ensemble_methods.model_selection.random:RandomSelection",
    "zscore": "ensemblehub.ensemble_methods.model_selection.zscore:ZScore",
}
AGGREGATIONS = {
    "best_of": "ensemblehub.ensemble_methods.output_aggregation.best_of:BestOf",
    "cascade": "ensemblehub.ensemble_methods.output_aggregation.cascade:Cascade",
    "distribution": "ensemblehub.ensemble_methods.output_aggregation.distribution:DistributionMixture",
    "early_exit": "ensemblehub.ensemble_methods.output_aggregation.early_exit:EarlyExit",
    "fuse": "ensemblehub.ensemble_methods.output_aggregation.fuse:Fuse",
    "gac": "ensemblehub.ensemble_methods.output_aggregation.gac:GaC",
    "hint": "ensemblehub.ensemble_methods.output_aggregation.hint:Hint",
    "loop": "ensemblehub.ensemble_methods.output_aggregation.loop:Loop",
    "plan_on_failure": "ensemblehub.ensemble_methods.output_aggregation.plan_on_failure:PlanOnFailure",
    "progressive": "ensemblehub.ensemble_methods.output_aggregation.progressive:Progressive",
    "random": "ensemblehub.ensemble_methods.output_aggregation.random:RandomAggregation",
    "review": "ensemblehub.ensemble_methods.output_aggregation.review:Review",
    "reward_based": "ensemblehub.ensemble_methods.output_aggregation.reward_based:RewardBased",
    "single": "ensemblehub.ensemble_methods.output_aggregation.single:Single",
    "stepwise": "ensemblehub.ensemble_methods.output_aggregation.stepwise:Stepwise",
    "switch": "ensemblehub.ensemble_methods.output_aggregation.switch:Switch",
    "tandem": "ensemblehub.ensemble_methods.output_aggregation.tandem:Tandem",
    "think_on_failure": "ensemblehub.ensemble_methods.output_aggregation.think_on_failure:ThinkOnFailure",
    "vote": "ensemblehub.ensemble_methods.output_aggregation.vote:Vote",
}
SCORERS = {
    "api": "ensemblehub.scorers.api:APIScorer",
    "hf_gen": "ensemblehub.scorers.perplexity:PerplexityScorer",
    "hf_rm": "ensemblehub.scorers.reward_model:RewardModelScorer",
    "perplexity": "ensemblehub.scorers.perplexity:PerplexityScorer",
    "reward_model": "ensemblehub.scorers.reward_model:RewardModelScorer",
}

DOCTOR_LINES: dict[str, Callable[[], str]] = {}  # what other packages add to the report of `doctor`, by name


def engine_for(path: str) -> str:
    """The engine for a model that names none: by its path.

    A `.gguf` file, a folder with one and no `config.json`, a hub id that ends in `-GGUF` and one with a
    quantization (`hub:ORG/NAME:Q4_K_M`) run on `llama_cpp`, a URL on `openai`, and anything else on `hf`; a
    built-in model where torch is not installed on `numpy`.
    """
    if path in ("builtin:mentor", "builtin:intern") and find_spec("torch") is None:
        return "numpy"
    if path.startswith(("http://", "https://")) or ":http" in path:
        return "openai"
    model, _, quantization = path.removeprefix("hub:").partition(":")
    folder = Path(os.path.expanduser(path))  # which leaves a user that there is not
    holds_gguf = any(folder.glob("*.gguf")) and not (folder / "config.json").exists()
    is_gguf = path.lower().endswith(".gguf") or model.lower().endswith("-gguf") or holds_gguf
    return "llama_cpp" if is_gguf or (path.startswith("hub:") and quantization) else "hf"


def lookup(table: Mapping[str, str], name: str, what: str) -> Any:
    """Return the class of `name`, from `table` or given as `package.module:Class`.

    Raises:
        ConfigError: unknown name, with the nearest known one, or no such class.
    """
    target = name if ":" in name else table.get(name)
    if target is None:
        raise ConfigError(did_you_mean(name, table, what))
    module, _, attribute = target.partition(":")
    if not module or module.startswith(".") or not attribute:
        raise ConfigError(f"{what} {name!r} is not of the form package.module:Class")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ModuleNotFoundError, AttributeError) as error:
        if name in table:
            raise
        raise ConfigError(f"cannot load {what} {name!r}: {one_line(error)}") from error


def build(cls: type, options: Mapping[str, Any], where: str, besides: Iterable[str] = ()) -> Any:
    """`cls(**options)` for a frozen dataclass, with types checked and unknown names refused.

    Args:
        besides: other names that could have been meant where the options stand.

    Raises:
        ConfigError: an unknown option (with the nearest known one), a value of the wrong type, or a number
            that is not finite.
    """
    from pydantic import TypeAdapter, ValidationError

    known = {field.name for field in dataclasses.fields(cls) if field.init}
    for name in options:
        if name not in known:
            hint = did_you_mean(str(name), {*known, *besides}, "option")
            raise ConfigError(f"{where}: {hint}", (name,))
    try:
        made: Any = TypeAdapter(cls).validate_python(dict(options))
    except ValidationError as error:
        first = error.errors()[0]
        # the members of a union are pydantic's own steps, such as `constrained-float` and `literal['calibrated']`
        place = [part for part in first["loc"] if not re.match(r"constrained-|\w+\[", str(part))]
        got = reprlib.repr(first.get("input"))
        text = f"{where}: option {'.'.join(map(str, place))!r}: {first['msg']} (got {got})"
        raise ConfigError(text, tuple(place)) from error
    for name in options:
        for found, value in _not_finite(getattr(made, name), (name,)):
            at = ".".join(map(str, found))
            raise ConfigError(f"{where}: option {at!r}: Input should be a finite number (got {value})", found)
    return made


def _not_finite(value: Any, place: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], float]]:
    """The numbers in a value that are NaN or infinite, and their places."""
    inner: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, float) and not math.isfinite(value):
        yield place, value
    elif dataclasses.is_dataclass(value):
        inner = ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
    elif isinstance(value, Mapping):
        inner = value.items()
    elif isinstance(value, (list, tuple)):
        inner = enumerate(value)
    for name, part in inner:
        yield from _not_finite(part, (*place, name))
