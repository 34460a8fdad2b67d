"""What a board shows of a result folder of `ensemblehub bench`: its report, the questions and all answers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ensemblehub.artifacts import content_of, entries, unpacked
from ensemblehub.errors import ArtifactError

FIELDS = ("sample", "correct", "reason", "finish", "written", "cold_flops", "usd", "wall", "text", "insight")
DECISIONS = ("verdicts", "choices")
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


def section(folder: Path, report: Mapping[str, Any]) -> dict[str, Any]:
    """What a board shows of a folder.

    Args:
        report: Its `title`, `notes` and `lines`, and its `cells`: the names of the files with their answers.

    Raises:
        ArtifactError: A file is missing or damaged.
    """
    cells = [_rows(folder / "answers" / f"{name}.jsonl") for name in report["cells"]]
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
        "cells": [{"name": name, "answers": _answers(rows, questions)} for name, rows in cells],
    }


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


def _rows(path: Path) -> tuple[str, list[dict[str, Any]]]:
    """A cell's name and its answers, the latest of each id."""
    try:
        head, *rows = entries(unpacked(path, REMEDY))[0]
        return str(head["settings"].get("cell", path.stem)), list({row["id"]: row for row in rows}.values())
    except (ValueError, LookupError, AttributeError) as error:
        raise ArtifactError(f"{path} is damaged ({error}): {REMEDY}") from error


def _answers(
    rows: list[dict[str, Any]], questions: list[dict[str, Any]]
) -> list[list[dict[str, Any]] | None]:
    """A cell's answers by question; None where it has not answered."""
    samples: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        kept = {key: row[key] for key in (*FIELDS, *DECISIONS) if key in row}
        samples.setdefault(row["question"], []).append(kept)
    return [samples.get(question["id"]) for question in questions]
