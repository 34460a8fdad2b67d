"""Append-only JSONL files that lose and repeat nothing."""

from __future__ import annotations

import fcntl
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from ensemblehub.artifacts import entries, sync_folder
from ensemblehub.errors import ArtifactError
from ensemblehub.surrogates import whole


class Lines:
    """An append-only JSONL file that one process writes at a time.

    Every line is synced before it counts.  Opening changes nothing in a file; `mend` cuts off a torn last
    line (the process was killed while writing).

    Attributes:
        found: the lines that were there when it was opened, or what `keep` made of them.
    """

    def __init__(
        self,
        path: Path,
        force: bool = False,
        keep: Callable[[dict[str, Any], int], Any] = lambda line, _: line,
    ) -> None:
        """Open or create, and keep every other process out until it is closed; `force` empties it.

        Args:
            keep: makes what stays in memory of a line and of the byte at which it begins.

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
        except BlockingIOError as error:
            raise ArtifactError(f"{path} is being written by another process") from error
        except OSError as error:
            raise ArtifactError(f"cannot write {path}: {error.strerror or error}") from error
        try:
            with self._reading() as content:
                self.found, self._torn = entries(content, keep)
        except OSError as error:
            self.close()
            raise ArtifactError(f"cannot read {path}: {error.strerror or error}") from error
        except ArtifactError:
            self.close()
            raise
        except ValueError as error:
            self.close()
            anew = "mend it, or use --force to start it anew"
            raise ArtifactError(f"{path} is damaged ({error}); {anew}") from error

    def _reading(self, start: int = 0) -> BinaryIO:
        self._file.seek(start)
        return open(os.dup(self._file.fileno()), "rb")

    def read(self, starts: Iterable[int]) -> Iterator[dict[str, Any]]:
        """Read again the lines that begin at these bytes, until the file is replaced."""
        with self._reading() as content:
            for start in starts:
                content.seek(start)
                yield json.loads(content.readline())

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
            ArtifactError: it cannot be written (the disk is full, say), and the file is as it was; or it was
                removed or replaced, so that the line would be lost.
        """
        if not self._is_there():
            raise ArtifactError(f"{self.path} was removed or replaced while it was written")
        self._write(encoded(line))

    def _is_there(self) -> bool:
        """Whether the path still leads to the open file."""
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), self.path.stat())
        except FileNotFoundError:
            return False

    def replace(self, lines: Iterable[dict[str, Any]]) -> None:
        """Put `lines` in place of all that is there, in one step:
        a kill leaves the old file or the new one.
        """
        real = self.path.resolve()
        part, new = real.with_name(f"{real.name}.part"), None
        try:
            new = _locked(part)
            new.truncate(0)
            with open(os.dup(new.fileno()), "ab") as content:
                content.writelines(map(encoded, lines))
            os.fsync(new.fileno())
            part.replace(real)
            sync_folder(real)
        except OSError as error:
            if new:
                new.close()
            raise ArtifactError(f"cannot write {part}: {error.strerror or error}") from error
        self._file.close()
        self._file = new
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
