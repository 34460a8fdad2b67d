"""Read data files one item at a time: JSON and JSONL, plain or gzipped, and parquet."""

from __future__ import annotations

import codecs
import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, cast

from ensemblehub.errors import ConfigError, MissingExtraError

Located = tuple[str, Any]

CONTAINERS = ("data", "items", "examples", "rows", "instances")
LONGEST_LINE = 1 << 26  # bytes of a line of JSONL
_PART = 1 << 20  # bytes read at a time
_BLANK = re.compile(r"[ \t\r\n]*")


@dataclass(frozen=True)
class Broken:
    """A line that is not JSON.

    Attributes:
        reason: What is wrong with it.
    """

    reason: str


_DEEP = Broken("nested too deeply")
_UNFINISHED = (b"[", b"{", b",", b":")  # how a line ends in the middle of a JSON value


HINTS: list[Callable[[Path], str]] = []  # error texts of other packages for a missing file; "" for none


def missing(path: Path) -> str:
    """Error text for a missing data file, with the command that creates it if one is known."""
    return next(filter(None, (hint(path) for hint in HINTS)), f"{path}: no such file")


def located(path: Path) -> Iterator[Located]:
    """Read the items of a file lazily, each with its location: `FILE:LINE` in JSONL, else its number.

    One item at a time is held in memory; parquet is read in batches, and JSON that is one object as a whole.
    A line of JSONL that cannot be read becomes a `Broken`.

    Raises:
        ConfigError: The file is missing or cannot be read.
        MissingExtraError: The file is parquet and pyarrow is not installed.
    """
    try:
        with path.open("rb") as raw:
            magic = raw.peek(4)[:4]
            if magic == b"PAR1":
                yield from _numbered(path, _parquet(path))
            else:
                file = cast(BinaryIO, gzip.open(raw) if magic[:2] == b"\x1f\x8b" else raw)  # noqa: SIM115
                yield from _items(path, file)
    except FileNotFoundError as error:
        raise ConfigError(missing(path)) from error
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError(f"{path}: {getattr(error, 'strerror', None) or error}") from error


def _items(path: Path, file: BinaryIO) -> Iterator[Located]:
    """The items of a JSON or JSONL file, told apart by name and first line."""
    lines = ((number, line) for number, line in enumerate(_lines(file), 1) if line.strip())
    number, first = next(lines, (1, b""))
    if not first:
        raise ConfigError(f"{path}: empty; expected a JSON list or JSONL")
    jsonl = ".jsonl" in path.suffixes
    if first.lstrip()[:1] == b"[" and not jsonl:
        yield from _numbered(path, _elements(path, _Text(path, number, first, file)))
        return
    value = _parsed(first)
    unfinished = first.rstrip().endswith(_UNFINISHED) if jsonl else value != _DEEP
    if isinstance(value, Broken) and unfinished:
        yield from _document(path, number, first, file.read(), jsonl)
        return
    second = next(lines, None)
    if second is None and not isinstance(value, Broken):
        yield from _numbered(path, _listed(value))
        return
    rest = chain([second], lines) if second else lines
    yield from _by_line(path, chain([(number, value)], ((at, _parsed(line)) for at, line in rest)))


def _by_line(path: Path, found: Iterable[tuple[int, Any]]) -> Iterator[Located]:
    return ((f"{path}:{number}", value) for number, value in found)


def _numbered(path: Path, found: Iterable[Any]) -> Iterator[Located]:
    return ((f"{path}: item {number}", value) for number, value in enumerate(found, 1))


def _document(path: Path, number: int, first: bytes, rest: bytes, jsonl: bool) -> Iterator[Located]:
    """The items of a file whose first line is not JSON: a value on several lines, or broken JSONL."""
    whole = first + rest
    try:
        return _numbered(path, _listed(json.loads(whole.decode())))
    except (ValueError, RecursionError) as error:
        if jsonl:
            lines = enumerate(whole.split(b"\n"), number)
            return _by_line(path, ((at, _parsed(line)) for at, line in lines if line.strip()))
        if isinstance(error, UnicodeDecodeError):
            at = number + whole.count(b"\n", 0, error.start)
            raise ConfigError(f"{path}:{at}: not UTF-8 text (byte {error.start})") from error
        if isinstance(error, json.JSONDecodeError):
            raise ConfigError(f"{path}:{number + error.lineno - 1}: not JSON: {error.msg}") from error
        raise ConfigError(f"{path}: {_DEEP.reason}") from error


def _listed(value: Any) -> list[Any]:
    if isinstance(value, dict):
        inner = next((value[name] for name in CONTAINERS if isinstance(value.get(name), list)), None)
        return [value] if inner is None or len(value) > 3 else inner
    return value if isinstance(value, list) else [value]


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Lines, the first without a byte order mark; a line that is too long is truncated."""
    mark = codecs.BOM_UTF8
    while line := file.readline(LONGEST_LINE + 1):
        yield line.removeprefix(mark)
        mark = b""
        if len(line) > LONGEST_LINE:
            while line and not line.endswith(b"\n"):
                line = file.readline(_PART)


def _parsed(line: bytes) -> Any:
    if len(line) > LONGEST_LINE:
        return Broken(f"a line of more than {LONGEST_LINE} bytes")
    try:
        return json.loads(line.decode())
    except UnicodeDecodeError as error:
        return Broken(f"not UTF-8 text (byte {error.start} of the line)")
    except RecursionError:
        return _DEEP
    except ValueError as error:
        return Broken(f"not JSON: {getattr(error, 'msg', None) or error}")


class _Text:
    """JSON text, read incrementally.

    Attributes:
        line: Line of the file where `buffer` begins.
        at: Number of characters of `buffer` that are parsed.
    """

    def __init__(self, path: Path, line: int, first: bytes, file: BinaryIO) -> None:
        self.path = path
        self.line = line
        self.buffer = ""
        self.at = 0
        self._first = BytesIO(first)
        self._file = file
        self._decode = codecs.getincrementaldecoder("utf-8")().decode

    def more(self) -> bool:
        """Read more text, at least as much as is buffered; returns False at the end of the file."""
        wanted = max(_PART, len(self.buffer))
        read = self._first.read(wanted) or self._file.read(wanted)
        self.line += self.buffer.count("\n", 0, self.at)
        self.buffer = self.buffer[self.at :]
        self.at = 0
        try:
            self.buffer += self._decode(read, not read)
        except UnicodeDecodeError as error:
            line = self.line + self.buffer.count("\n") + error.object.count(b"\n", 0, error.start)
            raise ConfigError(f"{self.path}:{line}: not UTF-8 text") from error
        return bool(read)

    def peek(self) -> str:
        """The next character that is not whitespace; empty at the end of the file."""
        while True:
            blank = _BLANK.match(self.buffer, self.at)
            self.at = blank.end() if blank else self.at
            if self.at < len(self.buffer) or not self.more():
                return self.buffer[self.at : self.at + 1]

    def value(self) -> Any:
        """Parse the value that begins at `at`."""
        while True:
            try:
                value, end = json.JSONDecoder().raw_decode(self.buffer, self.at)
            except json.JSONDecodeError as error:
                at, message = error.pos - self.at, error.msg
                if not self.more():
                    raise self.error(message, at) from error
                continue
            end -= self.at
            if self.at + end < len(self.buffer) or not self.more():  # a number may go on
                self.at += end
                return value

    def error(self, message: str, ahead: int = 0) -> ConfigError:
        """Create the error for a position `ahead` characters from `at`."""
        line = self.line + self.buffer.count("\n", 0, self.at + ahead)
        return ConfigError(f"{self.path}:{line}: not JSON: {message}")


def _elements(path: Path, text: _Text) -> Iterator[Any]:
    """The items of a JSON list."""
    text.peek()
    text.at += 1
    more = text.peek() != "]"
    while more:
        try:
            value = text.value()
        except RecursionError as error:
            raise ConfigError(f"{path}: {_DEEP.reason}") from error
        yield value
        more = text.peek() == ","
        text.at += more
        text.peek()
    if text.peek() != "]":
        raise text.error("Expecting ',' delimiter")
    text.at += 1
    if text.peek():
        raise text.error("Extra data")


def _parquet(path: Path) -> Iterator[Any]:
    try:
        import pyarrow.parquet as parquet
    except ModuleNotFoundError as error:
        raise MissingExtraError("parquet needs pyarrow: pip install 'ensemblehub[data]'") from error
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(1024):
                yield from batch.to_pylist()
    except (OSError, ValueError) as error:  # pyarrow's own errors derive from these
        raise ConfigError(f"{path}: {error}") from error
