"""Objectives: losses, gradients and reported figures against values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from learner.config import LearnerSettings
from learner.objective_config import AwrSettings, GrpoSettings, SftSettings
from learner.objectives import STATS, coefficients, loss_of, make, report
from learner.objectives.base import Objective, Tokens, k3
from learner.sequences import TokenSequence
from protocols.errors import SettingError


def grpo(**values) -> GrpoSettings:
    return GrpoSettings(**values)


def logs(*ratios: float) -> torch.Tensor:
    return torch.tensor(ratios).log()


def gradient(
    objective: GrpoSettings, ratios: list[float], advantages: list[float], sequences: list[int] | None = None
) -> tuple[list, list, list]:
    """Loss, d loss / d log-prob and cut of tokens whose trainer-to-sampler ratio is given."""
    current = logs(*ratios).requires_grad_()
    same = torch.zeros(len(ratios))
    numbers = torch.tensor(sequences or range(len(ratios)))
    tokens = Tokens(current, same, same == 0, torch.tensor(advantages), numbers, prox=current.detach())
    loss, cut = make(objective).loss(tokens)
    loss.sum().backward()
    return loss.tolist(), current.grad.tolist(), cut.tolist()


def test_without_correction_the_ratio_to_the_sampler_is_clipped_where_that_lowers_the_objective():
    loss, slope, masked = gradient(grpo(correction="none"), [1.0, 1.5, 0.5, 1.5, 0.5], [1.0, 1.0, 1.0, -1.0, -1.0])
    assert loss == pytest.approx([-1.0, -1.2, -0.5, 1.5, 0.8])
    assert slope == pytest.approx([-1.0, 0.0, -0.5, 1.5, 0.0])
    assert masked == [False, True, False, False, True]


def test_clip_higher_gives_rare_tokens_more_room():
    loss, slope, _ = gradient(grpo(correction="none", clip_high=0.6), [1.5], [1.0])
    assert loss == pytest.approx([-1.5]) and slope == pytest.approx([-1.5])


@pytest.mark.parametrize(
    ("older", "now", "advantage", "cut"),
    [
        (0.6, 0.9, 1.0, True),  # likelier by 0.3, and to become likelier still
        (0.6, 0.9, -1.0, False),  # on its way back
        (0.6, 0.3, -1.0, True),
        (0.6, 0.3, 1.0, False),
        (0.6, 0.75, 1.0, False),  # within 0.2, though the ratio is 1.25
        (0.01, 0.1, 1.0, False),  # a ratio of 10 of what is rare
    ],
)
def test_dppo_masks_a_token_whose_probability_moved_too_far_and_would_move_further(older, now, advantage, cut):
    current, sampler = logs(now).requires_grad_(), logs(older)
    tokens = Tokens(current, sampler, sampler < 0, torch.tensor([advantage]), torch.tensor([0]))
    loss, masked = make(grpo(correction="none", loss="dppo")).loss(tokens)
    loss.sum().backward()
    expected = 0.0 if cut else -advantage * now / older
    assert loss.tolist() == pytest.approx([expected]) and masked.tolist() == [cut]
    assert current.grad is not None and current.grad.tolist() == pytest.approx([expected])


SHIFTS = [0.3, 0.0, -0.1, 0.5, -0.3, -0.9]  # squares .09 0 .01 .25 .09 .81


@pytest.mark.parametrize(
    ("largest", "kept"),
    [
        (0.3, [True, True, True, True, True, True]),  # the mean of all is .208
        (0.15, [True, True, True, True, True, False]),  # .44 / 5 = .088
        (0.05, [True, True, True, False, True, False]),  # .19 / 4 = .0475
        (0.04, [False, True, True, False, False, False]),  # with one of the two .09 it would be .033, with both .0475
        (0.004, [False, True, False, False, False, False]),
    ],
)
def test_m2po_keeps_as_many_of_the_batchs_tokens_as_have_a_small_mean_square_together(largest, kept):
    objective = make(grpo(correction="none", loss="m2po", second_moment=largest))
    assert objective.masks_batch and objective.proximal
    assert objective.kept(torch.tensor(SHIFTS)).tolist() == kept


def test_m2po_keeps_nothing_where_no_token_is_near_enough():
    objective = make(grpo(correction="none", loss="m2po"))
    assert objective.kept(torch.tensor([2.0, -1.0])).tolist() == [False, False]


def test_m2po_clips_nothing_of_what_it_keeps():
    current, sampler = logs(3.0, 0.2, 3.0).requires_grad_(), torch.zeros(3)
    kept = torch.tensor([True, True, False])
    facts = {"sampled": sampler == 0, "advantages": torch.tensor([2.0, -1.0, 2.0]), "sequences": torch.arange(3)}
    tokens = Tokens(current, sampler, **facts, prox=current.detach(), kept=kept)
    loss, masked = make(grpo(correction="none", loss="m2po")).loss(tokens)
    loss.sum().backward()
    assert loss.tolist() == pytest.approx([-6.0, 0.2, 0.0]) and masked.tolist() == [False, False, True]
    assert current.grad is not None and current.grad.tolist() == pytest.approx([-6.0, 0.2, 0.0])


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


def call(objective, current, sampler, advantages, coefficients_, sampled=None, reference=None, divergences=None):
    current = current.clone().requires_grad_()
    zeros = torch.zeros(len(current))
    micro = {
        "coefficients": torch.tensor(coefficients_),
        "divergences": zeros if divergences is None else torch.tensor(divergences),
        "advantages": torch.tensor(advantages),
        "sampler": sampler,
        "sampled": zeros == 0 if sampled is None else torch.tensor(sampled),
        "navigated": zeros < 0,
        "sequences": zeros.long(),
    }
    loss, stats = loss_of(make(objective), current, torch.full_like(current, 0.7), micro, reference)
    loss.backward()
    return loss.item(), current.grad.tolist(), stats.numpy()


def test_the_divergence_from_the_start_model_is_added_with_its_weight():
    loss, slope, stats = call(grpo(kl=0.1), logs(0.5), logs(0.5), [0.0], [1.0], reference=logs(0.25), divergences=[0.1])
    assert loss == pytest.approx(0.1 * (0.5 - math.log(0.5) - 1))
    assert slope == pytest.approx([0.1 * (1 - 0.5)])
    assert report(stats).kl == pytest.approx(0.5 - math.log(0.5) - 1)
    assert report(stats).anchor_kl is None


def test_the_divergence_of_tokens_that_the_policy_did_not_sample_is_not_reported():
    current, start, sampled = logs(0.5, 0.9), logs(0.25, 0.01), [True, False]
    facts = {"sampled": sampled, "reference": start, "divergences": [0.1, 0.0]}
    *_, stats = call(grpo(kl=0.1, imitate=True), current, current, [0.0, 1.0], [1.0, 1.0], **facts)
    assert report(stats).trained_tokens == 2
    assert report(stats).kl == pytest.approx(0.5 - math.log(0.5) - 1)


def test_anchored_tokens_have_the_divergence_alone_and_are_reported_apart():
    current, start = logs(0.5, 0.5), logs(0.5, 0.25)
    loss, slope, stats = call(
        grpo(anchor=2), current, current, [1.0, 1.0], [1.0, 0.0], reference=start, divergences=[0.0, 2.0]
    )
    divergence = 0.5 - math.log(0.5) - 1
    assert loss == pytest.approx(-1 + 2 * divergence)
    assert slope == pytest.approx([-1, 2 * (1 - 0.5)])
    figures = report(stats)
    assert (figures.trained_tokens, figures.kl) == (1, 0)
    assert figures.anchor_kl == pytest.approx(divergence)


@pytest.mark.parametrize("objective", [grpo(), grpo(ratio="sequence", correction="none"), AwrSettings()])
def test_a_rank_without_work_has_a_loss_of_zero_that_can_be_traced_back(objective):
    loss, slope, stats = call(objective, logs(0.5), logs(0.5), [0.0], [0.0], [False])
    assert (loss, slope) == (0, [0])
    assert not stats.any()


def test_the_ratio_of_a_sequence_is_the_geometric_mean_of_its_tokens_with_the_gradient_of_gspo_token():
    chosen = grpo(ratio="sequence", correction="none", clip_low=0.2, clip_high=0.2)
    loss, slope, cut = gradient(chosen, [2.0, 0.5, 1.21, 1.0], [3.0, -1.0, 1.0, 1.0], [0, 0, 1, 1])
    assert loss == pytest.approx([-3.0, 1.0, -1.1, -1.1])
    assert slope == pytest.approx([-3.0, 1.0, -1.1, -1.1])
    loss, slope, cut = gradient(chosen, [2.0, 0.98], [1.0, -1.0], [0, 0])  # ratio 1.4: clipped for the first alone
    assert loss == pytest.approx([-1.2, 1.4]) and slope == pytest.approx([0, 1.4]) and cut == [True, False]


def test_cispo_weighs_every_token_with_its_clipped_ratio():
    chosen = grpo(loss="cispo", correction="none", clip_low=0.5, clip_high=0.2)
    loss, slope, cut = gradient(chosen, [4.0, 1.0, 0.25], [1.0, 2.0, -1.0])
    assert slope == pytest.approx([-1.2, -2.0, 0.5])
    assert loss == pytest.approx([-1.2 * math.log(4), 0, 0.5 * math.log(0.25)])
    assert not any(cut)


@pytest.mark.parametrize("objective", [AwrSettings(), SftSettings()], ids=["awr", "sft"])
def test_imitation_is_weighted_cross_entropy_and_needs_no_ratio(objective):
    loss, slope, _ = call(objective, logs(0.5, 0.25), torch.zeros(2), [9.0, 9.0], [0.75, 0.25], [False, False])
    assert loss == pytest.approx(0.75 * math.log(2) + 0.25 * math.log(4))
    assert slope == [-0.75, -0.25]


def test_the_report_says_how_far_trainer_and_sampler_are_apart():
    sampled = [True, True, True, False]
    current, sampler = logs(1.0, 2.0, 6.0, 1.0), torch.zeros(4)
    _, _, stats = call(grpo(), current, sampler, [1.0] * 4, [0.25, 0.25, 0.25, 0.0], sampled)
    figures = report(stats)
    assert figures.trained_tokens == 3
    assert figures.mismatch_mean == pytest.approx((math.log(2) + math.log(6)) / 3)
    assert figures.mismatch_max == pytest.approx(math.log(6))
    assert figures.effective_samples == pytest.approx(9**2 / (3 * (1 + 4 + 36)))
    assert figures.masked_share == pytest.approx(1 / 3)
    assert figures.entropy == pytest.approx(0.7)


def test_figures_over_nothing_are_none():
    found = report(np.zeros(len(STATS))).to_json()
    assert found.pop("trained_tokens") == 0
    assert set(found.values()) == {None}


def test_trainer_and_sampler_are_not_compared_where_nothing_was_sampled():
    _, _, stats = call(SftSettings(), logs(0.5, 0.25), torch.zeros(2), [1.0, 1.0], [0.75, 0.25], [False, False])
    found = report(stats)
    assert found.loss > 0 and found.entropy > 0 and found.trained_tokens == 2
    nothing = ("mismatch_mean", "mismatch_max", "effective_samples", "kl", "anchor_kl")
    assert [getattr(found, key) for key in nothing] == [None] * 5


def sequence(advantages: list[float]) -> TokenSequence:
    size = len(advantages)
    weights = np.ones(size, np.float32)
    blank = np.zeros(size, np.int32)
    return TokenSequence(
        blank, np.array(advantages, np.float32), weights, weights, weights > 0, blank, *np.zeros((3, size), bool)
    )


def shares(objective: dict, *advantages: list[float]) -> np.ndarray:
    settings = LearnerSettings(objective=objective)
    found = coefficients([sequence(values) for values in advantages], settings, make(settings.objective))
    return np.concatenate([share.loss for share in found])


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


def test_the_ratio_of_a_sequence_needs_all_tokens_of_the_sequences_that_move():
    chosen = {"name": "grpo", "ratio": "sequence", "correction": "none"}
    assert shares(chosen, [1.0, 0.0], [0.0, 0.0]).tolist() == [0.25, 0.25, 0, 0]


class Reinforce(Objective):
    """An objective of one's own."""

    authored = False

    def weigh(self, advantages):
        return np.full(len(advantages), self.settings.options["scale"])

    def loss(self, tokens):
        return -tokens.advantages * tokens.logprobs, torch.zeros_like(tokens.sampled)


def test_an_objective_of_ones_own_is_used_with_its_options():
    chosen = {"name": f"{__name__}:Reinforce", "options": {"scale": 0.5}}
    assert shares(chosen, [1.0, 0.0], [0.0, -1.0]).tolist() == [0.125] * 4
    settings = LearnerSettings(objective=chosen).objective
    loss, slope, _ = call(settings, logs(0.5, 0.25), logs(1, 1), [2.0, -1.0], [0.5, 0.25])
    assert loss == pytest.approx(math.log(2) - 0.25 * math.log(4)) and slope == [-1, 0.25]


def test_weights_that_are_none_are_refused():
    with pytest.raises(SettingError, match="weigh of .*Reinforce returned .*at least 0 for each token"):
        shares({"name": f"{__name__}:Reinforce", "options": {"scale": -1.0}}, [1.0])


@pytest.mark.parametrize("name", ["torch:Tensor", "math:exp"])
def test_what_is_no_objective_is_refused(name):
    with pytest.raises(SettingError, match=f"{name} is not a subclass"):
        shares({"name": name}, [1.0])
