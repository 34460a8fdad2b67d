"""A GGUF model in llama.cpp, and one forward pass of it over rows of different lengths.

A `LocalModel` for the scheduler.  A row lies in a sequence of llama.cpp's KV cache; when there are more rows
than sequences, the least recently used wait as saved states.  Knows llama.cpp's C interface; knows no request.
"""

from __future__ import annotations

import ctypes
import logging
import os
from collections import deque
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import llama_cpp
import numpy as np
import torch
from numpy.typing import NDArray

from ensemblehub.errors import ConfigError, one_line

State = NDArray[np.uint8]  # keys and values of a sequence as llama.cpp saves them

KV_TYPES = {"f32": 0, "f16": 1, "q8_0": 8}  # ggml's numbers
_BATCH = 2048  # tokens that one call may be given; a row of the scheduler never has more
_ERROR = 4  # ggml's log level
_complaints: deque[str] = deque(maxlen=8)  # llama.cpp says why it failed in its log only
log = logging.getLogger(__name__)


def _listen(level: int, text: bytes, _: Any) -> None:
    if level == _ERROR:
        _complaints.append(text.decode(errors="replace").strip())
        log.debug(text.decode(errors="replace").strip())


_LISTENER = llama_cpp.llama_log_callback(_listen)  # kept: C holds on to it


@cache
def _ready() -> None:
    llama_cpp.llama_log_set(_LISTENER, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()


class LlamaModel:
    """Weights and KV cache; used on one thread.

    Args:
        context: tokens of the longest row.
        rows: sequences of the KV cache, each with room for `context` tokens.
        batch: tokens computed together when a prompt is read.
        threads: CPU threads; None takes half of those that this process may use.
        gpu_layers: layers on the GPU, -1 for all.
        kv: precision of the keys and values.

    Raises:
        ConfigError: llama.cpp cannot load the file, or rows of this model cannot be cut back.
    """

    def __init__(
        self, path: str, *, context: int, rows: int, batch: int, threads: int | None, gpu_layers: int, kv: str
    ) -> None:
        _ready()
        _complaints.clear()
        self._model: Any = None
        self._context: Any = None
        options = llama_cpp.llama_model_default_params()
        options.n_gpu_layers = gpu_layers if gpu_layers >= 0 else 2**31 - 1
        self._model = llama_cpp.llama_model_load_from_file(os.fsencode(path), options)
        if not self._model:
            raise ConfigError(f"cannot load {path!r}: {_reason()}")
        if _is_other(self._model):
            self.close()
            raise ConfigError(f"{path}: the llama_cpp engine runs decoders with attention only")
        self._context = llama_cpp.llama_init_from_model(
            self._model, _shape(context, rows, batch, threads, gpu_layers, kv)
        )
        if not self._context:
            self.close()
            raise ConfigError(f"cannot make room for {rows} x {context} tokens of {path!r}: {_reason()}")
        self.vocabulary = int(llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model)))
        windowed = llama_cpp.llama_model_n_swa(self._model) > 0
        self.slots = Sequences(self._context, rows, windowed)
        self._batch = _Batch(_BATCH)

    def close(self) -> None:
        """Free the model; closing twice is harmless."""
        if self._context:
            llama_cpp.llama_free(self._context)
        if self._model:
            llama_cpp.llama_model_free(self._model)
        self._context = self._model = None

    def forward(
        self, slots: Sequence[int], starts: Sequence[int], ids: Sequence[Sequence[int]], *, keep: int
    ) -> torch.Tensor:
        """Compute `ids[i]` at positions `starts[i]` on, in slot `slots[i]`.

        Returns:
            float32 logits (rows, `keep`, vocabulary) of each row's newest tokens, the last one in the last
            column; with `keep` 0 of all new tokens.  What a row has fewer tokens for is undefined.
        """
        counts = [len(row) for row in ids]
        columns = keep or max(counts)
        wanted = [min(columns, count) for count in counts]
        logits = np.empty((len(ids), columns, self.vocabulary), dtype=np.float32)
        for first, last in self._groups(counts):
            sequences = self.slots.seat(slots[first:last], starts[first:last])
            if max(counts[first:last]) == 1:
                sequences = self.slots.neighbours(slots[first:last])
            places = dict(zip(sequences, range(first, last), strict=True))
            order = [places[sequence] for sequence in sorted(places)]
            self._batch.fill(
                sorted(places),
                [starts[row] for row in order],
                [ids[row] for row in order],
                [wanted[row] for row in order],
            )
            code = llama_cpp.llama_decode(self._context, self._batch.struct)
            if code:
                raise RuntimeError(_reason(f"llama_decode returned {code}"))
            self.slots.computed(slots[first:last], starts[first:last], counts[first:last])
            if min(wanted[first:last]) == columns and order == list(range(first, last)):
                self._copy(logits[first:last])
                continue
            lines, at = self._copy(np.empty((sum(wanted[first:last]), self.vocabulary), dtype=np.float32)), 0
            for row in order:
                logits[row, columns - wanted[row] :] = lines[at : at + wanted[row]]
                at += wanted[row]
        return torch.from_numpy(logits)

    def _groups(self, counts: Sequence[int]) -> Iterator[tuple[int, int]]:
        """First and last row of what one call can take: as many rows as there are sequences, `_BATCH` tokens."""
        first = tokens = 0
        for row, count in enumerate(counts):
            if row - first == self.slots.count or tokens + count > _BATCH:
                yield first, row
                first, tokens = row, 0
            tokens += count
        yield first, len(counts)

    def _copy(self, lines: NDArray[np.float32]) -> NDArray[np.float32]:
        """Fill `lines` with the logits just computed, which are in the order of the batch."""
        ctypes.memmove(lines.ctypes.data, llama_cpp.llama_get_logits(self._context), lines.nbytes)
        return lines


def _shape(context: int, rows: int, batch: int, threads: int | None, gpu_layers: int, kv: str) -> Any:
    options = llama_cpp.llama_context_default_params()
    options.n_ctx, options.n_seq_max = context * rows, rows
    options.n_batch, options.n_ubatch = _BATCH, min(batch, _BATCH)
    options.n_threads = options.n_threads_batch = threads or _cores()
    options.type_k = options.type_v = KV_TYPES[kv]
    if kv == "f32" or (
        not gpu_layers and kv != "q8_0"
    ):  # it rounds to float16, and on a CPU it is the slower way
        options.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
    options.kv_unified = False  # a row attends over its own cells alone, not over those of all
    options.swa_full = True  # keep what a sliding window has passed, so that rows can be cut back
    options.no_perf = True
    return options


def _is_other(model: Any) -> bool:
    kinds = (
        llama_cpp.llama_model_is_recurrent,
        llama_cpp.llama_model_is_hybrid,
        llama_cpp.llama_model_has_encoder,
    )
    return any(kind(model) for kind in kinds)


def _cores() -> int:
    """Half of what this process may use, as llama-cpp-python has it: threads of one core disturb each other."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // 2)


def _reason(text: str = "no reason was given") -> str:
    found = one_line(" ".join(_complaints)) if _complaints else text
    _complaints.clear()
    return found


class Sequences:
    """Slots of rows: each a sequence of the KV cache, or a saved state while others need the sequence.

    Slots are numbers that the scheduler sorts and exchanges; moving one copies nothing.

    Args:
        windowed: some layers attend to a sliding window.  A saved state then lacks what lies before the window,
            so it can be continued but not cut back.
    """

    def __init__(self, context: Any, count: int, windowed: bool) -> None:
        self.count = count
        self.free: list[int] = []
        self._context, self._memory, self._windowed = context, llama_cpp.llama_get_memory(context), windowed
        self._made = 0
        self._sequences: dict[int, int] = {}  # by slot, least recently used first
        self._saved: dict[int, State] = {}  # by slot
        self._lengths: dict[int, int] = {}  # tokens in a slot's sequence
        self._floors: dict[int, int] = {}  # how far it can be cut back
        self._spare = list(range(count))

    def take(self) -> int:
        """The lowest free slot, empty."""
        if not self.free:
            self.free.append(self._made)
            self._made += 1
        slot = min(self.free)
        self.free.remove(slot)
        return slot

    def release(self, slot: int) -> None:
        """Give a slot back; what is in it is gone."""
        self._saved.pop(slot, None)
        if slot in self._sequences:
            self._leave(slot)
        self.free.append(slot)

    def move(self, source: int, target: int, length: int) -> None:
        """Let a row have a free slot's number."""
        everything: tuple[dict[int, Any], ...] = (self._sequences, self._saved, self._lengths, self._floors)
        for places in everything:
            if source in places:
                places[target] = places.pop(source)
        self.free.remove(target)
        self.free.append(source)

    def write(self, slot: int, kv: State, length: int) -> None:
        """Put the first `length` tokens of a saved state into a slot."""
        self._saved[slot] = kv
        self._enter(slot, self._room(()))
        self._cut(slot, length)

    def read(self, slot: int, length: int) -> State:
        """A copy of what a slot holds, its first `length` tokens at least."""
        if slot not in self._sequences:
            return self._saved[slot]
        self._cut(slot, length)
        sequence = self._sequences[slot]
        state = np.empty(llama_cpp.llama_state_seq_get_size(self._context, sequence), dtype=np.uint8)
        if (
            llama_cpp.llama_state_seq_get_data(self._context, _bytes(state), state.size, sequence)
            != state.size
        ):
            raise RuntimeError(_reason("the state of a row could not be saved"))
        return state

    def seat(self, slots: Sequence[int], starts: Sequence[int]) -> list[int]:
        """The sequences of these slots, `count` at most, cut to the positions from which they go on."""
        for slot, start in zip(slots, starts, strict=True):
            if slot in self._sequences:
                self._sequences[slot] = self._sequences.pop(slot)  # used last
            else:
                self._enter(slot, self._room(slots))
            self._cut(slot, start)
        return [self._sequences[slot] for slot in slots]

    def neighbours(self, slots: Sequence[int]) -> list[int]:
        """The sequences of these seated slots, once they are neighbours.

        Only of neighbours, in their order, llama.cpp makes one pass; of others it makes several, each over all weights.
        """
        used, count = {self._sequences[slot] for slot in slots}, len(slots)
        if max(used) - min(used) >= count and not self._windowed:
            starts = range(self.count - count + 1)
            start = max(starts, key=lambda first: sum(first <= one < first + count for one in used))
            wanted, owners = (
                set(range(start, start + count)),
                {one: slot for slot, one in self._sequences.items()},
            )
            strays = [slot for slot in slots if self._sequences[slot] not in wanted]
            for slot, hole in zip(strays, wanted - used, strict=True):
                for one in (slot, owners.get(hole)):
                    if one is not None:
                        self._rest(one)
                self._spare.remove(hole)
                self._enter(slot, hole)
        return [self._sequences[slot] for slot in slots]

    def computed(self, slots: Sequence[int], starts: Sequence[int], counts: Sequence[int]) -> None:
        """Note what a pass has added."""
        for slot, start, count in zip(slots, starts, counts, strict=True):
            self._lengths[slot] = start + count

    def _room(self, staying: Sequence[int]) -> int:
        """A free sequence, if need be that of the row that rests longest."""
        if not self._spare:
            self._rest(next(other for other in self._sequences if other not in staying))
        return self._spare.pop()

    def _rest(self, slot: int) -> None:
        """Save what is in a slot, and free its sequence."""
        self._saved[slot] = self.read(slot, self._lengths[slot])
        self._leave(slot)

    def _enter(self, slot: int, sequence: int) -> None:
        """Give a slot a free sequence, and what was saved of it."""
        self._sequences[slot] = sequence
        self._lengths[slot] = self._floors[slot] = 0
        state = self._saved.pop(slot, None)
        if state is not None:
            if not llama_cpp.llama_state_seq_set_data(self._context, _bytes(state), state.size, sequence):
                raise RuntimeError(_reason("a saved state could not be restored"))
            self._lengths[slot] = int(llama_cpp.llama_memory_seq_pos_max(self._memory, sequence)) + 1
            self._floors[slot] = self._lengths[slot] if self._windowed else 0

    def _leave(self, slot: int) -> None:
        sequence = self._sequences.pop(slot)
        llama_cpp.llama_memory_seq_rm(self._memory, sequence, -1, -1)
        del self._lengths[slot], self._floors[slot]
        self._spare.append(sequence)

    def _cut(self, slot: int, length: int) -> None:
        """Forget the tokens from position `length` on."""
        if self._lengths[slot] <= length:
            return
        sequence = self._sequences[slot]
        if length < self._floors[slot] or not llama_cpp.llama_memory_seq_rm(
            self._memory, sequence, length, -1
        ):
            raise RuntimeError("this model cannot cut back what it has computed")
        self._lengths[slot] = length


def _bytes(state: State) -> Any:
    return state.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))


class _Batch:
    """llama.cpp's batch over arrays of our own."""

    def __init__(self, size: int) -> None:
        self._ids, self._positions, self._sequences = (np.zeros(size, dtype=np.int32) for _ in range(3))
        self._counts, self._wanted = np.ones(size, dtype=np.int32), np.zeros(size, dtype=np.int8)
        self._places = self._sequences.ctypes.data + 4 * np.arange(size, dtype=np.uint64)
        number = ctypes.POINTER(ctypes.c_int32)
        self.struct = llama_cpp.llama_batch(
            n_tokens=0,
            token=self._ids.ctypes.data_as(number),
            pos=self._positions.ctypes.data_as(number),
            n_seq_id=self._counts.ctypes.data_as(number),
            seq_id=self._places.ctypes.data_as(ctypes.POINTER(number)),
            logits=self._wanted.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )

    def fill(
        self,
        sequences: Sequence[int],
        starts: Sequence[int],
        ids: Sequence[Sequence[int]],
        wanted: Sequence[int],
    ) -> None:
        """Rows one after the other; of row i the logits of the last `wanted[i]` tokens."""
        at, rows = 0, len(ids)
        if max(map(len, ids)) == 1:  # the next token of every row
            self._ids[:rows] = [row[0] for row in ids]
            self._positions[:rows], self._sequences[:rows], self._wanted[:rows] = starts, sequences, 1
            self.struct.n_tokens = rows
            return
        for sequence, start, row, outputs in zip(sequences, starts, ids, wanted, strict=True):
            end = at + len(row)
            self._ids[at:end] = row
            self._positions[at:end] = np.arange(start, start + len(row), dtype=np.int32)
            self._sequences[at:end] = sequence
            self._wanted[at : end - outputs] = 0
            self._wanted[end - outputs : end] = 1
            at = end
        self.struct.n_tokens = at
