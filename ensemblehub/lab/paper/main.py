"""Table 1: every method on the same questions, then by subject and by level."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from ensemblehub.artifacts import write_atomically
from ensemblehub.lab.paper.study import Study, StudyRuns, study_runs
from ensemblehub.lab.paper.tables import Table, TableRow
from ensemblehub.lab.pipeline import report
from ensemblehub.lab.pipeline.records import Row as Question

COLUMNS = (*report.METHOD_COLUMNS, "tflops_paper", "cost_vs_mentor", *report.SHARES)
GROUPS: dict[str, Callable[[Question], object]] = {
    "subject": lambda row: row.subject or "(none given)",
    "level": lambda row: row.level,
}


def run(study: Study) -> list[Table]:
    """The main table and its groups; also `BENCHMARK_PAIR_final.json`,
    as the reference's experiments leave it.
    """
    done = study_runs(study)
    done.pipeline.report()
    rows = report.summary(study.benchmark, done.methods(), done.steps)
    final = {row["method"]: row for row in rows}
    path = study.out / f"{study.benchmark}_{Path(study.pair).stem}_final.json"
    write_atomically(path, json.dumps(final, indent=1) + "\n")
    title = f"{study.benchmark}: every method"
    return [
        Table("main", title, rows, COLUMNS, [done.where], "main"),
        Table(
            "groups",
            f"{study.benchmark} by subject and by level",
            list(groups(study, done)),
            group_columns(done),
        ),
    ]


def group_columns(done: StudyRuns) -> Sequence[str]:
    """What is said of a group."""
    return ("group", "n", "intern", "mentor", done.highest, "tandem", "tandem - mentor", "cost_vs_mentor")


def groups(study: Study, done: StudyRuns) -> list[TableRow]:
    """Accuracies of each subject and each level, in per
    cent with Tandem's distance to the mentor in points.
    """
    found: list[TableRow] = []
    for kind, key in GROUPS.items():
        for value in sorted({str(key(row)) for row in done.test.rows}):
            at = [index for index, row in enumerate(done.test.rows) if str(key(row)) == value]
            part = StudyRuns(done.pipeline, done.test.part(at), [done.runs[index] for index in at])
            rows = {row["method"]: row for row in report.summary(study.benchmark, part.methods(), part.steps)}
            ours, best = rows["tandem"], rows[done.highest]
            found.append(
                {"group": f"{kind} {value}", "n": len(at), "cost_vs_mentor": ours["cost_vs_mentor"]}
                | {name: _percent(rows[name]) for name in ("intern", "mentor", "tandem")}
                | {done.highest: _percent(best)}
                | {
                    "tandem - mentor": f"{100 * ours['difference']:+.1f} "
                    f"[{100 * ours['difference_low']:+.1f}, {100 * ours['difference_high']:+.1f}]"
                }
            )
    return found


def _percent(row: TableRow) -> str:
    return f"{row['accuracy']:.1%} [{row['accuracy_low']:.1%}, {row['accuracy_high']:.1%}]"
