"""Configuration, tokenizer, size and name of a model, read without weights from its folder or hub id.

Every engine that runs such a model reads its configuration, tokenizer, size and name here, whatever
computes it.
"""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
import transformers

from ensemblehub.errors import AbsentError, ConfigError, one_line
from ensemblehub.generators.base import Footprint, activations_of
from ensemblehub.generators.fingerprints import identity_of
from ensemblehub.schema import ModelInfo, Price

_LOADING = threading.Lock()  # while it loads, transformers patches torch for all threads


@dataclass(frozen=True)
class ModelCheckpoint:
    """A model's folder or hub id.

    Attributes:
        trust_remote_code: run Python code that comes with the model.
    """

    path: str
    trust_remote_code: bool = False

    def read(self, auto: Any, **options: Any) -> Any:
        """Load what the transformers class `auto` makes of the checkpoint.

        Raises:
            AbsentError: a hub id that is neither in the cache nor can be fetched.
            ConfigError: it cannot be read.
        """
        try:
            with _LOADING:
                return auto.from_pretrained(self.path, trust_remote_code=self.trust_remote_code, **options)
        except (OSError, ValueError, ImportError) as error:
            local = os.path.exists(self.path) or self.path.startswith((".", "/"))
            kind = AbsentError if isinstance(error, OSError) and not local else ConfigError
            raise kind(f"cannot load {self.path!r}: {one_line(error)}") from error

    def config(self) -> Any:
        """The model's configuration."""
        return self.read(transformers.AutoConfig)

    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        return self.read(transformers.AutoTokenizer)

    def text_config(self, config: Any) -> Any:
        """The part of `config` that describes the language model.

        Raises:
            ConfigError: there is none, or several.
        """
        try:
            return config.get_text_config()
        except ValueError as error:
            raise ConfigError(f"{self.path}: {one_line(error)}") from error

    def info(
        self, config: Any, price: Price | None = None, auto: Any = transformers.AutoModelForCausalLM
    ) -> ModelInfo:
        """Size and limits of the model, without its weights; `auto` is the class that would load them.

        Raises:
            ConfigError: `auto` cannot make a model of this configuration.
        """
        text = self.text_config(config)
        try:
            parameters, active = self._count(config, auto)
        except Exception as error:  # whatever transformers, or code that comes with the model, raises
            raise ConfigError(f"cannot load {self.path!r}: {one_line(error)}") from error
        return ModelInfo(
            parameters=parameters,
            active=active,
            attention_flops=4.0 * _widths(text)[0],
            context=getattr(text, "max_position_embeddings", 0) or 0,
            vocabulary=getattr(text, "vocab_size", 0) or 0,
            price=price,
        )

    def _count(self, config: Any, auto: Any) -> tuple[int, int]:
        """Number of parameters, and of those multiplied per token.

        The latter leave out the embedding table, unless it is also the head, and experts that are not asked.
        """
        text = config.get_text_config()
        with torch.device("meta"):
            network = auto.from_config(config, trust_remote_code=self.trust_remote_code)
        table, head = network.get_input_embeddings().weight, network.get_output_embeddings()
        experts = getattr(text, "num_experts", None) or getattr(text, "num_local_experts", None) or 1
        asked = getattr(text, "num_experts_per_tok", None) or experts
        total = active = 0
        for name, weight in network.named_parameters():
            total += weight.numel()
            share = asked / experts if ".experts." in name else 1.0
            active += 0 if weight is table else round(weight.numel() * share)
        tied = head is not None and head.weight is table
        return total, active + (table.numel() if tied else 0)

    def end_ids(self, *configs: Any) -> frozenset[int]:
        """Ids that end an answer by the checkpoint's generation config and by other `configs`."""
        with suppress(OSError):  # there is none
            configs = (*configs, transformers.GenerationConfig.from_pretrained(self.path))
        given = (getattr(config, "eos_token_id", None) for config in configs)
        lists = ([ids] if isinstance(ids, int) else ids or () for ids in given)
        return frozenset(index for ids in lists for index in ids)

    def identity(self) -> str:
        """The hub id, or a folder's name with a fingerprint of its configuration and weights."""
        return identity_of(self.path)


def activations_in(config: Any, info: ModelInfo, size: int, tokens: int, predicted: int) -> int:
    """Memory of a forward pass; see `activations_of`."""
    text = config.get_text_config()
    hidden = getattr(text, "hidden_size", 0) or 0
    inner = getattr(text, "intermediate_size", 0) or 4 * hidden
    return activations_of(hidden, inner, info.vocabulary, size, tokens, predicted)


def footprint_of(config: Any, info: ModelInfo, size: int, quantised: float | None = None) -> Footprint:
    """Memory of the weights and of a token's keys and values.

    Args:
        size: bytes of a number in the model's precision.
        quantised: bytes of a quantised parameter; the embedding table and the head stay as they are.
    """
    text = config.get_text_config()
    weights = info.parameters * size
    if quantised is not None:
        count = 1 if getattr(config, "tie_word_embeddings", False) else 2
        tables = info.vocabulary * (getattr(text, "hidden_size", 0) or 0) * count
        weights = tables * size + int((info.parameters - tables) * quantised)
    return Footprint(weights, 2 * _widths(text)[1] * size)


def _widths(text: Any) -> tuple[int, int]:
    """Total width of the queries and of the keys of all layers for one token; 0 where unknown."""
    same = not getattr(text, "is_heterogeneous", False)
    layers = [text] * (getattr(text, "num_hidden_layers", 0) or 0) if same else list(text.per_layer_config)
    queries = keys = 0
    for layer in layers:
        heads = getattr(layer, "num_attention_heads", None)
        if not isinstance(heads, int) or not heads:
            return 0, 0
        width = getattr(layer, "head_dim", None) or layer.hidden_size // heads
        queries += heads * width
        keys += (getattr(layer, "num_key_value_heads", None) or heads) * width
    return queries, keys
