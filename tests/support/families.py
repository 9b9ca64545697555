"""Tiny random models of many families, at weights at which their peculiarities show."""

from __future__ import annotations

from pathlib import Path

import torch

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LINEAR = {f"linear_{part}": 2 for part in ("num_key_heads", "num_value_heads")}
LINEAR["layer_types"] = ["linear_attention", "full_attention"]
LINEAR |= {f"linear_{part}": 16 for part in ("key_head_dim", "value_head_dim")}
ROUTED = {"n_routed_experts": 8, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "moe_intermediate_size": 16}
LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16}
MAMBA = {"mamba_d_ssm": 32, "mamba_n_heads": 2, "mamba_d_head": 16, "mamba_d_state": 8}
SINKS = {"head_dim": 16, "sliding_window": 16, "num_local_experts": 4, "num_experts_per_tok": 2}
SINKS["layer_types"] = ["sliding_attention", "full_attention"]
GPT2 = {"vocab_size": 64, "n_positions": 128, "n_embd": 32, "n_layer": 2, "n_head": 2, "eos_token_id": 2}

FAMILIES: dict[str, tuple[str, dict, bool]] = {
    "qwen2": ("Qwen2Config", {}, True),
    "qwen3": ("Qwen3Config", {"head_dim": 16}, True),
    "qwen3_moe": ("Qwen3MoeConfig", {"head_dim": 16, **EXPERTS}, True),
    "llama": ("LlamaConfig", {}, True),
    "mistral": ("MistralConfig", {"sliding_window": 16}, True),
    "phi": ("PhiConfig", {"resid_pdrop": 0.1, "embd_pdrop": 0.1}, True),
    "olmo2": ("Olmo2Config", {}, True),
    "gemma2": ("Gemma2Config", {"head_dim": 16, "final_logit_softcapping": 2.0, "sliding_window": 16}, True),
    "gemma3_text": ("Gemma3TextConfig", {"head_dim": 16, "sliding_window": 16}, True),
    "granite": ("GraniteConfig", {"logits_scaling": 4.0}, True),
    "cohere2": ("Cohere2Config", {"logit_scale": 0.25}, True),
    "deepseek_v3": ("DeepseekV3Config", {**ROUTED, **LATENT, "first_k_dense_replace": 1}, True),
    "falcon_h1": ("FalconH1Config", {**MAMBA, "lm_head_multiplier": 3.0}, False),
    "falcon": ("FalconConfig", {"alibi": True, "hidden_dropout": 0.1}, False),
    "lfm2": ("Lfm2Config", {"layer_types": ["conv", "full_attention"]}, False),
    "qwen3_5_text": ("Qwen3_5TextConfig", {"head_dim": 16, **LINEAR}, False),
    "gpt_oss": ("GptOssConfig", SINKS, False),
    "gpt2": ("GPT2Config", GPT2, True),
}
"""By type: the config's class, what it has beside SIZES, and whether it keeps packed sequences apart."""


def write(family: str, folder: Path) -> Path:
    """A folder with a tiny model of the family; see `liven`."""
    import transformers

    kind, extra, _ = FAMILIES[family]
    config = getattr(transformers, kind)(**(extra if family == "gpt2" else SIZES | extra))
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").float()
    liven(model)
    model.save_pretrained(folder)
    return folder


def liven(model: torch.nn.Module) -> None:
    """Makes every part of a freshly drawn model show in its log-probs."""
    kept = model.state_dict().keys()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4.0)
        for name, buffer in model.named_buffers():
            if name in kept and buffer.is_floating_point():
                buffer.copy_(torch.linspace(1, -1, buffer.numel()).view(buffer.shape))
