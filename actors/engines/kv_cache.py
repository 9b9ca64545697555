"""How large a model's key-value cache is: of a token, and on a CPU in all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from actors.config import EngineSettings

ATTENDING = ("full_attention", "sliding_attention", "chunked_attention", "attention", "hybrid")
BLOCK = {"float32": 16, "bfloat16": 32}
"""Tokens of the smallest block that CPU attention takes: dialogues are short, and only whole blocks of a prefix are
cached. In bfloat16 it computes with AMX, which takes no 16."""
BYTES = {"float32": 4, "bfloat16": 2}
MOST = 2**30  # bytes, where no size is asked for


def cached_of(text: Any) -> tuple[int, int]:
    """Heads of the cache, and how many numbers it holds of a token: keys and values of all layers that attend. `text`
    is transformers' config of a language model."""
    kinds = getattr(text, "layer_types", None)
    layers = sum(kind in ATTENDING for kind in kinds) if kinds else text.num_hidden_layers
    latent = getattr(text, "kv_lora_rank", None)
    if latent:  # of multi-head latent attention only that is kept
        return 1, layers * (latent + text.qk_rope_head_dim)
    heads = getattr(text, "num_attention_heads", None)
    if not heads:
        return 1, 0
    groups = getattr(text, "num_key_value_heads", None) or heads
    size = getattr(text, "head_dim", None) or text.hidden_size // heads
    return groups, layers * 2 * groups * size


def only_attends(text: Any) -> bool:
    """Whether no layer keeps something other than keys and values, a state say."""
    return set(getattr(text, "layer_types", None) or ()) <= set(ATTENDING)


def cpu_bytes(settings: EngineSettings, cached: int, dtype: str) -> int:
    """Of the whole cache on a CPU: what the recipe says, or what `max_running` requests of `max_length` take in whole
    blocks, MOST at most. `cached` is how many numbers of a token it holds, 0 where that does not say how large it is:
    MOST is taken then."""
    if settings.kv_cache_gb != "auto":
        return int(settings.kv_cache_gb * 2**30)
    block = BLOCK[dtype]
    blocks = 1 + settings.max_running * -(-settings.max_length // block)  # vLLM keeps one for itself
    return min(MOST, blocks * block * cached * BYTES[dtype]) or MOST


def of_model(settings: EngineSettings, model: Path, dtype: str) -> int:
    """The same, for the language model in a folder; of a multimodal one, for its text part."""
    from transformers import AutoConfig

    text = AutoConfig.from_pretrained(str(model), trust_remote_code=False).get_text_config()
    return cpu_bytes(settings, cached_of(text)[1] if only_attends(text) else 0, dtype)
