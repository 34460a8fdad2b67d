"""The paper's tables on the built-in pair, by the reference's scripts; what is asked for wrongly is one line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from ensemblehub.cli import add_plugins, cli
from ensemblehub.lab import paper
from ensemblehub.lab.paper import gpra, latency
from ensemblehub.lab.paper.study import PAIRS, Study
from ensemblehub.lab.paper.tables import FIGURES, Table, published

add_plugins()
ROOT = Path(__file__).parents[3]
SCRIPTS = ROOT / "scripts" / "mentor_guided"
LIMIT = 20  # questions of every split, as many as training a judge needs
MAX_TOKENS = 128  # half of what the mentor thinks
NUMPY = [f"model_specs.{at}.engine=numpy" for at in (0, 1)]  # half of the time that torch takes
FLAGS = ("--max_tokens", str(MAX_TOKENS), *(flag for change in NUMPY for flag in ("--set", change)))
INSIGHT = "Goal: mugs\nPlanning: trace mugs\nRetrieval: mugs = bowls + 5; bowls = 3\nAction: state it"


def script(name, results, *flags, **env):
    surroundings = {
        key: value for key, value in os.environ.items() if key not in ("PAIR", "OPENROUTER_API_KEY")
    }
    surroundings |= {"RESULTS": str(results), "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", **env}
    return subprocess.run(
        ["bash", str(SCRIPTS / name), *flags], env=surroundings, capture_output=True, text=True, timeout=300
    )


def run_here(name, results):
    """What the script calls, in this process, where the models' libraries are loaded already."""
    shown = script(name, results, *FLAGS, PAIR="builtin", LIMIT=str(LIMIT), PYTHON="echo")
    module, package, *arguments = shown.stdout.split()
    assert (module, package) == ("-m", "ensemblehub")
    done = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Shared by the scripts, as one clone would share them: the code table needs nothing of the math one's."""
    return tmp_path_factory.mktemp("results")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "folder", "table", "finals"),
    [
        ("exp_homo_math.sh", "builtin_math", "main", ["builtin_math_builtin_final.json"]),
        ("exp_hetero_math.sh", "builtin_math", "api", []),
        ("exp_homo_humaneval.sh", "builtin_code", "transfer", []),
        ("exp_hetero_humaneval.sh", "builtin_code", "api", []),
    ],
)
def test_the_scripts_run_offline_on_the_builtin_pair_and_go_on_where_they_stopped(
    name, folder, table, finals, results
):
    if name == "exp_homo_math.sh":
        first = script(name, results, *FLAGS, PAIR="builtin", LIMIT=str(LIMIT))
        assert first.returncode == 0, first.stderr
    else:
        run_here(name, results)
    made = results / f"{folder}_{MAX_TOKENS}"
    record = json.loads((made / f"{table}.json").read_text())
    rows = {row["method"]: row for row in record["rows"]}
    assert rows["tandem"]["n"] == LIMIT
    assert 0 < rows["tandem"]["cost_vs_mentor"] < 1
    assert "paper" in (made / f"{table}.md").read_text()
    for final in finals:
        assert json.loads((results / final).read_text())["tandem"] == rows["tandem"]
    if table == "transfer":
        assert rows["tandem_transferred"]["n"] == LIMIT
        assert rows["fixed_high"]["difference"] == 0
    if table == "api":
        assert f"{LIMIT} stopped at the same level and {LIMIT} wrote the same text" in " ".join(
            record["notes"]
        )
    if name != "exp_homo_math.sh":
        return
    before = (made / "runs.jsonl").read_bytes()
    run_here(name, results)
    assert (made / "runs.jsonl").read_bytes() == before
    assert json.loads((made / f"{table}.json").read_text())["rows"] == record["rows"]


@pytest.mark.slow
@pytest.mark.parametrize("table", ["guidance", "thinking", "latency", "ablation", "families"])
def test_the_other_tables_run_on_the_builtin_pair(table, results, monkeypatch):
    monkeypatch.setattr(latency, "QUESTIONS", 3)  # one at a time, by eight methods
    study = Study("builtin", "math500", results, limit=LIMIT, max_tokens=MAX_TOKENS, changes=tuple(NUMPY))
    texts = list(paper.run(table, study))
    record = json.loads((study.folder / f"{table}.json").read_text())
    assert len(record["rows"]) >= 4
    assert record["paper"]["source"] in texts[0]
    rows = {row.get("method"): row for row in record["rows"]}
    if table == "guidance":
        assert (
            rows["after_128"]["mentor_tokens"]
            > rows["after_16"]["mentor_tokens"]
            > rows["intern"]["mentor_tokens"]
        )
        assert (study.folder / "guidance.svg").exists()
    if table == "ablation":
        assert rows["no retrieval"]["accuracy"] < rows["full insight"]["accuracy"]
    if table == "latency":
        assert float(rows["intern"]["times the mentor"]) < float(rows["mentor"]["times the mentor"]) == 1


def test_a_missing_key_is_one_line_before_anything_is_fetched(tmp_path):
    done = script("exp_hetero_math.sh", tmp_path)
    assert done.returncode == 2
    assert (
        done.stderr.strip()
        == "ensemblehub: model 'mentor': the environment variable OPENROUTER_API_KEY is not set"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nix"], "unknown table 'nix'"),
        (["mian"], "did you mean 'main'"),
        (["main", "--pair", "deepsek"], "did you mean 'deepseek'"),
        (["main", "--pair", "nowhere.yaml"], "nowhere.yaml"),
        (["main", "--dataset", "builtin_mth"], "builtin_math"),
        (["main", "--judge", "entropy:x"], "entropy"),
    ],
)
def test_what_is_asked_for_wrongly_is_named(arguments, said, tmp_path):
    done = CliRunner().invoke(cli, ["paper", *arguments, "--out", str(tmp_path), "--limit", "2"])
    assert done.exit_code
    assert said in str(done.exception)


def test_every_pair_is_read_and_every_table_has_figures(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENROUTER_API_KEY", "x")
    for pair in PAIRS:
        assert Study(pair, "builtin_math", tmp_path).pipeline().config.aggregation.params["levels"]
    for name in (*paper.TABLES,):
        assert published(name)["source"], FIGURES


def test_what_the_paper_printed_is_marked_as_its_own():
    rows = [{"method": "tandem", "n": 3}, {"method": "other", "n": 3}]
    text = Table("x", "X", rows, ("method", "n"), (), "main").markdown()
    assert "| tandem | 3 | 83.46 | 0.592 | 2916 |" in text
    assert "| other | 3 | – | – | – |" in text
    assert "| paper: mentor | – | 80.9 | 1 | 2630 |" in text
    assert "The paper's own figures: the paper, Table 1" in text


@pytest.mark.parametrize(
    "text",
    [
        "Goal: a\nPlanning: b\nRetrieval: c\nAction: d\nand e",
        "**Goal:** a\n**Planning:** b\n**Retrieval:** c\n**Action:** d\nand e",
        "1. Goal: a\n2. Planning: b\n3. Retrieval: c\n4. Action: d\nand e",
        "### GOAL\na\n### Planning\nb\n- retrieval: c\n# Action\nd\nand e",
    ],
)
def test_sections_of_every_style(text):
    assert gpra.sections(text) == {"Goal": "a", "Planning": "b", "Retrieval": "c", "Action": "d\nand e"}


def test_a_cut_insight_lacks_the_sections_that_were_cut():
    assert gpra.sections("Goal: a\nPlanning: count on and o") == {"Goal": "a", "Planning": "count on and o"}
    assert gpra.sections("no headings at all, but a goal in mind") == {}


@pytest.mark.parametrize("section", gpra.SECTIONS)
def test_a_section_is_taken_out_with_its_heading(section):
    kept = gpra.without(INSIGHT, section)
    assert section not in gpra.sections(kept)
    assert gpra.sections(kept) == {k: v for k, v in gpra.sections(INSIGHT).items() if k != section}
    assert gpra.without(kept, section) == kept


def test_without_headings_the_text_stays():
    text = gpra.unstructured("**Goal:** find x\n2. Planning: add\nAction: 3")
    assert text == "find x\nadd\n3"
    assert gpra.unstructured(INSIGHT).count("\n") == INSIGHT.count("\n")
    assert gpra.sections(gpra.unstructured(INSIGHT)) == {}
    assert gpra.without("no headings here", "Goal") == "no headings here"


@pytest.mark.slow
def test_classifiers_are_compared_on_collected_data(tmp_path):
    """On the committed built-in data, its first questions only."""
    from ensemblehub.lab.pipeline.records import Collected

    source = ROOT / "results" / "builtin_math" / "collected"
    for split, count in (("train", 120), ("calibration", 80), ("test", 80)):
        Collected.load(source, split).part(list(range(count))).save(tmp_path / "collected", split)
    arguments = ["classifiers", "--set", f"experiment.results={tmp_path}"]
    for kind in ("logistic", "gb", "entropy"):
        arguments += ["--judge", kind]
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 0, done.output
    record = json.loads((tmp_path / "classifiers.json").read_text())
    assert [row["judge"] for row in record["rows"]] == ["logistic", "gb", "entropy"]
    assert record["best"] in ("logistic", "gb")
    for row in record["rows"]:
        assert sum(row["failures"].values()) == pytest.approx(1.0)
        assert row["auc_interval"][0] <= row["auc"] <= row["auc_interval"][1]
        assert set(row["importance"]) == {"perplexity", "entropy", "level", "mentor_tokens"}
        assert sum(level["n"] for level in row["by_level"].values()) == 80
    assert (tmp_path / "classifiers.svg").exists()
    wrong = CliRunner().invoke(cli, [*arguments[:3], "--judge", "lstn"])
    assert "did you mean 'lstm'" in str(wrong.exception)


def test_old_names_of_pairs_are_read(tmp_path):
    assert Study("studio", "math500", tmp_path) == Study("builtin", "math500", tmp_path)
    assert Study("studio-guest", "math500", tmp_path).pair == "builtin-guest"


def test_set_goes_before_the_studys_own_settings(results):
    changes = ("experiment.task=builtin_code", "ensemble.output_aggregation_params.judge=fixed:low")
    changes += ("ensemble.generation.max_tokens=9",)
    config = Study("builtin", "math500", results, max_tokens=7, changes=changes).pipeline().config
    assert config.experiment.task == "builtin_code"
    assert config.aggregation.params["judge"] == "fixed:low"
    assert config.ensemble.generation.max_tokens == 9
    assert config.experiment.results.is_relative_to(results)
