"""What a board shows of a result folder of `ensemblehub bench`: its report, the questions and all answers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from ensemblehub.artifacts import content_of, entries, unpacked
from ensemblehub.errors import ArtifactError

OUTCOME = ("sample", "correct")  # of an answer, as far as the tables need it
FIELDS = (
    *OUTCOME,
    "reason",
    "finish",
    "written",
    "cold_flops",
    "usd",
    "wall",
    "text",
    "insight",
    "verdicts",
    "choices",
)
QUESTION = ("id", "text", "answer", "subject", "level")  # what is kept of a question beside the answers
REMEDY = "it is no folder that `ensemblehub bench` wrote to its end"


def report_of(folder: Path) -> dict[str, Any]:
    """The folder's `summary.json`, with a title and notes.

    Raises:
        ArtifactError: It is missing or damaged.
    """
    path = folder / "summary.json"
    try:
        report = json.loads(content_of(path, REMEDY))
        title = f"{report['task']}, {report['split']}: {report['lines'][0]['n']} questions"
        return {"title": title, "notes": [], **report}
    except (ValueError, LookupError, TypeError) as error:
        raise ArtifactError(f"{path} is damaged ({error}): {REMEDY}") from error


def section(folder: Path, report: Mapping[str, Any], fields: Sequence[str] = FIELDS) -> dict[str, Any]:
    """What a board shows of a folder.

    Args:
        report: Its `title`, `notes` and `lines`, and its `cells`: the names of the files with their answers.
        fields: What is kept of an answer.

    Raises:
        ArtifactError: A file is missing or damaged.
    """
    cells = [_rows(path, fields) for path in _journals(folder, report)]
    first: dict[str, dict[str, Any]] = {}
    for row in (row for _, rows in cells for row in rows):
        first.setdefault(row["question"], row)
    told = kept_questions(folder / "questions.jsonl")
    questions = [
        {
            "id": name,
            "text": "",
            "answer": "",
            "subject": first[name]["subject"],
            "level": first[name]["level"],
        }
        | {key: told[name][key] for key in QUESTION if key in told.get(name, {})}
        for name in dict.fromkeys((*told, *first))
        if name in first
    ]
    return {
        **{key: report[key] for key in ("title", "notes", "lines")},
        "questions": questions,
        "cells": [{"name": name, "answers": _answers(rows, questions, fields)} for name, rows in cells],
    }


def answers(folder: Path, report: Mapping[str, Any], question: str) -> list[dict[str, Any]]:
    """Every cell's `answers` to the question with this id.

    Raises:
        ArtifactError: A file is missing or damaged.
    """
    cells = [_rows(path, FIELDS, question) for path in _journals(folder, report)]
    return [{"name": name, "answers": _answers(rows, [{"id": question}], FIELDS)[0]} for name, rows in cells]


def kept_questions(path: Path) -> dict[str, dict[str, Any]]:
    """The questions that are kept beside the answers, by id; none where there is no such file.

    Raises:
        ArtifactError: It is damaged.
    """
    if not path.exists():
        return {}
    try:
        return {str(entry["id"]): entry for entry in entries(content_of(path, "remove it"))[0]}
    except (ValueError, KeyError) as error:
        raise ArtifactError(f"{path} is damaged ({error}): remove it") from error


def _journals(folder: Path, report: Mapping[str, Any]) -> list[Path]:
    return [folder / "answers" / f"{name}.jsonl" for name in report["cells"]]


def _rows(path: Path, fields: Sequence[str], question: str = "") -> tuple[str, list[dict[str, Any]]]:
    """A cell's name and its answers, to one question or to all; the latest of each id."""
    known = ("settings", "id", "question", "subject", "level", *fields)
    plain = question if json.dumps(question) == f'"{question}"' else ""  # stands in its rows as it is
    lines = (
        line for line in BytesIO(unpacked(path, REMEDY)) if plain.encode() in line or b'"settings"' in line
    )
    try:
        head, *found = entries(lines, lambda row, _: {key: row[key] for key in known if key in row})[0]
        rows = {row["id"]: row for row in found if question in ("", row["question"])}
        return str(head["settings"].get("cell", path.stem)), list(rows.values())
    except (ValueError, LookupError, AttributeError) as error:
        raise ArtifactError(f"{path} is damaged ({error}): {REMEDY}") from error


def _answers(
    rows: Sequence[Mapping[str, Any]], questions: Sequence[Mapping[str, Any]], fields: Sequence[str]
) -> list[list[dict[str, Any]] | None]:
    """A cell's answers by question; None where it has not answered."""
    samples: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        samples.setdefault(row["question"], []).append({key: row[key] for key in fields if key in row})
    return [samples.get(question["id"]) for question in questions]
