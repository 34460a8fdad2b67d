"""`ensemblehub compare`: paired differences, worked out by hand, and what is refused."""

import json

import made
import pytest

from ensemblehub import cli
from ensemblehub.errors import ArtifactError
from ensemblehub.lab.bench.compare import against_mixes, brief, comparisons, text


def test_the_difference_is_paired_and_says_which_questions_changed(tmp_path):
    made.cell(tmp_path / "a", "base", "11000000")
    made.cell(tmp_path / "b", "other", "01111110")
    (found,) = comparisons([tmp_path / "a", tmp_path / "b"])
    whole = found.whole
    assert (whole.n, whole.base, whole.other, whole.difference) == (8, 0.25, 0.75, 0.5)
    assert whole.gains == ["q2", "q3", "q4", "q5", "q6"]
    assert whole.losses == ["q0"]
    assert whole.p == pytest.approx(2 * (1 + 6) / 64)
    assert whole.low < 0.5 < whole.high
    assert found.groups["subject"]["even"].gains == ["q2", "q4", "q6"]
    assert found.groups["subject"]["odd"].losses == []
    assert {name: group.n for name, group in found.groups["level"].items()} == {"1": 4, "2": 4}
    said = text(found)
    assert "# other against base" in said
    assert "| all | 8 | 25.0% | 75.0% | +50.0 [" in said
    assert "Gains: q2, q3, q4, q5, q6" in said
    assert "FLOPs 2e+09 -> 2e+09 (1 times)" in said


def test_every_cell_of_a_folder_is_compared_to_the_first(tmp_path, capsys):
    for name in ("one", "three", "two"):
        made.cell(tmp_path, name, "0101")
    (tmp_path / "summary.json").write_text(json.dumps({"cells": ["two", "one"]}))
    found = comparisons([tmp_path])
    assert [(pair.base, pair.other) for pair in found] == [("two", "one"), ("two", "three")]
    cli.main(["compare", str(tmp_path), "--json"])
    assert [entry["whole"]["p"] for entry in json.loads(capsys.readouterr().out)] == [1.0, 1.0]


def test_a_folder_against_one_of_its_cells_in_brief(tmp_path, capsys):
    base = made.cell(tmp_path, "base", "1100")
    made.journal(tmp_path, "dear", [made.row(number, 1, cold_flops=3e9) for number in range(4)])
    (pair,) = comparisons([base, tmp_path])
    head, _, line = brief([pair]).splitlines()
    assert head.startswith(
        "|  | n | base | accuracy | difference, points [95 %] | gains | losses | McNemar p | FLOPs, times |"
    )
    assert "dollars" not in head  # they cost none
    assert line.startswith("| dear against base | 4 | 50.0% | 100.0% | +50.0 [")
    assert line.endswith("| 2 | 0 | 0.5 | 1.500 | 1.000 | 1.000 | 1.000 |")
    cli.main(["compare", "--brief", str(base), str(tmp_path)])
    assert capsys.readouterr().out == brief([pair])


def alone(folder, name, digits, cost, method="single", **params):
    rows = [made.row(number, int(digit), cold_flops=cost) for number, digit in enumerate(digits)]
    return made.journal(folder, name, rows, aggregation={"method": method, "params": params})


def test_a_cell_is_set_against_the_best_random_mix_at_its_cost(tmp_path, capsys):
    base = alone(tmp_path, "small", "1000", 1e9)
    alone(tmp_path, "dear", "1110", 5e9)
    alone(tmp_path, "vain", "0001", 3e9)  # below the line between the others
    alone(tmp_path, "level", "1100", 2e9, "tandem", judge="fixed:low")
    alone(tmp_path, "judged", "1110", 3e9, "tandem", judge="mlp")
    alone(tmp_path, "drafted", "1111", 2e9, "tandem", judge="fixed:low", draft="logprob")  # at no fixed level
    alone(tmp_path, "cheap", "1000", 5e8, "cascade")
    *found, oracle = against_mixes([base, tmp_path])
    mixes = {pair.other: pair.mixes for pair in found}
    judged = mixes["judged"]
    assert judged["models"].accuracy == 0.5  # half small, half dear
    assert judged["models"].difference == 0.25  # of 1, 1/2, 1/2, 0 expected, all three are right
    assert judged["models"].low <= 0.25 <= judged["models"].high
    assert judged["models and fixed levels"].accuracy == pytest.approx(0.5 + 0.25 / 3)  # two levels, one dear
    assert mixes["level"]["models"].accuracy == pytest.approx(0.25 + 0.5 / 4)
    assert mixes["dear"]["models"].difference == 0
    assert mixes["cheap"] == {"models": None, "models and fixed levels": None}
    assert oracle.other == "oracle"
    assert oracle.whole.other == 1.0  # each is right on one
    assert oracle.costs["cold_flops"][1] == (1e9 + 2e9 + 5e9 + 3e9) / 4
    cli.main(["compare", "--mixes", str(base), str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith(
        "| mix of models at equal cost; points to it [95 %] | mix of models and fixed levels at equal cost; "
        "points to it [95 %] |"
    )
    assert next(line for line in lines if line.startswith("| cheap")).endswith("| – | – |")
    with pytest.raises(ArtifactError, match="fewer than two cells in which one model answers alone"):
        against_mixes([base])


def test_mixes_of_unfinished_cells_are_over_the_questions_that_all_have(tmp_path):
    base = alone(tmp_path, "small", "1000", 1e9)
    alone(tmp_path, "dear", "111", 5e9)
    alone(tmp_path, "judged", "110111", 3e9, "tandem", judge="mlp")
    with pytest.raises(ArtifactError, match="have not answered the same questions"):
        against_mixes([base, tmp_path])
    pairs = {pair.other: pair for pair in against_mixes([base, tmp_path], common=True)}
    judged = pairs["judged"]  # of q0, q1 and q2: small has one, dear all, half of each is at the cost
    assert (judged.whole.n, judged.whole.base, judged.whole.other) == (3, 1 / 3, 2 / 3)
    assert judged.mixes["models"].accuracy == pytest.approx((1 / 3 + 1) / 2)
    assert judged.mixes["models"].difference == pytest.approx(0)
    assert pairs["oracle"].costs["cold_flops"] == (1e9, pytest.approx((1e9 + 5e9 + 5e9) / 3))


def test_folders_with_the_same_cells_are_compared_cell_by_cell(tmp_path):
    for folder, digits in (("before", "00"), ("after", "11")):
        for name in ("x", "y"):
            made.cell(tmp_path / folder, name, digits)
    found = comparisons([tmp_path / "before", tmp_path / "after"])
    assert [(pair.base, pair.other, pair.whole.difference) for pair in found] == [
        ("x", "x", 1.0),
        ("y", "y", 1.0),
    ]


def test_several_samples_are_shares_and_have_no_mcnemar_test(tmp_path):
    rows = [made.row(number, sample % 2, sample) for number in range(3) for sample in range(4)]
    made.journal(tmp_path, "drawn", rows)
    greedy = made.cell(tmp_path / "greedy", "greedy", "101")
    (found,) = comparisons([greedy, tmp_path / "answers" / "drawn.jsonl"])
    assert (found.whole.base, found.whole.other) == (pytest.approx(2 / 3), 0.5)
    assert found.whole.gains == ["q1"]
    assert found.whole.p is None


def test_other_questions_and_other_prompts_are_refused(tmp_path):
    base = made.cell(tmp_path, "base", "0101")
    longer = made.cell(tmp_path, "longer", "01011")
    with pytest.raises(ArtifactError, match="0 of the first only, 1 of the second only"):
        comparisons([base, longer])
    (found,) = comparisons([base, longer], common=True)
    assert found.whole.n == 4
    official = made.cell(tmp_path, "official", "0101", prompt="official")
    with pytest.raises(ArtifactError, match="not asked the same: prompt 'plain', not 'official'"):
        comparisons([base, official], common=True)
    rows = [made.row(number, 1) for number in range(4)]
    for key, what in (("asked", "question"), ("prompted", "prompt")):
        changed = made.journal(tmp_path, key, [*rows[:3], rows[3] | {key: "another"}])
        with pytest.raises(ArtifactError, match=f"were asked q3 with another {what}"):
            comparisons([base, changed], common=True)


def test_what_is_no_result_is_one_line(tmp_path, capsys):
    made.cell(tmp_path / "alone", "alone", "01")
    for path, said in ((tmp_path, "holds no results of"), (tmp_path / "alone", "holds one cell, alone")):
        with pytest.raises(SystemExit):
            cli.main(["compare", str(path)])
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert said in line
    damaged = made.journal(tmp_path / "damaged", "damaged", [made.row(0, 1) | {"correct": "yes"}])
    with pytest.raises(ArtifactError, match="q0 is damaged"):
        comparisons([damaged, damaged])
