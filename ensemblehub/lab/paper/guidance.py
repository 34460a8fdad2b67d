"""Figure 5: accuracy by the length of the insight, every length a cut of one mentor stream."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from ensemblehub.lab.paper.study import Study, collected
from ensemblehub.lab.paper.tables import Table, TableRow
from ensemblehub.lab.pipeline import report
from ensemblehub.lab.pipeline.experiment import with_aggregation
from ensemblehub.lab.plots import pyplot
from ensemblehub.tandem.insights import LEVEL_0

COLUMNS = (*report.METHOD_COLUMNS, "cost_vs_mentor", "leak_share", "truncated_share")
POINTS = 8


def run(study: Study) -> list[Table]:
    """Measure the intern after insights of eight lengths, up to the highest level's; also draws a plot."""
    _, tandem = study.pipeline().unjudged()
    highest = tandem.checkpoints[-1].mentor_tokens
    lengths = sorted({max(1, round(highest * part / POINTS)) for part in range(1, POINTS + 1)})
    levels = {f"after_{length}": length for length in lengths}
    pipeline = study.pipeline("guidance", partial(with_aggregation, levels=levels))
    data = collected(study, pipeline, "test")
    names = {"intern": LEVEL_0} | {level: level for level in levels}
    answered = [report.fixed(data, name, run) for name, run in names.items()]
    answered += [report.fixed(data, name, name) for name in ("mentor", "mentor_concise")]
    rows = report.summary(study.benchmark, answered, [row.steps for row in data.rows])
    plot(rows, study.folder / "guidance.svg")
    notes = [
        report.notes(data, None)[0],
        "after_N: at most N tokens of the mentor's insight, as one stream wrote them.",
    ]
    return [
        Table("guidance", f"{study.benchmark} by the length of the insight", rows, COLUMNS, notes, "guidance")
    ]


def plot(rows: list[TableRow], path: Path) -> None:
    """Plot accuracy against mentor tokens; the mentor's own accuracy is a horizontal line."""
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(6.4, 4))
    line = [row for row in rows if not row["method"].startswith("mentor")]
    middle = [100 * row["accuracy"] for row in line]
    low = [100 * (row["accuracy"] - row["accuracy_low"]) for row in line]
    high = [100 * (row["accuracy_high"] - row["accuracy"]) for row in line]
    axes.errorbar(
        [row["mentor_tokens"] for row in line],
        middle,
        [low, high],
        fmt="o-",
        capsize=2,
        label="intern, guided",
    )
    mentors = [row for row in report.labelled(rows) if row["method"].startswith("mentor")]
    for row, style in zip(mentors, ("--", ":"), strict=False):
        axes.axhline(100 * row["accuracy"], linestyle=style, color="0.5", label=row["method"])
    axes.set(xlabel="mean tokens of insight", ylabel="accuracy, % (95 % interval)")
    axes.legend()
    axes.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
