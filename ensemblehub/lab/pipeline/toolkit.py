"""Every selection with every aggregation on built-in problems: `python -m ensemblehub.lab.pipeline.toolkit`.

`grid` runs all that make sense over mentor, intern and guest; `pair` runs every aggregation over intern and
guest on the calibration split, and the best of them, beside both members alone, on the test split; `report`
writes tables and plot.  `toolkit.yaml` lists the methods and their settings.  Every answer is synced as it
comes: run the same command again after a kill.  All models answer without thinking.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ensemblehub.artifacts import write_atomically
from ensemblehub.config import Config
from ensemblehub.config.sections import EnsembleSection, Generation, ModelSpec, RewardSpec
from ensemblehub.ensemble import AsyncEnsemble
from ensemblehub.errors import EnsembleHubError
from ensemblehub.lab.bench.answers import Bench, Questions
from ensemblehub.lab.bench.cells import Cell
from ensemblehub.lab.bench.summary import Summary, summary
from ensemblehub.lab.pipeline import toolkit_report
from ensemblehub.lab.pipeline.toolkit_report import members, ranking, read_methods
from ensemblehub.lab.tasks import task_named
from ensemblehub.lab.tasks.base import Task
from ensemblehub.shards import Shard


@dataclass(frozen=True)
class Combination(Cell):
    """A selection with an aggregation, and what is to be said of it."""

    models: str
    selection: str
    aggregation: str
    note: str


def cells(models: str, selections: Sequence[str] = ()) -> Iterator[Combination]:
    """All combinations over `models` or `pair`, with some of the selections (all of them by default)."""
    methods = read_methods()
    generation: dict[str, Any] = methods["generation"]
    specs = [ModelSpec.model_validate({"name": name, "path": f"builtin:{name}"}) for name in methods[models]]
    rewards = [RewardSpec.model_validate(spec) for spec in methods["reward_specs"]]
    for selection in selections or methods["selections"]:
        chosen = methods["selections"][selection]
        for aggregation, entry in methods["aggregations"].items():
            sensible = selection in entry.get("with", [selection])
            sensible = sensible and aggregation in chosen.get("only", [aggregation])
            if not sensible or (models == "pair" and not entry.get("pair", True)):
                continue
            section = EnsembleSection(
                model_selection_method=selection,
                model_selection_params=chosen.get("params", {}),
                output_aggregation_method=entry.get("method", aggregation),
                output_aggregation_params=entry.get("params", {}),
                generation=Generation(**generation | entry.get("generation", {})),
            )
            note = "; ".join(filter(None, (chosen.get("note"), entry.get("note"))))
            config = Config(model_specs=specs, reward_specs=rewards, ensemble=section)
            name = f"{models}-{selection}-{aggregation}"
            yield Combination(name, config, models, selection, aggregation, note)
    if models == "pair":
        for name in methods["pair"]:
            section = EnsembleSection(
                output_aggregation_params={"engine": name}, generation=Generation(**generation)
            )
            config = Config(model_specs=specs, ensemble=section)
            yield Combination(f"{models}-all-{name}", config, models, "all", name, "")


def run(cell: Combination, task: Task, split: str, limit: int, folder: Path, force: bool) -> Summary:
    """Answer `limit` questions of a split with a combination, or read the answers; its line of the table.

    A combination that is refused before loading has no figures but the reason.  A failed answer is wrong.
    """
    line: Summary = {
        "models": cell.models,
        "selection": cell.selection,
        "aggregation": cell.aggregation,
        "split": split,
        "note": cell.note,
    }
    try:
        AsyncEnsemble.from_config(cell.config)
    except EnsembleHubError as error:
        return line | {"refused": str(error)}
    questions = Questions(task, split, list(task.items(split, limit)), thinking=False)
    rows = Bench(questions, folder / "rows" / split, force, "wrong").answered(cell)
    found = summary(cell.name, rows, limit)
    found["tflops"] = found["tflops_computed"]
    line |= {key: found[key] for key in toolkit_report.MEASURED if key in found}
    return line | {"right": "".join(str(int(row.correct)) for row in rows)}


def report(folder: Path) -> str:
    """Write `grid.md`, `pair.md` and the plot from what was run."""
    return toolkit_report.write(folder, ((cell.selection, cell.aggregation) for cell in cells("models")))


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m ensemblehub.lab.pipeline.toolkit",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", choices=("grid", "pair", "report"))
    add = functools.partial(parser.add_argument, type=int)
    add("--out", type=Path, default=Path("results/toolkit"), help="(default: %(default)s)")
    add("--questions", default=300, help="of the test split, for `grid` (default: %(default)s)")
    add("--calibration", default=400, help="questions for `pair` (default: %(default)s)")
    add("--test", default=2000, help="test questions for `pair` (default: %(default)s)")
    add("--best", default=6, help="ensembles that `pair` tests (default: %(default)s)")
    add(
        "--shard",
        type=Shard.parse,
        default="0/1",
        metavar="I/N",
        help="only every N-th cell from the I-th on",
    )
    parser.add_argument("--force", action="store_true", help="answer again what other settings answered")
    options = parser.parse_args(arguments)
    task = task_named("builtin_math")

    def lines(name: str, chosen: Sequence[Combination], split: str, limit: int) -> list[Summary]:
        mine = chosen[options.shard.index :: options.shard.count]
        done = [run(cell, task, split, limit, options.out, options.force) for cell in mine]
        if options.shard.count == 1:
            write_atomically(options.out / f"{name}.json", json.dumps(done, indent=1) + "\n")
        return done

    if options.what == "report":
        print(report(options.out))
    elif options.what == "grid":
        lines("grid", list(cells("models")), "test", options.questions)
    else:
        pair = list(cells("pair", ("all",)))
        ranked = ranking(lines("pair-calibration", pair, "calibration", options.calibration))[: options.best]
        kept = {*members(), *(line["aggregation"] for line in ranked)}
        tested = [cell for cell in pair if cell.aggregation in kept]
        lines("pair-test", tested, "test", options.test)


if __name__ == "__main__":
    try:
        main()
    except EnsembleHubError as error:
        sys.exit(f"toolkit: {' '.join(str(error).split())}")
