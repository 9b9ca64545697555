"""What a recipe says of rollouts whose episodes are many actions: one class a rollout, as in rollout_config.py."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from actors.episode_config import ExperienceSettings, StepJudgeSettings, Template
from actors.rollout_base import Kind, Rollout, RolloutFacts
from protocols.turns import Role

HISTORY = "{history}"


class ActSettings(Rollout):
    """Actions in an environment until it ends the episode."""

    name: Literal["act"] = "act"
    turns: int = Field(default=100, ge=1)
    """Most actions in an episode."""
    episodes: int = Field(default=1, ge=1)
    """Episodes in a group."""
    step_judge: StepJudgeSettings | None = None
    """Who says at the end of an episode which of its actions were good, for credit attributing (None: nobody, unless
    the environment flags them)."""
    experience: ExperienceSettings | None = None
    """Tell some episodes what earlier ones have shown."""

    kind: ClassVar[Kind] = "actions"

    @property
    def facts(self) -> RolloutFacts:
        return RolloutFacts(writes=frozenset({Role.ACTION}))

    def tested(self, turns: int | None, episodes: int) -> Rollout:
        return ActSettings(turns=turns or self.turns, episodes=episodes, system=self.system)


class SearchSettings(Rollout):
    """A tree search, then corrected trajectories spliced from its good and bad branches (Agent-R)."""

    name: Literal["search"] = "search"
    turns: int = Field(default=10, ge=1)
    """Depth of the tree: most actions in an episode."""
    simulations: int = Field(default=4, ge=1)
    """Descents from the root to an end."""
    expansions: int = Field(default=4, ge=1)
    """Actions sampled at a node; equal ones become one child."""
    exploration: float = Field(default=0.25, ge=0)
    """c of UCT: Q/n + c sqrt(ln N / n)."""
    alpha: float | dict[int, float] = 0.0
    """A good branch is worth more than this. Or {step: alpha, ...}: rising from those training steps on."""
    beta: float = Field(default=0.0, ge=0)
    """A good branch is worth more than a bad one by more than this."""
    pairs: int = Field(default=2, ge=0)
    """Most corrected trajectories of one tree; 0 = good branches only."""
    cut: Literal["first_error", "end"] = "first_error"
    """Where a bad branch is left: after its first error, or at its end (Direct-Revision)."""
    judge: Literal["environment", "actor"] = "environment"
    """Who finds the first error: the environment (an action that it refused), or the model itself."""
    judge_tokens: int = Field(default=256, ge=1)
    """Longest judgement of one action."""
    splice: Literal["replayed", "verbatim"] = "replayed"
    """After the revision: play the good actions anew and keep what still succeeds, or copy them with what followed."""
    demonstrations: int = Field(default=0, ge=0)
    """Demonstrations of the environment added to each tree that has something to train."""

    kind: ClassVar[Kind] = "actions"
    episodes: ClassVar[int] = 1
    several: ClassVar[bool] = True

    @property
    def facts(self) -> RolloutFacts:
        return RolloutFacts(
            writes=frozenset({Role.ACTION, Role.REVISION}),
            hooks=("demonstrations",) if self.demonstrations else (),
            variety="rollout.simulations or expansions",
        )

    @model_validator(mode="after")
    def _fits(self):
        alphas = self.alpha.values() if isinstance(self.alpha, dict) else [self.alpha]
        if not alphas or min(alphas) < 0:
            raise ValueError("rollout.alpha must be 0 or more, or {step: alpha, ...} with at least one step")
        if self.cut == "end" and self.splice == "replayed":
            raise ValueError("rollout.splice: nothing can be replayed after the end; use verbatim with cut: end")
        return self

    def alpha_at(self, step: int) -> float:
        """alpha for a tree that is searched with the weights of training step `step`."""
        if not isinstance(self.alpha, dict):
            return self.alpha
        return self.alpha[max((start for start in self.alpha if start <= step), default=min(self.alpha))]

    def tested(self, turns: int | None, episodes: int) -> Rollout:
        return ActSettings(turns=turns or self.turns, episodes=episodes, system=self.system)


class RollbackSettings(Rollout):
    """Episodes of actions; where one fails, back to the action that went wrong, and on from there with what the failure
    has shown. What then ends well is kept as if that had not been told (LEAFE, arXiv 2603.16843)."""

    name: Literal["rollback"] = "rollback"
    turns: int = Field(default=100, ge=1)
    """Most actions in an episode."""
    episodes: int = Field(default=1, ge=1)
    """Episodes in a group, each played once without being told anything."""
    branches: int = Field(default=4, ge=1)
    """Ways on that are tried from where a failed episode was rolled back to."""
    alpha: float = Field(default=0.0, ge=0)
    """An episode that is worth no more than this has failed; a way on that is worth more is kept."""
    judge: Literal["actor", "environment"] = "actor"
    """Who reflects on a failed episode: the model itself, which names the action that went wrong and what to do
    instead; or the environment, by the first action that it refused and its `lesson`."""
    reflect_prompt: str = Field(
        default="A task, and what was done for it, action by action:\n{history}\n\nIt failed. Which action went wrong "
        "first, and what is to be done instead? Begin with its number, as in: Action 2. Then give your advice.",
        min_length=1,
    )
    """What the model is asked about a failed episode; the task and the numbered actions take the place of
    {history}."""
    reflect_tokens: int = Field(default=256, ge=1)
    """Longest reflection."""
    back_to: Literal["before", "after"] = "before"
    """Go on from before the action that went wrong, so that another one is learned; or from after it, so that it is
    learned how to make good what has happened."""
    template: Template = "What an earlier try has shown:\n{experience}\n\n"
    """What stands before the question of a way on; what the reflection says takes the place of {experience}."""

    kind: ClassVar[Kind] = "actions"

    @property
    def facts(self) -> RolloutFacts:
        return RolloutFacts(
            writes=frozenset({Role.ACTION, Role.REVISION}),
            authored="corrections of failed episodes",
            offers=frozenset(),
            hooks=("lesson",) if self.judge == "environment" else (),
            variety="rollout.episodes or branches",
        )

    @field_validator("reflect_prompt")
    @classmethod
    def _shows_it(cls, prompt: str) -> str:
        if prompt.count(HISTORY) != 1:
            raise ValueError(f"rollout.reflect_prompt must hold {HISTORY} once")
        return prompt

    @model_validator(mode="after")
    def _asks_the_model(self):
        for key in ("reflect_prompt", "reflect_tokens"):
            if self.judge != "actor" and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"rollout.{key} only acts with rollout.judge: actor. Remove it or set that")
        return self

    def tested(self, turns: int | None, episodes: int) -> Rollout:
        return ActSettings(turns=turns or self.turns, episodes=episodes, system=self.system)
