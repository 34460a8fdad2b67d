"""Statistics of models over questions: by hand on scripted engines, and from the command line into a selection."""

import asyncio
import json
import math

import pytest

from ensemblehub.cli import main
from ensemblehub.config import Config
from ensemblehub.ensemble import AsyncEnsemble
from ensemblehub.ensemble_methods.model_selection.zscore import QuestionReading
from ensemblehub.errors import CapabilityError, ConfigError
from ensemblehub.generators.echo import EchoEngine, EchoOptions
from ensemblehub.lab.pipeline import stats
from ensemblehub.schema import Message

YAML = """
model_specs:
  - {{name: one, engine: echo, logprob: -1.0, best: -0.5, confident: [boats]}}
  - {{name: two, engine: echo, logprob: -2.0, best: -0.25, confident: [cars]}}
ensemble:
  model_selection_method: zscore
  model_selection_params: {{k: 1, stats_file: {folder}/saves/stats.json}}
  output_aggregation_method: single
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "zscore.yaml"
    path.write_text(YAML.format(folder=tmp_path))
    return path


def test_mean_and_deviation_are_those_of_a_sample():
    """1, 2, 6: mean 3, deviation sqrt((4 + 1 + 9) / 2) = sqrt 7; 0.2, 0.4, 0.6: 0.4 and 0.2."""
    engine = EchoEngine("one", EchoOptions())
    found = stats.statistics(
        engine, [QuestionReading(1, 0.2), QuestionReading(2, 0.4), QuestionReading(6, 0.6)]
    )
    assert (found.ppl_mean, found.ppl_std, found.conf_mean, found.conf_std) == pytest.approx(
        (3, math.sqrt(7), 0.4, 0.2)
    )
    assert (found.n, found.model) == (3, "one")


@pytest.mark.parametrize(
    ("readings", "message"),
    [
        ([QuestionReading(1, 0.2)], "at least 2 questions, not 1"),
        ([QuestionReading(1, 0.2)] * 5, "reads all 5 questions alike"),
    ],
)
def test_what_has_no_deviation_is_refused(readings, message):
    with pytest.raises(ConfigError, match=message):
        stats.statistics(EchoEngine("one", EchoOptions()), readings)


def test_the_command_writes_what_the_selection_reads(config, tmp_path, capsys):
    questions = tmp_path / "questions.jsonl"
    questions.write_text(
        '"five boats are here"\n{"question": "three cars are there"}\n"nothing of note"\n"left out"\n'
    )
    output = tmp_path / "saves/stats.json"
    arguments = ["stats", "-c", str(config), "--input_path", str(questions), "--output_path", str(output)]
    main([*arguments, "--limit", "3"])
    assert "two: perplexity" in capsys.readouterr().out
    found = json.loads(output.read_text())
    # one reads e, e and, where it is confident, e ** 0.01
    mean = (2 * math.e + math.exp(0.01)) / 3
    assert found["one"]["ppl_mean"] == pytest.approx(mean)
    assert found["two"]["conf_mean"] == pytest.approx((2 * math.exp(-0.25) + math.exp(-0.01)) / 3)
    assert found["two"]["n"] == 3
    assert not list(output.parent.glob("*.part"))
    ensemble = AsyncEnsemble.from_config(config)
    assert [
        asyncio.run(ensemble.generate(text)).choices[0].chosen for text in ("the boats go", "the cars go")
    ] == [
        ("one",),
        ("two",),
    ]


def test_an_engine_that_cannot_read_is_refused(config, monkeypatch, tmp_path):
    monkeypatch.setattr(EchoEngine, "capabilities", frozenset())
    with pytest.raises(CapabilityError, match="stats needs score of engine 'one'"):
        stats.measure(Config.read(config), [], tmp_path / "stats.json")


def test_questions_are_what_a_model_would_be_asked(tmp_path):
    path = tmp_path / "items.json"
    talk = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "u"},
        {"role": "assistant", "content": "a"},
    ]
    path.write_text(
        json.dumps([{"instruction": "Solve.", "input": "1 + 1", "output": "2"}, {"messages": talk}])
    )
    asked = [request.prompt.messages for request in stats.questions(path)]
    assert asked == [(Message("user", "Solve.\n\n1 + 1"),), (Message("system", "s"), Message("user", "u"))]


def test_items_without_a_question_are_left_out_and_named(tmp_path, caplog):
    path = tmp_path / "items.jsonl"
    path.write_text('{"answer": 3}\n{bad\n"good"\n7\n""\n')
    assert [request.id for request in stats.questions(path)] == ["3"]
    assert [record.message.partition(" of ")[0] for record in caplog.records] == [
        "item 1",
        "item 2",
        "item 4",
        "item 5",
    ]
