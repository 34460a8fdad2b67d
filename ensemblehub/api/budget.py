"""What a request may spend: its engines are watched while they run, and stopped once a limit is reached.

A call that ended counts as its engine recorded it.  While it runs, its prompt counts in full, but for what
this request sent to a local engine before, and its tokens as they come: a limit may end a request early where
caches of earlier requests would have spared something, and is passed by no more than the last piece of each
model.
"""

from __future__ import annotations

import copy
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, aclosing, contextmanager
from dataclasses import dataclass
from typing import Any, cast

from ensemblehub.config.sections import Budget
from ensemblehub.cost import Cost, UsageLedger, UsageLine, UsageMeter, dollars
from ensemblehub.ensemble import AsyncEnsemble
from ensemblehub.errors import RequestError
from ensemblehub.generators.base import Decoder, Distribution, Engine, Vocabulary
from ensemblehub.schema import Piece, Request, Scored


class BudgetSpentError(RequestError):
    """A request has spent what it may."""


def may_cost(engine: Engine) -> bool:
    """Whether a model may cost dollars: it has a price, or an API may tell what its replies cost."""
    return engine.info.price is not None or engine.footprint is None


@dataclass(eq=False)
class RunningCall:
    """A call in progress: tokens read and written so far; `known` were read by this request before."""

    engine: Engine
    read: int
    known: int
    written: int = 0

    @property
    def cost(self) -> Cost:
        """The cost so far."""
        info, end = self.engine.info, self.read + max(0, self.written - 1)
        usd = dollars(info, self.read, self.known, self.written)
        flops = info.flops(self.known, end)
        return Cost(self.read, self.known, self.written, prefill_flops=flops, usd=usd)


class Spending:
    """What the answers of one request spend together.

    Attributes:
        limit: what they may spend.
        reached: whether they were stopped.
    """

    def __init__(
        self, own: Budget, left: Budget | None = None, refusal: Callable[[], Exception] | None = None
    ) -> None:
        """`own` is the request's limit, `left` what its key may still spend."""
        self.limit = own.within(left or Budget())
        self.reached = False
        self._own = own
        self._refusal = refusal
        self._ended = Cost()
        self._running: list[RunningCall] = []
        self._read: dict[str, int] = {}  # longest prompt by local engine

    def ledger(self) -> UsageLedger:
        """A ledger for one of the answers."""
        return UsageLedger(WatchedCalls(self))

    def watched(self, ensemble: AsyncEnsemble) -> AsyncEnsemble:
        """The ensemble with engines that stop at the limit."""
        other = copy.copy(ensemble)
        other.engines = [cast(Engine, WatchedEngine(engine, self)) for engine in ensemble.engines]
        return other

    def refuse(self) -> None:
        """Refuse the request, where it was the rest of its key's budget that did not suffice."""
        if self._refusal is not None:
            raise self._refusal()

    def add(self, cost: Cost) -> None:
        """Count a call that ended."""
        self._ended += cost

    def check(self) -> None:
        """Stop what asks, once the limit is reached.

        Raises:
            BudgetSpentError: says which.
        """
        spent = sum((call.cost for call in self._running), self._ended)
        if (reached := self.limit.reached(spent)) is not None:
            self.reached = True
            if self._own.reached(spent):
                self._refusal = None
            raise BudgetSpentError(f"the budget of the request is spent: {reached}")

    @contextmanager
    def call(self, engine: Engine, request: Request) -> Iterator[RunningCall]:
        """A call while it runs, from its prompt on.

        Raises:
            BudgetSpentError: nothing is left for it.
        """
        read = engine.count(request) or 0
        running = RunningCall(engine, read, min(read, self._read.get(engine.name, 0)))
        if engine.footprint is not None:
            self._read[engine.name] = max(read, self._read.get(engine.name, 0))
        self._running.append(running)
        try:
            self.check()
            yield running
        finally:
            self._running.remove(running)


class WatchedCalls(list[UsageLine]):
    """The calls of a ledger, each of which counts as spent once it is recorded there."""

    def __init__(self, spending: Spending) -> None:
        super().__init__()
        self._spending = spending

    def append(self, call: UsageLine) -> None:
        super().append(call)
        self._spending.add(call.cost)

    def extend(self, calls: Iterable[UsageLine]) -> None:
        for call in calls:
            self.append(call)


class WatchedEngine:
    """An engine whose calls stop at the limit; everything else of it is the engine's own."""

    def __init__(self, engine: Engine, spending: Spending) -> None:
        self._engine = engine
        self._spending = spending

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    async def stream(self, request: Request, meter: UsageMeter) -> AsyncGenerator[Piece, None]:
        """The engine's pieces up to the limit."""
        with self._spending.call(self._engine, request) as call:
            async with aclosing(self._engine.stream(request, meter)) as pieces:
                async for piece in pieces:
                    call.written += piece.length
                    yield piece
                    if piece.finish is None:
                        self._spending.check()

    async def score(self, request: Request, meter: UsageMeter) -> Scored:
        """The engine's scores, where something is left for them."""
        with self._spending.call(self._engine, request):
            return await self._engine.score(request, meter)

    def decoder(self, request: Request, meter: UsageMeter) -> Decoder:
        """The engine's decoder, which stops at the limit."""
        return WatchedDecoder(self._engine, request, meter, self._spending)


class WatchedDecoder(Decoder):
    """A decoder whose steps stop at the limit."""

    def __init__(self, engine: Engine, request: Request, meter: UsageMeter, spending: Spending) -> None:
        self._spending = spending
        with ExitStack() as stack:
            self._running = stack.enter_context(spending.call(engine, request))
            self._decoder = engine.decoder(request, meter)
            self._call = stack.pop_all()

    @property
    def vocabulary(self) -> Vocabulary:  # type: ignore[override]
        """The engine's."""
        return self._decoder.vocabulary

    @property
    def given(self) -> int:
        """As in `Decoder`."""
        return self._decoder.given

    @given.setter
    def given(self, count: int) -> None:
        self._decoder.given = count

    async def step(self, append: Sequence[int] = (), drop: int = 0) -> Distribution:
        self._spending.check()
        self._running.written += len(append)
        return await self._decoder.step(append, drop)

    async def read(self, append: Sequence[int], drop: int = 0) -> list[Distribution]:
        self._spending.check()
        self._running.written += len(append)
        return await self._decoder.read(append, drop)

    def encode(self, text: str) -> list[int]:
        return self._decoder.encode(text)

    def close(self) -> None:
        self._decoder.close()
        self._call.close()
