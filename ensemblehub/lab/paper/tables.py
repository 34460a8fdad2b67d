"""A table on disk, with the paper's own figures beside it, marked as such.

`figures.yaml` holds what the paper printed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ensemblehub.artifacts import write_atomically
from ensemblehub.lab.pipeline import report

TableRow = dict[str, Any]
FIGURES = Path(__file__).with_name("figures.yaml")


@dataclass(frozen=True)
class Table:
    """Rows with a name for each, and what is to be said about them.

    Attributes:
        figures: which of the paper's tables stands beside it (a key of `figures.yaml`).
        key: the column by which a row finds its figures in the paper.
        columns: as in `pipeline/report.py`; a row may lack some.
    """

    name: str
    title: str
    rows: Sequence[TableRow]
    columns: Sequence[str]
    notes: Sequence[str] = ()
    figures: str | None = None
    key: str = "method"

    def markdown(self) -> str:
        """The table, the paper's figures in columns that begin with `paper`, and the notes."""
        paper = published(self.figures) if self.figures else {}
        printed = paper.get("rows", {})
        rows: list[TableRow] = [{**row, **marked(printed.get(str(row.get(self.key))))} for row in self.rows]
        known = {str(row.get(self.key)) for row in self.rows}
        rows += [
            {self.key: f"paper: {name}", **marked(own)} for name, own in printed.items() if name not in known
        ]
        more = [column for column in PAPER if any(column in row for row in rows)]
        notes = [*self.notes, *([f"The paper's own figures: {paper['source']}"] if paper else [])]
        return f"# {self.title}\n\n{report.markdown(rows, notes, [*self.columns, *more])}"

    def write(self, folder: Path) -> str:
        """Write `NAME.md` and `NAME.json`; returns the former."""
        text = self.markdown()
        write_atomically(folder / f"{self.name}.md", text)
        record: TableRow = {"title": self.title, "rows": list(self.rows), "notes": list(self.notes)}
        if self.figures:
            record["paper"] = published(self.figures)
        write_atomically(folder / f"{self.name}.json", json.dumps(record, indent=1) + "\n")
        return text


PAPER = ("paper accuracy", "paper cost_vs_mentor", "paper length", "paper seconds")


def published(name: str) -> Mapping[str, Any]:
    """The paper's table of that name: its `source`, and `rows` by method."""
    figures: Mapping[str, Mapping[str, Any]] = yaml.safe_load(FIGURES.read_text(encoding="utf-8"))
    return figures[name]


def marked(figures: Mapping[str, Any] | None) -> TableRow:
    """The paper's figures of one row, under names that say whose they are."""
    return {f"paper {key}": value for key, value in (figures or {}).items()}
