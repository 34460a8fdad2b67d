"""Judges over the raw sequences of perplexity and entropy: `lstm`, `gru`, `cnn`, `attention`.

The reference's networks (its `sequence_classifier`), with standardised inputs and masked padding, so that a
reading's probability does not depend on its batch.  Training and inference need torch (extra `hf`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from ensemblehub.errors import MissingExtraError
from ensemblehub.tandem.curves import Curve
from ensemblehub.tandem.judges import Arrays, Floats, Judge, ReadingBatch

HIDDEN, DROPOUT = 64, 0.2
LONGEST = 2000  # tokens; of a longer reading the last ones
BATCH = 256


@dataclass(frozen=True)
class Context:
    """Inputs of the last layer besides the network's summary of the sequence.

    Attributes:
        levels: number of levels it was trained on, level 0 included.
    """

    levels: int

    @property
    def width(self) -> int:
        """Level, one-hot, and the logarithm of the mentor's tokens."""
        return self.levels + 1

    def matrix(self, level: NDArray[Any], mentor_tokens: NDArray[Any]) -> NDArray[np.float32]:
        """Float32 of shape (n, width)."""
        one_hot = np.asarray(level)[:, None] == np.arange(self.levels)
        return np.concatenate(
            [one_hot, np.log1p(np.asarray(mentor_tokens, float))[:, None] / 5], axis=1, dtype=np.float32
        )


@dataclass(frozen=True)
class SequenceJudge(Judge):
    """A network over standardised sequences (log perplexity, entropy) with a calibrated output.

    Attributes:
        mean, std: of both inputs over the tokens of the training questions, shape (2,).
        weights: the network's, by name, as torch names them.
    """

    context: Context
    mean: Floats
    std: Floats
    weights: Mapping[str, NDArray[np.float32]]
    curve: Curve = field(default_factory=Curve)

    @property
    def flops(self) -> float:  # type: ignore[override]
        """FLOPs of one call on 100 tokens: two per weight and token."""
        return float(2 * 100 * sum(weight.size for weight in self.weights.values()))

    def logits(self, readings: ReadingBatch) -> Floats:
        """Outputs before calibration, float64 of shape (n,)."""
        torch = torch_module()
        order = np.argsort([sequence.shape[1] for sequence in readings.sequences], kind="stable")
        found = np.empty(len(order))
        with torch.inference_mode():
            for start in range(0, len(order), BATCH):
                at = order[start : start + BATCH]
                x, lengths = padded([readings.sequences[index] for index in at], self.mean, self.std)
                context = torch.from_numpy(
                    self.context.matrix(readings.level[at], readings.mentor_tokens[at])
                )
                found[at] = self.network(x, lengths, context).double().numpy()
        return found

    def probabilities_of(self, readings: ReadingBatch) -> Floats:
        return self.curve(self.logits(readings))

    @cached_property
    def network(self) -> Any:
        """The network with its weights, in evaluation mode."""
        torch = torch_module()
        with torch.random.fork_rng(devices=[]):  # an untrained network draws its weights
            made = build(self.kind, self.context.width)
        made.load_state_dict(
            {name: torch.from_numpy(np.array(weight)) for name, weight in self.weights.items()}
        )
        return made.eval()

    def state(self) -> tuple[Arrays, dict[str, Any]]:
        arrays: Arrays = {"mean": self.mean, "std": self.std, "curve": self.curve.knots}
        arrays |= {f"network.{name}": weight for name, weight in self.weights.items()}
        return arrays, {"context": asdict(self.context), "curve": self.curve.method}

    @classmethod
    def restored(cls, arrays: Arrays, options: Mapping[str, Any], /) -> Self:
        weights = {
            name.removeprefix("network."): array
            for name, array in arrays.items()
            if name.startswith("network.")
        }
        curve = Curve.restored(options["curve"], arrays["curve"])
        mean, std = arrays["mean"], arrays["std"]
        if mean.shape != (2,) or std.shape != (2,) or not (std > 0).all():
            raise ValueError("means or deviations that do not fit two inputs")
        judge = cls(Context(**options["context"]), mean, std, weights, curve)
        try:
            judge.network  # noqa: B018  checks the weights now, not in a run
        except RuntimeError as error:
            raise ValueError(f"weights that do not fit its network: {error}") from error
        return judge


@dataclass(frozen=True)
class LSTM(SequenceJudge):
    """Two layers of 64, the state after the last token."""

    kind: ClassVar[str] = "lstm"


@dataclass(frozen=True)
class GRU(SequenceJudge):
    """Two layers of 64, the state after the last token."""

    kind: ClassVar[str] = "gru"


@dataclass(frozen=True)
class CNN(SequenceJudge):
    """Three convolutions over three tokens (32, 64, 64 channels), and the maximum over all tokens."""

    kind: ClassVar[str] = "cnn"


@dataclass(frozen=True)
class AttentionJudge(SequenceJudge):
    """Two layers of a transformer's encoder (width 64, 4 heads), and the mean over all tokens."""

    kind: ClassVar[str] = "attention"


SEQUENCE_JUDGES: dict[str, type[SequenceJudge]] = {
    judge.kind: judge for judge in (LSTM, GRU, CNN, AttentionJudge)
}


def padded(sequences: Sequence[NDArray[Any]], mean: Floats, std: Floats) -> tuple[Any, Any]:
    """Standardised sequences as a zero-padded float32 tensor (n, tokens, 2), and their lengths (n,)."""
    torch = torch_module()
    kept = [inputs(sequence) for sequence in sequences]
    lengths = np.array([len(sequence) for sequence in kept])
    x = np.zeros((len(kept), int(lengths.max()), 2), np.float32)
    for row, sequence in zip(x, kept, strict=True):
        row[: len(sequence)] = (sequence - mean) / std
    return torch.from_numpy(x), torch.from_numpy(lengths)


def inputs(sequence: NDArray[Any]) -> Floats:
    """Log perplexity and entropy, (tokens, 2), of the last `LONGEST` tokens of a (2, tokens) sequence."""
    perplexity, entropy = np.asarray(sequence, np.float64)[:, -LONGEST:]
    return np.stack([np.log(np.maximum(perplexity, 1.0)), entropy], axis=1)


def build(kind: str, context: int) -> Any:
    """An untrained network from (n, tokens, 2), lengths (n,) and context (n, `context`) to logits (n,)."""
    torch = torch_module()
    nn = torch.nn

    class SequenceNetwork(nn.Module):  # type: ignore[misc, name-defined]
        """A summary of the sequence, then one linear layer over it and the context."""

        def __init__(self) -> None:
            super().__init__()
            if kind in ("lstm", "gru"):
                recurrent = nn.LSTM if kind == "lstm" else nn.GRU
                self.body = recurrent(2, HIDDEN, num_layers=2, batch_first=True, dropout=DROPOUT)
            elif kind == "cnn":
                self.body = nn.ModuleList(
                    nn.Conv1d(a, b, 3, padding=1) for a, b in ((2, 32), (32, 64), (64, HIDDEN))
                )
            else:
                self.embed, self.position = nn.Linear(2, HIDDEN), nn.Embedding(LONGEST, HIDDEN)
                layer = nn.TransformerEncoderLayer(HIDDEN, 4, 256, DROPOUT, "gelu", batch_first=True)
                self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
            self.drop, self.head = nn.Dropout(DROPOUT), nn.Linear(HIDDEN + context, 1)

        def forward(self, x: Any, lengths: Any, about: Any) -> Any:
            mask = torch.arange(x.shape[1])[None] < lengths[:, None]
            summary = self.drop(self.summary(x, lengths, mask))
            return self.head(torch.cat([summary, about], dim=1))[:, 0]

        def summary(self, x: Any, lengths: Any, mask: Any) -> Any:
            if kind in ("lstm", "gru"):
                states, _ = self.body(x)  # causal: what stands behind the last token does not reach it
                return states[torch.arange(len(x)), lengths - 1]
            if kind == "cnn":
                shown = mask[:, None]
                channels = x.transpose(1, 2)
                for convolution in self.body:
                    channels = torch.relu(convolution(channels)) * shown
                return channels.masked_fill(~shown, float("-inf")).amax(dim=2)
            states = self.embed(x) + self.position.weight[: x.shape[1]]
            states = self.body(states, src_key_padding_mask=~mask)
            return (states * mask[..., None]).sum(dim=1) / lengths[:, None]

    return SequenceNetwork()


def torch_module() -> Any:
    """PyTorch.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise MissingExtraError(
            "a judge over sequences needs PyTorch: pip install 'ensemblehub[hf]'"
        ) from error
    return torch
