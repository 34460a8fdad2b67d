"""From a judge's logits to probabilities that hold: Platt scaling and isotonic regression.

Applying a curve is plain numpy; fitting one needs scikit-learn (extra `eval`).  Knows no judge.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ensemblehub import metrics
from ensemblehub.errors import MissingExtraError

Floats = NDArray[np.float64]
FOLDS = 5
METHODS = ("none", "platt", "isotonic")


@dataclass(frozen=True)
class Curve:
    """A map from logit to calibrated probability: Platt scaling, or isotonic regression as knots.

    Attributes:
        method: "none" (the plain sigmoid), "platt" or "isotonic".
        knots: (slope, intercept) in a (2, 1) array for "platt"; logits and probabilities, both
            ascending, in a (2, knots) array for "isotonic", linear in between.
    """

    method: str = "none"
    knots: Floats = field(default_factory=lambda: np.array([[1.0], [0.0]]))

    @classmethod
    def restored(cls, method: str, knots: Floats) -> Self:
        """A curve as it was saved.

        Raises:
            ValueError: the knots are not those of the method.
        """
        fits = knots.ndim == 2 and len(knots) == 2 and knots.shape[1] >= 1
        if method not in METHODS or not fits or (method != "isotonic" and knots.shape[1] != 1):
            raise ValueError(f"a curve {method!r} with knots of shape {knots.shape}")
        if method == "isotonic" and ((np.diff(knots) < 0).any() or knots[1].min() < 0 or knots[1].max() > 1):
            raise ValueError("an isotonic curve that does not rise from 0 to 1")
        return cls(method, knots)

    def __call__(self, logits: Floats) -> Floats:
        if self.method == "isotonic":
            return np.asarray(np.interp(logits, *self.knots), np.float64)
        return sigmoid(self.knots[0, 0] * logits + self.knots[1, 0])


def sigmoid(logits: Floats) -> Floats:
    """The logistic function, without overflow."""
    return np.asarray(np.exp(-np.logaddexp(0.0, -logits)))


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


def sklearn(module: str) -> Any:
    """A module of scikit-learn.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return importlib.import_module(f"sklearn.{module}")
    except ImportError as error:
        raise MissingExtraError("training a judge needs scikit-learn: pip install 'ensemblehub[eval]'") from error
