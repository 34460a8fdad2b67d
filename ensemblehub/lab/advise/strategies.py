"""Strategies, replayed on recorded questions: what it would have answered right, at what cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemblehub.answers.equality import equal_answers
from ensemblehub.ensemble_methods.output_aggregation.vote import partied
from ensemblehub.lab.advise.record import TEMPERATURE, InternAnswer, Recorded
from ensemblehub.lab.pipeline import cascade, replay
from ensemblehub.lab.pipeline.records import Run
from ensemblehub.lab.tasks.shown_tests import ShownTests
from ensemblehub.tandem.artifact import resolve_judge
from ensemblehub.tandem.insights import LEVEL_0

Floats = NDArray[np.float64]
Changes = Mapping[str, Any]
THRESHOLDS = 15  # quantiles of a score that are tried
NO_THINKING = "debug.enable_thinking"  # the key that turns thinking off
SUFFICES = 0.5  # the probability at a rule's limit
SHOWN_TESTS = f"{ShownTests.__module__}:{ShownTests.__qualname__}"


@dataclass(frozen=True)
class Strategy:
    """A strategy over n questions at T settings, from the most to the least expensive in no set order.

    Attributes:
        settings: what each setting changes in the configuration, and how the table calls it.
        correct, cost: right or wrong, and FLOPs or US dollars (`Recorded.unit`), each (n, T).
        single: one model alone.
        scores: the probability that a criterion gives to each draft, (n,), where there is one.
    """

    name: str
    settings: tuple[tuple[str, Changes], ...]
    correct: Floats
    cost: Floats
    single: bool = False
    scores: Floats | None = None


def strategies(recorded: Recorded, known: slice = slice(None)) -> list[Strategy]:
    """All strategies that can be replayed; the single models come first, the simpler ones before the
    others.

    Args:
        known: the questions whose scores give the thresholds that are tried.
    """
    return [
        *_alone(recorded),
        *_fixed(recorded),
        *_votes(recorded),
        *_escalations(recorded, known),
        *_rules(recorded, known),
    ]


def _alone(recorded: Recorded) -> Iterator[Strategy]:
    rows = recorded.collected.rows
    yield _single(recorded, "mentor alone", [row.runs["mentor"] for row in rows], "mentor")
    if any(row.thinking_switch for row in rows):
        runs = [row.runs["mentor_concise"] for row in rows]
        yield _single(recorded, "mentor alone, no thinking", runs, "mentor", {NO_THINKING: False})
    yield _single(recorded, "intern alone", [drafts[0].run for drafts in recorded.drafts], "intern")


def _single(
    recorded: Recorded, name: str, runs: list[Run], model: str, more: Changes | None = None
) -> Strategy:
    changes = {"ensemble.models": [recorded.name(model)], **_method("single"), **(more or {})}
    return _constant(recorded, name, runs, changes, single=True)


def _constant(
    recorded: Recorded, name: str, runs: list[Run], changes: Changes, single: bool = False
) -> Strategy:
    correct = np.array([[float(run.correct)] for run in runs])
    cost = np.array([[recorded.cost(run)] for run in runs])
    return Strategy(name, (("", changes),), correct, cost, single)


def _fixed(recorded: Recorded) -> Iterator[Strategy]:
    """The mentor's insight of a fixed length, whatever the question."""
    for level, tokens in recorded.collected.levels.items():
        if level != LEVEL_0:
            runs = [row.runs[level] for row in recorded.collected.rows]
            yield _constant(recorded, f"tandem, {tokens} tokens", runs, _tandem(judge=f"fixed:{level}"))


def _votes(recorded: Recorded) -> Iterator[Strategy]:
    """Self-consistency of the intern."""
    if (most := _readable(recorded)) < 3:
        return
    sampled = [drafts[1:] for drafts in recorded.drafts]
    winners = []
    for drafts in sampled:
        parties = partied([draft.answer for draft in drafts], [1.0] * most, equal_answers)
        winners.append([float(drafts[parties[0].members[0] if parties else 0].run.correct)])
    cost = np.array([[_samples_cost(recorded, drafts)] for drafts in sampled])
    changes = {"ensemble.models": [recorded.name("intern")], **_method("vote", samples=most)}
    changes["ensemble.generation.temperature"] = TEMPERATURE
    yield Strategy(f"vote of {most} intern samples", (("", changes),), np.array(winners), cost)


def _readable(recorded: Recorded) -> int:
    """The number of samples per question; 0 where most of them have no answer that can be compared."""
    samples = [draft for drafts in recorded.drafts for draft in drafts[1:]]
    known = [draft.answer is not None for draft in samples]
    return min(len(drafts) for drafts in recorded.drafts) - 1 if known and np.mean(known) >= 0.5 else 0


def _samples_cost(recorded: Recorded, drafts: list[InternAnswer]) -> float:
    """FLOPs with the question read once for all samples; dollars with every request's prompt."""
    if recorded.prices:
        return sum(recorded.cost(draft.run) for draft in drafts)
    info = recorded.collected.info("intern")
    read = drafts[0].run.intern_read
    written = (info.flops(read, read + max(0, draft.run.intern_tokens - 1)) for draft in drafts)
    return info.flops(0, read) + sum(written)


def _escalations(recorded: Recorded, known: slice) -> Iterator[Strategy]:
    """The intern's draft is kept where a criterion accepts it; else the mentor answers, or plans."""
    rows, nothing = recorded.collected.rows, np.zeros(recorded.n)
    mentor = [row.runs["mentor"] for row in rows]
    criteria = {}
    logprobs = [drafts[0].logprob for drafts in recorded.drafts]
    if None not in logprobs:
        scores = np.exp(np.array(logprobs, float))
        criteria["log-probability"] = Accepted("logprob", scores, nothing, known)
    passed = [drafts[0].tests for drafts in recorded.drafts]
    if any(passed):
        scores = np.array([share or 0.0 for share in passed])
        criteria["shown tests"] = Accepted(SHOWN_TESTS, scores, nothing, known)
    for name, accepted in criteria.items():
        yield _escalation(recorded, f"cascade by {name}", accepted, mentor, "cascade")
        for level, tokens in recorded.collected.levels.items():
            if level != LEVEL_0:
                planned, plan = [row.runs[level] for row in rows], {"plan_tokens": tokens, **recorded.words}
                title = f"plan on failure by {name}, {tokens} tokens"
                yield _escalation(recorded, title, accepted, planned, "plan_on_failure", plan)
    if samples := _readable(recorded):
        shares = [
            np.mean([_agree(drafts[0], other) for other in drafts[1 : samples + 1]])
            for drafts in recorded.drafts
        ]
        more = np.array([_samples_cost(recorded, drafts[1:]) for drafts in recorded.drafts])
        accepted = Accepted(f"agreement:{samples}", np.array(shares), more, known)
        yield _escalation(recorded, "cascade by agreement", accepted, mentor, "cascade")


def _agree(draft: InternAnswer, other: InternAnswer) -> bool:
    return draft.answer is not None and other.answer is not None and equal_answers(draft.answer, other.answer)


@dataclass(frozen=True)
class Accepted:
    """A criterion by its name in `accept`, its score of every draft, and its cost, each (n,).

    Attributes:
        known: the questions whose scores give the thresholds.
    """

    criterion: str
    scores: Floats
    cost: Floats
    known: slice


def _escalation(
    recorded: Recorded,
    name: str,
    accepted: Accepted,
    otherwise: list[Run],
    method: str,
    more: Changes | None = None,
) -> Strategy:
    """Drafts that a criterion accepts, else other runs; a draft that was cut off is not judged, and never
    kept.
    """
    scores, criterion = accepted.scores, accepted.criterion
    limits = np.unique(
        np.quantile(scores[accepted.known], np.linspace(0, 1, THRESHOLDS + 2)[1:-1], method="higher")
    )
    own = [drafts[0].run for drafts in recorded.drafts]
    complete = np.array([[run.finish != "length"] for run in own])
    kept = complete & (scores[:, None] >= limits)
    right, theirs = (np.array([[run.correct] for run in runs], float) for runs in (own, otherwise))
    cost, price = (np.array([[recorded.cost(run)] for run in runs]) for runs in (own, otherwise))
    roles = {"large": recorded.name("mentor"), "small": recorded.name("intern"), "accept": criterion}
    params = roles | dict(more or {})
    settings = tuple(
        (f"{criterion} from {limit:.3f}", _method(method, **params, threshold=float(limit)))
        for limit in limits
    )
    whole = cost + np.where(complete, accepted.cost[:, None], 0.0) + np.where(kept, 0.0, price)
    judged = np.where(complete[:, 0], scores, 0.0)
    return Strategy(name, settings, np.where(kept, right, theirs), whole, scores=judged)


def _rules(recorded: Recorded, known: slice) -> Iterator[Strategy]:
    """By the intern's mean entropy or perplexity, the bare question judged first: Tandem, and a router that
    gives the question to one of the models; nothing where the intern cannot read a prompt.
    """
    if not recorded.collected.features.size:
        return
    levels = list(recorded.collected.levels)
    for kind in ("entropy", "perplexity"):
        yield from _ruled(recorded, f"tandem by {kind}", kind, known, levels)
        yield from _ruled(
            recorded,
            f"router by {kind}",
            kind,
            known,
            [LEVEL_0],
            give_up={LEVEL_0: SUFFICES},
            fallback="mentor",
        )


def _ruled(
    recorded: Recorded, name: str, kind: str, known: slice, levels: list[str], **more: Any
) -> Iterator[Strategy]:
    """Tandem by a rule at these levels; nothing where the rule tells no question from another."""
    rule = resolve_judge(f"{kind}:1.0", levels).judge
    outcomes = replay.outcomes(recorded.collected, rule, levels, more.get("fallback", "best"))
    if recorded.prices:
        outcomes = replay.in_dollars(outcomes, recorded.collected, levels, *recorded.prices)
    said = outcomes.probabilities[known][outcomes.visited[known]]
    limits = np.unique(np.quantile(1 / said - 1, np.linspace(0, 1, THRESHOLDS + 2)[1:-1]))
    # as they are configured: six digits, and not below the question that a limit comes from
    limits = np.array([float(f"{1.00001 * limit:.6g}") for limit in limits if limit > 0])
    runs = [cascade.replay(outcomes, np.full(len(levels), 1 / (1 + limit))) for limit in limits]
    settings = tuple(
        (f"{kind} up to {limit:.3g}", _tandem(judge=f"{kind}:{limit:.6g}", start_with_intern=True, **more))
        for limit in limits
    )
    if runs:
        right = np.stack([run.correct.astype(float) for run in runs], axis=1)
        yield Strategy(name, settings, right, np.stack([run.cost for run in runs], axis=1))


def _method(name: str, **params: Any) -> dict[str, Any]:
    return {"ensemble.output_aggregation_method": name, "ensemble.output_aggregation_params": params}


def _tandem(**params: Any) -> dict[str, Any]:
    return {f"ensemble.output_aggregation_params.{key}": value for key, value in params.items()}
