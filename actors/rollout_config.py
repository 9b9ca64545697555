"""What a recipe says about how episodes are played: one class a rollout, see actors/rollouts/. Light to import."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator

from actors.teacher_config import TeacherSettings
from protocols.named import OwnSettings, either, name_of, one_of
from protocols.settings import Settings
from protocols.turns import Role

Kind = Literal["answers", "actions"]
"""Each turn is a whole answer; or an episode is many actions."""
Compared = Literal["episodes", "turns", "retries"]
"""What a credit may compare within a group: whole episodes, turns of one number, or retries after one failed answer."""


class Rollout(Settings):
    """What every rollout says of itself: how it is evaluated, what it asks of an environment, and the facts by which a
    recipe is checked. Nothing outside actors/ knows which one runs."""

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

    hooks: ClassVar[tuple[str, ...]] = ()
    """Methods that the environment must have."""
    offers: ClassVar[frozenset[Compared]] = frozenset({"episodes", "turns"})
    """What of its groups a credit may compare."""
    starts_from_failures: ClassVar[bool] = False
    """Whether an episode may begin from a failed answer that its task brings along (`data.failures`)."""
    variety: ClassVar[str] = "rollout.episodes"
    """The setting that gives a group more different answers."""

    @property
    def writes(self) -> frozenset[Role]:
        """Roles of the turns that it writes; empty where that is not known."""
        return frozenset()

    @property
    def authored(self) -> str:
        """What of its turns the model did not sample on the ids that are trained, in words; "" where it sampled all."""
        return ""

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


class PlanSettings(Settings):
    """A reflection before the first answer."""

    ask: str = ""
    """What the user's message adds to the question to ask for a plan."""
    answer: str = ""
    """The user's message that asks for the answer after the plan."""


class AttemptSettings(Rollout):
    """One answer."""

    name: Literal["attempt"] = "attempt"
    episodes: int = Field(default=1, ge=1)
    """Episodes in a group: plays of one task that are compared with each other."""
    plan: PlanSettings | None = None
    """Before the answer the model writes a plan, as a turn of role reflection."""

    kind: ClassVar[Kind] = "answers"
    turns: ClassVar[int] = 1

    @property
    def writes(self) -> frozenset[Role]:
        return frozenset({Role.ATTEMPT}) | _planned(self.plan)

    def tested(self, turns: int | None, episodes: int) -> Rollout:
        if turns is not None and turns > 1:
            return RetrySettings(turns=turns, episodes=episodes, plan=self.plan, system=self.system)
        return AttemptSettings(episodes=episodes, plan=self.plan, system=self.system)


class RetrySettings(Rollout):
    """Answer, hear what the environment says, answer again."""

    name: Literal["retry"] = "retry"
    turns: int = Field(default=2, ge=2)
    """Answers in an episode."""
    episodes: int = Field(default=1, ge=1)
    """Episodes in a group."""
    plan: PlanSettings | None = None
    """Before the first answer the model writes a plan, as a turn of role reflection."""
    reflect: bool = False
    """Between feedback and retry the model writes a reflection, as a turn of its own."""
    reflect_prompt: str = ""
    """What the user's message adds to the feedback to ask for a reflection."""
    retry_prompt: str = ""
    """The user's message that asks for the retry after a reflection."""
    fixed_reflection: str | None = None
    """Stands in place of the model's reflections: a control."""
    context: int | None = Field(default=None, ge=1)
    """An answer sees the question and only so many of the last answers with what followed them (None = all)."""
    stop_at_success: bool = False
    """End an episode at its first right answer. Evaluation never does."""
    stop_at_repeat: bool = False
    """End an episode when an answer is the same wrong one as before (Reflexion)."""
    best_of: int = Field(default=1, ge=1)
    """Of so many samples of the last turn the best one is kept, the first of equals (RISE: 16)."""
    teacher: TeacherSettings | None = None
    """A model behind an endpoint that writes the last turn (RISE by distillation). It sees the whole dialogue."""

    kind: ClassVar[Kind] = "answers"

    @property
    def writes(self) -> frozenset[Role]:
        return frozenset({Role.ATTEMPT} | ({Role.REFLECTION} if self.reflect else set())) | _planned(self.plan)

    @property
    def authored(self) -> str:
        return "what a teacher writes" if self.teacher is not None else ""

    @model_validator(mode="after")
    def _fits(self):
        if self.fixed_reflection is not None and not self.reflect:
            raise ValueError("rollout.fixed_reflection only acts with rollout.reflect: true")
        if self.teacher is not None and self.best_of > 1:
            raise ValueError("rollout.best_of and rollout.teacher both make the last turn; give one of them")
        return self

    def tested(self, turns: int | None, episodes: int) -> Rollout:
        if turns == 1:
            return AttemptSettings(episodes=episodes, plan=self.plan, system=self.system)
        changes = {"stop_at_success": False, "best_of": 1, "teacher": None, "episodes": episodes}
        return self.model_copy(update=changes | ({"turns": turns} if turns else {}))


class ActSettings(Rollout):
    """Actions in an environment until it ends the episode."""

    name: Literal["act"] = "act"
    turns: int = Field(default=100, ge=1)
    """Most actions in an episode."""
    episodes: int = Field(default=1, ge=1)
    """Episodes in a group."""

    kind: ClassVar[Kind] = "actions"

    @property
    def writes(self) -> frozenset[Role]:
        return frozenset({Role.ACTION})

    def tested(self, turns: int | None, episodes: int) -> Rollout:
        return ActSettings(turns=turns or self.turns, episodes=episodes, system=self.system)


class ReflectSettings(Rollout):
    """A failed answer, then several reflections on it, each with a retry (Reflect, Retry, Reward)."""

    name: Literal["reflect"] = "reflect"
    episodes: int = Field(default=8, ge=2)
    """Reflections on one failure: they are compared with each other."""
    plan: PlanSettings | None = None
    """Before the first answer the model writes a plan, as a turn of role reflection. Only the reflections on the answer
    are compared, so a plan is not trained; it gains where planning and reflecting are alike."""
    tries: int = Field(default=1, ge=1)
    """Answers that are sampled until one is wrong. A task that brings its failed answer needs none."""
    solved: bool = False
    """Also reflect on a right answer, where no wrong one came, so that right answers go on being kept."""
    reflect_prompt: str = ""
    """What the user's message adds to the feedback to ask for a reflection."""
    retry_prompt: str = ""
    """The user's message that asks for the retry."""
    fixed_reflection: str = "I made a mistake. I will go over each step again and correct it."
    """The control: evaluation also plays with this reflection in place of the model's."""

    kind: ClassVar[Kind] = "answers"
    turns: ClassVar[int] = 2
    offers: ClassVar[frozenset[Compared]] = frozenset({"turns", "retries"})
    starts_from_failures: ClassVar[bool] = True

    @property
    def writes(self) -> frozenset[Role]:
        return frozenset({Role.ATTEMPT, Role.REFLECTION, Role.RETRY})

    def tested(self, turns: int | None, episodes: int) -> Rollout:
        if turns == 1:
            return AttemptSettings(episodes=episodes, plan=self.plan, system=self.system)
        return self._retry(turns or 2, episodes, reflect=True)

    def controls(self) -> dict[str, Rollout]:
        return {
            "no reflection": RetrySettings(turns=2, plan=self.plan, system=self.system),
            "fixed reflection": self._retry(2, 1, reflect=True, fixed_reflection=self.fixed_reflection),
        }

    def _retry(self, turns: int, episodes: int, **changes) -> RetrySettings:
        prompts = {"reflect_prompt": self.reflect_prompt, "retry_prompt": self.retry_prompt}
        return RetrySettings(turns=turns, episodes=episodes, plan=self.plan, system=self.system, **prompts, **changes)


class HintSettings(Rollout):
    """An answer; where it is wrong, one more that is told the right one, kept without the hint (STaR)."""

    name: Literal["hint"] = "hint"
    episodes: int = Field(default=1, ge=1)
    """Episodes in a group."""

    kind: ClassVar[Kind] = "answers"
    turns: ClassVar[int] = 1
    several: ClassVar[bool] = True
    hooks: ClassVar[tuple[str, ...]] = ("hint",)

    @property
    def writes(self) -> frozenset[Role]:
        return frozenset({Role.ATTEMPT, Role.RETRY})

    @property
    def authored(self) -> str:
        return "answers after a hint"

    def tested(self, turns: int | None, episodes: int) -> Rollout:
        return AttemptSettings(system=self.system).tested(turns, episodes)


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
    variety: ClassVar[str] = "rollout.simulations or expansions"

    @property
    def writes(self) -> frozenset[Role]:
        return frozenset({Role.ACTION, Role.REVISION})

    @model_validator(mode="after")
    def _fits(self):
        alphas = self.alpha.values() if isinstance(self.alpha, dict) else [self.alpha]
        if not alphas or min(alphas) < 0:
            raise ValueError("rollout.alpha must be 0 or more, or {step: alpha, ...} with at least one step")
        if self.cut == "end" and self.splice == "replayed":
            raise ValueError("rollout.splice: nothing can be replayed after the end; use verbatim with cut: end")
        return self

    @property
    def hooks(self) -> tuple[str, ...]:
        return ("demonstrations",) if self.demonstrations else ()

    def alpha_at(self, step: int) -> float:
        """alpha for a tree that is searched with the weights of training step `step`."""
        if not isinstance(self.alpha, dict):
            return self.alpha
        return self.alpha[max((start for start in self.alpha if start <= step), default=min(self.alpha))]

    def tested(self, turns: int | None, episodes: int) -> Rollout:
        return ActSettings(turns=turns or self.turns, episodes=episodes, system=self.system)


class OwnRollout(OwnSettings, Rollout):
    """A rollout of the user's own: `async def play(stage: actors.rollouts.Stage)`."""

    kind: Kind = "answers"
    """What its turns are: answers, or actions of which an episode needs many."""
    turns: int = Field(default=1, ge=1)
    """Turns in an episode."""
    episodes: int = Field(default=1, ge=1)
    """Episodes in a group."""

    offers: ClassVar[frozenset[Compared]] = frozenset({"episodes", "turns", "retries"})  # who wrote it knows
    starts_from_failures: ClassVar[bool] = True

    def tested(self, turns: int | None, episodes: int) -> Rollout:
        return self.model_copy(update={"episodes": episodes} | ({"turns": turns} if turns else {}))


def _planned(plan: PlanSettings | None) -> frozenset[Role]:
    return frozenset() if plan is None else frozenset({Role.REFLECTION})


KNOWN: tuple[type[Rollout], ...] = (
    AttemptSettings,
    RetrySettings,
    ActSettings,
    ReflectSettings,
    HintSettings,
    SearchSettings,
)
RolloutSettings = one_of(*KNOWN, own=OwnRollout)


def names(fits: Callable[[type[Rollout]], bool]) -> str:
    """The known rollouts that fit, for a person to choose from: "attempt, retry or act"."""
    return either([name_of(kind) for kind in KNOWN if fits(kind)])
