"""Table 7: models that think, and the same models told not to."""

from __future__ import annotations

from ensemblehub.config import Config
from ensemblehub.lab.paper.study import Study, study_runs
from ensemblehub.lab.paper.tables import Table, TableRow
from ensemblehub.lab.pipeline import report
from ensemblehub.lab.pipeline.experiment import with_experiment

COLUMNS = (*report.METHOD_COLUMNS, "cost_vs_mentor", "truncated_share")
KEPT = ("intern", "mentor", "mentor_concise", "tandem")


def without_thinking(config: Config) -> Config:
    """The configuration with thinking off for both models, and the most accurate thresholds."""
    debug = config.debug.model_copy(update={"enable_thinking": False})
    return with_experiment(config.model_copy(update={"debug": debug}), aim="max-accuracy")


def run(study: Study) -> list[Table]:
    """Both runs, each with its own judge and its differences to its own mentor;
    costs are shares of that mentor's.
    """
    rows: list[TableRow] = []
    for part, suffix, edits in (("", "", ()), ("concise", " (concise run)", (without_thinking,))):
        done = study_runs(study, part, *edits)
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
