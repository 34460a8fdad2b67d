"""The pair that `advise` is asked about: its configuration, and what is to be said of it first."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from ensemblehub import builtin, configured
from ensemblehub.config import Config
from ensemblehub.errors import ConfigError
from ensemblehub.generators.base import Engine
from ensemblehub.lab.pipeline.experiment import with_aggregation
from ensemblehub.schema import Capability
from ensemblehub.tandem.insights import LEVEL_0

log = logging.getLogger(__name__)
READ_BY: dict[Capability, str] = {  # what needs the intern's capabilities, beside what every engine has
    "score": "Tandem or a router by its entropy or perplexity",
    "logprobs": "a cascade or a plan by its log-probability",
}


def pair_of(models: Sequence[str], changes: Sequence[str] = ()) -> Config:
    """Tandem over two models given as `mentor=MODEL` and `intern=MODEL`; the built-in pair's words for
    built-in ones.

    Raises:
        ConfigError: not these two names, or a wrong model.
    """
    given = dict(text.partition("=")[::2] for text in models)
    if given.keys() != {"mentor", "intern"}:
        raise ConfigError(f"--models: expected mentor=MODEL intern=MODEL, not {' '.join(models)}")
    specs = [
        dict(cast(Mapping[str, Any], configured.entry(given[role], role))) for role in ("mentor", "intern")
    ]
    params: dict[str, Any] = {}
    if all(model.startswith("builtin:") for model in given.values()):
        params = Config.read(Path(builtin.CONFIG)).aggregation.params
    roles = {"mentor": "mentor", "intern": "intern"}
    section = {"output_aggregation_method": "tandem", "output_aggregation_params": params | roles}
    return Config.from_dict({"model_specs": specs, "ensemble": section}, changes)


def with_rule(config: Config) -> Config:
    """The configuration with a judge that needs no file: judges are replayed, not run.

    Raises:
        ConfigError: it is not Tandem's.
    """
    if config.aggregation.method != "tandem":
        raise ConfigError("advise begins with a Tandem: set `output_aggregation_method: tandem`")
    return with_aggregation(config, judge=f"fixed:{LEVEL_0}")


def warn_of(mentor: Engine, intern: Engine) -> None:
    """Say what will be left out, and where the mentor is known to be the smaller model."""
    for capability, ways in READ_BY.items():
        if capability not in intern.capabilities:
            log.warning("%s offers no `%s` (docs/engines.md): %s is left out", intern.name, capability, ways)
    if mentor.info.active and mentor.info.active < intern.info.active:
        log.warning(
            "the mentor %r is the smaller model (%s active parameters, the intern %r %s): are the two "
            "swapped?",
            mentor.name,
            f"{mentor.info.active:,}",
            intern.name,
            f"{intern.info.active:,}",
        )
