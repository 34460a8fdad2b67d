"""Options of the llama.cpp engine."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge

from ensemblehub.generators.batching.checkpoint import ModelCheckpoint
from ensemblehub.generators.structure.calls import ToolParser
from ensemblehub.schema import Price


@dataclass(frozen=True)
class LlamaCppOptions:
    """Options of the llama.cpp engine.

    Attributes:
        path: a .gguf file, or a hub id as `hub:ORG/NAME:QUANTIZATION`, whose file is fetched.
        tokenizer: folder or hub id with the model's own tokenizer and chat template; None is the folder
            of the file where that has a `tokenizer.json`, else what the file itself holds.
        n_ctx: maximum length of prompt and answer together, in tokens; None is the model's own, up to 4096.
        batch_rows: maximum number of rows in one forward pass; the KV cache holds `batch_rows` times `n_ctx`
            tokens.  None takes 4 for each core, up to 16, while that cache is not larger than the weights.
        batch: tokens computed together when a prompt is read.
        threads: CPU threads; None takes all cores that the process may use, by its affinity and its control
            groups' quotas, or half of them where waiting threads spin (`cores.py`).
        n_gpu_layers: layers on the GPU, where llama.cpp is built for one; -1 for all.
        kv: precision of keys and values in the KV cache.  With "f32" and float32 weights, logprobs are those
            of the hf engine to about 1e-4; "f16" costs some hundredths.
        prefix_cache_tokens: maximum number of tokens whose keys and values are kept for later requests,
            beside the KV cache; none are kept of models that attend to a sliding window.
        lookahead: tokens that a row may write beyond those its reader took.
        enable_thinking: passed to the chat template, for chats that do not set it themselves.
        tool_parser: how the model writes tool calls, in vLLM's names: `hermes` (Qwen, Hermes), `llama3_json`,
            `mistral`; without one it is offered no tools.
        price: price of a call; None is free.
    """

    path: str
    tokenizer: str | None = None
    n_ctx: Annotated[int, Ge(1)] | None = None
    batch_rows: Annotated[int, Ge(1)] | None = None
    batch: Annotated[int, Ge(1)] = 512
    threads: Annotated[int, Ge(1)] | None = None
    n_gpu_layers: Annotated[int, Ge(-1)] = 0
    kv: Literal["f16", "f32", "q8_0"] = "f16"
    prefix_cache_tokens: Annotated[int, Ge(0)] = 16384
    lookahead: Annotated[int, Ge(0)] = 0
    enable_thinking: bool | None = None
    tool_parser: ToolParser | None = None
    price: Price | None = None

    @property
    def file(self) -> Path:
        """Where the weights are."""
        return Path(os.path.expanduser(self.path))

    @property
    def checkpoint(self) -> ModelCheckpoint | None:
        """Where the tokenizer is, unless it is the file's own."""
        if self.tokenizer:
            return ModelCheckpoint(os.path.expanduser(self.tokenizer))
        folder = self.file.parent
        return ModelCheckpoint(str(folder)) if (folder / "tokenizer.json").is_file() else None


@dataclass(frozen=True)
class ChosenOptions(LlamaCppOptions):
    """The options with threads and rows chosen for this machine."""

    batch_rows: int = 4
    threads: int = 1
