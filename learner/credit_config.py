"""What a recipe says a turn is worth: one class a credit, see learner/credits/. Light to import."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import PositiveFloat, PositiveInt, PrivateAttr, model_validator

from protocols.named import OwnStating, either, name_of, one_of
from protocols.settings import Settings

Compared = Literal["", "episodes", "turns", "retries"]


@dataclass(frozen=True, slots=True)
class CreditFacts:
    """What a credit states of itself, by which a recipe is checked. Nothing outside learner/ knows which one runs."""

    compares: Compared = ""
    """What it compares within a group: whole episodes, turns of one number, retries after one failed answer; "" where
    a turn is worth something by itself."""
    follows_paths: bool = False
    """Whether it follows the turns of an episode from their root."""
    instead: str = "take another learner.credit"
    """What to do where nothing can be compared."""


class CreditSettings(Settings):
    """What every credit has: its facts, and which answers it leaves out."""

    mask_truncated: bool = False
    """Leave answers out of the loss that ran into `sampling.max_tokens` or the end of the context (DAPO's overlong
    filtering, arXiv 2503.14476). What they were worth still counts in the baselines of others."""

    if TYPE_CHECKING:

        @property
        def name(self) -> str: ...

    @property
    def facts(self) -> CreditFacts:
        """What it states of itself, with these settings."""
        return CreditFacts()


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


class GroupCredit(CreditSettings):
    """The return of the episode against the other episodes of its group (GRPO, arXiv 2402.03300)."""

    name: Literal["group"] = "group"
    std: bool = True
    """Divide by the group's standard deviation (false: Dr. GRPO, arXiv 2503.20783)."""
    baseline: Literal["mean", "leave_one_out"] = "mean"
    """The mean over all episodes of the group, or over all others (RLOO, arXiv 2402.14740, with std false)."""
    overlong: OverlongSettings | None = None
    """Punish long responses (DAPO)."""

    @property
    def facts(self) -> CreditFacts:
        return CreditFacts(compares="episodes")


class TurnwiseCredit(CreditSettings):
    """The reward of the turn against the mean of its turn number."""

    name: Literal["turnwise"] = "turnwise"
    baseline: Literal["group", "batch"] = "group"
    """Take the mean over the turns of the group, or of the whole batch."""

    @property
    def facts(self) -> CreditFacts:
        compares = "turns" if self.baseline == "group" else ""
        return CreditFacts(compares=compares, instead="set learner.credit.baseline to batch")


class RawCredit(CreditSettings):
    """The reward of the turn (RISE, arXiv 2407.18219)."""

    name: Literal["raw"] = "raw"
    keep: Literal["all", "better", "best", "success"] = "all"
    """Turns that are trained. better: the first of an episode, and those above the one before. best: the first of an
    episode's best. success: those worth 1 or more."""


class ReflectionCredit(CreditSettings):
    """The reward of the retry against the group's, on its reflection alone (Reflect, Retry, Reward, 2505.24726)."""

    name: Literal["reflection"] = "reflection"
    std: bool = True
    """Divide by the standard deviation of the group's retries."""

    @property
    def facts(self) -> CreditFacts:
        return CreditFacts(compares="retries")


class TrajectoryCredit(CreditSettings):
    """The reward at the end of the best trajectory that goes on from the turn (Agent-R, arXiv 2501.11425)."""

    name: Literal["trajectory"] = "trajectory"
    above: float = 0.0
    """Only trajectories that end with a larger reward are trained (and with one above the `alpha` of their search)."""
    good: PositiveInt | None = None
    """Of a group's trajectories without a revision so many are trained, the best ones (None: all)."""

    @property
    def facts(self) -> CreditFacts:
        return CreditFacts(follows_paths=True)


class OwnCredit(OwnStating, CreditSettings):
    """A credit of the user's own: a function, see learner/credits/__init__.py, or a class with such a static method
    `credit` and with `facts`, a CreditFacts, by which the recipe is checked as for a known one."""

    _facts: CreditFacts = PrivateAttr(default=CreditFacts())

    @property
    def facts(self) -> CreditFacts:
        return self._facts


KNOWN: tuple[type[CreditSettings], ...] = (
    GroupCredit,
    TurnwiseCredit,
    RawCredit,
    ReflectionCredit,
    TrajectoryCredit,
)
if TYPE_CHECKING:
    Credit = GroupCredit | TurnwiseCredit | RawCredit | ReflectionCredit | TrajectoryCredit | OwnCredit
else:
    Credit = one_of(*KNOWN, own=OwnCredit)


def comparing(offered: Collection[str]) -> str:
    """The known credits that compare something that is offered, or nothing where nothing is, for a person to choose
    from: "group or turnwise"."""
    return either([name_of(kind) for kind in KNOWN if kind().facts.compares in (offered or {""})])
