"""Table 2: mentors and interns of several families."""

from __future__ import annotations

from ensemblehub.lab.paper.study import BUILTIN, Study, study_runs
from ensemblehub.lab.paper.tables import Table, TableRow
from ensemblehub.lab.pipeline import report

COLUMNS = ("pair and method", *report.METHOD_COLUMNS[1:], "cost_vs_mentor", "truncated_share")
FAMILIES = {BUILTIN: ("builtin", "builtin-guest"), "deepseek": ("deepseek", "qwen3-deepseek", "qwen3")}
KEPT = ("intern", "mentor", "tandem")


def run(study: Study) -> list[Table]:
    """Every pair's intern, mentor and Tandem on the same questions; each pair trains its own judge."""
    rows: list[TableRow] = []
    for pair in FAMILIES.get(study.pair, (study.pair,)):
        done = study_runs(study.of(pair=pair, judge=study.judge if pair == study.pair else None))
        kept = (*KEPT, done.highest)
        for row in report.summary(study.benchmark, done.methods(), done.steps):
            if row["method"] in kept:
                rows.append({"pair and method": f"{pair} {row['method']}", **row})
    notes = [
        f"n = {rows[0]['n']} test questions of `{study.benchmark}` for each pair, each with a judge of its own, its "
        "costs as shares of its own mentor's.",
        *(
            ["builtin-guest: the built-in mentor, and an intern of another tokenizer."]
            if study.is_builtin
            else []
        ),
    ]
    title = f"{study.benchmark}: pairs of several families"
    return [Table("families", title, rows, COLUMNS, notes, "families", key="pair and method")]
