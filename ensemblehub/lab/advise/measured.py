"""`ensemblehub certify`: a certificate of any strategy, from answers that `ensemblehub bench` kept."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from ensemblehub.artifacts import write_atomically
from ensemblehub.config import Config
from ensemblehub.ensemble import AsyncEnsemble
from ensemblehub.errors import ArtifactError, ConfigError, did_you_mean
from ensemblehub.lab.advise.certified import CertifiedStrategy, certify
from ensemblehub.lab.advise.strategy import Strategy
from ensemblehub.lab.bench.answers import Questions, settings_of_cell
from ensemblehub.lab.bench.cells import Cell
from ensemblehub.lab.bench.compare import paired
from ensemblehub.lab.bench.mixes import single_models
from ensemblehub.lab.bench.report import CellAnswers
from ensemblehub.lab.bench.rows import AnswerRow, journals
from ensemblehub.lab.bench.summary import CostUnit, is_known
from ensemblehub.lab.journal import differences, told
from ensemblehub.lab.pipeline import splits
from ensemblehub.lab.pipeline.certificate import Promise
from ensemblehub.lab.pipeline.certificate_command import prompt_line
from ensemblehub.lab.pipeline.experiment import as_json, with_sampling
from ensemblehub.lab.tasks import task_named
from ensemblehub.tandem.drift import histogram

FILE = "certified.yaml"
UNITS: dict[str, CostUnit] = {
    "usd": "usd",
    "cold_flops": "flops",
}  # what costs are compared in, of a row and of a line of its usage


@dataclass(frozen=True)
class Measured:
    """A cell with one answer to every question, in the order of their ids: journals are in that of being finished."""

    cell: Cell
    settings: dict[str, Any]
    rows: Sequence[AnswerRow]


def certify_measured(
    folder: Path,
    cells: Sequence[Cell],
    against: str,
    only: Sequence[str],
    promise: Promise,
    out: Path,
    task: str | None = None,
) -> str:
    """Certify the cheapest cell that keeps a promise against the mentor; returns what a user reads.

    Cells of one method, with the same models, selection and scorers, are the settings of one strategy (see
    `certify`).  Writes `certificate.json` and the configuration to serve.

    Args:
        folder: results of `bench`.
        cells: what was measured.
        against: name of the cell in which the mentor answers alone.
        only: patterns of the names of the cells that may be certified; all where there is none.
        task: what was measured; the name that the answers give by default.

    Raises:
        ConfigError: there are no such cells, a cost is unknown, or nothing that costs less keeps the promise.
        ArtifactError: answers are missing, were made with other settings, or are to other questions.
    """
    mentor, *others = measured(folder, chosen(cells, against, only), task)
    best, cell = certified_cell(mentor, others, promise)
    sampling = cell.settings["sampling"]
    served = with_sampling(cell.cell.config, sampling["max_tokens"], sampling["stop"])
    whole = served.model_dump(exclude_unset=True, mode="json", exclude={"sweep", "experiment"})
    config = Config.from_dict(whole, ["ensemble.certificate=."])
    tested = [row for row, within in zip(cell.rows, best.tested, strict=True) if within]
    text = best.save(config, [f"{row.asked} {row.prompted}" for row in cell.rows], out, scores(tested))
    unserved = task_named(task or cell.settings["task"], None, cell.settings["prompt"]).unserved()
    heading = "".join(f"# {line}\n" for line in (best.name, unserved) if line)
    write_atomically(out / FILE, f"{heading}{config.to_yaml()}")
    return "\n".join([text, *prompt_line(unserved)])


def chosen(cells: Sequence[Cell], against: str, only: Sequence[str]) -> list[Cell]:
    """The mentor's cell, and those that match a pattern; see `certify_measured`."""
    by_name = {cell.name: cell for cell in cells}
    if against not in by_name:
        raise ConfigError(did_you_mean(against, by_name, "cell"))
    others = [name for name in by_name if name != against]
    for pattern in only:
        if not any(fnmatchcase(name, pattern) for name in others):
            raise ConfigError(did_you_mean(pattern, others, "cell"))
    kept = [name for name in others if not only or any(fnmatchcase(name, pattern) for pattern in only)]
    if not kept:
        raise ConfigError(f"there is no cell beside {against!r} to certify")
    return [by_name[name] for name in (against, *kept)]


def measured(folder: Path, cells: Sequence[Cell], task: str | None = None) -> list[Measured]:
    """The answers of cells, the mentor's first; see `certify_measured`."""
    files = journals(folder)
    for cell in cells:
        if cell.file not in files:
            raise ArtifactError(f"{folder} has no answers of the cell {cell.name!r}: run `ensemblehub bench`")
    found = [CellAnswers.read(files[cell.file]) for cell in cells]
    mentor = found[0]
    if not single_models([mentor]):
        raise ConfigError(f"the cell {mentor.name!r} is no model alone: name the mentor's with --against")
    made = []
    for cell, answers in zip(cells, found, strict=True):
        _check(cell, answers, task)
        samples = [rows for _, (_, rows) in sorted(paired(mentor, answers).items())]
        if any(len(rows) > 1 for rows in samples):
            raise ConfigError(f"{answers.path} has several answers a question, which are not independent")
        if failed := sum(bool(row.error) for rows in samples for row in rows):
            raise ConfigError(f"{answers.path} has {failed} calls that failed, not answers: ask these again")
        made.append(Measured(cell, answers.settings, [rows[0] for rows in samples]))
    own = [f"{row.asked} {row.prompted}" for row in made[0].rows]
    places = splits.distinct(own, str(folder))
    return [replace(each, rows=[each.rows[place] for place in places]) for each in made]


def _check(cell: Cell, answers: CellAnswers, task: str | None) -> None:
    """Check that a cell was measured as it is configured."""
    about = answers.about
    questions = Questions(task_named(task or about["task"], None, about["prompt"]), about["split"], [])
    ensemble = AsyncEnsemble.from_config(cell.config)
    now = as_json({"cell": cell.name, **settings_of_cell(cell.config, ensemble, questions)})
    if differing := list(differences(answers.settings, now)):
        raise ArtifactError(f"{answers.path} was made with other settings: {told(differing)}")


def certified_cell(
    mentor: Measured, others: Sequence[Measured], promise: Promise
) -> tuple[CertifiedStrategy, Measured]:
    """The cheapest of `others` that keeps the promise, in dollars where all models have a price, else in FLOPs.

    Raises:
        ConfigError: none does, or a cost is unknown.
    """
    unit = _unit([mentor, *others])
    families = dict[str, list[Measured]]()
    for each in others:
        settings = each.settings
        same = [
            settings["aggregation"]["method"],
            *(settings[key] for key in ("engines", "selection", "scorers")),
        ]
        families.setdefault(json.dumps(same), []).append(each)
    groups = [[mentor], *families.values()]
    best = certify(
        [_strategy(group, unit) for group in groups], [row.subject for row in mentor.rows], promise
    )
    names = {each.cell.name: each for each in others}
    return best, names[best.strategy.settings[best.index][0]]


def _unit(cells: Sequence[Measured]) -> str:
    """What costs are compared in: dollars or FLOPs, the first that is known of every call."""
    specs = {spec.name: each.cell.config.options(spec) for each in cells for spec in each.cell.config.members}
    priced = {name for name, options in specs.items() if options.get("price")}
    for unit, key in UNITS.items():
        known = all(is_known(key, each.rows, priced) for each in cells)
        if known and any(getattr(row, unit) for row in cells[0].rows):
            return unit
    raise ConfigError("costs cannot be compared: give every model a `price`, or every one its `parameters`")


def _strategy(group: Sequence[Measured], unit: str) -> Strategy:
    """Cells as the settings of one strategy."""
    return Strategy(
        group[0].settings["aggregation"]["method"],
        tuple((each.cell.name, {}) for each in group),
        np.array([[row.correct for row in each.rows] for each in group], float).T,
        np.array([[getattr(row, unit) for row in each.rows] for each in group], float).T,
    )


def scores(rows: Sequence[AnswerRow]) -> dict[str, list[int]]:
    """Histograms of the first and the last probability of a judge, where they differ; see `Certificate`."""
    heard = [row.verdicts for row in rows if row.verdicts]
    found = {
        name: [verdicts[at]["probability"] for verdicts in heard] for name, at in (("first", 0), ("last", -1))
    }
    if found["last"] == found["first"]:
        del found["last"]
    return {name: histogram(values) for name, values in found.items() if len(set(values)) > 1}
