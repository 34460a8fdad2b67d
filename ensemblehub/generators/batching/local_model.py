"""The protocols that a model and its options have to implement to run on the scheduler.

`hf` meets these protocols with transformers and `llama_cpp` with llama.cpp; neither knows the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from ensemblehub.generators.structure.calls import ToolParser


class KVSlots(Protocol):
    """Places for the keys and values of running rows, numbered from 0; the lowest free one is taken first."""

    free: list[int]

    def take(self) -> int:
        """Take a free slot, which is empty."""

    def release(self, slot: int) -> None:
        """Give a slot back."""

    def move(self, source: int, target: int, length: int) -> None:
        """Move the first `length` tokens of a row to a free slot, and free its own."""

    def read(self, slot: int, length: int) -> Any:
        """Copy the keys and values of a slot's first `length` tokens, in the model's own form."""

    def on_host(self, kv: Any) -> Any:
        """Move what `read` returned to the host's memory, to stay while the model is unloaded."""

    def write(self, slot: int, kv: Any, length: int) -> None:
        """Put the first `length` tokens of what `read` returned into a slot."""


class LocalModel(Protocol):
    """Loaded weights; all methods run on the scheduler's thread.

    Attributes:
        vocabulary: number of logits per token.
    """

    vocabulary: int

    @property
    def slots(self) -> KVSlots:
        """Where its rows are computed."""

    def forward(
        self, slots: Sequence[int], starts: Sequence[int], ids: Sequence[Sequence[int]], *, keep: int
    ) -> torch.Tensor:
        """Compute `ids[i]` from position `starts[i]` on, in slot `slots[i]`.

        Returns:
            float32 logits (rows, `keep`, vocabulary) of each row's newest tokens, the last one in the last
            column; with `keep` 0 of all new tokens.  Columns for which a row has no token are undefined.
        """

    def close(self) -> None:
        """Free the model."""


class SchedulingOptions(Protocol):
    """Options that the scheduler reads."""

    @property
    def batch_rows(self) -> int:
        """Maximum number of rows in one forward pass."""

    @property
    def prefix_cache_tokens(self) -> int:
        """Maximum number of tokens whose keys and values are kept for later requests."""

    @property
    def lookahead(self) -> int:
        """Tokens that a row may write beyond those its reader took."""

    @property
    def tool_parser(self) -> ToolParser | None:
        """How the model writes tool calls; None where it is offered no tools."""

    @property
    def enable_thinking(self) -> bool | None:
        """Passed to the chat template, for chats that do not set it themselves."""
