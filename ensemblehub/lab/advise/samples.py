"""Strategies over several answers of the intern."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from ensemblehub.ensemble_methods.output_aggregation.vote import agreed, partied, settled
from ensemblehub.lab.advise.record import TEMPERATURE, InternAnswer, Recorded
from ensemblehub.lab.advise.strategy import (
    SHOWN_TESTS,
    Changes,
    Strategy,
    readable,
    same_answers,
    with_method,
)


def votes(recorded: Recorded) -> Iterator[Strategy]:
    """Self-consistency of the intern: of all samples at once, and of some until the vote is decided."""
    if (most := readable(recorded)) < 3:
        return
    yield _vote(recorded, f"vote of {most} intern samples", [("", {"samples": most})])
    ways = [
        (f"{samples} samples, {window} at a time", {"samples": samples, "window": window})
        for samples in range(3, most + 1)
        for window in (1, 2)
    ]
    yield _vote(recorded, "vote until it is decided", ways)


def _vote(recorded: Recorded, name: str, ways: Sequence[tuple[str, dict[str, int]]]) -> Strategy:
    ends = [[_voted(drafts[1:], **params) for _, params in ways] for drafts in recorded.drafts]
    return _sampled(recorded, name, "vote", ways, np.array(ends))


def _voted(drafts: list[InternAnswer], samples: int, window: int | None = None) -> tuple[int, int]:
    """The index of the sample whose words a vote gives, and the number of samples that it draws."""
    answers, width = [draft.answer for draft in drafts[:samples]], window or samples
    for start in range(0, samples, width):
        end = min(start + width, samples)
        heard, weights = [*answers[:end], *[None] * (samples - end)], [1.0] * samples
        parties = partied(heard, weights, same_answers)
        if settled(parties, weights, range(end, samples)) or agreed(parties, range(start, end)):
            break
    return (parties[0].members[0] if parties else 0), end


def best_of(recorded: Recorded) -> Iterator[Strategy]:
    """The intern's sample that passes the most of the tests that a question shows; of equal ones the first.

    One that was cut off counts as passing none.
    """
    passed = [[_score(draft) for draft in drafts[1:]] for drafts in recorded.drafts]
    most = min(map(len, passed))
    if most < 2 or not any(map(any, passed)):
        return
    ways = [
        (f"{samples} samples", {"samples": samples, "accept": SHOWN_TESTS}) for samples in range(2, most + 1)
    ]
    ends = [[(np.argmax(row[:count]), count) for count in range(2, most + 1)] for row in passed]
    yield _sampled(recorded, "best intern sample by shown tests", "best_of", ways, np.array(ends))


def _score(draft: InternAnswer) -> float:
    return 0.0 if draft.run.finish == "length" else draft.tests or 0.0


def _sampled(
    recorded: Recorded, name: str, method: str, ways: Sequence[tuple[str, Changes]], ends: NDArray[np.int64]
) -> Strategy:
    """A strategy over the intern's samples.

    Args:
        ways: how the table calls each setting, and its options; the samples of a `window` after the first find
            their prompt in the cache.
        ends: the index of the sample that is given and the number of samples drawn, (n, T, 2).
    """
    shared = {"ensemble.models": [recorded.name("intern")], "ensemble.generation.temperature": TEMPERATURE}
    runs = [[draft.run for draft in drafts[1 : ends.max() + 1]] for drafts in recorded.drafts]
    right = np.array([[float(run.correct) for run in row] for row in runs])
    alone, again = (
        np.array([[cost(run) for run in row] for row in runs])[:, None]
        for cost in (recorded.cost, recorded.repeated_cost)
    )
    at_once = np.array([params.get("window", alone.shape[-1]) for _, params in ways])[:, None]
    cost = np.cumsum(np.where(np.arange(alone.shape[-1]) < at_once, alone, again), axis=-1)
    return Strategy(
        name,
        tuple((title, shared | with_method(method, **params)) for title, params in ways),
        np.take_along_axis(right, ends[..., 0], axis=1),
        np.take_along_axis(cost, ends[..., 1:] - 1, axis=-1)[..., 0],
    )
