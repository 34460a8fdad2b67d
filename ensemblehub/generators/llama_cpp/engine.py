"""The llama.cpp engine: GGUF files, quantised or not, through `llama-cpp-python`.

Requests, rows, sampling, prefix cache and bills are those of the hf engine, whose scheduler runs here over
llama.cpp's forward pass: rows that wait share one, and a paused row keeps its keys and values.  Text becomes
token ids by the model's own tokenizer, not by the one in the GGUF file, so ids and origins equal the hf engine's.
"""

from __future__ import annotations

import hashlib
import os
import threading
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any, ClassVar, Literal

from ensemblehub.errors import ConfigError, MissingExtraError, one_line
from ensemblehub.generators.base import Footprint, Vocabulary
from ensemblehub.generators.text.rendering import Renderer
from ensemblehub.schema import ModelInfo, Price

try:
    import gguf

    from ensemblehub.generators.hf import loading as hf_loading
    from ensemblehub.generators.hf.engine import HFEngine
    from ensemblehub.generators.llama_cpp.model import KV_TYPES, Model
    from ensemblehub.generators.text.detokenizer import vocabulary_of
except (ModuleNotFoundError, MissingExtraError) as error:
    missing = getattr(error, "name", None) or "torch"
    raise MissingExtraError(f"{missing} is not installed: pip install 'ensemblehub[llamacpp]'") from error

__all__ = ["LlamaCppEngine", "LlamaCppOptions"]

_PROBE = 65536  # bytes at either end of the file that its fingerprint looks at
_CONTEXT = 4096  # tokens that a row may have where nothing is said
_BYTES = {"f32": 4.0, "f16": 2.0, "q8_0": 34 / 32}  # of one key or value


@dataclass(frozen=True)
class LlamaCppOptions:
    """Options of the llama.cpp engine.

    Attributes:
        path: a .gguf file.
        tokenizer: folder or hub id with the model's own tokenizer and chat template; None is the file's folder.
        n_ctx: longest prompt and answer together, in tokens; None is the model's own, but 4096 at most.
        batch_rows: most rows in one forward pass; the KV cache has room for `batch_rows` times `n_ctx` tokens.
        batch: tokens computed together when a prompt is read.
        threads: CPU threads; None takes half of those there are, as llama-cpp-python does.
        n_gpu_layers: layers on the GPU, where llama.cpp is built for one; -1 for all.
        kv: precision of keys and values in the KV cache.  With "f32" and float32 weights, logprobs are those of the
            hf engine to about 1e-4; "f16" costs some hundredths.
        prefix_cache_tokens: most tokens whose keys and values are kept for later requests, beside the KV cache;
            0 keeps none, nor is any kept of models that attend to a sliding window.
        lookahead: tokens that a row may write beyond those its reader took.
        enable_thinking: the chat template's, for chats that do not say themselves.
        price: what a call is billed; None is free.
    """

    path: str
    tokenizer: str | None = None
    n_ctx: int | None = None
    batch_rows: int = 4
    batch: int = 512
    threads: int | None = None
    n_gpu_layers: int = 0
    kv: Literal["f16", "f32", "q8_0"] = "f16"
    prefix_cache_tokens: int = 16384
    lookahead: int = 0
    enable_thinking: bool | None = None
    price: Price | None = None

    def __post_init__(self) -> None:
        if self.kv not in KV_TYPES:
            raise ConfigError(f"kv is one of {', '.join(KV_TYPES)}, not {self.kv!r}")
        counts = (
            self.batch_rows,
            self.batch,
            *(count for count in (self.n_ctx, self.threads) if count is not None),
        )
        if min(counts) < 1 or min(self.lookahead, self.prefix_cache_tokens) < 0 or self.n_gpu_layers < -1:
            raise ConfigError(
                "n_ctx, batch_rows, batch and threads must be at least 1; lookahead and prefix_cache_tokens at least "
                "0; n_gpu_layers at least -1"
            )

    @property
    def file(self) -> Path:
        """Where the weights are."""
        return Path(os.path.expanduser(self.path))

    @property
    def tokenizer_path(self) -> str:
        """Where the tokenizer is."""
        return os.path.expanduser(self.tokenizer) if self.tokenizer else str(self.file.parent)


class LlamaCppEngine(HFEngine):
    """A GGUF model with continuous batching and a prefix cache.

    The card is there at once, from the file's head; tokenizer and weights are loaded when first needed.

    Raises:
        ConfigError: the file cannot be read.
    """

    options: ClassVar[type] = LlamaCppOptions
    settings: LlamaCppOptions  # type: ignore[assignment]  # the fields that the hf engine reads are the same

    def __init__(self, name: str, options: LlamaCppOptions) -> None:
        self._head = Head(options.file)
        if self._head.windowed:
            options = replace(options, prefix_cache_tokens=0)
        self.name, self.settings = name, options
        self.info = self._head.info(options)
        self._scheduler = None
        self._closed = False
        self._lock = threading.Lock()
        self._loaded: Model | None = None

    @cached_property
    def model(self) -> str:
        """The name in the file, else of the file, with a fingerprint of its size and its two ends."""
        with self.settings.file.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            digest = hashlib.sha256(f"{size}".encode() + file.read(_PROBE))
            file.seek(max(0, size - _PROBE))
            digest.update(file.read(_PROBE))
        return f"{self._head.name or self.settings.file.stem}@{digest.hexdigest()[:12]}"

    @property
    def footprint(self) -> Footprint:
        return Footprint(self._head.size, int(self._head.kv_width * _BYTES[self.settings.kv]))

    def describe(self) -> str:
        """One line: where and how the model runs."""
        layers = self.settings.n_gpu_layers
        device = "cpu" if not layers else "gpu" if layers < 0 else f"cpu and gpu ({layers} layers)"
        kind = f"{self._head.kind}, {self.info.parameters:,} parameters"
        return f"{self.name}: {self.settings.path} in llama.cpp on {device}, {kind}"

    async def close(self) -> None:
        """End the engine's thread and free the model; rows still running fail."""
        await super().close()
        model, self._loaded = self._loaded, None
        if model is not None:
            model.close()

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """What the model's token ids mean."""
        return vocabulary_of(self._renderer.tokenizer, self.info.vocabulary, self._end())

    @cached_property
    def _renderer(self) -> Renderer:
        place = hf_loading.HFOptions(self.settings.tokenizer_path, device="cpu")
        try:
            tokenizer = hf_loading.tokenizer_of(place)
        except ConfigError as error:
            raise ConfigError(
                f"{self.name}: `tokenizer` must name the model's own tokenizer: {error}"
            ) from error
        return Renderer(tokenizer, self.settings.enable_thinking)

    def _end(self) -> frozenset[int]:
        """Ids that end an answer by the file, by the tokenizer and by the generation config beside it."""
        return self._head.end | hf_loading.end_ids(self.settings.tokenizer_path) | self._renderer.ends

    def _load(self) -> Any:
        """All that takes long, on the engine's thread."""
        self._head.check(self._renderer.tokenizer.get_vocab(), self.settings)
        self.vocabulary  # noqa: B018  # computed once and kept
        options = self.settings
        self._loaded = Model(
            str(options.file),
            context=self.info.context,
            rows=options.batch_rows,
            batch=options.batch,
            threads=options.threads,
            gpu_layers=options.n_gpu_layers,
            kv=options.kv,
        )
        return self._loaded


class Head:
    """What a GGUF file says of its model.

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
        return ModelInfo(
            parameters=parameters,
            active=active,
            attention_flops=4.0
            * self._of("block_count", 0)
            * self._of("attention.head_count", 0)
            * self._key,
            context=min(own, options.n_ctx or _CONTEXT),
            vocabulary=int(self._tensors["token_embd.weight"].shape[-1]),
            price=options.price,
        )

    def _count(self) -> tuple[int, int]:
        """All parameters, and those a token is multiplied with: of the experts only those that are asked, and
        not the embedding table unless it is the head too."""
        sizes = {name: prod(map(int, tensor.shape)) for name, tensor in self._tensors.items()}
        share = (
            self._of("expert_used_count", 1) / self._of("expert_count", 1)
            if self._of("expert_count", 0)
            else 1.0
        )
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
        kinds: dict[str, int] = {}
        for tensor in self._tensors.values():
            kinds[tensor.tensor_type.name] = kinds.get(tensor.tensor_type.name, 0) + int(tensor.n_bytes)
        return max(kinds, key=lambda kind: kinds[kind])

    @property
    def kv_width(self) -> int:
        """Numbers that the KV cache keeps of one token."""
        heads = self._of("attention.head_count_kv", self._of("attention.head_count", 0))
        return int(
            self._of("block_count", 0) * heads * (self._key + self._of("attention.value_length", self._key))
        )

    @property
    def end(self) -> frozenset[int]:
        """Ids that end an answer."""
        names = ("eos_token_id", "eot_token_id", "eom_token_id")
        found = [self._value(f"tokenizer.ggml.{name}") for name in names]
        return frozenset(int(index) for index in found if index is not None)

    def check(self, strings: dict[str, int], options: LlamaCppOptions) -> None:
        """See whether a tokenizer has the file's token ids; about a thousand of them are compared.

        Raises:
            ConfigError: it has not.
        """
        field = self._reader.get_field("tokenizer.ggml.tokens")
        if field is None:
            return
        tokens = {index: string for string, index in strings.items()}
        compared = [
            index for index in range(0, len(field.data), max(1, len(field.data) // 1000)) if index in tokens
        ]
        other = sum(bytes(field.parts[field.data[index]]).decode() != tokens[index] for index in compared)
        if 10 * other >= len(compared):
            raise ConfigError(
                f"{options.tokenizer_path!r} is not the tokenizer of {options.path!r}: {other} of {len(compared)} "
                "token ids mean something else"
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
