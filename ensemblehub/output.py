"""The output of a batch: a JSONL file with one good row for every item of the input, or a stream of rows.

Every row is synced before it counts, and a new start keeps the good ones.  Knows no engine.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ensemblehub.config import WHERE_IT_RUNS, Config
from ensemblehub.data import BadExample, Example, plain
from ensemblehub.errors import ArtifactError
from ensemblehub.journal import Lines, encoded


@dataclass(frozen=True)
class Matched:
    """What an output has of its input.

    Attributes:
        total: items that were read.
        aside: rows of items that the input no longer has.
        beyond: rows of items behind the last that was read.
    """

    total: int
    aside: int
    beyond: int

    def notes(self, output: Output) -> Iterator[str]:
        """What a person has to know of it."""
        if self.aside:
            yield f"{output.path}: {self.aside} rows of items that the input no longer has are in {output.aside} now"
        if self.beyond:
            yield f"{output.path} also holds {self.beyond} rows of other items, behind the last that was asked for"


class Output:
    """One good row per item, all of one configuration; closed when the `with` block ends.

    Attributes:
        good: the rows without an error, by key.
        missing: keys of the items that have no good row yet, once `match` has been called.
    """

    def __init__(self, path: Path, config: Config, force: bool = False) -> None:
        """Open or create it; what it holds stays as it is until `match`.

        Raises:
            ArtifactError: it holds other rows and `force` is not set, is damaged, in use or not writable.
        """
        self.path = path
        self.fingerprint = fingerprint(config)
        self.missing: set[str] = set()
        self._config = config
        self._lines = Stream(path) if is_stream(path) else Lines(path, force)
        try:
            for row in self._lines.found:
                self._check(row)
        except BaseException:
            self._lines.close()
            raise
        self.good = {row["key"]: row for row in reversed(self._lines.found) if not row["error"]}

    def _check(self, row: dict[str, Any]) -> None:
        made = row.get("config")
        if (
            not isinstance(made, dict)
            or not {"fingerprint"} <= made.keys()
            or not {"key", "error"} <= row.keys()
        ):
            raise ArtifactError(f"{self.path} holds what this command did not write; choose another output")
        if made["fingerprint"] != self.fingerprint:
            raise ArtifactError(
                f"{self.path} holds answers of another configuration ({made.get('model_selection')}, "
                f"{made.get('output_aggregation')}); choose another output, or use --force to replace them"
            )

    def match(self, items: Iterator[Example | BadExample], limit: int | None = None) -> Matched:
        """Make the file describe the input as it is now.

        Rows take the number, id and label that their items have now.  Failed rows are dropped, to be tried again.  Rows
        of items that the input no longer has go to `aside`; where a `limit` ends the reading early, they stay.

        Raises:
            ArtifactError: the file, or the one beside it, cannot be written.
        """
        total, changed = 0, len(self.good) < len(self._lines.found)
        present: set[str] = set()
        for item in islice(items, limit):
            total += 1
            key = self.key(item)
            if key not in self.good:
                self.missing.add(key)
                continue
            present.add(key)
            described = _description(item)
            changed = changed or not described.items() <= self.good[key].items()
            self.good[key] |= described
        others = self.good.keys() - present
        whole = next(items, None) is None
        stale = sorted((self.good.pop(key) for key in others), key=lambda row: row["number"]) if whole else []
        if stale:
            self._put_aside(stale)
        if stale or changed:
            self._lines.replace(reversed(self.good.values()))
        self._lines.mend()
        return Matched(total, len(stale), len(others) - len(stale))

    @property
    def aside(self) -> Path:
        """Where rows go whose items are gone: `out.stale.jsonl` beside `out.jsonl`."""
        return self.path.with_name(f"{self.path.stem}.stale{self.path.suffix}")

    def _put_aside(self, rows: list[dict[str, Any]]) -> None:
        beside = Lines(self.aside)
        try:
            beside.mend()
            known = {(row.get("key"), row.get("predict")) for row in beside.found}
            for row in rows:
                if (row["key"], row["predict"]) not in known:  # a kill came before they left the output
                    beside.append(row)
        finally:
            beside.close()

    def key(self, item: Example | BadExample) -> str:
        """Hash of what the item asks and of the configuration."""
        return hashlib.sha256(f"{self.fingerprint} {item.key}".encode()).hexdigest()[:32]

    def add(self, item: Example | BadExample, **fields: Any) -> None:
        """Write the row of an item; when this returns, it survives a kill."""
        methods = {
            "model_selection": self._config.selection.method,
            "output_aggregation": self._config.aggregation.method,
            "fingerprint": self.fingerprint,
        }
        row = _description(item) | {
            "prompt": plain(item.prompt) if isinstance(item, Example) else None,
            "predict": None,
            "selected_models": [],
            "method": self._config.aggregation.method,
            "config": methods,
            "finish_reason": None,
            "usage": [],
            "seconds": 0.0,
            "error": None,
        }
        self._lines.append(row | fields | {"key": self.key(item)})

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._lines.close()


def _description(item: Example | BadExample) -> dict[str, Any]:
    """The fields of a row that may change while its question stays the same."""
    return {"id": item.id, "number": item.number, "label": item.label if isinstance(item, Example) else None}


def is_stream(path: Path) -> bool:
    """Whether rows that go there cannot be read back: standard output, a pipe, a terminal, `/dev/null`."""
    try:
        there = path.stat()
    except OSError:
        return False  # it is to be made
    return not (stat.S_ISREG(there.st_mode) or stat.S_ISDIR(there.st_mode)) or _is_standard_output(path)


def _is_standard_output(path: Path) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(1))
    except OSError:
        return False


class Stream:
    """Rows for what is written once and never read back, in the place of `Lines`."""

    def __init__(self, path: Path) -> None:
        """Open it; a pipe waits for its reader.

        Raises:
            ArtifactError: it is a block device, or cannot be opened.
        """
        self.path = path
        self.found: list[dict[str, Any]] = []
        try:
            if path.is_block_device():
                raise ArtifactError(f"cannot write {path}: it is a block device")
            self._file = open(os.dup(1) if _is_standard_output(path) else path, "wb", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise ArtifactError(f"cannot write {path}: {error.strerror or error}") from error

    def append(self, line: dict[str, Any]) -> None:
        """Write a row.

        Raises:
            ArtifactError: nobody reads it any more, or there is no room.
        """
        rest = memoryview(encoded(line))
        try:
            while rest:
                rest = rest[self._file.write(rest) or 0 :]
        except OSError as error:
            raise ArtifactError(f"cannot write {self.path}: {error.strerror or error}") from error

    def replace(self, lines: Iterable[dict[str, Any]]) -> None:
        """Nothing that is written can be replaced, and nothing was found that would have to be."""

    def mend(self) -> None:
        """Nothing was found that could be torn."""

    def close(self) -> None:
        """Close it; standard output itself stays open."""
        self._file.close()


def fingerprint(config: Config) -> str:
    """Hash of all that decides an answer: not the device it is computed on, nor values that are the default."""
    decides = config.model_dump(
        mode="json", exclude_defaults=True, exclude={"experiment", "server", "ensembles"}
    )
    decides.get("ensemble", {}).pop("request_params", None)
    for spec in decides["model_specs"]:
        for name in WHERE_IT_RUNS & spec.keys():
            del spec[name]
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]
