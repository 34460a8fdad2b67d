"""Hugging Face folders as GGUF files: dense models of the Llama, Qwen2 and Qwen3 kind with a GPT-2 tokenizer.

Enough for the models that ship with the package; llama.cpp's own `convert_hf_to_gguf.py` knows all others.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ensemblehub.errors import ConfigError, MissingExtraError

try:
    import gguf
    import transformers
    from safetensors import torch as safetensors
except ModuleNotFoundError as error:
    raise MissingExtraError(f"{error.name} is not installed: pip install 'ensemblehub[llamacpp]'") from error

Kind = Literal["f32", "f16", "bf16", "q8_0"]
_ARCHITECTURES = {"llama": "LLAMA", "qwen2": "QWEN2", "qwen3": "QWEN3"}
_BESIDE = ("tokenizer*.json", "chat_template*", "generation_config.json")  # what the llama_cpp engine reads


def export(model: str, folder: Path, kind: Kind = "f32") -> Path:
    """Write `model.gguf` into `folder`, and beside it the tokenizer that the engine reads.

    Args:
        model: a folder with `config.json`, `*.safetensors` and `tokenizer.json`.
        kind: precision of the matrices; vectors stay in float32.

    Raises:
        ConfigError: the folder cannot be read, or is of a kind that this module does not know.
    """
    source = Path(model)
    if not source.is_dir():
        raise ConfigError(f"{model!r} is no folder")
    config = transformers.AutoConfig.from_pretrained(source)
    _check(config, model)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.gguf"
    architecture = gguf.MODEL_ARCH[_ARCHITECTURES[config.model_type]]
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[architecture])
    try:
        _describe(writer, config, source.name, kind)
        _spell(writer, config, source)
        for name, weight in _weights(source, config, architecture):
            _add(writer, name, weight, kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()
    for pattern in _BESIDE:
        for file in source.glob(pattern):
            shutil.copyfile(file, folder / file.name)
    return path


def _check(config: Any, model: str) -> None:
    if config.model_type not in _ARCHITECTURES:
        raise ConfigError(f"{model}: only {', '.join(_ARCHITECTURES)} are exported, not {config.model_type}")
    rope = (config.rope_parameters or {}).get("rope_type", "default")
    sliding = "sliding_attention" in (getattr(config, "layer_types", None) or ())
    if rope != "default" or sliding:
        raise ConfigError(
            f"{model}: {'sliding attention' if sliding else f'{rope} positions'} cannot be exported"
        )


def _describe(writer: Any, config: Any, name: str, kind: Kind) -> None:
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_name(name)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    file_types = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0"}
    writer.add_file_type(gguf.LlamaFileType[file_types[kind]])


def _spell(writer: Any, config: Any, source: Path) -> None:
    """The tokenizer: strings, kinds and merges."""
    described = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    plain = (
        described["model"]["type"] == "BPE"
        and (described.get("pre_tokenizer") or {}).get("type") == "ByteLevel"
    )
    if not plain or not described["pre_tokenizer"].get("use_regex", True):
        raise ConfigError(f"{source}: only tokenizers that split as GPT-2's does are exported")
    strings = {index: string for string, index in described["model"]["vocab"].items()}
    kinds = dict.fromkeys(strings, gguf.TokenType.NORMAL)
    for token in described["added_tokens"]:
        strings[token["id"]] = token["content"]
        kinds[token["id"]] = gguf.TokenType.CONTROL if token["special"] else gguf.TokenType.USER_DEFINED
    ids = range(config.vocab_size)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in described["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([strings.get(index, f"[PAD{index}]") for index in ids])
    writer.add_token_types([kinds.get(index, gguf.TokenType.UNUSED) for index in ids])
    writer.add_token_merges(merges)
    writer.add_add_bos_token(False)
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    for name in ("bos", "eos", "pad"):
        index = getattr(tokenizer, f"{name}_token_id")
        if index is not None:
            getattr(writer, f"add_{name}_token_id")(index)
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)


def _weights(source: Path, config: Any, architecture: Any) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """All weights under llama.cpp's names."""
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    for file in sorted(source.glob("*.safetensors")):
        for key, tensor in safetensors.load_file(file).items():
            name = names.get_name(key, try_suffixes=(".weight", ".bias"))
            if name is None:
                raise ConfigError(f"{source}: llama.cpp has no place for {key}")
            weight = tensor.float().numpy()
            if config.model_type == "llama" and ".q_proj." in key:
                weight = _interleaved(weight, config.num_attention_heads)
            elif config.model_type == "llama" and ".k_proj." in key:
                weight = _interleaved(weight, config.num_key_value_heads)
            yield name, weight


def _interleaved(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Rows as llama.cpp rotates them: neighbours in pairs, not the halves of a head."""
    split = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return split.swapaxes(1, 2).reshape(weight.shape)


def _add(writer: Any, name: str, weight: NDArray[np.float32], kind: Kind) -> None:
    if kind == "f32" or weight.ndim == 1:
        writer.add_tensor(name, np.ascontiguousarray(weight))
        return
    quantised = gguf.GGMLQuantizationType[kind.upper()]
    writer.add_tensor(name, gguf.quants.quantize(weight, quantised), raw_dtype=quantised)
