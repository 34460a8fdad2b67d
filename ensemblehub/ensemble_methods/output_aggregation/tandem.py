"""`tandem`: a mentor writes insights until a judge finds that they suffice; the intern answers.

Fu et al., "Riding Together with Large and Small Language Models for Efficient Reasoning", Findings of
ACL 2026.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, ClassVar

from ensemblehub.cost import UsageLedger
from ensemblehub.ensemble_methods.acceptance import Acceptance, Trial
from ensemblehub.ensemble_methods.base import Checkpoint, Granularity
from ensemblehub.ensemble_methods.candidates import Candidate
from ensemblehub.ensemble_methods.output_aggregation.tandem_draft import Draft
from ensemblehub.ensemble_methods.output_aggregation.tandem_likelihood import GivenAnswer
from ensemblehub.ensemble_methods.output_aggregation.tandem_options import TandemOptions
from ensemblehub.errors import RequestError
from ensemblehub.generators.base import Engine
from ensemblehub.schema import Event, Request, Scored, Verdict
from ensemblehub.tandem.features import sequences
from ensemblehub.tandem.insights import LEVEL_0, Dialogue, Insight
from ensemblehub.tandem.judges import Reading

Answerer = Callable[[Dialogue, str], AsyncGenerator[Any, None]]  # the answer's stream after an insight
ALONE = Verdict(LEVEL_0, 0, 0.0, 0.0, True)  # the intern answers without an insight


@dataclass(frozen=True)
class Tandem(TandemOptions):
    """A mentor writes short insights; as soon as the judge finds them sufficient, the intern answers.

    `TandemOptions` documents the options.

    Requires a mentor and an intern; of the intern `score` where the judge reads (all but `fixed:LEVEL`),
    what `draft` needs, and `prefix` with `insight_mode: continuation`; of the mentor `prefix` where the
    profile has an `opening`.

    Use when the mentor writes at length and the intern can use a part of it: on built-in math 87.7 % at
    0.43 of the thinking mentor's cost (mentor 87.5 %).  Not when the mentor is brief: with Qwen2.5-Coder
    33.8 % on MBPP at 1.33 of its cost (51.0 %), and on built-in math the mentor without thinking has 88.7 %
    for less.
    """

    granularity: ClassVar[Granularity] = "response"
    bounds_together: ClassVar[bool] = True

    async def run(
        self,
        request: Request,
        engines: Sequence[Engine],
        ledger: UsageLedger,
        answer: Answerer | None = None,
    ) -> AsyncGenerator[Any, None]:
        """Answer `request`; `answer` replaces the intern's stream after the chosen insight."""
        mentor, intern = self.roles(engines)
        dialogue = Dialogue(request, self.words, self.insight_mode)
        budget = self.check_context(dialogue, mentor, intern)
        insight = Insight(dialogue, tolerant=self.on_mentor_error == "intern")
        draft = self.drafting(self.criterion, dialogue, intern, engines, ledger) if self.criterion else None
        judged = draft.judged if draft else self.judged
        texts, verdicts = {LEVEL_0: ""}, list[Verdict]()
        asked = self.mentor_request(dialogue, mentor, budget)
        async with aclosing(mentor.stream(asked, ledger.meter("insight"))) as writing:
            for checkpoint in self.checkpoints if budget else ():
                while piece := await insight.read(writing, min(checkpoint.mentor_tokens, budget)):
                    yield piece
                if insight.failed or (verdicts and verdicts[-1].mentor_tokens == insight.tokens):
                    break  # the mentor failed, or had already ended at the checkpoint before
                verdict = await judged(checkpoint, insight, intern, ledger)
                yield verdict
                verdicts.append(verdict)
                texts[checkpoint.level] = insight.shown
                if verdict.sufficient or self.gives_up(verdict):
                    break
        chosen = self.choose(verdicts) if verdicts and not insight.failed else ALONE
        dialogue = dialogue.spending(insight.tokens)
        if chosen is None:
            answering = self._mentor_answer(mentor, dialogue, draft, ledger)
        else:
            answer = answer or (draft.answer if draft else self._intern_answer(intern, ledger))
            answering = answer(dialogue, texts[chosen.level])
        async with aclosing(answering) as pieces:
            async for piece in pieces:
                yield piece

    def _mentor_answer(
        self, mentor: Engine, dialogue: Dialogue, draft: Draft | None, ledger: UsageLedger
    ) -> AsyncGenerator[Any, None]:
        """The mentor's own answer, in place of the intern's draft."""
        if draft:
            draft.trial.draft.discard(ledger)
        return mentor.stream(dialogue.request, ledger.meter("answer"))

    def drafting(
        self,
        criterion: Acceptance,
        dialogue: Dialogue,
        intern: Engine,
        engines: Sequence[Engine],
        ledger: UsageLedger,
    ) -> Draft:
        """The intern's first answer, not written yet."""
        asked = dialogue.intern_request()
        candidate = Candidate(intern, asked, intern.name)
        threshold = self.level_thresholds[LEVEL_0]
        trial = Trial(dialogue.request, candidate, engines, ledger)
        return Draft(trial, criterion, threshold, self.confirm, self.continue_draft, self.judged)

    def gives_up(self, verdict: Verdict) -> bool:
        """Whether the mentor is stopped: the probability is below `give_up` at this level."""
        return verdict.probability < self.give_up_limits[verdict.level]

    def _intern_answer(self, intern: Engine, ledger: UsageLedger) -> Answerer:
        """How the intern answers after an insight."""
        meter = ledger.meter("answer")
        return lambda dialogue, insight: intern.stream(dialogue.intern_request(insight), meter)

    async def judged(
        self,
        checkpoint: Checkpoint,
        insight: Insight,
        intern: Engine,
        ledger: UsageLedger,
        scored: Scored | None = None,
    ) -> Verdict:
        """Let the intern read the question and the insight so far, and judge whether they suffice.

        Args:
            scored: what the intern has already read, beginning with both.
        """
        judge, reading = self.artifact.judge, Reading(self.index[checkpoint.level], insight.tokens)
        if judge.reads:
            asked = insight.dialogue.intern_request(insight.shown)
            scored = scored or await intern.score(asked, ledger.meter("judge"))
            tokens = insight.dialogue.judged_tokens(scored, self.artifact.scope)
            reading = Reading(reading.level, reading.mentor_tokens, *sequences(tokens))
        probability = judge.measured(reading, ledger)
        threshold = checkpoint.threshold
        enough = probability >= threshold
        return Verdict(checkpoint.level, insight.tokens, probability, threshold, enough, judge.criterion)

    def choose(self, verdicts: Sequence[Verdict]) -> Verdict | None:
        """The checkpoint whose insight is used; None where the mentor answers itself."""
        if verdicts[-1].sufficient or self.fallback == "last":
            return verdicts[-1]
        if self.fallback == "mentor":
            return None
        insights = verdicts[1:] if self.draft else verdicts  # a draft's score is on a scale of its own
        return max(insights or verdicts, key=lambda verdict: verdict.probability)

    def chosen(self, verdicts: Sequence[Verdict]) -> str:
        """The level whose insight the answer came from; "mentor" where the mentor answered itself."""
        verdict = self.choose(verdicts)
        return verdict.level if verdict else "mentor"

    async def log_likelihood(
        self, request: Request, engines: Sequence[Engine], ledger: UsageLedger, context: int | None = None
    ) -> AsyncGenerator[Event | Scored, None]:
        """Return the intern's log-likelihood, with insights computed from the context only.

        The context is read as the question, and the tokens after it as the start of the intern's answer.
        """
        _, intern = self.roles(engines)
        given = GivenAnswer.of(request, intern, context)
        if self.fallback == "mentor" or self.insight_mode == "continuation" or self.draft:
            raise RequestError(
                "tandem gives log-likelihoods only where the intern answers with the insight in its prompt, "
                "without a draft"
            )

        def answer(dialogue: Dialogue, insight: str) -> AsyncGenerator[Event | Scored, None]:
            return given.read(dialogue.intern_request(insight), ledger)

        async with aclosing(self.run(given.question, engines, ledger, answer)) as events:
            async for event in events:
                yield event
