"""Collected answers, graded by the tests of another benchmark of the same questions: no model is called.

    python -m benchmarks.regrade FROM TO --task mbpp_plus --data FILE [--split test]

FROM and TO are folders of `collect`.  Questions that the other benchmark leaves out are left out; everything but
`correct` and the hash of the question stays as it was collected.  `ensemblehub report` makes the table.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from ensemblehub.lab.pipeline import splits
from ensemblehub.lab.pipeline.progress import progress
from ensemblehub.lab.pipeline.records import Collected, Row
from ensemblehub.lab.tasks import task_named
from ensemblehub.lab.tasks.base import Item, Task


def regraded(row: Row, item: Item, task: Task) -> Row:
    """A row whose runs are right where the task's tests say so; equal texts are tested once."""
    right = {text: task.grade(item, text).correct for text in {run.text for run in row.runs.values()}}
    runs = {name: replace(run, correct=right[run.text]) for name, run in row.runs.items()}
    return replace(row, runs=runs, question=splits.digest(item))


def regrade(collected: Collected, items: Mapping[str, Item], task: Task, workers: int = 1) -> Collected:
    """The part of a collected split whose questions the task has, graded by it."""
    part = collected.part([index for index, row in enumerate(collected.rows) if row.id in items])
    with ThreadPoolExecutor(workers) as pool, progress("regrade", len(part.rows), 0, str) as step:
        rows = []
        for row in pool.map(lambda row: regraded(row, items[row.id], task), part.rows):
            rows.append(row)
            step()
    return replace(part, header=part.header | {"task": task.name}, rows=rows)


def main() -> None:
    """Grade a split and keep it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, metavar="FROM")
    parser.add_argument("target", type=Path, metavar="TO")
    parser.add_argument("--task", required=True)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--split", default="test")
    parser.add_argument("--workers", type=int, default=1, help="questions that are tested at a time")
    given = parser.parse_args()
    task = task_named(given.task, given.data)
    items = {item.id: item for item in task.items(given.split)}
    found = regrade(Collected.load(given.source, given.split), items, task, given.workers)
    given.target.mkdir(parents=True, exist_ok=True)
    found.save(given.target, given.split)
    print(f"{len(found.rows)} questions in {given.target}")


if __name__ == "__main__":
    main()
