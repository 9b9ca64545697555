"""What a recipe says a turn is worth: one class a credit, see learner/credits/. Light to import."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, PrivateAttr, model_validator

from protocols.named import OwnStating, either, name_of, one_of
from protocols.settings import Settings

Compared = Literal["", "episodes", "turns", "retries"]


@dataclass(frozen=True, slots=True)
class CreditFacts:
    """What a credit states of itself, by which a recipe is checked. Nothing outside learner/ knows which one runs."""

    compares: Compared = ""
    """What it compares within a group: whole episodes, turns of one number, retries after one failed answer; "" where
    a turn is worth something by itself."""
    compares_groups: bool = False
    """Whether it compares groups of a batch with each other."""
    follows_paths: bool = False
    """Whether it follows the turns of an episode from their root."""
    chooses: bool = False
    """Whether it is asked which turns are trained, and not only what they are worth."""
    within_episodes: bool = False
    """Whether turns of episodes that are worth the same in all may be worth something."""
    reads_flags: bool = False
    """Whether it reads which steps of an episode were good (`extra.good` of a turn)."""
    instead: str = "take another learner.credit"
    """What to do where nothing can be compared."""


class CreditSettings(Settings):
    """What every credit has: its facts, and which answers it leaves out."""

    mask_truncated: bool = False
    """Leave answers out of the loss that ran into `sampling.max_tokens` or the end of the context (DAPO's overlong
    filtering, arXiv 2503.14476). What they were worth still counts in the baselines of others."""
    too_long: Literal["wrong", "left_out"] = "wrong"
    """What an episode counts as that ended since nothing more fitted the model's context. wrong: where whole episodes
    are compared it is worth no more than any other, nor than 0; where turns are, those that it has are worth what they
    were paid, and the one that did not fit has no part. left_out: it is not trained and takes part in no mean."""

    if TYPE_CHECKING:

        @property
        def name(self) -> str: ...

    @property
    def facts(self) -> CreditFacts:
        """What it states of itself, with these settings."""
        return CreditFacts()

    def at(self, step: int) -> CreditSettings:
        """Those in force for a trainer at so many steps."""
        return self


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
    std: bool | Literal["batch"] = True
    """Divide by the group's standard deviation (false: Dr. GRPO, arXiv 2503.20783), or by that of the whole batch, of
    returns less their baseline (REINFORCE++, arXiv 2501.03262)."""
    baseline: Literal["mean", "leave_one_out", "batch"] = "mean"
    """The mean over all episodes of the group, or over all others (RLOO, arXiv 2402.14740, with std false), or over all
    of the batch (REINFORCE++, which needs no more than one episode a task)."""
    overlong: OverlongSettings | None = None
    """Punish long responses (DAPO)."""

    @property
    def facts(self) -> CreditFacts:
        compares = "" if self.baseline == "batch" else "episodes"
        whole = self.baseline == "batch"
        return CreditFacts(compares, whole, instead="set learner.credit.baseline and std to batch")

    @model_validator(mode="after")
    def _compares_one_thing(self):
        if self.baseline == "batch" and self.std is True:
            raise ValueError(
                "credit.baseline: batch compares nothing within a group, whose deviation credit.std: true is. "
                "Set credit.std to batch or to false"
            )
        return self


class TurnwiseCredit(CreditSettings):
    """The reward of the turn against the mean of its turn number."""

    name: Literal["turnwise"] = "turnwise"
    baseline: Literal["group", "batch", "others"] = "group"
    """Take the mean over the turns of the group, of the whole batch, or of all other groups of the batch: the last is
    without bias where the policy decides how many turns there are."""

    @property
    def facts(self) -> CreditFacts:
        compares = "turns" if self.baseline == "group" else ""
        others = self.baseline != "group"
        return CreditFacts(compares, others, within_episodes=True, instead="set learner.credit.baseline to batch")


class ImprovementCredit(CreditSettings):
    """The reward of an answer and a bonus for what it improved on the one before, against the answers of the same
    number in its group (SCoRe, arXiv 2409.12917)."""

    name: Literal["improvement"] = "improvement"
    bonus: PositiveFloat = 10.0
    """Weight of the reward less that of the answer before: the paper's alpha, which is to be above 1."""
    std: bool = True
    """Divide by the standard deviation of those answers."""
    hold_steps: PositiveInt | None = None
    """The paper's first stage: so many steps of the run without bonus in which first answers are not trained.
    `objective.anchor` holds them near the start model meanwhile (None: no such stage)."""
    _holds: bool = PrivateAttr(default=False)

    @property
    def holds(self) -> bool:
        """Whether the first stage goes on: first answers are not trained, and there is no bonus."""
        return self._holds

    @property
    def facts(self) -> CreditFacts:
        return CreditFacts(compares="turns", within_episodes=True)

    def at(self, step: int) -> CreditSettings:
        if self.hold_steps is None or step >= self.hold_steps:
            return self
        held = self.model_copy()
        held._holds = True
        return held


class AnchorStateCredit(CreditSettings):
    """The return of the episode against the group's, and beside it the return from a step on against that of the
    group's other steps from the same state (GiGPO, arXiv 2505.10978).

    A state is what the environment calls it (`state` in the info of its steps), else what it said before the step."""

    name: Literal["anchor_state"] = "anchor_state"
    weight: PositiveFloat = 1.0
    """Of what is compared between steps. 0 would be credit `group`."""
    discount: PositiveFloat = Field(0.95, le=1)
    """Of later rewards in the return from a step on."""
    std: bool = True
    """Divide by the standard deviations of episodes, and of steps."""

    @property
    def facts(self) -> CreditFacts:
        return CreditFacts(compares="episodes", within_episodes=True)


class RawCredit(CreditSettings):
    """The reward of the turn (RISE, arXiv 2407.18219)."""

    name: Literal["raw"] = "raw"
    keep: Literal["all", "better", "best", "success"] = "all"
    """Turns that are trained. better: the first of an episode, and those above the one before. best: the first of an
    episode's best. success: those worth 1 or more."""

    @property
    def facts(self) -> CreditFacts:
        return CreditFacts(chooses=True)


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


class DecaySettings(Settings):
    """How the weight of flags falls: half a cosine."""

    to: NonNegativeFloat = 0.0
    """What alpha reaches, and stays at."""
    steps: PositiveInt = 100
    """Steps of the run over which it falls there."""


class AttributingCredit(CreditSettings):
    """The return against the group's, and beside it how good each step was (ADCA-GRPO of AgentEvolver, 2511.10395).

    Steps are flagged good or bad by the environment or by `rollout.step_judge`; one without a flag counts as its
    episode ended, good where that was worth more than 0.5."""

    name: Literal["attributing"] = "attributing"
    alpha: NonNegativeFloat = 0.1
    """Weight of the flags; 0 is credit `group`. The authors advise 0.05 to 0.2."""
    distribution: Literal["last_step", "all_steps", "only_prm"] = "last_step"
    """Where the outcome is added: at the last step, at each step, or nowhere, and then flags have no `alpha`."""
    scheme: Literal["decouple", "allocation"] = "decouple"
    """What a step is worth before that is compared with the group's. decouple: more if good, less if bad. allocation:
    its part of the outcome's sign, of which steps whose flag agrees with the outcome get five times the others'."""
    pool: bool = False
    """Compare with the mean over all steps of the group (false: over episodes, each of which weighs the same)."""
    shorten: bool = False
    """Divide what each step of an episode of K is worth by the square root of K."""
    decay: DecaySettings | None = None
    """Have alpha fall (None: it stays)."""
    steps: PositiveInt | None = None
    """From this step of the run on it is credit `group` (None: never). The authors' code: 100."""

    @property
    def facts(self) -> CreditFacts:
        return CreditFacts(compares="episodes", within_episodes=True, reads_flags=True)

    def at(self, step: int) -> CreditSettings:
        if self.steps is not None and step >= self.steps:
            return GroupCredit(mask_truncated=self.mask_truncated, too_long=self.too_long)
        if self.decay is None:
            return self
        low, share = self.decay.to, min(1.0, step / self.decay.steps)
        return self.model_copy(update={"alpha": low + (self.alpha - low) / 2 * (1 + math.cos(math.pi * share))})

    @model_validator(mode="after")
    def _takes_effect(self):
        if self.distribution == "only_prm" and (self.decay is not None or self.alpha != 0.1):
            raise ValueError("credit.alpha and decay do nothing with credit.distribution: only_prm. Leave them out")
        if self.decay is not None and self.decay.to >= self.alpha:
            raise ValueError(
                f"credit.decay.to ({self.decay.to:g}) is no less than credit.alpha ({self.alpha:g}). Lower it"
            )
        return self


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
    AttributingCredit,
    ImprovementCredit,
    AnchorStateCredit,
)
if TYPE_CHECKING:
    Credit = (
        GroupCredit
        | TurnwiseCredit
        | RawCredit
        | ReflectionCredit
        | TrajectoryCredit
        | AttributingCredit
        | ImprovementCredit
        | AnchorStateCredit
        | OwnCredit
    )
else:
    Credit = one_of(*KNOWN, own=OwnCredit)


def comparing(offered: Collection[str]) -> str:
    """The known credits that compare something that is offered, or nothing where nothing is, for a person to choose
    from: "group or turnwise"."""
    return either([name_of(kind) for kind in KNOWN if kind().facts.compares in (offered or {""})])
