"""What a certificate is bound to: models, their options, words, judge and settings of a strategy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ensemblehub.artifacts import hash_of
from ensemblehub.ensemble_methods.base import Aggregation
from ensemblehub.generators.base import Engine
from ensemblehub.schema import Sampling


def identity(
    aggregation: Aggregation, engines: Sequence[Engine], options: Mapping[str, Any], sampling: Sampling
) -> dict[str, str]:
    """Models by their identity, everything else by a hash.

    Args:
        options: the options of each engine that decide what it writes (`Config.deciding`), by name.
    """
    parts = aggregation.parts(engines) or {engine.name: engine for engine in engines}
    told = [_without_path(options[engine.name], engine) for engine in parts.values()]
    decides = aggregation.deciding()
    return {
        **{part: engine.model for part, engine in parts.items()},
        "quantisation": hash_of(told),
        **{name: value if isinstance(value, str) else hash_of(value) for name, value in decides.items()},
        "settings": hash_of([decides["settings"], asdict(sampling)]),
    }


def _without_path(options: Mapping[str, Any], engine: Engine) -> dict[str, Any]:
    """The options of an engine; its identity says more than the path that leads to it."""
    return {key: value for key, value in options.items() if key != "path" or engine.model == engine.name}
