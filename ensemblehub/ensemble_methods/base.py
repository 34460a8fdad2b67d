"""The contracts of strategies: a frozen dataclass whose fields are its YAML options."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Sequence
from typing import ClassVar, Literal

from ensemblehub.cost import Meter
from ensemblehub.errors import CapabilityError, ConfigError, did_you_mean
from ensemblehub.generators.base import Engine
from ensemblehub.schema import Capability, Event, Request

Granularity = Literal["token", "segment", "response"]


class Selection(ABC):
    """Which engines take part in answering a request."""

    needs: ClassVar[frozenset[Capability]] = frozenset()

    @abstractmethod
    async def select(self, request: Request, engines: Sequence[Engine], meter: Meter) -> list[Engine]:
        """The engines that take part, in order of preference."""


class Aggregation(ABC):
    """How the outputs of the engines become one answer.

    Strategies hold streams with `contextlib.aclosing`; they keep no KV cache, no state between requests,
    and do not batch.
    """

    granularity: ClassVar[Granularity]
    needs: ClassVar[frozenset[Capability]] = frozenset()

    @abstractmethod
    def run(self, request: Request, engines: Sequence[Engine], meter: Meter) -> AsyncGenerator[Event, None]:
        """Answer `request`; `meter.ledger` takes the bill."""

    def check(self, engines: Sequence[Engine]) -> None:
        """Refuse engines that cannot play their part, before any weights load.

        Raises:
            CapabilityError: names the engine, the strategy and what is missing.
        """
        for engine in engines:
            require(engine, self.needs, type(self).__name__.lower())


def require(engine: Engine, needs: frozenset[Capability], strategy: str) -> None:
    """Raise a `CapabilityError` unless `engine` can do all that `strategy` needs of it."""
    missing = sorted(needs - engine.can)
    if missing:
        raise CapabilityError(f"{strategy} needs {', '.join(missing)} of engine {engine.name!r}, which it lacks")


def by_name(engines: Sequence[Engine], name: str, role: str) -> Engine:
    """The engine called `name`.

    Raises:
        ConfigError: there is none; names the role that asked for it.
    """
    for engine in engines:
        if engine.name == name:
            return engine
    raise ConfigError(f"{role}: {did_you_mean(name, [engine.name for engine in engines], 'engine')}")
