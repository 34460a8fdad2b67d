"""Training: what a judge learns, and that it is judged on questions it never saw."""

import numpy as np
import pytest

from ensemblehub.errors import ArtifactError, ConfigError
from ensemblehub.lab import metrics
from ensemblehub.lab.judges import curve_fitting, training
from ensemblehub.lab.judges.curve_fitting import best_curve
from ensemblehub.lab.judges.examples import examples_of, split
from ensemblehub.lab.judges.training import train_judge
from ensemblehub.tandem.curves import Curve

pytest.importorskip("sklearn")


def problem(n=400, noise=0.2, seed=0):
    """Right where the mean entropy lies within a band that widens with the level; not a straight line."""
    random = np.random.default_rng(seed)
    table = random.normal(0, 1, (n, 3, 16)).astype(np.float32)
    table[..., :8] = np.exp(table[..., :8])
    right = np.abs(table[..., 8] + noise * random.normal(size=(n, 3))) < 0.5 + 0.3 * np.arange(3)
    return table, right, np.tile([0, 24, 64], (n, 1))


def test_an_mlp_learns_what_a_line_cannot():
    pytest.importorskip("torch")
    judge, report = train_judge("mlp", *problem(n=600, noise=0.05))
    assert report["auc"] > 0.95
    assert report["brier"] < 0.5 * report["brier_base_rate"]
    assert [level["n"] for level in report["levels"]] == [90, 90, 90]
    assert report["examples"] == {"train": 420 * 3, "validation": 90 * 3, "held_out": 90 * 3}
    assert len(judge.layers) == 3
    assert judge.layers[0][0].shape[0] == 64


def test_logistic_regression_learns_a_line():
    table, _, tokens = problem(n=300)
    right = table[..., 8] + 0.1 * np.log(table[..., 0]) > 0
    _, report = train_judge("logistic", table, right, tokens)
    assert report["auc"] > 0.99


def test_the_paper_s_preset_trains_three_epochs_at_most():
    pytest.importorskip("torch")
    judge, report = train_judge("mlp", *problem(n=60), preset="paper")
    assert report["epochs"] <= 3
    assert not judge.inputs.log_perplexity


def test_the_best_weights_are_kept_not_the_last(monkeypatch):
    pytest.importorskip("torch")
    losses = iter([1.0, 0.5, 0.9, 0.9])
    monkeypatch.setattr(training, "_loss", lambda *_: next(losses))
    seen = []
    real = training._weights
    monkeypatch.setattr(training, "_weights", lambda network: seen.append(real(network)) or real(network))
    x, y = np.random.default_rng(0).normal(size=(64, 5)).astype(np.float32), np.arange(64) % 2 == 0
    recipe = training.NetworkRecipe(epochs=4, patience=9)
    kept, fitted = training.fit_mlp(x, y, x, y, recipe, seed=0)
    assert fitted["best_epoch"] == 2
    assert all((a == b).all() for a, b in zip(kept[0], seen[-1][0], strict=True))


def test_training_twice_gives_the_same_judge_and_leaves_torch_s_generator_alone():
    torch = pytest.importorskip("torch")
    before = torch.get_rng_state()
    table, right, tokens = problem(n=60)
    judges = [train_judge("mlp", table, right, tokens, seed=3)[0] for _ in range(2)]
    assert (torch.get_rng_state() == before).all()
    said = [judge.probabilities(table, np.arange(3), tokens) for judge in judges]
    assert (said[0] == said[1]).all()


def test_no_question_is_on_two_sides():
    table, right, tokens = problem(n=90)
    groups = np.repeat(np.arange(45), 2)  # two rows per question
    examples = examples_of(table, right, tokens, groups)
    sides = [set(part.question) for part in split(examples, seed=1)]
    assert sorted(len(side) for side in sides) == [7, 7, 31]
    assert len(set.union(*sides)) == 45
    assert sum(len(part.label) for part in split(examples, seed=1)) == 270


@pytest.mark.parametrize("fit", [curve_fitting.platt, curve_fitting.isotonic])
def test_calibration_corrects_an_overconfident_judge(fit):
    random = np.random.default_rng(0)
    logits = random.normal(0, 1.5, 6000)
    right = random.random(6000) < 1 / (1 + np.exp(-logits))
    boasting = 4 * logits + 1
    curve = fit(boasting[:3000], right[:3000])
    before = metrics.calibration_error(right[3000:], Curve()(boasting[3000:]))
    after = metrics.calibration_error(right[3000:], curve(boasting[3000:]))
    assert before > 0.1
    assert after < 0.04


def test_the_curve_that_fits_unseen_questions_is_taken():
    random = np.random.default_rng(0)
    logits, questions = random.normal(0, 1.5, 4000), np.arange(4000)
    straight = random.random(4000) < 1 / (1 + np.exp(-2 * logits))
    steps = random.random(4000) < np.where(logits > 0, np.where(logits > 1.5, 0.9, 0.2), 0.15)
    assert best_curve(logits, straight, questions).method == "platt"
    assert best_curve(logits, steps, questions).method == "isotonic"
    honest = random.random(4000) < 1 / (1 + np.exp(-logits))
    assert best_curve(logits, honest, questions).method != "isotonic"
    assert best_curve(logits, np.ones(4000, bool), questions).method == "none"


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"kind": "mpl"}, ConfigError, "did you mean 'mlp'"),
        ({"kind": "entropy"}, ConfigError, "nothing to train"),
        ({"preset": "papr"}, ConfigError, "did you mean 'paper'"),
        ({"labels": np.ones((30, 3), bool)}, ArtifactError, "every answer of the intern is right"),
        ({"groups": np.zeros(30)}, ArtifactError, "at least 20 questions"),
    ],
)
def test_what_cannot_be_trained(change, error, match):
    table, right, tokens = problem(n=30)
    arguments = {"kind": "logistic", "features": table, "labels": right, "lengths": tokens} | change
    with pytest.raises(error, match=match):
        train_judge(**arguments)
