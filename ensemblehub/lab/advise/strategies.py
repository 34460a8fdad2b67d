"""All strategies, replayed on recorded questions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ensemblehub.lab.advise.escalations import (
    cascades,
    draft_else_mentor,
    escalations,
    tandem_with_draft,
    thinking,
)
from ensemblehub.lab.advise.levels import fixed, routers, rules, trained
from ensemblehub.lab.advise.record import Recorded
from ensemblehub.lab.advise.samples import best_of, votes
from ensemblehub.lab.advise.strategy import Changes, Strategy, constant, with_method
from ensemblehub.lab.pipeline.records import Run

NO_THINKING = "debug.enable_thinking"  # stands for the mentor's own switch (`advice.with_changes`)


def strategies(recorded: Recorded, known: slice = slice(None)) -> list[Strategy]:
    """All strategies that can be replayed; the single models come first, the simpler ones before the
    others.

    Args:
        known: the questions whose scores give the thresholds that are tried.
    """
    return [
        *_alone(recorded),
        *fixed(recorded),
        *votes(recorded),
        *best_of(recorded),
        *thinking(recorded, known),
        *escalations(recorded, known),
        *tandem_with_draft(recorded, known),
        *rules(recorded, known),
        *trained(recorded, known),
        *_without_thinking(recorded, known),
    ]


def _alone(recorded: Recorded) -> Iterator[Strategy]:
    rows = recorded.collected.rows
    yield _single(recorded, "mentor alone", [row.runs["mentor"] for row in rows], "mentor")
    if any(row.thinking_switch for row in rows):
        runs = [row.runs["mentor_concise"] for row in rows]
        yield _single(recorded, "mentor alone, no thinking", runs, "mentor", {NO_THINKING: False})
    yield _single(recorded, "intern alone", [drafts[0].run for drafts in recorded.drafts], "intern")


def _without_thinking(recorded: Recorded, known: slice) -> Iterator[Strategy]:
    """Strategies in which the mentor answers by itself, here without thinking; none without such a switch."""
    quiet = recorded.without_thinking
    if quiet is None:
        return
    for ways in (cascades, draft_else_mentor, routers):
        for strategy in ways(quiet, known):
            settings = tuple((title, {**changes, NO_THINKING: False}) for title, changes in strategy.settings)
            yield replace(strategy, name=f"{strategy.name}, no thinking", settings=settings)


def _single(
    recorded: Recorded, name: str, runs: list[Run], model: str, more: Changes | None = None
) -> Strategy:
    changes = {"ensemble.models": [recorded.name(model)], **with_method("single"), **(more or {})}
    return constant(recorded, name, runs, changes, single=True)
