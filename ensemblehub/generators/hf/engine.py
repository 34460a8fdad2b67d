"""The Hugging Face engine: decoder-only language models in transformers, batched by the row scheduler."""

from __future__ import annotations

import logging
from functools import cached_property
from typing import Any, ClassVar

from ensemblehub.errors import ConfigError, MissingExtraError
from ensemblehub.generators.base import DevicePlacement, Footprint
from ensemblehub.registry import build

try:
    from ensemblehub.generators.batching.batches import CHUNK, most_predicted
    from ensemblehub.generators.batching.checkpoint import activations_in, footprint_of
    from ensemblehub.generators.batching.engine import ScheduledEngine
    from ensemblehub.generators.hf.architectures import Support, support_of
    from ensemblehub.generators.hf.loading import HFOptions, config_of, device_of, dtype_of, load_network
    from ensemblehub.generators.hf.model import TorchModel
except ModuleNotFoundError as error:
    raise MissingExtraError(f"{error.name} is not installed: pip install 'ensemblehub[hf]'") from error

__all__ = ["HFEngine", "HFOptions"]

_QUANTISED = {"8bit": 1.0, "4bit": 0.5625}  # bytes per parameter; of 4 bits, blocks of 64 add a float32 each
log = logging.getLogger(__name__)


class HFEngine(ScheduledEngine):
    """A transformers model with continuous batching and a prefix cache.

    Its info is there at once; tokenizer and weights are loaded when first needed.

    Raises:
        ConfigError: an option is out of bounds or of another type, or the model cannot be read or run.
    """

    options: ClassVar[type] = HFOptions

    def __init__(self, name: str, options: HFOptions) -> None:
        self.settings: HFOptions = build(type(options), vars(options), f"engine {name!r}")
        options = self.settings
        self._config = config_of(options)
        self._support = self._supported()
        super().__init__(name, options.checkpoint.info(self._config, options.price), options)

    def _supported(self) -> Support:
        """How the model's architecture is run.

        Raises:
            ConfigError: it cannot be run.
        """
        try:
            return support_of(self._config, self.settings.attn_implementation)
        except ConfigError as error:
            raise ConfigError(f"{self.settings.path}: {error}") from error

    @cached_property
    def model(self) -> str:
        return self.settings.checkpoint.identity()

    @property
    def notes(self) -> tuple[str, ...]:
        return (self._support.note,) if self._support.note else ()

    @property
    def footprint(self) -> Footprint:
        size = dtype_of(self.settings, self._config).itemsize
        return footprint_of(self._config, self.info, size, _QUANTISED.get(self.settings.quantization))

    @property
    def placement(self) -> DevicePlacement:
        options, size = self.settings, dtype_of(self.settings, self._config).itemsize
        device = device_of(options)
        return DevicePlacement(
            "cuda:0" if device == "cuda" else device,
            activations_in(self._config, self.info, size, CHUNK, most_predicted(self.info.vocabulary)),
            rows=options.batch_rows,
            devices=max(1, int(options.num_gpus or 1), len(options.max_memory)),
            kept=options.prefix_cache_tokens,
        )

    def describe(self) -> str:
        """Return a one-line description: device and settings."""
        options = self.settings
        dtype = str(dtype_of(options, self._config)).removeprefix("torch.")
        bits = "not quantised" if options.quantization == "none" else f"quantised to {options.quantization}"
        place = f"{options.path} on {device_of(options)}, {dtype}, {bits}"
        return f"{self.name}: {place}, {self.info.parameters:,} parameters"

    def _tokenizer(self) -> Any:
        return self.settings.checkpoint.tokenizer()

    def _end_ids(self) -> frozenset[int]:
        return self.settings.checkpoint.end_ids(self._config, self._config.get_text_config())

    def _load(self) -> TorchModel:
        if self._support.note:
            log.warning("%s: %s", self.name, self._support.note)
        model = TorchModel(load_network(self.settings, self._config, kernel=self._support.kernel))
        if not self._support.known:
            model.compare()
        return model
