"""The learner's adapter: where it goes, what it computes, and what of it is saved."""

from __future__ import annotations

import stat

import pytest
import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import layer as lora_layer
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, Qwen2Config, Qwen2ForCausalLM

from learner.lora_config import LoraSettings
from learner.model.load import load_model
from learner.model.lora import Adapted, Adapter, check, merged_state, targets
from protocols.adapter import UP, merged
from protocols.errors import SettingError

VOCABULARY, SEED = 40, 3
IDS = torch.randint(0, VOCABULARY, (2, 24), generator=torch.Generator().manual_seed(SEED))
SETTINGS = LoraSettings(rank=4)


def config(**changes) -> Qwen2Config:
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
    return Qwen2Config(vocab_size=VOCABULARY, num_key_value_heads=1, tie_word_embeddings=True, **(shape | changes))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    torch.manual_seed(SEED)
    Qwen2ForCausalLM(config(initializer_range=0.1)).to(torch.bfloat16).save_pretrained(path)
    return str(path)


def logprobs(model) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits.float().log_softmax(-1)


def adapted(folder, dtype, size: float = 0.0):
    """A model with an adapter whose B A is `size` times as large as what it is added to, and the adapter."""
    model, adapter = load_model(folder, dtype, "eager"), Adapter(SETTINGS, folder, SEED)
    adapter.add(model)
    if size:
        drawn = adapter.perturbed(state_of(model, adapter), size, SEED)
        for name, part in adapter.trained(model).items():
            part.data.copy_(drawn[name])
    return model, adapter


def state_of(model, adapter) -> dict[str, torch.Tensor]:
    return {name: part.detach().clone() for name, part in adapter.trained(model).items()}


def test_auto_adapts_all_linear_layers_but_the_head_and_freezes_the_rest(folder):
    model, adapter = adapted(folder, torch.float32)
    names = {name.split(".")[-3] for name in adapter.trained(model)}
    assert names == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    trained = sum(part.numel() for part in model.parameters() if part.requires_grad)
    assert trained == sum(part.numel() for part in adapter.trained(model).values()) == check(folder, SETTINGS)


def test_targets_are_the_last_parts_of_names(folder):
    chosen = targets(load_model(folder, torch.float32, "eager"), LoraSettings(targets=("q_proj", "down_proj")))
    assert chosen == [f"model.layers.{n}.{part}" for n in (0, 1) for part in ("self_attn.q_proj", "mlp.down_proj")]


@pytest.mark.parametrize(
    ("settings", "key", "words"),
    [
        ({"targets": ["q_proj", "w_q"]}, "model.lora.targets", "no linear layer w_q. Choose from .*gate_proj.*or auto"),
        ({"targets": ["lm_head"]}, "model.lora.targets", "no linear layer lm_head"),
        ({"rank": 33}, "model.lora.rank", r"k_proj has rows or columns \(32\). Set at most 32"),
    ],
)
def test_what_the_model_cannot_have_is_refused_before_anything_starts(folder, settings, key, words):
    with pytest.raises(SettingError, match=words) as refused:
        check(folder, LoraSettings(**settings))
    assert refused.value.setting == key and "\n" not in str(refused.value)


def test_a_model_without_linear_layers_is_refused(tmp_path):
    GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=1, n_head=1)).save_pretrained(tmp_path)
    with pytest.raises(SettingError, match="GPT2LMHeadModel has no linear layers"):
        check(tmp_path, SETTINGS)


def test_a_quantised_model_is_refused(tmp_path):
    config(quantization_config={"quant_method": "gptq", "bits": 4}).save_pretrained(tmp_path)
    with pytest.raises(SettingError, match="quantised"):
        check(tmp_path, SETTINGS)


def test_a_model_whose_weights_are_no_safetensors_is_refused(tmp_path):
    config().save_pretrained(tmp_path)
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(SettingError, match="q_proj.weight, from which engines merge"):
        check(tmp_path, SETTINGS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_fresh_adapter_changes_nothing_and_is_always_the_same(folder, dtype):
    plain = logprobs(load_model(folder, dtype, "eager"))
    before = torch.get_rng_state()
    (model, adapter), (again, _) = adapted(folder, dtype), adapted(folder, dtype)
    assert torch.equal(torch.get_rng_state(), before), "the run's own random numbers are those without an adapter"
    torch.testing.assert_close(logprobs(model), plain, atol=0 if dtype == torch.float32 else 0.05, rtol=0)
    one, other = state_of(model, adapter), state_of(again, adapter)
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_its_adapter_the_model_is_the_start_model(folder, dtype):
    model, adapter = adapted(folder, dtype, size=0.5)
    plain = logprobs(load_model(folder, dtype, "eager"))
    with adapter.disabled(model):
        assert torch.equal(logprobs(model), plain)
    assert not torch.allclose(logprobs(model), plain, atol=0.1), "outside it is back"
    assert all(part.requires_grad for part in adapter.trained(model).values())


def test_merged_weights_compute_what_the_adapted_model_does(folder):
    model, adapter = adapted(folder, torch.float32, size=0.5)
    whole = adapter.merged(state_of(model, adapter), torch.float32)
    torch.testing.assert_close(logprobs(whole), logprobs(model), atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", [3e-4, 3e-3])
def test_in_bfloat16_a_layer_and_the_merged_one_keep_what_is_below_the_last_digit_of_their_output(size):
    """Peft itself adds it to outputs that were rounded before, and loses it there."""
    torch.manual_seed(SEED)
    weight, inputs = 0.05 * torch.randn(256, 192).bfloat16(), torch.randn(2048, 192).bfloat16()
    down, up = torch.randn(4, 192).bfloat16(), torch.randn(256, 4).bfloat16() * (0.05 * size / 4)
    wanted = inputs.float() @ (2 * up.float() @ down.float()).T

    def share(layer: nn.Module) -> float:
        change = layer(inputs).float() - inputs.float() @ weight.float().T
        return float((change * wanted).sum() / wanted.square().sum())

    shares = {}
    for kind in (Adapted, lora_layer.Linear):
        base = nn.Linear(192, 256, bias=False, dtype=torch.bfloat16)
        base.weight.data = weight
        layer = kind(base, "default", config=LoraConfig(target_modules=["any"]), r=4, lora_alpha=8)
        layer.lora_A["default"].weight.data, layer.lora_B["default"].weight.data = down, up
        shares[kind.__module__] = share(layer.requires_grad_(False))
    base.weight.data = merged(weight, down, up, 2.0)
    shares["merged"] = share(base)
    print(f"B A of {size:g} of W: of the change is left {shares}")
    assert abs(shares["learner.model.lora"] - 1) < 0.1 and abs(shares["merged"] - 1) < 0.1


def test_a_saved_adapter_is_one_of_peft_and_readable_by_others(folder, tmp_path):
    model, adapter = adapted(folder, torch.float32, size=0.5)
    adapter.write(tmp_path / "adapter", state_of(model, adapter))
    base = load_model(folder, torch.float32, "eager")
    torch.testing.assert_close(
        logprobs(PeftModel.from_pretrained(base, tmp_path / "adapter")), logprobs(model), atol=1e-5, rtol=0
    )
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "adapter").iterdir()}
    assert modes == {"adapter_config.json": 0o644, "adapter_model.safetensors": 0o644}
    whole = merged_state(folder, tmp_path / "adapter")
    expected = dict(adapter.merged(state_of(model, adapter), torch.float32).named_parameters())
    assert whole.keys() == expected.keys() and all(torch.equal(whole[name], expected[name]) for name in whole)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_those_of_peft_also_with_gradient_checkpointing(folder, dtype, tmp_path):
    model, adapter = adapted(folder, dtype, size=0.5)
    adapter.write(tmp_path / "adapter", state_of(model, adapter))
    base, how = load_model(folder, dtype, "eager"), {"is_trainable": True, "autocast_adapter_dtype": False}
    peft = PeftModel.from_pretrained(base, tmp_path / "adapter", **how)
    theirs = {name.replace(".default", ""): part for name, part in peft.named_parameters() if part.requires_grad}
    peft(IDS, labels=IDS).loss.backward()
    for checkpointing in (False, True):
        model.zero_grad()
        if checkpointing:
            model.train().gradient_checkpointing_enable({"use_reentrant": False})
        model(IDS, labels=IDS).loss.backward()
        for name, part in adapter.trained(model).items():
            wanted = theirs[name].grad.float()
            difference = (part.grad.float() - wanted).norm() / wanted.norm()
            assert difference < (1e-4 if dtype == torch.float32 else 0.05), f"{name}: {difference:.1e}"
    assert all(part.grad is None for part in model.parameters() if not part.requires_grad)


def test_a_trial_moves_the_model_as_far_as_its_strength_says_also_from_a_fresh_adapter(folder):
    model, adapter = adapted(folder, torch.float32)
    fresh = state_of(model, adapter)
    drawn = adapter.perturbed(fresh, 0.3, SEED)
    start, moved = (dict(adapter.merged(state, torch.float32).named_parameters()) for state in (fresh, drawn))
    changed = {name.removeprefix("base_model.model.").removesuffix(UP) for name in fresh if name.endswith(UP)}
    for name in start:
        ratio = float((moved[name] - start[name]).detach().norm() / start[name].detach().norm().clamp(min=1e-9))
        assert abs(ratio - 0.3 * (name.removesuffix(".weight") in changed)) < 0.05, name
