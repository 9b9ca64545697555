"""No setting of the loss is without effect: what is accepted changes the training step, and what would not is refused.

The policy is a linear one: the log-prob of a token is a number of its own, plus features of the token times eight
weights, which all tokens share. One step of the run is taken on them, with all its optimizer steps.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given
from hypothesis import settings as trials
from hypothesis import strategies as st
from pydantic import ValidationError
from support.dialogues import groups

from learner.batches.batch import prepare
from learner.batches.packing import MicroBatch
from learner.config import LearnerSettings
from learner.objectives import loss_of, make
from protocols.turns import Group, Role, Stop, Turn

GROUPS, TOKENS, WEIGHTS, LENGTHS = 30, 2000, 8, (None, 0.3, 2.0)
RANDOM = np.random.default_rng(2)
OWN, FROM_START = (torch.tensor(RANDOM.normal(0, 0.5, TOKENS), dtype=torch.float32) for _ in range(2))
FEATURES = torch.tensor(RANDOM.normal(0, 1, (TOKENS, WEIGHTS)), dtype=torch.float32)
BASE = {"batch_groups": GROUPS, "row_tokens": 64, "micro_tokens": 1 << 14, "roles": {"attempt": 1.0}}


@cache
def batch() -> list[Group]:
    """Some second turns are reflections, which are not trained, and some answers were cut."""
    made = enumerate(groups(GROUPS))
    return [replace(group, turns=tuple(_turned(turn, place) for turn in group.turns)) for place, group in made]


def _turned(turn: Turn, place: int) -> Turn:
    role = Role.REFLECTION if turn.turn == 3 else turn.role
    stop = Stop.LENGTH if turn.turn == place % 3 else Stop.END
    return replace(turn, role=role, stop=stop, reward=4 * turn.reward)


def trained(learner: LearnerSettings) -> torch.Tensor:
    """The weights after one step of the run, by plain gradient descent, end to end for each of LENGTHS: that of an
    optimizer step, or that of its gradient."""
    (micros,) = prepare(batch(), 0, learner).micros
    return torch.cat([descended(learner, micros, length) for length in LENGTHS])


def descended(learner: LearnerSettings, micros: list[MicroBatch], length: float | None) -> torch.Tensor:
    objective, weights = make(learner.objective), torch.zeros(WEIGHTS, requires_grad=True)
    kept = objective.kept(OWN)
    for micro in micros:
        tensors = {name: torch.from_numpy(array) for name, array in micro.arrays().items()}
        places = tensors["places"]
        prox = tensors["sampler"] + OWN[places]
        logprobs = prox + FEATURES[places] @ weights
        start = prox + FROM_START[places] if objective.reference else None
        loss, _ = loss_of(objective, logprobs, 0.1 * logprobs.square(), tensors, start, prox, kept_N=kept[places])
        (slope,) = torch.autograd.grad(loss, weights)
        slope = slope if length is None else slope * (length / slope.norm().clamp(min=1e-9))
        weights = (weights - slope).detach().requires_grad_()
    return weights.detach()


def some(**values: tuple) -> st.SearchStrategy[dict]:
    """Any of these settings, each with one of its values."""
    return st.fixed_dictionaries({}, optional={key: st.sampled_from(each) for key, each in values.items()})


GRPO = some(
    clip_low=(0.02, 0.6),
    clip_high=(0.02, 0.6),
    dual_clip=(1.05, 1.5),
    ratio=("sequence",),
    loss=("cispo", "dppo", "m2po"),
    max_shift=(0.05, 0.4),
    second_moment=(0.01, 0.1),
    correction=("none", "tis"),
    tis_cap=(1.1, 1.5),
    max_weight=(1.1, 1.5),
    sequence_mask=((0.8, 1.25), (0.9, 1.1)),
    entropy=(0.1, 1.0),
    kl=(0.1, 1.0),
    kl_reward=(0.1, 1.0),
    kl_estimator=("k2", "k3"),
    anchor=(0.1, 1.0),
)
AWR = some(temperature=(0.2, 1.0), normalise=(False,), max_weight=(1.5, 3.0)).map(lambda given: {"name": "awr"} | given)
CREDIT = some(std=(False,), baseline=("leave_one_out",), mask_truncated=(True,), overlong=({"limit": 4, "cache": 3},))
LEARNER = st.fixed_dictionaries(
    {},
    optional={
        "objective": GRPO | AWR,
        "credit": CREDIT,
        "updates": some(minibatches=(2, 3), epochs=(2, 3)),
        "average": st.sampled_from(("turn", "sequence", "constant")),
    },
)


def accepted(chosen: dict) -> LearnerSettings | None:
    try:
        return LearnerSettings(**BASE, **chosen)
    except ValidationError:
        return None


def without(chosen: dict) -> list[tuple[str, dict]]:
    """What is chosen, without one setting after the other."""
    found = [("average", {key: chosen[key] for key in chosen if key != "average"})] if "average" in chosen else []
    for section in ("objective", "credit", "updates"):
        for key in chosen.get(section, {}):
            if key != "name":
                rest = {name: value for name, value in chosen[section].items() if name != key}
                found.append((f"{section}.{key}", chosen | {section: rest}))
    return found


@given(LEARNER)
@example({"objective": {"correction": "none", "clip_low": 0.3, "clip_high": 0.1, "dual_clip": 1.3}})
@example({"objective": {"clip_low": 0.02, "clip_high": 0.02, "dual_clip": 1.05}, "updates": {"minibatches": 2}})
@example({"objective": {"ratio": "sequence", "loss": "cispo", "correction": "tis"}, "updates": {"epochs": 2}})
@example({"objective": {"entropy": 0.1, "kl": 0.1, "kl_reward": 0.1, "anchor": 0.1, "sequence_mask": (0.9, 1.1)}})
@example({"objective": {"kl_reward": 0.1, "kl_estimator": "k3"}, "credit": {"mask_truncated": True}})
@trials(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_every_setting_that_is_accepted_changes_the_step(chosen):
    learner = accepted(chosen)
    if learner is None:
        return
    after = trained(learner)
    assert after.isfinite().all()
    for key, rest in without(chosen):
        other = accepted(rest)
        if other is not None:
            assert (trained(other) - after).abs().max() > 1e-6, f"{key} of {chosen} does nothing"


IDLE = [{"clip_low": 0.05}, {"clip_high": 0.05}, {"dual_clip": 1.01}, {"ratio": "sequence"}, {"loss": "cispo"}]


@pytest.mark.parametrize("chosen", IDLE, ids=str)
@pytest.mark.parametrize("correction", ["tis", "decoupled"])
def test_what_is_refused_would_have_done_nothing(chosen, correction):
    """What the check keeps out of a recipe is made without it."""
    learner = LearnerSettings(**BASE, objective={"correction": correction})
    with pytest.raises(ValidationError, match="does nothing"):
        LearnerSettings(**BASE, objective={"correction": correction, **chosen})
    unchecked = learner.model_copy(update={"objective": learner.objective.model_copy(update=chosen)})
    torch.testing.assert_close(trained(unchecked), trained(learner), rtol=1e-5, atol=1e-6)
