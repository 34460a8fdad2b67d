"""`tandem` with `draft`: the intern answers alone first, and its own answer takes part in every decision.

Ours.  The bare question says little about whether the intern will be right; the answer it wrote, which costs
little, says more. A criterion judges the draft at level 0. With `confirm` or `continue_draft` the intern
reads question, insight and draft in one forward pass after each insight; the sufficiency judge sees of it
what it always sees, and the criterion sees the draft's tokens as the intern finds them now. `confirm` has
to be strict: a model finds what it wrote itself plausible, and a single wrong number hardly moves the
mean of a long draft. `give_up`, a second and lower threshold at every level, ends the insights of a question
that they will not help.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field, replace

from ensemblehub.cost import UsageLedger
from ensemblehub.ensemble_methods.acceptance import Acceptance, Trial
from ensemblehub.ensemble_methods.base import Checkpoint
from ensemblehub.ensemble_methods.repair import continued, kept_part, kept_whole, likely_length
from ensemblehub.generators.base import Engine
from ensemblehub.schema import Event, Piece, Request, Scored, ScoredToken, Token, Verdict
from ensemblehub.tandem.insights import LEVEL_0, Dialogue, Insight

Judging = Callable[[Checkpoint, Insight, Engine, UsageLedger, Scored | None], Awaitable[Verdict]]


@dataclass
class Draft:
    """The intern's first answer to one request.

    Attributes:
        trial: the draft, empty until level 0 is judged.
        criterion, threshold: when it is good enough.
        confirm: the criterion's probability from which a draft is kept after an insight; None: it is not
            asked.
        objection: after an insight that suffices, lines of the draft that are at least that probable to
            the intern stay (see `likely_length`); None: the answer is written anew.
        judged_insight: the judge of insights.
        readings: the draft's tokens as scored after an insight, by insight.
        confirmed: an insight confirmed it.
    """

    trial: Trial
    criterion: Acceptance
    threshold: float
    confirm: float | None
    objection: float | None
    judged_insight: Judging
    readings: dict[str, tuple[ScoredToken, ...]] = field(default_factory=dict)
    confirmed: bool = False

    async def judged(
        self, checkpoint: Checkpoint, insight: Insight, intern: Engine, ledger: UsageLedger
    ) -> Verdict:
        """Let the draft be written and judged at level 0; read it with the insight at the others."""
        draft, level = self.trial.draft, checkpoint.level
        if level == LEVEL_0:
            await draft.write(ledger)
            probability = await self.criterion.probability(self.trial) if draft.whole else 0.0
            enough = draft.whole and probability >= self.threshold
            return Verdict(level, 0, probability, self.threshold, enough, self.criterion.criterion)
        asked, scored = insight.dialogue.intern_request(insight.shown), None
        whole = asked.continued(draft.text)
        rereads = self.confirm is not None or self.objection is not None
        if rereads and draft.whole and _fits(intern, whole):
            scored = await intern.score(whole, ledger.meter("judge"))
            tokens = self.readings[insight.shown] = scored.after(asked.prompt, len(asked.prefix))
            if self.confirm is not None:
                probability = await self.criterion.probability(self._as_read(tokens))
                self.confirmed = probability >= self.confirm
                if self.confirmed:
                    score = self.criterion.criterion
                    return Verdict(level, insight.tokens, probability, self.confirm, True, score)
        return await self.judged_insight(checkpoint, insight, intern, ledger, scored)

    async def answer(self, dialogue: Dialogue, insight: str) -> AsyncGenerator[Event, None]:
        """The draft where it stands, else the intern's answer with an insight.

        Args:
            dialogue: its request has the tokens that the insight has left; what is kept is cut to them.
        """
        draft, ledger = self.trial.draft, self.trial.ledger
        asked = dialogue.intern_request(insight)
        most = asked.sampling.max_tokens
        if draft.finished and (self.confirmed or not insight):
            yield kept_whole(draft, most, ledger)
            return
        if self.objection is not None and (tokens := self.readings.get(insight)):
            stays = likely_length(asked, draft.text, tokens, self.objection)
            if stays is None:
                yield kept_whole(draft, most, ledger)
                return
            answering = continued(kept_part(draft, stays, most, ledger), asked, draft.engine, ledger)
        else:
            draft.discard(ledger)
            answering = draft.engine.stream(asked, ledger.meter("answer"))
        async with aclosing(answering) as pieces:
            async for piece in pieces:
                yield piece

    def _as_read(self, tokens: tuple[ScoredToken, ...]) -> Trial:
        """The trial with the draft's tokens as they were scored."""
        draft = self.trial.draft
        read = tuple(Token(token.text, token.id, token.logprob, token.entropy) for token in tokens)
        piece = Piece(draft.text, draft.engine.name, "answer", read, draft.answer.finish)
        return replace(self.trial, draft=replace(draft, pieces=[piece]))


def _fits(engine: Engine, request: Request) -> bool:
    """Whether the engine's context holds a request, as far as it is known."""
    read = engine.count(request)
    return read is None or not engine.info.context or read < engine.info.context
