"""What every rollout's settings have: the facts that it states, and how test tasks are played. Light to import."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from actors.messages import Question, added
from protocols.settings import Settings
from protocols.turns import Role

Kind = Literal["answers", "actions"]
"""Each turn is a whole answer; or an episode is many actions."""
Compared = Literal["episodes", "turns", "retries"]
"""What a credit may compare within a group: whole episodes, turns of one number, or retries after one failed answer."""


KNOWN_ROLES = tuple(role.name.lower() for role in Role)
TEXTS = ("system", "reflect_prompt", "retry_prompt", "fixed_reflection", "verify_prompt", "revise_prompt")
"""Settings of some rollouts that are said to a model, or for it."""


@dataclass(frozen=True, slots=True)
class RolloutFacts:
    """What a rollout states of itself, by which a recipe is checked. Nothing outside actors/ knows which one runs."""

    writes: frozenset[Role] = frozenset()
    """Roles of the turns that it writes; empty where that is not known."""
    authored: str = ""
    """What of its turns the model did not sample on the ids that are trained, in words; "" where it sampled all."""
    offers: frozenset[Compared] = frozenset({"episodes", "turns"})
    """What of its groups a credit may compare."""
    starts_from_failures: bool = False
    """Whether an episode may begin from a failed answer that its task brings along (`data.failures`)."""
    hooks: tuple[str, ...] = ()
    """Methods that the environment must have."""
    acts: bool = False
    """Whether it acts by itself, so that an environment of one answer gives its tasks to episodes of many actions."""
    requests: bool = False
    """Whether a program of the user's asks for each answer, and may say how it is sampled."""
    own_roles: tuple[str, ...] = ()
    """Names of the program's own for turns, which learner.roles may weigh."""
    variety: str = "rollout.episodes"
    """The setting that gives a group more different answers."""


NOT_STATED = RolloutFacts(offers=frozenset({"episodes", "turns", "retries"}), starts_from_failures=True)
"""Of a rollout of the user's own that states nothing: whoever wrote it knows what it can do."""


class Rollout(Settings):
    """What every rollout has: its facts, and how test tasks are played."""

    system: str | None = Field(default=None, min_length=1)
    """The system prompt of every dialogue, in evaluations too; the chat template must have that role. A task whose
    messages begin with a system prompt of their own keeps that."""

    if TYPE_CHECKING:  # each kind has them, as settings or as constants

        @property
        def name(self) -> str: ...
        @property
        def kind(self) -> Kind: ...
        @property
        def turns(self) -> int: ...
        @property
        def episodes(self) -> int: ...

    @property
    def at_once(self) -> int | None:
        """How many episodes of one environment an actor can play at once (None: as many as there are)."""
        return None

    @property
    def facts(self) -> RolloutFacts:
        """What it states of itself, with these settings."""
        raise NotImplementedError

    @property
    def several(self) -> bool:
        """Whether the model is prompted again after it has answered."""
        return self.turns > 1 or getattr(self, "plan", None) is not None

    def tested(self, turns: int | None, episodes: int) -> Rollout:
        """How test tasks are played: with so many turns (None: as in training), each task so many times."""
        raise NotImplementedError

    def controls(self) -> dict[str, Rollout]:
        """Further ways to play test tasks that a result is to be compared with."""
        return {}

    def opening(self, question: Question) -> list[Question]:
        """What the model is told up to its first answer; it writes after each of these messages."""
        plan: PlanSettings | None = getattr(self, "plan", None)
        return [question] if plan is None else [added(question, plan.ask), plan.answer]

    def following(self, feedback: str) -> list[str]:
        """What the model is told after feedback, up to its next answer; it writes after each of these messages."""
        return [feedback]

    @property
    def texts(self) -> dict[str, str]:
        """What the settings say to a model or for it, by their key below `rollout`."""
        found = {key: getattr(self, key, None) for key in TEXTS}
        plan: PlanSettings | None = getattr(self, "plan", None)
        found |= {} if plan is None else {"plan.ask": plan.ask, "plan.answer": plan.answer}
        return {key: text for key, text in found.items() if text}


class PlanSettings(Settings):
    """A reflection before the first answer."""

    ask: str = ""
    """What the user's message adds to the question to ask for a plan."""
    answer: str = ""
    """The user's message that asks for the answer after the plan."""
