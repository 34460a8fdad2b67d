"""`hint`: the large model begins its own answer, and the small one answers with that beginning as a hint.

Dong et al., "Pay for Hints, Not Answers: LLM Shepherding for Cost-Efficient Inference", arXiv 2601.22132:
10 to 30 % of the large model's answer help the small one; who needs a hint is decided before (proactive:
`accept: never`) or after the small model's own attempt (reactive). Ours: the length of an answer that is
not written is unknown, so `share` is of the length of the small model's draft, in place of the paper's
trained predictor; and a large model that ends within the hint has answered. (The beginning as the start
of the answer itself: `switch`.)
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, Any, ClassVar

from annotated_types import Ge, Gt, Le

from ensemblehub.ensemble_methods.acceptance import NEVER, Trial
from ensemblehub.ensemble_methods.escalation import Escalation
from ensemblehub.ensemble_methods.templates import check_template, templated
from ensemblehub.errors import ConfigError
from ensemblehub.generators.base import Engine
from ensemblehub.schema import Event, Piece, Request
from ensemblehub.tandem.insights import Dialogue, Profile, profile_named

SHARE = 0.3
TEMPLATE = """{question}

The beginning of an expert's solution:
{hint}

Use it as far as it is right, and give the complete solution yourself."""


@dataclass(frozen=True)
class Hint(Escalation):
    """The small model's answer where it is accepted, else its second one with the start of the large one's.

    Requires at least 2 models, and of the small one what `accept` needs: `logprobs` for `logprob`,
    `entropy:X`, `perplexity:X` and a judge.

    Use when the small model is mostly right and can use a beginning: on built-in code 89.3 % at 0.061 of
    the thinking mentor's cost (intern alone 85.5 %).  Not when it was never trained to go on from another's
    text: on built-in math 29.1 to 30.5 %, less than the intern alone (32.4 %).

    Attributes:
        large, small: engines by name; the largest and the smallest by default.
        accept, threshold, lost: when the first answer is given, as for `cascade`; `never` writes no draft.
        share: length of the hint, as a share of the draft's tokens; 0.3 by default.
        tokens: length of the hint in tokens, in place of `share`; required with `accept: never`.
        template: what the small model is asked, with {question} and {hint}.
        profile: the words of a profile (`tandem/insights.py`) in place of the template.
    """

    bounds_together: ClassVar[bool] = True

    share: Annotated[float, Gt(0), Le(1)] | None = None
    tokens: Annotated[int, Ge(1)] | None = None
    template: str = TEMPLATE
    profile: str | Profile | None = None

    async def escalated(self, trial: Trial, large: Engine) -> AsyncGenerator[Event, None]:
        request, ledger = trial.request, trial.ledger
        small = trial.draft.engine
        length = self.tokens or max(1, round(self.share_of_draft * len(trial.draft.tokens)))
        least = min(request.sampling.min_tokens, length)
        asked = replace(request, sampling=replace(request.sampling, max_tokens=length, min_tokens=least))
        asked = asked if length < request.sampling.max_tokens else request
        hint = list[Piece]()
        async with aclosing(large.stream(asked, ledger.meter("insight"))) as pieces:
            async for piece in pieces:
                hint.append(piece)
        if hint[-1].finish == "stop" or asked is request:
            for piece in hint:
                yield replace(piece, purpose="answer")
            return
        for piece in hint:
            yield replace(piece, finish=None)
        text = "".join(piece.text for piece in hint)
        final = self.hinted(request.spending(sum(len(piece.tokens) for piece in hint)), text)
        async with aclosing(small.stream(final, ledger.meter("answer"))) as answer:
            async for piece in answer:
                yield piece

    def check_context(self, request: Request, engines: Sequence[Engine]) -> None:
        super().check_context(request, engines)
        _, small = self.pair(engines)
        small.fits(small.count(self.hinted(request, "")), (self.tokens or 1) + request.sampling.required)

    def hinted(self, request: Request, hint: str) -> Request:
        """The small model's request with a hint."""
        if self.words:
            return Dialogue(request, self.words).intern_request(self.words.shown(hint))
        return templated(request, self.template, hint=hint)

    @cached_property
    def words(self) -> Profile | None:
        """The configured profile, if there is one."""
        return profile_named(self.profile, "hint") if self.profile is not None else None

    @property
    def share_of_draft(self) -> float:
        """`share`, or its default."""
        return SHARE if self.share is None else self.share

    def deciding(self) -> dict[str, Any]:
        found = super().deciding()
        return found | {"settings": found["settings"] | {"share": self.share_of_draft}}

    def check(self, engines: Sequence[Engine]) -> None:
        super().check(engines)
        if self.share is not None and self.tokens is not None:
            raise ConfigError("hint: `tokens` takes the place of `share`; set one of them")
        if self.accept == NEVER and self.tokens is None:
            raise ConfigError("hint: `accept: never` writes no draft to take a share of; set `tokens`")
        if self.words and self.template != TEMPLATE:
            raise ConfigError("hint: give a profile or a template, not both")
        check_template(self.template, ["question", "hint"], "hint")
