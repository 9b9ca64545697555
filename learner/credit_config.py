"""What a recipe says a turn is worth: one class a credit, see learner/credits/. Light to import."""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveFloat, PositiveInt, model_validator

from protocols.named import one_of
from protocols.settings import Settings


class OverlongSettings(Settings):
    """DAPO's soft punishment of long responses (arXiv 2503.14476), added to the reward of every response."""

    limit: PositiveInt
    """Tokens from which on a response is punished in full."""
    cache: PositiveInt
    """So many tokens before the limit the punishment begins, and rises linearly."""
    penalty: PositiveFloat = 1.0
    """The full punishment."""

    @model_validator(mode="after")
    def _fits(self):
        if self.cache > self.limit:
            raise ValueError(f"overlong.cache ({self.cache}) is above overlong.limit ({self.limit}). Lower it")
        return self


class GroupCredit(Settings):
    """The return of the episode against the other episodes of its group (GRPO, arXiv 2402.03300)."""

    name: Literal["group"] = "group"
    std: bool = True
    """Divide by the group's standard deviation (false: Dr. GRPO, arXiv 2503.20783)."""
    overlong: OverlongSettings | None = None
    """Punish long responses (DAPO)."""


class TurnwiseCredit(Settings):
    """The reward of the turn against the mean of its turn number."""

    name: Literal["turnwise"] = "turnwise"
    baseline: Literal["group", "batch"] = "group"
    """Take the mean over the turns of the group, or of the whole batch."""


class RawCredit(Settings):
    """The reward of the turn (RISE, arXiv 2407.18219)."""

    name: Literal["raw"] = "raw"
    keep: Literal["all", "better", "best", "success"] = "all"
    """Turns that are trained. better: the first of an episode, and those above the one before. best: the first of an
    episode's best. success: those worth 1 or more."""


class ReflectionCredit(Settings):
    """The reward of the retry against the group's, on its reflection alone (Reflect, Retry, Reward, 2505.24726)."""

    name: Literal["reflection"] = "reflection"
    std: bool = True
    """Divide by the standard deviation of the group's retries."""


class TrajectoryCredit(Settings):
    """The reward at the end of the best trajectory that goes on from the turn (Agent-R, arXiv 2501.11425)."""

    name: Literal["trajectory"] = "trajectory"
    above: float = 0.0
    """Only trajectories that end with a larger reward are trained (and with one above the `alpha` of their search)."""
    good: PositiveInt | None = None
    """Of a group's trajectories without a revision so many are trained, the best ones (None: all)."""


Credit = one_of(GroupCredit, TurnwiseCredit, RawCredit, ReflectionCredit, TrajectoryCredit)
