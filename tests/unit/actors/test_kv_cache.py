"""How much memory an engine's cache takes on a CPU, before the engine is there."""

from types import SimpleNamespace

import pytest

from actors.config import EngineSettings
from actors.engines import kv_cache

SMALL = SimpleNamespace(num_hidden_layers=3, num_attention_heads=3, num_key_value_heads=3, hidden_size=96)
SMOLLM2 = SimpleNamespace(num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3, hidden_size=576)
LATENT = SimpleNamespace(num_hidden_layers=2, kv_lora_rank=512, qk_rope_head_dim=64)
MIXED = SimpleNamespace(layer_types=["linear_attention", "full_attention"], num_attention_heads=2, hidden_size=8)
GIB = 2**30


@pytest.mark.parametrize(
    "text, heads, numbers",
    [(SMALL, 3, 3 * 2 * 96), (SMOLLM2, 3, 30 * 2 * 3 * 64), (LATENT, 1, 2 * 576), (MIXED, 2, 2 * 8)],
)
def test_what_a_token_takes_is_counted_of_the_layers_that_attend(text, heads, numbers):
    assert kv_cache.cached_of(text) == (heads, numbers)


def test_auto_is_room_for_every_request_in_whole_blocks_and_a_gibibyte_at_most():
    settings = EngineSettings(max_running=256, max_length=100)
    small, large = (kv_cache.cached_of(text)[1] for text in (SMALL, SMOLLM2))
    assert kv_cache.cpu_bytes(settings, small, "float32") == (256 * 7 + 1) * 16 * small * 4
    assert kv_cache.cpu_bytes(settings, small, "bfloat16") == (256 * 4 + 1) * 32 * small * 2
    assert kv_cache.cpu_bytes(settings, large, "float32") == GIB
    assert kv_cache.cpu_bytes(settings, 0, "float32") == GIB


def test_what_is_asked_for_is_taken_also_below_a_gibibyte():
    for asked in (0.1, 2.5):
        settings = EngineSettings(kv_cache_gb=asked)
        assert kv_cache.cpu_bytes(settings, 576, "float32") == int(asked * GIB)


def test_a_layer_that_keeps_a_state_is_seen():
    assert kv_cache.only_attends(SMALL) and not kv_cache.only_attends(MIXED)
