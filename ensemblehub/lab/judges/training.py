"""Training a judge on collected readings: fit, recalibrate, and report on questions it never saw.

Questions are split 70 : 15 : 15 into training, validation (early stopping and the output's calibration)
and held-out ones (the report).  All levels of a question fall on the same side.  torch and scikit-learn
are imported only where they are used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ensemblehub.errors import ArtifactError, ConfigError, MissingExtraError, did_you_mean
from ensemblehub.lab import metrics
from ensemblehub.lab.judges import sequence_training
from ensemblehub.lab.judges.curve_fitting import best_curve, sklearn
from ensemblehub.lab.judges.examples import Examples, examples_of, split
from ensemblehub.tandem.artifact import RULES
from ensemblehub.tandem.curves import sigmoid
from ensemblehub.tandem.features import FEATURE_NAMES
from ensemblehub.tandem.judges import (
    JUDGES,
    MLP,
    Classifier,
    Inputs,
    Logistic,
    ScalarRule,
)
from ensemblehub.tandem.sequence_judges import SEQUENCE_JUDGES
from ensemblehub.tandem.stacking import Stack, Trained
from ensemblehub.tandem.trees import GradientBoosting, Trees

Preset = Literal["default", "paper"]
Layers = tuple[tuple[NDArray[np.float32], NDArray[np.float32]], ...]
Floats = NDArray[np.float64]

HIDDEN = (64, 32)
MEMBERS = ("mlp", "gb", *SEQUENCE_JUDGES)  # of `ensemble`
KINDS = ("logistic", *MEMBERS, "ensemble")


@dataclass(frozen=True)
class NetworkRecipe:
    """How the network learns; the defaults train to convergence on validation.

    Attributes:
        patience: epochs without a better validation loss before training ends.
    """

    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    epochs: int = 300
    patience: int = 25
    dropout: float = 0.3
    batch: int = 256


PRESETS: dict[str, NetworkRecipe] = {
    "default": NetworkRecipe(),
    # Paper: Adam, 1e-4, at most 3 epochs, early stopping; its batch size is not stated.
    "paper": NetworkRecipe(learning_rate=1e-4, weight_decay=0.0, epochs=3, patience=1, batch=32),
}


def train_judge(
    kind: str,
    features: ArrayLike,
    labels: ArrayLike,
    lengths: ArrayLike,
    *,
    sequences: Sequence[Sequence[NDArray[Any]]] | None = None,
    groups: ArrayLike | None = None,
    seed: int = 0,
    preset: Preset = "default",
    level: bool = True,
    length: bool = True,
) -> tuple[Trained | Stack, dict[str, Any]]:
    """Train a judge that says how probable a right answer of the intern is.

    Args:
        kind: one of `KINDS`.
        features: shape (questions, levels, 16), see `features.FEATURE_NAMES`; (…, 32) for drafts, with those
            of the question.
        labels: shape (questions, levels); the intern answered correctly from that level.
        lengths: mentor tokens read, shape (questions, levels).
        sequences: per question and level (2, tokens), perplexity and entropy; what `lstm`, `gru`, `cnn`,
            `attention` and `ensemble` learn from.
        groups: shape (questions,); rows with the same value are the same question and stay together.
        preset: "default" (to convergence) or "paper" (Adam 1e-4, at most 3 epochs); for the mlp.
        level, length: give the judge the level (one-hot) and the number of mentor tokens; judges over
            sequences have both.

    Returns:
        the judge and its report: AUC, F1, Brier score beside the base rate's and calibration error on
        held-out questions, over all levels and per level.

    Raises:
        ConfigError: a kind or preset that does not exist or cannot be trained.
        ArtifactError: too few questions, labels that are all the same, or no sequences where they are needed.
        MissingExtraError: torch or scikit-learn is not installed.
    """
    _check(kind, preset, sequences is not None)
    examples = examples_of(features, labels, lengths, groups, sequences)
    train, validation, held_out = split(examples, seed)
    levels, width = int(examples.readings.level.max()) + 1, examples.readings.table.shape[1]
    inputs = Inputs(levels, level, length, preset != "paper", question=width > len(FEATURE_NAMES))
    judge, fitted = fit(kind, train, validation, inputs, PRESETS[preset], seed)
    parts = {"train": len(train.label), "validation": len(validation.label), "held_out": len(held_out.label)}
    made = {"kind": kind, "preset": preset, "seed": seed, "examples": parts, **fitted}
    return judge, made | _report(judge, held_out)


def median_rule(kind: str, features: NDArray[Any]) -> ScalarRule:
    """A rule whose limit is the median of collected readings, shape (questions, levels, 16)."""
    rule = RULES[kind]
    return rule(float(np.median(features[..., rule.column])))


def fit(
    kind: str, train: Examples, validation: Examples, inputs: Inputs, recipe: NetworkRecipe, seed: int
) -> tuple[Trained | Stack, dict[str, Any]]:
    """A judge of one kind, its output calibrated on the validation questions, and how training went."""
    judge: Trained | Stack
    if kind == "ensemble":
        judge, fitted = fit_stack(train, validation, inputs, recipe, seed)
    elif kind in SEQUENCE_JUDGES:
        judge, fitted = sequence_training.fit(SEQUENCE_JUDGES[kind], train, validation, inputs.levels, seed)
    elif kind == "gb":
        judge, fitted = fit_trees(train, inputs, seed)
    else:
        judge, fitted = fit_network(kind, train, validation, inputs, recipe, seed)
    curve = best_curve(judge.logits(validation.readings), validation.label, validation.question)
    return replace(judge, curve=curve), fitted


def fit_network(
    kind: str, train: Examples, validation: Examples, inputs: Inputs, recipe: NetworkRecipe, seed: int
) -> tuple[Classifier, dict[str, Any]]:
    """`mlp` or `logistic`, over standardised features."""
    method, judge = {"mlp": (fit_mlp, MLP), "logistic": (fit_logistic, Logistic)}[kind]
    raw = [
        inputs.matrix(part.table, part.level, part.mentor_tokens)
        for part in (train.readings, validation.readings)
    ]
    mean, std = raw[0].mean(axis=0), raw[0].std(axis=0)
    std = np.where(std > 1e-9, std, 1.0)  # a constant column stays 0
    x, y = (((part - mean) / std).astype(np.float32) for part in raw)
    layers, fitted = method(x, train.label, y, validation.label, recipe, seed)
    return judge(inputs, mean, std, layers), fitted


def fit_trees(train: Examples, inputs: Inputs, seed: int) -> tuple[GradientBoosting, dict[str, Any]]:
    """Gradient boosting as the reference has it: 100 trees of depth 5, rate 0.1."""
    about = train.readings
    boosting = sklearn("ensemble").GradientBoostingClassifier(
        n_estimators=100,
        max_depth=5,
        learning_rate=0.1,
        subsample=0.8,
        min_samples_leaf=20,
        random_state=seed,
    )
    fitted = boosting.fit(inputs.matrix(about.table, about.level, about.mentor_tokens), train.label)
    return GradientBoosting(inputs, trees_of(fitted)), {"trees": 100}


def trees_of(fitted: Any) -> Trees:
    """The trees of a fitted `GradientBoostingClassifier` of two classes."""
    trees = [estimator.tree_ for estimator in fitted.estimators_[:, 0]]
    nodes = max(tree.node_count for tree in trees)

    def table(name: str, fill: float, kind: Any) -> NDArray[Any]:
        full = np.full((len(trees), nodes), fill, kind)
        for row, tree in zip(full, trees, strict=True):
            row[: tree.node_count] = np.ravel(getattr(tree, name))
        return full

    feature = np.where(table("children_left", -1, np.int32) < 0, -1, table("feature", -1, np.int32))
    rate = np.clip(fitted.init_.class_prior_[1], 1e-9, 1 - 1e-9)
    return Trees(
        feature,
        table("threshold", 0.0, np.float64),
        table("children_left", -1, np.int32),
        table("children_right", -1, np.int32),
        fitted.learning_rate * table("value", 0.0, np.float64),
        float(np.log(rate / (1 - rate))),
    )


def fit_stack(
    train: Examples, validation: Examples, inputs: Inputs, recipe: NetworkRecipe, seed: int
) -> tuple[Stack, dict[str, Any]]:
    """Every other kind, trained apart, and a logistic regression
    over their logits on the validation questions.
    """
    members: dict[str, Trained] = {}
    for kind in MEMBERS:
        member, _ = fit(kind, train, validation, inputs, recipe, seed)
        members[kind] = cast(Trained, member)
    said = np.stack([member.logits(validation.readings) for member in members.values()], axis=1)
    stacked = sklearn("linear_model").LogisticRegression(C=0.01).fit(said, validation.label)
    weights = np.append(stacked.coef_[0], stacked.intercept_[0])
    return Stack(members, weights), {"weights": dict(zip(members, map(float, weights[:-1]), strict=True))}


def _check(kind: str, preset: str, has_sequences: bool) -> None:
    if kind in JUDGES and kind not in KINDS:
        raise ConfigError(f"judge {kind!r} has nothing to train; there is: {', '.join(KINDS)}")
    if kind not in KINDS:
        raise ConfigError(did_you_mean(kind, KINDS, "judge"))
    if preset not in PRESETS:
        raise ConfigError(did_you_mean(preset, PRESETS, "preset"))
    if kind in (*SEQUENCE_JUDGES, "ensemble") and not has_sequences:
        raise ArtifactError(
            f"judge {kind!r} learns from the tokens' perplexities and entropies, and there are none"
        )


def fit_logistic(
    x: NDArray[np.float32], labels: NDArray[np.bool_], _vx: Any, _vy: Any, _recipe: NetworkRecipe, seed: int
) -> tuple[Layers, dict[str, Any]]:
    """Logistic regression with scikit-learn's defaults (L2, C = 1), as a network of one layer."""
    fitted = sklearn("linear_model").LogisticRegression(max_iter=2000, random_state=seed).fit(x, labels)
    return ((fitted.coef_.astype(np.float32), fitted.intercept_.astype(np.float32)),), {}


def fit_mlp(
    x: NDArray[np.float32],
    labels: NDArray[np.bool_],
    validation_x: NDArray[np.float32],
    validation_labels: NDArray[np.bool_],
    recipe: NetworkRecipe,
    seed: int,
) -> tuple[Layers, dict[str, Any]]:
    """The paper's network, trained with binary cross-entropy;
    keeps the weights of the best validation loss.
    """
    try:
        import torch
    except ImportError as error:
        raise MissingExtraError("training an mlp needs PyTorch: pip install 'ensemblehub[hf]'") from error

    data, unseen = torch.from_numpy(x), torch.from_numpy(validation_x)
    truth, unseen_truth = torch.from_numpy(labels).float(), torch.from_numpy(validation_labels).float()
    best, best_epoch = float("inf"), 0
    kept: Layers = ()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _network(x.shape[1], recipe.dropout)
        # Without weight decay, AdamW is the paper's Adam.
        optimizer = torch.optim.AdamW(
            network.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay
        )
        for epoch in range(1, recipe.epochs + 1):
            _epoch(network, optimizer, data, truth, recipe.batch)
            loss = _loss(network, unseen, unseen_truth)
            if loss < best:
                best = loss
                best_epoch = epoch
                kept = _weights(network)
            elif epoch - best_epoch >= recipe.patience:
                break
    return kept, {"epochs": epoch, "best_epoch": best_epoch, "validation_loss": best}


def _epoch(network: Any, optimizer: Any, data: Any, truth: Any, size: int) -> None:
    """Every example once, in random order."""
    import torch

    network.train()
    order = torch.randperm(len(data))
    for start in range(0, len(order), size):
        batch = order[start : start + size]
        loss = torch.nn.functional.binary_cross_entropy_with_logits(network(data[batch])[:, 0], truth[batch])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def _loss(network: Any, data: Any, truth: Any) -> float:
    """Binary cross-entropy without dropout."""
    import torch

    network.eval()
    with torch.no_grad():
        return torch.nn.functional.binary_cross_entropy_with_logits(network(data)[:, 0], truth).item()


def _network(width: int, dropout: float) -> Any:
    from torch import nn

    layers: list[Any] = []
    for hidden in HIDDEN:
        layers += [nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(dropout)]
        width = hidden
    return nn.Sequential(*layers, nn.Linear(width, 1))


def _weights(network: Any) -> Layers:
    """A copy of the weights, which training on does not change."""
    linear = [layer for layer in network if hasattr(layer, "weight")]
    return tuple(
        (layer.weight.detach().numpy().copy(), layer.bias.detach().numpy().copy()) for layer in linear
    )


def _report(judge: Trained | Stack, held_out: Examples) -> dict[str, Any]:
    said = judge.probabilities_of(held_out.readings)
    uncalibrated = metrics.calibration_error(held_out.label, sigmoid(judge.logits(held_out.readings)))
    level = held_out.readings.level
    at_level = [level == index for index in range(int(level.max()) + 1)]
    levels = [_numbers(held_out.label[mask], said[mask]) for mask in at_level]
    whole = _numbers(held_out.label, said) | {
        "uncalibrated_error": uncalibrated,
        "calibration": judge.curve.method,
    }
    return whole | {"levels": levels}


def _numbers(labels: NDArray[np.bool_], said: Floats) -> dict[str, Any]:
    """The judge's metrics; None where one is not defined, which JSON can hold."""
    report = metrics.judge_report(labels, said)
    return {name: None if np.isnan(value) else value for name, value in report.items()}
