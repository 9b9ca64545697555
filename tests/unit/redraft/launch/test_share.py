"""An engine beside a learner on one GPU takes what that leaves, by a GPU that is there, and one line says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.nvml_library import Library

from protocols import nvml
from protocols.errors import SettingError
from redraft import recipe as recipes
from redraft.launch import share
from redraft.launch.plan import plan
from redraft.models import sizes

SHAPE = {
    "model_type": "qwen2",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": True,
}
"""The architecture of Qwen2.5-0.5B."""


@pytest.fixture
def model(tmp_path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(SHAPE))
    return tmp_path


def recipe(*overrides: str) -> recipes.Recipe:
    values = {
        "name": "half",
        "steps": 10,
        "model": {"path": "nowhere", "dtype": "bfloat16"},
        "environment": {"name": "signs"},
        "rollout": {"name": "attempt", "episodes": 4},
        "learner": {"gpus": 0.5},
        "actors": {"gpus": 0.5},
    }
    for override in overrides:
        recipes._override(values, override)
    return recipes.build(values)


@pytest.fixture
def card(monkeypatch) -> Library:
    """A machine with GPUs of 80 GiB."""
    library = Library()
    monkeypatch.setattr(nvml, "find", lambda: (nvml.Nvml(library), ""))
    return library


def test_it_is_what_plan_leaves_and_is_told(model, card):
    told: list[str] = []
    found = share.chosen(recipe(), model, told.append)
    planned = plan(recipe(), sizes.config_at(model), 80 << 30)
    assert found.actors.engine.gpu_memory == planned.engine_share and planned.fits
    (line,) = told
    assert line.startswith(
        f"actors.engine.gpu_memory is {planned.engine_share:g} (auto): by `redraft plan` the learner"
    )
    assert line.endswith("of the GPU's 80.0")


@pytest.mark.parametrize("override", ["actors.engine.gpu_memory=0.3", "actors.gpus=1", "actors.gpus=0"])
def test_what_the_recipe_says_and_an_engine_alone_are_left_as_they_are(model, override):
    asked = recipe(override)
    assert share.chosen(asked, model, pytest.fail) is asked


def test_a_machine_that_does_not_say_how_large_its_gpu_is_asks_for_a_number(model, monkeypatch):
    monkeypatch.setattr(nvml, "find", lambda: (None, "nvidia-ml-py is not installed"))
    with pytest.raises(SettingError, match="gpu_memory: auto needs .* nvidia-ml-py .* Set it to a share, such as 0.4"):
        share.chosen(recipe(), model, pytest.fail)


def test_a_model_that_leaves_no_engine_any_room_is_refused_with_what_would_fit(model, card, monkeypatch):
    monkeypatch.setattr(
        card, "nvmlDeviceGetMemoryInfo", lambda handle: type("Info", (), {"total": 12 << 30, "used": 0})
    )
    with pytest.raises(SettingError, match="auto finds no room: learner: .* Set .*learner.gradient_checkpointing=true"):
        share.chosen(recipe(), model, pytest.fail)
