"""Plots that are the same every time they are drawn."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ensemblehub.errors import MissingExtraError


def pyplot() -> Any:
    """Matplotlib's pyplot, drawing to files that are the same every time.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise MissingExtraError("plots need matplotlib: pip install 'ensemblehub[eval]'") from error
    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "ensemblehub"
    from matplotlib import pyplot as plt

    return plt


@dataclass(frozen=True)
class Point:
    """A method in a plot of accuracy against cost; accuracies are fractions.

    Attributes:
        group: Name in the legend that it shares with others; without groups there is no legend.
    """

    name: str
    cost: float
    accuracy: float
    low: float
    high: float
    marker: str = "o"
    color: str = "C0"
    size: float = 6
    group: str = ""


def accuracy_against_cost(
    points: Sequence[Point], paths: Sequence[Path], cost: str, title: str, log: bool = False
) -> None:
    """Draw every method's accuracy with its 95 % interval against its cost.

    Args:
        cost: Label of the cost axis, logarithmic with `log`.

    Without matplotlib there is a warning instead: a plot is beside a table that is written already.
    """
    try:
        plt = pyplot()
    except MissingExtraError as error:
        logging.getLogger(__name__).warning("no plot: %s", error)
        return
    figure, axes = plt.subplots(figsize=(8, 5.2))
    groups = set[str]()
    for point in points:
        x, y = point.cost, 100 * point.accuracy
        bars = [[y - 100 * point.low], [100 * point.high - y]]
        style = {"fmt": point.marker, "color": point.color, "markersize": point.size}
        label = point.group if point.group not in groups else None
        axes.errorbar(x, y, bars, **style, capsize=2, linewidth=1, label=label or None)
        groups |= {point.group} - {""}
        offset = (7, -14 if point.size > 10 else 5)
        placed = {"xytext": offset, "textcoords": "offset points", "fontsize": 9}
        axes.annotate(point.name, (x, y), **placed, parse_math=False)  # a `$` is part of the name
    axes.set(xlabel=cost, ylabel="accuracy, % (95 % interval)", title=title)
    if log:
        axes.set_xscale("log")
    axes.grid(alpha=0.3)
    if groups:
        axes.legend()
    for path in paths:
        metadata = {"Date": None} if path.suffix == ".svg" else None
        figure.savefig(path, dpi=150, bbox_inches="tight", metadata=metadata)
    plt.close(figure)
