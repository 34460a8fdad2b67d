"""Engines that the row scheduler batches."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TypeVar

from ensemblehub.cost import UsageMeter
from ensemblehub.errors import RequestError
from ensemblehub.generators.base import Decoder, Distribution
from ensemblehub.generators.batching.local_engine import Ids, UnloadableEngine
from ensemblehub.generators.batching.local_model import LocalModel, SchedulingOptions
from ensemblehub.generators.batching.rows import LogprobLines, ModelRow, ReadRow, StepRow, WriteRow
from ensemblehub.generators.batching.scheduler import Scheduler
from ensemblehub.generators.structure.grammar_answer import GrammarAnswer, GrammarAnswers
from ensemblehub.schema import Capability, ModelInfo, Request

R = TypeVar("R", bound=ModelRow)


class ScheduledEngine(UnloadableEngine[Scheduler, WriteRow, GrammarAnswer]):
    """An engine over the row scheduler: continuous batching, pausing and a prefix cache."""

    capabilities: frozenset[Capability] = frozenset(
        {"prefix", "logprobs", "score", "decode", "response_format"}
    )

    def __init__(self, name: str, info: ModelInfo, options: SchedulingOptions) -> None:
        if options.tool_parser:
            self.capabilities = self.capabilities | {"tools"}
        super().__init__(name, info, options.enable_thinking)
        self._scheduling = options

    @abstractmethod
    def _load(self) -> LocalModel:
        """Load the model; runs on the worker's thread."""

    def _start(self) -> Scheduler:
        options = self._scheduling
        return Scheduler(
            self.name,
            self._loaded,
            batch_rows=options.batch_rows,
            prefix_cache_tokens=options.prefix_cache_tokens,
        )

    def _loaded(self) -> LocalModel:
        self.vocabulary  # noqa: B018  # computed once and kept
        return self._load()

    def _write(
        self,
        request: Request,
        ids: tuple[int, ...],
        end: frozenset[int],
        structure: GrammarAnswer | None,
    ) -> WriteRow:
        row = WriteRow(
            *self._row(ids),
            sampling=request.sampling,
            end=end,
            vocabulary=self.vocabulary,
            lookahead=self._scheduling.lookahead,
            grammar=structure.grammar if structure else None,
        )
        return self._submitted(row)

    def _read(self, ids: tuple[int, ...]) -> ReadRow:
        return self._submitted(ReadRow(*self._row(ids)))

    def _structure(self, request: Request, ids: Ids, end: frozenset[int]) -> GrammarAnswer | None:
        return self._answers(request, end)

    @cached_property
    def _answers(self) -> GrammarAnswers:
        parser = self._scheduling.tool_parser
        return GrammarAnswers(self.name, self.vocabulary, parser, self._renderer.inside)

    async def step_row(self, ids: tuple[int, ...]) -> StepRow:
        """A row that is stepped by hand, once the model is loaded."""
        await self.load()
        return self._submitted(StepRow(*self._row(ids)))

    def _submitted(self, row: R) -> R:
        self._started().submit(row)
        return row

    def _row(self, ids: Sequence[int]) -> tuple[list[int], asyncio.AbstractEventLoop, Callable[[], None]]:
        return list(ids), asyncio.get_running_loop(), self._started().wake

    def decoder(self, request: Request, meter: UsageMeter) -> RowDecoder:
        return RowDecoder(self, self.fitting(request, 0).ids, meter)


class RowDecoder(Decoder):
    """Steps one row of a scheduled engine."""

    def __init__(self, engine: ScheduledEngine, ids: tuple[int, ...], meter: UsageMeter) -> None:
        self.vocabulary = engine.vocabulary
        self._engine = engine
        self._ids = ids
        self._meter = meter
        self._row: StepRow | None = None
        self._closed = False

    async def step(self, append: Sequence[int] = (), drop: int = 0) -> Distribution:
        return Distribution((await self._distributions(append, drop, 1))[-1])

    async def read(self, append: Sequence[int], drop: int = 0) -> list[Distribution]:
        if not append:
            raise RequestError("there is nothing to read")
        return list(map(Distribution, await self._distributions(append, drop, len(append))))

    def encode(self, text: str) -> list[int]:
        return self._engine.tokenizer.inside(text)

    async def _distributions(self, append: Sequence[int], drop: int, tail: int) -> LogprobLines:
        if self._closed or (self._row and self._row.asked and not self._row.done):
            raise RequestError("the decoder is closed" if self._closed else "the last step is not over")
        if self._row is None:
            self._row = await self._engine.step_row(self._ids)
        row = self._row
        kept = len(row.ids) - drop
        if drop < 0 or kept < row.prompt:
            raise RequestError(f"cannot drop {drop} tokens: {row.written} were appended")
        self._engine.fits(kept, len(append))
        self._engine.knows(append)
        row.change(append, drop, tail)
        try:
            return await row.distributions()
        except asyncio.CancelledError:
            await row.leave()  # so that everything it computed is recorded
            raise

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._row is not None:
            self._row.closed = True
            self._row.wake()
            self._row.record_steps(self._engine.name, self._engine.info, self._meter, self.given)
