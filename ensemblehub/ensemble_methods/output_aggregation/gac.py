"""`gac`: the members' next-token distributions are averaged over the union of their vocabularies.

Yu et al., "Breaking the Ceiling of the LLM Community by Treating Token Generation as a Classification for
Ensembling", Findings of EMNLP 2024.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Le

from ensemblehub.ensemble_methods import mixing
from ensemblehub.ensemble_methods.joint_answer import ChosenToken, JointAnswer
from ensemblehub.ensemble_methods.roles import by_name
from ensemblehub.ensemble_methods.spelling import TokenMember
from ensemblehub.ensemble_methods.token_level import TokenLevel
from ensemblehub.ensemble_methods.union_vocabulary import Probabilities
from ensemblehub.errors import ConfigError
from ensemblehub.generators.base import Engine


@dataclass(frozen=True)
class GaC(TokenLevel):
    """Every token is chosen from one distribution of all engines, whatever their tokenizers.

    Use when the models are about equally good, or when the best one leads: with `every: safe` and twice the
    weight for the mentor 88.3 % of 300 on built-in math (mentor alone 88.0 %).  Not when weak models weigh
    as much as a good one: the mean at every token has 65.7 %.

    Attributes:
        weights: by engine name, 1 where omitted; an engine of weight 0 is not asked.
        every: ensemble every `token`, only where the engines' top tokens are `disputed`, or only where that is
            `safe`: their mean probability of the first one's token is at most one half (SAFE).
        draft: tokens the first engine drafts at a time for `disputed`.
        method: `avg` is the weighted mean; `max` takes each token's largest weighted probability; `weighted`
            also weighs each engine by exp(-entropy) of its distribution, so that who is sure counts more.
        gate: the engine that decides when to ensemble (the paper's primary model).
        threshold: while the gate's top token has at least this probability, it writes alone and the
            others are not asked; they catch up in one pass.
    """

    method: Literal["avg", "max", "weighted"] = "avg"
    gate: str | None = None
    threshold: Annotated[float, Ge(0), Le(1)] = 0.5

    async def choose(self, answer: JointAnswer) -> list[ChosenToken]:
        if self.gate is None:
            return await super().choose(answer)
        gate = next(member for member in answer.members if member.engine.name == self.gate)
        return await answer.gated(self.mix, gate, self.threshold)

    def mix(self, members: Sequence[TokenMember], parts: Sequence[Probabilities]) -> Probabilities:
        weights = [member.weight for member in members]
        if self.method == "weighted":
            sure = [math.exp(-mixing.entropy(part)) for part in parts]
            weights = [weight * factor for weight, factor in zip(weights, sure, strict=True)]
        return mixing.maximum(parts, weights) if self.method == "max" else mixing.mean(parts, weights)

    def settled(self, members: Sequence[TokenMember], parts: Sequence[Probabilities]) -> Probabilities:
        gates = (part for member, part in zip(members, parts, strict=True) if member.engine.name == self.gate)
        gate = next(gates, None)
        return gate if gate is not None and gate.max() >= self.threshold else super().settled(members, parts)

    def parts(self, engines: Sequence[Engine]) -> dict[str, Engine]:
        return {"gate": by_name(engines, self.gate, "gac: gate")} if self.gate else {}

    def roles(self, engines: Sequence[Engine]) -> tuple[Engine, ...]:
        return (by_name(engines, self.gate, "gac: gate"),) if self.gate else ()

    def check(self, engines: Sequence[Engine]) -> None:
        super().check(engines)
        if self.gate is None:
            return
        by_name(engines, self.gate, "gac: gate")
        if not self.weights.get(self.gate, 1.0):
            raise ConfigError(f"gac: the gate {self.gate!r} has weight 0")
        if self.every != "token":
            raise ConfigError(
                "gac: `gate` and `every: disputed` or `safe` both decide when to ensemble; use one of them"
            )
