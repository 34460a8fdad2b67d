"""The contracts of strategies: a frozen dataclass whose fields are its YAML options."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from typing import ClassVar, Literal, Self

from ensemblehub.cost import UsageLedger
from ensemblehub.errors import CapabilityError, ConfigError, RequestError, did_you_mean
from ensemblehub.generators.base import Engine, Tokenizer
from ensemblehub.schema import Capability, Chat, Event, Piece, Prompt, Request, Scored, Token, TokenIds
from ensemblehub.scorers.base import together as together
from ensemblehub.scorers.pool import Pool

Granularity = Literal["token", "segment", "response"]


class Selection(ABC):
    """Which engines take part in answering a request."""

    requires: ClassVar[frozenset[Capability]] = frozenset()

    @abstractmethod
    async def select(self, request: Request, engines: Sequence[Engine], ledger: UsageLedger) -> list[Engine]:
        """The engines that take part, in order of preference."""

    def min_engines(self, engines: Sequence[Engine]) -> int:
        """How many of `engines` take part at least, whatever the request; all of them means all always do."""
        return 1

    def check(self, engines: Sequence[Engine]) -> None:
        """Refuse engines or options that cannot work, before any weights load.

        Raises:
            ConfigError: says what is missing and how to get it.
        """
        for engine in engines:
            require(engine, self.requires, f"selection {name_of(self)}")


class Aggregation(ABC):
    """How the outputs of the engines become one answer.

    Strategies hold streams with `contextlib.aclosing`; they keep no KV cache, no state between requests,
    and do not batch.
    """

    granularity: ClassVar[Granularity]
    requires: ClassVar[frozenset[Capability]] = frozenset()
    min_engines: ClassVar[int] = 1  # engines it needs to mean anything

    @abstractmethod
    def run(
        self, request: Request, engines: Sequence[Engine], ledger: UsageLedger
    ) -> AsyncGenerator[Event, None]:
        """Answer `request`; the usage of every engine call is recorded in `ledger`."""

    def echo(
        self, request: Request, engines: Sequence[Engine], ledger: UsageLedger, context: int | None = None
    ) -> AsyncGenerator[Event | Scored, None]:
        """Read a raw prompt and give every token's log-likelihood, as one `Scored`; then go on writing.

        Args:
            request: the prompt is text or token ids of the answering (first) engine; `max_tokens` may be 0.
            context: how many tokens are context, for an aggregation that has to know.

        Raises:
            RequestError: this aggregation has no log-likelihood, or none of this prompt.
        """
        raise RequestError(f"{name_of(self)} chooses between whole texts and has no log-likelihood")

    def estimated_alone(
        self, request: Request, engines: Sequence[Engine]
    ) -> tuple[float, float, float] | None:
        """Estimated FLOPs of the mentor answering alone: expected, and a 95 % interval; None where nothing tells."""
        return None

    def roles(self, engines: Sequence[Engine]) -> tuple[Engine, ...]:
        """The engines it cannot do without; a selection must never drop them."""
        return ()

    def reader(self, engines: Sequence[Engine]) -> Engine:
        """The engine in whose tokens a raw prompt is read, if `engines` are selected."""
        return engines[0]

    def parts(self, engines: Sequence[Engine]) -> dict[str, Engine]:
        """Who plays which part, where there are different parts, if `engines` are selected."""
        return {}

    def check(self, engines: Sequence[Engine]) -> None:
        """Refuse engines that cannot play their part, before any weights load.

        Raises:
            CapabilityError: names the engine, the strategy and what is missing.
        """
        for engine in engines:
            require(engine, self.requires, name_of(self))


class ScoringAggregation(Aggregation):
    """An aggregation that asks scorers how good a text is."""

    scorers: Pool = Pool()

    def judged_by(self, scorers: Pool) -> Self:
        """The same aggregation with its scorers."""
        judged = copy.copy(self)
        object.__setattr__(judged, "scorers", scorers)  # not an option, so not a field
        return judged

    def check(self, engines: Sequence[Engine]) -> None:
        super().check(engines)
        if not self.scorers.scorers:
            raise ConfigError(f"{name_of(self)} needs a scorer: add `reward_specs:` to the configuration")


def name_of(strategy: Selection | Aggregation) -> str:
    """The strategy's name for a message: that of its file."""
    return type(strategy).__module__.rpartition(".")[2]


def check_together(engines: Sequence[Engine], selection: Selection, aggregation: Aggregation) -> None:
    """Refuse a selection that may drop what the aggregation cannot do without, before any weights load.

    Raises:
        ConfigError: names both and the engines concerned.
    """
    selection.check(engines)
    aggregation.check(engines)
    min_engines = selection.min_engines(engines)
    roles = aggregation.roles(engines)
    if roles and min_engines < len(engines):
        names = " and ".join(repr(engine.name) for engine in roles)
        raise ConfigError(
            f"{name_of(aggregation)} needs {names}, which selection {name_of(selection)} may drop"
        )
    if min_engines < aggregation.min_engines:
        raise ConfigError(
            f"{name_of(aggregation)} needs at least {aggregation.min_engines} engines, and selection "
            f"{name_of(selection)} may leave {min_engines} of {len(engines)}"
        )


def tokenizer_of(engine: Engine) -> Tokenizer:
    """The engine's tokenizer.

    Raises:
        RequestError: it has none at hand.
    """
    if engine.tokenizer is None:
        raise RequestError(f"engine {engine.name!r} has no tokenizer at hand")
    return engine.tokenizer


def ids_of(prompt: Prompt, engine: Engine) -> list[int]:
    """A raw prompt in the engine's token ids.

    Raises:
        RequestError: it is a chat, or holds an id that there is not; or the engine has no tokenizer at hand.
    """
    if isinstance(prompt, Chat):
        raise RequestError("a raw prompt is needed, not a chat")
    ids = list(prompt.ids) if isinstance(prompt, TokenIds) else tokenizer_of(engine).encode(prompt.text)
    unknown = next((index for index in ids if index >= (engine.info.vocabulary or index + 1)), None)
    if unknown is not None:
        raise RequestError(f"{engine.name}: there is no token id {unknown}")
    return ids


def given(request: Request, ids: Sequence[int], engine: Engine) -> Request:
    """The request with `ids` as the start of the engine's answer, read as exactly these tokens."""
    tokenizer = tokenizer_of(engine)
    tokens = tuple(Token(tokenizer.decode([index]), index) for index in ids)
    written = Piece("".join(token.text for token in tokens), engine.name, "answer", tokens)
    return replace(
        request, prefix=request.prefix + written.text, written=(*request.written, written) if ids else ()
    )


def require(engine: Engine, requires: frozenset[Capability], strategy: str) -> None:
    """Raise a `CapabilityError` unless `engine` can do all that `strategy` needs of it."""
    missing = sorted(requires - engine.capabilities)
    if missing:
        raise CapabilityError(
            f"{strategy} needs {', '.join(missing)} of engine {engine.name!r}, which it lacks"
        )


def check_k(k: int, engines: Sequence[Engine], strategy: str) -> None:
    """Refuse to choose `k` of `engines` where that cannot be.

    Raises:
        ConfigError: k is below 1 or above the number of engines.
    """
    if not 1 <= k <= len(engines):
        raise ConfigError(f"{strategy}: k must be from 1 to {len(engines)}, the number of models, not {k}")


def by_name(engines: Sequence[Engine], name: str, role: str) -> Engine:
    """The engine called `name`.

    Raises:
        ConfigError: there is none; names the role that asked for it.
    """
    for engine in engines:
        if engine.name == name:
            return engine
    raise ConfigError(f"{role}: {did_you_mean(name, [engine.name for engine in engines], 'engine')}")


def by_size(engines: Sequence[Engine], role: str) -> list[Engine]:
    """The engines from the largest to the smallest by parameters; equals keep the order of the configuration.

    Args:
        role: what depends on the order, for a message; `tandem: mentor`, where an option of that name settles it.

    Raises:
        ConfigError: there are several, and the size of one is unknown.
    """
    unknown = [engine.name for engine in engines if not engine.info.parameters]
    if unknown and len(engines) > 1:
        strategy, _, option = role.partition(": ")
        name = f"name the engine with `{option}`, or " if option else ""
        raise ConfigError(
            f"{strategy} goes by the models' sizes, and the size of {', '.join(map(repr, unknown))} is unknown: "
            f"{name}set `parameters` of the model in model_specs"
        )
    return sorted(engines, key=lambda engine: -engine.info.parameters)
