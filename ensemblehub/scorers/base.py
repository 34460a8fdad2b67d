"""The contract of a scorer.  Knows no strategy."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Coroutine, Iterable, Sequence
from typing import Any, ClassVar, TypeVar

from ensemblehub.cost import UsageMeter
from ensemblehub.generators.base import Engine
from ensemblehub.schema import Request

T = TypeVar("T")


class Scorer(ABC):
    """Says how good texts are; higher is better, the scale is the scorer's own.

    Made as `kind(name, options, engines)`: its name, its options, and the ensemble's engines, of which it
    may use one.
    """

    options: ClassVar[type]  # frozen dataclass of the scorer's own YAML options
    name: str

    @abstractmethod
    def __init__(self, name: str, options: object, engines: Sequence[Engine]) -> None: ...

    @property
    @abstractmethod
    def model(self) -> str:
        """Which model judges, said as `Engine.model` says it: a model is not asked about its own text."""

    @abstractmethod
    async def score(self, request: Request, texts: Sequence[str], meter: UsageMeter) -> list[float]:
        """One score per text.

        Args:
            request: what was asked, with the answer so far as `prefix`.
            texts: each a continuation of the answer so far, judged together with it.
            meter: takes the bill.

        Raises:
            EngineError: the scorer failed; a failure is never a score.
        """

    async def load(self) -> None:
        """Make ready; harmless to repeat."""

    async def close(self) -> None:
        """Free the model."""


async def together(calls: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """The results of `calls`, run at the same time; the first failure ends the others and is raised as it is."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
