"""The header of a GGUF file: properties of the model, without its weights."""

from __future__ import annotations

from collections import Counter
from math import prod
from pathlib import Path

from ensemblehub.errors import ConfigError
from ensemblehub.generators.llama_cpp.gguf_file import GGUFFile
from ensemblehub.generators.llama_cpp.options import LlamaCppOptions
from ensemblehub.schema import ModelInfo

_CONTEXT = 4096  # default limit of a row's tokens
_TEXT = 1  # ggml's type of a token that is no control token


class GGUFHeader:
    """What the header of a GGUF file says of its model.

    Raises:
        ConfigError: it is no GGUF file.
    """

    def __init__(self, path: Path) -> None:
        file = GGUFFile.read(path)
        self._path = path
        self._tensors = file.tensors
        self._values = file.values
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
            vocabulary=self._tensors["token_embd.weight"].shape[-1],
            price=options.price,
        )

    def _count(self) -> tuple[int, int]:
        """Number of parameters, and of those multiplied per token.

        The latter leave out the embedding table, unless it is also the head, and experts that are not asked.
        """
        sizes = {name: prod(tensor.shape) for name, tensor in self._tensors.items()}
        experts = self._of("expert_count", 0)
        share = self._of("expert_used_count", 1) / experts if experts else 1.0
        active = sum(round(size * share) if "_exps." in name else size for name, size in sizes.items())
        table = sizes["token_embd.weight"] if "output.weight" in sizes else 0
        return sum(sizes.values()), active - table

    @property
    def name(self) -> str:
        """What the model is called; empty where nothing is said."""
        return str(self._values.get("general.name") or "")

    @property
    def size(self) -> int:
        """Bytes of all weights."""
        return sum(tensor.size for tensor in self._tensors.values())

    @property
    def windowed(self) -> bool:
        """Whether some layers attend to a sliding window."""
        return self._of("attention.sliding_window", 0) > 0

    @property
    def kind(self) -> str:
        """Precision of most weights."""
        kinds = Counter[str]()
        for tensor in self._tensors.values():
            kinds[tensor.kind] += tensor.size
        return kinds.most_common(1)[0][0]

    @property
    def kv_width(self) -> int:
        """Numbers that the KV cache keeps of one token."""
        heads = self._of("attention.head_count_kv", self._of("attention.head_count", 0))
        width = self._key + self._of("attention.value_length", self._key)
        return int(self._of("block_count", 0) * heads * width)

    @property
    def widths(self) -> tuple[int, int]:
        """Width of the hidden states, and of the MLP's inner ones."""
        hidden = int(self._of("embedding_length", 0))
        return hidden, int(self._of("feed_forward_length", 4 * hidden))

    @property
    def pre(self) -> str:
        """How the vocabulary splits text into words."""
        return str(self._values.get("tokenizer.ggml.pre") or "")

    @property
    def end(self) -> frozenset[int]:
        """Ids that the file says end an answer."""
        names = ("eos_token_id", "eot_token_id", "eom_token_id")
        found = [self._values.get(f"tokenizer.ggml.{name}") for name in names]
        return frozenset(int(index) for index in found if index is not None)

    def is_text(self, index: int) -> bool:
        """Whether a token id stands for ordinary text."""
        kinds = self._values.get("tokenizer.ggml.token_type") or ()
        return index < len(kinds) and kinds[index] == _TEXT

    def check(self, strings: dict[str, int], source: str) -> None:
        """Compare about a thousand of the file's token ids with those of the tokenizer read from `source`.

        Raises:
            ConfigError: they differ.
        """
        own = self._values.get("tokenizer.ggml.tokens") or []
        tokens = {index: string for string, index in strings.items()}
        compared = [index for index in range(0, len(own), max(1, len(own) // 1000)) if index in tokens]
        other = sum(own[index] != tokens[index] for index in compared)
        if own and 10 * other >= len(compared):
            raise ConfigError(
                f"{source!r} is not the tokenizer of {str(self._path)!r}: "
                f"{other} of {len(compared)} token ids mean something else"
            )

    @property
    def _key(self) -> float:
        heads = self._of("attention.head_count", 0)
        return self._of("attention.key_length", self._of("embedding_length", 0) / heads if heads else 0)

    def _of(self, name: str, default: float) -> float:
        """A number of the architecture; the largest, where layers differ."""
        value = self._values.get(f"{self._values.get('general.architecture')}.{name}")
        return default if value is None else float(max(value) if isinstance(value, list) else value)
