"""Learner settings: combinations that cannot work are refused, naming the key and the cure."""

from __future__ import annotations

import subprocess
import sys

import pytest
from pydantic import ValidationError

from learner.config import LearnerSettings, RoundSettings, UpdateSettings
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
    "a sequence ratio that is 1": (
        {"objective": {"ratio": "sequence"}},
        "objective.ratio: does nothing with objective.correction: decoupled",
    ),
    "clipped weights that are 1": (
        {"objective": {"loss": "cispo", "correction": "tis"}},
        "objective.loss: does nothing with objective.correction: tis and one optimizer step a batch",
    ),
    "a clip that cannot act": (
        {"objective": {"clip_high": 0.28}},
        "objective.clip_high: does nothing .* set updates.minibatches to 2 or more, or objective.correction to none",
    ),
    "a lower clip that cannot act, of the size that it would have": (
        {"objective": {"clip_low": 0.2}},
        "clip_low: does",
    ),
    "a dual clip that cannot act": ({"objective": {"dual_clip": 3}}, "objective.dual_clip: does nothing"),
    "a dual clip of weights that no clip ends": (
        {"objective": {"loss": "cispo", "correction": "none", "dual_clip": 3}},
        "objective.dual_clip only acts with objective.loss: clip",
    ),
    "a shift that nothing masks by": (
        {"objective": {"correction": "none", "max_shift": 0.1}},
        "objective.max_shift only acts with objective.loss: dppo",
    ),
    "a second moment that nothing masks by": (
        {"objective": {"correction": "none", "second_moment": 0.1}},
        "objective.second_moment only acts with objective.loss: m2po",
    ),
    "a mask by the second moment of what is corrected": (
        {"objective": {"correction": "decoupled", "loss": "m2po"}, "updates": {"epochs": 2}},
        "objective.loss: m2po has a mask .* Set objective.correction to none",
    ),
    "a clip beside a mask by the second moment": (
        {"objective": {"correction": "none", "loss": "m2po", "clip_low": 0.1}},
        "objective.clip_low only acts with objective.loss: clip or cispo",
    ),
    "a clip beside a mask by probability": (
        {"objective": {"correction": "none", "loss": "dppo", "clip_high": 0.28}},
        "objective.clip_high only acts with objective.loss: clip or cispo",
    ),
    "a mask by probability of what is corrected": (
        {"objective": {"correction": "tis", "loss": "dppo"}, "updates": {"epochs": 2}},
        "Set objective.correction to none and objective.ratio to token",
    ),
    "an estimator of a divergence that costs nothing": (
        {"objective": {"kl": 0.1, "kl_estimator": "k3"}},
        "objective.kl_estimator only acts with objective.kl_reward above 0",
    ),
    "bounds that mask equal policies": (
        {"objective": {"sequence_mask": [1.0, 1.1]}},
        r"objective.sequence_mask: \[1.0, 1.1\] does not hold 1",
    ),
    "more minibatches than groups": (
        {"batch_groups": 4, "updates": {"minibatches": 5}},
        r"updates.minibatches \(5\) is more than the groups of a batch. Set it to 4 at most",
    ),
    "rounds whose last batch would be too old": (
        {"rounds": {"steps": 4}, "max_staleness": 2},
        "Set max_staleness to 3, or to 7",
    ),
    "a bound of its own beside rounds": (
        {"rounds": {"steps": 4}, "max_staleness": "auto"},
        "auto cannot be had with rounds.* Set max_staleness to 3 or more, or leave rounds out",
    ),
    "a bound of its own without ratios to go by": (
        {"objective": {"name": "awr"}, "max_staleness": "auto"},
        "objective awr does not weigh its samples. Set max_staleness to a number, or objective.name to grpo",
    ),
    "a bound of its own with an objective of which nothing is known": (
        {"objective": {"name": "mine.py:Mine"}, "max_staleness": "auto"},
        "objective mine.py:Mine does not weigh its samples",
    ),
    "a bound that is no number": ({"max_staleness": "most"}, "max_staleness"),
    "a constant that weights are divided by again": (
        {"objective": {"name": "sft"}, "average": "constant"},
        "average: constant does what token does with objective sft",
    ),
    "a cap that nothing uses": (
        {"objective": {"name": "grpo", "correction": "none", "tis_cap": 3}},
        "objective.tis_cap only acts with",
    ),
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
    for kind in (GrpoSettings, AwrSettings, RoundSettings, UpdateSettings):
        check_fields(kind)


def check_fields(kind: type[Settings]) -> None:
    for name, field in kind.model_fields.items():
        assert name == "name" or field.description, (kind, name)


def test_without_a_name_the_parts_are_the_defaults():
    settings = LearnerSettings(credit={"std": False}, objective={"kl": 0.1})
    assert (settings.credit, settings.objective) == (GroupCredit(std=False), GrpoSettings(kl=0.1))


def test_the_ratio_of_a_sequence_and_cispo_have_clips_of_their_own():
    assert GrpoSettings().clips == (0.2, 0.2)
    assert GrpoSettings(ratio="sequence").clips == (3e-4, 4e-4)
    assert GrpoSettings(loss="cispo").clips == GrpoSettings(loss="cispo", ratio="sequence").clips == (None, 4.0)
    assert GrpoSettings(ratio="sequence", clip_high=0.01).clips == (3e-4, 0.01)
    assert GrpoSettings(loss="cispo", clip_low=0.2).clips == (0.2, 4.0)


@pytest.mark.parametrize(
    "objective", [{"clip_high": 0.28}, {"clip_low": 0.1}, {"dual_clip": 3}, {"ratio": "sequence"}, {"loss": "cispo"}]
)
@pytest.mark.parametrize(
    "acts", [{"updates": {"minibatches": 2}}, {"updates": {"epochs": 2}}, {"objective": {"correction": "none"}}]
)
def test_clips_are_accepted_where_several_optimizer_steps_or_an_older_policy_let_them_act(objective, acts):
    assert LearnerSettings(**(acts | {"objective": objective | acts.get("objective", {})}))


def test_a_round_needs_batches_as_old_as_it_is_long():
    assert LearnerSettings(rounds={"steps": 4}, max_staleness=3).rounds.steps == 4


def test_the_settings_load_without_torch():
    heavy = "torch ray deepspeed transformers vllm"
    code = f"import sys, learner.config; sys.exit(any(name in sys.modules for name in '{heavy}'.split()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_several_ranks_on_one_gpu_are_refused():
    with pytest.raises(ValueError, match="several ranks be on one GPU, which NCCL refuses. Set gpus or ranks to 1"):
        LearnerSettings(ranks=2, gpus=0.5)
    assert LearnerSettings(gpus=0.5).ranks == 1 and LearnerSettings(ranks=2, gpus=0.6).gpus == 0.6


def test_a_program_s_own_role_weighs_what_is_said_of_it_and_else_what_its_turns_weigh():
    settings = LearnerSettings(roles={"planner": 0.5, "action": 2.0})
    assert settings.role_weight(Role.ACTION, "planner") == 0.5
    assert settings.role_weight(Role.ACTION, "critic") == settings.role_weight(Role.ACTION) == 2.0
    assert settings.role_weight(Role.ATTEMPT, "critic") == settings.role_weight(Role.ATTEMPT) == 0.0
