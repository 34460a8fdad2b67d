"""The llama.cpp engine: GGUF files through `llama-cpp-python`, batched by the row scheduler.

Text becomes token ids by a Hugging Face tokenizer, which says where each token lies: the model's own where it
is given, else one built from the file.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar

from ensemblehub.errors import ConfigError, MissingExtraError
from ensemblehub.generators.base import DevicePlacement, Footprint, activations_of
from ensemblehub.generators.hub import gguf_file

try:
    from ensemblehub.generators.batching.batches import most_predicted
    from ensemblehub.generators.batching.engine import ScheduledEngine
    from ensemblehub.generators.fingerprints import both_ends, fingerprint
    from ensemblehub.generators.llama_cpp.cores import default_rows, default_threads, usable_cores
    from ensemblehub.generators.llama_cpp.header import GGUFHeader
    from ensemblehub.generators.llama_cpp.model import LlamaModel
    from ensemblehub.generators.llama_cpp.options import ChosenOptions, LlamaCppOptions
    from ensemblehub.generators.llama_cpp.vocabulary import LlamaVocabulary, tokenizer_of
except ModuleNotFoundError as error:
    raise MissingExtraError(f"{error.name} is not installed: pip install 'ensemblehub[llamacpp]'") from error

__all__ = ["LlamaCppEngine", "LlamaCppOptions"]

log = logging.getLogger(__name__)
_BYTES = {"f32": 4.0, "f16": 2.0, "q8_0": 34 / 32}  # of one key or value


class LlamaCppEngine(ScheduledEngine):
    """A GGUF model with continuous batching and a prefix cache.

    Its info is there at once, from the file's header; tokenizer and weights are loaded when first needed.

    Raises:
        AbsentError: the file of a hub id is not here and cannot be fetched.
        ConfigError: the file cannot be read.
    """

    options: ClassVar[type] = LlamaCppOptions

    def __init__(self, name: str, options: LlamaCppOptions) -> None:
        options = replace(options, path=str(gguf_file(options.path)))
        self._header = GGUFHeader(options.file)
        if self._header.windowed:
            options = replace(options, prefix_cache_tokens=0)
        info = self._header.info(options)
        row = info.context * int(self._header.kv_width * _BYTES[options.kv])
        rows = options.batch_rows or (4 if options.n_gpu_layers else default_rows(self._header.size, row))
        threads = options.threads or default_threads()
        self.settings = ChosenOptions(**vars(options) | {"batch_rows": rows, "threads": threads})
        super().__init__(name, info, self.settings)

    @cached_property
    def model(self) -> str:
        """The name in the file, else of the file, with a fingerprint of its size and its two ends."""
        file = self.settings.file
        digest = fingerprint([f"{file.stat().st_size}".encode(), both_ends(file)])
        return f"{self._header.name or file.stem}@{digest}"

    @property
    def footprint(self) -> Footprint:
        return Footprint(self._header.size, int(self._header.kv_width * _BYTES[self.settings.kv]))

    @property
    def placement(self) -> DevicePlacement:
        options, vocabulary = self.settings, self.info.vocabulary
        hidden, inner = self._header.widths
        on_gpu = options.n_gpu_layers != 0  # counted as if all layers were there
        return DevicePlacement(
            "cuda:0" if on_gpu else "cpu",
            activations_of(hidden, inner, vocabulary, 4, options.batch, most_predicted(vocabulary)),
            rows=options.batch_rows,
            kept=0 if on_gpu else options.prefix_cache_tokens,  # kept in the host's memory
        )

    @property
    def notes(self) -> tuple[str, ...]:
        settings = self.settings
        return (f"{settings.threads} threads on {usable_cores()} cores, {settings.batch_rows} rows",)

    def describe(self) -> str:
        """Return a one-line description: device and settings."""
        layers = self.settings.n_gpu_layers
        device = "cpu" if not layers else "gpu" if layers < 0 else f"cpu and gpu ({layers} layers)"
        kind = f"{self._header.kind}, {self.info.parameters:,} parameters"
        return f"{self.name}: {self.settings.path} in llama.cpp on {device}, {kind}, {self.notes[0]}"

    def _tokenizer(self) -> Any:
        settings = self.settings
        try:
            if settings.checkpoint:
                return settings.checkpoint.tokenizer()
            return tokenizer_of(settings.file, self._header.pre, self.info.vocabulary)
        except ConfigError as error:
            advice = "`tokenizer` may name the model's own, a folder or hub id"
            if settings.tokenizer:
                advice = "without `tokenizer`, the file's own is used"
            raise ConfigError(f"{self.name}: no tokenizer: {error}; {advice}") from error

    def _end_ids(self) -> frozenset[int]:
        checkpoint = self.settings.checkpoint
        with LlamaVocabulary(self.settings.file) as vocabulary:
            # llama.cpp takes any `</s>` for an end, also where it is ordinary text, as in Qwen's vocabulary
            ends = {index for index in vocabulary.ends if not self._header.is_text(index)}
            difference = "" if checkpoint else vocabulary.difference(self._own_ids)
        if difference:
            advice = "name the model's own tokenizer with `tokenizer`"
            log.warning(
                "%s: transformers reads the vocabulary otherwise: %s; %s", self.name, difference, advice
            )
        return self._header.end | ends | (checkpoint.end_ids() if checkpoint else frozenset())

    def _own_ids(self, text: str) -> list[int]:
        return self._renderer.encode(text, special=False)

    def _load(self) -> LlamaModel:
        if checkpoint := self.settings.checkpoint:
            self._header.check(self._renderer.tokenizer.get_vocab(), checkpoint.path)
        log.info("%s: %s", self.name, *self.notes)
        return LlamaModel(self.settings, self.info.context)
