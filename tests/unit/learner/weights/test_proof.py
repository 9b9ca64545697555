"""The learner measures how far rounding moves the probe, and what that convicts and lets pass."""

from functools import partial

import numpy as np
import pytest
import torch
from transformers import MixtralConfig, MixtralForCausalLM, Qwen2Config, Qwen2ForCausalLM

from learner.model.load import load_model
from learner.model.policy import Policy
from learner.weights import proof
from learner.weights.proof import ENOUGH, LIMIT, Proof, computing_in, perturbed, scored
from protocols.errors import RedraftError, SettingError

VOCABULARY = 60
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
MODELS = {
    "tied": lambda: Qwen2ForCausalLM(Qwen2Config(tie_word_embeddings=True, **SHAPE)),
    "experts": lambda: MixtralForCausalLM(MixtralConfig(num_local_experts=4, **SHAPE)),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    made = {}
    for name, make in MODELS.items():
        torch.manual_seed(5)
        made[name] = str(tmp_path_factory.mktemp(name))
        make().save_pretrained(made[name])
    return made


def state_of(folder: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return {name: tensor.to(dtype) for name, tensor in load_file(f"{folder}/model.safetensors").items()}


def proof_of(folder: str, dtype: torch.dtype, seed: int = 0, perturb=perturbed) -> Proof:
    tokens = tuple(np.random.default_rng(seed).integers(0, VOCABULARY, 32).tolist())
    return Proof(partial(load_model, folder, dtype, "sdpa"), perturb, tokens, VOCABULARY)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("dtype", "wider"), proof.WIDER.items())
def test_layer_by_layer_the_wider_type_gives_what_a_wider_model_gives_and_leaves_the_model_as_it_was(
    folders, name, dtype, wider
):
    model = load_model(folders[name], dtype, "sdpa").eval()
    before = {name: (tensor.data_ptr(), tensor.clone()) for name, tensor in model.state_dict().items()}
    rows = torch.randint(0, VOCABULARY, (3, 20), generator=torch.Generator().manual_seed(0))
    found = scored(Policy(model), rows, wider, "cpu")
    after = model.state_dict()
    assert all(after[name].data_ptr() == place for name, (place, _) in before.items())
    assert all(torch.equal(after[name], kept) for name, (_, kept) in before.items())
    expected = scored(Policy(model.to(wider)), rows, wider, "cpu")
    np.testing.assert_array_equal(found, expected)


def test_what_fails_amid_a_wider_computation_leaves_the_model_as_it_was(folders):
    model = load_model(folders["tied"], torch.bfloat16, "sdpa").eval()
    with pytest.raises(IndexError), computing_in(model, torch.float32, "cpu"):
        model(torch.tensor([[VOCABULARY]]))
    assert {tensor.dtype for tensor in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", proof.WIDER)
def test_another_kernel_agrees_within_the_limit_and_old_parts_do_not_whatever_the_probe(folders, name, dtype):
    """What is left out is a part of the trial's weights that an engine did not load."""
    before = state_of(folders[name], dtype)
    for seed in range(6):
        made = proof_of(folders[name], dtype, seed)
        after, probe = made.trial(before, seed)
        shares = []
        for kept in ("nothing", "embed_tokens", "norm", ""):
            held = {key: before[key] if kept in key else tensor for key, tensor in after.items()}
            model = load_model(folders[name], dtype, "eager", held).eval()
            engine = scored(Policy(model), torch.tensor([probe.tokens]), dtype, "cpu")[0]
            shares.append(float(np.median(np.abs(engine - np.array(probe.logprobs)))) / probe.limit)
        print(f"{name}, {dtype}, seed {seed}: differences in limits {shares[0]:.2f}, " + str(np.round(shares[1:], 1)))
        assert shares[0] < 0.5 and min(shares[1:]) > 1
        assert shares[-1] >= ENOUGH / LIMIT * 0.9, "a trial changes the probe by at least five limits"


def test_the_limit_is_that_of_the_weights(folders):
    """Logits twice as large lose twice as much to rounding."""
    small = state_of(folders["experts"], torch.bfloat16)
    large = {name: 2 * tensor if name == "lm_head.weight" else tensor for name, tensor in small.items()}
    made = proof_of(folders["experts"], torch.bfloat16)
    assert made.measure(large).limit == pytest.approx(2 * made.measure(small).limit, rel=0.1)
    exact = made.measure(small)
    assert exact.limit == LIMIT * exact.size > 0


def test_float32_has_a_limit_that_its_last_digit_explains(folders):
    state = state_of(folders["tied"], torch.float32)
    noise = proof_of(folders["tied"], torch.float32).measure(state)
    digit = np.finfo(np.float32).eps * np.abs(noise.exact_RT).mean()
    assert digit <= noise.size < 20 * digit


def test_noise_is_measured_again_once_that_is_cheap(folders, monkeypatch):
    small = state_of(folders["experts"], torch.bfloat16)
    large = {name: 8 * tensor if name == "lm_head.weight" else tensor for name, tensor in small.items()}
    made = proof_of(folders["experts"], torch.bfloat16)
    first = made.measure(small).limit
    monkeypatch.setattr(proof, "SHARE", 1e-9)
    assert made.probe(large, ()).limit == first
    monkeypatch.setattr(proof, "SHARE", float("inf"))
    assert made.probe(large, ()).limit > 2 * first


def test_a_trial_that_rounding_drowns_is_refused_with_the_cure(folders):
    def barely(state, strength, seed):
        return perturbed(state, strength * 1e-3, seed)

    made = proof_of(folders["tied"], torch.bfloat16, perturb=barely)
    with pytest.raises(SettingError, match=r"model\.dtype: .*Set it to float32"):
        made.trial(state_of(folders["tied"], torch.bfloat16), seed=0)


@pytest.mark.parametrize(
    ("said", "kind", "told"),
    [
        ("\"rope\" not implemented for 'Double'", SettingError, r"model\.path: .*qwen2 .*float64.*\"rope\" not impl"),
        ("can't allocate memory: you tried", RedraftError, "memory of the cpu ran out .*you tried"),
    ],
)
def test_a_wider_pass_that_fails_is_one_line_that_names_the_cause(folders, said, kind, told):
    def refuse(module, inputs):
        if inputs[0].dtype is torch.float64:
            raise RuntimeError(said)

    def load(state):
        model = load_model(folders["tied"], torch.float32, "sdpa", state)
        model.model.norm.register_forward_pre_hook(refuse)
        return model

    made = Proof(load, perturbed, tuple(range(32)), VOCABULARY)
    with pytest.raises(kind, match=told) as caught:
        made.trial(state_of(folders["tied"], torch.float32), seed=0)
    assert type(caught.value) is kind and "\n" not in str(caught.value)
