"""Forward passes of a Qwen3 decoder in numpy, over rows of different lengths without padding."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemblehub.errors import ConfigError

Array = NDArray[Any]  # of floating-point numbers


def read_config(folder: Path) -> dict[str, Any]:
    """The model's `config.json`.

    Raises:
        ConfigError: it cannot be read, or the model is of another kind than the built-in ones.
    """
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot load '{folder}': {error}") from error
    expected = {"model_type": "qwen3", "tie_word_embeddings": False, "attention_bias": False}
    plain = all(config.get(key) == value for key, value in expected.items())
    if not plain or config["num_attention_heads"] != config["num_key_value_heads"]:
        raise ConfigError(f"{folder}: the numpy engine runs the built-in models only; use engine: hf")
    return config


def read_weights(folder: Path) -> dict[str, Array]:
    """The bfloat16 tensors of `model.safetensors` as float32."""
    data = (folder / "model.safetensors").read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    tensors = {}
    for name, about in json.loads(data[8:start]).items():
        if name != "__metadata__":
            first, last = (start + offset for offset in about["data_offsets"])
            halves = np.frombuffer(data[first:last], "<u2").astype(np.uint32)
            tensors[name.removeprefix("model.")] = (halves << 16).view(np.float32).reshape(about["shape"])
    return tensors


class KeysValues:
    """Keys and values of one row: (2, layers, heads, positions, dimension), doubled when full."""

    def __init__(self, shape: tuple[int, int, int], capacity: int = 64) -> None:
        layers, heads, width = shape
        self.store = np.empty((2, layers, heads, capacity, width), np.float32)

    def reserve(self, length: int) -> None:
        """Make room for `length` positions."""
        held = self.store.shape[3]
        if length > held:
            grown = np.empty((*self.store.shape[:3], max(length, 2 * held), self.store.shape[4]), np.float32)
            grown[:, :, :, :held] = self.store
            self.store = grown


class NumpyModel:
    """Weights and one forward pass; computes in float32 as the hf engine does on a CPU."""

    def __init__(self, folder: Path) -> None:
        config, tensors = read_config(folder), read_weights(folder)
        self.heads, self.width = config["num_attention_heads"], config["head_dim"]
        self.layers = config["num_hidden_layers"]
        self._epsilon = config["rms_norm_eps"]
        self._embeddings = tensors["embed_tokens.weight"]
        self._norm, self._head = tensors["norm.weight"], tensors["lm_head.weight"].T
        prefixes = (f"layers.{index}." for index in range(self.layers))
        self._weights = [
            {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
            for prefix in prefixes
        ]
        steps = np.arange(0, self.width, 2, dtype=np.float32) / np.float32(self.width)
        base = np.float32(config["rope_parameters"]["rope_theta"])
        self._frequencies = np.tile(1 / base**steps, 2)

    def empty(self) -> KeysValues:
        """Room for the keys and values of a row."""
        return KeysValues((self.layers, self.heads, self.width))

    def forward(
        self, rows: Sequence[tuple[KeysValues, int, Sequence[int]]], whole: Sequence[bool]
    ) -> list[Array]:
        """Compute each row's new ids from its start position on.

        Returns:
            logits of each row: of all new tokens where `whole`, else of the last one, (tokens, vocabulary).
        """
        ends = np.cumsum([len(ids) for _, _, ids in rows])
        parts = [slice(end - len(row[2]), end) for row, end in zip(rows, ends.tolist(), strict=True)]
        positions = np.concatenate([np.arange(start, start + len(ids)) for _, start, ids in rows])
        angles = positions[:, None, None].astype(np.float32) * self._frequencies
        turn = np.cos(angles), np.sin(angles)
        x = self._embeddings[np.concatenate([np.asarray(ids) for _, _, ids in rows])]
        for kv, start, ids in rows:
            kv.reserve(start + len(ids))
        for index, weights in enumerate(self._weights):
            x = x + self._attention(index, weights, x, turn, rows, parts)
            h = self._normed(x, weights["post_attention_layernorm.weight"])
            gate = h @ weights["mlp.gate_proj.weight"].T
            up = h @ weights["mlp.up_proj.weight"].T
            x = x + (gate / (1 + np.exp(-gate)) * up) @ weights["mlp.down_proj.weight"].T
        kept = [
            part if all_ else slice(part.stop - 1, part.stop) for part, all_ in zip(parts, whole, strict=True)
        ]
        logits = self._normed(np.concatenate([x[part] for part in kept]), self._norm) @ self._head
        return np.split(logits, np.cumsum([part.stop - part.start for part in kept])[:-1])

    def _attention(
        self,
        layer: int,
        weights: dict[str, Array],
        x: Array,
        turn: tuple[Array, Array],
        rows: Sequence[tuple[KeysValues, int, Sequence[int]]],
        parts: Sequence[slice],
    ) -> Array:
        h = self._normed(x, weights["input_layernorm.weight"])
        queries, keys, values = (
            (h @ weights[f"self_attn.{name}_proj.weight"].T).reshape(len(x), self.heads, self.width)
            for name in "qkv"
        )
        queries = _rotated(self._normed(queries, weights["self_attn.q_norm.weight"]), turn)
        keys = _rotated(self._normed(keys, weights["self_attn.k_norm.weight"]), turn)
        out = np.empty_like(queries)
        for (kv, start, ids), part in zip(rows, parts, strict=True):
            end = start + len(ids)
            kv.store[0, layer, :, start:end] = keys[part].transpose(1, 0, 2)
            kv.store[1, layer, :, start:end] = values[part].transpose(1, 0, 2)
            all_keys, all_values = kv.store[:, layer, :, :end]
            scores = queries[part].transpose(1, 0, 2) @ all_keys.transpose(0, 2, 1) / math.sqrt(self.width)
            if len(ids) > 1:
                hidden = np.arange(end) > np.arange(start, end)[:, None]
                scores = np.where(hidden, np.float32(-np.inf), scores)
            out[part] = (_softmax(scores) @ all_values).transpose(1, 0, 2)
        return out.reshape(len(x), -1) @ weights["self_attn.o_proj.weight"].T

    def _normed(self, x: Array, weight: Array) -> Array:
        normed: Array = x / np.sqrt((x * x).mean(-1, keepdims=True) + np.float32(self._epsilon)) * weight
        return normed


def _rotated(x: Array, turn: tuple[Array, Array]) -> Array:
    half = x.shape[-1] // 2
    rotated: Array = x * turn[0] + np.concatenate((-x[..., half:], x[..., :half]), -1) * turn[1]
    return rotated


def _softmax(scores: Array) -> Array:
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    shares: Array = powers / powers.sum(-1, keepdims=True)
    return shares


def log_softmax(logits: Array) -> Array:
    """Logprobs of logits, along the last axis."""
    moved = logits - logits.max(-1, keepdims=True)
    logprobs: Array = moved - np.log(np.exp(moved).sum(-1, keepdims=True))
    return logprobs


def entropies(logprobs: Array) -> Array:
    """Entropy of each line of logprobs, in nats."""
    spread: Array = -(np.exp(logprobs) * logprobs).sum(-1)
    return spread
