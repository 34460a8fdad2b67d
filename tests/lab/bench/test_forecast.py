"""`bench --dry-run`: predicted totals, worked out by hand, by simulation, and against a whole run."""

import json
import math

import numpy as np
import pytest

from ensemblehub import cli
from ensemblehub.lab.bench import cells, forecast, run
from ensemblehub.lab.bench.rows import read_rows

MODEL = """
model_specs:
  - name: paid
    engine: echo
    price: {prompt: 1.0, completion: 10.0}
    parameters: 1000000
    replies: {more: "a short answer is 5", "": "a somewhat longer answer that goes on for a while is 5"}
"""


def command(*arguments):
    try:
        cli.main(["bench", *arguments])
    except SystemExit as exit_:
        return exit_.code
    return 0


def test_a_total_is_predicted_with_students_t():
    found = forecast.forecast([1.0, 2.0, 3.0], 12)
    factor = math.exp(4.302652729911275 * 0.5 * (1 / 3 + 1 / 9) ** 0.5)  # a spread of 1 at a mean of 2
    assert found.total == pytest.approx(6 + 9 * 2)
    assert (found.low, found.high) == (pytest.approx(6 + 18 / factor), pytest.approx(6 + 18 * factor))
    assert forecast.forecast([0.0, 0.0], 9) == forecast.Forecast(0.0, 0.0, 0.0)
    whole = forecast.forecast([1.0, 2.0], 2)
    assert (whole.total, whole.low, whole.high) == (3.0, 3.0, 3.0)


def test_most_intervals_hold_the_total_of_skewed_lengths():
    random = np.random.default_rng(0)
    held = []
    for _ in range(1000):
        lengths = random.lognormal(5, 0.6, 300)
        found = forecast.forecast(lengths[:10], 300)
        held.append(found.low <= lengths.sum() <= found.high)
    assert np.mean(held) >= 0.935  # with sides of equal length 0.927


def test_a_pilot_is_kept_and_tells_what_the_whole_run_takes(tmp_path, capsys):
    file, out = tmp_path / "paid.yaml", tmp_path / "out"
    file.write_text(MODEL)
    given = [str(file), "--task", "builtin_math", "--limit", "60", "--out", str(out)]
    assert command(*given, "--dry-run", "20") == 0
    said = capsys.readouterr().out
    assert "| paid | 20 | 60 |" in said
    kept = read_rows(out / "answers" / "paid.jsonl")[1]
    assert len(kept) == 20
    assert not (out / "summary.json").exists()
    assert command(*given) == 0
    rows = read_rows(out / "answers" / "paid.jsonl")[1]
    assert kept.items() <= rows.items()
    (line,) = json.loads((out / "summary.json").read_text())["lines"]
    assert line["answers"] == 60
    for name in ("written", "usd"):
        found = forecast.forecast([getattr(row, name) for row in kept.values()], 60)
        assert found.low <= sum(getattr(row, name) for row in rows.values()) <= found.high
        assert found.low < found.high


def test_a_pilot_of_all_questions_is_exact(tmp_path):
    file = tmp_path / "paid.yaml"
    file.write_text(MODEL)
    questions = run.questions_of("builtin_math", "test", None, None, 4)
    text = forecast.dry_run(cells.cells_of([str(file)]), questions, tmp_path / "out", 10)
    assert "| paid | 4 | 4 |" in text
    line = text.splitlines()[2].split("|")
    total, low, high = line[5].replace("[", "").replace("]", "").replace(",", "").split()
    assert total == low == high
