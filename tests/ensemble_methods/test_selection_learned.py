"""A learned selection: trained by one command on scripted engines, and used."""

import asyncio
import json
import random
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("sklearn")

from ensemblehub.cli import main
from ensemblehub.config import Config
from ensemblehub.cost import UsageLedger
from ensemblehub.ensemble import AsyncEnsemble
from ensemblehub.ensemble_methods.model_selection import learned
from ensemblehub.ensemble_methods.model_selection.learned import Learned, LearnedModel, LearnedSelection
from ensemblehub.errors import ArtifactError, ConfigError
from ensemblehub.generators.echo import EchoEngine, EchoOptions
from ensemblehub.lab.pipeline import selection as learned_selection
from ensemblehub.lab.pipeline.calibration import Objective
from ensemblehub.lab.pipeline.selection import SelectionData
from ensemblehub.lab.tasks.base import Grade, Item, Task
from ensemblehub.schema import Chat, Message
from ensemblehub.tandem.features import FEATURE_NAMES

YAML = """
model_specs:
  - {{name: big, engine: echo, parameters: 9000000, replies: {{"": "it is right"}}}}
  - name: small
    engine: echo
    parameters: 1000000
    confident: [easy]
    replies: {{easy: "it is right", "": "it is wrong"}}
ensemble:
  model_selection_method: learned
  model_selection_params: {{artifact: {folder}/selection}}
  output_aggregation_method: single
experiment: {{task: "{task}", results: {folder}/results, concurrency: 8}}
"""


class EasyOrHard(Task):
    """The small model is right on easy questions, the big one on all; seven of ten are easy."""

    name, splits = "easy_or_hard", ("train", "calibration")
    seen = 0

    def items(self, split, limit=None):
        rng = random.Random(split)
        for index in range(limit or 120):
            words = " ".join("x" * rng.randint(2, 9))
            yield Item(f"{split}/{index}", f"{'easy' if rng.random() < 0.7 else 'hard'} {words}", "right")

    def request(self, item):
        type(self).seen += 1
        return Chat((Message("user", item.text),))

    def grade(self, item, text):
        return Grade(text.endswith(item.answer), text)


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "learned.yaml"
    path.write_text(YAML.format(folder=tmp_path, task=f"{__name__}:EasyOrHard"))
    return Config.read(path)


def test_from_collecting_to_answers(config, tmp_path, capsys):
    main_arguments = ["train", "--selection", "--config", str(tmp_path / "learned.yaml")]
    with pytest.raises(ArtifactError, match="no learned selection in"):
        AsyncEnsemble.from_config(config)
    main(main_arguments)
    report = json.loads(capsys.readouterr().out)
    assert list(report["members"]) == ["small", "big"]
    assert report["members"]["big"]["accuracy"] == 1.0
    assert report["members"]["small"]["auc"] == 1.0
    assert report["members"]["big"]["cost"] > 8 * report["members"]["small"]["cost"]
    brings = report["calibration"]
    assert brings["accuracy"] == 1.0
    share = np.mean([item.text.startswith("easy") for item in EasyOrHard().items("calibration")])
    assert brings["shares"]["small"] == pytest.approx(share)
    assert brings["cost_vs_most_expensive"] < 0.6
    assert brings["most_expensive"] == "big"

    ensemble = AsyncEnsemble.from_config(config)
    for question, name in (("easy x x x x", "small"), ("hard x x x x", "big")):
        result = asyncio.run(ensemble.generate(question))
        assert result.choices[0].chosen == (name,)
        assert result.text == "it is right"
        spent = [(line.engine, line.purpose) for line in result.usage.lines]
        assert spent == [("small", "select"), ("selection", "select"), (name, "answer")]

    asked = EasyOrHard.seen
    learned_selection.train(config)  # nothing is collected twice
    assert EasyOrHard.seen == asked
    learned_selection.train(config, force=True)
    assert EasyOrHard.seen > asked


def test_collecting_goes_on_where_it_was_stopped(config, tmp_path):
    learned_selection.train(config, limit=40)
    journal = tmp_path / "results/selection/train.jsonl"
    lines = journal.read_text().splitlines()
    assert len(lines) == 41
    journal.write_text("\n".join(lines[:31]) + "\n" + lines[31][:20])  # killed while writing
    asked = EasyOrHard.seen
    learned_selection.train(config, limit=60)
    assert EasyOrHard.seen - asked == 30 + 20
    assert len(journal.read_text().splitlines()) == 61


def answers(n=400, seed=0):
    """The cheap one is right where the mean entropy is low, the dear one on nine of ten questions."""
    rng = np.random.default_rng(seed)
    table = rng.normal(size=(n, 16)) + 3.0
    hard = table[:, FEATURE_NAMES.index("entropy_mean")] > 3.5
    correct = np.stack([~hard ^ (rng.random(n) < 0.05), rng.random(n) < 0.9], axis=1)
    cost = np.tile([1.0, 10.0], (n, 1))
    models = {"cheap": "cheap@1", "dear": "dear@2"}
    return SelectionData(
        "cheap", models, table, rng.integers(5, 50, n).astype(float), correct, cost, np.full(n, 0.1), "flops"
    )


def test_thresholds_serve_the_objective():
    train, held = answers(), answers(seed=1)
    _, accurate = learned_selection.learn(train, held, Objective.parse("max-accuracy"))
    _, thrifty = learned_selection.learn(train, held, Objective.parse("budget:0.3"))
    best = accurate["calibration"]
    assert best["accuracy"] > held.correct.mean(axis=0).max()  # better than either alone
    assert best["cost_vs_most_expensive"] < 1
    assert thrifty["calibration"]["cost_vs_most_expensive"] <= 0.3
    assert thrifty["calibration"]["accuracy"] < best["accuracy"]


def test_an_artifact_survives_the_disk_bit_by_bit(tmp_path):
    train = answers()
    artifact, _ = learned_selection.learn(train, answers(seed=1), Objective())
    artifact.save(tmp_path)
    again = learned.load(tmp_path)
    assert again.reader == "cheap"
    for name, member in artifact.members.items():
        said = [
            selection.members[name].predictor.probabilities(train.table, 0, train.tokens)
            for selection in (artifact, again)
        ]
        assert np.array_equal(*said)
        assert again.members[name].threshold == member.threshold
        assert again.members[name].metrics == member.metrics


def engines():
    return [
        EchoEngine(name, EchoOptions({"": name}, parameters=size))
        for name, size in (("a", 3), ("b", 2), ("c", 1))
    ]


def predicted(**chances):
    """An artifact that says the same of every question; costs are 3, 2 and 1."""
    costs = {"a": 3.0, "b": 2.0, "c": 1.0}
    return LearnedSelection(
        "c",
        {
            name: LearnedModel(name, costs[name], learned_selection.constant(chance))
            for name, chance in chances.items()
        },
    )


def chosen(folder, among=None, **options):
    selection = Learned(str(folder), **options)
    return [engine.name for engine in asyncio.run(selection.select(ASK, among or engines(), UsageLedger()))]


ASK = learned_selection.Request(Chat((Message("user", "what is it"),)))


def test_the_cheapest_that_suffices_else_the_most_probable(tmp_path):
    predicted(a=0.9, b=0.8, c=0.3).save(tmp_path)
    assert chosen(tmp_path) == ["b"]
    assert chosen(tmp_path, threshold=0.85) == ["a"]
    assert chosen(tmp_path, threshold=0.2) == ["c"]
    assert chosen(tmp_path, threshold=0.95) == ["a"]
    predicted(a=0.4, b=0.45, c=0.3).save(tmp_path)
    assert chosen(tmp_path) == ["b"]
    assert chosen(tmp_path, [engines()[0], engines()[2]]) == ["a"]  # b is not configured


def refusal(folder, among=None):
    with pytest.raises((ConfigError, ArtifactError)) as caught:
        Learned(str(folder) if folder else "").check(among or engines())
    (line,) = str(caught.value).splitlines()
    return line


def test_what_does_not_fit_is_refused_before_loading(tmp_path):
    assert "needs `artifact: FOLDER`" in refusal(None)
    assert "no learned selection in" in refusal(tmp_path)
    made = predicted(a=0.9, b=0.8, c=0.3)
    made.save(tmp_path)
    Learned(str(tmp_path)).check(engines())
    assert "unknown engine 'c'" in refusal(tmp_path, engines()[:2])
    assert "was made for a, b, c, not 'd' (d)" in refusal(
        tmp_path, [*engines(), EchoEngine("d", EchoOptions())]
    )
    other = {**made.members, "b": replace(made.members["b"], model="bee@12")}
    replace(made, members=other).save(tmp_path)
    assert "was made for bee@12, not 'b' (b)" in refusal(tmp_path)
    file = tmp_path / "selection.json"
    file.write_text(file.read_text().replace('"format": 1', '"format": 0'))
    assert "made by another version" in refusal(tmp_path)
    file.write_text("{}")
    assert "is damaged" in refusal(tmp_path)


def test_a_configuration_that_names_no_artifact_has_nothing_to_train(config):
    section = config.ensemble.model_copy(update={"model_selection_method": "all"})
    with pytest.raises(ConfigError, match="nothing to train"):
        learned_selection.train(config.model_copy(update={"ensemble": section}))


def test_a_model_of_unknown_cost_is_refused():
    row = {"id": "1", "features": [0.0] * 16, "tokens": 3, "reading": {"flops": 1.0, "usd": 0.0}}
    spent = {"correct": True, "usd": 0.0}
    row["answers"] = {"a": spent | {"flops": 5.0}, "b": spent | {"flops": 0.0}}
    with pytest.raises(ConfigError, match="cost of 'b' is unknown"):
        SelectionData.of({"reader": "a", "models": {"a": "a", "b": "b"}}, [row])
