"""Names of models that are the same on every machine, from the contents of their files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

_PROBE = 65536  # bytes at either end of a weights file that its fingerprint covers


def identity_of(path: str) -> str:
    """A hub id as it is; a folder's name with a fingerprint of its configuration and weights."""
    folder = Path(path)
    if not folder.is_dir():
        return path
    files = sorted(folder.glob("*.safetensors"))
    parts = [(folder / "config.json").read_bytes()]
    for file in files:
        parts += [f"{file.name} {file.stat().st_size}".encode(), both_ends(file)]
    return f"{folder.name}@{fingerprint(parts)}"


def both_ends(path: Path) -> bytes:
    """The first and the last 64 KiB of a file, which overlap where it is short."""
    with path.open("rb") as file:
        start = file.read(_PROBE)
        file.seek(max(0, path.stat().st_size - _PROBE))
        return start + file.read(_PROBE)


def fingerprint(parts: Iterable[bytes]) -> str:
    """Twelve hexadecimal digits that identify the concatenated `parts`."""
    return hashlib.sha256(b"".join(parts)).hexdigest()[:12]
