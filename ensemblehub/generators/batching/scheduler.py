"""The loop on one thread that computes all rows of an engine.

Each turn: rows join and leave, one forward pass reads what new rows have yet to read, one writes the next
token of every row that may go on; then all new tokens are handed over at once.
"""

from __future__ import annotations

import asyncio
import gc
import math
import queue
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import cast

import torch

from ensemblehub.errors import EngineError, one_line
from ensemblehub.generators.batching.batches import chunk, rows_to_read, short_rows
from ensemblehub.generators.batching.callbacks import LoopCallbacks
from ensemblehub.generators.batching.local_model import LocalModel
from ensemblehub.generators.batching.logprobs import entropy, readings_of, top_tokens
from ensemblehub.generators.batching.model_thread import ModelThread
from ensemblehub.generators.batching.prefix_cache import Match, PrefixCache
from ensemblehub.generators.batching.rows import LogprobLines, ModelRow, StepRow, WriteRow
from ensemblehub.generators.batching.sampling import choose, restricted

_STOP = object()
SHARED = 32  # tokens of a prefix for which a row waits while another reads them


@dataclass(eq=False)
class ThreadOrder:
    """Work for the thread between two steps; `done` has its outcome."""

    work: Callable[[], None]
    done: Future[None] = field(default_factory=Future)

    def run(self) -> None:
        """Do the work."""
        try:
            self.work()
        except BaseException as error:
            self.done.set_exception(error)
        else:
            self.done.set_result(None)


class Scheduler(ModelThread[LocalModel]):
    """Owns the worker thread.  `submit`, `wake` and `stop` may be called from any thread."""

    def __init__(
        self, name: str, load: Callable[[], LocalModel], *, batch_rows: int, prefix_cache_tokens: int
    ) -> None:
        super().__init__(name, load)
        self._batch_rows = batch_rows
        self.cache = PrefixCache(prefix_cache_tokens)
        self._inbox: queue.SimpleQueue[object] = queue.SimpleQueue()
        self._waiting: deque[ModelRow] = deque()
        self._rows: list[ModelRow] = []
        self._callbacks = LoopCallbacks()
        self._is_loaded = True
        self._thread.start()

    def submit(self, row: ModelRow) -> None:
        """Let a row join.

        Raises:
            EngineError: the engine is closed.
        """
        with self._lock:
            if self._closed:
                raise self._closed_error()
            self._inbox.put(row)

    def wake(self) -> None:
        """Look at the rows again: one was read, asked or closed."""
        self._inbox.put(None)

    async def unload(self) -> None:
        """Free the model between two steps; rows wait, and go on from what the prefix cache keeps of them.

        Raises:
            EngineError: the engine is closed.
        """
        await self._between_steps(self._unload)

    async def reload(self) -> None:
        """Load the model again, if it was unloaded.

        Raises:
            ConfigError: it cannot be loaded.
            EngineError: the engine is closed.
        """
        await self._between_steps(self._reload)

    async def _between_steps(self, work: Callable[[], None]) -> None:
        order = ThreadOrder(work)
        with self._lock:
            if self._closed:
                raise self._closed_error()
            self._inbox.put(order)
        await asyncio.shield(asyncio.wrap_future(order.done))

    def _unload(self) -> None:
        if not self._is_loaded:
            return
        for row in self._rows:
            self._keep(row, row.computed)
            row.slot = -1
        self._waiting.extendleft(reversed(self._rows))
        self._rows = []
        for entry in self.cache.entries:
            entry.kv = self._model.slots.on_host(entry.kv)
        self._is_loaded, self.loaded = False, Future()
        self._model.close()
        del self._model
        gc.collect()

    def _reload(self) -> None:
        if not self._is_loaded:
            self._model = self._load()
            self._is_loaded = True
            self.loaded.set_result(self._model)

    async def stop(self) -> None:
        """End the thread once the current step is over; rows still running fail."""
        self._close("is closed")
        self._inbox.put(_STOP)
        await self._wait_for_end()

    def _work(self) -> None:
        with torch.inference_mode():
            self._loop()
        self._listen(block=False)  # rows that arrived behind the stop
        self._fail([*self._rows, *self._waiting], self._closed_error())
        self._callbacks.hand_over()
        if self._is_loaded:
            self._model.close()

    def _loop(self) -> None:
        busy = False
        while self._listen(block=not busy):
            try:
                busy = self._turn()
            except BaseException as error:  # no row may wait for ever, whatever went wrong
                if not isinstance(error, Exception):
                    self._close(f"ended: {error!r}")
                self._fail([*self._rows, *self._waiting], self._failure(error))
                self._callbacks.hand_over()
                if self._closed:
                    return

    def _listen(self, *, block: bool) -> bool:
        """Take what has arrived; False when it is time to stop."""
        while True:
            try:
                item = self._inbox.get(block)
            except queue.Empty:
                return True
            if item is _STOP:
                return False
            if isinstance(item, ModelRow):
                self._waiting.append(item)
            elif isinstance(item, ThreadOrder):
                item.run()
            block = False

    def _turn(self) -> bool:
        """One step; True if something was computed."""
        self._retire()
        if not self._is_loaded:
            self._callbacks.hand_over()
            return False
        self._admit()
        ready = [row for row in self._rows if row.ready()]
        short = set(short_rows(ready))
        long = [row for row in ready if row not in short]
        read = rows_to_read(long, self._batch_rows, self._model.vocabulary)
        write = self._to_write([row for row in ready if row in short])
        if read:
            self._compute(read)
        if write:
            self._gather(write)
            self._compute(sorted(write, key=lambda row: row.slot))  # in slot order, so that nothing is copied
        self._retire()
        self._callbacks.hand_over()
        return bool(read or write)

    def _retire(self) -> None:
        """Rows that ended or lost their reader leave; what they computed stays in the prefix cache."""
        for row in [row for row in (*self._rows, *self._waiting) if row.done or row.closed]:
            if row.slot >= 0 and row.error is None:
                self._keep(row, row.computed)
            self._forget(row)

    def _keep(self, row: ModelRow, length: int) -> None:
        """Put the first tokens that a row has computed into the prefix cache."""
        self.cache.put(row.ids[:length], row.readings, partial(self._model.slots.read, row.slot, length))

    def _forget(self, row: ModelRow) -> None:
        if row in self._rows:
            self._rows.remove(row)
            self._model.slots.release(row.slot)
        elif row in self._waiting:
            self._waiting.remove(row)
        self._callbacks.add(row.loop, row.conclude)

    def _admit(self) -> None:
        """Waiting rows join up to `batch_rows` active ones; paused rows do not count."""
        if not self._waiting:
            return
        places = max(0, self._batch_rows - sum(row.ready() for row in self._rows))
        for row in list(islice((row for row in self._waiting if row.ready()), places)):
            try:
                self._join(row)
            except Exception as error:  # such as too little memory for its keys and values
                self._fail([row], self._failure(error))

    def _join(self, row: ModelRow) -> None:
        """Let a row start from the longest computed prefix; it waits where another reads a longer one."""
        match = self.cache.longest(row.ids, read=row.whole)
        for other in self._rows:
            length = other.lent
            if length >= match.length + SHARED and other.begins(row, match.length + SHARED):
                self._keep(other, length)
                match = self.cache.longest(row.ids, read=row.whole)
        wanted = match.length + SHARED
        if any(self._reads(other, row, wanted) for other in self._rows):
            return
        row.slot = self._model.slots.take()
        self._waiting.remove(row)
        self._rows.append(row)
        self._recall(row, match)

    def _reads(self, row: ModelRow, other: ModelRow, count: int) -> bool:
        """Whether a row is about to compute the first `count` tokens of another, to be cached then."""
        reading = row.ready() and row.computed < count and len(row.ids) <= self.cache.limit
        return reading and row.begins(other, count)

    def _recall(self, row: ModelRow, match: Match) -> None:
        """Start from a prefix that was computed before."""
        before, row.computed = row.computed, 0  # what it had computed when the model was unloaded
        if match.entry is not None:
            row.readings = max(row.readings, match.entry.readings.head(match.length), key=len)
            row.computed = match.reusable(len(row.ids), row.whole, row.tail)
        if before:
            row.reread += max(0, before - row.computed)
        else:
            row.cached = row.computed
        if match.entry is not None and row.computed:
            self._model.slots.write(row.slot, match.entry.kv, row.computed)
        row.done = row.whole and row.pending == 0

    def _to_write(self, rows: Sequence[ModelRow]) -> Sequence[ModelRow]:
        """As many rows as fit a pass; where some do not, those that step now queue behind them."""
        if len(rows) > self._batch_rows:
            rows = rows[: self._batch_rows]
            self._rows = [row for row in self._rows if row not in rows] + list(rows)
        return rows

    def _gather(self, rows: Sequence[ModelRow]) -> None:
        """Move rows so that those written together are neighbours."""
        slots, wanted = self._model.slots, set(range(len(rows)))
        strays = [row for row in rows if row.slot not in wanted]
        owners = {row.slot: row for row in self._rows}
        holes = wanted - {row.slot for row in rows}
        for row, hole in zip(strays, sorted(holes, key=owners.__contains__), strict=True):  # free ones first
            if hole in owners:  # a paused row is moved away
                self._move(owners[hole], slots.take())
            self._move(row, hole)

    def _move(self, row: ModelRow, slot: int) -> None:
        if slot not in self._model.slots.free:
            self._model.slots.release(slot)
        self._model.slots.move(row.slot, slot, row.computed)
        row.slot = slot

    def _compute(self, rows: Sequence[ModelRow]) -> None:
        """One forward pass; if it fails, the rows in it fail, and only they."""
        started = time.perf_counter()
        counts = [chunk(row, self._model.vocabulary) for row in rows]
        try:
            self._forward(rows, counts)
        except Exception as error:  # whatever the model raises
            self._fail(rows, self._failure(error))
        share = (time.perf_counter() - started) / sum(counts)
        for row, count in zip(rows, counts, strict=True):
            row.seconds += share * count

    def _forward(self, rows: Sequence[ModelRow], counts: Sequence[int]) -> None:
        starts = [row.computed for row in rows]
        ids = [row.ids[start : start + count] for row, start, count in zip(rows, starts, counts, strict=True)]
        wanted = [min(count, row.tail + count - row.pending) for row, count in zip(rows, counts, strict=True)]
        keep = 0 if rows[0].whole else max(1, *wanted)
        logits = self._model.forward([row.slot for row in rows], starts, ids, keep=keep)
        for row, count in zip(rows, counts, strict=True):
            row.computed += count
        if rows[0].whole:
            self._learn(rows, counts, logits)
            return
        heads = [index for index, row in enumerate(rows) if row.tail == 1 and wanted[index] > 0]
        if heads:
            last = logits[:, -1] if len(heads) == len(rows) else logits[heads, -1]  # copies nothing, or those
            self._predict([rows[index] for index in heads], last)
        for row, count, lines in zip(rows, wanted, logits, strict=True):
            if isinstance(row, StepRow) and row.tail > 1 and count > 0:
                self._answer(row, lines[-count:].log_softmax(-1).cpu().numpy())

    def _learn(self, rows: Sequence[ModelRow], counts: Sequence[int], logits: torch.Tensor) -> None:
        """Note how well the tokens after the computed ones were predicted."""
        for row, count, lines in zip(rows, counts, logits, strict=True):
            first = row.computed - count + 1
            targets = torch.tensor(row.ids[first : row.computed + 1], dtype=torch.long, device=lines.device)
            logprobs, entropies, best = readings_of(lines[-count:][: len(targets)], targets)
            if self._numbers(row, logprobs):
                row.readings.learn(first, logprobs, entropies, best)
                row.done = row.pending == 0

    def _predict(self, rows: Sequence[ModelRow], logits: torch.Tensor) -> None:
        """The next token of the rows that write, the distribution for those that are stepped."""
        logprobs = logits.log_softmax(-1)
        stepped = [index for index, row in enumerate(rows) if isinstance(row, StepRow)]
        if stepped:
            lines = (logprobs if len(stepped) == len(rows) else logprobs[stepped]).cpu().numpy()
            for place, index in enumerate(stepped):
                self._answer(cast(StepRow, rows[index]), lines[place : place + 1])
        writing = [index for index, row in enumerate(rows) if isinstance(row, WriteRow)]
        if writing:
            if stepped:
                logits, logprobs = logits[writing], logprobs[writing]
            self._write([cast(WriteRow, rows[index]) for index in writing], logits, logprobs)

    def _write(self, rows: Sequence[WriteRow], logits: torch.Tensor, logprobs: torch.Tensor) -> None:
        logits, logprobs = restricted([row.grammar for row in rows], logits, logprobs)
        chosen = choose([row.sampler for row in rows], logits)
        own = logprobs.gather(-1, chosen[:, None]).squeeze(-1)
        highest, most_probable = logprobs.max(-1)
        values = torch.stack((own, entropy(logprobs), highest), -1).tolist()
        parts = zip(rows, chosen.tolist(), values, most_probable.tolist(), logprobs, strict=True)
        for row, index, (logprob, spread, best), best_index, line in parts:
            if self._numbers(row, (logprob, best)):
                top = top_tokens(line, row.sampling.top_logprobs)
                accepted = row.accept(index, logprob, spread, (best_index, best), top)
                self._callbacks.add(row.loop, accepted)

    def _answer(self, row: StepRow, lines: LogprobLines) -> None:
        """Give a row the distributions that it asked for."""
        if self._numbers(row, lines[:, 0].tolist()):  # one NaN makes a whole line NaN
            self._callbacks.add(row.loop, row.answer(lines))

    def _numbers(self, row: ModelRow, values: Sequence[float]) -> bool:
        """Whether no logprob is NaN; otherwise the row fails, since greedy choice would take any token."""
        if not any(map(math.isnan, values)):
            return True
        self._fail([row], self._failure(ArithmeticError(row.flaw)))
        return False

    def _failure(self, error: BaseException) -> EngineError:
        failure = EngineError(f"{self.name}: the model failed: {one_line(error)}", self.name)
        failure.__cause__ = error
        return failure

    def _fail(self, rows: Sequence[ModelRow], error: EngineError) -> None:
        for row in list(rows):
            row.error, row.done = error, True
            self._forget(row)
