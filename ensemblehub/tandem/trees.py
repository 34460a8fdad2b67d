"""Gradient boosting over the 16 features (`gb`), kept as arrays: scikit-learn trains it, numpy judges."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from ensemblehub.tandem.curves import Curve
from ensemblehub.tandem.judges import Arrays, FeatureClassifier, Floats, Inputs


@dataclass(frozen=True)
class Trees:
    """Regression trees of one depth limit, one row each, nodes in scikit-learn's order.

    Attributes:
        feature: column that a node asks about, -1 in a leaf; (trees, nodes).
        threshold: at most this goes `left`, else `right`; float32 inputs, as scikit-learn compares them.
        value: of a leaf, learning rate included.
        start: what all trees are added to.
    """

    feature: NDArray[np.int32]
    threshold: NDArray[np.float64]
    left: NDArray[np.int32]
    right: NDArray[np.int32]
    value: NDArray[np.float64]
    start: float

    def check(self, columns: int) -> None:
        """Raise a `ValueError` unless every walk over inputs of so many columns ends in a leaf."""
        arrays = (self.feature, self.threshold, self.left, self.right, self.value)
        if self.feature.ndim != 2 or not self.feature.size or len({array.shape for array in arrays}) > 1:
            raise ValueError("trees of unlike shapes")
        whole = [array.dtype.kind == "i" for array in (self.feature, self.left, self.right)]
        if not all(whole) or not np.isfinite(self.start):
            raise ValueError("trees of wrong numbers")
        inner, own = self.feature >= 0, np.arange(self.feature.shape[1])
        down = [(own < child) & (child < len(own)) for child in (self.left, self.right)]
        if self.feature.max() >= columns or not (~inner | (down[0] & down[1])).all():
            raise ValueError("trees with branches that lead nowhere")

    def __call__(self, matrix: Floats) -> Floats:
        """The sum of all trees' leaves for every row of (n, columns): logits, (n,)."""
        rows, trees = np.arange(len(matrix))[:, None], np.arange(len(self.feature))[None]
        values = matrix.astype(np.float32)
        node = np.zeros((len(matrix), len(self.feature)), np.int32)
        while True:
            feature = self.feature[trees, node]
            inner = feature >= 0
            if not inner.any():
                return np.asarray(self.start + self.value[trees, node].sum(axis=1))
            goes_left = values[rows, np.maximum(feature, 0)] <= self.threshold[trees, node]
            node = np.where(inner, np.where(goes_left, self.left[trees, node], self.right[trees, node]), node)


@dataclass(frozen=True)
class GradientBoosting(FeatureClassifier):
    """Gradient boosting with a calibrated output (100 trees, depth 5, rate 0.1)."""

    kind: ClassVar[str] = "gb"
    inputs: Inputs
    trees: Trees
    curve: Curve = field(default_factory=Curve)

    @property
    def flops(self) -> float:  # type: ignore[override]
        """One comparison per level of every tree, and its addition."""
        return float(self.trees.feature.shape[0] * 6)

    def outputs(self, matrix: Floats) -> Floats:
        return self.trees(matrix.reshape(-1, matrix.shape[-1])).reshape(matrix.shape[:-1])

    def state(self) -> tuple[Arrays, dict[str, Any]]:
        trees = {name: np.asarray(value) for name, value in vars(self.trees).items() if name != "start"}
        options = {"inputs": asdict(self.inputs), "start": self.trees.start, "curve": self.curve.method}
        return {**trees, "curve": self.curve.knots}, options

    @classmethod
    def restored(cls, arrays: Arrays, options: Mapping[str, Any], /) -> Self:
        names = ("feature", "threshold", "left", "right", "value")
        trees = Trees(**{name: arrays[name] for name in names}, start=float(options["start"]))
        inputs = Inputs(**options["inputs"])
        trees.check(inputs.width)
        return cls(inputs, trees, Curve.restored(options["curve"], arrays["curve"]))
