"""Table 7: models with and without thinking."""

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
    """Run the study with and without thinking; each run has its own judge, and its mentor is the baseline
    of its differences and costs.
    """
    rows: list[TableRow] = []
    for part, suffix, edits in (("", "", ()), ("concise", " (both without thinking)", (without_thinking,))):
        done = study_runs(study, part, *edits)
        found = report.summary(study.benchmark, done.methods(), done.steps)
        kept = (*KEPT, done.highest) if not part else ("intern", "mentor", done.highest, "tandem")
        rows += [{**row, "method": row["method"] + suffix} for row in found if row["method"] in kept]
        where = done.where
    notes = [
        where,
        "`both without thinking` sets `enable_thinking: false` for both models (a model without this switch is not "
        "affected) and takes the most accurate thresholds: a budget chosen for a mentor that thinks does not fit.",
    ]
    return [
        Table("thinking", f"{study.benchmark}: with and without thinking", rows, COLUMNS, notes, "thinking")
    ]
