"""Strategies in which a first answer is kept where a criterion accepts it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemblehub.ensemble_methods.candidates import geometric_mean
from ensemblehub.lab.advise.record import LOGPROB, InternAnswer, Recorded
from ensemblehub.lab.advise.strategy import (
    FEWER_SHARES,
    SHARES,
    SHOWN_TESTS,
    Changes,
    Floats,
    Strategy,
    limits_of,
    readable,
    same_answers,
    thresholds_of,
    with_method,
    with_tandem,
)
from ensemblehub.lab.pipeline.records import Row, Run
from ensemblehub.tandem.artifact import RULES
from ensemblehub.tandem.insights import LEVEL_0
from ensemblehub.tandem.judges import SUFFICES

log = logging.getLogger(__name__)
TABLES = ("correct", "cost", "scores")  # of a strategy, each (n, T)


def escalations(recorded: Recorded, known: slice) -> Iterator[Strategy]:
    """The intern's draft is kept where a criterion accepts it; else the mentor answers, or plans."""
    rows, roles = recorded.collected.rows, _roles(recorded)
    mentor = [row.runs["mentor"] for row in rows]
    for name, accepted in _criteria(recorded, known).items():
        yield from _kept(recorded, f"cascade by {name}", accepted, mentor, "cascade")
        for kind in RULES:
            fewer, title = (
                replace(accepted, shares=FEWER_SHARES),
                f"cascade by {name}, lost questions by {kind}",
            )
            yield from _with_lost(recorded, title, fewer, kind, roles)
        for level, tokens in recorded.collected.levels.items():
            if level != LEVEL_0:
                planned, plan = [row.runs[level] for row in rows], {"plan_tokens": tokens, **recorded.words}
                title = f"plan on failure by {name}, {tokens} tokens"
                yield from _kept(recorded, title, accepted, planned, "plan_on_failure", **plan)
    if samples := readable(recorded):
        others = [drafts[1 : samples + 1] for drafts in recorded.drafts]
        shares = [
            np.mean([_agree(drafts[0], other) for other in drawn])
            for drafts, drawn in zip(recorded.drafts, others, strict=True)
        ]
        more = np.array([sum(recorded.repeated_cost(other.run) for other in drawn) for drawn in others])
        accepted = Accepted(f"agreement:{samples}", np.array(shares), more, known)
        yield from _kept(recorded, "cascade by agreement", accepted, mentor, "cascade")


def cascades(recorded: Recorded, known: slice) -> Iterator[Strategy]:
    """Of `escalations` those in which one number decides whether the mentor answers."""
    mentor = [row.runs["mentor"] for row in recorded.collected.rows]
    for name, accepted in _criteria(recorded, known).items():
        yield from _kept(recorded, f"cascade by {name}", accepted, mentor, "cascade")


def _criteria(recorded: Recorded, known: slice) -> dict[str, Accepted]:
    """Criteria of the draft alone, by what the table calls them."""
    criteria, nothing = dict[str, Accepted](), np.zeros(recorded.n)
    own = [drafts[0].run for drafts in recorded.drafts]
    if accepted := _by_logprob(own, [drafts[0].logprob for drafts in recorded.drafts], known):
        criteria["log-probability"] = accepted
    passed = [drafts[0].tests for drafts in recorded.drafts]
    if any(passed):
        scores = np.array([share or 0.0 for share in passed])
        criteria["shown tests"] = Accepted(SHOWN_TESTS, scores, nothing, known)
    return criteria


def _roles(recorded: Recorded) -> dict[str, str]:
    return {"large": recorded.name("mentor"), "small": recorded.name("intern")}


def _kept(
    recorded: Recorded, name: str, accepted: Accepted, otherwise: list[Run], method: str, **more: Any
) -> Iterator[Strategy]:
    """The bare question's draft where it is accepted, else other runs, as an aggregation with these options."""
    own, params = [drafts[0].run for drafts in recorded.drafts], {**_roles(recorded), **more}
    configured = partial(_configured, method, params | {"accept": accepted.criterion})
    return _escalation(recorded, name, accepted, own, otherwise, configured)


def _with_lost(
    recorded: Recorded, name: str, accepted: Accepted, kind: str, roles: Changes
) -> Iterator[Strategy]:
    """A cascade that gives the draft unjudged where the intern's reading of the question is above a limit;
    nothing where the intern cannot read a prompt.
    """
    drafts = [answers[0] for answers in recorded.drafts]
    features = [draft.reading for draft in drafts if draft.reading is not None]
    if len(features) < len(drafts):
        return
    table, own = np.array(features), [draft.run for draft in drafts]
    mentor = [row.runs["mentor"] for row in recorded.collected.rows]
    reading = np.array([recorded.reading_cost(draft) for draft in drafts])
    parts, settings = list[Strategy](), list[tuple[str, Changes]]()
    for limit in limits_of(table[accepted.known, RULES[kind].column]):
        options = {**roles, "accept": accepted.criterion, "lost": f"{kind}:{limit:.6g}"}
        read = RULES[kind](limit).probabilities(table, 0, 0)
        configured = partial(_configured, "cascade", options)
        for part in _escalation(
            recorded, name, accepted, own, mentor, configured, reading=reading, lost=read < SUFFICES
        ):
            parts.append(replace(part, scores=np.tile(read[:, None], len(part.settings))))
            settings += [(f"{title}, {kind} up to {limit:.3g}", changes) for title, changes in part.settings]
    if parts:
        right, cost, scores = (np.hstack([getattr(part, name) for part in parts]) for name in TABLES)
        yield Strategy(name, tuple(settings), right, cost, scores=scores)


def _configured(method: str, options: Changes, threshold: float) -> Changes:
    return with_method(method, **options, threshold=threshold)


def thinking(recorded: Recorded, known: slice) -> Iterator[Strategy]:
    """The mentor's answer without thinking is kept where its log-probability suffices; else it thinks."""
    rows = recorded.collected.rows
    short, mentor = ([row.runs[name] for row in rows] for name in ("mentor_concise", "mentor"))
    accepted = _by_logprob(short, [run.logprob for run in short], known)
    if accepted and all(row.thinking_switch for row in rows):
        models = {"ensemble.models": [recorded.name("mentor")]}
        info = recorded.collected.info(
            "mentor"
        )  # what both prompts begin with is read once, but paid for twice
        read = [min(row.shared, row.runs["mentor"].mentor_read - 1) for row in rows]
        spared = 0.0 if recorded.prices else np.array([info.flops(0, tokens) for tokens in read])
        yield from _escalation(
            recorded,
            "mentor, thinking where it is unsure",
            accepted,
            short,
            mentor,
            lambda limit: models | with_method("think_on_failure", accept=LOGPROB, threshold=limit),
            spared,
        )


def warn_of_thinking(recorded: Recorded) -> None:
    """Say why `thinking` is left out, where the mentor can be asked both ways."""
    rows = recorded.collected.rows
    short = [row.runs["mentor_concise"] for row in rows]
    unknown = probabilities(short, [run.logprob for run in short]).count(None)
    if unknown and any(row.thinking_switch for row in rows):
        log.warning(
            "the mentor that thinks where it is unsure is left out: how probable its answers without thinking "
            "are is unknown for %d of %d questions",
            unknown,
            len(rows),
        )


def warn_of_drafts(recorded: Recorded) -> None:
    """Say why what goes by the log-probability of a draft is left out, where the intern gives logprobs."""
    own = [drafts[0].run for drafts in recorded.drafts]
    logprobs = [drafts[0].logprob for drafts in recorded.drafts]
    scored = len(recorded.collected.drafts)
    for ways, unknown in (
        ("cascade and plan by log-probability are", probabilities(own, logprobs).count(None)),
        ("Tandem with a draft is", recorded.n - scored if scored else 0),  # none are in older recordings
    ):
        if unknown:
            log.warning(
                "%s left out: how probable the intern's draft is is unknown for %d of %d questions",
                ways,
                unknown,
                recorded.n,
            )


def tandem_with_draft(recorded: Recorded, known: slice) -> Iterator[Strategy]:
    """Tandem with a draft, which is kept where its log-probability suffices; else the mentor answers, or the
    intern with an insight of a fixed length.
    """
    data = recorded.collected

    def spared(row: Row, level: str) -> float:
        """What an answer after a draft need not do again: reading the question, or all where there is no insight.

        In dollars, every prompt is paid for.
        """
        if row.runs[level].cut == 0:
            return recorded.cost(replace(row.runs[level], mentor_read=0, mentor_tokens=0))
        read = row.runs[LEVEL_0].intern_read - row.closing
        return 0.0 if recorded.prices else data.info("intern").flops(0, read)

    yield from draft_else_mentor(recorded, known)
    for level, tokens in data.levels.items():
        if level != LEVEL_0:
            less = np.array([spared(row, level) for row in data.rows])
            yield from _after_draft(recorded, known, f"{tokens} tokens", level, less, judge=f"fixed:{level}")


def draft_else_mentor(recorded: Recorded, known: slice) -> Iterator[Strategy]:
    """Tandem with a draft, which is kept where its log-probability suffices; else the mentor answers."""
    mentor = {"judge": f"fixed:{LEVEL_0}", "give_up": {LEVEL_0: 1.0}, "fallback": "mentor"}
    yield from _after_draft(recorded, known, "else mentor", "mentor", 0.0, **mentor)


def _after_draft(
    recorded: Recorded, known: slice, name: str, run: str, spared: Floats | float, **params: Any
) -> Iterator[Strategy]:
    """The draft in the words of the profile, else a run; nothing where no criterion was asked about it."""
    if not recorded.scored:
        return
    data = recorded.collected
    scores = np.array([draft.probability for draft in data.drafts])
    own, others = ([row.runs[each] for row in data.rows] for each in (LEVEL_0, run))
    accepted = Accepted(LOGPROB, scores, np.zeros(recorded.n), known)

    def configured(limit: float) -> Changes:
        return with_tandem(draft=LOGPROB, thresholds={LEVEL_0: limit}, **params)

    yield from _escalation(recorded, f"tandem with draft, {name}", accepted, own, others, configured, spared)


def probabilities(runs: Sequence[Run], logprobs: Sequence[float | None]) -> list[float | None]:
    """What the criterion `logprob` says of answers with these mean log-probabilities: 0 of an empty one, None
    where it is unknown.
    """
    return [
        geometric_mean([logprob]) if logprob is not None else None if run.text else 0.0
        for run, logprob in zip(runs, logprobs, strict=True)
    ]


def _by_logprob(runs: Sequence[Run], logprobs: Sequence[float | None], known: slice) -> Accepted | None:
    """The criterion `logprob` over answers; None where it is unknown of one."""
    found = probabilities(runs, logprobs)
    scores = [score for score in found if score is not None]
    complete = len(scores) == len(found)
    return Accepted(LOGPROB, np.array(scores), np.zeros(len(scores)), known) if complete else None


def _agree(draft: InternAnswer, other: InternAnswer) -> bool:
    return draft.answer is not None and other.answer is not None and same_answers(draft.answer, other.answer)


@dataclass(frozen=True)
class Accepted:
    """A criterion by its name in `accept`, its score of every draft, and its cost, each (n,).

    Attributes:
        known: the questions whose scores give the thresholds.
        shares: the quantiles of these scores that are tried.
    """

    criterion: str
    scores: Floats
    cost: Floats
    known: slice
    shares: Floats = field(default_factory=SHARES.copy)


def _escalation(
    recorded: Recorded,
    name: str,
    accepted: Accepted,
    own: list[Run],
    otherwise: list[Run],
    configured: Callable[[float], Changes],
    spared: Floats | float = 0.0,
    reading: Floats | float = 0.0,
    lost: NDArray[np.bool_] | None = None,
) -> Iterator[Strategy]:
    """Drafts that a criterion accepts, else other runs; a draft that was cut off is not judged, and never
    kept.  Nothing where no threshold tells one draft from another.

    Args:
        own: the drafts.
        configured: the changes for a threshold.
        spared: what the other run costs less after a draft, (n,).
        reading: what reading the question first costs more, (n,).
        lost: whether the draft is given unjudged, (n,).
    """
    complete = np.array([[run.finish not in (None, "length")] for run in own])
    known = accepted.scores[accepted.known][complete[accepted.known, 0]]
    limits = thresholds_of(known, accepted.shares)
    if not limits.size:
        return
    kept = complete & (accepted.scores[:, None] >= limits)
    judged = complete[:, 0]
    if lost is not None:
        kept, judged = kept | lost[:, None], judged & ~lost
    right, theirs = (np.array([[run.correct] for run in runs], float) for runs in (own, otherwise))
    cost, price = (np.array([recorded.cost(run) for run in runs]) for runs in (own, otherwise))
    before = cost + reading + np.where(judged, accepted.cost, 0.0)
    whole = before[:, None] + np.where(kept, 0.0, (price - spared)[:, None])
    settings = tuple((f"{accepted.criterion} from {limit:.3f}", configured(float(limit))) for limit in limits)
    scores = np.where(complete, accepted.scores[:, None], np.zeros(len(limits)))
    yield Strategy(name, settings, np.where(kept, right, theirs), whole, scores=scores)
