"""The output of a batch: a JSONL file with one row per input item, or a stream of rows.

Every row is synced to disk before it counts, and a new run keeps the rows without an error.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from ensemblehub.artifacts import hash_of
from ensemblehub.config import WHERE_IT_RUNS, Config
from ensemblehub.data import BadExample, Example, plain
from ensemblehub.errors import ArtifactError
from ensemblehub.journal import Lines, encoded

OTHER_FORMS = (".gz", ".bz2", ".xz", ".zst", ".zip", ".parquet")  # suffixes that rows of text would belie


@dataclass(frozen=True)
class Matched:
    """Comparison of an output with its input.

    Attributes:
        total: Number of items read.
        aside: Number of rows whose items are no longer in the input.
        beyond: Number of rows of items after the last one read.
    """

    total: int
    aside: int
    beyond: int

    def notes(self, output: Output) -> Iterator[str]:
        """One line for each kind of row without an item."""
        if self.aside:
            rows = f"{self.aside} rows of items that the input no longer has"
            yield f"{output.path}: {rows} are in {output.aside} now"
        if self.beyond:
            rows = f"{self.beyond} rows of other items"
            yield f"{output.path} also holds {rows}, behind the last that was asked for"


class Place(NamedTuple):
    """A row of the file.

    Attributes:
        good: Whether it has no error.
        start: Byte at which it begins.
        described: Hash of its description.
    """

    key: str
    good: bool
    start: int
    described: int


class Output:
    """The rows of a batch, all of one configuration; a context manager.

    Attributes:
        good: Places of the rows without an error, by key; the rows themselves stay on disk.
        missing: Keys of the items without a good row, set by `match`; one that is asked leaves.
    """

    def __init__(self, path: Path, config: Config, force: bool = False) -> None:
        """Open or create the file; its rows are unchanged until `match`.

        Raises:
            ArtifactError: The file has other rows and `force` is not set, is damaged, in use or not writable, or
                is named as one that is no plain text.
        """
        if path.suffix in OTHER_FORMS:
            raise ArtifactError(
                f"{path}: rows are added as plain JSONL; name it .jsonl, and make {path.suffix} of it at the end"
            )
        self.path = path
        self.fingerprint = fingerprint(config)
        self.missing: set[str] = set()
        self._config = config
        self._lines = Stream(path) if is_stream(path) else Lines(path, force, self._place)
        self.good = {place.key: place for place in reversed(self._lines.found) if place.good}

    def _place(self, row: dict[str, Any], start: int) -> Place:
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
        return Place(row["key"], not row["error"], start, _described(row))

    def match(self, items: Iterator[Example | BadExample], limit: int | None = None) -> Matched:
        """Update the file to the present input.

        Rows get the present number, id and label of their items.  Failed rows are dropped, to be tried again.
        Rows whose items are no longer in the input move to `aside`, unless `limit` ends the reading early.

        Args:
            limit: Number of the last item to be asked.

        Raises:
            ArtifactError: The file, or the one beside it, cannot be written.
        """
        total, whole = 0, True
        present, changed = set[str](), dict[str, dict[str, Any]]()
        for item in items:
            if limit is not None and item.number > limit:
                whole = False
                break
            total += 1
            key = self.key(item)
            if key not in self.good:
                self.missing.add(key)
                continue
            present.add(key)
            description = _description(item)
            if _described(description) != self.good[key].described:
                changed[key] = description
        others = self.good.keys() - present
        stale = [self.good.pop(key) for key in others] if whole else []
        if stale:
            self._put_aside(sorted(self._read(stale), key=lambda row: row["number"]))
        if changed or len(self.good) < len(self._lines.found):
            rows = self._read(reversed(self.good.values()))
            self._lines.replace(row | changed.get(row["key"], {}) for row in rows)
        self._lines.mend()
        return Matched(total, len(stale), len(others) - len(stale))

    def _read(self, places: Iterable[Place]) -> Iterator[dict[str, Any]]:
        return self._lines.read(place.start for place in places)

    @property
    def aside(self) -> Path:
        """File for rows whose items are no longer in the input: `out.stale.jsonl` beside `out.jsonl`."""
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
        """Hash of the item's key and of the configuration."""
        return hashlib.sha256(f"{self.fingerprint} {item.key}".encode()).hexdigest()[:32]

    def add(self, item: Example | BadExample, **fields: Any) -> None:
        """Write the row of an item and sync it to disk."""
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
    """The fields of a row that may change while its prompt stays the same."""
    return {"id": item.id, "number": item.number, "label": item.label if isinstance(item, Example) else None}


def _described(row: Mapping[str, Any]) -> int:
    """Hash of a row's description."""
    return hash(repr((row.get("id"), row.get("number"), row.get("label"))))


def is_stream(path: Path) -> bool:
    """Return whether `path` cannot be read back: standard output, a pipe, a terminal, `/dev/null`."""
    try:
        there = path.stat()
    except OSError:
        return False  # it will be created
    return not (stat.S_ISREG(there.st_mode) or stat.S_ISDIR(there.st_mode)) or _is_standard_output(path)


def _is_standard_output(path: Path) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(1))
    except OSError:
        return False


class Stream:
    """Replaces `Lines` for output that cannot be read back."""

    def __init__(self, path: Path) -> None:
        """Open the output; blocks until a pipe has a reader.

        Raises:
            ArtifactError: The output is a block device, or cannot be opened.
        """
        self.path = path
        self.found: list[Place] = []
        try:
            if path.is_block_device():
                raise ArtifactError(f"cannot write {path}: it is a block device")
            target = os.dup(1) if _is_standard_output(path) else path
            self._file = open(target, "wb", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise ArtifactError(f"cannot write {path}: {error.strerror or error}") from error

    def append(self, line: dict[str, Any]) -> None:
        """Write a row.

        Raises:
            ArtifactError: The reader is gone, or the disk is full.
        """
        rest = memoryview(encoded(line))
        try:
            while rest:
                rest = rest[self._file.write(rest) or 0 :]
        except OSError as error:
            raise ArtifactError(f"cannot write {self.path}: {error.strerror or error}") from error

    def read(self, starts: Iterable[int]) -> Iterator[dict[str, Any]]:
        """Nothing: no row can be read."""
        return iter(())

    def replace(self, lines: Iterable[dict[str, Any]]) -> None:
        """Do nothing: written rows cannot be replaced."""

    def mend(self) -> None:
        """Do nothing: there is no incomplete row."""

    def close(self) -> None:
        """Close the output; standard output itself stays open."""
        self._file.close()


def fingerprint(config: Config) -> str:
    """Hash of the settings that decide an answer, without devices and default values."""
    aside = {"experiment", "server", "debug", "ensembles", "sweep"}
    decides = config.model_dump(mode="json", exclude_defaults=True, exclude=aside)
    for name in ("request_params", "request_members", "certificate"):
        decides.get("ensemble", {}).pop(name, None)
    shared = decides.pop("engine_options", {})
    shares = filter(None, shared.values())
    for options in (*decides["model_specs"], *decides.get("reward_specs", ()), *shares):
        for name in WHERE_IT_RUNS & options.keys():
            del options[name]
    if any(shared.values()):
        decides["engine_options"] = {engine: options for engine, options in shared.items() if options}
    return hash_of(decides)
