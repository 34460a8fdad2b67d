"""The report of a result folder: `summary.json`, `table.md` and accuracy against cost as a plot."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ensemblehub.artifacts import content_of, parsed, write_atomically
from ensemblehub.errors import ArtifactError
from ensemblehub.lab import markdown as tables
from ensemblehub.lab import metrics
from ensemblehub.lab.bench.rows import ANSWERS, AnswerRow, journals, read_rows, stem
from ensemblehub.lab.bench.summary import CostUnit, Summary, is_known, shares, summary
from ensemblehub.lab.journal import ANEW
from ensemblehub.lab.pipeline.report import markdown
from ensemblehub.lab.plots import Point, accuracy_against_cost

COSTS = (  # what the cost axis may show: the first that every cell has
    ("tflops", "TFLOPs per answer (caches of earlier questions not counted)"),
    ("usd", "US dollars per answer"),
    ("written", "tokens generated per answer"),
)
COLUMNS = ("method", "n", "accuracy", "difference", "read", "written", "tflops", "usd", "seconds", "wall")
SHARES = (
    "base_share",
    "plus_share",
    "truncated_share",
    "unreadable_share",
    "wrong_form_share",
    "leak_share",
    "errors",
)
HOW = (
    "Accuracy with 95 % interval (Wilson; several samples of a question are a cluster); difference to the "
    "first line in points with paired-bootstrap 95 % interval. Per answer: tokens computed (read) and "
    "generated (written) by all models, compute as if no earlier question had filled a cache, "
)
SECONDS = "the engines' seconds, and wall seconds beside the other questions in progress."
REUSED_SECONDS = (
    "and the engines' seconds when each call was made, once for all lines that make it alike (--reuse), beside "
    "up to as many others as were in progress then. Wall seconds of such a run say nothing, and are left out."
)


@dataclass(frozen=True)
class CellAnswers:
    """What a cell has answered so far.

    Attributes:
        reused: Whether calls of other cells were reused: `wall` of its rows then says nothing.
    """

    name: str
    path: Path
    settings: dict[str, Any]
    rows: list[AnswerRow]
    reused: bool = False

    @classmethod
    def read(cls, path: Path) -> CellAnswers:
        """The cell whose journal is at `path`.

        Raises:
            ArtifactError: It, or the summary of its folder, is missing or damaged.
        """
        settings, rows = read_rows(path)
        name = str(settings.get("cell", stem(path)))
        reused = path.parent.name == ANSWERS and _known(path.parent.parent).reused
        return cls(name, path, settings, list(rows.values()), reused)

    def knows(self, unit: CostUnit) -> bool:
        """Whether the cost of all of its calls is known in a unit."""
        engines = self.settings.get("engines", {})
        return is_known(unit, self.rows, {name for name, options in engines.items() if options.get("price")})

    @property
    def about(self) -> dict[str, Any]:
        """Task, split and prompt."""
        return {key: self.settings.get(key) for key in ("task", "split", "prompt")}


def lines(cells: Sequence[CellAnswers], asked: int) -> list[Summary]:
    """The lines of `summary.json`; differences are to the first cell, over the same questions.

    Costs of which a part is unknown are None.
    """
    answered = [cell for cell in cells if cell.rows]
    found = [summary(cell.name, cell.rows, asked) for cell in answered]
    for cell, line in zip(answered, found, strict=True):
        unknown = [] if cell.knows("flops") else ["tflops", "tflops_computed"]
        line |= dict.fromkeys(unknown if cell.knows("usd") else [*unknown, "usd"])
    baseline = shares(answered[0].rows) if answered else {}
    for cell, line in zip(answered[1:], found[1:], strict=True):
        mine = shares(cell.rows)
        if mine.keys() == baseline.keys():
            theirs = [baseline[name] for name in mine]
            low, high = metrics.paired_bootstrap(list(mine.values()), theirs)
            line["difference"] = line["accuracy"] - found[0]["accuracy"]
            line |= {"difference_low": low, "difference_high": high}
    for line in found if any(cell.reused for cell in answered) else ():
        del line["wall"]
    return found


def table(found: Sequence[Summary], title: str, notes: Sequence[str]) -> str:
    """The lines as Markdown."""
    used = [column for column in SHARES if any(line.get(column) for line in found)]
    rates = [key for key in (found[0] if found else ()) if key.startswith("pass@")]
    columns = [column for column in COLUMNS if column != "usd" or any(line["usd"] for line in found)]
    if not all("wall" in line for line in found):
        columns.remove("wall")
    if not any("difference" in line for line in found):
        columns.remove("difference")
    text = f"# {title}\n\n{markdown(found, notes, [*columns, *rates, *used])}"
    parts = [
        (line["method"], name, f"{entry['read']:.1f}", f"{entry['written']:.1f}")
        for line in found
        for name, entry in line["engines"].items()
        if len(line["engines"]) > 1 and any(entry.values())
    ]
    if not parts:
        return text
    by_engine = tables.table(("method", "engine and purpose", "read", "written"), parts, "llrr")
    return f"{text}\n## Tokens per answer, by engine and purpose\n\n{by_engine}\n"


def plot(found: Sequence[Summary], path: Path, title: str, costs: Sequence[tuple[str, str]] = COSTS) -> None:
    """Draw the cells, by the first of `costs` that all of them have."""
    column, label = next((entry for entry in costs if all(line[entry[0]] for line in found)), costs[-1])
    points = [
        Point(line["method"], line[column], line["accuracy"], line["accuracy_low"], line["accuracy_high"])
        for line in found
    ]
    known = [point.cost for point in points if point.cost]
    wide = len(known) == len(points) > 1 and max(known) > 8 * min(known)
    accuracy_against_cost(points, [path], label, title, log=wide)


def notes(cells: Sequence[CellAnswers], found: Sequence[Summary], asked: int, grading: str) -> list[str]:
    """What stands below the table: conditions, and what is missing."""
    about, samplings = cells[0].about, [cell.settings["sampling"] for cell in cells]
    temperatures = sorted({sampling["temperature"] for sampling in samplings})
    lengths = sorted({sampling["max_tokens"] for sampling in samplings})
    drawn = " or ".join(f"temperature {value:g}" if value else "greedy" for value in temperatures)
    said = f"{drawn}, at most {' or '.join(map(str, lengths))} tokens"
    asked_how = f"`{about['task']}` ({about['split']}), prompt profile `{about['prompt']}`, {said}."
    short = [f"{line['method']} {line['answers']} of {asked}" for line in found if line["answers"] < asked]
    left = [f"Not finished: {', '.join(short)}."] if short else []
    seconds = REUSED_SECONDS if any(cell.reused for cell in cells) else SECONDS
    return [f"{asked_how} {HOW}{seconds}", *left, *([grading] if grading else [])]


def write(folder: Path, names: Sequence[str], ids: set[str], grading: str = "", reused: bool = False) -> str:
    """Write the report of all cells of a folder; returns the table.

    Args:
        names: Files of the cells in the order of the table; others in the folder come before them.
        ids: Answers that the report is over.
        reused: Whether cells reused each other's calls, in this run; an earlier one is remembered.
    """
    if not journals(folder):
        return ""
    cells = [
        replace(cell, rows=[row for row in cell.rows if row.id in ids], reused=reused or cell.reused)
        for cell in cells_in(folder, names)
    ]
    found = lines(cells, len(ids))
    if not found:
        return ""  # nothing is answered yet
    about, title = cells[0].about, title_of(cells[0], found[0]["n"])
    below = notes(cells, found, len(ids), grading)
    text = table(found, title, below)
    record = {
        **about,
        "title": title,
        "notes": below,
        "cells": [stem(cell.path) for cell in cells],
        "reused": any(cell.reused for cell in cells),
        "lines": found,
    }
    write_atomically(folder / "summary.json", json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    write_atomically(folder / "table.md", text)
    plot(found, folder / "accuracy_cost.svg", title)
    plot(found, folder / "accuracy_seconds.svg", title, [("seconds", "engine seconds per answer")])
    return text


def title_of(cell: CellAnswers, n: int) -> str:
    """A title for results over `n` questions."""
    about = cell.about
    return f"{about['task']}, {about['split']}: {n} questions"


def cells_in(folder: Path, names: Sequence[str] = ()) -> list[CellAnswers]:
    """The cells of a result folder, in the order of its last report, then of `names`.

    Raises:
        ArtifactError: A journal is damaged, or the folder is none of `ensemblehub bench`.
    """
    files = journals(folder)
    if not files:
        raise ArtifactError(f"{folder} holds no results of `ensemblehub bench`")
    order = dict.fromkeys(name for name in (*_known(folder).cells, *names, *files) if name in files)
    return [CellAnswers.read(files[name]) for name in order]


@dataclass(frozen=True)
class _Known:
    """What is read of `summary.json`: files of the cells in the order of the table; see `CellAnswers`."""

    cells: list[str] = field(default_factory=list)
    reused: bool = False


def _known(folder: Path) -> _Known:
    """What the last report of a folder tells; nothing where there is none."""
    path = folder / "summary.json"
    return parsed(_Known, content_of(path, ANEW), path, "remove it") if path.exists() else _Known()
