"""Calibration of a judge's logits to probabilities: Platt scaling and isotonic regression.

Applying a curve is plain numpy; fitting one needs scikit-learn (extra `eval`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
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
