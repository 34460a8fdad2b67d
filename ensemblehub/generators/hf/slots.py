"""Where the keys and values of the running rows lie: one slot per row, preallocated.

Per layer two tensors (slots, heads, positions, dimension). A forward pass over some rows writes its new keys
and values in place and attends to a view of their slots, so no step copies what was computed before; a mask
hides what lies beyond each row's own length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import Cache

LayerKV = tuple[torch.Tensor, torch.Tensor]  # keys and values of one layer, (heads, tokens, dimension)
_ALIGN = 16  # attended lengths are multiples of this, which attention kernels like


@dataclass(frozen=True)
class Plan:
    """Inputs and outputs of one forward pass.

    Rows are padded on the left, so that the last column is each row's newest token.

    Attributes:
        slots: the row's slots, (rows, 1).
        targets: where new keys and values go, (rows, new tokens); padding goes to a spare position.
        positions: positions of the new tokens, (rows, new tokens), 0 for padding.
        window: the slots as a slice where they are neighbours, else as an index.
        reach: how many positions are attended to.
        plain: all rows end at the same position, and compute one token or all: no mask is needed.
    """

    slots: torch.Tensor
    targets: torch.Tensor
    positions: torch.Tensor
    window: slice | torch.Tensor
    reach: int
    plain: bool

    def mask(self, dtype: torch.dtype, window: int | None = None, chunk: int | None = None) -> torch.Tensor:
        """Additive attention mask (rows, 1, new tokens, reach).

        Args:
            window: of sliding attention, in tokens.
            chunk: of chunked attention, in tokens; a token attends to those of its own chunk.
        """
        keys = torch.arange(self.reach, device=self.positions.device)
        queries = self.positions[:, None, :, None]
        hidden = keys > queries
        if window is not None:
            hidden |= keys <= queries - window
        if chunk is not None:
            hidden |= keys // chunk < queries // chunk
        mask = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
        return mask.masked_fill_(hidden, torch.finfo(dtype).min)


class Slots(Cache):  # type: ignore[misc]  # transformers is not typed
    """A transformers cache whose rows join and leave."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(layers=[])
        self.device = device
        self.capacity = (0, 0)  # slots, positions; the last position is spare
        self.kv: list[LayerKV] = []
        self.free: list[int] = []
        self.plan: Plan | None = None

    def take(self) -> int:
        """The lowest free slot, zeroed."""
        if not self.free:
            rows, length = self.capacity
            self._grow(rows + min(max(4, rows), 64), length)
        slot = min(self.free)
        self.free.remove(slot)
        for keys, values in self.kv:
            keys[slot].zero_()
            values[slot].zero_()
        return slot

    def release(self, slot: int) -> None:
        """Give a slot back."""
        self.free.append(slot)

    def write(self, slot: int, kv: Sequence[LayerKV], length: int) -> None:
        """Put the first `length` positions of computed keys and values into a slot."""
        self._reserve(length)
        if not self.kv:  # the model was loaded again, and has not computed since
            self.kv = [(self._empty(keys[None]), self._empty(values[None])) for keys, values in kv]
        for (keys, values), (old_keys, old_values) in zip(self.kv, kv, strict=True):
            keys[slot, :, :length] = old_keys[:, :length]
            values[slot, :, :length] = old_values[:, :length]

    def read(self, slot: int, length: int) -> list[LayerKV]:
        """A copy of the first `length` positions of a slot."""
        return [
            (keys[slot, :, :length].clone(), values[slot, :, :length].clone()) for keys, values in self.kv
        ]

    def on_host(self, kv: Sequence[LayerKV]) -> list[LayerKV]:
        """The same keys and values in the host's memory."""
        return [(keys.cpu(), values.cpu()) for keys, values in kv]

    def move(self, source: int, target: int, length: int) -> None:
        """Move a row of `length` positions to a free slot."""
        for keys, values in self.kv:
            keys[target, :, :length] = keys[source, :, :length]
            values[target, :, :length] = values[source, :, :length]
        self.free.remove(target)
        self.free.append(source)

    def prepare(self, slots: Sequence[int], starts: Sequence[int], counts: Sequence[int]) -> Plan:
        """Plan a forward pass: row i computes `counts[i]` tokens from position `starts[i]` on."""
        ends = [start + count for start, count in zip(starts, counts, strict=True)]
        self._reserve(max(ends))
        width, spare = max(counts), self.capacity[1] - 1
        last = torch.tensor(ends)[:, None]
        positions = last - torch.arange(width, 0, -1)
        padding = positions < torch.tensor(starts)[:, None]
        low, high = min(slots), max(slots)
        plain = len(set(ends)) == 1 and (width == 1 or not any(starts))
        index = torch.tensor(slots)
        self.plan = Plan(
            slots=index[:, None].to(self.device),
            targets=positions.masked_fill(padding, spare).to(self.device),
            positions=positions.masked_fill(padding, 0).to(self.device),
            window=slice(low, high + 1)
            if list(slots) == list(range(low, high + 1))
            else index.to(self.device),
            reach=ends[0] if plain else min(-(-max(ends) // _ALIGN) * _ALIGN, spare),
            plain=plain,
        )
        return self.plan

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> LayerKV:
        """Called by each attention layer: keep the new keys and values, return all to attend to."""
        assert self.plan is not None
        if layer_idx == len(self.kv):
            self.kv.append((self._empty(key_states), self._empty(value_states)))
        keys, values = self.kv[layer_idx]
        if keys.device != key_states.device:  # it was on the host while the model was unloaded
            keys, values = self.kv[layer_idx] = keys.to(key_states.device), values.to(key_states.device)
        return self._keep(keys, key_states), self._keep(values, value_states)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions attended to; masks and positions are given to the model, so it should not need it."""
        return self.plan.reach if self.plan else 0

    def _keep(self, store: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        plan = self.plan
        assert plan is not None
        if plan.plain and isinstance(plan.window, slice):
            store[plan.window, :, plan.reach - new.shape[2] : plan.reach] = new
        else:
            store[plan.slots, :, plan.targets] = new.transpose(1, 2)
        return store[plan.window, :, : plan.reach]

    def _empty(self, like: torch.Tensor) -> torch.Tensor:
        rows, length = self.capacity
        return like.new_zeros((rows, like.shape[1], length, like.shape[3]))

    def _reserve(self, length: int) -> None:
        rows, held = self.capacity
        if length + 1 + _ALIGN > held:
            self._grow(
                rows, length + length // 4 + 4 * _ALIGN
            )  # tight: attention reads close-packed memory faster

    def _grow(self, rows: int, length: int) -> None:
        old_rows, old_length = self.capacity
        self.capacity = (rows, length)
        self.free.extend(range(old_rows, rows))
        self.kv = [
            (self._grown(keys, old_length), self._grown(values, old_length)) for keys, values in self.kv
        ]

    def _grown(self, store: torch.Tensor, length: int) -> torch.Tensor:
        grown = self._empty(store)
        grown[: store.shape[0], :, :length] = store
        return grown
