"""`ensemblehub bench`: cells, sweeps, rows that survive a kill, and figures."""

import gzip
import json
import shutil
import signal
import subprocess
import sys
import time

import made
import pytest

from ensemblehub import builtin, cli
from ensemblehub.errors import ArtifactError, ConfigError
from ensemblehub.lab import metrics
from ensemblehub.lab.bench import cells, run
from ensemblehub.lab.bench.answers import Bench
from ensemblehub.lab.bench.rows import AnswerRow, read_rows
from ensemblehub.lab.bench.summary import summary

pytest.importorskip("torch")
PAIR = """
model_specs:
  - {name: mentor, path: "builtin:mentor"}
  - {name: intern, path: "builtin:intern"}
ensemble:
  output_aggregation_method: tandem
  output_aggregation_params: {mentor: mentor, intern: intern, profile: builtin, judge: "builtin:judge",
                              levels: {low: 24, medium: 64, high: 128}}
sweep:
  intern alone: {ensemble: {models: [intern]}}
  low: {ensemble.output_aggregation_params.judge: "fixed:low"}
"""


def hub(*arguments):
    try:
        cli.main([*map(str, arguments)])
    except SystemExit as exit_:
        return exit_.code
    return 0


def command(*arguments):
    return hub("bench", *arguments)


def ids(folder, name):
    lines = (folder / "answers" / f"{name}.jsonl").read_text().splitlines()[1:]
    return [json.loads(line)["id"] for line in lines]


def test_every_cell_of_a_sweep_and_a_model_alone_answer_the_same_questions(tmp_path, capsys):
    file = tmp_path / "pair.yaml"
    file.write_text(PAIR)
    out = tmp_path / "out"
    assert command(file, "builtin:mentor", "--task", "builtin_math", "--limit", 4, "--out", out) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert [line["method"] for line in summary["lines"]] == ["intern alone", "low", "builtin:mentor"]
    assert capsys.readouterr().out == (out / "table.md").read_text()
    assert "<svg" in (out / "accuracy_cost.svg").read_text()
    rows = {name: read_rows(out / "answers" / f"{name}.jsonl")[1] for name in summary["cells"]}
    assert rows["low"].keys() == rows["intern_alone"].keys() == rows["builtin_mentor"].keys()
    for row in rows["low"].values():
        assert row.verdicts[-1]["level"] == "low"
        assert row.insight
        assert {line["engine"] for line in row.usage} >= {"mentor", "intern"}
        assert row.written == sum(line["completion_tokens"] for line in row.usage)
        assert row.cold_flops >= row.flops > 0
    asked = {(row.question, row.asked, row.prompted) for row in rows["low"].values()}
    assert asked == {(row.question, row.asked, row.prompted) for row in rows["builtin_mentor"].values()}


def test_more_questions_extend_a_folder_and_none_is_asked_twice(tmp_path, monkeypatch):
    out = tmp_path / "out"
    given = ("builtin:intern", "--task", "builtin_math", "--out", out)
    assert command(*given, "--limit", 2) == 0
    first = ids(out, "builtin_intern")
    assert command(*given, "--limit", 4) == 0
    assert ids(out, "builtin_intern")[:2] == first
    assert len(set(ids(out, "builtin_intern"))) == len(ids(out, "builtin_intern")) == 4

    def never(*_):
        raise AssertionError("asked again")

    monkeypatch.setattr(Bench, "_row_of", never)
    assert command(*given, "--limit", 2) == 0
    assert json.loads((out / "summary.json").read_text())["lines"][0]["n"] == 2


def packed(journal):
    """Replace a journal by its gzipped copy."""
    copy = journal.with_name(f"{journal.name}.gz")
    copy.write_bytes(gzip.compress(journal.read_bytes()))
    journal.unlink()
    return copy


def test_gzipped_journals_are_read_and_go_on(tmp_path, capsys):
    out = tmp_path / "out"
    given = ("builtin:intern", "--task", "builtin_math", "--out", out)
    assert command(*given, "--limit", 2) == 0
    first, journal = ids(out, "builtin_intern"), out / "answers" / "builtin_intern.jsonl"
    copy = packed(journal)
    assert hub("compare", copy, out) == 0
    assert "| all | 2 |" in capsys.readouterr().out
    assert hub("board", out, "--out", tmp_path / "board.html") == 0
    assert all(number in (tmp_path / "board.html").read_text() for number in first)
    other = ("builtin:mentor", "--task", "builtin_math", "--limit", 2, "--out", out)
    assert command(*other) == 0  # beside a cell that stays packed
    assert [line["method"] for line in json.loads((out / "summary.json").read_text())["lines"]] == [
        "builtin:intern",
        "builtin:mentor",
    ]
    assert copy.exists()
    assert command(*given, "--limit", 3) == 0
    assert ids(out, "builtin_intern")[:2] == first
    assert not copy.exists()
    copy = packed(journal)
    copy.write_bytes(copy.read_bytes()[:-9])
    assert command(*given, "--limit", 3) == 2
    assert f"{copy} is damaged" in capsys.readouterr().err
    assert command(*given, "--limit", 3, "--force") == 0
    assert len(ids(out, "builtin_intern")) == 3
    assert not copy.exists()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_a_killed_bench_goes_on_and_asks_every_question_once(tmp_path, number, status):
    out, model = tmp_path / "out", tmp_path / "slow.yaml"
    model.write_text("model_specs: [{name: slow, engine: echo, delay: 0.05, replies: {'': it is 12}}]")
    arguments = ["bench", str(model), "--task", "builtin_math", "--limit", "24", "--out", str(out)]
    arguments += ["-s", "experiment.concurrency=2"]
    process = subprocess.Popen(
        [sys.executable, "-m", "ensemblehub", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # it may be ignored here
    )
    path = out / "answers" / "slow.jsonl"
    deadline = time.monotonic() + 120
    while not (path.exists() and path.read_bytes().count(b"\n") > 4) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert command(*arguments[1:]) == 2  # the other one holds the folder
    process.send_signal(number)
    assert process.wait(60) == status
    lines = path.read_bytes().split(b"\n")[1:-1]  # the last may be torn
    before = [json.loads(line)["id"] for line in lines]
    assert 0 < len(before) < 24
    if number == signal.SIGINT:  # what is there has its table
        assert f"Not finished: slow {len(before)} of 24." in (out / "table.md").read_text()
    assert command(*arguments[1:]) == 0
    after = ids(out, "slow")
    assert len(after) == len(set(after)) == 24
    assert after[: len(before)] == before
    assert "Not finished" not in (out / "table.md").read_text()


def test_a_folder_made_with_other_settings_says_what_differs(tmp_path, capsys):
    out = tmp_path / "out"
    assert command("builtin:intern", "--task", "builtin_math", "--limit", 1, "--out", out) == 0
    short = ("-s", "ensemble.generation.max_tokens=8")
    assert command("builtin:intern", "--task", "builtin_math", "--limit", 1, "--out", out, *short) == 2
    assert "sampling.max_tokens 512, not 8; use --force" in capsys.readouterr().err
    assert command("builtin:mentor", "--task", "builtin_code", "--limit", 1, "--out", out) == 2
    assert "task 'builtin_math', not 'builtin_code'; choose another --out" in capsys.readouterr().err
    assert (
        command("builtin:intern", "--task", "builtin_math", "--limit", 1, "--out", out, *short, "--force")
        == 0
    )
    (row,) = read_rows(out / "answers" / "builtin_intern.jsonl")[1].values()
    assert row.finish == "length"
    assert row.written == 8


def test_samples_differ_and_are_a_cluster(tmp_path, capsys):
    out = tmp_path / "out"
    given = ("builtin:intern", "--task", "builtin_math", "--limit", 2, "--out", out, "--samples", 3)
    assert command(*given) == 2
    assert "builtin:intern is greedy" in capsys.readouterr().err
    assert command(*given, "-s", "ensemble.generation.temperature=1.5", "--seed", 5) == 0
    _, rows = read_rows(out / "answers" / "builtin_intern.jsonl")
    assert sorted(row.sample for row in rows.values()) == [0, 0, 1, 1, 2, 2]
    assert len({row.text for row in rows.values()}) > 2
    (line,) = json.loads((out / "summary.json").read_text())["lines"]
    assert (line["n"], line["answers"]) == (2, 6)
    assert line["accuracy"] <= line["pass@2"] <= line["pass@3"]


@pytest.mark.parametrize(
    ("sweep", "said"),
    [
        ("{a: {ensemble.output_aggregation_params.juge: x}}", "pair.yaml:9: .*'juge'; did you mean 'judge'"),
        ("{a: {ensembel.models: [intern]}}", "pair.yaml:9: .*'ensembel'; did you mean 'ensemble'"),
        ("{ensemble.models: []}", "pair.yaml:9: sweep: give every key a list"),
        ("{ensemble.models: [[intern]], b: {}}", "pair.yaml:9: sweep: give every key a list"),
        ("{ensemble.models: [[nobody]]}", "pair.yaml:9: .*nobody"),
        ("{a: {ensemble.generation.seed: 2026-01-31}}", "pair.yaml:9: .*generation.seed: .*valid integer"),
        ("{ensemble.generation.seed: [2026-01-31]}", "pair.yaml:9: .*generation.seed: .*valid integer"),
    ],
)
def test_a_wrong_sweep_is_refused_with_its_line(tmp_path, sweep, said):
    file = tmp_path / "pair.yaml"
    file.write_text(PAIR.partition("sweep:")[0] + f"sweep: {sweep}\n")
    with pytest.raises(ConfigError, match=said):
        cells.cells_of([str(file)])


def test_a_name_of_a_cell_is_text_in_table_and_plot(tmp_path):
    file, out = tmp_path / "odd.yaml", tmp_path / "out"
    model = "model_specs: [{name: fixed, engine: echo}]"
    file.write_text(f"{model}\nsweep: {{'a|b $x^{{$ <i>': {{}}, under $1: {{}}}}")
    assert command(file, "--task", "builtin_math", "--limit", 1, "--out", out) == 0
    table = (out / "table.md").read_text().splitlines()
    assert [line for line in table if line.startswith(r"| a\|b $x^{$ <i> | 1 | 0.00% [0.00%, 79.35%] | – |")]
    assert "a|b $x^{$ &lt;i&gt;" in (out / "accuracy_cost.svg").read_text()


def test_lists_of_values_are_all_combinations(tmp_path):
    file = tmp_path / "pair.yaml"
    judges = 'ensemble.output_aggregation_params.judge: ["fixed:low", "fixed:high"]'
    axes = f"{judges}, ensemble.generation.max_tokens: [8, 9]"
    file.write_text(PAIR.partition("sweep:")[0] + f"sweep: {{{axes}}}")
    found = cells.cells_of([str(file)], ["ensemble.generation.seed=3"])
    assert [cell.name for cell in found] == [
        "pair judge=fixed:low, max_tokens=8",
        "pair judge=fixed:low, max_tokens=9",
        "pair judge=fixed:high, max_tokens=8",
        "pair judge=fixed:high, max_tokens=9",
    ]
    assert found[3].config.aggregation.params["judge"] == "fixed:high"
    assert {cell.config.ensemble.generation.seed for cell in found} == {3}
    with pytest.raises(ConfigError, match="two cells are called"):
        cells.cells_of([str(file), str(file)])


def test_a_model_alone_has_a_short_name_that_tells_no_path(tmp_path):
    folder = tmp_path / "tiny-model"
    shutil.copytree(builtin.resolve("builtin:intern"), folder)
    named = {
        "builtin:intern": "builtin:intern",
        str(folder): "tiny-model",
        "some/model:http://127.0.0.1:9/v1": "some/model@127.0.0.1:9",
    }
    for text, name in named.items():
        (cell,) = cells.cells_of([text])
        assert (cell.name, cell.config.model_specs[0].name) == (name, name)
        assert "/" not in cell.file
    run.bench(
        cells.cells_of([str(folder)]),
        run.questions_of("builtin_math", "test", None, None, 1),
        tmp_path / "out",
    )
    assert str(tmp_path) not in (tmp_path / "out" / "answers" / "tiny-model.jsonl").read_text()


def test_an_endpoint_that_is_down_stops_the_run_and_counts_what_is_kept(tmp_path, capsys):
    given = ("m:http://127.0.0.1:9/v1", "--task", "builtin_math", "--limit", 2, "--out", tmp_path)
    assert command(*given) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "127.0.0.1:9" in said
    assert "(0 of 2 answers of m@127.0.0.1:9 are kept: the same command goes on)" in said


def test_a_failed_answer_stops_the_run_or_counts_as_wrong_and_costs_what_it_cost(tmp_path, capsys):
    file = tmp_path / "paid.yaml"
    price = "price: {prompt: 1.0, completion: 10.0}"
    replies = 'replies: {"": "well then the answer is 5"}, fail_after: 3'
    file.write_text(f"model_specs: [{{name: paid, engine: echo, {price}, {replies}}}]")
    given = (file, "--task", "builtin_math", "--limit", 2, "--out", tmp_path / "out")
    assert command(*given) == 2
    said = capsys.readouterr().err
    assert "(0 of 2 answers of paid are kept" in said
    first, second = (item.id for item in run.questions_of("builtin_math", "test", None, None, 2).items)
    failure = "paid failed after 3 tokens, as scripted"
    assert f"question {first}: {failure}" in said or f"question {second}: {failure}" in said
    assert command(*given, "--errors", "wrong") == 0
    _, rows = read_rows(tmp_path / "out" / "answers" / "paid.jsonl")
    for row in rows.values():
        assert not row.correct
        assert row.error == row.reason != ""
        assert row.written == 3
        assert row.usd == pytest.approx((row.read + 10 * row.written) / 1e6)
    (line,) = json.loads((tmp_path / "out" / "summary.json").read_text())["lines"]
    assert line["errors"] == 2
    assert line["usd"] == pytest.approx(sum(row.usd for row in rows.values()) / 2)


PARTLY = """
model_specs:
  - {name: remote, engine: echo, parameters: 0, price: {prompt: 1.0, completion: 10.0}, replies: {"": it is 5}}
  - {name: local, engine: echo, parameters: 100, PRICE replies: {"": it is 6}}
sweep:
  local: {ensemble: {models: [local]}}
  remote: {ensemble: {models: [remote]}}
  both: {ensemble: {output_aggregation_method: cascade, output_aggregation_params: {small: local, large: remote,
         accept: logprob, threshold: 0.9}}}
"""  # a draft is as probable as exp(-1) and never accepted: a cascade costs what both do


@pytest.mark.parametrize(("price", "is_known"), [("", False), ("price: {prompt: 0, completion: 0},", True)])
def test_a_cost_that_is_unknown_of_one_model_is_none_and_not_that_of_the_other(
    tmp_path, capsys, price, is_known
):
    file, out = tmp_path / "partly.yaml", tmp_path / "out"
    file.write_text(PARTLY.replace("PRICE", price))
    given = (file, "--task", "builtin_math", "--limit", 4, "--out", out)
    assert command(*given, "--dry-run", 2) == 0
    told = [line.split(" | ")[5:7] for line in capsys.readouterr().out.splitlines() if "| 2 | 4 |" in line]
    assert told[0][0] != told[1][0] == told[2][0] == "–"  # the FLOPs of the local model alone
    assert (told[2][1] != "–") == is_known
    assert command(*given) == 0
    local, remote, both = json.loads((out / "summary.json").read_text())["lines"]
    assert local["tflops"] == 2 * 100 * (local["read"] + 2) / 1e12  # the last of 3 tokens is not computed
    assert remote["tflops"] is both["tflops"] is None
    assert remote["usd"] == pytest.approx((remote["read"] + 10 * 3) / 1e6)
    assert both["usd"] == (pytest.approx(remote["usd"]) if is_known else None)
    capsys.readouterr()
    assert hub("compare", "--json", out / "answers" / "remote.jsonl", out) == 0
    costs = {pair["other"]: pair["costs"] for pair in json.loads(capsys.readouterr().out)}
    assert costs["local"].keys() == costs["both"].keys()
    assert ("usd" in costs["both"]) == is_known
    assert "cold_flops" not in costs["both"]
    assert hub("compare", "--mixes", out / "answers" / "local.jsonl", out) == 0
    mixed = capsys.readouterr().out.splitlines()
    both = next(line for line in mixed if line.startswith("| both"))
    assert both.endswith("| 0.0%, +0.0 [+0.0, +0.0] |" if is_known else "| – |")  # twice the tokens of either


JUDGED = """
model_specs:
  - {name: one, engine: echo, replies: {"": it is 5}}
  - {name: two, engine: echo, replies: {"": it is 6}}
reward_specs: [{name: natural, engine: perplexity, model: one}]
ensemble: {output_aggregation_method: best_of}
"""


def test_answers_chosen_on_another_scale_of_scores_are_not_mixed(tmp_path, capsys):
    file = tmp_path / "judged.yaml"
    file.write_text(JUDGED)
    given = (file, "--task", "builtin_math", "--out", tmp_path / "out")
    assert command(*given, "--limit", 1) == 0
    scaled = ("-s", "ensemble.score_normalization=minmax")
    assert command(*given, "--limit", 2, *scaled) == 2
    assert "score_normalization was not recorded; use --force" in capsys.readouterr().err
    assert command(*given, "--limit", 2, *scaled, "--force") == 0
    assert command(*given, "--limit", 3, *scaled) == 0
    assert command(*given, "--limit", 3) == 2
    assert "score_normalization 'minmax', now without it; use --force" in capsys.readouterr().err
    voted = ("-s", "ensemble.output_aggregation_method=single")  # asks no scorer
    assert command(*given, "--limit", 1, *voted, "--out", tmp_path / "voted") == 0
    assert command(*given, "--limit", 2, *voted, *scaled, "--out", tmp_path / "voted") == 0


def test_a_changed_question_is_not_mixed_with_old_answers(tmp_path):
    data = tmp_path / "questions.jsonl"
    row = {"question": "1 + 1?", "answer": "#### 2"}
    data.write_text(json.dumps(row) + "\n")
    questions = run.questions_of("gsm8k", "test", data, None, 1)
    found = cells.cells_of(["builtin:intern"], ["ensemble.generation.max_tokens=4"])
    run.bench(found, questions, tmp_path / "out")
    data.write_text(json.dumps(row | {"answer": "#### 3"}) + "\n")
    changed = run.questions_of("gsm8k", "test", data, None, 1)
    with pytest.raises(ArtifactError, match="was changed since it was answered"):
        run.bench(found, changed, tmp_path / "out")


def test_intervals_and_tests_are_those_of_the_literature():
    assert metrics.clustered_interval([1, 1, 0, 1]) == metrics.wilson_interval(3, 4)
    # answers of a question that always agree are one answer, those that never do are many
    assert metrics.clustered_interval([1, 1, 0, 1], 5) == metrics.wilson_interval(3, 4)
    assert metrics.clustered_interval([0.5, 0.5, 0.5, 0.5], 4)[0] == metrics.wilson_interval(2, 4)[0]
    low, high = metrics.clustered_interval([0.5, 0.75, 0.5, 0.25] * 5, 4)
    wide = metrics.wilson_interval(10, 20)
    assert wide[0] < low < 0.5 < high < wide[1]
    assert metrics.pass_at(1, 10, 3) == pytest.approx(0.3)
    assert metrics.pass_at(2, 4, 1) == pytest.approx(0.5)
    assert metrics.pass_at(3, 3, 0) == 0.0
    assert metrics.mcnemar(0, 5) == pytest.approx(2 / 32)
    assert metrics.mcnemar(8, 2) == pytest.approx(2 * (1 + 10 + 45) / 1024)
    assert metrics.mcnemar(3, 3) == metrics.mcnemar(0, 0) == 1.0


def test_sets_of_tests_and_wrong_forms_are_shares_of_the_summary():
    rows = [
        AnswerRow(**made.row(1, 1, suites={"base": True, "plus": True})),
        AnswerRow(**made.row(2, 0, suites={"base": True, "plus": False})),
        AnswerRow(**made.row(3, 0, suites={"base": False, "plus": False}, in_form=False)),
        AnswerRow(**made.row(4, 0, suites={"base": False, "plus": False})),
    ]
    found = summary("model", rows, 4)
    assert (found["base_share"], found["plus_share"], found["wrong_form_share"]) == (0.5, 0.25, 0.25)
    assert "base_share" not in summary("model", [AnswerRow(**made.row(1, 1))], 1)
