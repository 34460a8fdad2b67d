"""The contracts of `ensemble_methods/base.py`: what every selection and aggregation promises."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from contextlib import aclosing
from dataclasses import FrozenInstanceError, dataclass, fields, is_dataclass

from ensemblehub import registry
from ensemblehub.cost import UsageLedger
from ensemblehub.ensemble_methods.base import Aggregation, EnsembleMethod, Selection
from ensemblehub.errors import ConfigError
from ensemblehub.generators.base import Engine
from ensemblehub.lab.contracts.checks import Check, collector, refusing
from ensemblehub.schema import Chat, Event, Message, Piece, Request, Sampling

SELECTION: list[Check] = []
AGGREGATION: list[Check] = []
of_selections, of_aggregations = collector(SELECTION), collector(AGGREGATION)
of_both = collector(SELECTION, AGGREGATION)


@dataclass
class StrategySubject:
    """A strategy with its options and engines that it can run on."""

    strategy: EnsembleMethod
    engines: Sequence[Engine]

    @property
    def aggregation(self) -> Aggregation:
        """The strategy as an aggregation."""
        assert isinstance(self.strategy, Aggregation)
        return self.strategy

    @property
    def selection(self) -> Selection:
        """The strategy as a selection."""
        assert isinstance(self.strategy, Selection)
        return self.strategy

    async def events(self, request: Request) -> tuple[list[Event], UsageLedger]:
        """All events of an answer, and what they cost."""
        ledger = UsageLedger()
        async with aclosing(self.aggregation.run(request, self.engines, ledger)) as stream:
            return [event async for event in stream], ledger

    async def chosen(self, request: Request) -> list[str]:
        """The names of the selected engines."""
        return [engine.name for engine in await self.selection.select(request, self.engines, UsageLedger())]


def question(number: int = 8) -> Request:
    """A question with its seed."""
    text = f"There are {number} bowls. There are 3 more mugs than bowls. How many mugs are there?"
    return Request(Chat((Message("user", text),)), Sampling(max_tokens=40, seed=7))


def _text(events: Sequence[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Piece) and event.purpose == "answer")


def _authors(pieces: Iterable[Piece]) -> set[str]:
    """Names of the engines that wrote pieces; a token that several chose together names all of them."""
    return {name for piece in pieces for name in piece.engine.split("+")}


@of_both("options")
async def options(subject: StrategySubject) -> None:
    """it is a frozen dataclass, its docstring describes every option, and an unknown option is refused"""
    kind = type(subject.strategy)
    assert is_dataclass(kind), "it is no dataclass"
    for option in fields(kind):
        assert f"{option.name}" in (kind.__doc__ or ""), f"the docstring does not describe {option.name!r}"
        try:
            setattr(subject.strategy, option.name, None)
        except FrozenInstanceError:
            continue
        raise AssertionError("it is not frozen")
    with refusing("no_such_option", ConfigError):
        registry.build(kind, {"no_such_option": 1}, kind.__name__)


@of_both("engines")
async def requirements(subject: StrategySubject) -> None:
    """it accepts engines that have what it requires, and names one that lacks a capability"""
    subject.strategy.check(subject.engines)
    for engine in subject.engines:
        assert subject.strategy.requires <= engine.capabilities


@of_selections("engines")
async def subset(subject: StrategySubject) -> None:
    """it selects given engines, none twice, and at least as many as it says"""
    names = [engine.name for engine in subject.engines]
    least = subject.selection.min_engines(subject.engines)
    assert 1 <= least <= len(names)
    for number in range(2, 10):
        chosen = await subject.chosen(question(number))
        assert set(chosen) <= set(names)
        assert len(set(chosen)) == len(chosen) >= least


@of_selections("seed")
async def same_choice(subject: StrategySubject) -> None:
    """a request with a seed gets the same engines again, also beside others"""
    alone = [await subject.chosen(question(number)) for number in range(2, 6)]
    assert list(await asyncio.gather(*(subject.chosen(question(number)) for number in range(2, 6)))) == alone


@of_aggregations("answer")
async def answer(subject: StrategySubject) -> None:
    """it yields an answer of engines that were given, and says how it ended"""
    events, _ = await subject.events(question())
    pieces = [event for event in events if isinstance(event, Piece)]
    assert _text(events), "the answer is empty"
    assert _authors(pieces) <= {engine.name for engine in subject.engines}
    assert pieces[-1].finish in ("stop", "length", "tool_calls")


@of_aggregations("usage")
async def usage(subject: StrategySubject) -> None:
    """every engine whose text is shown is in the usage, and no call is recorded for others"""
    events, ledger = await subject.events(question())
    shown = _authors(event for event in events if isinstance(event, Piece) and event.text)
    called = {call.engine for call in ledger.calls if call.cost.completion_tokens}
    assert shown <= called
    assert {call.engine for call in ledger.calls} <= {engine.name for engine in subject.engines}


@of_aggregations("state")
async def together(subject: StrategySubject) -> None:
    """concurrent requests with seeds get the same answers as single ones"""
    alone = [_text((await subject.events(question(number)))[0]) for number in range(2, 6)]
    runs = await asyncio.gather(*(subject.events(question(number)) for number in range(2, 6)))
    assert [_text(events) for events, _ in runs] == alone


@of_aggregations("closing")
async def closing(subject: StrategySubject) -> None:
    """closing the answer early stops its engines, which record what they wrote"""
    ledger = UsageLedger()
    async with aclosing(subject.aggregation.run(question(), subject.engines, ledger)) as stream:
        await anext(stream)
    recorded = len(ledger.calls)
    assert recorded, "nothing was recorded"
    await asyncio.sleep(0.05)
    assert len(ledger.calls) == recorded, "an engine went on after the answer was closed"
