"""What a recipe says of the loss: one class an objective, see learner/objectives/. Light to import."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from learner.measure import Divergence
from protocols.named import OwnSettings, either, name_of, one_of
from protocols.settings import Settings

CLIPS = (0.2, 0.2)
GSPO_CLIPS = (3e-4, 4e-4)
CISPO_CLIPS = (None, 4.0)


class ObjectiveSettings(Settings):
    """What every objective says of itself: the facts by which a recipe is checked."""

    @property
    def only_sampled(self) -> bool:
        """Whether it trains only what the model sampled on the very ids that are trained."""
        return False

    weighs_credit: ClassVar[bool] = True
    """Whether it asks more of the credit than which turns are trained."""
    weighs_ratio: ClassVar[bool] = False
    """Whether samples weigh by the ratio of the trainer's policy to the one that sampled them, so that the effective
    sample size of these ratios is that of what is learned from."""
    taught: ClassVar[bool] = False
    """Whether it trains only turns that another one follows, whose context is the teacher's."""

    @property
    def normalises(self) -> bool:
        """Whether it scales the weights of a batch to a mean of 1."""
        return False

    def held_to_start(self) -> list[str]:
        """Those of these settings that need the start model beside the trained one, in force as they are."""
        return []

    def check_updates(self, updates: int) -> None:
        """Raises ValueError where a setting cannot act when a batch takes so many optimizer steps."""


class AwrSettings(ObjectiveSettings):
    """Cross-entropy weighted by exp(credit / temperature) (RISE, arXiv 2407.18219; AWR, arXiv 1910.00177)."""

    name: Literal["awr"] = "awr"
    temperature: PositiveFloat = 0.4
    """tau: small means that only the best turns count."""
    normalise: bool = True
    """Scale the weights of a batch to a mean of 1 (the code of RISE does not)."""
    max_weight: PositiveFloat = 20.0
    """Largest weight, before they are normalised."""

    @property
    def normalises(self) -> bool:
        return self.normalise


class GrpoSettings(ObjectiveSettings):
    """Clipped policy gradient (arXiv 2402.03300) with corrections for turns that older weights sampled."""

    name: Literal["grpo"] = "grpo"
    clip_low: Annotated[float, Field(gt=0, lt=1)] | None = None
    """The ratio is clipped below at 1 - clip_low. null: 0.2, with `ratio: sequence` 0.0003 (GSPO), with `loss: cispo`
    not at all."""
    clip_high: PositiveFloat | None = None
    """The ratio is clipped above at 1 + clip_high. null: 0.2, with `ratio: sequence` 0.0004 (GSPO), with `loss: cispo`
    4, so that a token weighs 5 at most (ScaleRL, arXiv 2510.13786). DAPO: 0.28."""
    clip_high_navigated: PositiveFloat | None = None
    """`clip_high` of tokens that were sampled with experience in the question (`rollout.experience`). null: the same.
    AgentEvolver (arXiv 2511.10395): 0.6 beside a clip_high of 0.28."""
    dual_clip: Annotated[float, Field(gt=1)] | None = None
    """Largest ratio at which what was worse than its baseline is still made less likely (dual clip, arXiv 1912.09729).
    null: any, as in the papers of PPO and GRPO; verl's default is 3."""
    ratio: Literal["token", "sequence"] = "token"
    """Of each token, or one for the whole sequence (GSPO, arXiv 2507.18071)."""
    loss: Literal["clip", "cispo", "dppo", "m2po"] = "clip"
    """clip: a token beyond the clip has no gradient. cispo: it keeps the gradient of its log-prob, weighted with the
    clipped ratio (arXiv 2506.13585). dppo: nothing is clipped, and a token has no gradient where its probability has
    moved further than `max_shift` from that of the sampling policy, the way that its advantage moves it (binary total
    variation, arXiv 2602.04879). m2po: nothing is clipped, and of the whole batch those tokens have no gradient whose
    log-probs moved furthest from the sampling policy by its start, as many as it takes until the mean square of what
    the others moved is within `second_moment` (arXiv 2510.01161); it takes a forward pass of the batch more."""
    max_shift: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """dppo: largest difference of a token's probability."""
    second_moment: PositiveFloat = 0.04
    """m2po: largest mean square of log-ratios over the tokens that are kept."""
    correction: Literal["none", "tis", "decoupled"] = "decoupled"
    """none: clip the ratio to the sampling policy. Others clip the ratio to the trainer's policy at the start of the
    batch, which is 1 unless `learner.updates` takes several optimizer steps a batch; tis: multiply the loss by that
    policy's ratio to the sampling policy, capped; decoupled: multiply by it, and mask tokens where it is too large
    (arXiv 2505.24298)."""
    tis_cap: PositiveFloat = 2.0
    """tis: largest factor."""
    max_weight: PositiveFloat = 5.0
    """decoupled: tokens of a larger factor are masked; they still count in the mean."""
    sequence_mask: tuple[PositiveFloat, PositiveFloat] | None = None
    """Mask whole sequences where the ratio of the trainer's policy at the start of the batch to the sampling policy,
    the geometric mean over trained tokens, lies outside of these two bounds: [0.99, 1.01], for example. They still
    count in the mean."""
    entropy: NonNegativeFloat = 0.0
    """Weight of the entropy bonus on trained tokens."""
    kl: NonNegativeFloat = 0.0
    """Weight of the divergence from the start model (k3 estimator) on tokens that are trained; with this, `anchor` or
    `kl_reward` above 0 every rank holds a copy of that model."""
    kl_reward: NonNegativeFloat = 0.0
    """The divergence from the start model as a cost in the reward: each token's advantage is less by this times the sum
    of estimates from the token to the end of its sequence (REINFORCE++, arXiv 2501.03262)."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k1"
    """kl_reward: the estimate at a token, by d = log-prob at the start of the batch less the start model's. k1: d, with
    which the gradient is that of the divergence. k2: d^2 / 2. k3: exp(-d) - 1 + d."""
    anchor: NonNegativeFloat = 0.0
    """Weight of the divergence on tokens that the model sampled in turns that are not trained, each counted like a
    trained one: it keeps what carries out a reflection from drifting while only reflections are rewarded."""

    imitate: bool = False
    """Also learn what the model did not sample on the very ids that are trained, as internalised answers: by
    cross-entropy, weighted by what the turn is worth where that is positive, as objective sft does. `learner.roles`
    says how much it weighs beside the rest."""

    weighs_ratio: ClassVar[bool] = True

    @property
    def only_sampled(self) -> bool:
        return not self.imitate

    @property
    def clips(self) -> tuple[float | None, float]:
        """`clip_low` and `clip_high` as they are in force; None clips nothing."""
        low, high = GSPO_CLIPS if self.ratio == "sequence" else CLIPS
        if self.loss == "cispo":
            low, high = CISPO_CLIPS
        return low if self.clip_low is None else self.clip_low, high if self.clip_high is None else self.clip_high

    def held_to_start(self) -> list[str]:
        return [key for key in ("kl", "anchor", "kl_reward") if getattr(self, key) > 0]

    def check_updates(self, updates: int) -> None:
        if updates > 1 or self.correction == "none":
            return
        for key in ("clip_low", "clip_high", "clip_high_navigated", "dual_clip", "ratio", "loss"):
            if getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(
                    f"objective.{key}: does nothing with objective.correction: {self.correction} and one optimizer "
                    "step a batch, since the ratio is exactly 1. Remove it, set updates.minibatches to 2 or more, or "
                    "objective.correction to none"
                )

    @model_validator(mode="after")
    def _fits(self):
        owners = {
            "tis_cap": ("correction: tis", self.correction == "tis"),
            "max_weight": ("correction: decoupled", self.correction == "decoupled"),
            "kl_estimator": ("kl_reward above 0", self.kl_reward > 0),
            "dual_clip": ("loss: clip", self.loss == "clip"),
            "clip_high_navigated": ("ratio: token", self.ratio == "token"),
            "max_shift": ("loss: dppo", self.loss == "dppo"),
            "second_moment": ("loss: m2po", self.loss == "m2po"),
            **dict.fromkeys(("clip_low", "clip_high"), ("loss: clip or cispo", self.loss not in ("dppo", "m2po"))),
        }
        for key, (owner, acts) in owners.items():
            if not acts and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"objective.{key} only acts with objective.{owner}. Remove it or set that")
        plain = (self.correction, self.ratio, self.clip_high_navigated) == ("none", "token", None)
        if self.loss in ("dppo", "m2po") and not plain:
            raise ValueError(
                f"objective.loss: {self.loss} has a mask by each token's distance from the sampling policy in place of "
                "clips. Set objective.correction to none and objective.ratio to token, and remove "
                "objective.clip_high_navigated"
            )
        if self.sequence_mask is not None and not self.sequence_mask[0] < 1 < self.sequence_mask[1]:
            raise ValueError(
                f"objective.sequence_mask: {list(self.sequence_mask)} does not hold 1, the ratio of equal policies. "
                "Set a bound below 1 and one above it"
            )
        return self


class SftSettings(ObjectiveSettings):
    """Cross-entropy weighted by the credit where it is positive: with raw rewards of 0 and 1, successes only."""

    name: Literal["sft"] = "sft"

    @property
    def normalises(self) -> bool:
        return True


class DistillSettings(ObjectiveSettings):
    """Self-distillation: the model that has read what was said of its turn teaches the one that has not (SDPO, arXiv
    2601.20802). A turn is trained where another one followed it; its teacher's context is that one's."""

    name: Literal["distill"] = "distill"
    divergence: Divergence = "reverse"
    """At each token of the response: reverse is KL(model || teacher), as the paper writes it; forward is KL(teacher ||
    model); jensen_shannon the mean of both to their middle."""
    top: PositiveInt = 100
    """The model's likeliest tokens that are looked at, each by itself; all others count as one."""
    teacher: Literal["ema", "current"] = "ema"
    """Who reads it: a moving average of the trained weights, of which every rank then holds a copy; or these
    themselves, as they are, which is all that an adapter or stage 3 can have."""
    rate: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """ema: how far it moves to the trained weights after each step of the run."""

    weighs_credit: ClassVar[bool] = False
    taught: ClassVar[bool] = True

    @property
    def only_sampled(self) -> bool:
        return True

    @model_validator(mode="after")
    def _acts(self):
        if self.teacher == "current" and self.rate != type(self).model_fields["rate"].default:
            raise ValueError("objective.rate only acts with objective.teacher: ema. Remove it or set that")
        return self


class OwnObjective(OwnSettings, ObjectiveSettings):
    """An objective of the user's own, see learner/objectives/__init__.py."""


KNOWN: tuple[type[ObjectiveSettings], ...] = (GrpoSettings, AwrSettings, SftSettings, DistillSettings)
if TYPE_CHECKING:
    Objective = GrpoSettings | AwrSettings | SftSettings | DistillSettings | OwnObjective
else:
    Objective = one_of(*KNOWN, own=OwnObjective)
AUTHORED = either([name_of(kind) for kind in KNOWN if not kind().only_sampled])
"""The known objectives that always train what the model did not sample, too, for a person to choose from."""
