"""The llama.cpp engine: GGUF files through `llama-cpp-python`, batched by the row scheduler.

Text becomes token ids by the model's own tokenizer, not by the one in the GGUF file, so ids and origins equal
the hf engine's.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge

from ensemblehub.errors import ConfigError, MissingExtraError, one_line
from ensemblehub.generators.base import Footprint
from ensemblehub.schema import ModelInfo, Price

try:
    import gguf

    from ensemblehub.generators.batching.checkpoint import Checkpoint, both_ends, fingerprint
    from ensemblehub.generators.batching.engine import ScheduledEngine
    from ensemblehub.generators.llama_cpp.model import LlamaModel
except ModuleNotFoundError as error:
    raise MissingExtraError(f"{error.name} is not installed: pip install 'ensemblehub[llamacpp]'") from error

__all__ = ["LlamaCppEngine", "LlamaCppOptions"]

_CONTEXT = 4096  # default limit of a row's tokens
_BYTES = {"f32": 4.0, "f16": 2.0, "q8_0": 34 / 32}  # of one key or value


@dataclass(frozen=True)
class LlamaCppOptions:
    """Options of the llama.cpp engine.

    Attributes:
        path: a .gguf file.
        tokenizer: folder or hub id with the model's own tokenizer and chat template; None is the folder of the
            file.
        n_ctx: maximum length of prompt and answer together, in tokens; None is the model's own, up to 4096.
        batch_rows: maximum number of rows in one forward pass; the KV cache holds `batch_rows` times `n_ctx`
            tokens.
        batch: tokens computed together when a prompt is read.
        threads: CPU threads; None takes half of those there are, as llama-cpp-python does.
        n_gpu_layers: layers on the GPU, where llama.cpp is built for one; -1 for all.
        kv: precision of keys and values in the KV cache.  With "f32" and float32 weights, logprobs are those of
            the hf engine to about 1e-4; "f16" costs some hundredths.
        prefix_cache_tokens: maximum number of tokens whose keys and values are kept for later requests, beside
            the KV cache; none are kept of models that attend to a sliding window.
        lookahead: tokens that a row may write beyond those its reader took.
        enable_thinking: passed to the chat template, for chats that do not set it themselves.
        price: price of a call; None is free.
    """

    path: str
    tokenizer: str | None = None
    n_ctx: Annotated[int, Ge(1)] | None = None
    batch_rows: Annotated[int, Ge(1)] = 4
    batch: Annotated[int, Ge(1)] = 512
    threads: Annotated[int, Ge(1)] | None = None
    n_gpu_layers: Annotated[int, Ge(-1)] = 0
    kv: Literal["f16", "f32", "q8_0"] = "f16"
    prefix_cache_tokens: Annotated[int, Ge(0)] = 16384
    lookahead: Annotated[int, Ge(0)] = 0
    enable_thinking: bool | None = None
    price: Price | None = None

    @property
    def file(self) -> Path:
        """Where the weights are."""
        return Path(os.path.expanduser(self.path))

    @property
    def checkpoint(self) -> Checkpoint:
        """Where the tokenizer is."""
        return Checkpoint(os.path.expanduser(self.tokenizer) if self.tokenizer else str(self.file.parent))


class LlamaCppEngine(ScheduledEngine):
    """A GGUF model with continuous batching and a prefix cache.

    Its info is there at once, from the file's header; tokenizer and weights are loaded when first needed.

    Raises:
        ConfigError: the file cannot be read.
    """

    options: ClassVar[type] = LlamaCppOptions

    def __init__(self, name: str, options: LlamaCppOptions) -> None:
        self._header = GGUFHeader(options.file)
        if self._header.windowed:
            options = replace(options, prefix_cache_tokens=0)
        self.settings = options
        super().__init__(name, self._header.info(options), options)

    @cached_property
    def model(self) -> str:
        """The name in the file, else of the file, with a fingerprint of its size and its two ends."""
        file = self.settings.file
        digest = fingerprint([f"{file.stat().st_size}".encode(), both_ends(file)])
        return f"{self._header.name or file.stem}@{digest}"

    @property
    def footprint(self) -> Footprint:
        return Footprint(self._header.size, int(self._header.kv_width * _BYTES[self.settings.kv]))

    def describe(self) -> str:
        """One line: where and how the model runs."""
        layers = self.settings.n_gpu_layers
        device = "cpu" if not layers else "gpu" if layers < 0 else f"cpu and gpu ({layers} layers)"
        kind = f"{self._header.kind}, {self.info.parameters:,} parameters"
        return f"{self.name}: {self.settings.path} in llama.cpp on {device}, {kind}"

    def _tokenizer(self) -> Any:
        try:
            return self.settings.checkpoint.tokenizer()
        except ConfigError as error:
            raise ConfigError(
                f"{self.name}: `tokenizer` must name the model's own tokenizer: {error}"
            ) from error

    def _end_ids(self) -> frozenset[int]:
        return self._header.end | self.settings.checkpoint.end_ids()

    def _load(self) -> LlamaModel:
        options = self.settings
        self._header.check(self._renderer.tokenizer.get_vocab(), options)
        return LlamaModel(
            str(options.file),
            context=self.info.context,
            rows=options.batch_rows,
            batch=options.batch,
            threads=options.threads,
            gpu_layers=options.n_gpu_layers,
            kv=options.kv,
        )


class GGUFHeader:
    """What the header of a GGUF file says of its model.

    Raises:
        ConfigError: it is no GGUF file.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._reader = gguf.GGUFReader(path)
        except (OSError, ValueError, IndexError) as error:
            raise ConfigError(f"cannot read {str(path)!r} as GGUF: {one_line(error)}") from error
        self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}
        if "token_embd.weight" not in self._tensors:
            raise ConfigError(f"{path} holds no language model")

    def info(self, options: LlamaCppOptions) -> ModelInfo:
        """What is known of the model before its weights are there."""
        parameters, active = self._count()
        own = int(self._of("context_length", _CONTEXT))
        queries = self._of("block_count", 0) * self._of("attention.head_count", 0) * self._key
        return ModelInfo(
            parameters=parameters,
            active=active,
            attention_flops=4.0 * queries,
            context=min(own, options.n_ctx or _CONTEXT),
            vocabulary=int(self._tensors["token_embd.weight"].shape[-1]),
            price=options.price,
        )

    def _count(self) -> tuple[int, int]:
        """Number of parameters, and of those multiplied per token.

        The latter leave out the embedding table, unless it is also the head, and experts that are not asked.
        """
        sizes = {name: prod(map(int, tensor.shape)) for name, tensor in self._tensors.items()}
        experts = self._of("expert_count", 0)
        share = self._of("expert_used_count", 1) / experts if experts else 1.0
        active = sum(round(size * share) if "_exps." in name else size for name, size in sizes.items())
        table = sizes["token_embd.weight"] if "output.weight" in sizes else 0
        return sum(sizes.values()), active - table

    @property
    def name(self) -> str:
        """What the model is called; empty where nothing is said."""
        return str(self._value("general.name") or "")

    @property
    def size(self) -> int:
        """Bytes of all weights."""
        return sum(int(tensor.n_bytes) for tensor in self._tensors.values())

    @property
    def windowed(self) -> bool:
        """Whether some layers attend to a sliding window."""
        return self._of("attention.sliding_window", 0) > 0

    @property
    def kind(self) -> str:
        """Precision of most weights."""
        kinds = Counter[str]()
        for tensor in self._tensors.values():
            kinds[tensor.tensor_type.name] += int(tensor.n_bytes)
        return kinds.most_common(1)[0][0]

    @property
    def kv_width(self) -> int:
        """Numbers that the KV cache keeps of one token."""
        heads = self._of("attention.head_count_kv", self._of("attention.head_count", 0))
        width = self._key + self._of("attention.value_length", self._key)
        return int(self._of("block_count", 0) * heads * width)

    @property
    def end(self) -> frozenset[int]:
        """Ids that end an answer."""
        names = ("eos_token_id", "eot_token_id", "eom_token_id")
        found = [self._value(f"tokenizer.ggml.{name}") for name in names]
        return frozenset(int(index) for index in found if index is not None)

    def check(self, strings: dict[str, int], options: LlamaCppOptions) -> None:
        """Compare about a thousand of the file's token ids with those of a tokenizer.

        Raises:
            ConfigError: they differ.
        """
        field = self._reader.get_field("tokenizer.ggml.tokens")
        if field is None:
            return
        tokens = {index: string for string, index in strings.items()}
        every = range(0, len(field.data), max(1, len(field.data) // 1000))
        compared = [index for index in every if index in tokens]
        other = sum(bytes(field.parts[field.data[index]]).decode() != tokens[index] for index in compared)
        if 10 * other >= len(compared):
            raise ConfigError(
                f"{options.checkpoint.path!r} is not the tokenizer of {options.path!r}: "
                f"{other} of {len(compared)} token ids mean something else"
            )

    @property
    def _key(self) -> float:
        heads = self._of("attention.head_count", 0)
        return self._of("attention.key_length", self._of("embedding_length", 0) / heads if heads else 0)

    def _of(self, name: str, default: float) -> float:
        """A number of the architecture; the largest, where layers differ."""
        value = self._value(f"{self._value('general.architecture')}.{name}")
        return default if value is None else float(max(value) if isinstance(value, list) else value)

    def _value(self, key: str) -> Any:
        field = self._reader.get_field(key)
        return None if field is None else field.contents()
