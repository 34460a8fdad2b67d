"""Shared by strategies in which a small model answers first, and a large one where that is not enough."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, Any, ClassVar

from annotated_types import Ge, Le

from ensemblehub.cost import UsageLedger
from ensemblehub.ensemble_methods import question
from ensemblehub.ensemble_methods.acceptance import NEVER, Acceptance, Trial, acceptance_named
from ensemblehub.ensemble_methods.base import Aggregation, Granularity, name_of
from ensemblehub.ensemble_methods.candidates import Candidate
from ensemblehub.ensemble_methods.roles import by_name, large_and_small, require
from ensemblehub.ensemble_methods.turns import refuse_ids
from ensemblehub.errors import ConfigError, RequestError
from ensemblehub.generators.base import Engine
from ensemblehub.schema import Event, Request, Verdict
from ensemblehub.tandem.artifact import RULES, resolve_judge
from ensemblehub.tandem.features import sequences
from ensemblehub.tandem.insights import DRAFT, LEVEL_0, QUESTION
from ensemblehub.tandem.judges import SUFFICES, Judge, Reading


@dataclass(frozen=True)
class LargeAndSmall(Aggregation):
    """An aggregation of two engines.

    Attributes:
        large, small: engines by name; the largest and the smallest by default.
    """

    min_engines: ClassVar[int] = 2

    large: str | None = None
    small: str | None = None

    def pair(self, engines: Sequence[Engine]) -> tuple[Engine, Engine]:
        """Return the large and the small engine; see `large_and_small`."""
        return large_and_small(engines, self.large, self.small, name_of(self))

    def roles(self, engines: Sequence[Engine]) -> tuple[Engine, ...]:
        named = [(self.large, "large"), (self.small, "small")]
        return tuple(by_name(engines, name, f"{name_of(self)}: {role}") for name, role in named if name)

    def parts(self, engines: Sequence[Engine]) -> dict[str, Engine]:
        return dict(zip(("large", "small"), self.pair(engines), strict=True))


@dataclass(frozen=True)
class Escalation(LargeAndSmall):
    """The small model answers; its draft is given where `accept` finds it good enough.

    The draft is held back until it is judged.  One that was cut off at `max_tokens` is never accepted: a
    model that repeats itself is sure of every word.

    Attributes:
        accept: the criterion (see `acceptance_named`).
        threshold: the probability that suffices; by default the criterion's own.
        lost: `entropy:X` or `perplexity:X`: where the small model's mean over the question is above X, its
            draft is the answer and is not judged; what it cannot foresee, the large one is more often
            wrong on, too.  The question is read before the draft, which goes on from there.
        keeps_draft: whether `escalated` uses the rejected draft, and records as discarded what it does
            not use.
    """

    granularity: ClassVar[Granularity] = "response"
    keeps_draft: ClassVar[bool] = False

    accept: str = "logprob"
    threshold: Annotated[float, Ge(0), Le(1)] | None = None
    lost: str | None = None

    async def run(
        self, request: Request, engines: Sequence[Engine], ledger: UsageLedger
    ) -> AsyncGenerator[Event, None]:
        refuse_ids(request, engines)
        large, small = self.pair(engines)
        self.check_context(request, engines)
        draft = Candidate(small, self.first_request(request), small.name)
        trial = Trial(request, draft, engines, ledger)
        reading = await self.read_question(trial)
        if reading:
            yield reading
        if self.drafts:
            await trial.draft.write(ledger)
        kept = reading is not None and not reading.sufficient
        if not kept and self.accept != NEVER:
            verdict = await self.judged(trial)
            yield verdict
            kept = verdict.sufficient
        if kept:
            for piece in trial.draft.given:
                yield piece
            return
        if not self.keeps_draft:
            trial.draft.discard(ledger)
        async with aclosing(self.escalated(trial, large)) as events:
            async for event in events:
                yield event

    @property
    def drafts(self) -> bool:
        """Whether the small model answers first."""
        return self.accept != NEVER or self.keeps_draft

    async def read_question(self, trial: Trial) -> Verdict | None:
        """Whether the question is not lost to the small model; None without a rule or anything to read."""
        if self.rule is None:
            return None
        draft, ledger = trial.draft, trial.ledger
        try:
            tokens = await question.read(draft.engine, draft.request, ledger.meter("judge"))
        except RequestError:  # the question is empty
            return None
        probability = self.rule.measured(Reading(0, 0, *sequences(tokens)), ledger)
        return Verdict(QUESTION, 0, probability, SUFFICES, probability >= SUFFICES, self.rule.criterion)

    def first_request(self, request: Request) -> Request:
        """The request that the small model answers first."""
        return request

    async def escalated(self, trial: Trial, large: Engine) -> AsyncGenerator[Event, None]:
        """The answer where the draft was not accepted: here the large model's own."""
        async with aclosing(large.stream(trial.request, trial.ledger.meter("answer"))) as pieces:
            async for piece in pieces:
                yield piece

    def check_context(self, request: Request, engines: Sequence[Engine]) -> None:
        """Check that what may be asked fits all contexts, before any engine is called.

        Raises:
            ContextOverflowError: it does not.
        """
        large, small = self.pair(engines)
        for engine, asked in ((large, request), (small, self.first_request(request))):
            engine.fits(engine.count(asked), request.sampling.required)

    async def judged(self, trial: Trial) -> Verdict:
        """Judge a finished draft as an answer to its own request.

        A call of tools whose tokens are not known is never accepted.
        """
        trial = replace(trial, request=trial.draft.request)
        complete = trial.draft.whole
        if trial.draft.finish == "tool_calls":
            complete = any(token.logprob is not None for token in trial.draft.tokens)
        probability = await self.criterion.probability(trial) if complete else 0.0
        enough = complete and probability >= self.enough
        return Verdict(DRAFT, 0, probability, self.enough, enough, self.criterion.criterion)

    @cached_property
    def criterion(self) -> Acceptance:
        """The configured criterion."""
        return acceptance_named(self.accept, name_of(self))

    @cached_property
    def rule(self) -> Judge | None:
        """The rule by which a question is lost, if there is one."""
        if self.lost is None:
            return None
        if self.lost.partition(":")[0] not in RULES:
            raise ConfigError(f"{name_of(self)}: lost is entropy:X or perplexity:X, not {self.lost!r}")
        return resolve_judge(self.lost, [LEVEL_0]).judge

    @property
    def enough(self) -> float:
        """The probability that suffices."""
        return self.criterion.threshold if self.threshold is None else self.threshold

    def deciding(self) -> dict[str, Any]:
        return {**super().deciding(), "criterion": self.criterion.deciding}

    def check(self, engines: Sequence[Engine]) -> None:
        super().check(engines)
        _, small = self.pair(engines)
        self.criterion.check(small, engines, name_of(self))
        if self.accept == NEVER and self.threshold is not None:
            raise ConfigError(f"{name_of(self)}: `threshold` needs a criterion, and `accept: never` is none")
        if self.rule is not None:
            if not self.drafts:
                raise ConfigError(f"{name_of(self)}: `lost` needs a draft, and `accept: never` writes none")
            require(small, {"score"}, f"{name_of(self)} (lost)")
