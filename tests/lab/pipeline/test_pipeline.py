"""The whole pipeline on scripted engines, killed in the middle and resumed."""

import functools
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

from ensemblehub import builtin
from ensemblehub.config import Config
from ensemblehub.errors import ArtifactError, ConfigError
from ensemblehub.generators.echo import EchoEngine
from ensemblehub.lab.pipeline import report
from ensemblehub.lab.pipeline.cascade import replay as cascade
from ensemblehub.lab.pipeline.collect import Collector
from ensemblehub.lab.pipeline.pipeline import Pipeline
from ensemblehub.lab.pipeline.records import Collected, Row
from ensemblehub.lab.pipeline.replay import outcomes
from ensemblehub.schema import Price
from ensemblehub.tandem.artifact import load_judge
from tests.lab.pipeline.scripted import YAML

CHANGES = {
    "name: big\n": "name: big\n    delay: {delay}\n",
    '"Goal: x": ': '"Goal: x Planning:": ',  # four tokens of the insight, not two, make the intern right
    "concurrency: 8": "concurrency: 8, aim: budget:0.9",
}


def configured(folder, delay=0.0):
    path = folder / "echo.yaml"
    text = functools.reduce(lambda text, change: text.replace(*change), CHANGES.items(), YAML)
    path.write_text(text.format(folder=folder, delay=delay))
    return path


@pytest.fixture
def pipeline(tmp_path):
    return Pipeline(Config.read(configured(tmp_path)))


@pytest.mark.parametrize(
    ("engine", "aim", "says"),
    [
        ("parameters: 1000000", "budget:$0.01", "a budget in dollars needs the mentor's `price`"),
        ("parameters: 0", "budget:1TFLOPs", "the size of the model 'small' is unknown: set its `parameters`"),
        ("parameters: 0", "budget:0.5", "the size of the model 'small' is unknown: set its `parameters`"),
        ("parameters: 0", "max-accuracy", "counts FLOPs, and the size of the model 'small' is unknown"),
        ("parameters: 0", "min-accuracy:0.5", "the size of the model 'small' is unknown: set its `param"),
    ],
)
def test_an_aim_whose_costs_are_unknown_is_refused_before_anything_is_read(tmp_path, engine, aim, says):
    path = configured(tmp_path)
    roles = "output_aggregation_params:\n    mentor: big\n    intern: small\n"
    text = path.read_text().replace("parameters: 1000000", engine)
    path.write_text(text.replace("output_aggregation_params:\n", roles))
    assert not (tmp_path / "judge").exists()  # which would be missed next
    with pytest.raises(ConfigError, match=re.escape(says)):
        Pipeline(Config.read(path)).calibrate(aim)
    path.write_text(path.read_text().replace(engine, "parameters: 1000000"))
    with pytest.raises(ArtifactError, match="no judge in"):
        Pipeline(Config.read(path)).calibrate("max-accuracy")


def test_a_budget_in_dollars_is_for_a_mentor_with_a_price(tmp_path):
    path = configured(tmp_path)
    priced = "name: big\n    price: {prompt: 2, completion: 8}\n"
    path.write_text(path.read_text().replace("name: big\n", priced))
    objective, prices = Pipeline(Config.read(path)).objective("budget:$0.01")
    assert (objective.value, objective.unit, prices) == (0.01, "usd", (Price(2, 8), Price(0, 0)))


def test_from_collecting_to_the_table(pipeline, tmp_path):
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    for split in ("train", "calibration", "test"):
        pipeline.collect(split, 150)
    assert pipeline.train()["n"] > 0
    chosen = pipeline.calibrate()
    assert chosen["cost_vs_mentor"] <= 0.9
    assert set(chosen["thresholds"]) == {"none", "low", "high"}
    runs = pipeline.evaluate(60)
    assert len(runs) == 60
    table = pipeline.report()
    rows = {row["method"]: row for row in json.loads((tmp_path / "results/summary.json").read_text())}
    assert list(rows) == [
        "intern",
        "mentor",
        "mentor_concise",
        "fixed_low",
        "fixed_high",
        "random_mix",
        "equal_cost_mix",
        "oracle",
        "tandem",
    ]
    assert rows["mentor"]["cost_vs_mentor"] == 1.0
    assert rows["oracle"]["accuracy"] >= max(
        rows[name]["accuracy"] for name in ("intern", "fixed_low", "fixed_high")
    )
    assert sum(rows["tandem"]["levels"].values()) == 60
    assert all(row["n"] == 60 for row in rows.values())
    assert "tandem" in table
    assert (tmp_path / "results/pareto.svg").read_text().startswith("<?xml")
    checks = json.loads((tmp_path / "results/checks.json").read_text())
    assert all(count == checks["checked"] for count in checks["reproduced"].values())
    replay = checks["replay"]
    assert [replay[key] for key in ("checked", "levels", "correct", "texts")] == [60] * 4
    assert 0 < replay["flops"] < 1  # echo, which keeps no KV, reads the whole prompt at every checkpoint
    assert "the same level on 60, equally right on 60, the same text on 60" in table
    path = tmp_path / "results/runs.jsonl"
    first, *lines = path.read_text().splitlines()
    path.write_text(
        "\n".join([first, json.dumps(json.loads(lines[0]) | {"text": "another"}), *lines[1:], ""])
    )
    assert "the same text on 59" in pipeline.report()


def test_replaying_collected_data_equals_running_live(pipeline, tmp_path):
    pytest.importorskip("sklearn")
    for split in ("train", "calibration", "test"):
        pipeline.collect(split, 150)
    pipeline.train()
    pipeline.calibrate()
    runs = pipeline.evaluate(80)
    data = Collected.load(tmp_path / "results/collected", "test").part(list(range(80)))
    artifact = load_judge(tmp_path / "judge")
    levels = ["none", "low", "high"]
    replayed = cascade(
        outcomes(data, artifact.judge, levels, "best"), [artifact.thresholds[level] for level in levels]
    )
    assert [levels[index] for index in replayed.chosen] == [run.chosen for run in runs]
    assert replayed.correct.tolist() == [run.correct for run in runs]


@pytest.mark.parametrize("fallback", ["best", "mentor"])
def test_a_draft_is_collected_calibrated_and_replayed_as_live(tmp_path, fallback):
    pytest.importorskip("sklearn")
    path = configured(tmp_path)
    plain = path.read_text().replace("    start_with_intern: true\n", f"    fallback: {fallback}\n")
    path.write_text(plain.replace("    levels:", "    draft: agreement:2\n    levels:"))
    pipeline = Pipeline(Config.read(path))
    for split in ("train", "calibration", "test"):
        data = pipeline.collect(split, 100)
    assert [draft.probability for draft in data.drafts] == [1.0] * 100
    assert all((draft.mentor_tokens, draft.intern_tokens) == (0, 2 * 3) for draft in data.drafts)
    pipeline.train()
    assert pipeline.calibrate()["draft"] == "agreement:2"
    artifact = load_judge(tmp_path / "judge")
    limits = dict(artifact.thresholds) | {"none": 1.01}  # one that no draft reaches: all else is visited
    replace(artifact, thresholds=limits).save(tmp_path / "judge")
    assert pipeline.ensemble()[1].level_thresholds == limits
    path.write_text(plain)
    assert Pipeline(Config.read(path)).ensemble()[1].level_thresholds == {**limits, "none": 0.5}
    pipeline.evaluate(60)
    assert "the same level on 60, equally right on 60, the same text on 60" in pipeline.report()
    assert pipeline.report_replayed([str(tmp_path / "judge")])


def test_a_draft_that_was_not_collected_is_refused(pipeline, tmp_path):
    pytest.importorskip("sklearn")
    for split in ("train", "calibration"):
        pipeline.collect(split, 100)
    pipeline.train()
    path = configured(tmp_path)
    path.write_text(path.read_text().replace("    levels:", "    draft: agreement:2\n    levels:"))
    drafting = Pipeline(Config.read(path))
    with pytest.raises(ArtifactError, match="collected without a `draft`, not by 'agreement:2'"):
        drafting.calibrate()
    path.write_text(path.read_text().replace("agreement:2", "agreement:3"))
    Pipeline(Config.read(path)).collect("calibration", 100)
    assert pipeline.collect("calibration", 100).drafts  # more than is asked for without a draft
    with pytest.raises(ArtifactError, match="with a draft judged by 'agreement:3', not by 'agreement:2'"):
        drafting.calibrate()
    path.write_text(path.read_text().replace("    levels:", "    continue_draft: 0.1\n    levels:"))
    with pytest.raises(ConfigError, match="thresholds are chosen without `continue_draft`"):
        Pipeline(Config.read(path)).calibrate()


def test_a_draft_is_added_to_what_was_collected_without_asking_the_mentor(tmp_path, monkeypatch):
    path = configured(tmp_path)
    plain = Pipeline(Config.read(path)).collect("train", 30)
    path.write_text(path.read_text().replace("    levels:", "    draft: agreement:2\n    levels:"))
    asked = []

    async def draft(collector, ask, answer, made=Collector.draft):
        if len(asked) == 10:
            raise RuntimeError("killed")
        asked.append(answer)
        return await made(collector, ask, answer)

    monkeypatch.setattr(Collector, "draft", draft)
    monkeypatch.setattr(Collector, "insight", None)  # it would be bought again
    drafting = Pipeline(Config.read(path))
    with pytest.raises(RuntimeError, match="killed"):
        drafting.collect("train", 30)
    monkeypatch.setattr(Collector, "draft", functools.partialmethod(draft.__defaults__[0]))
    found = drafting.collect("train", 30)
    assert [draft.probability for draft in found.drafts] == [1.0] * 30
    assert found.header["draft"][0] == "agreement:2"
    texts = [[run.text for run in row.runs.values()] for row in found.rows]
    assert texts == [[run.text for run in row.runs.values()] for row in plain.rows]
    assert np.array_equal(found.features, plain.features)


def test_collecting_again_reads_what_is_there_and_refuses_other_settings(pipeline, tmp_path):
    first = pipeline.collect("train", 10)
    assert pipeline.collect("train", 10).rows == first.rows
    assert pipeline.collect("train", 11).rows[:10] == first.rows  # a larger limit goes on
    with pytest.raises(ArtifactError, match="--force"):
        pipeline.collect("train", 9)
    assert len(pipeline.collect("train", 9, force=True).rows) == 9
    with pytest.raises(ConfigError, match="did you mean 'test'"):
        pipeline.collect("tets", 5)


def test_a_killed_collection_resumes_without_losing_or_repeating_a_question(tmp_path):
    path = configured(tmp_path, delay=0.004)
    command = [
        sys.executable,
        "-m",
        "ensemblehub",
        "collect",
        "--split",
        "train",
        "--limit",
        "60",
        "-c",
        str(path),
    ]
    journal = tmp_path / "results/collected/train.partial.jsonl"
    for _ in range(3):
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        before = journal.stat().st_size if journal.exists() else 0
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and child.poll() is None:
            if journal.exists() and journal.stat().st_size > before + 2000:
                break
            time.sleep(0.01)
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    rows = Collected.load(tmp_path / "results/collected", "train").rows
    assert [row.id for row in rows] == [f"builtin_math/train/{index:05d}" for index in range(60)]
    assert not journal.exists()


def test_an_interrupt_says_how_to_go_on(tmp_path):
    path = configured(tmp_path, delay=0.02)
    command = [
        sys.executable,
        "-m",
        "ensemblehub",
        "collect",
        "--split",
        "train",
        "--limit",
        "400",
        "-c",
        str(path),
    ]
    heard = functools.partial(
        signal.signal, signal.SIGINT, signal.SIG_DFL
    )  # a background job starts deaf to it
    child = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, preexec_fn=heard
    )
    journal, deadline = tmp_path / "results/collected/train.partial.jsonl", time.monotonic() + 60
    while time.monotonic() < deadline and (not journal.exists() or journal.stat().st_size < 4000):
        time.sleep(0.02)
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 130
    assert "continues" in errors
    assert "Traceback" not in errors


def test_reporting_without_data_names_the_command(pipeline):
    with pytest.raises(ArtifactError, match="ensemblehub collect --split test"):
        pipeline.report()
    with pytest.raises(ArtifactError, match="ensemblehub collect --split train"):
        pipeline.train()


def test_the_table_shows_small_and_large_costs():
    row = {
        "method": "m",
        "n": 1,
        "accuracy": 0.5,
        "accuracy_low": 0.4,
        "accuracy_high": 0.6,
        "difference": 0.01,
        "difference_low": 0.0,
        "difference_high": 0.02,
        "mentor_tokens": 1.0,
        "intern_tokens": 2.0,
        "tflops": 2e-4,
        "tflops_paper": 12.0,
        "cost_vs_mentor": 0.5,
        "cost_vs_concise": 1.25,
        "leak_share": 0.01,
        "truncated_share": 0.0,
        "judging_share": 0.02,
    }
    text = report.markdown([row])
    for part in ("50.00% [40.00%, 60.00%]", "+1.00 [+0.00, +2.00]", "0.200 GFLOPs", "12.00", "1.250", "2.0%"):
        assert part in text


def test_training_leaves_out_what_is_for_calibration(tmp_path):
    rows = [
        {
            "problem": f"{number}?",
            "solution": "\\boxed{1}",
            "answer": "1",
            "subject": "Algebra",
            "unique_id": f"{number}",
        }
        for number in range(40)
    ]
    (tmp_path / "math500.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    changes = ["experiment.task=math500", f"experiment.data={tmp_path}"]
    pipeline = Pipeline(Config.read(builtin.CONFIG, changes))
    train, held = (pipeline.items(split, None) for split in ("train", "calibration"))
    collected = [Row(item.id, "", 0, 0, "", 0, {}) for item in train]
    data = Collected(
        {"levels": {}}, collected, np.zeros((len(train), 0, 16), np.float32), [[] for _ in train]
    )
    kept = {row.id for row in pipeline.without_calibration(data).rows}
    assert (len(train), len(held), len(kept)) == (32, 8, 24)
    assert kept == {item.id for item in train} - {item.id for item in held}


@pytest.mark.parametrize("switch", [True, False])
def test_the_mentor_answers_once_where_its_template_has_no_switch_for_thinking(switch, tmp_path, monkeypatch):
    asked, stream = [], EchoEngine.stream

    def counted(engine, request, meter):
        asked.append((engine.name, meter.purpose))
        return stream(engine, request, meter)

    monkeypatch.setattr(EchoEngine, "stream", counted)
    monkeypatch.setattr(EchoEngine, "same_prompt", lambda *_: not switch)
    rows = Pipeline(Config.read(configured(tmp_path))).collect("train", 3).rows
    assert asked.count(("big", "propose")) == (6 if switch else 3)
    assert [row.thinking_switch for row in rows] == [switch] * 3
    assert all(row.runs["mentor"].text == row.runs["mentor_concise"].text for row in rows)
