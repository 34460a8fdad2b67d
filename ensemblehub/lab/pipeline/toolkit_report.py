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
from ensemblehub.lab.markdown import table
from ensemblehub.lab.plots import pyplot

Summary = dict[str, Any]


def read_methods() -> dict[str, Any]:
    """The methods of the table and their settings."""
    text = Path(__file__).with_name("toolkit.yaml").read_text(encoding="utf-8")
    methods: dict[str, Any] = yaml.safe_load(text)
    return methods


def summary(rows: Sequence[dict[str, Any]]) -> Summary:
    """Accuracy with its 95 % interval (Wilson), and means per question;
    `right` is the rows' outcome in order.
    """
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
        "right": "".join(str(int(correct)) for correct in right),
    }


def compare(lines: Sequence[Summary]) -> list[Summary]:
    """The pair's lines with their paired difference to either member, and the interval of it, in points."""
    by_name = {line["aggregation"]: line for line in lines if "right" in line}
    for line in by_name.values():
        for member in members():
            mine, theirs = ([float(digit) for digit in side["right"]] for side in (line, by_name[member]))
            low, high = metrics.paired_bootstrap(mine, theirs)
            line[f"over_{member}"] = [line["accuracy"] - by_name[member]["accuracy"], low, high]
        line["beats_both"] = all(line[f"over_{member}"][1] > 0 for member in members())
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
    columns = ["selection", "aggregation", "accuracy", "95 %", "tokens read", "written", "GFLOPs", "engine s"]
    columns += [*(f"over {member}" for member in members()), "beats both"] if compared else []
    rows = []
    for line in lines:
        cells = [line["selection"], line["aggregation"]]
        if "refused" in line:
            rows.append([*cells, *[""] * (len(columns) - 2), f"refused: {line['refused']}"])
            continue
        cells += [f"{100 * line['accuracy']:.1f}", f"{100 * line['low']:.1f}–{100 * line['high']:.1f}"]
        cells += [f"{line['read']:.0f}", f"{line['written']:.0f}"]
        cells += [f"{1e3 * line['tflops']:.2f}", f"{line['seconds']:.3f}"]
        if compared:
            for member in members():
                gain, low, high = (100 * value for value in line[f"over_{member}"])
                cells.append(f"{gain:+.1f} ({low:+.1f} to {high:+.1f})")
            cells.append("yes" if line["beats_both"] else "no")
        failed = [f"{line[key]} {word}" for key, word in (("errors", "failed"), ("cut", "cut")) if line[key]]
        rows.append([*cells, "; ".join(filter(None, [line["note"], *failed]))])
    return table([*columns, "note"], rows) + "\n"


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
        xlabel="GFLOPs per question (every call counted)",
        ylabel="accuracy, %",
        title="Every selection × aggregation over mentor, intern and guest",
    )
    axes.legend(title="selection")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=140, bbox_inches="tight")
    plt.close(figure)


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
    word = "beats both members" if picked["beats_both"] else "does not beat both members"
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
    """A line of `grid.json` and `pair-SPLIT.json` (see `toolkit.run` and `summary`)."""

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


MEASURED = {field.name for field in fields(GridLine)} - {"refused"}
