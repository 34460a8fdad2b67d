"""llama.cpp's low-level batch interface by hand, as the programs that come with it use it: a sequence a row."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

_BATCH = 2048  # tokens of a call


class LlamaBatch:
    """Greedy answers to several prompts at once; weights, KV cache and batch are llama.cpp's.

    Args:
        rows: number of sequences.
        length: tokens of a prompt and its answer at most.
    """

    def __init__(self, file: Path, rows: int, length: int, threads: int) -> None:
        self._silent = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self._silent, ctypes.c_void_p(0))
        self._model: Any = llama_cpp.llama_model_load_from_file(
            os.fsencode(file), llama_cpp.llama_model_default_params()
        )
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_seq_max, params.n_batch = rows * length, rows, _BATCH
        params.kv_unified = False
        params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED  # the faster on a CPU
        params.n_threads = params.n_threads_batch = threads
        self._context: Any = llama_cpp.llama_init_from_model(self._model, params)
        vocabulary = llama_cpp.llama_model_get_vocab(self._model)
        self.vocabulary = int(llama_cpp.llama_vocab_n_tokens(vocabulary))
        self._batch = llama_cpp.llama_batch_init(_BATCH, 0, 1)

    def close(self) -> None:
        """Free all of it."""
        llama_cpp.llama_batch_free(self._batch)
        llama_cpp.llama_free(self._context)
        llama_cpp.llama_model_free(self._model)

    def start(self, prompts: Sequence[Sequence[int]]) -> list[int]:
        """Read the prompts into empty sequences; the first token of every answer."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)
        if sum(map(len, prompts)) > _BATCH:
            raise ValueError(f"more than {_BATCH} tokens")
        self._places = [0] * len(prompts)
        return self._decoded(prompts)

    def step(self, ids: Sequence[int]) -> list[int]:
        """Append a token to every sequence; the next of each."""
        return self._decoded([[index] for index in ids])

    def generate(self, prompts: Sequence[Sequence[int]], tokens: int) -> list[list[int]]:
        """The first tokens of every answer, at least one."""
        written = [self.start(prompts)]
        for _ in range(tokens - 1):
            written.append(self.step(written[-1]))
        return [list(row) for row in zip(*written, strict=True)]

    def _decoded(self, rows: Sequence[Sequence[int]]) -> list[int]:
        batch, count = self._batch, 0
        for sequence, ids in enumerate(rows):
            for index in ids:
                batch.token[count] = index
                batch.pos[count] = self._places[sequence]
                batch.n_seq_id[count] = 1
                batch.seq_id[count][0] = sequence
                batch.logits[count] = False
                self._places[sequence] += 1
                count += 1
            batch.logits[count - 1] = True
        batch.n_tokens = count
        if llama_cpp.llama_decode(self._context, batch):
            raise RuntimeError("llama_decode failed")
        logits = llama_cpp.llama_get_logits(self._context)
        lines = np.ctypeslib.as_array(logits, (len(rows), self.vocabulary))
        return [int(index) for index in lines.argmax(axis=1)]
