"""What a certificate is bound to: the models, their options, the words, the judge and the settings of a Tandem."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ensemblehub.ensemble_methods.output_aggregation.tandem_options import TandemOptions
from ensemblehub.generators.base import Engine
from ensemblehub.schema import Sampling

NAMES = ("mentor", "intern", "judge", "thresholds", "strict", "profile")  # options that are told otherwise


def identity(
    tandem: TandemOptions, engines: Sequence[Engine], options: Mapping[str, Any], sampling: Sampling
) -> dict[str, str]:
    """Models by their identity, everything else by a hash.

    Args:
        options: the options of each engine that decide what it writes (`Config.deciding`), by name.
    """
    mentor, intern = tandem.roles(engines)
    told = [_without_path(options[role.name], role) for role in (mentor, intern)]
    artifact = tandem.artifact
    settings = {name: value for name, value in asdict(tandem).items() if name not in NAMES}
    return {
        "mentor": mentor.model,
        "intern": intern.model,
        "quantisation": _hash(told),
        "prompts": tandem.words.fingerprint,
        "judge": _hash([artifact.judge.kind, hashlib.sha256(artifact.weights).hexdigest()]),
        "thresholds": _hash({point.level: point.threshold for point in tandem.checkpoints}),
        "settings": _hash([settings, asdict(sampling)]),
    }


def _without_path(options: Mapping[str, Any], engine: Engine) -> dict[str, Any]:
    """The options of an engine; its identity says more than the path that leads to it."""
    return {key: value for key, value in options.items() if key != "path" or engine.model == engine.name}


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]
