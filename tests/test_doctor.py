import json
import os
import subprocess
import sys

import pytest

from ensemblehub.cli import main
from ensemblehub.doctor import examine

pytest.importorskip("transformers")

PAIR = "model_specs:\n- {path: builtin:mentor}\n- {path: builtin:intern}\n"
SCORED = (
    "reward_specs:\n- {path: builtin:intern, engine: hf_gen, weight: "
    "0.5}\nensemble:\n  output_aggregation_method: "
)


def examined(tmp_path, text):
    path = tmp_path / "some.yaml"
    path.write_text(text)
    return examine(path)


def run(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["doctor", *map(str, arguments)])
    return stop.value.code, capsys.readouterr().out


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # what the command sets stays with the test


def test_models_are_known_without_their_weights(tmp_path):
    mentor, intern = examined(tmp_path, PAIR).members
    assert (mentor.name, mentor.engine, mentor.path) == ("builtin:mentor", "hf", "builtin:mentor")
    assert mentor.parameters == 2_004_928
    assert mentor.weights == 4 * mentor.parameters
    assert (
        mentor.kv_per_1000_tokens == 1000 * 2 * 4 * 6 * 32 * 4
    )  # keys and values, layers, heads, width, bytes
    assert mentor.context == 2048
    assert intern.capabilities == ("decode", "logprobs", "prefix", "response_format", "score")


def test_no_weights_are_read(tmp_path):
    import shutil

    from ensemblehub import builtin

    folder = tmp_path / "bare"
    folder.mkdir()
    shutil.copy(os.path.join(builtin.resolve("builtin:intern"), "config.json"), folder)
    report = examined(tmp_path, f"model_specs: [{{path: {folder}}}]")
    assert report.ok
    assert report.members[0].parameters == 375_392


def test_strategies_parts_and_scorers(tmp_path):
    report = examined(tmp_path, PAIR + "ensemble:\n  output_aggregation_method: tandem")
    assert report.parts == {"mentor": "builtin:mentor", "intern": "builtin:intern"}
    report = examined(tmp_path, PAIR + SCORED + "best_of\n  model_selection_method: model_judgment")
    assert report.selection.requires == ("decode",)
    assert report.selection.min_engines == 1
    assert [(scorer["name"], scorer["weight"]) for scorer in report.scorers] == [("builtin:intern", 0.5)]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (PAIR + "ensemble:\n  output_aggregation_method: best_of", "some.yaml:4: best_of needs a scorer"),
        (
            PAIR + "ensemble:\n  model_selection_method: random\n  output_aggregation_method: tandem",
            "which selection random may drop",
        ),
        (
            PAIR + "- {name: e, engine: echo}\nensemble:\n  output_aggregation_method: gac",
            "needs decode of engine 'e'",
        ),
        (PAIR + "- {path: ./nowhere}", "some.yaml:4: cannot load './nowhere'"),
        (
            PAIR + "- {path: builtin:intern, dtyp: x}",
            "some.yaml:4: model 'builtin:intern-2': unknown option 'dtyp'",
        ),
        (PAIR + "ensemble:\n  output_aggregation_method: lop", "did you mean 'loop'"),
        (PAIR + "esemble: {}", "some.yaml:4: unknown key 'esemble'; did you mean 'ensemble'"),
    ],
)
def test_what_cannot_work_is_a_problem(tmp_path, capsys, text, says):
    report = examined(tmp_path, text)
    assert not report.ok
    assert any(says in problem for problem in report.problems), report.problems
    code, output = run([tmp_path / "some.yaml"], capsys)
    assert code == 2
    assert "cannot run" in output


def test_a_missing_capability_stands_beside_the_need(tmp_path):
    text = PAIR + "- {name: e, engine: echo}\nensemble:\n  output_aggregation_method: gac"
    assert examined(tmp_path, text).aggregation.missing == {"e": ("decode",)}


def test_all_problems_are_told_at_once(tmp_path):
    report = examined(
        tmp_path, PAIR + "- {name: x, engine: ecko}\nensemble: {output_aggregation_params: {engin: x}}"
    )
    assert len(report.problems) == 2
    assert [member.name for member in report.members] == ["builtin:mentor", "builtin:intern"]


def test_notes_name_keys_without_effect(tmp_path):
    text = PAIR + "reward_specs: [{path: x}]\nensemble: {max_rounds: 3, generation: {max_tokens: 2048}}"
    notes = examined(tmp_path, text).notes
    assert any("max_rounds has no effect" in note for note in notes)
    assert any("asks no scorer" in note for note in notes)
    assert sum("answers are cut to what it leaves" in note for note in notes) == 2


def test_a_hub_name_that_is_not_cached_is_one_line(tmp_path):
    text = "model_specs:\n- {path: nobody/nothing}\n- {path: builtin:intern}\n"
    text += "reward_specs:\n- {path: nobody/scorer}\nensemble: {output_aggregation_method: best_of}"
    (tmp_path / "some.yaml").write_text(text)
    environment = {**os.environ, "HF_HOME": str(tmp_path)}
    del environment["HF_HUB_OFFLINE"]
    command = [sys.executable, "-m", "ensemblehub", "doctor", str(tmp_path / "some.yaml"), "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["ok"]
    assert [member["here"] for member in report["members"]] == [False, True]
    assert report["members"][0]["parameters"] == 0
    assert ["nobody/nothing" in line for line in report["unseen"]] == [True, False]
    assert not any("\n" in line for line in report["unseen"])
    assert report["parts"] == {}


def test_the_report_is_plain_where_it_is_piped(tmp_path, capsys):
    (tmp_path / "some.yaml").write_text(PAIR + SCORED + "reward_based")
    code, output = run([tmp_path / "some.yaml"], capsys)
    assert code == 0
    assert "\x1b" not in output
    for said in (
        "2,004,928",
        "7.6 MiB",
        "5.9 MiB",
        "all: keeps at least 2",
        "reward_based: needs prefix",
        "weight 0.5",
        "ok",
    ):
        assert said in output


def test_json_is_one_object_whatever_is_wrong(tmp_path, capsys):
    code, output = run([tmp_path / "nowhere.yaml", "--json"], capsys)
    assert code == 2
    assert "nowhere.yaml" in json.loads(output)["problems"][0]


def test_set_changes_the_file(tmp_path, capsys):
    (tmp_path / "some.yaml").write_text(PAIR)
    code, output = run(["-c", tmp_path / "some.yaml", "-s", "ensemble.generation.seed=5", "--json"], capsys)
    assert code == 0
    assert json.loads(output)["generation"]["seed"] == 5


def test_the_form_of_the_sandbox_is_said(tmp_path, capsys, monkeypatch):
    from ensemblehub.lab.tasks.sandbox import isolation

    path = tmp_path / "some.yaml"
    path.write_text(PAIR)
    monkeypatch.setenv("ENSEMBLEHUB_SANDBOX", "limits")
    code, printed = run([path], capsys)
    assert code == 0
    assert f"sandbox     {isolation('limits')}" in printed
    monkeypatch.setenv("ENSEMBLEHUB_SANDBOX", "none")
    code, printed = run([path, "--json"], capsys)
    assert code == 0  # only benchmarks of code need it
    assert json.loads(printed)["sandbox"].startswith(
        "none: ENSEMBLEHUB_SANDBOX: unknown form of sandbox 'none'"
    )


def test_scorers_that_several_ensembles_have_in_common_are_told_once(tmp_path):
    others = (
        "\nensembles: {two: {output_aggregation_method: loop}, three: {output_aggregation_method: single}}"
    )
    report = examined(tmp_path, PAIR + SCORED + "reward_based" + others)
    assert len(report.scorers) == 1
    assert not [note for note in report.notes if "asks no scorer" in note]
    broken = (PAIR + SCORED + "reward_based" + others).replace("weight: 0.5", "weight: 0.5, nothing: 1")
    problems = examined(tmp_path, broken.replace("loop", "reward_based")).problems
    assert len(problems) == len(set(problems))
    assert any("nothing" in problem for problem in problems)
