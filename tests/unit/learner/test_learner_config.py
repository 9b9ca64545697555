"""Learner settings: combinations that cannot work are refused, naming the key and the cure."""

from __future__ import annotations

import subprocess
import sys

import pytest
from pydantic import ValidationError

from learner.config import LearnerSettings, RoundSettings
from learner.credit_config import (
    GroupCredit,
    OverlongSettings,
    RawCredit,
    ReflectionCredit,
    TrajectoryCredit,
    TurnwiseCredit,
)
from learner.objective_config import AwrSettings, GrpoSettings
from protocols.settings import Settings
from protocols.turns import Role

REFUSED = {
    "a micro-batch of broken rows": ({"row_tokens": 100, "micro_tokens": 250}, "Set micro_tokens to 200"),
    "a deviation that nothing divides by": ({"credit": {"name": "raw", "std": False}}, "std"),
    "a baseline without turns": ({"credit": {"name": "group", "baseline": "batch"}}, "baseline"),
    "an unknown credit": ({"credit": {"name": "grp"}}, "group, turnwise, raw, reflection, trajectory"),
    "an unknown objective": ({"objective": {"name": "ppo"}}, "grpo, awr, sft"),
    "a punishment that begins before the first token": (
        {"credit": {"overlong": {"limit": 5, "cache": 6}}},
        "overlong.cache .6. is above overlong.limit",
    ),
    "a sequence ratio that a correction takes away": (
        {"objective": {"name": "grpo", "ratio": "sequence"}},
        "Set objective.correction to none",
    ),
    "clipped weights that a correction takes away": (
        {"objective": {"name": "grpo", "loss": "cispo", "correction": "tis"}},
        "Set objective.correction to none",
    ),
    "rounds whose last batch would be too old": (
        {"rounds": {"steps": 4}, "max_staleness": 2},
        "Set max_staleness to 3, or to 7",
    ),
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
    for kind in (GroupCredit, TurnwiseCredit, RawCredit, ReflectionCredit, TrajectoryCredit, OverlongSettings):
        check_fields(kind)
    for kind in (GrpoSettings, AwrSettings, RoundSettings):
        check_fields(kind)


def check_fields(kind: type[Settings]) -> None:
    for name, field in kind.model_fields.items():
        assert name == "name" or field.description, (kind, name)


def test_without_a_name_the_parts_are_the_defaults():
    settings = LearnerSettings(credit={"std": False}, objective={"clip_high": 0.28})
    assert (settings.credit, settings.objective) == (GroupCredit(std=False), GrpoSettings(clip_high=0.28))


def test_the_ratio_of_a_sequence_has_clips_of_its_own():
    token = GrpoSettings(correction="none")
    sequence = GrpoSettings(ratio="sequence", correction="none")
    own = GrpoSettings(ratio="sequence", correction="none", clip_high=0.01)
    assert (token.clip_low, token.clip_high) == (0.2, 0.2)
    assert (sequence.clip_low, sequence.clip_high) == (3e-4, 4e-4)
    assert (own.clip_low, own.clip_high) == (3e-4, 0.01)


def test_a_round_needs_batches_as_old_as_it_is_long():
    assert LearnerSettings(rounds={"steps": 4}, max_staleness=3).rounds.steps == 4


def test_the_settings_load_without_torch():
    heavy = "torch ray deepspeed transformers vllm"
    code = f"import sys, learner.config; sys.exit(any(name in sys.modules for name in '{heavy}'.split()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
