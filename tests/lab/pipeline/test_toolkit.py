"""Every selection with every aggregation: what is run, what is refused, what the tables say."""

import json
from dataclasses import replace

import pytest

from ensemblehub import registry
from ensemblehub.errors import ArtifactError
from ensemblehub.lab import metrics
from ensemblehub.lab.bench.answers import Bench
from ensemblehub.lab.pipeline import toolkit, toolkit_report
from ensemblehub.lab.tasks import task_named

pytest.importorskip("torch")


def line(name, right, **more):
    low, high = metrics.wilson_interval(right.count("1"), len(right))
    figures = {
        "n": len(right),
        "accuracy": right.count("1") / len(right),
        "accuracy_low": low,
        "accuracy_high": high,
        "read": 1.0,
        "written": 2.0,
        "tflops": 1e-3,
        "seconds": 0.1,
        "truncated_share": 0.0,
        "errors": 0,
        "right": right,
    }
    return {"selection": "all", "aggregation": name, "note": ""} | figures | more


def test_every_registered_method_is_in_the_grid():
    cells = list(toolkit.cells("models"))
    assert {cell.config.selection.method for cell in cells} == set(registry.SELECTIONS)
    assert {cell.config.aggregation.method for cell in cells} == set(registry.AGGREGATIONS)
    assert len({cell.file for cell in cells}) == len(cells)


def test_the_pair_is_run_beside_its_members_alone():
    cells = list(toolkit.cells("pair", ("all",)))
    assert {cell.aggregation for cell in cells} >= {"intern", "guest", "gac", "vote"}
    assert all([spec.name for spec in cell.config.model_specs] == ["intern", "guest"] for cell in cells)


def test_a_combination_that_cannot_work_is_a_line_with_its_reason(tmp_path):
    (cell,) = (cell for cell in toolkit.cells("models", ("all",)) if cell.aggregation == "tandem")
    section = cell.config.ensemble.model_copy(update={"model_selection_method": "random"})
    cell = replace(cell, config=cell.config.model_copy(update={"ensemble": section}))
    found = toolkit.run(cell, task_named("builtin_math"), "test", 2, tmp_path, False)
    assert "may drop" in found["refused"]
    assert "refused: " in toolkit_report.markdown([found])
    assert not list(tmp_path.rglob("*.jsonl"))


def test_answers_are_kept_and_not_given_twice(tmp_path, monkeypatch):
    (cell,) = (cell for cell in toolkit.cells("pair", ("all",)) if cell.aggregation == "intern")
    task = task_named("builtin_math")
    first = toolkit.run(cell, task, "test", 3, tmp_path, False)
    assert first["n"] == len(first["right"]) == 3
    assert first["written"] > 0 < first["tflops"]

    def never(*_):
        raise AssertionError("answered again")

    monkeypatch.setattr(Bench, "_row_of", never)
    assert toolkit.run(cell, task, "test", 3, tmp_path, False) == first


def test_an_ensemble_beats_both_members_only_if_both_intervals_say_so():
    n = 200
    intern, guest = "10" * (n // 2), "01" * (n // 2)
    lines = toolkit_report.compare(
        [line("intern", intern), line("guest", guest), line("gac", "1" * n), line("vote", intern)]
    )
    by_name = {line["aggregation"]: line for line in lines}
    assert by_name["gac"]["over intern"] == pytest.approx(0.5)
    assert by_name["gac"]["beats both"] == "yes"
    assert [by_name["vote"][f"over intern{end}"] for end in ("", "_low", "_high")] == [0.0, 0.0, 0.0]
    assert by_name["vote"]["beats both"] == "no"


def test_the_best_is_picked_on_calibration_and_reported_on_test(tmp_path):
    names = ("intern", "guest", "gac", "loop", "vote")
    calibration = [
        line(name, right * 40) for name, right in zip(names, ("10", "01", "11", "11", "10"), strict=True)
    ]
    test = [line(name, right * 60) for name, right in zip(names, ("10", "01", "10", "10", "11"), strict=True)]
    grid = [*test, line("tandem", "1") | {"refused": "no"}]
    for name, lines in (("grid", grid), ("pair-calibration", calibration), ("pair-test", test)):
        (tmp_path / f"{name}.json").write_text(json.dumps(lines))
    text = toolkit.report(tmp_path)
    assert "Picked on 80 calibration questions: **gac** (100.0 % there)" in text
    assert "does not beat both members" in text
    assert "Not run yet: all × single" in text
    assert (tmp_path / "grid.png").stat().st_size > 1000


def test_what_is_missing_names_its_command(tmp_path):
    with pytest.raises(ArtifactError, match=r"pipeline\.toolkit grid"):
        toolkit.report(tmp_path)


def test_notes_stand_in_the_table():
    assert "a note" in toolkit_report.markdown([line("vote", "1", note="a note")])
