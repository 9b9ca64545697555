"""Attention without masks computes what attention with them does, and refuses what it does not compute."""

from __future__ import annotations

import pytest
import torch
from support.families import FAMILIES, write

from learner.config import LearnerSettings
from learner.model.attention import VARLEN, bounds, choose
from learner.model.load import load_model
from learner.model.policy import Policy
from learner.model.selftest import examine, judge
from learner.ranks.trainer import Trainer
from protocols.errors import SettingError

LENGTHS = (40, 70, 18)  # of the sequences in a row, beyond the windows of 16
WITHOUT = [name for name, (*_, packs) in FAMILIES.items() if packs and name != "gemma2"]
WITH = {"gemma2": "softcap", "gpt_oss": "s_aux", "falcon_h1": "layers of hybrid"}


def test_bounds_are_where_positions_begin_anew_in_any_row():
    positions = torch.tensor([[0, 1, 2, 0, 1], [0, 1, 0, 1, 2]])
    found = bounds(positions)
    assert found["cu_seq_lens_q"].tolist() == found["cu_seq_lens_k"].tolist() == [0, 3, 5, 7, 10]
    assert found["max_length_q"] == found["max_length_k"] == 3


def test_auto_is_without_masks_where_the_kernel_runs():
    assert choose("auto", "cuda", torch.bfloat16) == choose("auto", "cpu", torch.float32) == VARLEN
    assert choose("auto", "cuda", torch.float32) == "sdpa" and choose("eager", "cuda", torch.bfloat16) == "eager"


def scored(folder: str, attention: str) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Log-probs of two packed rows, and the gradients of their sum."""
    policy = Policy(load_model(folder, torch.float32, attention), packed=True)
    size = sum(LENGTHS)
    positions = torch.cat([torch.arange(length) for length in LENGTHS]).repeat(2, 1)
    tokens = torch.randint(3, 64, (2, size), generator=torch.Generator().manual_seed(0))
    logprobs, _ = policy(tokens, positions, torch.arange(2 * size - 1), tokens.flatten()[1:])
    logprobs.sum().backward()
    return logprobs.detach(), [part.grad for part in policy.parameters() if part.grad is not None]


@pytest.mark.parametrize("family", WITHOUT)
def test_log_probs_and_gradients_are_those_with_masks(family, tmp_path):
    folder = str(write(family, tmp_path))
    (found, slopes), (wanted, others) = scored(folder, VARLEN), scored(folder, "sdpa")
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    assert len(slopes) == len(others) > 0
    for slope, other in zip(slopes, others, strict=True):
        torch.testing.assert_close(slope, other, rtol=0, atol=1e-5 * float(other.abs().max()) + 1e-7)


@pytest.mark.parametrize("family", WITH)
def test_what_it_does_not_compute_is_refused(family, tmp_path):
    policy = Policy(load_model(str(write(family, tmp_path)), torch.float32, VARLEN))
    with pytest.raises(SettingError, match=f"attention without masks does not know {WITH[family]}"):
        examine(policy, lambda: None, seed=0, packing=True, rows=2)


@pytest.mark.parametrize("family", ["lfm2", "qwen3_5_text"])
def test_layers_that_are_no_attention_are_seen_to_mix_sequences(family, tmp_path):
    policy = Policy(load_model(str(write(family, tmp_path)), torch.float32, VARLEN))
    assert judge(policy, examine(policy, lambda: None, seed=0, packing=True, rows=2)) is False


@pytest.mark.parametrize(
    "family, attention, packed",
    [("qwen3", VARLEN, True), ("gemma2", "sdpa", True), ("falcon", "sdpa", False), ("lfm2", "sdpa", False)],
)
def test_auto_falls_back_to_masks_for_a_model_that_needs_them(ranks, family, attention, packed, tmp_path):
    trainer = Trainer(LearnerSettings(row_tokens=64, micro_tokens=128, zero=0), str(write(family, tmp_path)), steps=1)
    trainer.examine(0)
    assert trainer.attention == attention and trainer.packed is packed
    assert trainer.training.policy.model.config._attn_implementation == attention


def test_who_asks_for_it_is_refused_a_model_that_needs_masks(ranks, tmp_path):
    settings = LearnerSettings(row_tokens=64, micro_tokens=128, zero=0, attention="varlen")
    with pytest.raises(SettingError, match="softcap"):
        Trainer(settings, str(write("gemma2", tmp_path)), steps=1).examine(0)
