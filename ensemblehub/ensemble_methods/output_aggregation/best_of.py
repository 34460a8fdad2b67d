"""`best_of`: every member answers, scorers judge the answers, the best one is given."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Ge

from ensemblehub.cost import UsageLedger
from ensemblehub.ensemble_methods.base import Aggregation, Granularity
from ensemblehub.ensemble_methods.candidates import drafts, least_engines, write_all
from ensemblehub.generators.base import Engine
from ensemblehub.schema import Choice, Event, Request


@dataclass(frozen=True)
class BestOf(Aggregation):
    """The answer with the best score; of equal scores the first in the order of the engines.

    All answers are written at the same time, and the usage of those that are not given is recorded as
    discarded.

    Attributes:
        samples: answers per engine; one at temperature 0, where all are the same.
        exclude_self_scoring: no scorer judges the text of its own model, where another can.
    """

    granularity: ClassVar[Granularity] = "response"
    uses_scorers: ClassVar[bool] = True
    samples: Annotated[int, Ge(1)] = 1
    exclude_self_scoring: bool = True

    async def run(
        self, request: Request, engines: Sequence[Engine], ledger: UsageLedger
    ) -> AsyncGenerator[Event, None]:
        candidates = drafts(request, engines, self.samples)
        await write_all(candidates, ledger)
        texts = [candidate.text for candidate in candidates]
        authors = [candidate.engine.model for candidate in candidates] if self.exclude_self_scoring else []
        scores = await self.scorers.score(request, texts, ledger.meter("score"), authors)
        ranking = sorted(
            zip(candidates, scores, strict=True), key=lambda pair: -pair[1]
        )  # equals keep their order
        (best, score), *others = ranking
        for loser, _ in others:
            loser.discard(ledger)
        equals = [loser.name for loser, other in others if other == score]
        tie = f", equal to {' and '.join(equals)}; {best.name} comes first in order" if equals else ""
        named = tuple((candidate.name, score) for candidate, score in zip(candidates, scores, strict=True))
        reason = f"{best.name} scores {score:.4g}, the best of {len(candidates)}{tie}"
        yield Choice("answer", (best.name,), named, reason)
        yield best.answer

    @property
    def min_engines(self) -> int:  # type: ignore[override]  # with several samples one engine is enough
        return least_engines(self.samples)
