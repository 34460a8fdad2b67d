"""Tables and plot of `toolkit.py`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import FiniteFloat, StringConstraints

from ensemblehub.artifacts import content_of, parsed, write_atomically
from ensemblehub.errors import ArtifactError
from ensemblehub.lab import metrics
from ensemblehub.lab.bench.summary import Summary
from ensemblehub.lab.pipeline import report
from ensemblehub.lab.plots import Point, accuracy_against_cost

COLORS = ("C0", "C1", "C2", "C3", "C4")  # of the selections


def read_methods() -> dict[str, Any]:
    """The methods of the table and their settings."""
    text = Path(__file__).with_name("toolkit.yaml").read_text(encoding="utf-8")
    methods: dict[str, Any] = yaml.safe_load(text)
    return methods


def compare(lines: Sequence[Summary]) -> list[Summary]:
    """The pair's lines with their paired difference to either member, and the interval of it, in points."""
    by_name = {line["aggregation"]: line for line in lines if "right" in line}
    for line in by_name.values():
        for member in members():
            mine, theirs = ([float(digit) for digit in side["right"]] for side in (line, by_name[member]))
            over = f"over {member}"
            line[over] = line["accuracy"] - by_name[member]["accuracy"]
            line[f"{over}_low"], line[f"{over}_high"] = metrics.paired_bootstrap(mine, theirs)
        beats = all(line[f"over {member}_low"] > 0 for member in members())
        line["beats both"] = "yes" if beats else "no"
    return sorted(by_name.values(), key=lambda line: -line["accuracy"])


def members() -> list[str]:
    """Names of the pair."""
    return list(read_methods()["pair"])


def ranking(lines: Sequence[Summary]) -> list[Summary]:
    """The pair's ensembles from the best; of equals the cheaper one comes first."""
    ensembles = [line for line in lines if "right" in line and line["aggregation"] not in members()]
    return sorted(ensembles, key=lambda line: (-line["accuracy"], line["tflops"]))


def markdown(lines: Sequence[Summary], compared: bool = False) -> str:
    """The lines as a table."""
    columns = ["selection", "aggregation", "accuracy", "read", "written", "tflops", "seconds"]
    columns += [*(f"over {member}" for member in members()), "beats both"] if compared else []
    rows = [line | {"note": f"refused: {line['refused']}"} if "refused" in line else line for line in lines]
    return report.markdown(rows, (), [*columns, "truncated_share", "errors", "note"]).rstrip() + "\n"


def plot(lines: Sequence[Summary], path: Path) -> None:
    """Accuracy against compute per question, a mark for each selection; those of `all` have names."""
    measured = [line for line in lines if "right" in line]
    selections = dict.fromkeys(line["selection"] for line in measured)
    styles = dict(zip(selections, zip("os^Dv", COLORS, strict=True), strict=False))
    points = [
        Point(
            line["aggregation"] if line["selection"] == "all" else "",
            1e3 * line["tflops"],
            line["accuracy"],
            line["accuracy_low"],
            line["accuracy_high"],
            marker=styles[line["selection"]][0],
            color=styles[line["selection"]][1],
            group=f"selection {line['selection']}",
        )
        for line in measured
    ]
    title = "Every selection × aggregation over mentor, intern and guest"
    accuracy_against_cost(points, [path], "GFLOPs per question (full ledger)", title, log=True)


def write(folder: Path, wanted: Iterable[tuple[str, str]]) -> str:
    """Write `grid.md`, `pair.md` and the plot from what was run.

    Args:
        wanted: Selection and aggregation of every cell; those that were not run are named.
    """
    grid = read(folder, "grid")
    done = {(line["selection"], line["aggregation"]) for line in grid}
    left = [
        f"{selection} × {aggregation}"
        for selection, aggregation in wanted
        if (selection, aggregation) not in done
    ]
    text = markdown(grid) + (f"\nNot run yet: {', '.join(left)}.\n" if left else "")
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
    word = "beats both members" if picked["beats both"] == "yes" else "does not beat both members"
    share = f"{100 * best['accuracy']:.1f} %"
    head = f"Picked on {best['n']} calibration questions: **{best['aggregation']}** ({share} there).  "
    head += f"On {picked['n']} test questions it {word}.\n\n"
    pair = head + markdown(test, compared=True)
    write_atomically(folder / "pair.md", pair)
    return f"{text}\n{pair}"


def read(folder: Path, name: str) -> list[Summary]:
    """What `grid` or `pair` wrote.

    Raises:
        ArtifactError: it is missing or damaged.
    """
    path = folder / f"{name}.json"
    command = f"run `python -m ensemblehub.lab.pipeline.toolkit {name.partition('-')[0]}`"
    lines = [asdict(line) for line in parsed(list[GridLine], content_of(path, command), path, command)]
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
class GridLine:
    """A line of `grid.json` and `pair-SPLIT.json` (see `toolkit.run` and `bench.summary`)."""

    selection: str
    aggregation: str
    note: str = ""
    refused: str | None = None
    n: int | None = None
    accuracy: FiniteFloat | None = None
    accuracy_low: FiniteFloat | None = None
    accuracy_high: FiniteFloat | None = None
    read: FiniteFloat | None = None
    written: FiniteFloat | None = None
    tflops: FiniteFloat | None = None
    seconds: FiniteFloat | None = None
    truncated_share: FiniteFloat | None = None
    errors: int | None = None
    right: Annotated[str, StringConstraints(pattern="^[01]*$")] | None = None


MEASURED = {field.name for field in fields(GridLine)} - {"refused"}
