"""Objectives: losses, gradients and reported figures against values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from learner.config import AwrSettings, GrpoSettings, LearnerSettings, SftSettings
from learner.objectives import STATS, coefficients, k3, loss_of, policy_gradient, report
from learner.sequences import TokenSequence


def grpo(**values) -> GrpoSettings:
    return GrpoSettings(name="grpo", **values)


def logs(*ratios: float) -> torch.Tensor:
    return torch.tensor(ratios).log()


def gradient(objective: GrpoSettings, ratios: list[float], advantages: list[float]) -> tuple[list, list, list]:
    """Loss, d loss / d log-prob and mask of tokens whose trainer-to-sampler ratio is given."""
    current = logs(*ratios).requires_grad_()
    loss, masked = policy_gradient(objective, current, torch.zeros(len(ratios)), torch.tensor(advantages))
    loss.sum().backward()
    return loss.tolist(), current.grad.tolist(), masked.tolist()


def test_without_correction_the_ratio_to_the_sampler_is_clipped_where_that_lowers_the_objective():
    loss, slope, masked = gradient(grpo(correction="none"), [1.0, 1.5, 0.5, 1.5, 0.5], [1.0, 1.0, 1.0, -1.0, -1.0])
    assert loss == pytest.approx([-1.0, -1.2, -0.5, 1.5, 0.8])
    assert slope == pytest.approx([-1.0, 0.0, -0.5, 1.5, 0.0])
    assert masked == [False, True, False, False, True]


def test_clip_higher_gives_rare_tokens_more_room():
    loss, slope, _ = gradient(grpo(correction="none", clip_high=0.6), [1.5], [1.0])
    assert loss == pytest.approx([-1.5]) and slope == pytest.approx([-1.5])


def test_tis_multiplies_by_the_capped_ratio():
    loss, slope, masked = gradient(grpo(correction="tis", tis_cap=2.0), [0.5, 1.0, 10.0], [1.0, 2.0, -1.0])
    assert loss == pytest.approx([-0.5, -2.0, 2.0])
    assert slope == pytest.approx([-0.5, -2.0, 2.0])
    assert not any(masked)


def test_decoupled_masks_tokens_beyond_the_largest_weight():
    loss, slope, masked = gradient(grpo(correction="decoupled", max_weight=5.0), [0.5, 4.9, 5.1], [1.0, -1.0, 1.0])
    assert loss == pytest.approx([-0.5, 4.9, 0.0])
    assert slope == pytest.approx([-0.5, 4.9, 0.0])
    assert masked == [False, False, True]


def test_an_absurd_ratio_stays_finite():
    loss, slope, _ = gradient(grpo(correction="none"), [1e-30, 1e30], [1.0, -1.0])
    assert all(map(math.isfinite, loss + slope))


def test_k3_is_zero_at_the_reference_and_positive_elsewhere():
    assert k3(logs(0.5, 0.5), logs(0.5, 0.25)).tolist() == pytest.approx([0.0, 0.5 - math.log(0.5) - 1])


def call(objective, current, sampler, advantages, coefficients_, sampled=None, reference=None):
    current = current.clone().requires_grad_()
    sampled = torch.ones(len(current), dtype=torch.bool) if sampled is None else torch.tensor(sampled)
    tensors = (current, torch.full_like(current, 0.7), torch.tensor(coefficients_), torch.tensor(advantages), sampler)
    loss, stats = loss_of(objective, *tensors, sampled, reference)
    loss.backward()
    return loss.item(), current.grad.tolist(), stats.numpy()


def test_the_divergence_from_the_start_model_is_added_with_its_weight():
    loss, slope, stats = call(grpo(kl=0.1), logs(0.5), logs(0.5), [0.0], [1.0], reference=logs(0.25))
    assert loss == pytest.approx(0.1 * (0.5 - math.log(0.5) - 1))
    assert slope == pytest.approx([0.1 * (1 - 0.5)])
    assert report(stats)["kl"] == pytest.approx(0.5 - math.log(0.5) - 1)


@pytest.mark.parametrize("objective", [AwrSettings(name="awr"), SftSettings(name="sft")], ids=["awr", "sft"])
def test_imitation_is_weighted_cross_entropy_and_needs_no_ratio(objective):
    loss, slope, _ = call(objective, logs(0.5, 0.25), torch.zeros(2), [9.0, 9.0], [0.75, 0.25], [False, False])
    assert loss == pytest.approx(0.75 * math.log(2) + 0.25 * math.log(4))
    assert slope == [-0.75, -0.25]


def test_the_report_says_how_far_trainer_and_sampler_are_apart():
    sampled = [True, True, True, False]
    current, sampler = logs(1.0, 2.0, 6.0, 1.0), torch.zeros(4)
    _, _, stats = call(grpo(), current, sampler, [1.0] * 4, [0.25, 0.25, 0.25, 0.0], sampled)
    figures = report(stats)
    assert figures["trained_tokens"] == 3
    assert figures["mismatch_mean"] == pytest.approx((math.log(2) + math.log(6)) / 3)
    assert figures["mismatch_max"] == pytest.approx(math.log(6))
    assert figures["effective_samples"] == pytest.approx(9**2 / (3 * (1 + 4 + 36)))
    assert figures["masked_share"] == pytest.approx(1 / 3)
    assert figures["entropy"] == pytest.approx(0.7)


def test_a_batch_without_any_token_reports_without_dividing_by_zero():
    assert report(np.zeros(len(STATS)))["effective_samples"] == 1.0


def sequence(advantages: list[float]) -> TokenSequence:
    size = len(advantages)
    weights = np.ones(size, np.float32)
    blank = np.zeros(size, np.int32)
    return TokenSequence(blank, np.array(advantages, np.float32), weights, weights, weights > 0, blank)


def shares(objective: dict, *advantages: list[float]) -> np.ndarray:
    settings = LearnerSettings(objective=objective)
    return np.concatenate(coefficients([sequence(values) for values in advantages], 1, settings))


def test_awr_weights_are_those_of_rise():
    got = shares({"name": "awr", "temperature": 0.4, "normalise": False}, [1.0], [0.0, -1.0])
    np.testing.assert_allclose(3 * got, [12.18249, 1.0, 0.0820850], rtol=1e-5)


def test_normalised_awr_weights_have_a_mean_of_one_over_the_whole_batch():
    got = shares({"name": "awr", "temperature": 0.5}, [1.0, 1.0], [0.0])
    weights = np.exp([2.0, 2.0, 0.0])
    np.testing.assert_allclose(got, weights / weights.sum(), rtol=1e-6)


def test_awr_weights_are_capped():
    got = shares({"name": "awr", "temperature": 0.1, "normalise": False, "max_weight": 5}, [50.0], [0.0])
    np.testing.assert_allclose(2 * got, [5, 1], rtol=1e-6)


def test_sft_learns_from_successes_only():
    np.testing.assert_allclose(shares({"name": "sft"}, [1.0, 1.0], [0.0], [-1.0]), [0.5, 0.5, 0, 0])


def test_sft_without_any_success_learns_nothing():
    assert not shares({"name": "sft"}, [0.0, 0.0]).any()


def test_grpo_shares_count_tokens_without_advantage_but_do_not_forward_them():
    assert shares({"name": "grpo"}, [1.0, 0.0], [0.0, -1.0]).tolist() == [0.25, 0, 0, 0.25]


def test_grpo_with_a_divergence_trains_every_token():
    assert shares({"name": "grpo", "kl": 0.1}, [1.0, 0.0]).tolist() == [0.5, 0.5]
