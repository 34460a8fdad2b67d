"""Records on disk: a journal that loses and repeats nothing, and rows of collected runs.

Knows no engine and no task.
"""

from __future__ import annotations

import fcntl
import gzip
import io
import json
import os
import zipfile
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ensemblehub.errors import ArtifactError
from ensemblehub.schema import Card, Finish

LEVEL_0 = "none"


@dataclass(frozen=True)
class Run:
    """One way of answering one question: fixed levels, the mentor alone, the intern alone.

    Attributes:
        correct: the answer is right.
        finish: "length" marks a truncated answer.
        mentor_read, mentor_tokens: tokens the mentor read and wrote (0 where it took no part).
        intern_read, intern_tokens: the same for the intern.
        seconds: engine time.
        leak: the insight states the asked value.
        cut: characters of the row's insight that the intern was shown; None in older data and for the mentor alone.
    """

    correct: bool
    finish: Finish | None
    mentor_read: int
    mentor_tokens: int
    intern_read: int
    intern_tokens: int
    seconds: float
    leak: bool
    text: str
    cut: int | None = None

    def flops(self, mentor: Card, intern: Card) -> float:
        """Full ledger of this run by itself: prompts read, tokens written, attention over the context."""
        return _flops(mentor, self.mentor_read, self.mentor_tokens) + _flops(
            intern, self.intern_read, self.intern_tokens
        )

    def reading_flops(self, mentor: Card, intern: Card) -> float:
        """The part spent before the intern writes: the mentor's insight, and reading it."""
        return _flops(mentor, self.mentor_read, self.mentor_tokens) + intern.flops(0, self.intern_read)


def _flops(card: Card, read: int, written: int) -> float:
    return card.flops(0, read) + card.flops(read, read + max(0, written - 1))


@dataclass(frozen=True)
class Row:
    """Everything collected on one question.

    Attributes:
        steps, level: needed steps and difficulty.
        runs: by method: "mentor", "mentor_concise", and one per effort level, `LEVEL_0` first.
        closing: template tokens after the insight, which every checkpoint reads again.
    """

    id: str
    subject: str
    level: int
    steps: int
    insight: str
    closing: int
    runs: dict[str, Run]

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Row:
        """The inverse of `dataclasses.asdict`."""
        return cls(**{**data, "runs": {name: Run(**run) for name, run in data["runs"].items()}})


@dataclass(frozen=True)
class Collected:
    """A collected split.

    Attributes:
        header: pair, prompts, levels, cards, task, split.
        features: float32, (questions, levels, 16).
        sequences: per question, per level: float16 (2, tokens), perplexity and entropy.
    """

    header: dict[str, Any]
    rows: list[Row]
    features: NDArray[np.float32]
    sequences: list[list[NDArray[np.float16]]] = field(repr=False)

    @property
    def levels(self) -> dict[str, int]:
        """Mentor token budget by level, `LEVEL_0` first."""
        return cast(dict[str, int], self.header["levels"])

    def card(self, role: str) -> Card:
        """The card of `mentor` or `intern` as it was when collecting."""
        return Card(**{**self.header["cards"][role], "price": None})

    def part(self, indices: list[int]) -> Collected:
        """The same for some of the questions."""
        rows, sequences = [self.rows[index] for index in indices], [self.sequences[index] for index in indices]
        return Collected(self.header, rows, self.features[indices], sequences)

    def save(self, folder: Path, split: str) -> None:
        """Write `SPLIT.jsonl.gz` and `SPLIT.npz`, each appearing whole."""
        folder.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps(self.header), *(json.dumps(asdict(row), ensure_ascii=False) for row in self.rows)]
        flat = [sequence for question in self.sequences for sequence in question]
        arrays: dict[str, Any] = {
            "features": self.features,
            "lengths": np.array([sequence.shape[1] for sequence in flat], np.int32),
            "sequences": np.concatenate(flat, axis=1) if flat else np.zeros((2, 0), np.float16),
        }
        part = folder / f"{split}.npz.part"
        with part.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)
        part.replace(folder / f"{split}.npz")
        part = folder / f"{split}.jsonl.gz.part"
        with part.open("wb") as raw, gzip.GzipFile(fileobj=raw, mode="wb", mtime=0, filename="") as zipped:
            zipped.write("\n".join(lines).encode() + b"\n")
        part.replace(folder / f"{split}.jsonl.gz")

    @classmethod
    def load(cls, folder: Path, split: str) -> Collected:
        """Read a collected split.

        Raises:
            ArtifactError: it is missing or damaged; the text names the command that makes it.
        """
        try:
            with gzip.open(folder / f"{split}.jsonl.gz", "rt", encoding="utf-8") as file:
                header, *lines = [json.loads(line) for line in file]
            with np.load(folder / f"{split}.npz", allow_pickle=False) as arrays:
                features, flat, lengths = arrays["features"], arrays["sequences"], arrays["lengths"]
        except FileNotFoundError as error:
            raise ArtifactError(f"{error.filename} is missing: run `ensemblehub collect --split {split}`") from error
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise ArtifactError(f"{folder}/{split} is damaged ({error}): collect it again") from error
        parts = np.split(flat, np.cumsum(lengths)[:-1], axis=1)
        width = features.shape[1]
        sequences = [parts[start : start + width] for start in range(0, len(parts), width)]
        return cls(header, [Row.from_json(line) for line in lines], features, sequences)


class Lines:
    """An append-only JSONL file that one process writes at a time.

    Every line is synced before it counts.  Opening changes nothing in a file; `mend` cuts off a torn last line
    (the process was killed while writing).

    Attributes:
        found: the lines that were there when it was opened.
    """

    def __init__(self, path: Path, force: bool = False) -> None:
        """Open or create, and keep every other process out until it is closed; `force` empties it.

        Raises:
            ArtifactError: another process is writing it, it cannot be opened, or it is damaged.
        """
        self.path = path
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise ArtifactError(f"cannot write {path}: it is not a regular file")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = _locked(path)
            if force:
                self._file.truncate(0)
            self._file.seek(0)
            whole, _, last = self._file.read().rpartition(b"\n")
        except BlockingIOError as error:
            raise ArtifactError(f"{path} is being written by another process") from error
        except OSError as error:
            raise ArtifactError(f"cannot write {path}: {error.strerror or error}") from error
        self.found: list[dict[str, Any]] = []
        foreign = last.strip(b"\0 ")[:1] not in (b"", b"{")  # nothing that was torn here
        for number, line in enumerate((whole + last if foreign else whole).split(b"\n"), 1):
            if line.strip():
                try:
                    self.found.append(_object(line))
                except (ValueError, RecursionError) as error:
                    self.close()
                    anew = "mend it, or use --force to start it anew"
                    raise ArtifactError(f"{path} is damaged (line {number}: {error}); {anew}") from error
        self._torn = len(last)
        with suppress(ValueError):
            self.found.append(_object(last))
            self._torn = -1  # all there but for its newline, which an editor may have taken

    def mend(self) -> None:
        """Cut off a torn last line; one that only lacks its newline gets it."""
        if self._torn > 0:
            self._file.truncate(os.fstat(self._file.fileno()).st_size - self._torn)
        elif self._torn:
            self._write(b"\n")
        self._torn = 0

    def append(self, line: dict[str, Any]) -> None:
        """Add a line; when this returns, it survives a kill.

        Raises:
            ArtifactError: it cannot be written (the disk is full, say); the file is as it was.
        """
        self._write(encoded(line))

    def replace(self, lines: Iterable[dict[str, Any]]) -> None:
        """Put `lines` in place of all that is there, in one step: a kill leaves the old file or the new one."""
        real = self.path.resolve()
        part, old = real.with_name(f"{real.name}.part"), self._file
        try:
            self._file = _locked(part)
            self._file.truncate(0)
            self._write(b"".join(map(encoded, lines)))
            part.replace(real)
            _sync_folder(real)
        except OSError as error:
            raise ArtifactError(f"cannot write {part}: {error.strerror or error}") from error
        finally:
            old.close()
        self._torn = 0

    def _write(self, data: bytes) -> None:
        size, rest = os.fstat(self._file.fileno()).st_size, memoryview(data)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            self._file.truncate(size)  # else the next line would go on behind half of this one
            raise ArtifactError(f"cannot write {self.path}: {error.strerror or error}") from error

    def close(self) -> None:
        """Close the file and let others write it."""
        self._file.close()


def _locked(path: Path) -> io.FileIO:
    """The file at `path`, opened for appending and locked; `BlockingIOError` if another process has it."""
    while True:
        file = io.FileIO(path, "a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _sync_folder(path)
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        except FileNotFoundError:
            file.close()  # it was replaced or removed between opening and locking: open what is there now
        except OSError:
            file.close()
            raise
        else:
            file.close()


def _sync_folder(path: Path) -> None:
    """Make a new name in the folder of `path` survive a power cut."""
    folder = os.open(path.resolve().parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def encoded(line: dict[str, Any]) -> bytes:
    """A line of JSONL."""
    try:
        return json.dumps(line, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # half a surrogate pair, which JSON can hold as an escape
        return json.dumps(line).encode() + b"\n"


def _object(line: bytes) -> dict[str, Any]:
    value = json.loads(line)
    if not isinstance(value, dict):
        raise ValueError("not an object")
    return value


class Journal:
    """Finished rows in a `Lines` file, keyed by `id`, for one fingerprint of settings (its first line)."""

    def __init__(self, path: Path, fingerprint: dict[str, Any], force: bool = False) -> None:
        """Open or create, and keep every other process out until it is closed.

        Raises:
            ArtifactError: another process is writing it, it is damaged, or it was made with other settings and
                `force` is not set.
        """
        self.path = path
        self._lines = Lines(path, force)
        if self._lines.found and self._lines.found[0] != {"settings": fingerprint}:
            self.close()
            raise ArtifactError(f"{path} was begun with other settings; use --force to start it anew")
        self._lines.mend()
        self.rows: dict[str, dict[str, Any]] = {row["id"]: row for row in self._lines.found[1:]}
        if not self._lines.found:
            self._lines.append({"settings": fingerprint})

    def append(self, row: dict[str, Any]) -> None:
        """Add a finished row; when this returns, the row survives a kill."""
        self._lines.append(row)
        self.rows[row["id"]] = row

    def close(self) -> None:
        """Close the file."""
        self._lines.close()
