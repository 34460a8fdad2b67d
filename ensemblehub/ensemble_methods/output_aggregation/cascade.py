"""`cascade`: the small model answers; where its answer is not good enough, the large one does.

Chen et al., "FrugalGPT", arXiv 2305.05176 (a learned score of the answer); Aggarwal et al., "AutoMix",
NeurIPS 2024 (self-verification); Yue et al., "Large Language Model Cascades with Mixture of Thought
Representations", ICLR 2024 (agreement of samples); "Model Cascading for Code", arXiv 2405.15842 (tests);
DTSR, arXiv 2604.06787 (the question in the third person). Ours: one scale from 0 to 1 for all criteria,
so that one threshold is calibrated whichever is used; a yes is read from the top tokens of one word where
AutoMix draws samples; and the judge over the draft's own perplexity and entropy is Tandem's.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass

from ensemblehub.ensemble_methods.acceptance import Trial
from ensemblehub.ensemble_methods.base import answer_of
from ensemblehub.ensemble_methods.escalation import Escalation
from ensemblehub.generators.base import Engine
from ensemblehub.schema import Event


@dataclass(frozen=True)
class Cascade(Escalation):
    """The small model's answer where it is accepted, else the large one's.

    Attributes:
        large, small: engines by name; the largest and the smallest by default.
        accept: `logprob` (geometric mean probability of the draft's tokens), `agreement:K` (share of K
            samples with the same answer), `ask` or `ask:ENGINE` (a model is asked whether the answer is
            right), `entropy:X`, `perplexity:X` or a trained judge's folder (over the draft's tokens), or
            `package.module:Class` (tests, say).
        threshold: the probability that suffices; by default the criterion's own.
    """

    def escalated(self, trial: Trial, large: Engine) -> AsyncGenerator[Event, None]:
        return answer_of(large, trial.request, trial.ledger.meter("answer"))
