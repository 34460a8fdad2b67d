"""Every selection with every aggregation on the built-in problems: `python -m ensemblehub.lab.pipeline.toolkit`.

`grid` runs all that make sense over mentor, intern and guest; `pair` every aggregation over intern and guest on
the calibration split, and the best of them, beside both members alone, on the test split; `report` writes
tables and plot.  What is run, and with which settings, stands in `toolkit.yaml`.  Every answer is synced as it comes:
run the same command again after a kill.  All models answer concisely (`thinking` is off).
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import FiniteFloat, StringConstraints

from ensemblehub import builtin, registry
from ensemblehub.artifacts import content_of, parsed, write_atomically
from ensemblehub.concurrency import together
from ensemblehub.config import Config
from ensemblehub.cost import UsageLedger
from ensemblehub.ensemble import AsyncEnsemble
from ensemblehub.errors import ArtifactError, EngineError, EnsembleHubError
from ensemblehub.journal import ANEW, Journal
from ensemblehub.lab import metrics
from ensemblehub.lab.pipeline import splits
from ensemblehub.lab.pipeline.progress import progress
from ensemblehub.lab.pipeline.report import pyplot
from ensemblehub.lab.tasks.base import Item, Task
from ensemblehub.results import fold
from ensemblehub.schema import Event, Request, Sampling

METHODS = Path(__file__).with_suffix(".yaml")
CONCURRENCY = 32
Summary = dict[str, Any]


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
    methods = yaml.safe_load(METHODS.read_text(encoding="utf-8"))
    specs = [{"name": name, "path": f"builtin:{name}"} for name in methods[models]]
    for selection in selections or methods["selections"]:
        for aggregation, entry in methods["aggregations"].items():
            chosen = methods["selections"][selection]
            sensible = selection in entry.get("with", [selection]) and aggregation in chosen.get(
                "only", [aggregation]
            )
            if not sensible or (models == "pair" and not entry.get("pair", True)):
                continue
            ensemble = {
                "model_selection_method": selection,
                "model_selection_params": chosen.get("params", {}),
                "output_aggregation_method": entry.get("method", aggregation),
                "output_aggregation_params": entry.get("params", {}),
                "generation": methods["generation"] | entry.get("generation", {}),
            }
            data = {"model_specs": specs, "reward_specs": methods["reward_specs"], "ensemble": ensemble}
            note = "; ".join(filter(None, (chosen.get("note"), entry.get("note"))))
            yield Cell(models, selection, aggregation, note, Config.model_validate(data))
    if models == "pair":
        for name in methods["pair"]:
            ensemble = {"output_aggregation_params": {"engine": name}, "generation": methods["generation"]}
            yield Cell(
                models, "all", name, "", Config.model_validate({"model_specs": specs, "ensemble": ensemble})
            )


def run(cell: Cell, task: Task, split: str, limit: int, folder: Path, force: bool) -> Summary:
    """Answer `limit` questions of a split with a cell, or read what was answered; its line of the table.

    A combination that is refused before loading has no figures but the reason.
    """
    line: Summary = {"models": cell.models, "selection": cell.selection, "aggregation": cell.aggregation}
    line |= {"split": split, "note": cell.note}
    try:
        ensemble = AsyncEnsemble.from_config(cell.config)
    except EnsembleHubError as error:
        return line | {"refused": str(error)}
    items = list(task.items(split, limit))
    settings = {"config": cell.config.model_dump(mode="json"), "split": split, "task": task.name}
    settings["models"] = [engine.model for engine in ensemble.engines]
    settings["trained"] = trained(cell.config)
    journal = Journal(folder / "rows" / split / f"{cell.file}.jsonl", json.loads(json.dumps(settings)), force)
    try:
        splits.check_unchanged(journal, items)
        missing = [item for item in items if item.id not in journal.rows]
        with progress(
            f"{split} {cell.selection} {cell.aggregation}", len(items), len(items) - len(missing)
        ) as step:
            if missing:
                asyncio.run(answer(ensemble, task, missing, cell.sampling, journal, step))
        rows = [
            parsed(Answer, json.dumps(journal.rows[item.id]), f"{journal.path}: {item.id}", ANEW)
            for item in items
        ]
    finally:
        journal.close()
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
class Answer:
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
    room = asyncio.Semaphore(CONCURRENCY)

    async def one(item: Item) -> None:
        async with room:
            ledger, events, error, started = UsageLedger(), list[Event](), "", time.perf_counter()
            ask = Request(replace(task.request(item), thinking=False), sampling, id=item.id)
            try:
                async with aclosing(ensemble.stream(ask, ledger)) as stream:
                    async for event in stream:
                        events.append(event)
            except EngineError as failure:
                error = str(failure)
            result = fold(events, ledger, time.perf_counter() - started)
            grade = await asyncio.to_thread(task.grade, item, result.text)
            total = ledger.total
            journal.append(
                {
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
            )
            step()

    async with ensemble:
        await together(map(one, items))


def summary(rows: Sequence[dict[str, Any]]) -> Summary:
    """Accuracy with its 95 % interval (Wilson), and means per question; `right` is the rows' outcome in order."""
    right, n = [row["correct"] for row in rows], len(rows)
    low, high = metrics.wilson_interval(sum(right), n)
    means = {key: sum(row[key] for row in rows) / n for key in ("read", "written", "tflops", "seconds")}
    counts = {
        "errors": sum(bool(row["error"]) for row in rows),
        "cut": sum(row["finish"] != "stop" for row in rows),
    }
    return {
        "n": n,
        "accuracy": sum(right) / n,
        "low": low,
        "high": high,
        **means,
        **counts,
        "right": "".join(str(int(one)) for one in right),
    }


def compare(lines: Sequence[Summary]) -> list[Summary]:
    """The pair's lines with their paired difference to either member, and the interval of it, in points."""
    by_name = {line["aggregation"]: line for line in lines if "right" in line}
    for line in by_name.values():
        for member in members():
            mine, theirs = ([float(one) for one in side["right"]] for side in (line, by_name[member]))
            low, high = metrics.paired_bootstrap(mine, theirs)
            line[f"over_{member}"] = [line["accuracy"] - by_name[member]["accuracy"], low, high]
        line["beats_both"] = all(line[f"over_{member}"][1] > 0 for member in members())
    return sorted(by_name.values(), key=lambda line: -line["accuracy"])


def members() -> list[str]:
    """Names of the pair."""
    return list(yaml.safe_load(METHODS.read_text(encoding="utf-8"))["pair"])


def ranking(lines: Sequence[Summary]) -> list[Summary]:
    """The pair's ensembles from the best; of equals the cheaper one comes first."""
    ensembles = [line for line in lines if "right" in line and line["aggregation"] not in members()]
    return sorted(ensembles, key=lambda line: (-line["accuracy"], line["tflops"]))


def table(lines: Sequence[Summary], compared: bool = False) -> str:
    """Markdown."""
    columns = ["selection", "aggregation", "accuracy", "95 %", "tokens read", "written", "GFLOPs", "engine s"]
    columns += [*(f"over {member}" for member in members()), "beats both"] if compared else []
    text = [f"| {' | '.join([*columns, 'note'])} |", "|" + "---|" * (len(columns) + 1)]
    for line in lines:
        cells = [line["selection"], line["aggregation"]]
        if "refused" in line:
            text.append(
                f"| {' | '.join(cells)} |" + " |" * (len(columns) - 2) + f" refused: {line['refused']} |"
            )
            continue
        cells += [f"{100 * line['accuracy']:.1f}", f"{100 * line['low']:.1f}–{100 * line['high']:.1f}"]
        cells += [
            f"{line['read']:.0f}",
            f"{line['written']:.0f}",
            f"{1e3 * line['tflops']:.2f}",
            f"{line['seconds']:.3f}",
        ]
        if compared:
            for member in members():
                gain, low, high = (100 * value for value in line[f"over_{member}"])
                cells.append(f"{gain:+.1f} ({low:+.1f} to {high:+.1f})")
            cells.append("yes" if line["beats_both"] else "no")
        failed = [f"{line[key]} {word}" for key, word in (("errors", "failed"), ("cut", "cut")) if line[key]]
        text.append(f"| {' | '.join([*cells, '; '.join(filter(None, [line['note'], *failed]))])} |")
    return "\n".join(text) + "\n"


def plot(lines: Sequence[Summary], path: Path) -> None:
    """Accuracy against compute per question, one mark per selection."""
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(9, 6))
    for mark, selection in zip("os^Dv", dict.fromkeys(line["selection"] for line in lines), strict=False):
        mine = [line for line in lines if line["selection"] == selection and "refused" not in line]
        axes.scatter(
            [1e3 * line["tflops"] for line in mine],
            [100 * line["accuracy"] for line in mine],
            marker=mark,
            label=selection,
            alpha=0.8,
        )
        for line in mine:
            if selection == "all":
                where = (1e3 * line["tflops"], 100 * line["accuracy"])
                axes.annotate(
                    line["aggregation"], where, fontsize=7, xytext=(3, 3), textcoords="offset points"
                )
    axes.set(
        xscale="log",
        xlabel="GFLOPs per question (full ledger)",
        ylabel="accuracy, %",
        title="Every selection × aggregation over mentor, intern and guest",
    )
    axes.legend(title="selection")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=140, bbox_inches="tight")
    plt.close(figure)


def report(folder: Path) -> str:
    """Write `grid.md`, `pair.md` and the plot from what was run."""
    grid = read(folder, "grid")
    run_already = {(line["selection"], line["aggregation"]) for line in grid}
    left = [
        f"{cell.selection} × {cell.aggregation}"
        for cell in cells("models")
        if (cell.selection, cell.aggregation) not in run_already
    ]
    text = table(grid) + (f"\nNot run yet: {', '.join(left)}.\n" if left else "")
    write_atomically(folder / "grid.md", text)
    plot(grid, folder / "grid.png")
    calibration, test = read(folder, "pair-calibration"), compare(read(folder, "pair-test"))
    best = next(iter(ranking(calibration)), None)
    picked = next((line for line in test if best and line["aggregation"] == best["aggregation"]), None)
    if not best or not picked:
        again = "run `python -m ensemblehub.lab.pipeline.toolkit pair`"
        raise ArtifactError(
            f"{folder}: the best ensemble of pair-calibration.json is not in pair-test.json: {again}"
        )
    word = "beats both members" if picked["beats_both"] else "does not beat both members"
    share = f"{100 * best['accuracy']:.1f} %"
    head = f"Picked on {best['n']} calibration questions: **{best['aggregation']}** ({share} there).  "
    head += f"On {picked['n']} test questions it {word}.\n\n"
    pair = head + table(test, compared=True)
    write_atomically(folder / "pair.md", pair)
    return f"{text}\n{pair}"


def read(folder: Path, name: str) -> list[Summary]:
    """What `grid` or `pair` wrote.

    Raises:
        ArtifactError: it is missing or damaged.
    """
    path, command = (
        folder / f"{name}.json",
        f"run `python -m ensemblehub.lab.pipeline.toolkit {name.partition('-')[0]}`",
    )
    lines = [asdict(line) for line in parsed(list[Line], content_of(path, command), path, command)]
    found = [{key: value for key, value in line.items() if value is not None} for line in lines]
    measured = [line for line in found if "refused" not in line]
    if not measured or any(
        not line.keys() >= MEASURED or len(line["right"]) != line["n"] for line in measured
    ):
        raise ArtifactError(f"{path} is damaged (a line lacks figures): {command}")
    if name == "pair-test" and not {*members()} <= {line["aggregation"] for line in measured}:
        raise ArtifactError(f"{path} lacks a member of the pair: {command}")
    if name != "grid" and len({line["n"] for line in measured}) > 1:
        raise ArtifactError(f"{path} has lines over unlike numbers of questions: {command}")
    return found


@dataclass(frozen=True)
class Line:
    """A line of `grid.json` and `pair-SPLIT.json` (see `run` and `summary`)."""

    selection: str
    aggregation: str
    note: str = ""
    refused: str | None = None
    n: int | None = None
    accuracy: FiniteFloat | None = None
    low: FiniteFloat | None = None
    high: FiniteFloat | None = None
    read: FiniteFloat | None = None
    written: FiniteFloat | None = None
    tflops: FiniteFloat | None = None
    seconds: FiniteFloat | None = None
    errors: int | None = None
    cut: int | None = None
    right: Annotated[str, StringConstraints(pattern="^[01]*$")] | None = None


MEASURED = {field.name for field in fields(Line)} - {"refused"}


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m ensemblehub.lab.pipeline.toolkit",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", choices=("grid", "pair", "report"))
    parser.add_argument("--out", type=Path, default=Path("results/toolkit"), help="(default: %(default)s)")
    parser.add_argument(
        "--questions", type=int, default=300, help="of the test split, for `grid` (default: %(default)s)"
    )
    parser.add_argument(
        "--calibration", type=int, default=400, help="questions for `pair` (default: %(default)s)"
    )
    parser.add_argument(
        "--test", type=int, default=2000, help="test questions for `pair` (default: %(default)s)"
    )
    parser.add_argument(
        "--best", type=int, default=6, help="ensembles that `pair` tests (default: %(default)s)"
    )
    parser.add_argument("--shard", default="0/1", metavar="I/N", help="only every N-th cell from the I-th on")
    parser.add_argument(
        "--force", action="store_true", help="answer anew what was answered with other settings"
    )
    options = parser.parse_args(arguments)
    task: Task = registry.lookup(registry.TASKS, "builtin_math", "task")()
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
        tested = [
            cell
            for cell in pair
            if cell.aggregation in (*members(), *(line["aggregation"] for line in ranked))
        ]
        lines("pair-test", tested, "test", options.test)


if __name__ == "__main__":
    try:
        main()
    except EnsembleHubError as error:
        sys.exit(f"toolkit: {' '.join(str(error).split())}")
