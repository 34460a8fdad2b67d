"""The paper's tables, each one file with a `run`, each a command: `ensemblehub paper TABLE`."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ensemblehub.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from ensemblehub.lab.paper.study import Study

TABLES = ("main", "transfer", "api", "guidance", "thinking", "latency", "ablation", "families")


def run(name: str, study: Study) -> Iterator[str]:
    """Make a table and write it into the study's folder; yields it, and what belongs to it, as Markdown.

    Raises:
        ConfigError: no such table.
    """
    if name not in TABLES:
        raise ConfigError(did_you_mean(name, TABLES, "table"))
    for table in importlib.import_module(f"{__name__}.{name}").run(study):
        yield table.write(study.folder)
