"""Compiled layers compute what the layers do, are compiled once for all lengths, and are not kept where they differ."""

from __future__ import annotations

import logging

import pytest
import torch
from support.dialogues import groups
from transformers import Qwen2Config, Qwen2ForCausalLM

from learner.batches.batch import prepare
from learner.config import LearnerSettings
from learner.lora_config import LoraSettings
from learner.model import compiled
from learner.model.layers import layers_of
from learner.ranks.trainer import Trainer
from protocols.errors import SettingError

LAYERS = 16
"""More than torch compiles one function for: that none is compiled for each layer is seen."""
BASE = {"row_tokens": 64, "micro_tokens": 64, "optimizer": {"lr": 1e-3}, "gradient_checkpointing": True}


@pytest.fixture(scope="module")
def model_path(tmp_path_factory) -> str:
    path = str(tmp_path_factory.mktemp("model"))
    torch.manual_seed(3)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": LAYERS, "num_attention_heads": 2}
    config = Qwen2Config(vocab_size=40, num_key_value_heads=1, initializer_range=0.2, **shape)
    Qwen2ForCausalLM(config).save_pretrained(path)
    return path


def graphs() -> int:
    """That torch has compiled in this process."""
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def trained(model_path: str, compile: bool, lora: LoraSettings | None) -> tuple[list, dict, list[int]]:
    """Three steps on batches of other lengths: what each found, the weights after them, and the graphs that were made
    by then."""
    before = graphs()
    settings = LearnerSettings(compile=compile, **BASE)
    trainer = Trainer(settings, model_path, steps=3, lora=lora)
    trainer.examine(0)
    assert trainer.compiled is compile
    made, found, seen = groups(9, vocabulary=40), [], []
    for step, size in enumerate((2, 3, 4)):
        batch = prepare(made[step * 3 : step * 3 + size], step, settings)
        result = trainer.step(batch.micros[0], step)
        found.append([*result.stats.tolist(), result.gradient_norm])
        seen.append(graphs() - before)
    return found, trainer.full_state(), seen


@pytest.mark.compiler
@pytest.mark.prove
@pytest.mark.parametrize("lora", [None, LoraSettings(rank=4)])
def test_steps_are_those_of_the_layers_and_other_lengths_compile_nothing_anew(ranks, model_path, lora):
    found, state, seen = trained(model_path, True, lora)
    wanted, others, _ = trained(model_path, False, lora)
    assert found == [pytest.approx(each, rel=1e-4, abs=1e-5) for each in wanted]
    for name, other in others.items():
        torch.testing.assert_close(state[name], other, rtol=0, atol=1e-4)
    assert 0 < seen[0] < LAYERS and seen[1:] == seen[:-1]


def test_auto_compiles_on_cuda_alone_and_not_under_stage_3():
    assert compiled.wanted("auto", "cuda", 1) and compiled.wanted(True, "cpu", 0)
    assert not any(compiled.wanted("auto", *place) for place in (("cpu", 1), ("cuda", 3)))
    assert not compiled.wanted(False, "cuda", 1)
    with pytest.raises(ValueError, match="Set compile to auto or false, or zero to 2"):
        LearnerSettings(compile=True, zero=3, ranks=2)


@pytest.fixture
def miscompiled(monkeypatch) -> None:
    """A compiler whose layers return a little too much."""

    def compile_layers(policy) -> None:
        for layer in layers_of(policy.model):
            plain = layer._call_impl
            layer._compiled_call_impl = lambda *inputs, plain=plain, **named: plain(*inputs, **named) * 1.01

    monkeypatch.setattr(compiled, "compile_layers", compile_layers)


def test_who_asks_for_layers_that_compute_something_else_is_refused(ranks, model_path, miscompiled):
    trainer = Trainer(LearnerSettings(compile=True, **BASE), model_path, steps=3)
    with pytest.raises(SettingError, match="learner.compile: compiled layers give other log-probs.* Set it to auto"):
        trainer.examine(0)


def test_auto_goes_on_without_them_and_says_so_in_one_line(ranks, model_path, miscompiled, monkeypatch, caplog):
    monkeypatch.setattr(compiled, "wanted", lambda *_: True)  # as on a GPU
    trainer = Trainer(LearnerSettings(**BASE), model_path, steps=3)
    with caplog.at_level(logging.WARNING, logger="redraft.learner"):
        trainer.examine(0)
    assert not trainer.compiled
    assert [line for line in caplog.messages if "compile" in line] == [caplog.messages[-1]]
    assert all(layer._compiled_call_impl is None for layer in layers_of(trainer.training.policy.model))
