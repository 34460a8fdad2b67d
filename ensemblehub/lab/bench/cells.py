"""The cells of a bench: configuration files, single models, running servers, and the sweeps of files."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from ensemblehub import configured
from ensemblehub.config import Config
from ensemblehub.ensemble import AsyncEnsemble
from ensemblehub.errors import ConfigError

YAML = (".yaml", ".yml")


@dataclass(frozen=True)
class Cell:
    """One line of the table: a configuration and what the table calls it."""

    name: str
    config: Config

    @property
    def file(self) -> str:
        """Its name on disk, without an ending."""
        return re.sub(r"[^\w.=,@+-]+|^\.", "_", self.name)


def cells_of(texts: Sequence[str], changes: Sequence[str] = ()) -> list[Cell]:
    """The cells that the arguments of a command describe, checked without loading weights.

    Args:
        texts: YAML files, or models: `builtin:NAME`, a `.gguf` file, a folder, a hub id, the URL of a server,
            `MODEL:URL`.
        changes: `key.key=value`, applied to every one of them.

    Raises:
        ConfigError: One line that names the file; or two cells have one name.
    """
    found = [cell for text in texts for cell in _cells(text, changes)]
    counts = Counter(cell.file for cell in found)
    twice = next((cell.name for cell in found if counts[cell.file] > 1), None)
    if twice is not None:
        raise ConfigError(f"two cells are called {twice!r}: rename a file, or a cell of a sweep")
    return found


def _cells(text: str, changes: Sequence[str]) -> Iterator[Cell]:
    path = Path(text)
    if path.suffix.lower() not in YAML:
        yield _model(text, changes)
        return
    base = Config.read(path, changes)
    for name, places, more in sweep(base.sweep):
        with _at_sweep(base, path, places):
            cell = Cell(name or path.stem, Config.read(path, [*changes, *more]))
            AsyncEnsemble.from_config(cell.config)
        yield replace(cell, name=f"{path.stem} {name}") if name and "=" in name else cell


def _model(text: str, changes: Sequence[str]) -> Cell:
    """A model or a server alone."""
    try:
        entry = dict(cast(Mapping[str, Any], configured.entry(text)))
        name = _name_of(text, str(entry["path"]))
        config = Config.from_dict({"model_specs": [{**entry, "name": name}]}, changes)
        AsyncEnsemble.from_config(config)
    except ConfigError as error:
        raise type(error)(f"{text}: {error}" if text not in str(error) else str(error)) from error
    return Cell(name, config)


def _name_of(text: str, model: str) -> str:
    """The name of a model alone: `MODEL@HOST` behind a URL, else the last part of its path."""
    if server := re.fullmatch(r"(?:(.+?):)?https?://([^/]+).*", text):
        return f"{server[1] or model}@{server[2]}"
    path = Path(text)
    generic = path.suffix == ".gguf" and path.stem == "model"  # the folder says which
    return (path.resolve().parent if generic else path).name.removesuffix(".gguf")


def sweep(entries: dict[str, Any]) -> Iterator[tuple[str, tuple[str, ...], list[str]]]:
    """The cells of a `sweep:` section: name, its place in the section, and the changes of the file.

    Entries that are mappings are cells by name; entries that are lists are the values of one key, and the
    cells are all combinations.  Without entries, the file is the only cell, and has no name.
    """
    if all(isinstance(entry, dict) for entry in entries.values()):
        for name, entry in (entries or {"": {}}).items():
            yield name, (name,), [_change(key, value) for key, value in entry.items()]
        return
    for values in itertools.product(*entries.values()):
        chosen = dict(zip(entries, values, strict=True))
        name = ", ".join(f"{key.rpartition('.')[2]}={_short(value)}" for key, value in chosen.items())
        yield name, tuple(entries)[:1], [_change(key, value) for key, value in chosen.items()]


def _change(key: str, value: Any) -> str:
    return f"{key}={json.dumps(value, default=str)}"


def _short(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


@contextmanager
def _at_sweep(base: Config, path: Path, places: tuple[str, ...]) -> Iterator[None]:
    """Name the line of the sweep in the errors of its cells, which the file's own lines do not explain."""
    if not base.sweep:
        yield
        return
    with base.within("sweep", *places):
        try:
            yield
        except ConfigError as error:
            raise type(error)(re.sub(rf"^{re.escape(str(path))}:\d+: ", "", str(error))) from error
