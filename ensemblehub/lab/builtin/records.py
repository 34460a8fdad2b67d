"""Programs written down as HumanEval's records, to be read by any tool that reads those."""

from __future__ import annotations

from ensemblehub.lab.builtin.programs import Program


def record(program: Program, task_id: str) -> dict[str, str]:
    """One record with HumanEval's five fields: `task_id, prompt, entry_point, canonical_solution, test`."""
    return {
        "task_id": task_id,
        "prompt": program.prompt,
        "entry_point": program.name,
        "canonical_solution": program.body,
        "test": program.test,
    }
