"""Options of the hf engine, and how they choose device, precision and attention kernel of a model."""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import torch
import transformers
from annotated_types import Ge

from ensemblehub.errors import ConfigError, MissingExtraError, one_line
from ensemblehub.generators.batching.checkpoint import ModelCheckpoint
from ensemblehub.generators.hub import PREFIX
from ensemblehub.generators.structure.calls import ToolParser
from ensemblehub.schema import Price

_NO_SDPA = "scaled_dot_product_attention"  # how transformers says that a model has no sdpa
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class HFOptions:
    """Options of the Hugging Face engine.

    Attributes:
        path: hub id, also as `hub:ORG/NAME`, or folder.
        device: "auto" takes cuda, then mps, then cpu.
        dtype: "auto" is the checkpoint's own on a GPU and float32 on a CPU.
        quantization: weights in 8 or 4 bits by bitsandbytes, on cuda only.
        trust_remote_code: run Python code that comes with the model.
        max_memory: bytes or text such as "20GiB" by device, to spread the weights with accelerate.
        num_gpus: with 2 or more, spread the weights over as many GPUs; 0 is the CPU; 1 or a share of one GPU
            leaves the choice to `device`.
        enable_thinking: passed to the chat template, for chats that do not set it themselves.
        attn_implementation: "sdpa" or "eager".
        prefix_cache_tokens: maximum number of tokens whose keys and values are kept for later requests.
        batch_rows: maximum number of rows in one forward pass.
        lookahead: tokens that a row may write beyond those its reader took.
        threads: torch threads on a CPU; None leaves them as they are.
        tool_parser: how the model writes tool calls, in vLLM's names: `hermes` (Qwen, Hermes), `llama3_json`,
            `mistral`; without one it is offered no tools.
        price: price of a call; None is free.
    """

    path: str
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    quantization: Literal["none", "8bit", "4bit"] = "none"
    trust_remote_code: bool = False
    max_memory: Mapping[int | str, int | str] = field(default_factory=dict)
    num_gpus: float | None = None
    enable_thinking: bool | None = None
    attn_implementation: str = "sdpa"
    prefix_cache_tokens: Annotated[int, Ge(0)] = 65536
    batch_rows: Annotated[int, Ge(1)] = 64
    lookahead: Annotated[int, Ge(0)] = 0
    threads: Annotated[int, Ge(1)] | None = 1
    tool_parser: ToolParser | None = None
    price: Price | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", os.path.expanduser(self.path.removeprefix(PREFIX)))
        device = device_of(self)
        if self.quantization != "none":
            if not device.startswith("cuda"):
                raise ConfigError(f"quantization {self.quantization!r} needs a cuda device, not {device}")
            if importlib.util.find_spec("bitsandbytes") is None:
                raise MissingExtraError("quantization needs bitsandbytes: pip install bitsandbytes")
        _check_gpus(self)

    @property
    def checkpoint(self) -> ModelCheckpoint:
        """Where the model is."""
        return ModelCheckpoint(self.path, self.trust_remote_code)


def _check_gpus(options: HFOptions) -> None:
    here, wanted = torch.cuda.device_count(), options.num_gpus or 0
    spread = wanted > 1 and (wanted % 1 or options.max_memory or options.device != "auto")
    if spread or not 0 <= wanted < float("inf"):
        raise ConfigError(
            "num_gpus is a share of one GPU or a whole number, above 1 without `device` and `max_memory`"
        )
    named = [device for device in options.max_memory if isinstance(device, int)]
    needed = max([int(wanted) if wanted > 1 else 0, *(device + 1 for device in named)])
    if needed > here:
        option = "max_memory" if named else "num_gpus"
        raise ConfigError(f"{option} needs {needed} GPUs, and this machine has {here}")


def device_of(options: HFOptions) -> str:
    """The device that `options` selects on this machine.

    Raises:
        ConfigError: there is no such device here.
    """
    if options.device != "auto":
        try:
            torch.empty(0, device=options.device)
        except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
            raise ConfigError(f"device {options.device!r} cannot be used here: {one_line(error)}") from error
        return options.device
    if options.num_gpus == 0:
        return "cpu"
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def dtype_of(options: HFOptions, config: Any) -> torch.dtype:
    """The precision that `options` selects on this machine."""
    if options.dtype != "auto":
        return getattr(torch, options.dtype)  # type: ignore[no-any-return]
    if device_of(options) == "cpu":
        return torch.float32
    return getattr(config, "dtype", None) or torch.float32


def config_of(options: HFOptions) -> Any:
    """The model's configuration.

    Raises:
        ConfigError: it cannot be read, or its attention is of a kind that the scheduler cannot batch.
    """
    config = options.checkpoint.config()
    layers = getattr(options.checkpoint.text_config(config), "layer_types", None) or ()
    unknown = set(layers) - {"full_attention", "sliding_attention", "chunked_attention"}
    if unknown:
        kinds = ", ".join(sorted(unknown))
        raise ConfigError(f"{options.path}: the hf engine cannot run layers of kind {kinds}")
    return config


def load_network(
    options: HFOptions, config: Any, auto: Any = transformers.AutoModelForCausalLM, kernel: str | None = None
) -> Any:
    """Load the transformers model of class `auto` on its device; runs on the owner's thread.

    Args:
        kernel: attention implementation, instead of the one in the options; `eager` replaces one that
            transformers lacks for this model.
    """
    device = device_of(options)
    if options.threads is not None and device == "cpu":
        torch.set_num_threads(options.threads)
    if not sys.stderr.isatty():
        transformers.utils.logging.disable_progress_bar()
    extra: dict[str, Any] = {"config": config, "dtype": dtype_of(options, config)}
    extra["attn_implementation"] = kernel or options.attn_implementation
    if options.quantization != "none":
        extra["quantization_config"] = _bits(options)
    if memory := _memory(options):
        extra |= {"device_map": "auto", "max_memory": memory}
    elif options.quantization != "none":
        extra["device_map"] = {"": device}
    try:
        network = options.checkpoint.read(auto, **extra)
    except ConfigError as error:
        if _NO_SDPA not in str(error):
            raise
        log.warning(
            "%s runs with attn_implementation: eager, since transformers has no sdpa for it", options.path
        )
        network = options.checkpoint.read(auto, **extra | {"attn_implementation": "eager"})
    return network if "device_map" in extra else network.to(device)


def _memory(options: HFOptions) -> dict[int | str, int | str]:
    """Memory by device to spread the weights over; empty where one device takes them."""
    if options.num_gpus is None or options.num_gpus <= 1:
        return dict(options.max_memory)
    return {index: int(0.9 * torch.cuda.mem_get_info(index)[0]) for index in range(int(options.num_gpus))}


def _bits(options: HFOptions) -> Any:
    if options.quantization == "8bit":
        return transformers.BitsAndBytesConfig(load_in_8bit=True)
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
    )
