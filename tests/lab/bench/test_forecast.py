"""`bench --dry-run`: predicted totals, worked out by hand, by simulation, and against a whole run."""

import json
import math

import numpy as np
import pytest

from ensemblehub import cli
from ensemblehub.lab.bench import forecast
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
    factor = math.exp(4.848732 * 0.5 * (1 / 3 + 1 / 9) ** 0.5)  # t of 96 %, a spread of 1 at a mean of 2
    assert found.total == pytest.approx(6 + 9 * 2)
    assert (found.low, found.high) == (pytest.approx(6 + 18 / factor), pytest.approx(6 + 18 * factor))
    assert forecast.forecast([0.0, 0.0], 9) == forecast.Forecast(0.0, 0.0, 0.0)
    whole = forecast.forecast([1.0, 2.0], 2)
    assert (whole.total, whole.low, whole.high) == (3.0, 3.0, 3.0)
    assert forecast.forecast([5.0], 1) == forecast.Forecast(5.0, 5.0, 5.0)
    assert forecast.forecast([2.0, 2.0], 9) == forecast.Forecast(18.0, 18.0, 18.0)


@pytest.mark.parametrize("size", [10, 20])
def test_19_of_20_intervals_hold_the_total_of_skewed_lengths(size):
    lengths = np.random.default_rng(0).lognormal(5, 0.6, (20_000, 300))
    _, low, high = forecast.forecasts(lengths[:, :size], 300)
    totals = lengths.sum(1)
    assert np.mean((low <= totals) & (totals <= high)) == pytest.approx(0.95, abs=0.01)
    _, low, high = forecast.forecasts(lengths[:, :size], 300, 0.95)
    assert np.mean((low <= totals) & (totals <= high)) < 0.943


def test_time_lies_between_answers_that_overlap_and_answers_that_take_turns():
    walls = [1.0, 2.0, 3.0]
    assert forecast.elapsed(walls, 2) == 4.0  # the third begins when the first has ended
    assert forecast.elapsed(walls, 5) == 3.0
    assert forecast.elapsed([], 2) == 0.0
    found, work = forecast.forecast_time(walls, 9, 2), forecast.forecast(walls, 9)
    assert found.low == pytest.approx(4 + (work.low - 6) / 2)  # two at a time, never idle
    assert found.high == pytest.approx(4 + (work.high - 6) * 4 / 6)  # the pilot's rate: 6 s of answers in 4 s
    assert found.total == pytest.approx(4 + 12 * (4 / 6 / 2) ** 0.5)
    assert forecast.forecast_time(walls, 3, 2) == forecast.Forecast(4.0, 4.0, 4.0)
    assert forecast.forecast_time([0.0, 0.0], 9, 2) == forecast.Forecast(0.0, 0.0, 0.0)


def test_a_full_batch_leaves_little_room_for_the_time():
    found = forecast.forecast_time([2.0] * 80, 800, 8)
    assert (found.low, found.total, found.high) == (pytest.approx(200),) * 3


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


def test_samples_of_a_question_count_as_one(tmp_path, capsys):
    first, second = [1.0, 2.0, 3.0], [3.0, 4.0, 5.0]  # of three questions: 4, 6 and 8
    factor = math.exp(4.848732 * (2 / 6) * (1 / 3 + 1 / 9) ** 0.5)  # t of 96 %, a spread of 2 at a mean of 6
    found = forecast.forecast_time([*first, *second], 2 * 12, 2, samples=2)
    took = forecast.elapsed([*first, *second], 2)
    assert found.low == pytest.approx(took + 9 * 6 / factor / 2)
    file, out = tmp_path / "paid.yaml", tmp_path / "out"
    file.write_text(MODEL)
    given = [str(file), "--task", "builtin_math", "--limit", "30", "--out", str(out), "--samples", "4"]
    assert command(*given, "--dry-run", "5", "-s", "ensemble.generation.temperature=1") == 0
    rows = read_rows(out / "answers" / "paid.jsonl")[1].values()
    reads = [4 * row.read for row in rows if not row.sample]  # all samples read the same
    told = forecast.forecast(reads, 30)
    assert told.high / told.total > 1.02
    said = f"| paid | 20 | 120 | {told.total:,.0f} [{told.low:,.0f}, {told.high:,.0f}] | "
    assert said in capsys.readouterr().out


@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_pilot_of_all_questions_has_totals_and_no_intervals(tmp_path, capsys, count):
    file, out = tmp_path / "paid.yaml", tmp_path / "out"
    file.write_text(
        MODEL.replace('"a short answer is 5"', '"a somewhat longer answer that goes on for a while is 5"')
    )
    given = [str(file), "--task", "builtin_math", "--limit", str(count), "--out", str(out)]
    assert command(*given, "--dry-run", "4") == 0
    said = capsys.readouterr().out
    rows = read_rows(out / "answers" / "paid.jsonl")[1].values()
    read, written = sum(row.read for row in rows), 12 * count  # a token a word
    assert f"| paid | {count} | {count} | {read} | {written} | " in said
    assert f" | {(read + 10 * written) / 1e6:.4f} | 0:00 |" in said  # 1 and 10 dollars per million
    assert "[" not in said
    assert "nothing is predicted" in said


def test_a_pilot_of_one_question_is_refused(capsys):
    assert command("builtin:intern", "--task", "builtin_math", "--dry-run", "1") == 2
    assert (
        capsys.readouterr().err == "ensemblehub: Invalid value for '--dry-run': 1 is not in the range x>=2.\n"
    )


def test_a_configuration_behind_dry_run_is_no_number(capsys):
    assert command("--dry-run", "pair.yaml", "--task", "builtin_math") == 2
    assert (
        capsys.readouterr().err
        == "ensemblehub: Invalid value for '--dry-run': 'pair.yaml' is no number of questions; "
        "name the configurations before it\n"
    )


CASCADE = """
model_specs:
  - {name: large, engine: echo, replies: {"": 'REPLY'}}
  - {name: small, engine: echo, replies: {"": 'REPLY'}}
ensemble:
  output_aggregation_method: cascade
  output_aggregation_params: {large: large, small: small, accept: "agreement:2", threshold: 1.0}
"""


@pytest.mark.parametrize(("reply", "is_told"), [(r"\boxed{5}", True), ("no answer to agree on", False)])
def test_a_model_that_no_answer_of_the_pilot_called_is_named(tmp_path, capsys, reply, is_told):
    file = tmp_path / "cascade.yaml"
    file.write_text(CASCADE.replace("REPLY", reply))
    given = [str(file), "--task", "builtin_math", "--limit", "30", "--out", str(tmp_path / "out")]
    assert command(*given, "--dry-run") == 0
    told = "cascade: none of its 10 answers called large. Up to 26% of all may"  # 0.74 ** 10 is 0.05
    assert (told in capsys.readouterr().out) == is_told
