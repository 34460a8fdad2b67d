"""A configuration made of command-line flags, alone or on top of a file."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ensemblehub import builtin, registry
from ensemblehub.config import Config
from ensemblehub.errors import ConfigError, did_you_mean


def configured(
    path: Path | None,
    changes: Sequence[str] = (),
    models: Sequence[str] = (),
    selection: str | None = None,
    aggregation: str | None = None,
    max_tokens: int | None = None,
) -> Config:
    """A configuration from a file, from flags, or from a file that flags change.

    Args:
        path: Without it, `models` are the configuration; without them too, it is the built-in pair's.
        models: `path:engine:device`, with engine and device optional.
        selection, aggregation: Methods; one that differs from the file's starts with its default options.
        max_tokens: Of an answer; a question that leaves no room for them is refused.

    Raises:
        ConfigError: As `Config.read`, or a model names an unknown engine.
    """
    flags = {"model_selection": selection, "output_aggregation": aggregation}
    methods = {strategy: method for strategy, method in flags.items() if method is not None}
    if models and path is None:
        if changes:
            raise ConfigError("--set changes a file: give --config")
        section = {f"{strategy}_method": method for strategy, method in methods.items()}
        config = Config.from_dict({"model_specs": _specs(models), "ensemble": section})
    else:
        replaced = [f"model_specs={json.dumps(_specs(models))}"] if models else []
        config = Config.read(path or builtin.CONFIG, [*changes, *replaced], methods)
    if max_tokens is None:
        return config
    limit = {"max_tokens": max_tokens, "fit_context": False}
    generation = config.ensemble.generation.model_copy(update=limit)
    ensemble = config.ensemble.model_copy(update={"generation": generation})
    return config.model_copy(update={"ensemble": ensemble})


def _specs(texts: Sequence[str]) -> list[dict[str, str]]:
    """Models from `path:engine:device`; path (`builtin:intern`) and device (`cuda:0`) may contain colons."""
    engines = "|".join(map(re.escape, registry.ENGINES))
    specs: list[dict[str, str]] = []
    names = Counter[str]()
    for text in texts:
        found = re.fullmatch(rf"(?P<path>.+?)(:(?P<engine>{engines})(:(?P<device>.+))?)?", text, re.DOTALL)
        path = found["path"] if found else ""
        _, colon, rest = re.sub("^(builtin|studio):", "", path).partition(":")
        if not found or colon:
            engine = rest.partition(":")[0]
            raise ConfigError(f"--model_specs {text}: {did_you_mean(engine, registry.ENGINES, 'engine')}")
        name = re.split("[/:]", path.rstrip("/"))[-1]
        names[name] += 1
        number = f"-{names[name]}" if names[name] > 1 else ""
        given = {key: value for key, value in found.groupdict().items() if value is not None}
        specs.append({"name": name + number, **given})
    return specs
