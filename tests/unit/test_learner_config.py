"""Learner settings: combinations that cannot work are refused, naming the key and the cure."""

from __future__ import annotations

import subprocess
import sys

import pytest
from pydantic import ValidationError

from learner.config import LearnerSettings
from protocols.turns import Role

REFUSED = {
    "a micro-batch of broken rows": ({"row_tokens": 100, "micro_tokens": 250}, "Set micro_tokens to 200"),
    "flash attention over many rows": (
        {"attention": "flash_attention_2", "row_tokens": 64, "micro_tokens": 128},
        "Set micro_tokens to row_tokens",
    ),
    "a whole reference model under zero 3": (
        {"zero": 3, "objective": {"name": "grpo", "kl": 0.1}},
        "Set zero to 2, or objective.kl to 0",
    ),
    "a deviation that nothing divides by": ({"credit": {"name": "raw", "std": False}}, "credit.std only acts with"),
    "a baseline without turns": ({"credit": {"name": "group", "baseline": "batch"}}, "credit.baseline only acts with"),
    "a cap that nothing uses": (
        {"objective": {"name": "grpo", "correction": "none", "tis_cap": 3}},
        "objective.tis_cap only acts with",
    ),
    "an unknown role": ({"roles": {"musing": 1}}, "Choose from attempt, reflection"),
    "an error as a role": ({"roles": {"error": 1}}, "Choose from attempt, reflection"),
    "nothing to train": ({"roles": {"attempt": 0}}, "Give one role a weight above 0"),
    "an unknown key": ({"row_token": 5}, "row_token"),
}


@pytest.mark.parametrize("values, message", REFUSED.values(), ids=REFUSED.keys())
def test_is_refused(values, message):
    with pytest.raises(ValidationError, match=message):
        LearnerSettings(**values)


def test_a_role_that_is_not_named_is_not_trained():
    settings = LearnerSettings(roles={"reflection": 2})
    assert settings.role_weight(Role.REFLECTION) == 2
    assert settings.role_weight(Role.ATTEMPT) == settings.role_weight(Role.ERROR) == 0


def test_every_field_explains_itself():
    for name, field in LearnerSettings.model_fields.items():
        if name not in ("optimizer", "credit", "objective"):
            assert field.description, name


def test_the_settings_load_without_torch():
    heavy = "torch ray deepspeed transformers vllm"
    code = f"import sys, learner.config; sys.exit(any(name in sys.modules for name in '{heavy}'.split()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
