"""The pair that `advise` is asked about: its configuration, and what is to be said of it first."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from ensemblehub import builtin, configured
from ensemblehub.config import Config
from ensemblehub.ensemble_methods.output_aggregation.tandem import Tandem
from ensemblehub.errors import ArtifactError, ConfigError, MissingExtraError
from ensemblehub.generators.base import Engine
from ensemblehub.lab.pipeline.experiment import with_aggregation
from ensemblehub.schema import Capability
from ensemblehub.tandem.artifact import RULES, resolve_judge
from ensemblehub.tandem.insights import LEVEL_0
from ensemblehub.tandem.judges import Judge

log = logging.getLogger(__name__)
# options of Tandem that decide between its levels, which every strategy sets as it was replayed
DECIDING = ("thresholds", "draft", "confirm", "continue_draft", "give_up", "effort")
READ_BY: dict[Capability, str] = {  # what needs the intern's capabilities, beside what every engine has
    "score": "what goes by its entropy or perplexity of a question",
    "logprobs": "a cascade, a plan or a draft by its log-probability",
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
    params = {name: value for name, value in config.aggregation.params.items() if name not in DECIDING}
    params |= {"fallback": "best"} if "fallback" in params else {}
    section = config.ensemble.model_copy(update={"output_aggregation_params": params})
    return with_aggregation(config.model_copy(update={"ensemble": section}), judge=f"fixed:{LEVEL_0}")


def trained_judge(
    config: Config, tandem: Tandem, mentor: Engine, intern: Engine, asked: tuple[str, str]
) -> tuple[str, Judge] | None:
    """The folder of the configured judge, and the judge; None, with a line that says why, where it was not made
    for this pair or was trained on what is asked.

    Args:
        asked: task and split.
    """
    name, levels = str(config.aggregation.params.get("judge", "")), {LEVEL_0: 0, **tandem.levels}
    if name.partition(":")[0] in ("", *RULES, "fixed"):
        return None
    try:
        found = resolve_judge(name, list(levels))
    except (ArtifactError, MissingExtraError) as error:
        log.warning("Tandem by its trained judge is left out: %s", error)
        return None
    reasons = found.check(mentor.model, intern.model, tandem.words.fingerprint, levels=levels)
    learned = str(found.data.get("task", "")).replace("studio_", "builtin_"), found.data.get("split")
    if learned[0] == asked[0] and (asked[1] == learned[1] or "all" in (asked[1], learned[1])):
        reasons.append(f"it was trained on questions of {learned[0]} ({learned[1]}), which are asked")
    if found.scope != "question+insight":
        reasons.append(f"it reads the {found.scope} alone")
    if reasons:
        log.warning("Tandem by the judge %s is left out: %s", name, reasons[0])
        return None
    return name, found.judge


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
