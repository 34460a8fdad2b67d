"""The command that measures grading, on files of our own."""

import json
import sys

from benchmarks import grading


def test_grading_reads_the_public_files_and_says_what_fails(tmp_path, monkeypatch, capsys):
    right = {
        "problem": "1 + 1?",
        "solution": "So $\\boxed{2}$.",
        "answer": "2",
        "subject": "Algebra",
        "level": 1,
    }
    rows = [
        right | {"unique_id": "a"},
        right | {"problem": "1 + 2?", "solution": "\\boxed{4}", "unique_id": "b"},
    ]
    (tmp_path / "math500.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "gsm8k_test.jsonl").write_text(
        json.dumps({"question": "How many?", "answer": "It is\n#### 1,250"})
    )
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(json.dumps({"category": "own", "gold": "1/2", "answer": "0.5", "equal": False}) + "\n")
    monkeypatch.setattr(grading, "PAIRS", {"pairs": pairs, "more_pairs": pairs})
    monkeypatch.setattr(sys, "argv", ["grading", "--data", str(tmp_path), "--to", str(tmp_path / "to")])
    assert grading.main() == 1
    found = json.loads((tmp_path / "to" / "grading.json").read_text())
    assert [(found["gold"][name]["n"], found["gold"][name]["right"]) for name in ("math500", "gsm8k")] == [
        (2, 1),
        (1, 1),
    ]
    table = (tmp_path / "to" / "table.md").read_text()
    assert "- math500, b: gold `2`, solution `4` (the answer is 2)" in table
    assert "- confused (own): `1/2` and `0.5`" in table
    assert "Told rightly: 0 (0.00%); baseline 0 (0.00%)." in table
    assert "math-verify" in found["conditions"]
    assert "aime24: left out" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["grading", "--to", str(tmp_path / "to")])
    assert grading.main() == 1
    assert json.loads((tmp_path / "to" / "grading.json").read_text())["gold"] == found["gold"]
