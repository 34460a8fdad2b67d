"""Fits on collected questions: a judge's logits to probabilities, the mentor's answers to their lengths."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ensemblehub.errors import MissingExtraError
from ensemblehub.lab import metrics
from ensemblehub.tandem.curves import Curve, Floats
from ensemblehub.tandem.estimates import Length

FOLDS = 5


def best_curve(logits: Floats, labels: NDArray[np.bool_], questions: NDArray[np.int64]) -> Curve:
    """The plain sigmoid, Platt scaling or isotonic regression: the lowest cross-validated Brier score.

    Folds are by question: a curve is compared on questions it was not fitted to, else isotonic regression
    would always win.  Where a fit is impossible (one label only) the sigmoid stays as it is.
    """
    if labels.all() or not labels.any():
        return Curve()
    fold = np.unique(questions, return_inverse=True)[1] % FOLDS
    losses = {}
    for fit in (plain, platt, isotonic):
        guessed = np.empty(len(logits))
        for index in range(FOLDS):
            inside, outside = fold != index, fold == index
            one_sided = labels[inside].all() or not labels[inside].any()
            curve = Curve() if one_sided else fit(logits[inside], labels[inside])
            guessed[outside] = curve(logits[outside])
        losses[fit] = metrics.judge_report(labels, guessed)["brier"]
    return min(losses, key=lambda fit: losses[fit])(logits, labels)


def plain(_logits: Floats, _labels: NDArray[np.bool_]) -> Curve:
    """The sigmoid as it is."""
    return Curve()


def platt(logits: Floats, labels: NDArray[np.bool_]) -> Curve:
    """Platt scaling (1999): a logistic regression on the logit."""
    fitted = sklearn("linear_model").LogisticRegression(C=1e6).fit(logits[:, None], labels)
    return Curve("platt", np.array([[fitted.coef_[0, 0]], [fitted.intercept_[0]]], np.float64))


def isotonic(logits: Floats, labels: NDArray[np.bool_]) -> Curve:
    """Isotonic regression (Zadrozny and Elkan, 2002), kept within 0.5 % and 99.5 %."""
    regression = sklearn("isotonic").IsotonicRegression(y_min=0.005, y_max=0.995, out_of_bounds="clip")
    fitted = regression.fit(logits, labels.astype(float))
    return Curve("isotonic", np.array([fitted.X_thresholds_, fitted.y_thresholds_], np.float64))


def answer_lengths(prompt_tokens: ArrayLike, lengths: ArrayLike, thinking: bool | None = None) -> Length:
    """Least squares on the mentor's answers to collected questions, in tokens, both (n,).

    Args:
        thinking: the engine's `enable_thinking` with which they were collected.
    """
    x, y = np.asarray(prompt_tokens, float), np.asarray(lengths, float)
    slope, intercept = np.polyfit(x, y, 1) if len(set(x.tolist())) > 1 else (0.0, y.mean())
    low, high = np.percentile(y - intercept - slope * x, [2.5, 97.5])
    return Length(float(intercept), float(slope), float(low), float(high), len(x), thinking)


def sklearn(module: str) -> Any:
    """A module of scikit-learn.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return importlib.import_module(f"sklearn.{module}")
    except ImportError as error:
        raise MissingExtraError(
            "training a judge needs scikit-learn: pip install 'ensemblehub[eval]'"
        ) from error
