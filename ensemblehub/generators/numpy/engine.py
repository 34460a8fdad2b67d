"""The numpy engine: the built-in models where torch is not installed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar

from annotated_types import Ge

from ensemblehub.generators.base import Footprint
from ensemblehub.generators.batching.local_engine import Ids, LocalEngine
from ensemblehub.generators.fingerprints import identity_of
from ensemblehub.generators.numpy.model import NumpyModel, read_config
from ensemblehub.generators.numpy.tokenizer import FolderTokenizer
from ensemblehub.generators.numpy.worker import NumpyAnswer, NumpyReading, NumpyWorker
from ensemblehub.generators.structure.answer import StructuredAnswer
from ensemblehub.schema import Capability, ModelInfo, Price, Request


@dataclass(frozen=True)
class NumpyOptions:
    """Options of the numpy engine.

    Attributes:
        path: a built-in model, as `builtin:mentor`.
        enable_thinking: passed to the chat template, for chats that do not set it themselves.
        prefix_cache_tokens: maximum number of tokens whose keys and values are kept for later requests.
        price: price of a call; None is free.
    """

    path: str
    enable_thinking: bool | None = None
    prefix_cache_tokens: Annotated[int, Ge(0)] = 65536
    price: Price | None = None


class NumpyEngine(LocalEngine[NumpyWorker, NumpyAnswer, StructuredAnswer]):
    """A built-in model in numpy, with the same tokens as the hf engine's and without torch.

    Raises:
        ConfigError: the model is not a built-in one.
    """

    options: ClassVar[type] = NumpyOptions
    capabilities: frozenset[Capability] = frozenset({"prefix", "logprobs", "score"})

    def __init__(self, name: str, options: NumpyOptions) -> None:
        self.settings = options
        self._folder = Path(options.path)
        self._config = read_config(self._folder)
        super().__init__(name, _info(self._config, options.price), options.enable_thinking)

    @cached_property
    def model(self) -> str:
        return identity_of(self.settings.path)

    @property
    def footprint(self) -> Footprint:
        return Footprint(4 * self.info.parameters, 2 * 4 * _width(self._config))

    def describe(self) -> str:
        """Return a one-line description."""
        return f"{self.name}: {self.settings.path} in numpy, float32, {self.info.parameters:,} parameters"

    def _tokenizer(self) -> Any:
        return FolderTokenizer(self._folder)

    def _end_ids(self) -> frozenset[int]:
        return frozenset({self._config["eos_token_id"]})

    def _start(self) -> NumpyWorker:
        return NumpyWorker(self.name, self._loaded, self.settings.prefix_cache_tokens)

    def _loaded(self) -> NumpyModel:
        self.vocabulary  # noqa: B018  # computed once and kept
        return NumpyModel(self._folder)

    def _structure(self, request: Request, ids: Ids, end: frozenset[int]) -> None:
        """Nothing is asked for: `offers` refuses formats and tools."""

    def _write(
        self, request: Request, ids: Ids, end: frozenset[int], structure: StructuredAnswer | None
    ) -> NumpyAnswer:
        return NumpyAnswer(ids, self._started(), request.sampling, end, self.vocabulary)

    def _read(self, ids: Ids) -> NumpyReading:
        return NumpyReading(ids, self._started())


def _width(config: dict[str, Any]) -> int:
    """Width of the keys of all layers for one token."""
    width: int = config["num_hidden_layers"] * config["num_attention_heads"] * config["head_dim"]
    return width


def _info(config: dict[str, Any], price: Price | None) -> ModelInfo:
    hidden, inner, layers = (config[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers"))
    heads, table = config["num_attention_heads"] * config["head_dim"], config["vocab_size"] * hidden
    layer = 4 * hidden * heads + 3 * hidden * inner + 2 * hidden + 2 * config["head_dim"]
    total = 2 * table + layers * layer + hidden
    return ModelInfo(
        parameters=total,
        active=total - table,
        attention_flops=4.0 * _width(config),
        context=config["max_position_embeddings"],
        vocabulary=config["vocab_size"],
        price=price,
    )
