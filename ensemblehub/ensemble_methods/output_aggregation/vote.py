"""`vote`: every engine answers, and the answer that most of them agree on is given.

With several samples of one model this is self-consistency (Wang et al., "Self-Consistency Improves Chain
of Thought Reasoning in Language Models", ICLR 2023); with a `window`, Early-Stopping Self-Consistency (Li
et al., "Escape Sky-high Cost", ICLR 2024), which stops where a window agrees; with `decided`, adaptive
self-consistency (Aggarwal et al., "Let's Sample Step by Step", EMNLP 2023), whose votes count as much as they are
reliable (ReASC: Kim et al., arXiv 2601.02970).  Ours: it also stops once no candidate left can change the answer,
`stop_early` does so for several models at a time, `accept` bars candidates that fail a criterion, and `decided`
takes the geometric mean probability of a candidate's tokens for its reliability; ReASC calibrates another
measure, and accepts a single sample by a threshold of its own, as `cascade` does.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import lru_cache
from textwrap import shorten
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge, Gt, Le, Lt

from ensemblehub.answers.equality import equal_answers, final_answer
from ensemblehub.cost import UsageLedger
from ensemblehub.ensemble_methods.acceptance import AcceptedAnswers, Trial
from ensemblehub.ensemble_methods.candidates import Candidate, arriving, drafts
from ensemblehub.ensemble_methods.roles import by_name, require
from ensemblehub.errors import ConfigError
from ensemblehub.generators.base import Engine
from ensemblehub.schema import Choice, Event, Request

Same = Callable[[str, str], bool]
Rank = tuple[int, float, int]


@dataclass(frozen=True)
class Party:
    """Candidates that gave equal answers.

    Attributes:
        answer: as its first member wrote it.
        members: places of its candidates in the order of the engines.
        weight: sum of its members' weights.
    """

    answer: str
    members: tuple[int, ...]
    weight: float

    @property
    def rank(self) -> Rank:
        """Sorts parties: most votes, then the larger weight, then the earliest first member."""
        return len(self.members), self.weight, -self.members[0]


@dataclass(frozen=True)
class Vote(AcceptedAnswers):
    """The answer that most candidates agree on, in the words of the first of them by order of engines.

    All candidates are written at the same time.  Every readable answer is one vote, and answers are compared
    in the order of the engines, not of arrival.  A tie goes to the larger sum of weights, then to the party
    of the earliest engine.  A candidate without a readable answer does not vote; where none has one, the
    reply of the first that may vote is given.  Programs have none: with `extract: text` equal ones agree.
    The usage of candidates outside the winning party is recorded as discarded.

    Requires at least 2 models where `samples` is 1, and of every model what `accept` needs, where it is
    set.

    Use when each candidate is more often right than wrong and final answers can be compared: 87.0 % of 300
    on built-in math with 8 candidates, at 6.2 times the compute of the mentor (88.0 %).  Not when the
    voters are mostly wrong: four interns have 30.4 %, one has 32.4 %.

    Attributes:
        samples: candidates per engine; one at temperature 0, where all are the same.
        weights: by engine name, to break ties; 1 for engines that are not named.
        extract: how an answer is read from a reply: `math` takes the last boxed expression or what follows
            "the answer is", `last_line` the last line, `regex` the last match of `pattern`, and `text` the
            whole reply.  The first three are compared as mathematics (1/2 equals 0.5), `text` word for word.
        pattern: regular expression for `extract: regex`; its first group is the answer, or the whole match.
        stop_early: stop the engines still writing once they can no longer change the answer.  The words given
            are the earliest engine's, so one that comes before the winner in order is always waited for.
        window: candidates written at a time, in order; no more are written once all of a window give one
            answer, or the others can no longer change it.  None: all at once.
        decided: write one candidate after the other (or `window` at a time), until the leading answer beats the
            second with this probability under a Beta posterior, each vote counted by the geometric mean
            probability of its tokens.  The answer stays that of most votes; where another one has more of
            that sum, drawing goes on.
        accept: a criterion (see `acceptance_named`; tests, say) by which a candidate may vote, unless it was
            cut off at `max_tokens`; where none passes all of them vote.
        threshold: the probability from which a candidate may vote; by default the criterion's own.
    """

    weights: Mapping[str, Annotated[float, Ge(0), Lt(math.inf)]] = field(default_factory=dict)
    extract: Literal["math", "last_line", "regex", "text"] = "math"
    pattern: str = ""
    stop_early: bool = False
    window: Annotated[int, Ge(1)] | None = None
    decided: Annotated[float, Gt(0.5), Lt(1)] | None = None
    threshold: Annotated[float, Ge(0), Le(1)] | None = None

    async def run(
        self, request: Request, engines: Sequence[Engine], ledger: UsageLedger
    ) -> AsyncGenerator[Event, None]:
        candidates = drafts(request, engines, self.samples)
        weights = [self.weights.get(candidate.engine.name, 1.0) for candidate in candidates]
        same = lru_cache(maxsize=None)(self.same)
        parties, waiting = list[Party](), set(candidates)
        barred: set[Candidate] = set()
        width = self.window or (1 if self.decided else len(candidates))
        async with aclosing(in_windows(candidates, width, ledger)) as finished:
            async for candidate, window in finished:
                waiting.remove(candidate)
                if not await self.may_vote(Trial(request, candidate, engines, ledger)):
                    barred.add(candidate)
                if not window and not self.stop_early:
                    continue
                silent = waiting if barred == set(candidates) else waiting | barred
                answers = [None if other in silent else self.read(other.reply) for other in candidates]
                # in a thread, because comparing expressions can take long
                parties = await asyncio.to_thread(partied, answers, weights, same)
                left = [place for place, other in enumerate(candidates) if other in waiting]
                if settled(parties, weights, left) or agreed(parties, window):
                    break
                if self.decided and lead(parties, candidates) >= self.decided:
                    break
        admitted = [place for place, other in enumerate(candidates) if other not in barred] or [0]
        winner = parties[0].members if parties else (admitted[0],)
        for place, candidate in enumerate(candidates):
            if place not in winner:
                candidate.discard(ledger)
        yield verdict(candidates, parties, winner, len(waiting), len(barred) % len(candidates))
        yield candidates[winner[0]].answer

    async def may_vote(self, trial: Trial) -> bool:
        """Whether a candidate passes the configured criterion."""
        criterion = self.criterion
        if criterion is None:
            return True
        enough = criterion.threshold if self.threshold is None else self.threshold
        return trial.draft.whole and await criterion.probability(trial) >= enough

    def read(self, reply: str) -> str | None:
        """The answer in a reply; None where there is none to be read."""
        if self.extract == "math":
            return final_answer(reply)
        if self.extract == "regex":
            found = list(re.finditer(self.pattern, reply))
            return (
                ((found[-1][1] if found[-1].re.groups else found[-1][0]) or "").strip() or None
                if found
                else None
            )
        return (reply.rpartition("\n")[2] if self.extract == "last_line" else " ".join(reply.split())) or None

    def same(self, left: str, right: str) -> bool:
        """Whether two answers are equal."""
        return left == right if self.extract == "text" else equal_answers(left, right)

    def check(self, engines: Sequence[Engine]) -> None:
        super().check(engines)
        if self.decided:
            for engine in engines:
                require(engine, {"logprobs"}, "vote (decided)")
        if self.threshold is not None and self.criterion is None:
            raise ConfigError("vote: `threshold` needs `accept`, whose probability it is compared with")
        for name in self.weights:
            by_name(engines, name, "vote: weights")
        if (self.extract == "regex") != bool(self.pattern):
            raise ConfigError("vote: `extract: regex` and `pattern` go together")
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ConfigError(f"vote: pattern {self.pattern!r}: {error}") from error


def partied(answers: Sequence[str | None], weights: Sequence[float], same: Same) -> list[Party]:
    """Candidates by equal answers, the winning party first; each answer is compared with its party's first.

    Args:
        answers: in the order of the engines; None does not vote.
    """
    parties: list[list[int]] = []
    for place, answer in enumerate(answers):
        if answer is None:
            continue
        party = next((party for party in parties if same(answers[party[0]] or "", answer)), None)
        if party is None:
            parties.append([place])
        else:
            party.append(place)
    found = [
        Party(answers[party[0]] or "", tuple(party), math.fsum(weights[place] for place in party))
        for party in parties
    ]
    return sorted(found, key=lambda party: party.rank, reverse=True)


def settled(parties: Sequence[Party], weights: Sequence[float], waiting: Sequence[int]) -> bool:
    """Return whether the `waiting` candidates can no longer change the answer or its text."""
    if not parties:
        return not waiting
    leader, *rivals = parties
    if waiting and waiting[0] < leader.members[0]:
        return False  # it may agree, and then the words are its own
    more = math.fsum(weights[place] for place in waiting)
    best = [(len(rival.members) + len(waiting), rival.weight + more, -rival.members[0]) for rival in rivals]
    best += [(len(waiting), more, -waiting[0])] if waiting else []
    return all(leader.rank > rank for rank in best)


def agreed(parties: Sequence[Party], window: Sequence[int]) -> bool:
    """Return whether all candidates of a window, several of them, give the answer that leads."""
    return len(window) > 1 and bool(parties) and set(window) <= set(parties[0].members)


def lead(parties: Sequence[Party], candidates: Sequence[Candidate]) -> float:
    """The probability that the leading answer is the more frequent one of itself and the best other.

    P(p > 1/2) for p from Beta(1 + a, 1 + b), where a and b are the sums of the geometric mean probabilities of
    the candidates of both; one that is unknown counts nothing.
    """
    known = [candidate.logprob for candidate in candidates]
    votes = [0.0 if logprob is None else math.exp(logprob) for logprob in known]
    leading, *others = [math.fsum(votes[place] for place in party.members) for party in parties] or [0.0]
    share = np.linspace(0, 1, 2001)[1:-1]
    density = share**leading * (1 - share) ** max(others, default=0.0)
    return float(density[share > 0.5].sum() / density.sum())


async def in_windows(
    candidates: Sequence[Candidate], width: int, ledger: UsageLedger
) -> AsyncGenerator[tuple[Candidate, Sequence[int]], None]:
    """Write `width` candidates at a time, and yield each when it is complete.

    With the last of a window come the places of all of it, with the others none.
    """
    for start in range(0, len(candidates), width):
        places = range(start, min(start + width, len(candidates)))
        left = len(places)
        async with aclosing(arriving([candidates[place] for place in places], ledger)) as finished:
            async for candidate in finished:
                left -= 1
                yield candidate, () if left else places


def verdict(
    candidates: Sequence[Candidate],
    parties: Sequence[Party],
    winner: Sequence[int],
    stopped: int,
    barred: int = 0,
) -> Choice:
    """The choice and its reason in words.

    Args:
        stopped, barred: numbers of candidates that were not finished, and that may not vote.
    """
    votes = {place: len(party.members) for party in parties for place in party.members}
    scores = [(candidate.name, float(votes.get(place, 0))) for place, candidate in enumerate(candidates)]
    silent = len(candidates) - len(votes) - stopped - barred
    notes = [
        reason(parties, candidates)
        if parties
        else f"no reply has a readable answer; {candidates[winner[0]].name}'s is given"
    ]
    notes += [f"{silent} without a readable answer"] if silent and parties else []
    notes += [f"{barred} not accepted"] if barred else []
    notes += [f"{stopped} stopped early"] if stopped else []
    return Choice(
        "answer", tuple(candidates[place].name for place in winner), tuple(scores), "; ".join(notes)
    )


def reason(parties: Sequence[Party], candidates: Sequence[Candidate]) -> str:
    """Describe the groups of equal answers, and how a tie was broken."""
    leader, *rivals = parties
    votes = len(leader.members)
    said = f"{votes} of {len(candidates)} {'agree on' if votes > 1 else 'says'} {_short(leader.answer)}"
    equal = [rival for rival in rivals if len(rival.members) == votes]
    if not equal:
        return said
    said += f", as many as {' and '.join(_short(rival.answer) for rival in equal)}"
    if all(rival.weight < leader.weight for rival in equal):
        most = max(rival.weight for rival in equal)
        return f"{said}; the larger weight decides, {leader.weight:g} against {most:g}"
    return f"{said}; {candidates[leader.members[0]].name} comes first in order"


def _short(answer: str) -> str:
    return shorten(answer, 60, placeholder="…")
