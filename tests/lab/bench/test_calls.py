"""`ensemblehub bench --reuse`: a call that several cells make alike is made once, and billed to each."""

import pytest
from test_bench import PAIR, command

from ensemblehub.generators.echo import EchoEngine
from ensemblehub.lab.bench.calls import Call
from ensemblehub.lab.bench.rows import read_rows

SCRIPTED = """
model_specs:
  - name: big
    engine: echo
    parameters: 9000000
    replies: {"Insights": "Goal: count. Planning: add. Action: so it is nine.", "": "so it is \\\\boxed{9}"}
  - {name: small, engine: echo, parameters: 1000000, replies: {"nine": "it is \\\\boxed{9}", "": "it is \\\\boxed{12}"}}
ensemble:
  output_aggregation_method: cascade
  output_aggregation_params: {large: big, small: small}
  generation: {max_tokens: 64, temperature: 0.0, seed: 0}
sweep:
  big: {ensemble.models: [big], ensemble.output_aggregation_method: single, ensemble.output_aggregation_params: {}}
  always: {ensemble.output_aggregation_params.threshold: 0.9}
  never: {ensemble.output_aggregation_params.threshold: 0.1}
  high:
    ensemble.output_aggregation_method: tandem
    ensemble.output_aggregation_params: {mentor: big, intern: small, levels: {low: 2, high: 20}, judge: "fixed:high"}
  low:
    ensemble.output_aggregation_method: tandem
    ensemble.output_aggregation_params: {mentor: big, intern: small, levels: {low: 2, high: 20}, judge: "fixed:low"}
  entropy:
    ensemble.output_aggregation_method: tandem
    ensemble.output_aggregation_params: {mentor: big, intern: small, levels: {low: 2, high: 20}, judge: "entropy:0.5"}
"""
SAME = (
    "text",
    "insight",
    "finish",
    "correct",
    "verdicts",
    "choices",
    "written",
    "read",
    "flops",
    "cold_flops",
)


def answered(folder):
    return {path.stem: read_rows(path)[1] for path in sorted((folder / "answers").glob("*.jsonl"))}


def bench(file, out, *more, limit=6):
    return command(file, "--task", "builtin_math", "--limit", limit, "--out", out, *more)


@pytest.fixture
def calls(monkeypatch):
    """The calls that engines really answer: engine and kind."""
    made = []

    def counting(kind):
        real = getattr(EchoEngine, kind)

        def counted(self, request, meter):
            made.append((self.name, kind))
            return real(self, request, meter)

        monkeypatch.setattr(EchoEngine, kind, counted)

    counting("stream")
    counting("score")
    return made


def test_every_cell_has_the_answers_and_the_cost_that_it_has_without(tmp_path, calls):
    file = tmp_path / "cells.yaml"
    file.write_text(SCRIPTED)
    assert bench(file, tmp_path / "live") == 0
    live = len(calls)
    calls.clear()
    assert bench(file, tmp_path / "reused", "--reuse") == 0
    assert calls.count(("big", "stream")) == 6 * 2  # an answer, and an insight
    assert calls.count(("small", "stream")) == 6 * 3  # a draft, and an answer after either insight
    assert len(calls) < live
    tables = [(tmp_path / name / "table.md").read_text() for name in ("live", "reused")]
    assert ["| wall |" in text for text in tables] == [True, False]  # no call was made within that time
    assert [f"{kind} seconds" in text for text, kind in zip(tables, ("wall", "engines'"), strict=True)] == [
        True
    ] * 2
    assert (tmp_path / "reused" / "accuracy_seconds.svg").exists()
    one, other = answered(tmp_path / "live"), answered(tmp_path / "reused")
    assert one.keys() == other.keys()
    for cell, rows in one.items():
        for key, row in rows.items():
            for field in SAME:
                assert getattr(row, field) == getattr(other[cell][key], field), (cell, field)


def test_calls_are_kept_for_cells_that_come_later(tmp_path, calls):
    file, out = tmp_path / "cells.yaml", tmp_path / "out"
    head, _, _ = SCRIPTED.partition("  high:")
    file.write_text(head)
    assert bench(file, out, "--reuse") == 0
    calls.clear()
    file.write_text(head + "  sometimes: {ensemble.output_aggregation_params.threshold: 0.5}\n")
    assert bench(file, out, "--reuse") == 0
    assert calls == []
    assert bench(file, out, "--reuse", limit=7) == 0
    assert sorted(calls) == [("big", "stream"), ("small", "stream")]
    calls.clear()
    assert bench(file, out, "--reuse", "--force") == 0
    assert len(calls) == 12


def test_a_sample_without_a_seed_is_drawn_anew(tmp_path, calls):
    file = tmp_path / "cells.yaml"
    alone = SCRIPTED.partition("  big: ")[2].partition("\n")[0]
    file.write_text(SCRIPTED.partition("sweep:")[0] + f"sweep:\n  one: {alone}\n  two: {alone}\n")
    warm = ("-s", "ensemble.generation.temperature=0.7")
    assert bench(file, tmp_path / "seeded", "--reuse", *warm) == 0
    assert len(calls) == 6
    assert bench(file, tmp_path / "drawn", "--reuse", *warm, "-s", "ensemble.generation.seed=null") == 0
    assert len(calls) == 6 + 12


def test_a_stream_that_is_closed_early_costs_what_was_taken(tmp_path):
    file = tmp_path / "pair.yaml"
    tandem = "  high: {ensemble.output_aggregation_params.judge: 'fixed:high'}\n"
    file.write_text(PAIR.partition("  intern alone")[0] + tandem + PAIR[PAIR.index("  low:") :])
    for folder, more in ((tmp_path / "live", ()), (tmp_path / "reused", ("--reuse",))):
        assert bench(file, folder, *more, limit=4) == 0
    live, reused = answered(tmp_path / "live")["low"], answered(tmp_path / "reused")["low"]
    for key, row in live.items():
        for field in ("text", "insight", "finish", "written"):
            assert getattr(row, field) == getattr(reused[key], field)
        assert row.cold_flops == pytest.approx(reused[key].cold_flops)
        mentor = next(line for line in reused[key].usage if line["engine"] == "mentor")
        assert mentor["completion_tokens"] == 24


def test_what_other_cells_left_in_a_cache_is_billed_where_predictions_are_read_behind_what_was_written(
    tmp_path,
):
    """The draft is written before the question is read for the judge, steps are read behind steps written."""
    file, params = tmp_path / "pair.yaml", "ensemble.output_aggregation_params"
    file.write_text(
        PAIR.partition("  intern alone")[0]
        + f"""  low: {{{params}.judge: "fixed:low"}}
  draft: {{{params}.draft: logprob, {params}.start_with_intern: true, {params}.thresholds: {{none: 0.99}}}}
  again: {{{params}.draft: logprob, {params}.start_with_intern: true, {params}.thresholds: {{none: 0.999}}}}
  steps: {{ensemble.output_aggregation_method: stepwise, {params}: {{rule: logprob, separators: ["\\n"]}}}}
"""
    )
    for folder, more in ((tmp_path / "live", ()), (tmp_path / "reused", ("--reuse",))):
        assert bench(file, folder, *more, "-s", "experiment.concurrency=1", limit=3) == 0
    live, reused = answered(tmp_path / "live"), answered(tmp_path / "reused")
    assert {cell: {key: row.cold_flops for key, row in rows.items()} for cell, rows in live.items()} == {
        cell: {key: pytest.approx(row.cold_flops) for key, row in rows.items()}
        for cell, rows in reused.items()
    }


def test_what_a_provider_states_is_shared_out_and_said_to_be_estimated():
    plain = Call(
        {"prompt_tokens": 4, "completion_tokens": 8, "seconds": 2.0, "usd": None, "ids": list(range(12))}
    )
    assert plain.until(2) == {
        "prompt_tokens": 4,
        "completion_tokens": 2,
        "discarded_tokens": 0,
        "seconds": 0.5,
        "usd": None,
        "ids": list(range(6)),
    }
    stated = Call({"prompt_tokens": 4, "completion_tokens": 8, "usd": 0.04, "flops": (8.0, 16.0)}).until(2)
    assert (stated["usd"], stated["flops"], stated["estimated"]) == (0.01, [2.0, 4.0], True)


def test_a_damaged_file_and_what_cannot_be_reused_are_one_line(tmp_path, capsys):
    file, out = tmp_path / "cells.yaml", tmp_path / "out"
    file.write_text(SCRIPTED)
    assert bench(file, out, "--reuse", "--dry-run") == 2
    assert "leave out --dry-run" in capsys.readouterr().err
    out.mkdir()
    (out / "calls.sqlite").write_text("no database, but long enough to be looked at as one" * 9)
    assert bench(file, out, "--reuse") == 2
    assert "calls.sqlite: file is not a database; delete it" in capsys.readouterr().err
