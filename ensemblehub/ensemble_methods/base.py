"""The contracts of strategies: a frozen dataclass whose fields are its YAML options."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from ensemblehub import registry
from ensemblehub.cost import UsageLedger
from ensemblehub.ensemble_methods.roles import require
from ensemblehub.errors import ConfigError, RequestError
from ensemblehub.generators.base import Engine
from ensemblehub.schema import Capability, Event, Request, Scored
from ensemblehub.scorers.pool import Pool

Granularity = Literal["token", "segment", "response"]
# options, of any strategy or of one, that certificates made before do not know; left out where they are not set
ADDED_OPTIONS = frozenset({"lost", "decided", "vote.threshold"})


@dataclass(frozen=True)
class Checkpoint:
    """A point of the mentor's insight at which it may suffice.

    Attributes:
        level: name of the effort level.
        mentor_tokens: length of the insight at this point.
        threshold: the probability that suffices.
    """

    level: str
    mentor_tokens: int
    threshold: float


class EnsembleMethod:
    """Base of selections and aggregations.

    A strategy records usage by purpose: it hands `ledger.meter(purpose)` to every engine and scorer it calls.
    Its docstring has a paragraph `Use when ...  Not when ...`, true to what was measured, and one
    `Requires ...` where `requires` and `min_engines` do not tell all; the site's card shows both.

    Attributes:
        requires: capabilities that every engine must have.
    """

    requires: ClassVar[frozenset[Capability]] = frozenset()

    def check(self, engines: Sequence[Engine]) -> None:
        """Check engines and options before any weights load.

        Raises:
            CapabilityError: names the engine, the strategy and the missing capability.
            ConfigError: names the option, its value and what is allowed.
        """
        if is_dataclass(self):
            options = {option.name: getattr(self, option.name) for option in fields(self)}
            registry.build(type(self), options, name_of(self))
        for engine in engines:
            require(engine, self.requires, name_of(self))


class Selection(EnsembleMethod, ABC):
    """Chooses the engines that answer a request."""

    @abstractmethod
    async def select(self, request: Request, engines: Sequence[Engine], ledger: UsageLedger) -> list[Engine]:
        """The engines that take part, in order of preference."""

    def min_engines(self, engines: Sequence[Engine]) -> int:
        """Minimum number of engines selected for any request."""
        return 1


class Aggregation(EnsembleMethod, ABC):
    """Turns the outputs of several engines into one answer.

    An aggregation keeps no KV cache and no state between requests, and does not batch: engines do.

    Attributes:
        min_engines: number of engines without which it is meaningless.
        uses_scorers: whether it asks scorers how good a text is; `scorers` are those it asks.
        bounds_together: whether `max_completion_tokens` bounds an insight together with the answer.
    """

    granularity: ClassVar[Granularity]
    min_engines: ClassVar[int] = 1
    uses_scorers: ClassVar[bool] = False
    bounds_together: ClassVar[bool] = False
    scorers: Pool = Pool()

    @abstractmethod
    def run(
        self, request: Request, engines: Sequence[Engine], ledger: UsageLedger
    ) -> AsyncGenerator[Event, None]:
        """Answer `request`; closing the stream stops every engine."""

    def log_likelihood(
        self, request: Request, engines: Sequence[Engine], ledger: UsageLedger, context: int | None = None
    ) -> AsyncGenerator[Event | Scored, None]:
        """Yield the log-likelihood of every token of a raw prompt as one `Scored`, then continue the prompt.

        Args:
            request: the prompt is text, or token ids of `reader`; `max_tokens` may be 0.
            context: number of leading tokens that are context, for aggregations that treat it differently.

        Raises:
            RequestError: this aggregation has no log-likelihood, or none of this prompt.
        """
        raise RequestError(f"{name_of(self)} chooses between whole texts and has no log-likelihood")

    def with_scorers(self, scorers: Pool) -> Self:
        """This aggregation asking `scorers`; itself where it uses none."""
        if not self.uses_scorers:
            return self
        changed = copy.copy(self)
        object.__setattr__(changed, "scorers", scorers)  # not an option, so not a field
        return changed

    @property
    def efforts(self) -> tuple[str, ...]:
        """Names of the effort levels by rising budget, `none` first; empty where there are none."""
        return ()

    def with_effort(self, effort: str) -> Self:
        """This aggregation limited to one of its `efforts`; a lower configured effort stays."""
        return self

    @property
    def checkpoints(self) -> tuple[Checkpoint, ...]:
        """The checkpoints that a request passes at most, in order; empty where there are none."""
        return ()

    def estimated_alone(
        self, request: Request, engines: Sequence[Engine]
    ) -> tuple[float, float, float] | None:
        """Return the estimated FLOPs of the mentor alone: mean and 95 % interval, or None if unknown."""
        return None

    def answerers(self, engines: Sequence[Engine], capability: Capability) -> Sequence[Engine]:
        """Engines that may write the answer, each all of it, so that it calls tools or keeps to a format.

        Args:
            capability: `tools` or `response_format`.

        Returns:
            None of them where the strategy cannot honour that.
        """
        return ()

    def roles(self, engines: Sequence[Engine]) -> tuple[Engine, ...]:
        """Engines that a selection must not drop."""
        return ()

    def reader(self, engines: Sequence[Engine]) -> Engine:
        """The engine in whose tokens a raw prompt is read."""
        return engines[0]

    def parts(self, engines: Sequence[Engine]) -> dict[str, Engine]:
        """Engines by the part they play; empty where all play the same."""
        return {}

    @property
    def certificate_folder(self) -> Path | None:
        """The folder in which its certificate lies if it has one; None: only a configuration names one."""
        return None

    def deciding(self) -> dict[str, Any]:
        """What decides the answer beside models and sampling, by the names that a certificate gives it."""
        settings: dict[str, Any] = asdict(self) if is_dataclass(self) else {}
        kept = {
            name: value
            for name, value in settings.items()
            if value is not None or not ADDED_OPTIONS & {name, f"{name_of(self)}.{name}"}
        }
        return {"settings": kept}

    def check(self, engines: Sequence[Engine]) -> None:
        super().check(engines)
        if self.uses_scorers and not self.scorers.scorers:
            raise ConfigError(f"{name_of(self)} needs a scorer: add `reward_specs:` to the configuration")


def name_of(strategy: EnsembleMethod) -> str:
    """The strategy's name for a message, `tandem` or `selection zscore`: that of its file."""
    name = type(strategy).__module__.rpartition(".")[2]
    return f"selection {name}" if isinstance(strategy, Selection) else name


def check_together(engines: Sequence[Engine], selection: Selection, aggregation: Aggregation) -> None:
    """Refuse a selection that may drop engines which the aggregation needs, before any weights load.

    Raises:
        ConfigError: names both and the engines concerned.
    """
    selection.check(engines)
    aggregation.check(engines)
    min_engines = selection.min_engines(engines)
    roles = aggregation.roles(engines)
    if roles and min_engines < len(engines):
        names = " and ".join(repr(engine.name) for engine in roles)
        raise ConfigError(f"{name_of(aggregation)} needs {names}, which {name_of(selection)} may drop")
    if min_engines < aggregation.min_engines:
        raise ConfigError(
            f"{name_of(aggregation)} needs at least {aggregation.min_engines} engines, and "
            f"{name_of(selection)} may leave {min_engines} of {len(engines)}"
        )
