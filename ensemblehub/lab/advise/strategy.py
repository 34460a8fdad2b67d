"""A strategy that `advise` replays: what it would have answered right, at what cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemblehub.answers.equality import equal_answers
from ensemblehub.lab.advise.record import Recorded
from ensemblehub.lab.pipeline.records import Run
from ensemblehub.lab.tasks.shown_tests import ShownTests

Floats = NDArray[np.float64]
Changes = Mapping[str, Any]
SHARES = np.linspace(0, 1, 17)[1:-1]  # quantiles of a score that are tried
FEWER_SHARES = SHARES[1::3]  # of a score that is tried with every limit of a rule
SHOWN_TESTS = f"{ShownTests.__module__}:{ShownTests.__qualname__}"  # the criterion
same_answers = lru_cache(maxsize=100_000)(equal_answers)


@dataclass(frozen=True)
class Strategy:
    """A strategy over n questions at T settings, from the most to the least expensive in no set order.

    Attributes:
        settings: what each setting changes in the configuration, and how the table calls it.
        correct, cost: right or wrong, and FLOPs or US dollars (`Recorded.unit`), each (n, T).
        single: one model alone.
        scores: the first number that a criterion or a judge gives in a run, (n, T), where there is one.
    """

    name: str
    settings: tuple[tuple[str, Changes], ...]
    correct: Floats
    cost: Floats
    single: bool = False
    scores: Floats | None = None


def constant(
    recorded: Recorded, name: str, runs: list[Run], changes: Changes, single: bool = False
) -> Strategy:
    """A strategy of one setting, whose answers were recorded as they are."""
    correct = np.array([[float(run.correct)] for run in runs])
    cost = np.array([[recorded.cost(run)] for run in runs])
    return Strategy(name, (("", changes),), correct, cost, single)


def thresholds_of(scores: Floats, shares: Floats = SHARES, least: float | None = None) -> Floats:
    """Quantiles of scores as they are configured: six digits, and not above the question that one comes from.

    Args:
        least: the score that every answer has, by default the lowest one; a threshold that is not above it
            would judge nothing.
    """
    least = float(scores.min(initial=np.inf)) if least is None else least
    above = scores[scores > least]
    if not above.size:
        return above
    found = np.maximum(np.quantile(scores, shares, method="higher"), above.min())
    rounded = [(score, float(f"{score:.6g}")) for score in found]
    limits = [near if near == score else float(f"{0.99999 * score:.6g}") for score, near in rounded]
    return np.unique([limit for limit in limits if limit > least])


def limits_of(means: Floats, most: float | None = None) -> Floats:
    """Quantiles of what a rule compares with its limit, as limits are configured: six digits, and not below
    the question that one comes from; those above 0.

    Args:
        most: what no question exceeds, by default the highest mean; a limit that is not below it would judge
            nothing.
    """
    most = float(means.max()) if most is None else most
    below = means[means < most]
    if not below.size:
        return below
    found = np.minimum(np.quantile(means, SHARES), below.max())
    limits = [float(f"{1.00001 * mean:.6g}") for mean in found if mean > 0]
    return np.unique([limit for limit in limits if limit < most])


def readable(recorded: Recorded) -> int:
    """The number of samples per question; 0 where most of them have no answer that can be compared."""
    samples = [draft for drafts in recorded.drafts for draft in drafts[1:]]
    known = [draft.answer is not None for draft in samples]
    return min(len(drafts) for drafts in recorded.drafts) - 1 if known and np.mean(known) >= 0.5 else 0


def with_method(name: str, **params: Any) -> dict[str, Any]:
    """The changes for an aggregation with these options."""
    return {"ensemble.output_aggregation_method": name, "ensemble.output_aggregation_params": params}


def with_tandem(**params: Any) -> dict[str, Any]:
    """The changes for the configured Tandem with these options."""
    return {f"ensemble.output_aggregation_params.{key}": value for key, value in params.items()}
