"""Grade the reference solutions of MBPP+ as if they were answers: each should pass its own tests.

`python -m benchmarks.canonical FILE [--workers N]`

FILE is EvalPlus's `MbppPlus-v0.1.0.jsonl`.  Writes `results/grading/canonical.md`: how many pass, by set of
tests, and every one that does not, with the reason.  Takes some minutes.
"""

from __future__ import annotations

import argparse
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from ensemblehub.artifacts import write_atomically
from ensemblehub.lab.markdown import table
from ensemblehub.lab.tasks import task_named
from ensemblehub.lab.tasks.base import Grade, Item
from ensemblehub.lab.tasks.mbpp_plus import ILL_FORMED

RESULTS = Path(__file__).parents[1] / "results" / "grading"


def report(grades: list[tuple[Item, Grade]], seconds: float, grading: str) -> str:
    """The figures as Markdown."""
    kept = [pair for pair in grades if pair[0].extra["number"] not in ILL_FORMED]
    lines = []
    for title, part in (("EvalPlus 0.2.0", kept), ("EvalPlus 0.1.0", grades)):
        base = sum(grade.suites["base"] for _, grade in part)
        passed = sum(grade.correct for _, grade in part)
        lines.append([title, str(len(part)), str(base), str(passed)])
    failed = [f"- {item.id}: {grade.reason}" for item, grade in grades if not grade.correct]
    return "\n".join(
        [
            "# Reference solutions of MBPP+ graded as answers\n",
            table(["functions of", "n", "pass MBPP's own tests", "pass all"], lines),
            "",
            *(failed or ["All pass."]),
            "",
            f"`python -m benchmarks.canonical`, {seconds:.0f} s. {grading}",
            "",
        ]
    )


def main() -> None:
    """Grade, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    task = task_named("mbpp_plus", arguments.file)
    items = sorted(task.items("v0.1.0"), key=lambda item: int(item.extra["number"]))
    started = time.perf_counter()
    with ThreadPoolExecutor(arguments.workers) as pool:
        graded = pool.map(lambda item: task.grade(item, f"```python\n{item.answer}\n```"), items)
        grades = list(zip(items, tqdm(graded, total=len(items)), strict=True))
    text = report(grades, time.perf_counter() - started, task.grading())
    write_atomically(RESULTS / "canonical.md", text)
    print(text)


if __name__ == "__main__":
    main()
