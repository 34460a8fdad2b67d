"""`all`: every engine takes part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ensemblehub.cost import UsageLedger
from ensemblehub.ensemble_methods.base import Selection
from ensemblehub.generators.base import Engine
from ensemblehub.schema import Request


@dataclass(frozen=True)
class All(Selection):
    """Every engine takes part, in the order of the configuration.

    Use when every model of the file has a part in the answer, as in `tandem` or `cascade`.  Not when one of
    them should answer: name it with `single`, or select it by question.
    """

    async def select(self, request: Request, engines: Sequence[Engine], ledger: UsageLedger) -> list[Engine]:
        return list(engines)

    def min_engines(self, engines: Sequence[Engine]) -> int:
        return len(engines)
