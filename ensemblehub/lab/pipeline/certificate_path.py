"""The path of thresholds and give-up limits that a certificate tests, safest first.

It is chosen on training questions alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike

from ensemblehub.lab.judges.training import train_judge
from ensemblehub.lab.pipeline import replay as collected
from ensemblehub.lab.pipeline.calibration import Grid
from ensemblehub.lab.pipeline.cascade import Floats, Indices, Outcomes, replay
from ensemblehub.lab.pipeline.certificate import Loss, Settings
from ensemblehub.lab.pipeline.records import Collected

FOLDS = 5


def path_of(training: Outcomes, loss: Loss, give_up: ArrayLike = 0.0) -> Floats:
    """The combinations that no other one beats in loss and cost, safest first, (S, 2, L).

    Each has thresholds and give-up limits, from the whole grid of candidates, joint over all levels; `give_up`
    as in `calibration.Grid.of`.
    """
    grid = Grid.of(training, give_up)
    if loss == "net":
        accuracy, cost = grid.surface(training)
        lost = -accuracy
    else:
        wrong = training.mentor_correct[:, None] & ~training.correct
        nothing = np.zeros_like(training.mentor_correct)  # the mentor's own answer loses nothing
        lost, cost = grid.surface(replace(training, correct=wrong, mentor_correct=nothing))
    return grid.limits(safest_first(lost.ravel(), cost.ravel()))


def safest_first(lost: Floats, cost: Floats) -> Indices:
    """Indices of the settings that no other one beats in loss and cost, by rising loss; both (S,)."""
    # Sums of floats differ in their last digits; losses that close are equal.
    order = np.lexsort((cost, lost.round(9)))
    cheapest = np.minimum.accumulate(cost[order])
    return np.asarray(order[np.concatenate([[True], cheapest[1:] < cheapest[:-1] * (1 - 1e-9)])])


def along(outcomes: Outcomes, path: Floats) -> Settings:
    """What every setting of a path, (S, 2, L), brings on some questions."""
    runs = [replay(outcomes.giving_up(below), thresholds) for thresholds, below in path]
    return Settings(
        outcomes.mentor_correct.astype(bool),
        outcomes.mentor_cost,
        np.stack([run.correct for run in runs], axis=1),
        np.stack([run.cost for run in runs], axis=1),
    )


def unseen(data: Collected, levels: list[str], kind: str, step: Callable[[], None] = lambda: None) -> Floats:
    """Probabilities by judges of one kind that were each trained without the question, (n, L).

    A judge is surer of the questions it was trained on than of others; a path chosen by what it says of those
    would be bold too early.
    """
    fold = np.arange(len(data.rows)) % FOLDS
    labels = collected.table(data, list(data.levels), lambda run: run.correct).astype(bool)
    tokens = collected.table(data, list(data.levels), lambda run: run.mentor_tokens)
    found = np.empty((len(data.rows), len(levels)))
    for index in range(FOLDS):
        inside, outside = np.flatnonzero(fold != index), np.flatnonzero(fold == index)
        sequences = [data.sequences[at] for at in inside]
        judge, _ = train_judge(
            kind, data.features[inside], labels[inside], tokens[inside], sequences=sequences
        )
        readings = collected.readings(data.part(outside.tolist()), levels)
        found[outside] = judge.probabilities_of(readings).reshape(-1, len(levels))
        step()
    return found
