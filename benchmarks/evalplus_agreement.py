"""Compare this project's reading and grading of answers with EvalPlus's own, on what models wrote.

`python -m benchmarks.evalplus_agreement FILE RESULT... [--prompt NAME]`

FILE is the questions (HumanEval's or `MbppPlus-v0.1.0.jsonl`), RESULT a folder of `ensemblehub bench` that asked
them.  For every answer, the program that `evalplus.sanitize` takes from it and the one that this project takes
run against the same tests; with MBPP+, EvalPlus's `untrusted_check` grades its own program as well.  Needs the
package `evalplus`.

Prints the number of answers and of those judged alike, and every one that is not.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ensemblehub.data_files import located
from ensemblehub.lab.bench.rows import AnswerRow, journals, read_rows
from ensemblehub.lab.tasks import task_named
from ensemblehub.lab.tasks.base import Item
from ensemblehub.lab.tasks.public import Programming
from ensemblehub.lab.tasks.sandbox import run_tests

TIMES = {"min_time_limit": 4.0, "gt_time_limit_factor": 4.0}  # seconds, and multiples of the reference's
MATCHES = (
    "check_str",
    "text_match_three",
    "text_starta_endb",
)  # results that EvalPlus compares with None only


def answers(folders: list[Path]) -> Iterator[AnswerRow]:
    """The rows of every cell of the results."""
    for folder in folders:
        for path in journals(folder).values():
            yield from read_rows(path)[1].values()


def passes(item: Item, program: str) -> bool:
    """Whether a program passes the item's own tests (MBPP+: `base`), run as it is."""
    test = item.extra.get("base", item.extra["test"])
    program += item.extra.get("adapter", "")
    return run_tests(
        program, test, item.extra["entry_point"], prompt=item.extra["prompt"], wall_seconds=20
    ).passed


def graded_by_evalplus(problem: Mapping[str, Any], program: str) -> dict[str, bool]:
    """EvalPlus's own verdict by set of tests."""
    from evalplus.data.mbpp import mbpp_deserialize_inputs
    from evalplus.eval import PASS, untrusted_check
    from evalplus.gen.util import trusted_exec

    name, solution = problem["entry_point"], problem["prompt"] + problem["canonical_solution"]
    found = {}
    for suite in ("base", "plus"):
        inputs = mbpp_deserialize_inputs(problem["task_id"], problem[f"{suite}_input"])
        expected, seconds = trusted_exec(
            solution, inputs, name, record_time=True, output_not_none=name in MATCHES
        )
        known = {"expected": expected, "atol": problem["atol"], "ref_time": seconds, "fast_check": True}
        found[suite] = untrusted_check("mbpp", program, inputs, name, **known, **TIMES)[0] == PASS
    return {"base": found["base"], "plus": found["base"] and found["plus"]}


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path)
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--prompt", default="official")
    arguments = parser.parse_args()
    os.environ["MBPP_OVERRIDE_PATH"] = str(arguments.file)  # read when `evalplus` is imported
    from evalplus.sanitize import sanitize

    problems = {problem["task_id"]: problem for _, problem in located(arguments.file)}
    plus = "plus_input" in next(iter(problems.values()))
    task = task_named("mbpp_plus" if plus else "humaneval", arguments.file, arguments.prompt)
    assert isinstance(task, Programming)
    items = {item.id: item for item in task.items("v0.1.0" if plus else "all")}
    count = alike = 0
    for row in answers(arguments.results):
        item = items[row.question]
        program = sanitize(task.profile.opening + row.text, item.extra["entry_point"])
        ours, theirs = {"own": row.suites.get("base", row.correct)}, {"own": passes(item, program)}
        if plus:
            ours, theirs = ours | row.suites, theirs | graded_by_evalplus(problems[item.id], program)
        count, alike = count + 1, alike + (ours == theirs)
        if ours != theirs:
            print(
                f"{item.id}: here {ours}, by EvalPlus {theirs}\n{row.text}\n-- EvalPlus takes:\n{program}\n"
            )
    print(f"{alike} of {count} answers are judged alike")


if __name__ == "__main__":
    main()
