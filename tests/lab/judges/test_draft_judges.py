"""Judges of drafts: what is recorded and resumed, and that a trained one decides in a cascade."""

import asyncio
import json
import math
from dataclasses import replace

import numpy as np
import pytest

from ensemblehub.config import Config
from ensemblehub.ensemble import AsyncEnsemble
from ensemblehub.ensemble_methods.model_selection.all import All
from ensemblehub.ensemble_methods.output_aggregation.cascade import Cascade
from ensemblehub.ensemble_methods.output_aggregation.tandem import Tandem
from ensemblehub.errors import ArtifactError, CapabilityError, ConfigError
from ensemblehub.generators.echo import EchoEngine, EchoOptions
from ensemblehub.lab.judges import drafts
from ensemblehub.lab.tasks import task_named
from ensemblehub.schema import Scored
from ensemblehub.tandem.artifact import load_judge
from ensemblehub.tandem.insights import Dialogue, profile_named

pytest.importorskip("sklearn")

PAIR = {
    "model_specs": [
        {"name": "big", "engine": "echo", "replies": {"": "Answer: \\boxed{1}"}, "parameters": 9},
        {"name": "tiny", "engine": "echo", "replies": {"": "Answer: \\boxed{7}"}, "parameters": 1},
    ]
}


EASY, HARD = (0.0, 0.2), (0.4, 1.5)  # entropies of a question's tokens
DRAFT = "one two three four five six seven eight nine ten eleven twelve"


def rows(count=200, seed=0):
    """Drafts that are right where they are sure, but for one in ten."""
    rng = np.random.default_rng(seed)
    for index in range(count):
        sure = rng.random() < 0.5
        entropy = rng.uniform(0.0, 0.2, 12) if sure else rng.uniform(0.4, 1.5, 12)
        correct = bool(sure) if rng.random() < 0.9 else not sure
        yield {"id": str(index), "correct": correct, "entropy": entropy, "perplexity": np.exp(entropy)}


def test_a_trained_judge_decides_in_a_cascade(tmp_path, caplog):
    artifact = drafts.train(list(rows()), "logistic", "tiny", {"n": 200})
    assert artifact.metrics["auc"] > 0.75
    artifact.save(tmp_path)
    for entropy, text in ((0.1, "draft"), (0.9, "large")):
        engines = [
            EchoEngine("big", EchoOptions({"": "large"}, parameters=9)),
            EchoEngine("tiny", EchoOptions({"": "draft"}, parameters=1, entropy=entropy, logprob=-entropy)),
        ]
        result = asyncio.run(AsyncEnsemble(engines, All(), Cascade(accept=str(tmp_path))).generate("2 + 2?"))
        assert result.text == text
        assert result.verdicts[0].sufficient == (text == "draft")
    assert not caplog.records
    engines[1].name = "other"
    AsyncEnsemble(engines, All(), Cascade(accept=str(tmp_path)))
    assert "made for intern 'tiny', not 'other'" in caplog.text
    with pytest.raises(ConfigError, match="cascade: the judge judges insights, not drafts"):
        AsyncEnsemble(engines, All(), Cascade(accept="builtin:judge"))


def with_questions(count=600):
    """Drafts that look alike, and are right where the question surprised little, but for one in ten."""
    rng = np.random.default_rng(1)
    for index in range(count):
        easy = rng.random() < 0.5
        entropy = rng.uniform(*(EASY if easy else HARD), 30)
        same = {"entropy": np.full(12, 0.5), "perplexity": np.full(12, np.exp(0.5))}
        question = {"entropy": entropy, "perplexity": np.exp(entropy)}
        correct = easy if rng.random() < 0.9 else not easy
        yield {"id": str(index), "correct": correct, **same, "question": question}


@pytest.mark.parametrize("kind", drafts.WITH_QUESTION)
def test_a_judge_that_reads_the_question_beside_the_draft(tmp_path, kind):
    artifact = drafts.train(list(with_questions()), kind, "tiny", {})
    assert artifact.metrics["auc"] > 0.75
    artifact.save(tmp_path)
    judge = load_judge(tmp_path).judge
    assert judge.reads_question
    assert judge.inputs.width == 2 * 16 + 1  # and the number of tokens
    for surprise, accepted in ((EASY, True), (HARD, False)):
        tiny = Surprised("tiny", EchoOptions({"": DRAFT}, parameters=1, entropy=0.5, logprob=-0.5))
        tiny.surprise = surprise
        engines = [EchoEngine("big", EchoOptions({"": "large"}, parameters=9)), tiny]
        result = asyncio.run(
            AsyncEnsemble(engines, All(), Cascade(accept=str(tmp_path))).generate(DRAFT + "?")
        )
        assert result.text == (DRAFT if accepted else "large")
        (reading,) = [line for line in result.usage.lines if (line.engine, line.purpose) == ("tiny", "judge")]
        assert reading.cost.prompt_tokens > 0
    with pytest.raises(ConfigError, match="judges drafts: name it as `draft`"):
        AsyncEnsemble(engines, All(), Tandem(judge=str(tmp_path)))
    no_score = EchoEngine("tiny", EchoOptions(parameters=1))
    no_score.capabilities = frozenset({"logprobs"})
    with pytest.raises(CapabilityError, match="score"):
        AsyncEnsemble([engines[0], no_score], All(), Cascade(accept=str(tmp_path)))


class Surprised(EchoEngine):
    """Reads every question with an entropy and -logprob from a range."""

    async def score(self, request, meter):
        scored = await super().score(request, meter)
        values = np.random.default_rng(2).uniform(*self.surprise, len(scored.tokens)).tolist()
        read = zip(scored.tokens, values, strict=True)
        return Scored(tuple(replace(token, logprob=-value, entropy=value) for token, value in read))


def test_questions_are_recorded_where_a_judge_is_to_read_them(tmp_path):
    task, path = task_named("builtin_math"), tmp_path / "drafts.jsonl"
    found = drafts.record(Config.from_dict(PAIR), task, "train", 3, path, with_question=True)
    assert all(len(row["question"]["entropy"]) > len(row["entropy"]) == 2 for row in found)
    assert found[0]["question"]["entropy"][0] == 1.0
    with pytest.raises(ArtifactError, match="drafts of another configuration"):
        drafts.record(Config.from_dict(PAIR), task, "train", 3, path)  # without the questions


def test_a_judge_of_sequences_reads_no_question(capsys):
    with pytest.raises(SystemExit):
        drafts.main(["pair.yaml", "out", "--judge", "gru", "--question"])
    assert "--question goes with --judge logistic, mlp, gb" in capsys.readouterr().err


def test_what_decides_a_tandem_with_a_draft_is_the_judges_weights_not_its_folder(tmp_path):
    def deciding(seed):
        drafts.train(list(rows(seed=seed)), "logistic", "tiny", {"n": 200}).save(tmp_path)
        return Tandem(draft=str(tmp_path)).deciding()

    first = deciding(0)
    assert deciding(0) == first
    assert {name for name, value in deciding(1).items() if value != first[name]} == {"draft"}


def test_drafts_are_recorded_once_and_a_killed_run_goes_on(tmp_path, monkeypatch):
    task, path = task_named("builtin_math"), tmp_path / "drafts.jsonl"
    config = Config.from_dict(PAIR)
    found = drafts.record(config, task, "train", 12, path)
    assert [row["id"] for row in found] == [item.id for item in task.items("train", 12)]
    assert [row["correct"] for row in found] == [item.answer == "7" for item in task.items("train", 12)]
    assert found[0]["perplexity"] == pytest.approx([math.e] * 2, abs=1e-4)
    assert found[0]["entropy"] == [1.0, 1.0]
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])  # killed in the middle of a line
    assert drafts.record(config, task, "train", 12, path) == found
    asked = []
    monkeypatch.setattr(drafts, "drafted", lambda *given: asked.append(given))
    assert drafts.record(config, task, "train", 12, path) == found
    assert not asked
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert sorted(line["id"] for line in lines) == sorted(row["id"] for row in found)
    path.write_text(path.read_text().replace(lines[0]["asked"], "another"))
    with pytest.raises(ArtifactError, match="drafts of other questions or prompts"):
        drafts.record(config, task, "train", 12, path)
    with pytest.raises(ArtifactError, match="drafts of another configuration, task or split"):
        drafts.record(config, task, "calibration", 12, path)


def test_a_judge_learns_nothing_from_empty_drafts(tmp_path):
    silent = {**PAIR["model_specs"][1], "replies": {"": ""}}
    config = Config.model_validate({"model_specs": [PAIR["model_specs"][0], silent]})
    found = drafts.record(config, task_named("builtin_math"), "train", 2, tmp_path / "drafts.jsonl")
    assert [(row["perplexity"], row["correct"]) for row in found] == [([], False)] * 2
    known = list(rows())
    with_empty, without = (drafts.train(part, "logistic", "tiny", {}) for part in (known + found, known))
    assert with_empty.weights == without.weights


def test_too_few_drafts_are_refused_in_one_line():
    with pytest.raises(ArtifactError) as error:
        drafts.train(list(rows(3)), "logistic", "tiny", {})
    assert "\n" not in str(error.value)


def test_a_tandems_intern_drafts_in_the_words_of_its_profile(tmp_path, monkeypatch):
    task, asked = task_named("builtin_math"), []

    async def drafted(engine, task, item, request, with_question):
        asked.append(request)
        return {"id": item.id, "correct": True, "perplexity": [1.0], "entropy": [0.0]}

    monkeypatch.setattr(drafts, "drafted", drafted)
    params = {
        "mentor": "big",
        "intern": "tiny",
        "profile": "builtin",
        "levels": {"low": 2},
        "draft": "logprob",
    }
    section = {"output_aggregation_method": "tandem", "output_aggregation_params": params}
    config = Config.from_dict({**PAIR, "ensemble": section})
    drafts.record(config, task, "train", 1, tmp_path / "drafts.jsonl")
    (item,) = task.items("train", 1)
    ensemble, tiny, _ = drafts.author_of(config)
    plain = task.ask(item, ensemble.sampling)
    (request,) = asked
    assert tiny.name == "tiny"
    assert request == Dialogue(plain, profile_named("builtin", "test"), "prompt").intern_request()
    assert request.prompt != plain.prompt
