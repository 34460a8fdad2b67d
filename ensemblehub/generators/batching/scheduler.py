"""The one loop on one thread that computes all rows of an engine.

Each turn: rows join and leave, one forward pass reads what new rows have yet to read, one writes the
next token of every row that may go on; then all new tokens are handed over at once.  Knows rows, the
model and the prefix cache; knows no request.
"""

from __future__ import annotations

import asyncio
import math
import queue
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray

from ensemblehub.errors import EngineError, one_line
from ensemblehub.generators.batching.prefix_cache import PrefixCache
from ensemblehub.generators.batching.rows import Row, StepRow, Top, WriteRow
from ensemblehub.generators.batching.sampling import choose
from ensemblehub.generators.hf.model import Model, entropy, reading

_CHUNK = 2048  # tokens read in one forward pass
_FEW, _SMALL = 4, 64  # tokens of a row, and of a pass, that may be read while others write
_LOGITS = 2**27  # logits held at once when every token's prediction is wanted
_STOP = object()


class Scheduler:
    """Owns the worker thread.  `submit`, `wake` and `stop` may be called from any thread."""

    def __init__(
        self, name: str, load: Callable[[], Model], *, batch_rows: int, prefix_cache_tokens: int
    ) -> None:
        self.name, self._load, self._batch_rows = name, load, batch_rows
        self.cache = PrefixCache(prefix_cache_tokens)
        self.loaded: Future[Model] = Future()
        self._inbox: queue.SimpleQueue[object] = queue.SimpleQueue()
        self._waiting: deque[Row] = deque()
        self._rows: list[Row] = []
        self._mail: defaultdict[asyncio.AbstractEventLoop, list[Callable[[], None]]] = defaultdict(list)
        self._closed, self._why = False, "is closed"
        self._gate = threading.Lock()  # no row arrives once the engine is closed
        self._thread = threading.Thread(target=self._work, name=f"ensemblehub-{name}", daemon=True)
        self._thread.start()

    def submit(self, row: Row) -> None:
        """Let a row join.

        Raises:
            EngineError: the engine is closed.
        """
        with self._gate:
            if self._closed:
                raise EngineError(f"{self.name} {self._why}", self.name)
            self._inbox.put(row)

    def wake(self) -> None:
        """Something about a row has changed: it was read, asked for or closed."""
        self._inbox.put(None)

    def stop(self) -> None:
        """End the thread; rows still running fail.  Blocks until the current step is over."""
        with self._gate:
            self._closed = True
        self._inbox.put(_STOP)
        self._thread.join()

    def _work(self) -> None:
        try:
            self._model = self._load()
        except BaseException as error:
            self.loaded.set_exception(error)
            return
        self.loaded.set_result(self._model)
        busy = False
        with torch.inference_mode():
            while self._listen(block=not busy):
                try:
                    busy = self._turn()
                except BaseException as error:  # no row may wait for ever, whatever went wrong
                    if not isinstance(error, Exception):
                        with self._gate:
                            self._closed, self._why = True, f"ended: {error!r}"
                    self._fail([*self._rows, *self._waiting], self._failure(error))
                    self._hand_over()
                    if self._closed:
                        break
        self._listen(block=False)  # rows that arrived behind the stop
        self._fail([*self._rows, *self._waiting], EngineError(f"{self.name} {self._why}", self.name))
        self._hand_over()

    def _listen(self, *, block: bool) -> bool:
        """Take what has arrived; False when it is time to stop."""
        while True:
            try:
                item = self._inbox.get(block)
            except queue.Empty:
                return True
            if item is _STOP:
                return False
            if isinstance(item, Row):
                self._waiting.append(item)
            block = False

    def _turn(self) -> bool:
        """One step; True if something was computed."""
        self._retire()
        self._admit()
        ready = [row for row in self._rows if row.ready()]
        short = set(self._short(ready))
        read = self._to_read([row for row in ready if row not in short])
        write = self._to_write([row for row in ready if row in short])
        if read:
            self._compute(read)
        if write:
            self._gather(write)
            self._compute(sorted(write, key=lambda row: row.slot))  # in slot order, so that nothing is copied
        self._retire()
        self._hand_over()
        return bool(read or write)

    def _retire(self) -> None:
        """Rows that ended or lost their reader leave; what they computed stays in the prefix cache."""
        gone = [row for row in (*self._rows, *self._waiting) if row.done or row.closed]
        for row in gone:
            if row.slot >= 0 and row.error is None:
                computed = partial(self._model.slots.read, row.slot, row.computed)
                self.cache.put(row.ids[: row.computed], row.readings, computed)
            self._forget(row)

    def _forget(self, row: Row) -> None:
        if row in self._rows:
            self._rows.remove(row)
            self._model.slots.release(row.slot)
        elif row in self._waiting:
            self._waiting.remove(row)
        self._mail[row.loop].append(row.conclude)

    def _admit(self) -> None:
        """Waiting rows join while there is room; paused rows take none."""
        room = self._batch_rows - sum(row.ready() for row in self._rows) if self._waiting else 0
        while self._waiting and room > 0:
            row = self._waiting[0]
            row.slot = self._model.slots.take()
            self._rows.append(self._waiting.popleft())
            self._recall(row)
            room -= 1

    def _recall(self, row: Row) -> None:
        """Start from the longest prefix that was computed before.

        The last token is computed anew, for what it predicts; where all predictions are wanted, so is the
        last token whose successor's prediction is known.
        """
        match = self.cache.longest(row.ids, read=row.whole)
        if match.entry is None:
            return
        row.readings = match.entry.readings.head(match.read)
        reach = match.read if row.whole else match.common
        if row.whole:
            row.computed = row.cached = reach if reach == len(row.ids) else reach - 1
        else:
            row.computed = row.cached = min(reach, len(row.ids) - 1)
        if row.computed:
            self._model.slots.write(row.slot, match.entry.kv, row.computed)
        row.done = row.whole and row.pending == 0

    def _short(self, rows: Sequence[Row]) -> list[Row]:
        """Rows that go on by one token, and those that do by a few where a pass of all of them stays small."""
        few = [row for row in rows if not row.whole and row.pending <= _FEW]
        small = len(few) * max((row.pending for row in few), default=0) <= _SMALL
        return [row for row in few if small or row.pending == 1]

    def _to_read(self, rows: Sequence[Row]) -> list[Row]:
        """The row that waits longest and others of its kind and about its length, as many as fit a pass."""
        if not rows:
            return []
        first, limit = rows[0], max(64, 2 * self._chunk(rows[0]))
        alike = [row for row in rows if row.whole is first.whole and self._chunk(row) <= limit]
        width = max(map(self._chunk, alike))
        near = [row for row in alike if row is first or 2 * self._chunk(row) >= width or width <= 64]
        return near[: min(self._batch_rows, max(1, self._most(first) // width))]

    def _to_write(self, rows: Sequence[Row]) -> Sequence[Row]:
        """As many rows as fit a pass; where some do not, those that step now queue behind them."""
        if len(rows) <= self._batch_rows:
            return rows
        for row in rows[: self._batch_rows]:
            self._rows.remove(row)
            self._rows.append(row)
        return rows[: self._batch_rows]

    def _most(self, row: Row) -> int:
        return max(64, min(_CHUNK, _LOGITS // self._model.vocabulary)) if row.whole else _CHUNK

    def _chunk(self, row: Row) -> int:
        return min(row.pending, self._most(row))

    def _gather(self, rows: Sequence[Row]) -> None:
        """Move rows so that those written together are neighbours."""
        slots, wanted = self._model.slots, set(range(len(rows)))
        strays = [row for row in rows if row.slot not in wanted]
        owners = {row.slot: row for row in self._rows}
        holes = sorted(
            wanted - {row.slot for row in rows}, key=lambda slot: slot in owners
        )  # free ones first
        for row, hole in zip(strays, holes, strict=True):
            if hole in owners:  # a paused row makes room
                self._move(owners[hole], slots.take())
            self._move(row, hole)

    def _move(self, row: Row, slot: int) -> None:
        if slot not in self._model.slots.free:
            self._model.slots.release(slot)
        self._model.slots.move(row.slot, slot, row.computed)
        row.slot = slot

    def _compute(self, rows: Sequence[Row]) -> None:
        """One forward pass; if it fails, the rows in it fail, and only they."""
        started, counts = time.perf_counter(), [self._chunk(row) for row in rows]
        try:
            self._forward(rows, counts)
        except Exception as error:  # whatever the model raises
            self._fail(rows, self._failure(error))
        share = (time.perf_counter() - started) / sum(counts)
        for row, count in zip(rows, counts, strict=True):
            row.seconds += share * count

    def _forward(self, rows: Sequence[Row], counts: Sequence[int]) -> None:
        whole, starts = rows[0].whole, [row.computed for row in rows]
        ids = [row.ids[start : start + count] for row, start, count in zip(rows, starts, counts, strict=True)]
        wanted = [min(count, row.tail + count - row.pending) for row, count in zip(rows, counts, strict=True)]
        keep = 0 if whole else max(1, *wanted)
        logits = self._model.forward([row.slot for row in rows], starts, ids, keep=keep)
        for row, count in zip(rows, counts, strict=True):
            row.computed += count
        if whole:
            self._learn(rows, counts, logits)
            return
        heads = [index for index, row in enumerate(rows) if row.tail == 1 and wanted[index] > 0]
        self._predict([rows[index] for index in heads], logits[heads, -1])
        for row, count, lines in zip(rows, wanted, logits, strict=True):
            if isinstance(row, StepRow) and row.tail > 1 and count > 0:
                self._tell(row, lines[-count:].log_softmax(-1).cpu().numpy())

    def _learn(self, rows: Sequence[Row], counts: Sequence[int], logits: torch.Tensor) -> None:
        """Note how well the tokens after the computed ones were predicted."""
        for row, count, lines in zip(rows, counts, logits, strict=True):
            first = row.computed - count + 1
            targets = torch.tensor(row.ids[first : row.computed + 1], dtype=torch.long, device=lines.device)
            logprobs, entropies, best = reading(lines[-count:][: len(targets)], targets)
            if not self._numbers(row, logprobs):
                continue
            row.readings.learn(first, logprobs, entropies, best)
            row.done = row.pending == 0

    def _predict(self, rows: Sequence[Row], logits: torch.Tensor) -> None:
        """The next token of the rows that write, the distribution for those that are stepped."""
        if not rows:
            return
        logprobs = logits.log_softmax(-1)
        stepped = [index for index, row in enumerate(rows) if isinstance(row, StepRow)]
        if stepped:
            lines = (logprobs if len(stepped) == len(rows) else logprobs[stepped]).cpu().numpy()
            for place, index in enumerate(stepped):
                self._tell(cast(StepRow, rows[index]), lines[place : place + 1])
        writing = [index for index, row in enumerate(rows) if isinstance(row, WriteRow)]
        if writing:
            writers = [cast(WriteRow, rows[index]) for index in writing]
            every = len(writing) == len(rows)
            self._write(
                writers, logits if every else logits[writing], logprobs if every else logprobs[writing]
            )

    def _write(self, rows: Sequence[WriteRow], logits: torch.Tensor, logprobs: torch.Tensor) -> None:
        chosen = choose([row.choice for row in rows], logits)
        own = logprobs.gather(-1, chosen[:, None]).squeeze(-1)
        highest, likeliest = logprobs.max(-1)
        known = torch.stack((own, entropy(logprobs), highest), -1).tolist()
        parts = zip(rows, chosen.tolist(), known, likeliest.tolist(), logprobs, strict=True)
        for row, index, (logprob, spread, best), other, line in parts:
            if not self._numbers(row, (logprob, best)):
                continue
            top = _likeliest(line, row.sampling.top_logprobs)
            self._mail[row.loop].append(row.accept(index, logprob, spread, (other, best), top))

    def _tell(self, row: StepRow, lines: NDArray[np.float32]) -> None:
        """The distributions that a row asked for."""
        if self._numbers(row, lines[:, 0].tolist()):  # one that is no number makes all of a line none
            self._mail[row.loop].append(row.answer(lines))

    def _numbers(self, row: Row, values: Sequence[float]) -> bool:
        """Whether logprobs are numbers; where they are none the row fails: greedy choice would take any token."""
        if not any(map(math.isnan, values)):
            return True
        self._fail(
            [row], EngineError(f"{self.name}: the model failed: its logits are not numbers (NaN)", self.name)
        )
        return False

    def _failure(self, error: BaseException) -> EngineError:
        failure = EngineError(f"{self.name}: the model failed: {one_line(error)}", self.name)
        failure.__cause__ = error
        return failure

    def _fail(self, rows: Sequence[Row], error: EngineError) -> None:
        for row in list(rows):
            row.error, row.done = error, True
            self._forget(row)

    def _hand_over(self) -> None:
        """All news of a step, one call per event loop."""
        mail, self._mail = self._mail, defaultdict(list)
        for loop, calls in mail.items():
            with suppress(RuntimeError):  # the reader's loop is closed: nobody reads any more
                loop.call_soon_threadsafe(_call_all, calls)


def _call_all(calls: Sequence[Callable[[], None]]) -> None:
    for call in calls:
        call()


def _likeliest(logprobs: torch.Tensor, count: int) -> Top:
    if not count:
        return ()
    values, indices = logprobs.topk(min(count, logprobs.shape[-1]))
    return tuple(zip(indices.tolist(), values.tolist(), strict=True))
