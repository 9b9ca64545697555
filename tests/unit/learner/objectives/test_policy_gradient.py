"""Each option of `grpo` against a plain formula in float64, token by token, with the gradient of autograd."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from learner.config import LearnerSettings, UpdateSettings
from learner.objective_config import GrpoSettings
from learner.objectives import STATS, loss_of, make, per_batch, report
from learner.objectives.base import Tokens

COUNT, SEQUENCES = 80, 7


@dataclass(frozen=True)
class Policies:
    """Log-probs of COUNT tokens in SEQUENCES sequences under the four policies, and what is known of the tokens."""

    theta: Tensor
    prox: Tensor
    mu: Tensor
    start: Tensor
    advantages: Tensor
    sequences: Tensor


def policies() -> Policies:
    random = torch.Generator().manual_seed(11)

    def normal(spread: float) -> Tensor:
        return spread * torch.randn(COUNT, generator=random, dtype=torch.float64)

    mu = -normal(1.0).abs() - 0.1
    prox = mu + normal(0.5)
    numbers = torch.arange(COUNT) * SEQUENCES // COUNT
    return Policies((prox + normal(0.5)).requires_grad_(), prox, mu, prox + normal(0.3), normal(1.0), numbers)


def of_sequence(given: Policies, token: int) -> list[int]:
    return [other for other in range(COUNT) if given.sequences[other] == given.sequences[token]]


def surrogate(ratio: Tensor, worth: Tensor, low: float = 0.2, high: float = 0.2, dual: float = math.inf) -> Tensor:
    """The loss of PPO with a dual clip: -max(min(r A, clip(r) A), c A) where A < 0, else -min(r A, clip(r) A)."""
    clipped = min(max(ratio, ratio.new_tensor(1 - low)), ratio.new_tensor(1 + high))
    least = min(ratio * worth, clipped * worth)
    return -max(least, dual * worth) if worth < 0 else -least


def clip_higher(given: Policies, token: int) -> Tensor:
    ratio = (given.theta[token] - given.mu[token]).exp()
    return surrogate(ratio, given.advantages[token], 0.1, 0.28)


def dual_clip(given: Policies, token: int) -> Tensor:
    ratio = (given.theta[token] - given.mu[token]).exp()
    return surrogate(ratio, given.advantages[token], dual=1.5)


def decoupled(given: Policies, token: int) -> Tensor:
    weight = (given.prox[token] - given.mu[token]).exp()
    ratio = (given.theta[token] - given.prox[token]).exp()
    return 0 * ratio if weight > 1.4 else weight * surrogate(ratio, given.advantages[token])


def tis(given: Policies, token: int) -> Tensor:
    weight = (given.prox[token] - given.mu[token]).exp().clamp(max=1.2)
    ratio = (given.theta[token] - given.prox[token]).exp()
    return weight * surrogate(ratio, given.advantages[token], dual=1.3)


def cispo(given: Policies, token: int) -> Tensor:
    ratio = (given.theta[token] - given.mu[token]).exp().detach()
    return -min(ratio, ratio.new_tensor(5.0)) * given.advantages[token] * given.theta[token]


def cispo_of_prox(given: Policies, token: int) -> Tensor:
    weight = (given.prox[token] - given.mu[token]).exp().clamp(max=2.0)
    ratio = (given.theta[token] - given.prox[token]).exp().detach().clamp(0.8, 1.1)
    return -weight * ratio * given.advantages[token] * given.theta[token]


def gspo_of_prox(given: Policies, token: int) -> Tensor:
    """GSPO-token: the ratio of the sequence, with the gradient of the token's log-prob."""
    others = of_sequence(given, token)
    mean = (given.theta[others] - given.prox[others]).mean().detach()
    ratio = (mean + given.theta[token] - given.theta[token].detach()).exp()
    weight = (given.prox[token] - given.mu[token]).exp()
    return 0 * ratio if weight > 5 else weight * surrogate(ratio, given.advantages[token], 0.05, 0.05)


def sequence_mask(given: Policies, token: int) -> Tensor:
    others = of_sequence(given, token)
    mean = (given.prox[others] - given.mu[others]).mean().exp()
    loss = surrogate((given.theta[token] - given.mu[token]).exp(), given.advantages[token])
    return loss if 0.95 <= mean <= 1.05 else 0 * loss


def kl_reward(estimate):
    """The return of what follows loses the estimates from here to the end of the sequence."""

    def loss(given: Policies, token: int) -> Tensor:
        cost = sum(estimate(given.prox[x] - given.start[x]) for x in of_sequence(given, token) if x >= token)
        ratio = (given.theta[token] - given.mu[token]).exp()
        return surrogate(ratio, given.advantages[token] - 0.3 * cost)

    return loss


OPTIONS = {
    "clip higher": ({"correction": "none", "clip_low": 0.1, "clip_high": 0.28}, clip_higher),
    "dual clip": ({"correction": "none", "dual_clip": 1.5}, dual_clip),
    "decoupled, off its proximal policy": ({"max_weight": 1.4}, decoupled),
    "tis, off its proximal policy, with a dual clip": ({"correction": "tis", "tis_cap": 1.2, "dual_clip": 1.3}, tis),
    "cispo with its own clips": ({"correction": "none", "loss": "cispo"}, cispo),
    "cispo off its proximal policy": (
        {"correction": "tis", "loss": "cispo", "clip_low": 0.2, "clip_high": 0.1},
        cispo_of_prox,
    ),
    "gspo off its proximal policy": ({"ratio": "sequence", "clip_low": 0.05, "clip_high": 0.05}, gspo_of_prox),
    "sequence mask": ({"correction": "none", "sequence_mask": (0.95, 1.05)}, sequence_mask),
    "k1 in the reward": ({"correction": "none", "kl_reward": 0.3}, kl_reward(lambda d: d)),
    "k2 in the reward": (
        {"correction": "none", "kl_reward": 0.3, "kl_estimator": "k2"},
        kl_reward(lambda d: d**2 / 2),
    ),
    "k3 in the reward": (
        {"correction": "none", "kl_reward": 0.3, "kl_estimator": "k3"},
        kl_reward(lambda d: (-d).exp() - 1 + d),
    ),
}


@pytest.mark.parametrize(("options", "formula"), OPTIONS.values(), ids=OPTIONS.keys())
def test_loss_gradient_and_what_is_cut_are_those_of_the_formula(options, formula):
    given = policies()
    sampled = torch.ones(COUNT, dtype=torch.bool)
    tokens = Tokens(given.theta, given.mu, sampled, given.advantages, given.sequences, given.start, given.prox)
    loss, cut = make(GrpoSettings(**options)).loss(tokens)
    expected = torch.stack([formula(given, token) for token in range(COUNT)])
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-12)
    (slope,) = torch.autograd.grad(loss.sum(), given.theta)
    (wanted,) = torch.autograd.grad(expected.sum(), given.theta)
    torch.testing.assert_close(slope, wanted, rtol=1e-9, atol=1e-12)
    assert torch.equal(cut, wanted == 0)
    assert cut.any() == (options.get("loss") != "cispo") and not cut.all()


def test_the_upper_clip_of_what_was_told_experience_is_its_own():
    given = torch.tensor([1.5, 1.5, 1.7, 1.5, 0.5]).double().log().requires_grad_()
    same = torch.zeros(5).double()
    worth = torch.tensor([1.0, 1.0, 1.0, -1.0, -1.0]).double()
    told = torch.tensor([False, True, True, True, True])
    tokens = Tokens(given, same, same == 0, worth, torch.arange(5), navigated=told)
    settings = GrpoSettings(correction="none", clip_high=0.28, clip_high_navigated=0.6)
    loss, cut = make(settings).loss(tokens)
    loss.sum().backward()
    torch.testing.assert_close(loss.detach(), torch.tensor([-1.28, -1.5, -1.6, 1.5, 0.8]).double())
    assert given.grad is not None and cut.tolist() == [True, False, True, False, True] == (given.grad == 0).tolist()


def test_an_upper_clip_of_its_own_is_refused_where_no_clip_can_act():
    for settings in ({}, {"correction": "tis"}):
        with pytest.raises(ValueError, match="clip_high_navigated"):
            LearnerSettings(objective=GrpoSettings(clip_high_navigated=0.6, **settings))
    LearnerSettings(objective=GrpoSettings(clip_high_navigated=0.6), updates=UpdateSettings(minibatches=2))
    with pytest.raises(ValueError, match="ratio: token"):
        GrpoSettings(correction="none", ratio="sequence", clip_high_navigated=0.6)


def test_the_dual_clip_bounds_what_a_bad_token_costs_and_nothing_else():
    given = torch.tensor([2.0, 4.0, 4.0, 0.5]).double().log().requires_grad_()
    same = torch.zeros(4).double()
    worth = torch.tensor([-1.0, -1.0, 1.0, -1.0]).double()
    tokens = Tokens(given, same, same == 0, worth, torch.arange(4))
    loss, cut = make(GrpoSettings(correction="none", dual_clip=3.0)).loss(tokens)
    loss.sum().backward()
    assert loss.tolist() == pytest.approx([2.0, 3.0, -1.2, 0.8])
    assert given.grad.tolist() == pytest.approx([2.0, 0.0, 0.0, 0.0]) and cut.tolist() == [False, True, True, True]


def test_the_entropy_bonus_weighs_each_token_as_the_loss_does():
    logits = torch.randn(5, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).requires_grad_()
    logprobs = logits.log_softmax(-1)
    entropy, chosen = -(logprobs.exp() * logprobs).sum(-1), logprobs[:, 0]
    share = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.0]).double()
    micro = {
        "coefficients": share,
        "divergences": 0 * share,
        "advantages": share - 0.2,
        "sampler": chosen.detach(),
        "sampled": share >= 0,
        "navigated": share < 0,
        "sequences": torch.arange(5),
    }
    loss, _ = loss_of(make(GrpoSettings(correction="none", entropy=0.7)), chosen, entropy, micro)
    expected = -(share * (share - 0.2) * (chosen - chosen.detach()).exp()).sum() - 0.7 * (share * entropy).sum()
    torch.testing.assert_close(loss, expected)
    (slope,), (wanted,) = (torch.autograd.grad(value, logits, retain_graph=True) for value in (loss, expected))
    torch.testing.assert_close(slope, wanted)
    assert slope[1].any(), "a token of advantage 0 has the bonus, too"


def test_a_figure_of_several_optimizer_steps_counts_each_token_once():
    one = {"loss": 0.5, "tokens": 30, "sampled": 30, "mismatch": 3.0, "entropy": 15.0, "mismatch_max": 0.4}
    stats = torch.tensor([one.get(name, 0.0) for name in STATS]).double().numpy()
    summed = stats * 6  # two minibatches of 30 tokens, three times
    summed[STATS.index("mismatch_max")] = 0.4
    figures = report(per_batch(summed, UpdateSettings(minibatches=2, epochs=3)))
    assert (figures.loss, figures.trained_tokens, figures.entropy) == (0.5, 60, 0.5)
    assert (figures.mismatch_mean, figures.mismatch_max) == pytest.approx((0.1, 0.4))
