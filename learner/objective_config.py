"""What a recipe says of the loss: one class an objective, see learner/objectives/. Light to import."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator

from protocols.named import OwnSettings, either, name_of, one_of
from protocols.settings import Settings

GSPO_CLIPS = {"clip_low": 3e-4, "clip_high": 4e-4}


class ObjectiveSettings(Settings):
    """What every objective says of itself: the facts by which a recipe is checked."""

    only_sampled: ClassVar[bool] = False
    """Whether it trains only what the model sampled on the very ids that are trained."""


class AwrSettings(ObjectiveSettings):
    """Cross-entropy weighted by exp(credit / temperature) (RISE, arXiv 2407.18219; AWR, arXiv 1910.00177)."""

    name: Literal["awr"] = "awr"
    temperature: PositiveFloat = 0.4
    """tau: small means that only the best turns count."""
    normalise: bool = True
    """Scale the weights of a batch to a mean of 1 (the code of RISE does not)."""
    max_weight: PositiveFloat = 20.0
    """Largest weight, before they are normalised."""


class GrpoSettings(ObjectiveSettings):
    """Clipped policy gradient (arXiv 2402.03300) with corrections for turns that older weights sampled."""

    name: Literal["grpo"] = "grpo"
    clip_low: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """The ratio is clipped below at 1 - clip_low (0.0003 where `ratio: sequence` and nothing else is said)."""
    clip_high: PositiveFloat = 0.2
    """The ratio is clipped above at 1 + clip_high (0.0004 where `ratio: sequence` and nothing else is said). DAPO:
    0.28."""
    ratio: Literal["token", "sequence"] = "token"
    """Of each token, or one for the whole sequence (GSPO, arXiv 2507.18071)."""
    loss: Literal["clip", "cispo"] = "clip"
    """clip: a token beyond the clip has no gradient. cispo: it keeps the gradient of its log-prob, weighted with the
    clipped ratio (arXiv 2506.13585)."""
    correction: Literal["none", "tis", "decoupled"] = "decoupled"
    """none: clip the ratio to the sampling policy. tis: multiply the loss by that ratio, capped. decoupled: multiply
    by it, and mask tokens where it is too large (arXiv 2505.24298)."""
    tis_cap: PositiveFloat = 2.0
    """tis: largest factor."""
    max_weight: PositiveFloat = 5.0
    """decoupled: tokens of a larger factor are masked; they still count in the mean."""
    kl: NonNegativeFloat = 0.0
    """Weight of the divergence from the start model (k3 estimator) on tokens that are trained; with this or `anchor`
    above 0 every rank holds a copy of that model."""
    anchor: NonNegativeFloat = 0.0
    """The same weight on tokens that the model sampled in turns that are not trained, each counted like a trained one:
    it keeps what carries out a reflection from drifting while only reflections are rewarded."""

    only_sampled: ClassVar[bool] = True

    @model_validator(mode="before")
    @classmethod
    def _clips_of_gspo(cls, values: Any) -> Any:
        return GSPO_CLIPS | values if isinstance(values, dict) and values.get("ratio") == "sequence" else values

    @model_validator(mode="after")
    def _fits(self):
        for key, owner in (("tis_cap", "tis"), ("max_weight", "decoupled")):
            if self.correction != owner and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"objective.{key} only acts with objective.correction: {owner}. Remove it or set that")
        for key, value in (("ratio", "sequence"), ("loss", "cispo")):
            if getattr(self, key) == value and self.correction != "none":
                raise ValueError(
                    f"objective.{key}: {value} clips the ratio to the sampling policy, which objective.correction: "
                    f"{self.correction} takes out of it. Set objective.correction to none"
                )
        return self


class SftSettings(ObjectiveSettings):
    """Cross-entropy weighted by the credit where it is positive: with raw rewards of 0 and 1, successes only."""

    name: Literal["sft"] = "sft"


class OwnObjective(OwnSettings, ObjectiveSettings):
    """An objective of the user's own, see learner/objectives/__init__.py."""


KNOWN: tuple[type[ObjectiveSettings], ...] = (GrpoSettings, AwrSettings, SftSettings)
if TYPE_CHECKING:
    Objective = GrpoSettings | AwrSettings | SftSettings | OwnObjective
else:
    Objective = one_of(*KNOWN, own=OwnObjective)
AUTHORED = either([name_of(kind) for kind in KNOWN if not kind.only_sampled])
"""The known objectives that also train what the model did not sample, for a person to choose from."""
