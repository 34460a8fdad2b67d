"""Every selection with every aggregation on the built-in problems:
`python -m ensemblehub.lab.pipeline.toolkit`.

`grid` runs all that make sense over mentor, intern and guest; `pair` runs every aggregation over intern and
guest on the calibration split, and the best of them, beside both members alone, on the test split; `report`
writes tables and plot.  `toolkit.yaml` lists the methods and their settings.  Every answer is synced as it
comes: run the same command again after a kill.  All models answer without thinking.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import FiniteFloat

from ensemblehub import builtin
from ensemblehub.artifacts import parsed, write_atomically
from ensemblehub.concurrency import for_each
from ensemblehub.config import Config
from ensemblehub.config.sections import EnsembleSection, Generation, ModelSpec, RewardSpec
from ensemblehub.cost import UsageLedger
from ensemblehub.ensemble import AsyncEnsemble
from ensemblehub.errors import EngineError, EnsembleHubError
from ensemblehub.lab.journal import ANEW, Journal
from ensemblehub.lab.pipeline import splits, toolkit_report
from ensemblehub.lab.pipeline.experiment import as_json
from ensemblehub.lab.pipeline.progress import progress
from ensemblehub.lab.pipeline.toolkit_report import Summary, members, ranking, read_methods, summary
from ensemblehub.lab.tasks import task_named
from ensemblehub.lab.tasks.base import Item, Task
from ensemblehub.results import attempt
from ensemblehub.schema import Sampling

CONCURRENCY = 32


@dataclass(frozen=True)
class Cell:
    """One combination: a configuration and what the table calls it."""

    models: str
    selection: str
    aggregation: str
    note: str
    config: Config

    @property
    def sampling(self) -> Sampling:
        """How its text is generated."""
        return self.config.ensemble.generation.sampling()

    @property
    def file(self) -> str:
        """Its name on disk."""
        return f"{self.models}-{self.selection}-{self.aggregation}".replace(" ", "_")


def cells(models: str, selections: Sequence[str] = ()) -> Iterator[Cell]:
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
            yield Cell(models, selection, aggregation, note, config)
    if models == "pair":
        for name in methods["pair"]:
            section = EnsembleSection(
                output_aggregation_params={"engine": name}, generation=Generation(**generation)
            )
            yield Cell(models, "all", name, "", Config(model_specs=specs, ensemble=section))


def run(cell: Cell, task: Task, split: str, limit: int, folder: Path, force: bool) -> Summary:
    """Answer `limit` questions of a split with a cell, or read what was answered; its line of the table.

    A combination that is refused before loading has no figures but the reason.
    """
    line: Summary = {
        "models": cell.models,
        "selection": cell.selection,
        "aggregation": cell.aggregation,
        "split": split,
        "note": cell.note,
    }
    try:
        ensemble = AsyncEnsemble.from_config(cell.config)
    except EnsembleHubError as error:
        return line | {"refused": str(error)}
    items = list(task.items(split, limit))
    settings = {"config": cell.config.model_dump(mode="json"), "split": split, "task": task.name}
    settings["models"] = [engine.model for engine in ensemble.engines]
    settings["trained"] = trained(cell.config)
    path = folder / "rows" / split / f"{cell.file}.jsonl"
    with closing(Journal(path, as_json(settings), force)) as journal:
        splits.check_unchanged(journal, items)
        missing = journal.missing(items)
        with progress(
            f"{split} {cell.selection} {cell.aggregation}", len(items), len(items) - len(missing)
        ) as step:
            if missing:
                asyncio.run(answer(ensemble, task, missing, cell.sampling, journal, step))
        rows = [
            parsed(AnswerRow, json.dumps(journal.rows[item.id]), f"{journal.path}: {item.id}", ANEW)
            for item in items
        ]
    return line | summary([asdict(row) for row in rows])


def trained(config: Config) -> dict[str, str]:
    """Hashes of the trained parts that a configuration names, by option."""
    named = {**config.selection.params, **config.aggregation.params}
    found = {}
    for option in sorted({"artifact", "judge", "stats_file"} & named.keys()):
        place = Path(builtin.resolve(str(named[option])))
        files = sorted(place.glob("*.*")) if place.is_dir() else [place] if place.is_file() else []
        found[option] = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]
    return found


@dataclass(frozen=True)
class AnswerRow:
    """A row of a cell's journal: tokens `read` and `written`, and the `error` that an answer failed with."""

    id: str
    correct: bool
    finish: str | None
    read: int
    written: int
    tflops: FiniteFloat
    seconds: FiniteFloat
    error: str = ""
    asked: str = ""


async def answer(
    ensemble: AsyncEnsemble,
    task: Task,
    items: Sequence[Item],
    sampling: Sampling,
    journal: Journal,
    step: Callable[[], None],
) -> None:
    """Answer and grade every item; a failed one counts as wrong, with the error in its row."""

    async def work(item: Item) -> dict[str, Any]:
        ledger = UsageLedger()
        ask = task.ask(item, sampling, thinking=False)
        result, failure = await attempt(ensemble.stream(ask, ledger), ledger)
        if failure and not isinstance(failure, EngineError):
            raise failure
        error, total = str(failure or ""), ledger.total
        grade = await asyncio.to_thread(task.grade, item, result.text)
        return {
            "id": item.id,
            "asked": splits.asked(item),
            "correct": grade.correct and not error,
            "finish": result.finish,
            "read": total.prompt_tokens - total.cached_tokens,
            "written": total.completion_tokens,
            "tflops": total.flops / 1e12,
            "seconds": total.seconds,
            "error": error,
        }

    async with ensemble:
        await for_each(items, work, limit=CONCURRENCY, keep=journal.append, progress=step)


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
    add("--shard", type=str, default="0/1", metavar="I/N", help="only every N-th cell from the I-th on")
    parser.add_argument("--force", action="store_true", help="answer again what other settings answered")
    options = parser.parse_args(arguments)
    task = task_named("builtin_math")
    first, of = map(int, options.shard.split("/"))

    def lines(name: str, chosen: Sequence[Cell], split: str, limit: int) -> list[Summary]:
        done = [run(cell, task, split, limit, options.out, options.force) for cell in chosen[first::of]]
        if of == 1:
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
