"""A loaded causal language model and one forward pass of it over rows of different lengths."""

from __future__ import annotations

import gc
import inspect
from collections.abc import Sequence
from typing import Any

import torch

from ensemblehub.errors import ConfigError, one_line
from ensemblehub.generators.hf.slots import Plan, Slots

_EXACT, _ROUNDED = 0.01, 0.5  # nats by which a logprob may differ, in float32 and in 16 bits


class TorchModel:
    """Weights, and the slots its rows are computed in."""

    def __init__(self, network: Any) -> None:
        self.network: Any = network.eval()
        self.config = network.config.get_text_config()
        self.device: torch.device = network.get_input_embeddings().weight.device
        self.slots = Slots(self.device)
        self.vocabulary = int(self.config.vocab_size)
        self._cuts = "logits_to_keep" in inspect.signature(network.forward).parameters
        self._dtype: torch.dtype = network.dtype
        self._kinds = frozenset(getattr(self.config, "layer_types", None) or ())
        sdpa = network.config._attn_implementation == "sdpa"  # masks what is causal by itself
        self._masks_itself = sdpa and self._kinds == {"full_attention"}

    def close(self) -> None:
        """Free the weights, and the keys and values."""
        self.network, self.slots = None, Slots(self.device)
        if self.device.type in ("cuda", "mps"):
            gc.collect()
            getattr(torch, self.device.type).empty_cache()

    def forward(
        self, slots: Sequence[int], starts: Sequence[int], ids: Sequence[Sequence[int]], *, keep: int
    ) -> Any:
        """Compute `ids[i]` at positions `starts[i]` on, in slot `slots[i]`.

        Returns:
            float32 logits (rows, `keep`, vocabulary) of each row's newest tokens, the last one in the last
            column; with `keep` 0 of all new tokens.
        """
        plan = self.slots.prepare(slots, starts, [len(row) for row in ids])
        width = plan.positions.shape[1]
        padded = torch.tensor([[0] * (width - len(row)) + list(row) for row in ids]).to(self.device)
        output = self.network(
            input_ids=padded,
            position_ids=plan.positions,
            attention_mask=self._mask(plan),
            past_key_values=self.slots,
            use_cache=True,
            **({"logits_to_keep": keep} if self._cuts else {}),
        )
        if not self.slots.kv:
            raise RuntimeError("the model keeps no keys and values of what it has read")
        return output.logits[:, -keep:].float()

    def _mask(self, plan: Plan) -> Any:
        """The attention mask; one per kind of layer where some do not attend to the whole prefix."""
        kinds, dtype = self._kinds, self._dtype
        if plan.plain and self._masks_itself:
            return dict.fromkeys(kinds)
        window = getattr(self.config, "sliding_window", None)
        if kinds - {"full_attention"}:
            chunk = getattr(self.config, "attention_chunk_size", None)
            limits = {"sliding_attention": {"window": window}, "chunked_attention": {"chunk": chunk}}
            return {kind: plan.mask(dtype, **limits.get(kind, {})) for kind in kinds}
        return plan.mask(
            dtype, None if kinds or not getattr(self.config, "use_sliding_window", True) else window
        )

    def compare(self) -> None:
        """Check two rows of different length, computed together and in steps, against transformers alone.

        Raises:
            ConfigError: they differ, or the model cannot be run so.
        """
        rows = [
            [(7 * index + start) % self.vocabulary for index in range(24 - 9 * start)] for start in (0, 1)
        ]
        slots, lengths = [self.slots.take() for _ in rows], [len(row) - 1 for row in rows]
        try:
            with torch.inference_mode():
                self.forward(slots, [0, 0], [row[:-1] for row in rows], keep=1)
                ours = self.forward(slots, lengths, [row[-1:] for row in rows], keep=1)[:, -1]
                alone = [
                    self.network(input_ids=torch.tensor([row]).to(self.device), use_cache=False)
                    for row in rows
                ]
        except Exception as error:  # whatever the model raises
            raise ConfigError(f"the hf engine cannot run {self._kind}: {one_line(error)}") from error
        finally:
            for slot in slots:
                self.slots.release(slot)
        theirs = torch.stack([output.logits[0, -1] for output in alone]).float().log_softmax(-1)
        best = theirs.argmax(-1, keepdim=True)
        difference = float((ours.log_softmax(-1) - theirs).gather(-1, best).abs().max())
        most = _EXACT if self._dtype == torch.float32 else _ROUNDED
        if not difference <= most:  # nor is a NaN
            raise ConfigError(
                f"the hf engine does not run {self._kind} as transformers does: "
                f"logprobs differ by {difference:.2g}"
            )

    @property
    def _kind(self) -> str:
        return f"the architecture {self.network.config.model_type!r}"
