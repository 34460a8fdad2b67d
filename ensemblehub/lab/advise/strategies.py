"""Strategies, replayed on recorded questions: what it would have answered right, at what cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemblehub.answers.equality import equal_answers
from ensemblehub.ensemble_methods.candidates import geometric_mean
from ensemblehub.ensemble_methods.output_aggregation.vote import agreed, partied, settled
from ensemblehub.lab.advise.record import LOGPROB, TEMPERATURE, InternAnswer, Recorded
from ensemblehub.lab.pipeline import cascade, replay
from ensemblehub.lab.pipeline.records import Row, Run
from ensemblehub.lab.tasks.shown_tests import ShownTests
from ensemblehub.tandem.artifact import resolve_judge
from ensemblehub.tandem.insights import LEVEL_0
from ensemblehub.tandem.judges import Judge

Floats = NDArray[np.float64]
Changes = Mapping[str, Any]
# of Tandem: its name, changes, thresholds (L,) and first probabilities (n,)
Setting = tuple[str, Changes, Floats, Floats]
SHARES = np.linspace(0, 1, 17)[1:-1]  # quantiles of a score that are tried
DRAFT_SHARES = SHARES[1::3]  # of a draft, each with all of a rule
NO_THINKING = "debug.enable_thinking"  # the key that turns thinking off
SUFFICES = 0.5  # the probability at a rule's limit
SHOWN_TESTS = f"{ShownTests.__module__}:{ShownTests.__qualname__}"
same_answers = lru_cache(maxsize=100_000)(equal_answers)


@dataclass(frozen=True)
class Strategy:
    """A strategy over n questions at T settings, from the most to the least expensive in no set order.

    Attributes:
        settings: what each setting changes in the configuration, and how the table calls it.
        correct, cost: right or wrong, and FLOPs or US dollars (`Recorded.unit`), each (n, T).
        single: one model alone.
        scores: the first probability that a criterion or a judge gives in a run, (n, T), where there is one.
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
        *_best_of(recorded),
        *_escalations(recorded, known),
        *_drafts(recorded, known),
        *_rules(recorded, known),
        *_trained(recorded, known),
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
    """Self-consistency of the intern: of all samples at once, and of some until the vote is decided."""
    if (most := _readable(recorded)) < 3:
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


def _best_of(recorded: Recorded) -> Iterator[Strategy]:
    """The intern's sample that passes the most of the tests that a question shows; of equal ones the first."""
    passed = [[draft.tests or 0.0 for draft in drafts[1:]] for drafts in recorded.drafts]
    most = min(map(len, passed))
    if most < 2 or not any(map(any, passed)):
        return
    ways = [
        (f"{samples} samples", {"samples": samples, "accept": SHOWN_TESTS}) for samples in range(2, most + 1)
    ]
    ends = [[(np.argmax(row[:count]), count) for count in range(2, most + 1)] for row in passed]
    yield _sampled(recorded, "best intern sample by shown tests", "best_of", ways, np.array(ends))


def _sampled(
    recorded: Recorded, name: str, method: str, ways: Sequence[tuple[str, Changes]], ends: NDArray[np.int64]
) -> Strategy:
    """A strategy over the intern's samples.

    Args:
        ways: how the table calls each setting, and its options.
        ends: the index of the sample that is given and the number of samples drawn, (n, T, 2).
    """
    shared = {"ensemble.models": [recorded.name("intern")], "ensemble.generation.temperature": TEMPERATURE}
    runs = [[draft.run for draft in drafts[1 : ends.max() + 1]] for drafts in recorded.drafts]
    right = np.array([[float(run.correct) for run in row] for row in runs])
    cost = np.cumsum([[recorded.cost(run) for run in row] for row in runs], axis=1)
    return Strategy(
        name,
        tuple((title, shared | _method(method, **params)) for title, params in ways),
        np.take_along_axis(right, ends[..., 0], axis=1),
        np.take_along_axis(cost, ends[..., 1] - 1, axis=1),
    )


def _readable(recorded: Recorded) -> int:
    """The number of samples per question; 0 where most of them have no answer that can be compared."""
    samples = [draft for drafts in recorded.drafts for draft in drafts[1:]]
    known = [draft.answer is not None for draft in samples]
    return min(len(drafts) for drafts in recorded.drafts) - 1 if known and np.mean(known) >= 0.5 else 0


def _escalations(recorded: Recorded, known: slice) -> Iterator[Strategy]:
    """The intern's draft is kept where a criterion accepts it; else the mentor answers, or plans."""
    rows, nothing = recorded.collected.rows, np.zeros(recorded.n)
    own, mentor = [drafts[0].run for drafts in recorded.drafts], [row.runs["mentor"] for row in rows]
    roles = {"large": recorded.name("mentor"), "small": recorded.name("intern")}

    def escalation(name: str, accepted: Accepted, otherwise: list[Run], method: str, **more: Any) -> Strategy:
        params = roles | {"accept": accepted.criterion} | more
        return _escalation(
            recorded, name, accepted, own, otherwise, lambda limit: _method(method, **params, threshold=limit)
        )

    criteria = {}
    logprobs = [drafts[0].logprob for drafts in recorded.drafts]
    if None not in logprobs:
        scores = np.array([geometric_mean([logprob or 0.0]) for logprob in logprobs])
        criteria["log-probability"] = Accepted(LOGPROB, scores, nothing, known)
    passed = [drafts[0].tests for drafts in recorded.drafts]
    if any(passed):
        scores = np.array([share or 0.0 for share in passed])
        criteria["shown tests"] = Accepted(SHOWN_TESTS, scores, nothing, known)
    for name, accepted in criteria.items():
        yield escalation(f"cascade by {name}", accepted, mentor, "cascade")
        for level, tokens in recorded.collected.levels.items():
            if level != LEVEL_0:
                planned, plan = [row.runs[level] for row in rows], {"plan_tokens": tokens, **recorded.words}
                title = f"plan on failure by {name}, {tokens} tokens"
                yield escalation(title, accepted, planned, "plan_on_failure", **plan)
    if samples := _readable(recorded):
        others = [drafts[1 : samples + 1] for drafts in recorded.drafts]
        shares = [
            np.mean([_agree(drafts[0], other) for other in drawn])
            for drafts, drawn in zip(recorded.drafts, others, strict=True)
        ]
        more = np.array([sum(recorded.cost(other.run) for other in drawn) for drawn in others])
        accepted = Accepted(f"agreement:{samples}", np.array(shares), more, known)
        yield escalation("cascade by agreement", accepted, mentor, "cascade")


def _drafts(recorded: Recorded, known: slice) -> Iterator[Strategy]:
    """Tandem with a draft, which is kept where its log-probability suffices; else the mentor answers, or the
    intern with an insight of a fixed length.
    """
    if not recorded.scored:
        return
    data, rows = recorded.collected, recorded.collected.rows
    scores, own = np.array([draft.probability for draft in data.drafts]), [row.runs[LEVEL_0] for row in rows]
    accepted = Accepted(LOGPROB, scores, np.zeros(recorded.n), known)

    def otherwise(name: str, run: str, spared: Floats | float, **params: Any) -> Strategy:
        def configured(limit: float) -> Changes:
            return _tandem(draft=LOGPROB, thresholds={LEVEL_0: limit}, **params)

        others = [row.runs[run] for row in rows]
        return _escalation(recorded, f"tandem with draft, {name}", accepted, own, others, configured, spared)

    def spared(row: Row, level: str) -> float:
        """What an answer after a draft need not do again: reading the question, or all where there is no insight.

        In dollars, every prompt is paid for.
        """
        if row.runs[level].cut == 0:
            return recorded.cost(replace(row.runs[level], mentor_read=0, mentor_tokens=0))
        read = row.runs[LEVEL_0].intern_read - row.closing
        return 0.0 if recorded.prices else data.info("intern").flops(0, read)

    mentor = {"judge": f"fixed:{LEVEL_0}", "give_up": {LEVEL_0: 1.0}, "fallback": "mentor"}
    yield otherwise("else mentor", "mentor", 0.0, **mentor)
    for level, tokens in data.levels.items():
        if level != LEVEL_0:
            less = np.array([spared(row, level) for row in rows])
            yield otherwise(f"{tokens} tokens", level, less, judge=f"fixed:{level}")


def _agree(draft: InternAnswer, other: InternAnswer) -> bool:
    return draft.answer is not None and other.answer is not None and same_answers(draft.answer, other.answer)


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
    own: list[Run],
    otherwise: list[Run],
    configured: Callable[[float], Changes],
    spared: Floats | float = 0.0,
) -> Strategy:
    """Drafts that a criterion accepts, else other runs; a draft that was cut off is not judged, and never
    kept.

    Args:
        own: the drafts.
        configured: the changes for a threshold.
        spared: what the other run costs less after a draft, (n,).
    """
    limits = _thresholds(accepted.scores[accepted.known])
    complete = np.array([[run.finish != "length"] for run in own])
    kept = complete & (accepted.scores[:, None] >= limits)
    right, theirs = (np.array([[run.correct] for run in runs], float) for runs in (own, otherwise))
    cost, price = (np.array([recorded.cost(run) for run in runs]) for runs in (own, otherwise))
    before = cost + np.where(complete[:, 0], accepted.cost, 0.0)
    whole = before[:, None] + np.where(kept, 0.0, (price - spared)[:, None])
    settings = tuple((f"{accepted.criterion} from {limit:.3f}", configured(float(limit))) for limit in limits)
    judged = np.where(complete, accepted.scores[:, None], np.zeros(len(limits)))
    return Strategy(name, settings, np.where(kept, right, theirs), whole, scores=judged)


def _thresholds(scores: Floats, shares: Floats = SHARES) -> Floats:
    """Quantiles as they are configured: six digits, and not above the question that one comes from."""
    found = np.quantile(scores, shares, method="higher")
    rounded = [(score, float(f"{score:.6g}")) for score in found]
    return np.unique([near if near == score else float(f"{0.99999 * score:.6g}") for score, near in rounded])


def _rules(recorded: Recorded, known: slice) -> Iterator[Strategy]:
    """By the intern's mean entropy or perplexity, the bare question judged first: Tandem, and a router that
    gives the question to one of the models, and Tandem after a draft; nothing where the intern cannot read a
    prompt.
    """
    if not recorded.collected.features.size:
        return
    levels = list(recorded.collected.levels)
    for kind in ("entropy", "perplexity"):
        yield from _ruled(recorded, f"tandem by {kind}", kind, known, levels, start_with_intern=True)
        router = {"start_with_intern": True, "give_up": {LEVEL_0: SUFFICES}, "fallback": "mentor"}
        yield from _ruled(recorded, f"router by {kind}", kind, known, [LEVEL_0], **router)
        if recorded.scored:
            yield from _ruled(recorded, f"tandem with draft by {kind}", kind, known, levels, draft=LOGPROB)


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
    limits = np.quantile(1 / outcomes.probabilities[known][judged] - 1, SHARES)
    # as they are configured: six digits, and not below the question that a limit comes from
    limits = np.unique([float(f"{1.00001 * limit:.6g}") for limit in limits if limit > 0])
    # none of a draft that was cut off, whose probability is 0
    drafts = [limit for limit in _thresholds(first[known], DRAFT_SHARES) if limit] if drafted else [None]
    settings = list[Setting]()
    for draft in drafts:
        for limit in limits:
            title, changes = f"{kind} up to {limit:.3g}", _tandem(judge=f"{kind}:{limit:.6g}", **more)
            thresholds = np.full(len(levels), 1 / (1 + limit))
            if draft is None:
                scores = limit / (limit + 1 / first - 1)
            else:
                title, thresholds[0], scores = f"{LOGPROB} from {draft:.3f}, {title}", draft, first
                changes |= _tandem(thresholds={LEVEL_0: float(draft)})
            settings.append((title, changes, thresholds, scores))
    yield from _replayed(name, outcomes, settings)


def _trained(recorded: Recorded, known: slice) -> Iterator[Strategy]:
    """Tandem by the configured judge, with one threshold at all levels."""
    if recorded.judge is None or not recorded.collected.features.size:
        return
    folder, judge = recorded.judge
    levels = list(recorded.collected.levels)
    outcomes = _outcomes(recorded, judge, levels)
    limits = _thresholds(outcomes.probabilities[known][outcomes.visited[known]])
    settings = list[Setting]()
    for limit in limits:
        same = dict.fromkeys(levels, float(limit))
        never = dict.fromkeys(levels, 0.0)  # whatever was calibrated with the judge
        changes = _tandem(judge=folder, start_with_intern=True, thresholds=same, give_up=never)
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


def _method(name: str, **params: Any) -> dict[str, Any]:
    return {"ensemble.output_aggregation_method": name, "ensemble.output_aggregation_params": params}


def _tandem(**params: Any) -> dict[str, Any]:
    return {f"ensemble.output_aggregation_params.{key}": value for key, value in params.items()}
