"""Tandem at its levels: of a fixed length, or judged by a rule or a trained judge."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ensemblehub.lab.advise.record import LOGPROB, Recorded
from ensemblehub.lab.advise.strategy import (
    FEWER_SHARES,
    Changes,
    Floats,
    Strategy,
    constant,
    limits_of,
    thresholds_of,
    with_tandem,
)
from ensemblehub.lab.pipeline import cascade, replay
from ensemblehub.tandem.artifact import RULES, resolve_judge
from ensemblehub.tandem.insights import LEVEL_0
from ensemblehub.tandem.judges import SUFFICES, Judge

# its name, changes, thresholds (L,) and first probabilities (n,)
Setting = tuple[str, Changes, Floats, Floats]


def fixed(recorded: Recorded) -> Iterator[Strategy]:
    """The mentor's insight of a fixed length, whatever the question."""
    for level, tokens in recorded.collected.levels.items():
        if level != LEVEL_0:
            runs = [row.runs[level] for row in recorded.collected.rows]
            yield constant(recorded, f"tandem, {tokens} tokens", runs, with_tandem(judge=f"fixed:{level}"))


def rules(recorded: Recorded, known: slice) -> Iterator[Strategy]:
    """By the intern's mean entropy or perplexity, the bare question judged first: Tandem, and a router that
    gives the question to one of the models, and Tandem after a draft; nothing where the intern cannot read a
    prompt.
    """
    if not recorded.collected.features.size:
        return
    levels = list(recorded.collected.levels)
    for kind in RULES:
        yield from _ruled(recorded, f"tandem by {kind}", kind, known, levels, start_with_intern=True)
        yield from _router(recorded, kind, known)
        if recorded.scored:
            yield from _ruled(recorded, f"tandem with draft by {kind}", kind, known, levels, draft=LOGPROB)


def routers(recorded: Recorded, known: slice) -> Iterator[Strategy]:
    """Of `rules` those that give the question to one of the models."""
    for kind in RULES if recorded.collected.features.size else ():
        yield from _router(recorded, kind, known)


def _router(recorded: Recorded, kind: str, known: slice) -> Iterator[Strategy]:
    given = {"start_with_intern": True, "give_up": {LEVEL_0: SUFFICES}, "fallback": "mentor"}
    yield from _ruled(recorded, f"router by {kind}", kind, known, [LEVEL_0], **given)


def _ruled(
    recorded: Recorded, name: str, kind: str, known: slice, levels: list[str], **more: Any
) -> Iterator[Strategy]:
    """Tandem by a rule at these levels; nothing where it judges nothing, or tells no question from another."""
    rule, drafted = resolve_judge(f"{kind}:1.0", levels).judge, "draft" in more
    outcomes = _outcomes(recorded, rule, levels, more.get("fallback", "best"), drafted)
    first = outcomes.probabilities[:, 0]
    judged = outcomes.visited[known] & (np.arange(len(levels)) >= drafted)
    if not judged.any():
        return
    means = 1 / outcomes.probabilities[known][judged] - 1
    if drafted:  # one that was cut off has the probability 0
        limits = limits_of(means)
        drafts = list(thresholds_of(first[known][first[known] > 0], FEWER_SHARES))
    else:
        limits, drafts = limits_of(means, float(1 / first[known].min() - 1)), [None]
    settings = list[Setting]()
    for draft in drafts:
        for limit in limits:
            title, changes = f"{kind} up to {limit:.3g}", with_tandem(judge=f"{kind}:{limit:.6g}", **more)
            thresholds = np.full(len(levels), 1 / (1 + limit))
            if draft is None:
                scores = limit / (limit + 1 / first - 1)
            else:
                title, thresholds[0], scores = f"{LOGPROB} from {draft:.3f}, {title}", draft, first
                changes |= with_tandem(thresholds={LEVEL_0: float(draft)})
            settings.append((title, changes, thresholds, scores))
    yield from _replayed(name, outcomes, settings)


def trained(recorded: Recorded, known: slice) -> Iterator[Strategy]:
    """Tandem by the configured judge, with one threshold at all levels."""
    if recorded.judge is None or not recorded.collected.features.size:
        return
    folder, judge = recorded.judge
    levels = list(recorded.collected.levels)
    outcomes = _outcomes(recorded, judge, levels)
    probabilities = outcomes.probabilities[known]
    limits = thresholds_of(probabilities[outcomes.visited[known]], least=float(probabilities[:, 0].min()))
    settings = list[Setting]()
    for limit in limits:
        same = dict.fromkeys(levels, float(limit))
        never = dict.fromkeys(levels, 0.0)  # whatever was calibrated with the judge
        changes = with_tandem(judge=folder, start_with_intern=True, thresholds=same, give_up=never)
        thresholds = np.full(len(levels), limit)
        settings.append((f"probability from {limit:.3f}", changes, thresholds, outcomes.probabilities[:, 0]))
    yield from _replayed("tandem by its trained judge", outcomes, settings)


def _outcomes(
    recorded: Recorded,
    judge: Judge,
    levels: list[str],
    fallback: cascade.Fallback = "best",
    drafted: bool = False,
) -> cascade.Outcomes:
    found = replay.outcomes(recorded.collected, judge, levels, fallback, drafted)
    return (
        replay.in_dollars(found, recorded.collected, levels, *recorded.prices) if recorded.prices else found
    )


def _replayed(name: str, outcomes: cascade.Outcomes, settings: list[Setting]) -> Iterator[Strategy]:
    """The levels in order until one suffices, at some settings; nothing where there is none."""
    if settings:
        titles, changes, thresholds, scores = zip(*settings, strict=True)
        runs = [cascade.replay(outcomes, limits) for limits in thresholds]
        right = np.stack([run.correct.astype(float) for run in runs], axis=1)
        cost = np.stack([run.cost for run in runs], axis=1)
        named = tuple(zip(titles, changes, strict=True))
        yield Strategy(name, named, right, cost, scores=np.stack(scores, axis=1))
