"""Records on disk: a journal that loses and repeats nothing, and rows of collected runs.

Knows no engine and no task.
"""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import io
import json
import math
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
from numpy.typing import NDArray

from ensemblehub.artifacts import content_of, differences, entries, parsed, sync_folder, told, write_whole
from ensemblehub.errors import ArtifactError
from ensemblehub.schema import Card, Finish
from ensemblehub.surrogates import whole

LEVEL_0 = "none"
FEATURES = 16  # numbers by which a reading is judged


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

    __pydantic_config__: ClassVar[Any] = {"allow_inf_nan": False}

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
        question: hash of the question's words; empty in older data.
    """

    id: str
    subject: str
    level: int
    steps: int
    insight: str
    closing: int
    runs: dict[str, Run]
    question: str = ""

    @property
    def key(self) -> str:
        """What tells the question from others: the hash of its words, its id where that is not known."""
        return self.question or self.id

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
        """Write `SPLIT.npz`, then `SPLIT.jsonl.gz`, which names the other by its hash and completes the split.

        Whatever ends the process between any two steps leaves a split that is whole or has no `SPLIT.jsonl.gz`.
        When this returns, both files survive a power cut.
        """
        rows, arrays = folder / f"{split}.jsonl.gz", _packed(self.features, self.sequences)
        header = self.header | {"arrays": hashlib.sha256(arrays).hexdigest()}
        lines = [encoded(header), *(encoded(asdict(row)) for row in self.rows)]
        rows.unlink(missing_ok=True)  # the old rows would not belong to the new arrays
        write_whole(folder / f"{split}.npz", arrays)
        write_whole(rows, gzip.compress(b"".join(lines), mtime=0))

    @classmethod
    def load(cls, folder: Path, split: str) -> Collected:
        """Read a collected split.

        Raises:
            ArtifactError: it is missing, damaged or of another split; the text names the command that makes it.
        """
        path, command = folder / f"{split}.jsonl.gz", f"run `ensemblehub collect --split {split}`"
        remedy = f"{command} --force"
        first, *lines = _unzipped(path, content_of(path, command), remedy)
        known = parsed(Header, first, f"{path}:1", remedy)
        rows = [parsed(Row, line, f"{path}:{number}", remedy) for number, line in enumerate(lines, 2)]
        raw = content_of(folder / f"{split}.npz", command)
        header = json.loads(first)
        digest = header.pop("arrays", None)
        if digest not in (None, hashlib.sha256(raw).hexdigest()):
            raise ArtifactError(f"{folder}/{split}.npz does not belong to {path}: {remedy}")
        try:
            _check_rows(known, rows, split)
            features, sequences = _unpacked(raw, len(rows), len(known.levels))
        except Exception as error:  # zipfile, zlib and numpy raise what they like on damaged bytes
            raise ArtifactError(f"{folder}/{split} is damaged ({' '.join(str(error).split())}): {remedy}") from error
        return cls(header, rows, features, sequences)


@dataclass(frozen=True)
class Header:
    """The first line of a collected split, as far as it is read again."""

    levels: dict[str, int]
    cards: dict[str, Card]
    task: str = ""
    split: str = ""
    mentor: str = ""
    intern: str = ""
    prompts: str = ""
    max_tokens: int | None = None
    temperature: float | None = None


def _unzipped(path: Path, content: bytes, remedy: str) -> list[bytes]:
    """The lines of a gzipped file."""
    try:
        lines = gzip.decompress(content).split(b"\n")  # not splitlines: U+2028 stands in texts
    except Exception as error:  # gzip and zlib raise what they like on damaged bytes
        raise ArtifactError(f"{path} is damaged ({error}): {remedy}") from error
    if lines[-1] or len(lines) < 2:
        raise ArtifactError(f"{path} is damaged (its last line is cut off): {remedy}")
    return lines[:-1]


def _check_rows(header: Header, rows: list[Row], split: str) -> None:
    """A `ValueError` says what does not fit."""
    if header.split not in ("", split):
        raise ValueError(f"its questions are those of {header.split!r}")
    if not {"mentor", "intern"} <= header.cards.keys() or LEVEL_0 not in header.levels:
        raise ValueError(f"its header lacks a card or the level {LEVEL_0!r}")
    if not all(math.isfinite(card.flops(0, 1)) for card in header.cards.values()):
        raise ValueError("its header holds a card that is not finite")
    if len({row.id for row in rows}) < len(rows):
        raise ValueError("a question stands in it twice")
    for row in rows:
        if lacking := [name for name in (*header.levels, "mentor") if name not in row.runs]:
            raise ValueError(f"{row.id} has no run {lacking[0]!r}")


def _packed(features: NDArray[np.float32], sequences: list[list[NDArray[np.float16]]]) -> bytes:
    """A collected split's arrays as a compressed file of numpy."""
    flat, file = [sequence for question in sequences for sequence in question], io.BytesIO()
    lengths = np.array([sequence.shape[1] for sequence in flat], np.int32)
    whole = np.concatenate(flat, axis=1) if flat else np.zeros((2, 0), np.float16)
    np.savez_compressed(file, allow_pickle=False, features=features, lengths=lengths, sequences=whole)
    return file.getvalue()


def _unpacked(content: bytes, n: int, levels: int) -> tuple[NDArray[np.float32], list[list[NDArray[np.float16]]]]:
    """The inverse of `_packed` for `n` questions; a `ValueError` where the arrays do not fit them."""
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        features, flat, lengths = (arrays[name] for name in ("features", "sequences", "lengths"))
    if features.shape != (n, levels, FEATURES) and (n or features.size):
        raise ValueError(f"features of shape {features.shape} for {n} questions at {levels} levels")
    if lengths.shape != (n * levels,) or (lengths < 1).any() or flat.shape != (2, int(lengths.sum())):
        raise ValueError(f"sequences of shape {flat.shape} do not fit {n} questions at {levels} levels")
    if features.dtype != np.float32 or flat.dtype != np.float16 or lengths.dtype.kind != "i":
        raise ValueError(f"numbers of types {features.dtype}, {flat.dtype} and {lengths.dtype}")
    if not (np.isfinite(features).all() and np.isfinite(flat).all()):
        raise ValueError("numbers that are not finite")
    parts = np.split(flat, np.cumsum(lengths)[:-1], axis=1) if n else []
    sequences = [parts[start : start + levels] for start in range(0, len(parts), levels)]
    return features.reshape(n, levels, FEATURES), sequences


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
            content = self._file.read()
        except BlockingIOError as error:
            raise ArtifactError(f"{path} is being written by another process") from error
        except OSError as error:
            raise ArtifactError(f"cannot write {path}: {error.strerror or error}") from error
        try:
            self.found, self._torn = entries(content)
        except ValueError as error:
            self.close()
            anew = "mend it, or use --force to start it anew"
            raise ArtifactError(f"{path} is damaged ({error}); {anew}") from error

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
            sync_folder(real)
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
            sync_folder(path)
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        except FileNotFoundError:
            file.close()  # it was replaced or removed between opening and locking: open what is there now
        except OSError:
            file.close()
            raise
        else:
            file.close()


def encoded(line: dict[str, Any]) -> bytes:
    """A line of JSONL."""
    return whole(json.dumps(line, ensure_ascii=False)).encode() + b"\n"


class Journal:
    """Finished rows in a `Lines` file, keyed by `id`, for one fingerprint of settings (its first line)."""

    def __init__(self, path: Path, fingerprint: dict[str, Any], force: bool = False) -> None:
        """Open or create, and keep every other process out until it is closed.

        Args:
            fingerprint: all that decides what a row says; JSON.

        Raises:
            ArtifactError: another process is writing it, it is damaged, or it was made with other settings and
                `force` is not set; nothing in it was changed.
        """
        self.path = path
        self._lines = Lines(path, force)
        try:
            self._check(fingerprint)
            self.rows: dict[str, dict[str, Any]] = {row["id"]: row for row in self._lines.found[1:]}
            self._lines.mend()
            if not self._lines.found:
                self._lines.append({"settings": fingerprint})
        except BaseException:
            self.close()
            raise

    def _check(self, fingerprint: dict[str, Any]) -> None:
        settings, rows = settings_of(self.path, self._lines.found) if self._lines.found else (fingerprint, [])
        for number, row in enumerate(rows, 2):
            if not isinstance(row.get("id"), str):
                raise ArtifactError(f"{self.path} is damaged (line {number}: no id); {ANEW}")
        if differing := list(differences(settings, fingerprint)):
            raise ArtifactError(f"{self.path} was begun with other settings: {told(differing)}; {ANEW}")

    def append(self, row: dict[str, Any]) -> None:
        """Add a finished row; when this returns, the row survives a kill."""
        self._lines.append(row)
        self.rows[row["id"]] = row

    def close(self) -> None:
        """Close the file."""
        self._lines.close()


ANEW = "use --force to start it anew"


def settings_of(path: Path, found: list[dict[str, Any]]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The settings and the rows of a journal.

    Raises:
        ArtifactError: it does not begin with settings.
    """
    settings = found[0].get("settings") if found else None
    if not isinstance(settings, dict):
        raise ArtifactError(f"{path} holds no settings in its first line, so it is no journal; {ANEW}")
    return settings, found[1:]
