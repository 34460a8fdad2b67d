"""`cascade`: the small model answers; where its answer is not good enough, the large one does.

Chen et al., "FrugalGPT", arXiv 2305.05176 (a learned score of the answer); Aggarwal et al., "AutoMix",
NeurIPS 2024 (self-verification); Yue et al., "Large Language Model Cascades with Mixture of Thought
Representations", ICLR 2024 (agreement of samples); "Model Cascading for Code", arXiv 2405.15842 (tests);
DTSR, arXiv 2604.06787 (the question in the third person). Ours: one scale from 0 to 1 for all criteria,
so that one threshold is calibrated whichever is used; a yes is read from the top tokens of one word where
AutoMix draws samples; the judge over the draft's own perplexity and entropy is Tandem's; and `lost`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

from ensemblehub.ensemble_methods.acceptance import NEVER, Trial
from ensemblehub.ensemble_methods.candidates import Candidate
from ensemblehub.ensemble_methods.escalation import Escalation
from ensemblehub.ensemble_methods.roles import by_name
from ensemblehub.errors import ConfigError
from ensemblehub.generators.base import Engine
from ensemblehub.schema import Capability, Event, Request


@dataclass(frozen=True)
class Cascade(Escalation):
    """The small model's answer where it is accepted, else the large one's.

    Requires at least 2 models, and of the small one what `accept` needs: `logprobs` for `logprob`,
    `entropy:X`, `perplexity:X` and a judge.

    Use when a criterion finds the small model's errors, best of all tests in the question: with
    Qwen2.5-Coder 76.2 % on HumanEval at 0.90 of the mentor's cost (mentor 72.0 %), and with `lost` 70.7 % at
    0.65.  Not when most drafts are rejected: on built-in math 87.2 % cost as much as the thinking mentor
    (87.5 %).

    Attributes:
        large, small: engines by name; the largest and the smallest by default.
        accept: `logprob` (geometric mean probability of the draft's tokens), `agreement:K` (share of K
            samples with the same answer), `ask` or `ask:ENGINE` (a model is asked whether the answer is
            right), `entropy:X`, `perplexity:X` or a trained judge's folder (over the draft's tokens), or
            `package.module:Class` (tests, say).
        threshold: the probability that suffices; by default the criterion's own.
        lost: `entropy:X` or `perplexity:X`: give the draft unjudged where the small model's mean over the
            question is above X.
        between: engines by name that are tried after the small one, in this order, before the large one
            answers.
    """

    between: tuple[str, ...] = ()

    async def escalated(self, trial: Trial, large: Engine) -> AsyncGenerator[Event, None]:
        request, ledger = trial.request, trial.ledger
        for engine in self.middle(trial.engines):
            draft = Candidate(engine, request, engine.name)
            await draft.write(ledger)
            verdict = await self.judged(replace(trial, draft=draft))
            yield verdict
            if verdict.sufficient:
                for piece in draft.given:
                    yield piece
                return
            draft.discard(ledger)
        async with aclosing(super().escalated(trial, large)) as events:
            async for event in events:
                yield event

    def check_context(self, request: Request, engines: Sequence[Engine]) -> None:
        super().check_context(request, engines)
        for engine in self.middle(engines):
            engine.fits(engine.count(request), request.sampling.required)

    def middle(self, engines: Sequence[Engine]) -> list[Engine]:
        """The engines between the small and the large one."""
        return [by_name(engines, name, "cascade: between") for name in self.between]

    def answerers(self, engines: Sequence[Engine], capability: Capability) -> Sequence[Engine]:
        if capability == "tools" and not self.criterion.reads_tokens:
            return ()  # no other criterion sees a call
        large, small = self.pair(engines)
        return (small, *self.middle(engines), large)

    def roles(self, engines: Sequence[Engine]) -> tuple[Engine, ...]:
        return (*super().roles(engines), *self.middle(engines))

    def check(self, engines: Sequence[Engine]) -> None:
        super().check(engines)
        tried = [*self.pair(engines), *self.middle(engines)]
        if len({engine.name for engine in tried}) < len(tried):
            raise ConfigError("cascade: an engine would be tried twice")
        if self.between and self.accept == NEVER:
            raise ConfigError("cascade: `between` needs a criterion, and `accept: never` is none")
        for engine in self.middle(engines):
            self.criterion.check(engine, engines, "cascade")
