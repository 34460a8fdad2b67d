"""`random`: a random engine writes each turn."""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

from ensemblehub.cost import Meter
from ensemblehub.ensemble_methods.turns import Segments, SoFar, Turn
from ensemblehub.generators.base import Engine
from ensemblehub.schema import Piece, Request, derived_seed


@dataclass(frozen=True)
class Random(Segments):
    """Before each turn an engine is drawn, all alike; the seed and the question fix the draws.

    Attributes:
        max_new_tokens_per_round: tokens of a turn at most.
        max_tokens: of the whole answer, where that is less than the request's own.
        max_rounds: turns after which the answer ends.
        max_repeat: so many identical turns in a row end the answer, unless it ignores the end of text; 0: never.
    """

    max_new_tokens_per_round: int = 32

    def run(self, request: Request, engines: Sequence[Engine], meter: Meter) -> AsyncGenerator[Piece, None]:
        length = self.max_new_tokens_per_round if len(engines) > 1 else None
        seed = request.sampling.seed
        draws = random.Random(None if seed is None else derived_seed(seed, "writer", request.prompt))

        def following(_: SoFar) -> Turn:
            return Turn(draws.choice(engines), length)

        return self.written(request, engines, meter.ledger, following)

    def check(self, engines: Sequence[Engine]) -> None:
        super().check(engines)
        self.at_least(1, max_new_tokens_per_round=self.max_new_tokens_per_round)
