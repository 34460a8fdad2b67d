"""The longest of all answers."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Ge

from ensemblehub.cost import UsageLedger
from ensemblehub.ensemble_methods.base import Aggregation, Granularity
from ensemblehub.ensemble_methods.candidates import drafts, write_all
from ensemblehub.generators.base import Engine
from ensemblehub.schema import Event, Request


@dataclass(frozen=True)
class MyStrategy(Aggregation):
    """The longest of all answers; every engine writes at the same time.

    Use when long answers are the thorough ones.  Not when models repeat themselves.

    Attributes:
        samples: answers per engine.
    """

    granularity: ClassVar[Granularity] = "response"
    min_engines: ClassVar[int] = 2
    samples: Annotated[int, Ge(1)] = 1

    async def run(
        self, request: Request, engines: Sequence[Engine], ledger: UsageLedger
    ) -> AsyncGenerator[Event, None]:
        candidates = drafts(request, engines, self.samples)
        await write_all(candidates, ledger)
        *others, longest = sorted(candidates, key=lambda candidate: len(candidate.text))
        for candidate in others:
            candidate.discard(ledger)
        yield longest.answer
