"""The rows of a cell: an answer each, in a journal."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import FiniteFloat

from ensemblehub.artifacts import entries, parsed, unpacked
from ensemblehub.errors import ArtifactError
from ensemblehub.lab.journal import ANEW, settings_of

ANSWERS = "answers"  # subfolder of a result folder


@dataclass(frozen=True)
class AnswerRow:
    """An answer, graded, with its cost.

    Attributes:
        question: Id of the question; `asked` a hash of it and of what it is graded by, `prompted` of the chat
            that put it to the model.
        graded: What the grading understood as the answer; `reason` says why it is wrong.
        error: The error that the answer failed with; empty otherwise.
        in_form: Whether the answer has the form that was asked for: a box, code with the function.
        suites: Whether it passes each set of tests, where the benchmark has several.
        leak: Whether an insight stated the answer.
        flops: Computed; `cold_flops` counts what earlier questions left in a cache as computed.
        seconds: The engines' own time; `wall` the time from request to answer, beside other requests.
        usage: Cost by engine and purpose.
    """

    id: str
    question: str
    sample: int
    asked: str
    prompted: str
    subject: str
    level: int
    correct: bool
    graded: str | None
    reason: str
    finish: str | None
    error: str
    leak: bool
    read: int
    written: int
    flops: FiniteFloat
    cold_flops: FiniteFloat
    usd: FiniteFloat
    seconds: FiniteFloat
    wall: FiniteFloat
    text: str
    insight: str = ""
    verdicts: list[dict[str, Any]] = field(default_factory=list)
    choices: list[dict[str, Any]] = field(default_factory=list)
    usage: list[dict[str, Any]] = field(default_factory=list)
    in_form: bool = True
    suites: dict[str, bool] = field(default_factory=dict)


def journals(folder: Path) -> dict[str, Path]:
    """The journals in a result folder by the names of their cells' files; a gzipped one where no plain one is."""
    found = [path for ending in ("*.jsonl.gz", "*.jsonl") for path in (folder / ANSWERS).glob(ending)]
    return dict(sorted((stem(path), path) for path in found))


def stem(path: Path) -> str:
    """The name of a journal without its endings."""
    return Path(path.name.removesuffix(".gz")).stem


def read_rows(path: Path) -> tuple[dict[str, Any], dict[str, AnswerRow]]:
    """The settings of a cell's journal, and its rows by id; a torn last line does not count.

    Raises:
        ArtifactError: It is missing or damaged.
    """
    try:
        found, _ = entries(unpacked(path, "run `ensemblehub bench`, with --force where it is damaged"))
    except ValueError as error:
        raise ArtifactError(f"{path} is damaged ({error}); {ANEW}") from error
    settings, rows = settings_of(path, found)
    return settings, {row["id"]: parse_row(path, row) for row in rows}


def parse_row(path: Path, row: dict[str, Any]) -> AnswerRow:
    """A row of the journal at `path`.

    Raises:
        ArtifactError: A field is missing or of another type.
    """
    return parsed(AnswerRow, json.dumps(row), f"{path}: {row.get('id')}", ANEW)
