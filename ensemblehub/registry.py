"""The lazy tables: a name in YAML, and the file that holds what it names.

Adding an engine, a strategy, a scorer or a task is a file plus a line here.  Code outside this package is
named `package.module:Class` in YAML.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from typing import Any

from ensemblehub.errors import ConfigError, did_you_mean

ENGINES = {
    "echo": "ensemblehub.generators.echo:EchoEngine",
    "hf": "ensemblehub.generators.hf:HFEngine",
}
SELECTIONS = {
    "all": "ensemblehub.ensemble_methods.model_selection.all:All",
}
AGGREGATIONS = {
    "single": "ensemblehub.ensemble_methods.output_aggregation.single:Single",
    "tandem": "ensemblehub.ensemble_methods.output_aggregation.tandem:Tandem",
}
TASKS = {
    "studio_math": "ensemblehub.tasks.studio_math:StudioMath",
    "studio_code": "ensemblehub.tasks.studio_code:StudioCode",
}


def lookup(table: Mapping[str, str], name: str, what: str) -> Any:
    """The class that `name` stands for, in `table` or as `package.module:Class`.

    Raises:
        ConfigError: unknown name, with the nearest known one.
    """
    target = name if ":" in name else table.get(name)
    if target is None:
        raise ConfigError(did_you_mean(name, table, what))
    module, _, attribute = target.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ModuleNotFoundError, AttributeError) as error:
        if name in table:
            raise
        raise ConfigError(f"cannot load {what} {name!r}: {error}") from error


def build(cls: type, options: Mapping[str, Any], where: str) -> Any:
    """`cls(**options)` for a frozen dataclass, with types checked and unknown names refused.

    Raises:
        ConfigError: an unknown option (with the nearest known one) or a value of the wrong type.
    """
    from pydantic import TypeAdapter, ValidationError

    known = {field.name for field in dataclasses.fields(cls) if field.init}
    for name in options:
        if name not in known:
            raise ConfigError(f"{where}: {did_you_mean(name, known, 'option')}")
    try:
        return TypeAdapter(cls).validate_python(dict(options))
    except ValidationError as error:
        first = error.errors()[0]
        at = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{where}: option {at!r}: {first['msg']} (got {first.get('input')!r})") from error
