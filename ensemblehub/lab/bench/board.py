"""`ensemblehub board`: result folders as one static page that needs no network and no server.

Its looks and its script are those of the Board tab of the server's page.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ensemblehub
from ensemblehub import board
from ensemblehub.artifacts import write_atomically
from ensemblehub.errors import ArtifactError
from ensemblehub.lab.bench.report import cells_in, lines, notes, title_of
from ensemblehub.lab.bench.rows import stem

PAGE = Path(ensemblehub.__file__).parent / "api" / "page"
SCRIPTS = ("elements.js", "numbers.js", "board.js")  # each after those that it imports


def write(folders: Sequence[Path], path: Path) -> int:
    """Write the page of some result folders; returns its size in bytes.

    Raises:
        ArtifactError: A folder holds no results, or damaged ones.
    """
    page = Path(__file__).with_name("board.html").read_text(encoding="utf-8")
    parts = {
        "STYLE": (PAGE / "page.css").read_text(encoding="utf-8"),
        "SCRIPT": "".join(_inlined((PAGE / name).read_text(encoding="utf-8")) for name in SCRIPTS),
        "DATA": embedded([section(folder) for folder in folders]),
    }
    content = re.sub("__([A-Z]+)__", lambda found: parts[found[1]], page).encode()
    write_atomically(path, content)
    return len(content)


def _inlined(module: str) -> str:
    """A module of the page as a part of one script, in which it finds what it imports."""
    return re.sub(r"^export |^import .*;\n", "", module, flags=re.MULTILINE)


def embedded(value: Any) -> str:
    """JSON that can stand in a script element, whatever texts it holds."""
    text = json.dumps(value)  # ASCII only
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def section(folder: Path) -> dict[str, Any]:
    """What the page shows of a folder: the table, the questions, and the answers of every cell to each.

    Raises:
        ArtifactError: It holds no results, or damaged ones.
    """
    cells = [cell for cell in cells_in(folder) if cell.rows]
    if not cells:
        raise ArtifactError(f"{folder} holds no answers yet")
    asked = max(len(cell.rows) for cell in cells)
    found = lines(cells, asked)
    report = {
        "title": title_of(cells[0], found[0]["n"]),
        "notes": notes(cells, found, asked, ""),
        "lines": found,
        "cells": [stem(cell.path) for cell in cells],
    }
    return board.section(folder, report)
