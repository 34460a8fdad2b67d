"""Judges over sequences, trees and stacks: they learn, padding does not count, what is saved is what was trained."""

import numpy as np
import pytest

from ensemblehub.errors import ArtifactError
from ensemblehub.lab.judges.examples import examples_of
from ensemblehub.lab.judges.training import KINDS, train_judge, trees_of
from ensemblehub.tandem.artifact import JudgeArtifact, load_judge
from ensemblehub.tandem.judges import Inputs, Reading, ReadingBatch
from ensemblehub.tandem.sequence_judges import LONGEST, SEQUENCE_JUDGES

pytest.importorskip("sklearn")
torch = pytest.importorskip("torch")


def problem(n=60, seed=0):
    """Right where the entropy rises towards the end, and where one of the features is high."""
    random = np.random.default_rng(seed)
    right = random.random((n, 2)) < 0.5
    sequences = []
    for row in right:
        pair = []
        for rises in row:
            length = int(random.integers(12, 20))
            entropy = random.uniform(0, 0.4, length)
            entropy[-6:] += 1.5 * rises
            entropy[:6] += 1.5 * (not rises)
            pair.append(np.stack([np.exp(random.uniform(0, 2, length)), entropy]).astype(np.float16))
        sequences.append(pair)
    table = random.normal(0, 1, (n, 2, 16)).astype(np.float32)
    table[..., 8] += 3 * right
    return table, right, np.tile([0, 24], (n, 1)), sequences


@pytest.fixture(scope="module")
def judges():
    table, right, tokens, sequences = problem()
    kinds = ("gb", *SEQUENCE_JUDGES, "ensemble")
    return {kind: train_judge(kind, table, right, tokens, sequences=sequences) for kind in kinds}


@pytest.fixture(scope="module")
def readings():
    table, right, tokens, sequences = problem(seed=1)
    examples = examples_of(table, right, tokens, None, sequences)
    return examples.readings, examples.label


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gb", *SEQUENCE_JUDGES, "ensemble"])
def test_it_learns_and_beats_the_base_rate(kind, judges, readings):
    judge, report = judges[kind]
    assert report["kind"] == judge.kind == kind
    assert report["auc"] > 0.8
    assert report["brier"] < report["brier_base_rate"]
    said = judge.probabilities_of(readings[0])
    assert np.mean((said >= 0.5) == readings[1]) > 0.65
    assert judge.flops > 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gb", *SEQUENCE_JUDGES, "ensemble"])
def test_what_a_reading_is_batched_with_does_not_change_it(kind, judges, readings):
    judge, _ = judges[kind]
    together = judge.probabilities_of(readings[0])
    for index in (0, 7, 31):
        sequence = np.asarray(readings[0].sequences[index], np.float64)
        alone = judge.probabilities_of(readings[0].part(np.array([index])))[0]
        assert alone == pytest.approx(together[index], abs=1e-6)
        if kind in SEQUENCE_JUDGES:
            level, tokens = int(readings[0].level[index]), int(readings[0].mentor_tokens[index])
            assert judge.probability(Reading(level, tokens, *sequence)) == pytest.approx(
                together[index], abs=1e-6
            )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gb", *SEQUENCE_JUDGES, "ensemble"])
def test_a_saved_judge_says_the_same(kind, judges, readings, tmp_path):
    judge, _ = judges[kind]
    JudgeArtifact(judge, mentor="m", intern="i", prompts="p", levels={"none": 0, "low": 24}).save(tmp_path)
    again = load_judge(tmp_path)
    assert again.judge.kind == kind
    assert (again.judge.probabilities_of(readings[0]) == judge.probabilities_of(readings[0])).all()
    assert "made for intern" in again.check("m", "other", "p")[0]
    with pytest.raises(ArtifactError, match="strict"):
        again.check("m", "other", "p", strict=True)


@pytest.mark.slow
def test_training_is_repeatable_and_leaves_torch_s_generator_alone():
    table, right, tokens, sequences = problem(n=40)
    before = torch.get_rng_state()
    first, second = (
        train_judge("cnn", table, right, tokens, sequences=sequences, seed=3)[0] for _ in range(2)
    )
    assert (torch.get_rng_state() == before).all()
    assert all((first.weights[name] == second.weights[name]).all() for name in first.weights)


def test_trees_say_what_scikit_learn_says():
    from sklearn.ensemble import GradientBoostingClassifier

    random = np.random.default_rng(0)
    x = random.normal(size=(400, 20)).astype(np.float32).astype(np.float64)
    y = x[:, 3] * x[:, 5] + x[:, 0] > 0
    fitted = GradientBoostingClassifier(n_estimators=30, max_depth=5, random_state=0).fit(x, y)
    assert trees_of(fitted)(x) == pytest.approx(fitted.decision_function(x), abs=1e-9)


def test_a_long_reading_is_judged_by_its_end(judges):
    judge, _ = judges["attention"]
    random = np.random.default_rng(0)
    long = np.stack([np.ones(LONGEST + 500), random.uniform(0, 1, LONGEST + 500)])
    whole = judge.probability(Reading(1, 24, *long))
    assert judge.probability(Reading(1, 24, *long[:, -LONGEST:])) == pytest.approx(whole, abs=1e-6)


@pytest.mark.parametrize("kind", [*SEQUENCE_JUDGES, "ensemble"])
def test_without_sequences_it_says_what_it_learns_from(kind):
    table, right, tokens, _ = problem(n=30)
    with pytest.raises(ArtifactError, match="perplexities and entropies"):
        train_judge(kind, table, right, tokens)


def test_one_reading_is_as_many_readings():
    reading = Reading(1, 24, np.array([1.5, 2.0, 900.0]), np.array([0.1, 0.2, 0.3]))
    batch = ReadingBatch.of(reading)
    assert batch.table.shape == (1, 16)
    assert batch.sequences[0].shape == (2, 3)
    assert Inputs(2).matrix(batch.table, batch.level, batch.mentor_tokens).shape == (1, 19)
    assert set(KINDS) >= {"lstm", "gru", "cnn", "attention", "gb", "ensemble", "mlp", "logistic"}
