"""`tandem`: a mentor writes insights until a judge finds that they suffice; the intern answers.

Fu et al., "Riding Together with Large and Small Language Models for Efficient Reasoning", Findings of
ACL 2026.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import ClassVar, Literal

from ensemblehub.cost import UsageLedger
from ensemblehub.ensemble_methods.base import Aggregation, Checkpoint, Granularity
from ensemblehub.ensemble_methods.raw_prompts import given, ids_of, tokenizer_of
from ensemblehub.ensemble_methods.roles import by_name, by_size, require
from ensemblehub.errors import ConfigError, EngineError, RequestError, did_you_mean
from ensemblehub.generators.base import Engine
from ensemblehub.schema import (
    Capability,
    Chat,
    Cost,
    Event,
    Message,
    Piece,
    Request,
    Scored,
    ScoredToken,
    Verdict,
)
from ensemblehub.tandem import features, insights, sufficiency
from ensemblehub.tandem.estimates import estimated_mentor_alone
from ensemblehub.tandem.insights import LEVEL_0
from ensemblehub.tandem.judges import Reading
from ensemblehub.tandem.sufficiency import Artifact

log = logging.getLogger(__name__)


@dataclass
class Insight:
    """The mentor's stream as far as it has been read."""

    tolerant: bool
    text: str = ""
    tokens: int = 0
    ended: bool = False
    failed: bool = False

    async def read(self, writing: AsyncGenerator[Piece, None], tokens: int) -> AsyncGenerator[Piece, None]:
        """Read on until `tokens` tokens are there or the mentor ends; a tolerated failure ends it too."""
        while self.tokens < tokens and not self.ended:
            try:
                piece = await anext(writing)
            except EngineError as error:
                if not self.tolerant:
                    raise
                log.warning("the mentor failed (%s); the intern answers alone", error)
                self.ended = self.failed = True
                return
            self.text += piece.text
            self.tokens += max(len(piece.tokens), bool(piece.text))
            self.ended = piece.finish is not None
            yield replace(piece, finish=None)


@dataclass(frozen=True)
class Judged:
    """An insight that was judged."""

    verdict: Verdict
    insight: str


ALONE = Judged(Verdict(LEVEL_0, 0, 0.0, 0.0, True), "")


@dataclass
class Guidance:
    """What came of the mentor's part.

    Attributes:
        chosen: the checkpoint that is used; None where the mentor is to answer itself.
        tokens: those of the insight that was delivered.
    """

    chosen: Judged | None = None
    tokens: int = 0


@dataclass(frozen=True)
class Tandem(Aggregation):
    """A mentor writes short insights; as soon as the judge finds them sufficient, the intern answers.

    Attributes:
        mentor, intern: engines by name; the largest and the smallest by default.
        levels: effort levels, as mentor tokens read before each checkpoint.
        effort: the highest level that is read, by name; all by default.  `none`: the intern answers alone.
        judge: folder of a trained classifier, `entropy:X` or `perplexity:X` (sufficient when the intern's mean
            over what it read is at most X), or `fixed:LEVEL`.
        thresholds: probability that suffices, by level; the judge's calibrated ones where a level is left out.
        start_with_intern: judge the bare question first, before any mentor token.
        fallback: who answers when no level suffices: the insight with the `best` probability (the paper's
            rule), the `last` one, or the `mentor` itself.
        insight_mode: show the insight in the intern's prompt, or as the start of its own answer.
        profile: the words the models are prompted with (`tandem/insights.py`).
        on_mentor_error: `raise`, or let the `intern` answer alone.
        strict: refuse a judge that was made for another pair instead of warning.
    """

    granularity: ClassVar[Granularity] = "response"

    mentor: str | None = None
    intern: str | None = None
    levels: Mapping[str, int] = field(default_factory=lambda: {"low": 100, "medium": 500, "high": 1000})
    effort: str | None = None
    judge: str = "entropy:1.0"
    thresholds: Mapping[str, float] | None = None
    start_with_intern: bool = False
    fallback: Literal["best", "last", "mentor"] = "best"
    insight_mode: insights.InsightMode = "prompt"
    profile: str = "instruct"
    on_mentor_error: Literal["raise", "intern"] = "raise"
    strict: bool = False

    async def run(
        self, request: Request, engines: Sequence[Engine], ledger: UsageLedger
    ) -> AsyncGenerator[Event, None]:
        mentor, intern = self.roles(engines)
        self.check_context(request, mentor, intern)
        guidance = Guidance()
        async with aclosing(self.guide(request, mentor, intern, ledger, guidance)) as events:
            async for event in events:
                yield event
        left = request.spending(guidance.tokens)
        async with aclosing(self.answer(left, mentor, intern, guidance.chosen, ledger)) as answer:
            async for piece in answer:
                yield piece

    async def guide(
        self, request: Request, mentor: Engine, intern: Engine, ledger: UsageLedger, guidance: Guidance
    ) -> AsyncGenerator[Event, None]:
        """The mentor's insights and the verdicts on them, up to the one that is used: `guidance.chosen`."""
        longest = self.longest(request)
        if not longest:
            guidance.chosen = ALONE
            return
        insight, judged = Insight(tolerant=self.on_mentor_error == "intern"), list[Judged]()
        ask, head = insights.mentor_request(request, self.words, longest), insights.head(self.words)
        async with aclosing(mentor.stream(ask, ledger.meter("insight"))) as writing:
            for level, tokens in self.budgets:
                before = insight.tokens
                async with aclosing(insight.read(writing, min(tokens, longest))) as pieces:
                    async for piece in pieces:
                        guidance.tokens = insight.tokens
                        yield replace(piece, text=head + piece.text)
                        head = ""
                if insight.failed or (judged and insight.tokens == before):
                    break  # the mentor failed, or had already ended at the checkpoint before
                judged.append(await self.judged(level, insight, request, intern, ledger))
                yield judged[-1].verdict
                if judged[-1].verdict.sufficient:
                    break
        guidance.chosen = ALONE if insight.failed else self.choose(judged)

    async def log_likelihood(
        self, request: Request, engines: Sequence[Engine], ledger: UsageLedger, context: int | None = None
    ) -> AsyncGenerator[Event | Scored, None]:
        """The log-likelihood is the intern's, given insights that come from the context alone.

        The context is read as the question, and the tokens after it as the start of the intern's answer.
        """
        mentor, intern = self.roles(engines)
        ids = ids_of(request.prompt, intern)
        if context is None or not 0 < context <= len(ids):
            raise RequestError(
                "the log-likelihood of tandem needs to know where the context ends, since the insights come from it "
                f"alone: set `ensemble.context_tokens` to a number from 1 to {len(ids)}, the tokens of the prompt"
            )
        if self.fallback == "mentor" or self.insight_mode == "continuation":
            raise RequestError(
                "tandem gives log-likelihoods only where the intern answers with the insight in its prompt"
            )
        tokenizer = tokenizer_of(intern)
        about, rest = Chat((Message("user", tokenizer.decode(ids[:context])),)), ids[context:]
        asked = replace(request, prompt=about)
        self.check_context(asked, mentor, intern)
        guidance = Guidance()
        async with aclosing(self.guide(asked, mentor, intern, ledger, guidance)) as events:
            async for event in events:
                yield event
        chosen = guidance.chosen or ALONE
        told = given(
            insights.intern_request(asked, self.words, chosen.insight, self.insight_mode), rest, intern
        )
        head = tuple(ScoredToken(tokenizer.decode([one]), one, None, None, 0, 0, 0) for one in ids[:context])
        if rest:
            scored = await intern.score(told, ledger.meter("score"))
            head += scored.tokens[-len(rest) :]
        yield Scored(head)
        if request.sampling.max_tokens:
            left = told.spending(guidance.tokens)
            async with aclosing(intern.stream(left, ledger.meter("answer"))) as answer:
                async for piece in answer:
                    yield piece

    def choose(self, judged: Sequence[Judged]) -> Judged | None:
        """The checkpoint whose insight is used; None where the mentor is to answer itself."""
        if judged[-1].verdict.sufficient or self.fallback == "last":
            return judged[-1]
        if self.fallback == "mentor":
            return None
        return max(judged, key=lambda checkpoint: checkpoint.verdict.probability)

    def answer(
        self, request: Request, mentor: Engine, intern: Engine, chosen: Judged | None, ledger: UsageLedger
    ) -> AsyncGenerator[Piece, None]:
        """The answer's stream: the intern's from the chosen insight, or the mentor's own."""
        if chosen is None:
            return mentor.stream(request, ledger.meter("answer"))
        ask = insights.intern_request(request, self.words, chosen.insight, self.insight_mode)
        return intern.stream(ask, ledger.meter("answer"))

    async def judged(
        self, level: str, insight: Insight, request: Request, intern: Engine, ledger: UsageLedger
    ) -> Judged:
        """Let the intern read the question and the insight so far, and judge whether they suffice."""
        text = insights.shown(insight.text, self.words)
        read: tuple[features.Vector, ...] = ()
        if self.verdicts.judge.reads:
            ask = insights.intern_request(request, self.words, text, self.insight_mode)
            scored = await intern.score(ask, ledger.meter("judge"))
            read = features.sequences(
                insights.read_tokens(scored, request, self.insight_mode, self.verdicts.scope)
            )
        started = time.perf_counter()
        probability = self.verdicts.judge.probability(Reading(self.index[level], insight.tokens, *read))
        seconds = time.perf_counter() - started
        ledger.add("judge", "judge", Cost(decode_flops=self.verdicts.judge.flops, seconds=seconds, calls=1))
        threshold = self.limits[level]
        return Judged(
            Verdict(level, insight.tokens, probability, threshold, probability >= threshold), text
        )

    def chosen(self, verdicts: Sequence[Verdict]) -> str:
        """The level whose insight the answer came from; "mentor" where the mentor answered itself."""
        chosen = self.choose([Judged(verdict, "") for verdict in verdicts])
        return chosen.verdict.level if chosen else "mentor"

    def check(self, engines: Sequence[Engine]) -> None:
        budgets = list(self.levels.values())
        if not budgets or budgets != sorted(set(budgets)) or budgets[0] < 1:
            raise ConfigError(
                f"tandem: levels must be rising token budgets, such as low: 100, not {dict(self.levels)}"
            )
        if self.effort is not None and self.effort not in self.index:
            raise ConfigError(f"tandem: effort: {did_you_mean(self.effort, self.index, 'level')}")
        for level in self.thresholds or {}:
            if level not in self.index:
                raise ConfigError(f"tandem: thresholds: {did_you_mean(level, self.index, 'level')}")
        mentor, intern = self.roles(engines)
        require(mentor, frozenset({"prefix"}) if self.words.opening else frozenset(), "tandem (mentor)")
        requires: set[Capability] = {"score"} if self.verdicts.judge.reads else set()
        require(
            intern,
            frozenset(requires | ({"prefix"} if self.insight_mode == "continuation" else set())),
            "tandem (intern)",
        )
        levels = {LEVEL_0: 0, **self.levels}
        for warning in self.verdicts.check(
            mentor.model, intern.model, self.words.fingerprint, self.strict, levels
        ):
            log.warning(warning)

    def estimated_alone(
        self, request: Request, engines: Sequence[Engine]
    ) -> tuple[float, float, float] | None:
        mentor, _ = self.roles(engines)
        read = mentor.count(request)
        return None if read is None else estimated_mentor_alone(self.verdicts.estimates, mentor.info, read)

    def reader(self, engines: Sequence[Engine]) -> Engine:
        return self.roles(engines)[1]

    def parts(self, engines: Sequence[Engine]) -> dict[str, Engine]:
        return dict(zip(("mentor", "intern"), self.roles(engines), strict=True))

    def roles(self, engines: Sequence[Engine]) -> tuple[Engine, Engine]:
        """Mentor and intern: by name, else the largest and the smallest of the engines without the other role.

        Raises:
            ConfigError: a role names no engine, one engine would play both, or a size that decides is unknown.
        """
        mentor = by_name(engines, self.mentor, "tandem: mentor") if self.mentor else None
        intern = by_name(engines, self.intern, "tandem: intern") if self.intern else None
        mentor = (
            mentor or by_size([one for one in engines if one is not intern] or engines, "tandem: mentor")[0]
        )
        intern = (
            intern or by_size([one for one in engines if one is not mentor] or engines, "tandem: intern")[-1]
        )
        if mentor is intern:
            raise ConfigError(f"tandem needs a mentor and an intern, but both would be {mentor.name!r}")
        return mentor, intern

    def check_context(self, request: Request, mentor: Engine, intern: Engine) -> None:
        """Refuse a request that some level could not hold, before anything is spent.

        Raises:
            ContextOverflowError: names the engine and the lengths.
        """
        insight, sampling = self.longest(request), request.sampling
        both = min(insight + sampling.required, sampling.max_completion_tokens or sys.maxsize)
        alone = insights.intern_request(request, self.words, "", self.insight_mode)
        asks = [(mentor, insights.mentor_request(request, self.words, insight), insight)] if insight else []
        for engine, ask, room in [*asks, (intern, alone, both)]:
            engine.fits(engine.count(ask), room)

    def longest(self, request: Request) -> int:
        """Tokens of the longest insight that is read; one of `max_completion_tokens` is left for the answer."""
        most = request.sampling.max_completion_tokens
        budget = self.budgets[-1][1] if self.budgets else 0
        return budget if most is None else min(budget, most - 1)

    @cached_property
    def words(self) -> insights.Profile:
        """The configured profile."""
        if self.profile not in insights.PROFILES:
            raise ConfigError(f"tandem: {did_you_mean(self.profile, insights.PROFILES, 'profile')}")
        return insights.PROFILES[self.profile]

    @cached_property
    def verdicts(self) -> Artifact:
        """The judge with its thresholds."""
        return sufficiency.resolve(self.judge, [LEVEL_0, *self.levels])

    @cached_property
    def index(self) -> dict[str, int]:
        """Index of each level, 0 for no insight."""
        return {level: index for index, level in enumerate([LEVEL_0, *self.levels])}

    @cached_property
    def limits(self) -> dict[str, float]:
        """The probability that suffices, by level."""
        given = {**(self.verdicts.thresholds or {}), **(self.thresholds or {})}
        return {level: given.get(level, 0.5) for level in self.index}

    @property
    def efforts(self) -> tuple[str, ...]:
        return tuple(self.index)

    def with_effort(self, effort: str) -> Tandem:
        return replace(self, effort=min(effort, self.effort or effort, key=lambda level: self.index[level]))

    @property
    def checkpoints(self) -> tuple[Checkpoint, ...]:
        return tuple(Checkpoint(level, tokens, self.limits[level]) for level, tokens in self.budgets)

    @cached_property
    def budgets(self) -> list[tuple[str, int]]:
        """The checkpoints in order: level and mentor tokens."""
        read = [*([(LEVEL_0, 0)] if self.start_with_intern else []), *self.levels.items()]
        highest = self.index[self.effort] if self.effort is not None else len(self.levels)
        return [(level, tokens) for level, tokens in read if self.index[level] <= highest]
