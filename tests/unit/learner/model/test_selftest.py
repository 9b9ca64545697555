"""Before a run trains, its model is seen to compute one function: packed, alone, in training, and as it is saved."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.families import FAMILIES, write
from torch import nn
from transformers import MambaConfig, MambaForCausalLM, Qwen3_5Config

from learner.config import LearnerSettings
from learner.model import selftest
from learner.model.load import load_model
from learner.model.policy import Policy
from learner.model.selftest import CHECKS, Examiner, examine, judge
from learner.ranks.trainer import Trainer
from protocols.errors import SettingError


def loaded(family: str, folder, dtype=torch.float32) -> Policy:
    return Policy(load_model(str(write(family, folder)), dtype, "eager"))


def compared(policy: Policy, fresh: nn.Module | None = None) -> np.ndarray:
    return examine(policy, lambda: fresh, seed=0, packing=True, rows=2)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_right_alone_and_packed_where_it_keeps_sequences_apart(family, tmp_path):
    policy = loaded(family, tmp_path)
    fresh = load_model(str(tmp_path), torch.float32, "eager")
    found = compared(policy, fresh)
    packs = FAMILIES[family][2]
    assert judge(policy, found) is packs
    neighbour = found[CHECKS.index("neighbour"), 0]
    dense = "moe" not in family and family != "deepseek_v3"
    assert neighbour == 0 if packs and dense else neighbour <= 1e-6 if packs else neighbour > 1e-3


@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen3_moe", "qwen3_5_text", "lfm2", "falcon_h1"])
def test_bfloat16_is_judged_by_its_own_rounding(family, tmp_path):
    policy = loaded(family, tmp_path, torch.bfloat16)
    assert judge(policy, compared(policy, load_model(str(tmp_path), torch.bfloat16, "eager"))) is FAMILIES[family][2]


def test_a_float32_head_passes_beside_the_models_own_forward_pass(tmp_path):
    folder = str(write("llama", tmp_path))
    policy = Policy(load_model(folder, torch.bfloat16, "eager"), head="float32")
    assert judge(policy, compared(policy, load_model(folder, torch.bfloat16, "eager"))) is True


def test_a_head_that_is_made_in_another_way_is_refused(tmp_path):
    policy = loaded("gemma2", tmp_path)
    policy.shape = selftest.Policy(load_model(str(write("llama", tmp_path / "plain")), torch.float32, "eager")).shape
    with pytest.raises(
        SettingError, match=r"model\.path: a model of type gemma2 fails .* the model's own forward pass"
    ):
        judge(policy, compared(policy))


def test_a_model_that_draws_lots_while_it_trains_is_refused(tmp_path):
    policy = loaded("llama", tmp_path)
    policy.model.model.layers[0].mlp.act_fn = nn.Sequential(policy.model.model.layers[0].mlp.act_fn, nn.Dropout(0.1))
    with pytest.raises(SettingError, match="model.path: .* two passes over the same tokens differ"):
        judge(policy, compared(policy))


def test_a_router_bias_that_is_not_saved_is_refused(tmp_path):
    policy = loaded("deepseek_v3", tmp_path)
    fresh = load_model(str(tmp_path), torch.float32, "eager")
    for name, buffer in fresh.named_buffers():
        if "bias" in name:
            buffer.zero_()
    with pytest.raises(SettingError, match="what would be saved and published"):
        judge(policy, compared(policy, fresh))


def test_a_model_that_looks_ahead_is_refused(tmp_path):
    policy = loaded("llama", tmp_path)
    for layer in policy.model.model.layers:
        layer.self_attn.is_causal = False
    policy.model.model.forward = without_mask(policy.model.model)
    with pytest.raises(SettingError, match="later tokens change the log-probs of earlier ones"):
        judge(policy, compared(policy))


def without_mask(body: nn.Module):
    inner = body.forward

    def forward(input_ids, **named):
        rows, length = input_ids.shape
        named["attention_mask"] = torch.zeros(rows, 1, length, length)
        return inner(input_ids=input_ids, **named)

    return forward


def test_a_model_whose_code_fails_is_refused_in_one_line(tmp_path):
    policy = loaded("llama", tmp_path)
    policy.model.model.norm.forward = lambda hidden: hidden.no_such_thing
    with pytest.raises(
        SettingError, match="model.path: a model of type llama cannot be asked for log-probs"
    ) as refused:
        compared(policy)
    assert "\n" not in str(refused.value)


def test_the_test_leaves_the_policy_as_it_was(tmp_path):
    policy = loaded("llama", tmp_path).train()
    policy.temperature = 0.7
    compared(policy)
    assert policy.temperature == 0.7 and policy.training and not policy.packed
    assert not any(module._forward_hooks for module in policy.modules())


def test_noise_is_a_rounding_and_not_a_fault(tmp_path):
    for dtype, most in ((torch.float32, 1e-5), (torch.bfloat16, 0.1)):
        with torch.no_grad():
            noise = Examiner(loaded("llama", tmp_path / str(dtype), dtype).eval(), 0).causal().explained
        assert torch.finfo(dtype).eps / 2 < noise < most


@pytest.mark.parametrize(
    "family, packing, packed", [("llama", "auto", True), ("llama", False, False), ("lfm2", "auto", False)]
)
def test_a_run_packs_only_what_stays_apart(ranks, family, packing, packed, tmp_path, caplog):
    trainer = Trainer(settings(packing), str(write(family, tmp_path)), steps=1)
    with caplog.at_level("WARNING", "redraft.learner"):
        trainer.examine(0)
    assert trainer.packed is trainer.training.policy.packed is packed
    assert ("does not keep the sequences of a row apart" in caplog.text) == (packing == "auto" and not packed)
    trainer.restart()
    assert trainer.training.policy.packed is packed


def test_packing_that_would_mix_sequences_is_refused(ranks, tmp_path):
    trainer = Trainer(settings(True), str(write("lfm2", tmp_path)), steps=1)
    with pytest.raises(SettingError, match="learner.packing: a model of type lfm2 .* Set it to auto or false"):
        trainer.examine(0)


def settings(packing) -> LearnerSettings:
    return LearnerSettings(row_tokens=64, micro_tokens=128, attention="eager", zero=0, packing=packing)


def test_of_a_multimodal_folder_the_text_model_is_loaded(tmp_path):
    policy = loaded("qwen3_5_text", tmp_path)
    Qwen3_5Config(text_config=policy.model.config.to_dict()).save_pretrained(tmp_path)
    assert load_model(str(tmp_path), torch.float32, "eager").config.model_type == "qwen3_5_text"
    assert judge(policy, compared(policy, load_model(str(tmp_path), torch.float32, "eager"))) is False


def test_hidden_states_that_a_model_keeps_in_float32_meet_a_bfloat16_head(tmp_path):
    sizes = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}
    torch.manual_seed(0)
    MambaForCausalLM(MambaConfig(**sizes, residual_in_fp32=True)).save_pretrained(tmp_path)
    policy = Policy(load_model(str(tmp_path), torch.bfloat16, "eager"))
    assert judge(policy, compared(policy)) is False


def test_a_model_of_nothing_but_nan_is_refused(tmp_path):
    policy = loaded("llama", tmp_path)
    with torch.no_grad():
        policy.model.model.norm.weight.fill_(torch.nan)
    with pytest.raises(SettingError, match="model.path: .* not finite in float32"):
        compared(policy)


def test_noise_that_is_not_finite_explains_nothing():
    assert not selftest.Difference(0.0, float("inf")).sound
    assert not selftest.Difference(float("inf"), 0.0).sound
