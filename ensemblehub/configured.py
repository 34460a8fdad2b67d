"""Engines, strategies and scorers as a configuration describes them; loads no weights."""

from __future__ import annotations

import json
import logging
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

from ensemblehub import registry
from ensemblehub.config import Config
from ensemblehub.config.sections import ModelSpec, RewardSpec, StrategySpec
from ensemblehub.ensemble_methods.base import Aggregation, Selection
from ensemblehub.errors import ConfigError
from ensemblehub.generators.base import Engine
from ensemblehub.generators.swap import SwapGroup, SwappedEngine
from ensemblehub.scorers.base import Scorer
from ensemblehub.scorers.pool import Pool

log = logging.getLogger(__name__)


def entry(model: str | Mapping[str, Any] | Engine, name: str = "") -> Mapping[str, Any] | Engine:
    """The entry of `model_specs` for a model; its engine is chosen by what the string names.

    A `.gguf` file, or a folder with one and no `config.json`, runs on `llama_cpp`, `MODEL:URL` or the URL of a
    server with one model on `openai`, and anything else, a hub id or a folder, on `hf`.

    Args:
        name: Name of the model where it has none of its own.

    Raises:
        ConfigError: A URL names no server, or one with several models; or this is no model.
    """
    if isinstance(model, Engine):
        return model
    if isinstance(model, Mapping):
        return {"name": name, **model} if name else model
    if not isinstance(model, str):
        raise ConfigError(f"a model is a path, an entry of model_specs or an engine, not {model!r}")
    fields = {"path": model, "engine": registry.engine_for(model)}
    if model.startswith(("http://", "https://")):
        fields |= {"base_url": model, "path": _served(model)}
    log.info("%s runs on the engine %s", model, fields["engine"])
    return fields | ({"name": name} if name else {})


def engines_of(models: Sequence[str | Mapping[str, Any] | Engine]) -> list[Engine]:
    """Create the engines of models given by path, by entry or as engines; loads no weights.

    Raises:
        ConfigError: There is no model, or an entry is wrong.
    """
    if isinstance(models, str | Mapping | Engine):
        raise ConfigError(f"models are a list, such as [{models!r}]")
    entries = [entry(model) for model in models]
    written = [each for each in entries if not isinstance(each, Engine)]
    if not entries:
        raise ConfigError("an ensemble needs at least one model")
    if not written:
        return [each for each in entries if isinstance(each, Engine)]
    config = Config.from_dict({"model_specs": written})
    made = iter([engine_of(config, spec) for spec in config.model_specs])
    engines = [each if isinstance(each, Engine) else next(made) for each in entries]
    if len({engine.name for engine in engines}) < len(engines):
        raise ConfigError(f"two models share a name: {', '.join(engine.name for engine in engines)}")
    return engines


def scorers_of(entries: Sequence[Mapping[str, Any]], engines: Sequence[Engine]) -> Pool:
    """Create scorers from entries of `reward_specs`, with their weights."""
    config = Config.from_dict({"model_specs": [{"name": "none"}], "reward_specs": list(entries)})
    return pool_of(config, [scorer_of(config, spec, engines) for spec in config.reward_specs])


def strategy(table: Mapping[str, str], given: Any, base: type, what: str) -> Any:
    """A strategy by name with its default options, or the strategy that is given.

    Raises:
        ConfigError: The name is unknown, or what is given is no such strategy.
    """
    made = registry.build(registry.lookup(table, given, what), {}, given) if isinstance(given, str) else given
    if not isinstance(made, base):
        raise ConfigError(f"{what} is a name or a strategy with its options, such as 'random', not {given!r}")
    return made


def _served(url: str) -> str:
    """Name of the one model that the server at `url` has."""
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/models", timeout=10) as reply:
            names = [str(model["id"]) for model in json.load(reply)["data"]]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ConfigError(f"cannot ask {url} for its models ({error}): write MODEL:{url}") from error
    if len(names) != 1:
        raise ConfigError(f"{url} has {len(names)} models ({', '.join(names[:5])}): write MODEL:{url}")
    return names[0]


def engine_of(config: Config, spec: ModelSpec) -> Engine:
    """Create one engine of the configuration.

    Raises:
        ConfigError: The engine or one of its options is unknown or wrong.
    """
    place = ("model_specs", config.model_specs.index(spec))
    with config.within(*place, "engine"):
        kind = registry.lookup(registry.ENGINES, spec.engine, "engine")
    with config.within(*place):
        options = registry.build(
            kind.options, config.options(spec), f"model {spec.name!r}", ModelSpec.model_fields
        )
        engine: Engine = kind(spec.name, options)
        made = SwappedEngine(engine, config.shared(SwapGroup)) if spec.swap else engine
    neighbours: list[Engine] = config.shared(list)
    neighbours.append(made)
    engine.share_memory(neighbours)
    return made


def scorer_of(config: Config, spec: RewardSpec, engines: Sequence[Engine]) -> Scorer:
    """Create one scorer of the configuration; `engines` are those that a scorer may share."""
    place = ("reward_specs", config.reward_specs.index(spec))
    with config.within(*place, "engine"):
        kind = registry.lookup(registry.SCORERS, spec.engine, "scorer")
    with config.within(*place):
        options = registry.build(kind.options, spec.options, f"scorer {spec.name!r}", RewardSpec.model_fields)
        scorer: Scorer = kind(spec.name, options, engines)
        return scorer


def pool_of(config: Config, scorers: Sequence[Scorer]) -> Pool:
    """Combine scorers with the weights of the configuration."""
    weights = tuple(spec.weight for spec in config.reward_specs)
    return Pool(tuple(scorers), weights, config.ensemble.score_normalization)


def selection_of(config: Config) -> Selection:
    """Create the configured selection."""
    selection: Selection = _strategy(
        config, "model_selection", registry.SELECTIONS, config.selection, "selection"
    )
    return selection


def aggregation_of(config: Config) -> Aggregation:
    """Create the configured aggregation, without scorers."""
    aggregation: Aggregation = _strategy(
        config, "output_aggregation", registry.AGGREGATIONS, config.aggregation, "aggregation"
    )
    return aggregation


def _strategy(config: Config, key: str, table: Mapping[str, str], spec: StrategySpec, what: str) -> Any:
    with config.within("ensemble", f"{key}_method"):
        kind = registry.lookup(table, spec.method, what)
    with config.within("ensemble", f"{key}_params"):
        return registry.build(kind, spec.params, f"{what} {spec.method!r}")
