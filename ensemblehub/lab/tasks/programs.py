"""Grading an answer that is a program."""

from __future__ import annotations

from ensemblehub.lab.tasks.base import Grade, Item
from ensemblehub.lab.tasks.extraction import program_of
from ensemblehub.lab.tasks.sandbox import run_tests


def grade_program(
    item: Item, text: str, seconds: float = 10, memory_mb: int = 512, test: str = "test"
) -> Grade:
    """Run the program found in an answer against the item's test, in the sandbox.

    Args:
        item: with `prompt`, `entry_point` and the test in its `extra`, and perhaps an `adapter`, which is put
            behind the program.
        seconds: wall time for the test.
        memory_mb: address space of the program, in MiB.
        test: name of the test in `extra`.
    """
    prompt, entry_point = item.extra["prompt"], item.extra["entry_point"]
    program = program_of(text, prompt, entry_point)
    outcome = run_tests(
        program + item.extra.get("adapter", ""),
        item.extra[test],
        entry_point,
        prompt=prompt,
        wall_seconds=seconds,
        memory_mb=memory_mb,
    )
    return Grade(outcome.passed, program, outcome.reason)
