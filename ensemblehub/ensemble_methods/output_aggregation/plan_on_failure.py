"""`plan_on_failure`: the small model tries; where that fails, the large one plans and it writes again.

Yoon et al., "PaT: Planning-after-Trial for Efficient Test-Time Code Generation", ACL 2026 (arXiv 2605.07248).
Ours: failure is any criterion of `acceptance_named` (tests as in the paper, agreement, a judge, ...), the
plan is one text in Tandem's words instead of a recursive decomposition into functions, and the second
answer is final.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, ClassVar

from annotated_types import Ge

from ensemblehub.ensemble_methods.acceptance import Trial
from ensemblehub.ensemble_methods.escalation import Escalation
from ensemblehub.ensemble_methods.roles import require
from ensemblehub.ensemble_methods.templates import templated
from ensemblehub.errors import ConfigError
from ensemblehub.generators.base import Engine
from ensemblehub.schema import Event, Request
from ensemblehub.tandem.insights import Dialogue, Insight, Profile, profile_named

ATTEMPT = "{question}\n\nAn attempt at this that was not accepted:\n{draft}"


@dataclass(frozen=True)
class PlanOnFailure(Escalation):
    """The small model's first answer where it is accepted, else its second one with the large one's plan.

    Requires at least 2 models, of the small one what `accept` needs (`logprobs` for `logprob`, `entropy:X`,
    `perplexity:X` and a judge), and of the large one `prefix` where the profile has an `opening`.

    Use when the small model is mostly right and its log-probability shows where not: on built-in code 91.8
    % at 0.141 of the thinking mentor's cost (intern alone 85.5 %).  Not when most drafts fail: on built-in
    math 87.4 % cost more than an insight for every question (`tandem`, 87.7 %).

    Attributes:
        large, small: engines by name; the largest and the smallest by default.
        accept, threshold, lost: when the first answer is given, as for `cascade`.
        plan_tokens: length of the plan at most, in tokens.
        show_draft: whether the large model sees the attempt that failed.
        profile: the words the models are prompted with (`tandem/insights.py`).
    """

    bounds_together: ClassVar[bool] = True

    plan_tokens: Annotated[int, Ge(1)] = 500
    show_draft: bool = False
    profile: str | Profile = "instruct"

    async def escalated(self, trial: Trial, large: Engine) -> AsyncGenerator[Event, None]:
        request, ledger = trial.request, trial.ledger
        small = trial.draft.engine
        insight = Insight(Dialogue(request, self.words))
        budget = self.budget(request)
        if budget:
            seen = templated(request, ATTEMPT, draft=trial.draft.reply) if self.show_draft else request
            asked = Dialogue(seen, self.words).mentor_request(budget).seeded("plan")
            async with aclosing(large.stream(asked, ledger.meter("insight"))) as planning:
                while piece := await insight.read(planning, budget):
                    yield piece
        final = insight.dialogue.spending(insight.tokens).intern_request(insight.shown)
        async with aclosing(small.stream(final, ledger.meter("answer"))) as pieces:
            async for piece in pieces:
                yield piece

    def budget(self, request: Request) -> int:
        """Tokens of the plan; one of `max_completion_tokens` is left for the answer."""
        most = request.sampling.max_completion_tokens
        return self.plan_tokens if most is None else min(self.plan_tokens, most - 1)

    def check_context(self, request: Request, engines: Sequence[Engine]) -> None:
        large, small = self.pair(engines)
        dialogue, budget = Dialogue(request, self.words), self.budget(request)
        if budget:
            large.fits(large.count(dialogue.mentor_request(budget)), budget)
        small.fits(small.count(dialogue.intern_request()), budget + request.sampling.required)

    @cached_property
    def words(self) -> Profile:
        """The configured profile."""
        return profile_named(self.profile, "plan_on_failure")

    def check(self, engines: Sequence[Engine]) -> None:
        super().check(engines)
        if self.show_draft and not self.drafts:
            raise ConfigError("plan_on_failure: `show_draft` needs a draft, and `accept: never` writes none")
        require(self.pair(engines)[0], {"prefix"} if self.words.opening else set(), "plan_on_failure (large)")
