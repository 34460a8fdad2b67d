"""Choosing a device and precision, reading a model's card, loading its weights and tokenizer.

Knows transformers' loading; knows no request.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import transformers

from ensemblehub.errors import AbsentError, ConfigError, MissingExtraError, one_line
from ensemblehub.generators.base import Footprint
from ensemblehub.schema import ModelInfo, Price

_PROBE = 65536  # bytes at either end of a weights file that its fingerprint looks at
_QUANTISED = {"8bit": 1.0, "4bit": 0.5625}  # bytes per parameter; of 4 bits, blocks of 64 add a float32 each
_KINDS = {"full_attention", "sliding_attention", "chunked_attention"}
_NO_SDPA = "scaled_dot_product_attention"  # how transformers says that a model has no sdpa
_LOADING = threading.Lock()  # while it loads, transformers patches torch for all threads
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class HFOptions:
    """Options of the Hugging Face engine.

    Attributes:
        path: hub id or folder.
        device: "auto" takes cuda, then mps, then cpu.
        dtype: "auto" is the checkpoint's own on a GPU and float32 on a CPU.
        quantization: weights in 8 or 4 bits by bitsandbytes, on cuda only.
        trust_remote_code: run Python code that comes with the model.
        max_memory: bytes or text such as "20GiB" by device, to spread the weights with accelerate.
        num_gpus: with 2 or more, spread the weights over as many GPUs; 0 is the CPU, and 1 or a share of one GPU is
            what `device` says.
        enable_thinking: the chat template's, for chats that do not say themselves.
        attn_implementation: "sdpa" or "eager".
        prefix_cache_tokens: most tokens whose keys and values are kept for later requests; 0 keeps none.
        batch_rows: most rows in one forward pass.
        lookahead: tokens that a row may write beyond those its reader took.
        threads: torch threads on a CPU; None leaves them as they are.
        price: what a call is billed; None is free.
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
    prefix_cache_tokens: int = 65536
    batch_rows: int = 64
    lookahead: int = 0
    threads: int | None = 1
    price: Price | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", os.path.expanduser(self.path))
        device_of(self)
        if self.batch_rows < 1 or self.lookahead < 0 or self.prefix_cache_tokens < 0:
            raise ConfigError("batch_rows must be at least 1; lookahead and prefix_cache_tokens at least 0")
        if self.quantization != "none":
            if not device_of(self).startswith("cuda"):
                raise ConfigError(
                    f"quantization {self.quantization!r} needs a cuda device, not {device_of(self)}"
                )
            if importlib.util.find_spec("bitsandbytes") is None:
                raise MissingExtraError("quantization needs bitsandbytes: pip install bitsandbytes")
        _check_gpus(self)


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
        raise ConfigError(
            f"{'max_memory' if named else 'num_gpus'} needs {needed} GPUs, and this machine has {here}"
        )


def device_of(options: HFOptions) -> str:
    """The device that `options` means here.

    Raises:
        ConfigError: it is no device, or this machine has none of its kind.
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
    """The precision that `options` means here."""
    if options.dtype != "auto":
        return getattr(torch, options.dtype)  # type: ignore[no-any-return]
    if device_of(options) == "cpu":
        return torch.float32
    return getattr(config, "dtype", None) or torch.float32


def config_of(options: HFOptions) -> Any:
    """The model's configuration.

    Raises:
        ConfigError: it cannot be read, or its attention is of a kind that this engine cannot batch.
    """
    config = pretrained(transformers.AutoConfig, options)
    kinds = set(getattr(text_of(config, options.path), "layer_types", None) or ()) - _KINDS
    if kinds:
        raise ConfigError(
            f"{options.path}: the hf engine cannot run layers of kind {', '.join(sorted(kinds))}"
        )
    return config


def text_of(config: Any, path: str) -> Any:
    """The configuration of the language model itself.

    Raises:
        ConfigError: it has none, or several.
    """
    try:
        return config.get_text_config()
    except ValueError as error:
        raise ConfigError(f"{path}: {one_line(error)}") from error


def info_of(options: HFOptions, config: Any, auto: Any = transformers.AutoModelForCausalLM) -> ModelInfo:
    """What is known of the model before its weights are there; `auto` is the class that would load it.

    Raises:
        ConfigError: the configuration is of no model that `auto` makes.
    """
    text = text_of(config, options.path)
    try:
        parameters, active = _count(options, config, auto)
    except Exception as error:  # whatever transformers, or code that comes with the model, raises
        raise ConfigError(f"cannot load {options.path!r}: {one_line(error)}") from error
    return ModelInfo(
        parameters=parameters,
        active=active,
        attention_flops=4.0 * _widths(text)[0],
        context=getattr(text, "max_position_embeddings", 0) or 0,
        vocabulary=getattr(text, "vocab_size", 0) or 0,
        price=options.price,
    )


def _widths(text: Any) -> tuple[int, int]:
    """Numbers in the queries, and in the keys, that all layers together compute of one token; 0 where unknown."""
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


def _count(options: HFOptions, config: Any, auto: Any) -> tuple[int, int]:
    """All parameters, and those a token is multiplied with: not the embedding table, and of the experts
    only those that are asked.  A head tied to the embedding counts as a head."""
    text = config.get_text_config()
    with torch.device("meta"):
        network = auto.from_config(config, trust_remote_code=options.trust_remote_code)
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


def footprint_of(options: HFOptions, config: Any, info: ModelInfo) -> Footprint:
    """Memory by the precision of the weights; quantisation leaves the embedding and the head as they are."""
    text, size = config.get_text_config(), dtype_of(options, config).itemsize
    count = 1 if getattr(config, "tie_word_embeddings", False) else 2
    tables = info.vocabulary * (getattr(text, "hidden_size", 0) or 0) * count
    kept = tables if options.quantization != "none" else info.parameters
    weights = kept * size + int((info.parameters - kept) * _QUANTISED.get(options.quantization, 0))
    return Footprint(weights, 2 * _widths(text)[1] * size)


def tokenizer_of(options: HFOptions) -> Any:
    """The model's tokenizer."""
    return pretrained(transformers.AutoTokenizer, options)


def end_ids(path: str, *configs: Any) -> frozenset[int]:
    """Ids that end an answer by the generation config in `path` and by the model's own configurations."""
    with suppress(OSError):  # there is none
        configs = (*configs, transformers.GenerationConfig.from_pretrained(path))
    given = (getattr(config, "eos_token_id", None) for config in configs)
    lists = ([ids] if isinstance(ids, int) else ids or () for ids in given)
    return frozenset(index for ids in lists for index in ids)


def load_network(
    options: HFOptions, config: Any, auto: Any = transformers.AutoModelForCausalLM, kernel: str | None = None
) -> Any:
    """The transformers model itself, of the kind that `auto` loads, on its device; runs on the owner's thread.

    Args:
        kernel: implementation of attention, instead of the one in the options; one that transformers has not for this
            model is replaced by `eager`.
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
        network = pretrained(auto, options, **extra)
    except ConfigError as error:
        if _NO_SDPA not in str(error):
            raise
        log.warning(
            "%s runs with attn_implementation: eager, since transformers has no sdpa for it", options.path
        )
        network = pretrained(auto, options, **extra | {"attn_implementation": "eager"})
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


def pretrained(auto: Any, options: HFOptions, **extra: Any) -> Any:
    """What `auto` reads from the model's folder or hub id.

    Raises:
        AbsentError: it is on the hub, and neither in the cache nor to be fetched.
        ConfigError: it cannot be read.
    """
    path = options.path
    try:
        with _LOADING:
            return auto.from_pretrained(path, trust_remote_code=options.trust_remote_code, **extra)
    except (OSError, ValueError, ImportError) as error:
        reason = one_line(error)
        absent = isinstance(error, OSError) and not os.path.exists(path) and not path.startswith((".", "/"))
        raise (AbsentError if absent else ConfigError)(f"cannot load {options.path!r}: {reason}") from error


def identity(options: HFOptions) -> str:
    """The hub id, or a folder's name with a fingerprint of its configuration and of its weights' files."""
    folder = Path(options.path)
    if not folder.is_dir():
        return options.path
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            digest.update(f"{path.name} {path.stat().st_size}".encode() + file.read(_PROBE))
            file.seek(max(0, path.stat().st_size - _PROBE))
            digest.update(file.read(_PROBE))
    return f"{folder.name}@{digest.hexdigest()[:12]}"
