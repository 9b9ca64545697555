"""Tiny random models of every causal type that transformers knows: `build` shrinks any config by its fields' names."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from support.families import liven

VOCABULARY = 96

# Names of config fields and what they become; the first that matches holds, and what none matches stays.
SHRINK: tuple[tuple[str, int | float | None], ...] = (
    (
        r"vocab_size_per_layer_input|vocab_size|vocabulary_size|n_vocab|entity_vocab_size|unpadded_vocab_size",
        VOCABULARY,
    ),
    (r"encoder_hash_byte_group_vocab|encoder_hash_byte_group_nb_functions", VOCABULARY),
    (r"pad_token_id", 0),
    (r"bos_token_id|decoder_start_token_id", 1),
    (r"eos_token_id", 2),
    (
        r"max_position_embeddings|n_positions|n_ctx|max_seq_len|context_length|max_sequence_length|seq_length",
        512,
    ),
    (r"num_hidden_layers|n_layers?|num_layers|decoder_layers|encoder_layers|num_decoder_layers", 2),
    (r"num_key_value_heads|num_kv_heads|swa_num_key_value_heads|num_global_key_value_heads", 2),
    (r"num_attention_heads|n_heads?|num_heads|decoder_attention_heads|encoder_attention_heads|.*_attention_heads", 2),
    (r"hidden_size|d_model|n_embd|dim|emb_dim|embedding_size|word_embed_proj_dim|hidden_dim|lru_width|dec_dim", 32),
    (r"q_lora_rank|kv_lora_rank|o_lora_rank|indexer_.*rank", 16),
    (r"qk_rope_head_dim|qk_nope_head_dim|rotary_dim", 8),
    (r"v_head_dim|head_dim|global_head_dim|swa_head_dim|kv_channels|attention_head_dim", 16),
    (r"qk_head_dim", 16),
    (r".*(intermediate_size|ffn_dim|ffn_hidden_size|ff_dim)|d_ff|n_inner|dim_ff|.*expert_dim|.*_mlp_dim", 32),
    (r"n_group|topk_group|n_groups|num_groups|mamba_n_groups|mamba_ngroups|moe_.*_n_group", 1),
    (r"num_experts_per_tok|num_experts_per_token|moe_topk|moe_k|top_k_experts|moe_top_k|router_topk|top_k", 2),
    (r"n_routed_experts|num_experts|num_local_experts|moe_num_experts|num_expert|n_experts|ffn_num_experts", 4),
    (r"n_shared_experts|num_shared_experts|moe_num_shared_experts", 1),
    (r"first_k_dense_replace|num_dense_layers|moe_layer_start_index|first_dense_layers", 1),
    (r"sliding_window|window_size|attention_window_size|local_attention|attention_chunk_size", 16),
    (r"mamba_n_heads|mamba_num_heads|mamba_nheads|n_mamba_heads", 4),
    (r"mamba_d_head|mamba_head_dim|mamba_headdim", 16),
    (r"mamba_d_ssm", 64),
    (r"mamba_d_state|state_size|ssm_state_size|mamba_state_size", 8),
    (r"chunk_size|mamba_chunk_size|block_size", 8),
    (r"mamba_dt_rank|time_step_rank", 4),
    (r"linear_num_key_heads|linear_num_value_heads|linear_.*num_heads", 2),
    (r"linear_key_head_dim|linear_value_head_dim|linear_.*head_dim", 16),
    (r"hidden_size_per_layer_input", 8),
    (r"num_kv_shared_layers|num_nextn_predict_layers|num_mtp_layers", 0),
    (r"index_topk|indexer_topk", 16),
    (r"index_n_heads|index_num_heads", 2),
    (r"index_head_dim", 16),
    (r"initializer_range|init_std|initializer_factor", 0.2),
)


# What a type needs beyond that.
# Parts of larger systems, or in need of packages that are not installed: transformers itself makes no tiny one.
NOT_MADE = {
    "cohere_compass_text",
    "dbrx",
    "gemma3n",
    "gemma4_assistant",
    "gemma4_unified_assistant",
    "musicgen",
    "musicgen_melody",
}
LATENT = {"qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16, "q_lora_rank": 16, "kv_lora_rank": 16}
LATENT_MOE = LATENT | {"head_dim": 8, "qk_head_dim": 16}
ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
OVERRIDES: dict[str, dict] = {
    **dict.fromkeys(("axk1", "deepseek_v3", "longcat_flash", "youtu"), LATENT_MOE),
    "deepseek_v2": LATENT_MOE | {"topk_method": "greedy", "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2},
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 10000.0} for kind in ("sliding_attention", "full_attention")
        },
    },
    "dbrx": ROPE,
    "codegen": {"rotary_dim": 4, "n_head": 4},
    "deepseek_v4": {
        "layer_types": ["compressed_sparse_attention", "heavily_compressed_attention"],
        "compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 8},
    },
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "gemma3n_text": {
        "layer_types": ["sliding_attention", "full_attention"],
        "intermediate_size": [32, 32],
        "activation_sparsity_pattern": [0.5, 0.0],
    },
    "gpt_neo": {"num_layers": 2, "attention_types": [[["global", "local"], 1]]},
    **dict.fromkeys(("hunyuan_v1_dense", "hunyuan_v1_moe", "ministral"), ROPE | {"head_dim": 16}),
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 4, "head_dim": 16, "expand": 2},
    "mimo_v2_flash": {
        "head_dim": 32,
        "v_head_dim": 16,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "nemotron": {"num_key_value_heads": 2, "num_attention_heads": 2, "hidden_size": 32},
    "reformer": {"is_decoder": True, "axial_pos_embds": False, "hash_seed": 0, "num_buckets": 4},
    "rembert": {"output_embedding_size": 32, "input_embedding_size": 32},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"num_hidden_layers": 4, "layer_types": ["mamba", "hybrid"] * 2},
    "zamba2": {"num_hidden_layers": 4, "layer_types": ["mamba", "hybrid"] * 2},
    "zaya": {"num_experts_per_tok": 1},
}


def _small(config):
    """Names of the fields that are shrunk, and their values: what is not known by name stays."""
    for name, value in vars(config).items():
        if isinstance(value, bool) or not isinstance(value, int | float | list):
            continue
        small = next((small for pattern, small in SHRINK if re.fullmatch(pattern, name)), None)
        if small is not None:
            yield name, [small] * len(value) if isinstance(value, list) else small


def build(kind: str, folder: Path) -> None:
    """Writes a folder with a tiny model of this type, lively, in float32; raises what transformers raises where it
    cannot be made."""
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    torch.manual_seed(0)
    config = config_of(CONFIG_MAPPING[kind], OVERRIDES.get(kind, {}))
    model = AutoModelForCausalLM.from_config(config)
    if sum(parameter.numel() for parameter in model.parameters()) > 20e6:
        raise ValueError("not tiny")
    liven(model)
    model.save_pretrained(folder)
    config.save_pretrained(folder)  # a multimodal one, where text alone was written


def config_of(kind: type, own: dict):
    config = kind()
    parts = {
        name: config_of(type(part), own.get(name, {}))
        for name in config.sub_configs
        if (part := getattr(config, name, None)) is not None and not isinstance(part, dict)
    }
    small = dict(_small(config)) | own
    try:
        return kind(**small, **{name: part.to_dict() for name, part in parts.items()})
    except Exception:  # strict configs refuse some fields that others derive: they are set afterwards
        for name, value in (small | parts).items():
            setattr(config, name, value)
        return config
