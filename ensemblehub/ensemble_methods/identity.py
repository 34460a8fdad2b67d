"""What a certificate is bound to: models and their options, words, judge, selection, scorers and settings."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ensemblehub import builtin
from ensemblehub.artifacts import hash_of
from ensemblehub.config import WHERE_IT_RUNS, Config
from ensemblehub.ensemble_methods.base import Aggregation
from ensemblehub.generators.base import Engine
from ensemblehub.scorers.base import Scorer
from ensemblehub.tandem import certificate
from ensemblehub.tandem.insights import Profile

TRAINED = {"artifact", "judge", "stats_file"}  # options that name something trained,
MAY_BE_TRAINED = {"accept", "draft"}  # and criteria, which may be the folder of a judge


def identity(config: Config, aggregation: Aggregation, engines: Sequence[Engine]) -> dict[str, str]:
    """Models by their identity, everything else by a hash; of an ensemble that was built from `config`."""
    options = {spec.name: config.deciding(spec) for spec in config.members}
    parts = aggregation.parts(engines) or {engine.name: engine for engine in engines}
    told = [_without_path(options[engine.name], engine) for engine in parts.values()]
    decides = aggregation.deciding()
    return {
        **{part: engine.model for part, engine in parts.items()},
        "quantisation": hash_of(told),
        **{name: value if isinstance(value, str) else hash_of(value) for name, value in decides.items()},
        **_other_parts(config, aggregation),
        "settings": hash_of(
            [decides["settings"], asdict(config.ensemble.generation.sampling()), *_other_settings(config)]
        ),
    }


def _other_settings(config: Config) -> list[Any]:
    """What else decides the answers, where it is not the default."""
    about = {"on_error": config.ensemble.on_error, "extract_after": config.ensemble.generation.extract_after}
    stated = {name: value for name, value in about.items() if value and value != "fail"}
    return [stated] if stated else []


def _other_parts(config: Config, aggregation: Aggregation) -> dict[str, str]:
    """Hashes of the prompt profile's words, of the selection, unless it is that of all models, and of the scorers
    that are asked.
    """
    words = getattr(aggregation, "words", None) if getattr(aggregation, "profile", None) else None
    found = {"prompts": words.fingerprint} if isinstance(words, Profile) else {}
    if config.selection.method != "all":
        found["selection"] = hash_of([config.selection.model_dump(), trained(config.selection.params)])
    if aggregation.uses_scorers:
        pool, specs = aggregation.scorers, config.reward_specs
        options = [spec.model_dump(exclude={*WHERE_IT_RUNS, "name"}) for spec in specs]
        told = [_without_path(*pair) for pair in zip(options, pool.scorers, strict=True)]
        found["scorers"] = hash_of([[scorer.model for scorer in pool.scorers], told, pool.normalization])
    return found


def trained(params: Mapping[str, Any]) -> dict[str, str]:
    """Hashes of the trained parts that a method's options name, by option."""
    found = {}
    for option in sorted((TRAINED | MAY_BE_TRAINED) & params.keys()):
        place = Path(builtin.resolve(str(params[option])))
        files = sorted(place.glob("*.*")) if place.is_dir() else [place] if place.is_file() else []
        kept = [file for file in files if file.name != certificate.FILE and file.suffix != ".jsonl"]
        if kept or option in TRAINED:
            found[option] = hashlib.sha256(b"".join(file.read_bytes() for file in kept)).hexdigest()[:16]
    return found


def _without_path(options: dict[str, Any], part: Engine | Scorer) -> dict[str, Any]:
    """The options of an engine or a scorer; its identity says more than the path that leads to it."""
    return {key: value for key, value in options.items() if key != "path" or part.model == part.name}
