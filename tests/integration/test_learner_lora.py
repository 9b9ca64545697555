"""An adapter is trained, published and saved in place of the weights, alike under every stage of ZeRO."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load
from test_learner_ranks import BATCH, Learner, cluster, fill, groups, model_path, replay, same_bits, settings  # noqa: F401

from learner.checkpoint import newest
from learner.lora_config import LoraSettings
from learner.model.load import load_model
from protocols.weights import version_of

pytestmark = pytest.mark.ray

LORA = LoraSettings(rank=4)
OBJECTIVE = {"name": "grpo", "kl": 0.1}


@pytest.fixture(scope="module")
def whole(model_path):  # noqa: F811
    """A run of three steps of one rank that nothing disturbs: announcements, reports, the folders of its checkpoint,
    PEFT's model of it, and the bytes that DeepSpeed goes on from."""
    with replay() as (endpoints, run_dir):
        fill(endpoints, groups(3 * BATCH))
        learner = Learner(model_path, endpoints, run_dir, settings(objective=OBJECTIVE), lora=LORA)
        learner.start(3)
        _, weights, reports = learner.finish()
        folder = newest(run_dir)
        names = {path.name for path in folder.iterdir() if path.is_dir()}
        peft = PeftModel.from_pretrained(load_model(model_path, torch.float32, "eager"), folder / "adapter")
        saved = sum(path.stat().st_size for path in (folder / "engine").iterdir())
    return weights, reports, names, peft, saved


def test_only_the_adapter_is_published_and_saved(whole, model_path):  # noqa: F811
    weights, reports, names, peft, saved = whole
    size = sum(part.numel() for part in load_model(model_path, torch.float32, "eager").parameters())
    trained = sum(part.numel() for name, part in peft.named_parameters() if "lora_" in name)
    state = load(weights[3][1])
    assert sum(part.numel() for part in state.values()) == trained < size / 4
    assert names == {"adapter", "engine"}
    assert saved < 4 * size, "frozen weights and their moments would be more"
    assert all(report["kl"] > 0 for report in reports[1:]), "the start model is the reference"


def test_what_was_published_last_is_what_peft_computes_from_the_checkpoint(whole):
    weights, _, _, peft, _ = whole
    ref = weights[3][0]
    tokens = torch.tensor([ref.probe.tokens])
    with torch.no_grad():
        logprobs = peft(tokens).logits[0, :-1].log_softmax(-1).gather(-1, tokens[0, 1:, None]).squeeze(-1)
    np.testing.assert_allclose(ref.probe.logprobs, logprobs, atol=1e-5)
    assert not same_bits(load(weights[0][1]), load(weights[3][1]))


@pytest.mark.parametrize(
    ("ranks", "zero"), [(1, 1), *(pytest.param(2, zero, marks=pytest.mark.prove) for zero in (0, 2, 3))]
)
def test_sharded_and_resumed_runs_train_the_same_adapter(whole, model_path, ranks, zero):  # noqa: F811
    expected = whole[0]
    choice = settings(ranks=ranks, zero=zero, micro_tokens=64 // ranks, objective=OBJECTIVE)
    with replay() as (endpoints, run_dir):
        fill(endpoints, groups(3 * BATCH))
        first = Learner(model_path, endpoints, run_dir, choice, lora=LORA)
        first.start(2)
        first.finish()
        second = Learner(model_path, endpoints, run_dir, choice, resume=True, lora=LORA)
        assert {ready.step for ready in second.ready} == {2}
        second.start(3)
        _, weights, _ = second.finish()
    assert [ref.version for ref, _ in weights] == [version_of(1, 2), version_of(1, 3)]
    found, wanted = load(weights[1][1]), load(expected[3][1])
    worst = max(float((found[name] - wanted[name]).abs().max()) for name in wanted)
    print(f"{ranks} ranks, ZeRO {zero}: largest difference from one that nothing disturbed {worst:.1e}")
    assert worst < 2e-5
    if ranks == 1:
        assert same_bits(found, wanted), "not a bit is different after a resume"
