"""A tiny configuration of each causal architecture, for `benchmarks.architectures`.

Sizes go by the names that configurations use for them; what an architecture needs besides stands in `RECIPES`.
Windows are shorter than the prompts of the benchmark, so that they matter.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import CONFIG_MAPPING

VOCABULARY = 128
_LAYERS = 4
_SIZES: dict[int, str] = {
    32: "hidden_size d_model n_embd embedding_dim emb_dim word_embed_proj_dim embedding_size lru_width"
    " output_embedding_size input_embedding_size",
    48: "intermediate_size n_inner ffn_dim decoder_ffn_dim encoder_ffn_dim ffn_hidden_size moe_intermediate_size"
    " shared_expert_intermediate_size shared_experts_intermediate_size intermediate_size_mlp dff dim_ff d_inner"
    " shared_intermediate_size expert_ffn_hidden_size dense_intermediate_size feed_forward_size"
    " moe_shared_expert_intermediate_size",
    _LAYERS: "num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers num_encoder_layers"
    " num_decoder_layers num_blocks"
    " num_attention_heads n_head n_heads num_heads decoder_attention_heads encoder_attention_heads attention_heads"
    " num_encoder_attention_heads num_decoder_attention_heads swa_num_attention_heads linear_num_key_heads"
    " linear_num_value_heads linear_num_heads index_n_heads rotary_dim"
    " num_experts num_local_experts n_routed_experts moe_num_experts",
    2: "num_key_value_heads num_kv_heads swa_num_key_value_heads num_experts_per_tok num_experts_per_token moe_topk"
    " moe_k",
    1: "n_group topk_group num_expert_group",
    8: "head_dim dim_head d_head attention_head_size kv_channels swa_head_dim attention_head_dim qk_rope_head_dim"
    " index_head_dim hidden_size_per_layer_input laurel_rank sliding_window local_attention attention_window_size"
    " window_size sliding_window_size attention_chunk_size keep_window_size",
    16: "q_lora_rank kv_lora_rank qk_nope_head_dim v_head_dim linear_key_head_dim linear_value_head_dim"
    " linear_head_dim qk_head_dim",
    128: "max_position_embeddings n_positions n_ctx max_seq_len context_length max_target_positions model_max_length"
    " original_max_position_embeddings",
    VOCABULARY: "vocab_size vocab_size_per_layer_input decoder_vocab_size unpadded_vocab_size",
}
_IDS = {
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
    "is_decoder": True,
}
_SHAPE = {name: size for size, names in _SIZES.items() for name in names.split()}

_VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
_SHARED = {"num_kv_shared_layers": 2, "layer_types": ["sliding_attention", "full_attention"] * 2}
_MAMBA = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "mamba_chunk_size": 16,
    "mamba_n_groups": 1,
}
_LATENT = (
    "axk1 axk2 deepseek_v2 deepseek_v3 deepseek_v32 dots3_note dots3_note_text"
    " glm4_moe_lite glm_moe_dsa minicpm3 youtu"
)
RECIPES: dict[str, dict[str, Any]] = {
    "bamba": _MAMBA,
    "granitemoehybrid": _MAMBA,
    **{kind: {"num_key_value_heads": 4} for kind in _LATENT.split()},
    "dots1": {"layer_types": ["sliding_attention", "full_attention"] * 2, "n_shared_experts": 1},
    **dict.fromkeys(("gemma3n_text", "gemma4_text", "gemma4_unified_text"), _SHARED),
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "dbrx": {
        "attn_config": {"rope_theta": 10000.0, "kv_n_heads": 2, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 32},
    },
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "mamba2": {"num_heads": 8},
    "gemma3": {"vision_config": _VISION},
    "git": {"vision_config": _VISION},
    "reformer": {"axial_pos_embds": False, "attn_layers": ["local"] * 4, "local_attn_chunk_length": 8},
    "zaya": {"num_experts_per_tok": 1},
    "roc_bert": {
        "pronunciation_vocab_size": 16,
        "shape_vocab_size": 16,
        "shape_embed_dim": 8,
        "pronunciation_embed_dim": 8,
    },
    "longcat_flash": {"zero_expert_num": 2, "num_key_value_heads": 4, "qk_head_dim": 24, "head_dim": 8},
    "zamba2": {"layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"]},
}
_WINDOW = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}
_ENCODERS = (
    "bert bert-generation big_bird camembert data2vec-text electra ernie megatron-bert rembert roberta"
    " roberta-prelayernorm roc_bert roformer xlm-roberta xlm-roberta-xl xmod"
)
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "falcon": [{}, {"alibi": True}, {"new_decoder_architecture": True}],
    "gemma3_text": [{}, {"use_bidirectional_attention": True}],
    "gpt2": [{}, {"scale_attn_by_inverse_layer_idx": True}],
    "gpt_bigcode": [{}, {"multi_query": False}],
    "gpt_neox": [{}, {"use_parallel_residual": False}],
    "mistral": [{}, {"sliding_window": None}],
    "opt": [{}, {"do_layer_norm_before": False}],
    "qwen2": [{}, _WINDOW],
    "qwen2_moe": [{}, _WINDOW],
    "qwen3": [{}, _WINDOW],
    "stablelm": [{}, {"use_parallel_residual": True}],
    "starcoder2": [{}, {"sliding_window": None}],
    **{kind: [{}, {"is_decoder": False}] for kind in _ENCODERS.split()},  # without it they look ahead
}


def tiny(kind: str, changes: Mapping[str, Any] = {}) -> Any:
    """The configuration of a tiny model of a kind."""
    config = CONFIG_MAPPING[kind]
    own = _shape(config)
    for name, inner in getattr(config, "sub_configs", {}).items():
        if (
            name in ("text_config", "decoder")
            and hasattr(inner, "sub_configs")
            and inner.__name__ != "AutoConfig"
        ):
            own[name] = _shape(inner) | RECIPES.get(inner.model_type, {})
    return config(**own | RECIPES.get(kind, {}) | dict(changes))


def _shape(config: type) -> dict[str, Any]:
    """The sizes that a configuration has."""
    names = {name for parent in config.__mro__ for name in getattr(parent, "__annotations__", {})}
    return {name: size for name, size in _SHAPE.items() if name in names} | _IDS
