"""`progressive`: from the largest model to the smallest, by an outline, by length or by marks in the text."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge

from ensemblehub.cost import UsageLedger
from ensemblehub.ensemble_methods.base import name_of
from ensemblehub.ensemble_methods.roles import by_size, require
from ensemblehub.ensemble_methods.templates import check_template, templated
from ensemblehub.ensemble_methods.turns import EngineTurn, Segments, SoFar, refuse
from ensemblehub.errors import ConfigError
from ensemblehub.generators.base import Engine
from ensemblehub.schema import Capability, Event, Piece, Request
from ensemblehub.tandem import insights

OUTLINE = {
    "en": "Write a short outline of the solution of the following problem: the key steps and facts, "
    "in order, without the final answer.\n\nProblem:\n{question}\n\nOutline:",
    "zh": "请为下面的问题写一份简短的解题提纲：按顺序列出关键步骤和要用到的知识，不要写出最终答案。"
    "\n\n问题：\n{question}\n\n提纲：",
}
FINAL = {
    "en": "{question}\n\nAn outline of the solution, which may be cut off or wrong:\n{outline}\n\n"
    "Follow the outline as far as it is right and give the complete solution.",
    "zh": "{question}\n\n解题提纲（可能不完整或有错误）：\n{outline}\n\n请参考提纲中正确的部分，给出完整的解答。",
}


@dataclass(frozen=True)
class Progressive(Segments):
    """Large models begin the answer, smaller ones finish it.

    Requires at least 2 models whose sizes are known; `prefix` of those that go on from another's text
    (`length`, `token`), or of the largest where the profile has an `opening` (`outline`).

    Use when the smaller model can follow an outline or the large one's beginning: 86.7 and 87.7 % of 300 on
    built-in math by outline and by marks (mentor alone 88.0 %).  Not when the large model's answers are
    short: the outline costs more compute than they do.

    Attributes:
        switch_mode: `outline`: the largest writes an outline, the smallest answers with it in its prompt;
            `length`: the next smaller engine goes on at each length; `token`: at each mark.
        outline_max_tokens: tokens of the outline at most; it also ends where the thinking of its writer does.
        outline_prompt_template: the largest is prompted with it, `{question}` filled in.
        final_prompt_template: the smallest is prompted with it, `{question}` and `{outline}` filled in.
        template_language: language of the templates that are not given.
        profile: words that a family of models knows (`tandem/insights.py`), in place of templates.
        length_thresholds: rising lengths of the answer in tokens; at each the next engine goes on.
        special_tokens: marks; as many engines are done as there are different ones in the text.
        max_new_tokens_per_round: tokens of a turn at most; None: up to the next switch.
        max_tokens, max_rounds, max_repeat: as for `loop`.
    """

    requires: ClassVar[frozenset[Capability]] = frozenset()  # depends on the mode: see `check`
    min_engines: ClassVar[int] = 2
    bounds_together: ClassVar[bool] = True

    switch_mode: Literal["outline", "length", "token"] = "outline"
    outline_max_tokens: Annotated[int, Ge(1)] = 500
    outline_prompt_template: str | None = None
    final_prompt_template: str | None = None
    template_language: Literal["en", "zh"] = "en"
    profile: str | None = None
    length_thresholds: tuple[int, ...] = (1000, 2000, 3000)
    special_tokens: tuple[str, ...] = ("</think>",)
    max_new_tokens_per_round: Annotated[int, Ge(1)] | None = None

    def run(
        self, request: Request, engines: Sequence[Engine], ledger: UsageLedger
    ) -> AsyncGenerator[Event, None]:
        models = by_size(engines, name_of(self))
        if self.switch_mode == "outline":
            return self.outlined(self.limited(request), models[0], models[-1], ledger)
        step = self.by_length if self.switch_mode == "length" else self.by_token
        return self.written(request, models, ledger, lambda so_far: step(models, so_far))

    def by_length(self, models: Sequence[Engine], so_far: SoFar) -> EngineTurn:
        """Yield each engine in turn until the next length threshold."""
        thresholds = self.length_thresholds[: len(models) - 1]
        done = sum(so_far.tokens >= threshold for threshold in thresholds)
        limits = [threshold - so_far.tokens for threshold in thresholds[done : done + 1]]
        limits += [self.max_new_tokens_per_round] if self.max_new_tokens_per_round else []
        return EngineTurn(models[done], min(limits, default=None))

    def by_token(self, models: Sequence[Engine], so_far: SoFar) -> EngineTurn:
        """The model whose index is the number of different marks in the text, up to the next mark."""
        unseen = tuple(mark for mark in self.special_tokens if mark not in so_far.text)
        done = min(len(self.special_tokens) - len(unseen), len(models) - 1)
        return EngineTurn(
            models[done], self.max_new_tokens_per_round, unseen if done < len(models) - 1 else ()
        )

    async def outlined(
        self, request: Request, large: Engine, small: Engine, ledger: UsageLedger
    ) -> AsyncGenerator[Piece, None]:
        """The outline, which is no part of the answer, then the answer."""
        sampling, most = request.sampling, request.sampling.max_completion_tokens or sys.maxsize
        longest = min(self.outline_max_tokens, most - 1)
        refuse(request, ())
        small.fits(small.count(self.final_request(request, "")), min(longest + sampling.required, most))
        outline, tokens = "", 0
        if longest:
            ask = self.outline_request(request, longest)
            large.fits(large.count(ask), longest)
            async with aclosing(large.stream(ask, ledger.meter("insight"))) as writing:
                async for piece in writing:
                    outline += piece.text
                    tokens += piece.length
                    yield replace(piece, finish=None, round=1)
        final = self.final_request(request.spending(tokens), outline)
        async with aclosing(small.stream(final, ledger.meter("answer"))) as answer:
            async for piece in answer:
                yield replace(piece, round=2)

    def outline_request(self, request: Request, tokens: int) -> Request:
        """Ask for an outline of `tokens` tokens at most; stop strings and biases are the answer's own."""
        ask = insights.Dialogue(request, self.words).mentor_request(tokens)
        if not self.profile:
            template = self.outline_prompt_template or OUTLINE[self.template_language]
            ask = replace(ask, prompt=templated(request, template).prompt)
        sampling = replace(ask.sampling, stop=("</think>",), stop_token_ids=(), ignore_eos=False)
        return replace(ask, sampling=sampling).seeded("outline")

    def final_request(self, request: Request, outline: str) -> Request:
        """Ask for the answer, with the outline in the prompt."""
        shown = self.words.shown(outline)
        if self.profile:
            return insights.Dialogue(request, self.words).intern_request(shown)
        template = self.final_prompt_template or FINAL[self.template_language]
        return templated(request, template, outline=shown.strip())

    @cached_property
    def words(self) -> insights.Profile:
        """The configured profile, or one without words of its own."""
        return (
            insights.profile_named(self.profile, "progressive")
            if self.profile
            else insights.Profile("", "", "")
        )

    def parts(self, engines: Sequence[Engine]) -> dict[str, Engine]:
        models = by_size(engines, name_of(self))
        return {"large": models[0], "small": models[-1]}

    def check(self, engines: Sequence[Engine]) -> None:
        super().check(engines)
        whole = self.max_new_tokens_per_round is None
        if self.switch_mode == "outline":
            self.check_words()
            requires: frozenset[Capability] = frozenset({"prefix"} if self.words.opening else ())
            require(by_size(engines, name_of(self))[0], requires, name_of(self))
            return
        for engine in by_size(engines, name_of(self))[whole:]:  # the largest begins, whatever is selected
            require(engine, frozenset({"prefix"}), name_of(self))
        lengths = self.length_thresholds
        if self.switch_mode == "length" and (not lengths or [0, *lengths] != sorted({0, *lengths})):
            raise ConfigError(
                f"progressive: length_thresholds must be rising lengths in tokens, not {list(lengths)}"
            )
        if self.switch_mode == "token" and not (self.special_tokens and all(self.special_tokens)):
            raise ConfigError(
                "progressive: special_tokens must name at least one string, and none that is empty"
            )

    def check_words(self) -> None:
        """Refuse a profile or templates that cannot be used.

        Raises:
            ConfigError: says which.
        """
        templates = (self.outline_prompt_template, self.final_prompt_template)
        if self.profile is not None and any(template is not None for template in templates):
            raise ConfigError("progressive: give a profile or templates, not both")
        for template, names in zip(templates, (["question"], ["question", "outline"]), strict=True):
            if template is not None:
                check_template(template, names, "progressive")
