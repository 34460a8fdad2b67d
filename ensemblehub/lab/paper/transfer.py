"""Table 5: the classifier that was trained on math, unchanged on code; beside it one trained on code."""

from __future__ import annotations

from pathlib import Path

from ensemblehub import builtin
from ensemblehub.errors import ArtifactError
from ensemblehub.lab.paper.study import Study, study_runs
from ensemblehub.lab.paper.tables import Table
from ensemblehub.lab.pipeline import report
from ensemblehub.tandem.artifact import load_judge

COSTS = ("cost_vs_mentor", "cost_vs_fixed", "leak_share", "truncated_share")
COLUMNS = (*report.METHOD_COLUMNS, *COSTS, "levels")


def run(study: Study) -> list[Table]:
    """Both Tandems live on the code benchmark; differences are to the fixed hand-off at the highest level.

    Raises:
        ArtifactError: the judge trained on math is not there; nothing was asked.
    """
    code = study.of(task="humaneval") if not study.benchmark.endswith("code") else study
    foreign = study.judge or (
        "builtin:judge" if study.pair == "builtin" else str(study.of(task="math500").folder / "judge")
    )
    try:
        load_judge(Path(builtin.resolve(foreign)))
    except ArtifactError as error:
        raise ArtifactError(
            f"{error}; `ensemblehub paper main --pair {study.pair}` trains the judge on math"
        ) from error
    own = study_runs(code.of(judge=None))
    items = own.pipeline.collected_items(own.test)
    moved = own.pipeline.run_tandem(own.test, items, "runs_transferred", study.force, judge=foreign)
    answered = [*own.methods(), report.tandem(own.test, moved, "tandem_transferred")]
    rows = report.summary(code.benchmark, answered, own.steps, own.highest)
    fixed = next(row for row in rows if row["method"] == own.highest)
    for row in rows if fixed["cost_vs_mentor"] else ():
        row["cost_vs_fixed"] = row["cost_vs_mentor"] / fixed["cost_vs_mentor"]
    notes = [
        report.notes(own.test, None, own.highest)[0],
        f"`tandem_transferred` is judged by `{foreign}` with the thresholds "
        "chosen on math, nothing of it changed; `tandem` by one trained and calibrated on code.",
    ]
    return [Table("transfer", f"From math to {code.benchmark}", rows, COLUMNS, notes, "transfer")]
