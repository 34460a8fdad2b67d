"""Records of HumanEval's form: canonical solutions pass, stubs and other mistakes fail."""

import json
import os
from pathlib import Path

import pytest
from sandbox_here import working

from ensemblehub.lab.tasks.sandbox import run_tests
from ensemblehub.lab.tasks.sandbox_forms import FORMS

OWN = Path(__file__).with_name("records.jsonl")
DATA = Path(__file__).parents[3] / "data"


def read(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def humaneval():
    """HumanEval's file, where there is one: ENSEMBLEHUB_HUMANEVAL or any humaneval.jsonl in data/."""
    given = os.environ.get("ENSEMBLEHUB_HUMANEVAL")
    return given or next(
        (path for path in DATA.rglob("*.jsonl") if path.name.lower() == "humaneval.jsonl"), None
    )


def run(record, body, form=None):
    return run_tests(
        record["prompt"] + body,
        record["test"],
        record["entry_point"],
        prompt=record["prompt"],
        wall_seconds=30,
        form=form,
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("record", read(OWN), ids=lambda record: record["task_id"])
def test_own_records(record, form):
    working(form)
    assert run(record, record["canonical_solution"], form).reason == ""
    assert not run(record, "    pass\n", form).passed


@pytest.mark.slow
@pytest.mark.skipif(humaneval() is None, reason="no humaneval.jsonl")
def test_all_of_humaneval():
    records = read(humaneval())
    assert len(records) == 164
    refused = [
        record["task_id"] for record in records if not run(record, record["canonical_solution"]).passed
    ]
    accepted = [record["task_id"] for record in records if run(record, "    pass\n").passed]
    assert (refused, accepted) == ([], [])
