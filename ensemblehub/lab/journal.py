"""A journal of finished rows and of the settings they were made with: a killed command resumes from it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

from ensemblehub.artifacts import unpacked, write_atomically
from ensemblehub.errors import ArtifactError
from ensemblehub.journal import Lines

ANEW = "use --force to start it anew"
SHOWN = 3  # differences that a message names
LONGEST = 60  # characters of a value in a message


class Identified(Protocol):
    """What has a row in a journal."""

    @property
    def id(self) -> str:
        """Key of the row."""


ItemT = TypeVar("ItemT", bound=Identified)


class Journal:
    """Finished rows in a `Lines` file, keyed by `id`, for one fingerprint of settings (its first line)."""

    def __init__(self, path: Path, fingerprint: dict[str, Any], force: bool = False) -> None:
        """Open or create, and keep every other process out until it is closed.

        Args:
            fingerprint: all that decides what a row says; JSON.

        Raises:
            ArtifactError: another process is writing it, it is damaged, or it was made with other settings
                and `force` is not set; nothing in it was changed.
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

    def missing(self, items: Iterable[ItemT]) -> list[ItemT]:
        """The items without a row."""
        return [item for item in items if item.id not in self.rows]

    def append(self, row: dict[str, Any]) -> None:
        """Add a finished row; when this returns, the row survives a kill."""
        self._lines.append(row)
        self.rows[row["id"]] = row

    def close(self) -> None:
        """Close the file."""
        self._lines.close()


def unpack(path: Path, force: bool = False) -> None:
    """Make the journal at `path` from its gzipped copy, where there is only that.

    Args:
        force: Forget the copy instead.

    Raises:
        ArtifactError: The copy is damaged.
    """
    packed = path.with_name(f"{path.name}.gz")
    if packed.exists() and not path.exists() and not force:
        write_atomically(path, unpacked(packed, ANEW))
    packed.unlink(missing_ok=True)


def settings_of(path: Path, found: list[dict[str, Any]]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The settings and the rows of a journal.

    Raises:
        ArtifactError: it does not begin with settings.
    """
    settings = found[0].get("settings") if found else None
    if not isinstance(settings, dict):
        raise ArtifactError(f"{path} holds no settings in its first line, so it is no journal; {ANEW}")
    return settings, found[1:]


def differences(found: Any, wanted: Any, where: str = "") -> Iterator[str]:
    """Every value of two nested mappings that differs, as `max_tokens 768, not 512`."""
    if isinstance(found, Mapping) and isinstance(wanted, Mapping):
        for key in dict.fromkeys([*wanted, *found]):
            inner = f"{where}.{key}" if where else str(key)
            yield from differences(found.get(key, _Absent), wanted.get(key, _Absent), inner)
    elif found is _Absent:
        yield f"{where} was not recorded"
    elif wanted is _Absent:
        yield f"{where} {_short(found)}, now without it"
    elif found != wanted:
        yield f"{where} {_short(found)}, not {_short(wanted)}"


def told(differing: list[str]) -> str:
    """The first differences, and how many more there are."""
    more = len(differing) - SHOWN
    return ", ".join(differing[:SHOWN]) + (f" and {more} more" if more > 0 else "")


class _Absent:
    """Stands for a key that is not there."""


def _short(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
