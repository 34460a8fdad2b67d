"""Collected runs as the reference's JSON: one file per level, and one for the mentor alone.

`{dataset}_{split}_tokens{N}.json` and `{dataset}_{split}_mentor_only.json`, lists of objects with its fields.
Ours differ on purpose: levels are true prefixes of one stream, entropies are natural logarithms over the
whole distribution, `ppl` and `entropy` are over question and insight, and the last boxed answer counts.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from ensemblehub.artifacts import write_atomically
from ensemblehub.lab.pipeline.records import Collected, Row
from ensemblehub.lab.tasks.base import Item


def export(data: Collected, items: dict[str, Item], folder: Path, name: str) -> list[Path]:
    """Write the files of a split; `name` is DATASET_SPLIT, `items` the questions by id."""
    files = []
    for place, (level, tokens) in enumerate(data.levels.items()):
        rows = [
            guided(row, items[row.id], level, data.sequences[at][place]) for at, row in enumerate(data.rows)
        ]
        files.append(_write(folder / f"{name}_tokens{tokens}.json", rows))
    alone = [fields(row, items[row.id], "mentor", row.runs["mentor"].text, "") for row in data.rows]
    return [*files, _write(folder / f"{name}_mentor_only.json", alone)]


def guided(row: Row, item: Item, level: str, sequence: NDArray[Any]) -> dict[str, Any]:
    """One question at one level, with the intern's reading, (2, tokens): perplexity and entropy."""
    run, (perplexity, entropy) = row.runs[level], sequence
    read = {"ppl": [float(value) for value in perplexity], "entropy": [float(value) for value in entropy]}
    return fields(row, item, level, row.insight[: run.cut], run.text) | read


def fields(row: Row, item: Item, name: str, mentor: str, intern: str) -> dict[str, Any]:
    """What every object has; what code benchmarks are graded with, too."""
    run = row.runs[name]
    kept: dict[str, Any] = {key: item.extra[key] for key in ("test", "entry_point") if key in item.extra}
    return {
        "question": item.text,
        "ground_truth": item.answer,
        "mentor_tokens": run.mentor_tokens,
        "mentor_response": mentor,
        "intern_response": intern,
        "is_correct": run.correct,
        "mentor_length": run.mentor_tokens,
        "intern_length": run.intern_tokens,
        **kept,
    }


def _write(path: Path, rows: list[dict[str, Any]]) -> Path:
    write_atomically(path, json.dumps(rows, ensure_ascii=False, indent=1) + "\n")
    return path
