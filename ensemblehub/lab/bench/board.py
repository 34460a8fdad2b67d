"""`ensemblehub board`: result folders as one static page that needs no network and no server."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ensemblehub.artifacts import write_atomically
from ensemblehub.errors import ArtifactError
from ensemblehub.lab.bench.report import cells_in, lines, notes, title_of
from ensemblehub.lab.bench.rows import QUESTION, AnswerRow, kept_questions
from ensemblehub.lab.bench.summary import by_question

FIELDS = ("sample", "correct", "reason", "finish", "written", "cold_flops", "usd", "wall", "text", "insight")
DECISIONS = ("verdicts", "choices")


def write(folders: Sequence[Path], path: Path) -> int:
    """Write the page of some result folders; returns its size in bytes.

    Raises:
        ArtifactError: A folder holds no results, or damaged ones.
    """
    page = Path(__file__).with_name("board.html").read_text(encoding="utf-8")
    content = page.replace("__DATA__", embedded([section(folder) for folder in folders])).encode()
    write_atomically(path, content)
    return len(content)


def embedded(value: Any) -> str:
    """JSON that can stand in a script element, whatever texts it holds."""
    text = json.dumps(value)  # ASCII only
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def section(folder: Path) -> dict[str, Any]:
    """What the page shows of a folder: the table, the questions, and the answers of every cell to each."""
    cells = [cell for cell in cells_in(folder) if cell.rows]
    if not cells:
        raise ArtifactError(f"{folder} holds no answers yet")
    asked = max(len(cell.rows) for cell in cells)
    found = lines(cells, asked)
    questions = known_questions(folder, [row for cell in cells for row in cell.rows])
    return {
        "title": title_of(cells[0], found[0]["n"]),
        "notes": notes(cells, found, asked, ""),
        "lines": found,
        "questions": questions,
        "cells": [
            {"name": cell.name, "answers": _answers(by_question(cell.rows), questions)} for cell in cells
        ],
    }


def known_questions(folder: Path, rows: Sequence[AnswerRow]) -> list[dict[str, Any]]:
    """The answered questions, with the words that `bench` kept beside the answers."""
    told = kept_questions(folder / "questions.jsonl")
    first = {row.question: row for row in rows}
    return [
        {"id": name, "text": "", "answer": "", "subject": first[name].subject, "level": first[name].level}
        | {key: told[name][key] for key in QUESTION if key in told.get(name, {})}
        for name in dict.fromkeys((*told, *first))
        if name in first
    ]


def _answers(
    samples: dict[str, list[AnswerRow]], questions: Sequence[dict[str, Any]]
) -> list[list[dict[str, Any]] | None]:
    """A cell's answers by question; None where it has not answered."""
    return [
        [{key: getattr(row, key) for key in (*FIELDS, *DECISIONS)} for row in samples[question["id"]]]
        if question["id"] in samples
        else None
        for question in questions
    ]
