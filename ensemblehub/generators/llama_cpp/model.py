"""A GGUF model in llama.cpp, and one forward pass of it over rows of different lengths.

A row lies in a sequence of llama.cpp's KV cache; when there are more rows than sequences, the least recently
used wait as saved states.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import llama_cpp
import numpy as np
import torch
from numpy.typing import NDArray

from ensemblehub.errors import ConfigError
from ensemblehub.generators.batching.batches import CHUNK
from ensemblehub.generators.llama_cpp import library
from ensemblehub.generators.llama_cpp.options import ChosenOptions

State = NDArray[np.uint8]  # keys and values of a sequence as llama.cpp saves them

KV_TYPES = {"f32": 0, "f16": 1, "q8_0": 8}  # ggml's numbers
_BATCH = CHUNK  # tokens that one call may be given; a row of the scheduler never has more


class LlamaModel:
    """Weights and KV cache of a `LocalModel`; used on one thread.

    Args:
        context: maximum length of a row, in tokens; the KV cache has `batch_rows` sequences of it.

    Raises:
        ConfigError: llama.cpp cannot load the file, or rows of this model cannot be cut back.
    """

    def __init__(self, options: ChosenOptions, context: int) -> None:
        library.start()
        path = str(options.file)
        self._context: Any = None
        layers = options.n_gpu_layers
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = layers if layers >= 0 else 2**31 - 1
        self._model: Any = llama_cpp.llama_model_load_from_file(os.fsencode(path), params)
        if not self._model:
            raise ConfigError(f"cannot load {path!r}: {library.reason()}")
        if _is_other(self._model):
            self.close()
            raise ConfigError(f"{path}: the llama_cpp engine runs decoders with attention only")
        self._context = llama_cpp.llama_init_from_model(self._model, _context_params(options, context))
        if not self._context:
            self.close()
            rows = options.batch_rows
            raise ConfigError(
                f"cannot make room for {rows} x {context} tokens of {path!r}: {library.reason()}"
            )
        self.vocabulary = int(llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model)))
        windowed = llama_cpp.llama_model_n_swa(self._model) > 0
        self.slots = Sequences(self._context, options.batch_rows, windowed)
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
        """See `LocalModel.forward`."""
        counts = [len(row) for row in ids]
        columns = keep or max(counts)
        wanted = [min(columns, count) for count in counts]
        logits = np.empty((len(ids), columns, self.vocabulary), dtype=np.float32)
        for first, last in self._groups(counts):
            sequences = self.slots.seat(slots[first:last], starts[first:last])
            if max(counts[first:last]) == 1:
                sequences = self.slots.neighbours(slots[first:last])
            rows = {sequence: row for row, sequence in enumerate(sequences, first)}
            order = [rows[sequence] for sequence in sorted(rows)]
            self._batch.fill([(sequences[row - first], starts[row], ids[row], wanted[row]) for row in order])
            code = llama_cpp.llama_decode(self._context, self._batch.struct)
            if code:
                raise RuntimeError(library.reason(f"llama_decode returned {code}"))
            self.slots.computed(slots[first:last], starts[first:last], counts[first:last])
            if min(wanted[first:last]) == columns and order == list(range(first, last)):
                self._copy(logits[first:last])
                continue
            lines = self._copy(np.empty((sum(wanted[first:last]), self.vocabulary), dtype=np.float32))
            for row in order:
                logits[row, columns - wanted[row] :] = lines[: wanted[row]]
                lines = lines[wanted[row] :]
        return torch.from_numpy(logits)

    def _groups(self, counts: Sequence[int]) -> Iterator[tuple[int, int]]:
        """First and last row of each call: at most `_BATCH` tokens and `slots.count` rows."""
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


def _context_params(options: ChosenOptions, context: int) -> Any:
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = context * options.batch_rows
    params.n_seq_max = options.batch_rows
    params.n_batch = _BATCH
    params.n_ubatch = min(options.batch, _BATCH)
    params.n_threads = params.n_threads_batch = options.threads
    params.type_k = params.type_v = KV_TYPES[options.kv]
    # flash attention rounds to float16, and on a CPU it is slower
    if options.kv == "f32" or (not options.n_gpu_layers and options.kv != "q8_0"):
        params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.kv_unified = False  # a row attends over its own cells alone, not over those of all
    params.swa_full = True  # keep what a sliding window has passed, so that rows can be cut back
    params.no_perf = True
    return params


def _is_other(model: Any) -> bool:
    kinds = (
        llama_cpp.llama_model_is_recurrent,
        llama_cpp.llama_model_is_hybrid,
        llama_cpp.llama_model_has_encoder,
    )
    return any(kind(model) for kind in kinds)


@dataclass
class SeatedRow:
    """A row in a sequence of the KV cache: its length in tokens, and how far it can be cut back."""

    sequence: int
    length: int = 0
    floor: int = 0


class Sequences:
    """Slots of rows: each a sequence of the KV cache, or a saved state while others need the sequence.

    Slots are numbers that the scheduler sorts and exchanges; moving one copies nothing.

    Args:
        windowed: some layers attend to a sliding window.  A saved state then lacks what lies before the
            window, so it can be continued but not cut back.
    """

    def __init__(self, context: Any, count: int, windowed: bool) -> None:
        self.count = count
        self.free: list[int] = []
        self._context = context
        self._memory = llama_cpp.llama_get_memory(context)
        self._windowed = windowed
        self._made = 0
        self._seated: dict[int, SeatedRow] = {}  # by slot, least recently used first
        self._saved: dict[int, State] = {}  # by slot
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
        self._unseat(slot)
        self.free.append(slot)

    def move(self, source: int, target: int, length: int) -> None:
        """Give a row the number of a free slot."""
        if source in self._seated:
            self._seated[target] = self._seated.pop(source)
        if source in self._saved:
            self._saved[target] = self._saved.pop(source)
        self.free.remove(target)
        self.free.append(source)

    def write(self, slot: int, kv: State, length: int) -> None:
        """Put the first `length` tokens of a saved state into a slot."""
        self._saved[slot] = kv
        self._seat(slot, self._free_sequence(()))
        self._cut(slot, length)

    def read(self, slot: int, length: int) -> State:
        """A copy of what a slot holds, at least its first `length` tokens."""
        if slot not in self._seated:
            return self._saved[slot]
        sequence = self._seated[slot].sequence
        size = llama_cpp.llama_state_seq_get_size(self._context, sequence)
        state = np.empty(size, dtype=np.uint8)
        if llama_cpp.llama_state_seq_get_data(self._context, _bytes(state), size, sequence) != size:
            raise RuntimeError(library.reason("the state of a row could not be saved"))
        return state

    def on_host(self, kv: State) -> State:
        """The state as it is: llama.cpp saves it there."""
        return kv

    def seat(self, slots: Sequence[int], starts: Sequence[int]) -> list[int]:
        """The sequences of these slots, `count` at most, cut to the positions from which they go on."""
        for slot, start in zip(slots, starts, strict=True):
            if slot in self._seated:
                self._seated[slot] = self._seated.pop(slot)  # used last
            else:
                self._seat(slot, self._free_sequence(slots))
            self._cut(slot, start)
        return self._sequences(slots)

    def neighbours(self, slots: Sequence[int]) -> list[int]:
        """The sequences of these seated slots, once they are neighbours.

        Of neighbours llama.cpp makes one pass; of others several, each over all weights.
        """
        used, count = set(self._sequences(slots)), len(slots)
        if max(used) - min(used) >= count and not self._windowed:
            ranges = [range(first, first + count) for first in range(self.count - count + 1)]
            wanted = max(ranges, key=lambda candidate: len(used.intersection(candidate)))
            owners = {row.sequence: slot for slot, row in self._seated.items()}
            strays = [slot for slot in slots if self._seated[slot].sequence not in wanted]
            for slot, hole in zip(strays, set(wanted) - used, strict=True):
                self._save(slot)
                if hole in owners:
                    self._save(owners[hole])
                self._spare.remove(hole)
                self._seat(slot, hole)
        return self._sequences(slots)

    def computed(self, slots: Sequence[int], starts: Sequence[int], counts: Sequence[int]) -> None:
        """Note what a pass has added."""
        for slot, start, count in zip(slots, starts, counts, strict=True):
            self._seated[slot].length = start + count

    def _sequences(self, slots: Sequence[int]) -> list[int]:
        return [self._seated[slot].sequence for slot in slots]

    def _free_sequence(self, staying: Sequence[int]) -> int:
        """A free sequence, if need be that of the least recently used row."""
        if not self._spare:
            self._save(next(other for other in self._seated if other not in staying))
        return self._spare.pop()

    def _save(self, slot: int) -> None:
        """Save what is in a slot, and free its sequence."""
        self._saved[slot] = self.read(slot, self._seated[slot].length)
        self._unseat(slot)

    def _seat(self, slot: int, sequence: int) -> None:
        """Give a slot a free sequence, and what was saved of it."""
        row = self._seated[slot] = SeatedRow(sequence)
        state = self._saved.pop(slot, None)
        if state is not None:
            if not llama_cpp.llama_state_seq_set_data(self._context, _bytes(state), state.size, sequence):
                raise RuntimeError(library.reason("a saved state could not be restored"))
            row.length = int(llama_cpp.llama_memory_seq_pos_max(self._memory, sequence)) + 1
            row.floor = row.length if self._windowed else 0

    def _unseat(self, slot: int) -> None:
        if slot in self._seated:
            sequence = self._seated.pop(slot).sequence
            llama_cpp.llama_memory_seq_rm(self._memory, sequence, -1, -1)
            self._spare.append(sequence)

    def _cut(self, slot: int, length: int) -> None:
        """Forget the tokens from position `length` on."""
        row = self._seated[slot]
        if row.length <= length:
            return
        removed = length >= row.floor and llama_cpp.llama_memory_seq_rm(
            self._memory, row.sequence, length, -1
        )
        if not removed:
            raise RuntimeError("this model cannot cut back what it has computed")
        row.length = length


def _bytes(state: State) -> Any:
    return state.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))


class _Batch:
    """llama.cpp's batch over arrays of our own."""

    def __init__(self, size: int) -> None:
        self._ids = np.zeros(size, dtype=np.int32)
        self._positions = np.zeros(size, dtype=np.int32)
        self._sequences = np.zeros(size, dtype=np.int32)
        self._counts = np.ones(size, dtype=np.int32)
        self._wanted = np.zeros(size, dtype=np.int8)
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

    def fill(self, rows: Sequence[tuple[int, int, Sequence[int], int]]) -> None:
        """Set rows: sequence, first position, ids, number of trailing positions whose logits are returned."""
        if all(len(ids) == 1 for _, _, ids, _ in rows):  # the next token of every row: at once
            count = len(rows)
            self._ids[:count] = [ids[0] for _, _, ids, _ in rows]
            self._positions[:count] = [start for _, start, _, _ in rows]
            self._sequences[:count] = [sequence for sequence, _, _, _ in rows]
            self._wanted[:count] = 1
            self.struct.n_tokens = count
            return
        at = 0
        for sequence, start, ids, outputs in rows:
            end = at + len(ids)
            self._ids[at:end] = ids
            self._positions[at:end] = range(start, start + len(ids))
            self._sequences[at:end] = sequence
            self._wanted[at : end - outputs] = 0
            self._wanted[end - outputs : end] = 1
            at = end
        self.struct.n_tokens = at
