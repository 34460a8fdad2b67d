"""A loaded causal language model and one forward pass of it over rows of different lengths.

Knows tensors; knows no request.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ensemblehub.generators.hf_slots import Plan, Slots


class Model:
    """Weights, and the slots its rows are computed in."""

    def __init__(self, network: Any) -> None:
        self.network = network.eval()
        self.config = network.config.get_text_config()
        self.device: torch.device = network.get_input_embeddings().weight.device
        self.slots = Slots(self.device)
        self.vocabulary = int(self.config.vocab_size)

    def forward(self, slots: Sequence[int], starts: Sequence[int], ids: Sequence[Sequence[int]], *, keep: int) -> Any:
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
            logits_to_keep=keep,
        )
        return output.logits.float()

    def _mask(self, plan: Plan) -> Any:
        """The mask, or one per kind of layer where some layers attend to a sliding window only."""
        kinds, window = (
            set(getattr(self.config, "layer_types", None) or ()),
            getattr(self.config, "sliding_window", None),
        )
        dtype = self.network.dtype
        if "sliding_attention" in kinds:
            return {kind: plan.mask(dtype, window if kind == "sliding_attention" else None) for kind in kinds}
        return plan.mask(dtype, None if kinds or not getattr(self.config, "use_sliding_window", True) else window)


def reading(logits: torch.Tensor, targets: torch.Tensor) -> tuple[list[float], list[float], list[tuple[int, float]]]:
    """Logprobs of `targets` (tokens,), entropies, and id and logprob of the likeliest token, of float32 logits
    (tokens, vocabulary); in nats."""
    logprobs, entropies, best = list[float](), list[float](), list[tuple[int, float]]()
    for part, wanted in zip(torch.split(logits, 256), torch.split(targets, 256), strict=True):
        lines = part.log_softmax(-1)
        logprobs += lines.gather(-1, wanted[:, None]).squeeze(-1).tolist()
        entropies += entropy(lines).tolist()
        highest, ids = lines.max(-1)
        best += zip(ids.tolist(), highest.tolist(), strict=True)
    return logprobs, entropies, best


def entropy(logprobs: torch.Tensor) -> torch.Tensor:
    """Entropy in nats of each line of logprobs; impossible tokens count nothing."""
    return -(logprobs.exp() * logprobs.clamp(min=-1e4)).sum(-1)
