"""Table 7: models that think, and the same models told not to."""

from __future__ import annotations

from ensemblehub.lab.paper.study import Study, ridden
from ensemblehub.lab.paper.tables import Row, Table
from ensemblehub.lab.pipeline import report

COLUMNS = (
    "method",
    "n",
    "accuracy",
    "difference",
    "mentor_tokens",
    "intern_tokens",
    "tflops",
    "cost_vs_mentor",
    "truncated_share",
)
CONCISE = ("debug.enable_thinking=false", "experiment.aim=max-accuracy")
KEPT = ("intern", "mentor", "mentor_concise", "tandem")


def run(study: Study) -> list[Table]:
    """Both runs, each with its own judge and its differences to its own mentor; costs are shares of that mentor's."""
    rows: list[Row] = []
    for part, suffix, changes in (("", "", ()), ("concise", " (concise run)", CONCISE)):
        done = ridden(study, part, *changes)
        found = report.summary(study.benchmark, done.methods(), done.steps)
        kept = (*KEPT, done.highest) if not part else ("intern", "mentor", done.highest, "tandem")
        rows += [{**row, "method": row["method"] + suffix} for row in found if row["method"] in kept]
        where = done.where
    notes = [
        where,
        "The concise run sets `enable_thinking: false` for both models (one without such a switch does as it did) and "
        "takes the most accurate thresholds, since a budget made for a thinking mentor is none for a concise one.",
    ]
    return [Table("thinking", f"{study.benchmark}: thinking and concise", rows, COLUMNS, notes, "thinking")]
