"""Models that do not fit into memory together and take turns in it (`swap: true`)."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator
from concurrent.futures import Future
from contextlib import aclosing, asynccontextmanager

from ensemblehub.cost import UsageMeter
from ensemblehub.errors import EngineError, EnsembleHubError, one_line
from ensemblehub.generators.base import Engine
from ensemblehub.generators.wrapped import WrappedEngine
from ensemblehub.schema import Capability, Piece, Request, Scored

TURN = 3.0  # swaps in whose time a busy model keeps its turn while others wait
LINGER = 0.1  # swaps in whose time an idle model keeps its turn while others wait
SHORTEST = 0.2  # seconds that a swap counts at least
log = logging.getLogger(__name__)


class SwapGroup:
    """One place in memory for several engines, of which one is loaded at a time.

    The loaded engine serves every call that arrives until another engine is waited for, and then until it has
    been idle for a moment (`LINGER`), or until its turn is over (`TURN`), both in the time that the last swap
    took.  Then the engine that has been waited for longest is loaded.  So busy engines spend at most
    1 / (1 + `TURN`) of the time on swaps, and a call waits for at most one turn of every other engine.

    Calls may come from any thread and event loop.  A thread makes the swaps, and ends when no call waits.

    Attributes:
        loads: number of times that each engine was loaded, by name.
    """

    def __init__(self) -> None:
        self.loads = Counter[str]()
        self._changed = threading.Condition()  # guards everything below
        self._loaded: Engine | None = None
        self._running = 0  # calls inside the loaded engine
        self._waiting: list[tuple[Engine, Future[None]]] = []  # first come first
        self._seconds = SHORTEST  # that the last swap took
        self._since = self._idle = 0.0  # when the engine was loaded, and when its last call ended
        self._is_swapping = False  # whether the thread is there

    @asynccontextmanager
    async def turn(self, engine: Engine) -> AsyncIterator[None]:
        """Wait until `engine` is loaded, and keep it loaded inside.

        Raises:
            EnsembleHubError: it cannot be loaded.
        """
        place = self._enter(engine)
        try:
            if place is not None:
                await asyncio.wrap_future(place)
        except asyncio.CancelledError:
            if place is not None and not place.cancel() and place.exception() is None:
                self._leave()  # its turn had come
            raise
        try:
            yield
        finally:
            self._leave()

    def forget(self, engine: Engine) -> None:
        """Note that an engine was closed."""
        with self._changed:
            if self._loaded is engine:
                self._loaded = None
                self._changed.notify()

    def _enter(self, engine: Engine) -> Future[None] | None:
        """Start a call, or return what is done when its turn has come."""
        with self._changed:
            others_wait = bool(self._waiting)
            if engine is self._loaded and not (others_wait and time.monotonic() >= self._turn_end):
                self._running += 1
                return None
            place: Future[None] = Future()
            self._waiting.append((engine, place))
            if not self._is_swapping:
                self._is_swapping = True
                threading.Thread(
                    target=self._swap_while_waiting, name="ensemblehub-swap", daemon=True
                ).start()
            return place

    def _leave(self) -> None:
        with self._changed:
            self._running -= 1
            self._idle = time.monotonic()
            self._changed.notify()

    @property
    def _turn_end(self) -> float:
        return self._since + TURN * self._seconds

    def _swap_while_waiting(self) -> None:
        while (swap := self._next()) is not None:
            before, engine = swap
            started = time.monotonic()
            try:
                asyncio.run(_exchange(before, engine))
            except Exception as error:  # whatever a library raises
                reason = f"{engine.name} cannot be loaded: {one_line(error)}"
                failure = error if isinstance(error, EnsembleHubError) else EngineError(reason, engine.name)
                log.warning("%s", failure)
                self._admit(engine, failure)
                continue
            self._seconds = max(SHORTEST, time.monotonic() - started)
            self.loads[engine.name] += 1
            log.info("%s is loaded, after %.1f s", engine.name, self._seconds)
            self._admit(engine, None)

    def _next(self) -> tuple[Engine | None, Engine] | None:
        """Wait until it is time to swap; return the engines to unload and to load, None if no call waits."""
        with self._changed:
            while True:
                self._waiting = [entry for entry in self._waiting if not entry[1].cancelled()]
                if not self._waiting:
                    self._is_swapping = False
                    return None
                engine, before = self._waiting[0][0], self._loaded
                if engine is before:
                    self._admit(engine, None)
                    continue
                end = self._turn_end
                if not self._running:
                    end = min(end, self._idle + LINGER * self._seconds)
                left = end - time.monotonic()
                if before is None or (left <= 0 and not self._running):
                    self._loaded = None
                    return before, engine
                self._changed.wait(left if left > 0 else None)

    def _admit(self, engine: Engine, failure: EnsembleHubError | None) -> None:
        """Start the calls that wait for `engine`, or let them fail."""
        with self._changed:
            if failure is None:
                self._loaded, self._since = engine, time.monotonic()
            self._idle = time.monotonic()
            places = [place for other, place in self._waiting if other is engine]
            self._waiting = [entry for entry in self._waiting if entry[0] is not engine]
            for place in places:
                if not place.set_running_or_notify_cancel():
                    continue
                if failure is not None:
                    place.set_exception(failure)
                else:
                    self._running += 1
                    place.set_result(None)


async def _exchange(before: Engine | None, engine: Engine) -> None:
    if before is not None:
        await before.unload()
    await engine.load()


class SwappedEngine(WrappedEngine):
    """An engine that takes turns with the others of its group.

    A stream holds its turn while its next piece is computed, not while it is read, so that a strategy may
    keep the streams of several models open.  There is no `decode`: every token of a mixture would be a swap.

    Raises:
        CapabilityError: the engine cannot be unloaded.
    """

    def __init__(self, engine: Engine, group: SwapGroup) -> None:
        engine.prepare_swap()
        super().__init__(engine)
        self.capabilities = engine.capabilities - {"decode"}
        self._group = group

    async def stream(self, request: Request, meter: UsageMeter) -> AsyncGenerator[Piece, None]:
        self.offers(request)
        async with aclosing(self._engine.stream(request, meter)) as pieces:
            while True:
                async with self._group.turn(self._engine):
                    piece = await anext(pieces, None)
                if piece is None:
                    return
                yield piece

    async def score(self, request: Request, meter: UsageMeter) -> Scored:
        async with self._group.turn(self._engine):
            return await self._engine.score(request, meter)

    def why_not(self, capability: Capability) -> str:
        if capability in self._engine.capabilities - self.capabilities:
            return (
                f"it has `swap: true`, and {capability} of models that take turns would swap at every token"
            )
        return super().why_not(capability)

    @property
    def loads(self) -> int:
        """Number of times that the model was loaded."""
        return self._group.loads[self.name]

    def describe(self) -> str:
        return f"{super().describe()}, loaded by turns"

    async def load(self) -> None:
        """Load the model once, in its turn, to see that it can be."""
        async with self._group.turn(self._engine):
            pass

    async def close(self) -> None:
        await super().close()
        self._group.forget(self._engine)
