"""`ensemblehub data fetch`: the files of public benchmarks."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ensemblehub.artifacts import write_atomically
from ensemblehub.errors import ConfigError, did_you_mean
from ensemblehub.lab.tasks import TASKS, task_class
from ensemblehub.lab.tasks.source import Fields, Source


def sources() -> dict[str, Source]:
    """The public benchmarks, by the name of their task."""
    found = {name: getattr(task_class(name), "source", None) for name in TASKS}
    return {name: source for name, source in found.items() if source is not None}


def missing(path: Path) -> str:
    """Error message for an absent data file, naming the command that makes it, if any."""
    known = sources()
    for name, source in known.items():
        if source.folder in path.parts:
            return f"{path} is missing: run `ensemblehub data fetch {name}`"
    return f"{path}: no such file (`ensemblehub data fetch NAME` makes those of {', '.join(known)})"


def named(name: str) -> Source:
    """The benchmark of a name in any spelling: `aime24`, `AIME 2024`, `AIME2024`, ...

    Raises:
        ConfigError: unknown name, with the nearest known one.
    """
    known = sources()
    for task, source in known.items():
        if _bare(name) in map(_bare, (task, source.title, source.folder)):
            return source
    raise ConfigError(did_you_mean(name, known, "benchmark"))


def _bare(name: str) -> str:
    return re.sub(r"\W|_", "", name.lower().replace("+", "plus"))


def fetch(name: str, file: Path | None, to: Path, split: str | None = None) -> dict[Path, int]:
    """Write a benchmark's files, each appearing whole.

    Args:
        file: a local file in the benchmark's public format, or already in ours; None asks the hub.
        to: the data folder.
        split: of the local file (by default the one that is tested on); the only one asked of the hub.

    Returns:
        the number of items by file.

    Raises:
        ConfigError: one line: an unknown name or split, an unreadable file or hub, an item that lacks a
            field.
        MissingExtraError: the hub was asked without the `datasets` library.
    """
    source = named(name)
    if split is not None and split not in source.splits:
        raise ConfigError(did_you_mean(split, source.splits, f"split of {source.title}"))
    files: dict[Path, list[Fields]] = {}
    for where, config, part, value in _items(source, file, split):
        item = source.converted(where, value)
        try:
            path = to / source.path_of(config, part, item)
        except ValueError as error:
            raise ConfigError(f"{where} is no item of {source.title}: {error}") from error
        files.setdefault(path, []).append(item)
    if not files:
        raise ConfigError(f"{file or source.hub}: no items")
    for path, items in files.items():
        text = json.dumps(items, ensure_ascii=False, indent=2, default=str) + "\n"
        try:
            write_atomically(path, text.encode())
        except UnicodeEncodeError as error:
            raise ConfigError(f"cannot write {path}: {error}") from error
    return {path: len(items) for path, items in files.items()}


def _items(source: Source, file: Path | None, split: str | None) -> Iterator[tuple[str, str, str, Any]]:
    if file is None:
        splits = (split,) if split else source.splits
        yield from source.from_hub(source.configs + source.more_configs, splits, "--from FILE")
    else:
        for where, item in source.rows_of(file):
            yield where, source.configs[0], split or source.splits[-1], item
