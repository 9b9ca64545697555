"""What a recipe says about how episodes are played: one class a rollout, see actors/rollouts/. Light to import."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, PrivateAttr, field_validator, model_validator

from actors.action_config import ActSettings, RollbackSettings, SearchSettings
from actors.episode_config import ExperienceSettings, StepJudgeSettings
from actors.rollout_base import KNOWN_ROLES, NOT_STATED, Kind, PlanSettings, Rollout, RolloutFacts
from actors.teacher_config import TeacherSettings
from protocols.named import OwnStating, either, name_of, one_of
from protocols.turns import Role


class AttemptSettings(Rollout):
    """One answer."""

    name: Literal["attempt"] = "attempt"
    episodes: int = Field(default=1, ge=1)
    """Episodes in a group: plays of one task that are compared with each other."""
    plan: PlanSettings | None = None
    """Before the answer the model writes a plan, as a turn of role reflection."""
    experience: ExperienceSettings | None = None
    """Tell some episodes what earlier ones have shown."""

    kind: ClassVar[Kind] = "answers"
    turns: ClassVar[int] = 1

    @property
    def facts(self) -> RolloutFacts:
        return RolloutFacts(writes=frozenset({Role.ATTEMPT}) | _planned(self.plan))

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
    internalise: bool = False
    """Write the first right answer after wrong ones a second time, as if it had followed the question alone: a turn of
    role retry, worth its reward, that an objective which imitates learns (ERL, arXiv 2602.13949)."""
    step_judge: StepJudgeSettings | None = None
    """Who says at the end of an episode which of its answers were good, for credit attributing."""
    experience: ExperienceSettings | None = None
    """Tell some episodes what earlier ones have shown."""

    kind: ClassVar[Kind] = "answers"

    @property
    def facts(self) -> RolloutFacts:
        reflected = frozenset({Role.REFLECTION} if self.reflect else ())
        copied = frozenset({Role.RETRY} if self.internalise else ())
        authored = "what a teacher writes" if self.teacher is not None else ""
        return RolloutFacts(
            writes=frozenset({Role.ATTEMPT}) | reflected | copied | _planned(self.plan),
            authored=authored or ("answers on the question alone" if self.internalise else ""),
        )

    @model_validator(mode="after")
    def _fits(self):
        if self.fixed_reflection is not None and not self.reflect:
            raise ValueError("rollout.fixed_reflection only acts with rollout.reflect: true")
        if self.teacher is not None and self.best_of > 1:
            raise ValueError("rollout.best_of and rollout.teacher both make the last turn; give one of them")
        if self.step_judge is not None and self.best_of > 1:
            raise ValueError("rollout.step_judge: with rollout.best_of most last answers are not kept; leave one out")
        if self.experience is not None and (self.best_of > 1 or self.teacher is not None or self.context is not None):
            raise ValueError(
                "rollout.experience: its episodes are trained as one dialogue that the model wrote; leave out "
                "rollout.best_of, teacher and context, or experience"
            )
        held = self.experience is not None or self.step_judge is not None
        if self.internalise and (held or self.plan is not None):
            raise ValueError(
                "rollout.internalise: what is written on the question alone is no part of a dialogue that is judged, "
                "told experience or planned; leave out rollout.step_judge, experience and plan, or internalise"
            )
        return self

    def following(self, feedback: str) -> list[str]:
        return [feedback + self.reflect_prompt, self.retry_prompt] if self.reflect else [feedback]

    def tested(self, turns: int | None, episodes: int) -> Rollout:
        if turns == 1:
            return AttemptSettings(episodes=episodes, plan=self.plan, system=self.system)
        changes = {"stop_at_success": False, "best_of": 1, "teacher": None, "episodes": episodes}
        changes |= {"step_judge": None, "experience": None, "internalise": False}
        return self.model_copy(update=changes | ({"turns": turns} if turns else {}))


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

    @property
    def facts(self) -> RolloutFacts:
        return RolloutFacts(
            writes=frozenset({Role.ATTEMPT, Role.REFLECTION, Role.RETRY}),
            offers=frozenset({"turns", "retries"}),
            starts_from_failures=True,
        )

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


class VerifySettings(Rollout):
    """Answer, say whether that is right, and answer again only where it says wrong (PAG); no feedback is told."""

    name: Literal["verify"] = "verify"
    turns: int = Field(default=2, ge=2)
    """Most answers in an episode; the last one is not verified."""
    episodes: int = Field(default=1, ge=1)
    """Episodes in a group."""
    verify_prompt: str = 'Check your answer. End with "The answer is correct" or "The answer is wrong".'
    """The user's message that asks for a verification."""
    right: str = r"(?i)\banswer is correct\W*$"
    """A verification in which this regular expression is found says that the answer is right; any other, that it is
    wrong. Space around the verification is not looked at."""
    revise_prompt: str = "Answer again."
    """The user's message that asks for the next answer after a verification that said wrong."""

    kind: ClassVar[Kind] = "answers"

    @property
    def facts(self) -> RolloutFacts:
        return RolloutFacts(writes=frozenset({Role.ATTEMPT, Role.VERIFICATION}))

    @field_validator("right")
    @classmethod
    def _compiles(cls, right: str) -> str:
        try:
            re.compile(right)
        except re.error as error:
            raise ValueError(f"rollout.right is no regular expression: {error}. Correct it") from None
        if not right:
            raise ValueError("rollout.right: everything holds an empty text; ^$ stands for an empty verification")
        return right

    def tested(self, turns: int | None, episodes: int) -> Rollout:
        if turns == 1:
            return AttemptSettings(episodes=episodes, system=self.system)
        return self.model_copy(update={"episodes": episodes} | ({"turns": turns} if turns else {}))


class HintSettings(Rollout):
    """An answer; where it is wrong, one more that is told the right one, kept without the hint (STaR)."""

    name: Literal["hint"] = "hint"
    episodes: int = Field(default=1, ge=1)
    """Episodes in a group."""

    kind: ClassVar[Kind] = "answers"
    turns: ClassVar[int] = 1
    several: ClassVar[bool] = True

    @property
    def facts(self) -> RolloutFacts:
        writes = frozenset({Role.ATTEMPT, Role.RETRY})
        return RolloutFacts(writes=writes, authored="answers after a hint", hooks=("hint",))

    def tested(self, turns: int | None, episodes: int) -> Rollout:
        return AttemptSettings(system=self.system).tested(turns, episodes)


class AgentSettings(Rollout):
    """A program of your own that speaks to an OpenAI-compatible endpoint, behind which the model samples."""

    name: Literal["agent"] = "agent"
    run: str | tuple[str, ...]
    """FILE.py:Name of `async def solve(task, client)`, or a command as a list of words, in which {task.KEY} stands for
    a field of the task. A command has the endpoint in OPENAI_BASE_URL and OPENAI_API_KEY, the task in REDRAFT_TASK."""
    kind: Kind = "actions"
    """What its requests are: actions of which an episode needs many, or answers that are scored each."""
    turns: int = Field(default=100, ge=1)
    """Most answers or actions in an episode, which ends where the program asks for more. Requests of the model
    redraft/reflection do not count."""
    episodes: int = Field(default=1, ge=1)
    """Episodes in a group."""
    roles: tuple[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,31}$")], ...] = ()
    """Parts of the program, as planner and critic: a request of the model redraft/NAME makes a turn of that name, which
    learner.roles may weigh."""
    judge: Literal["program", "environment"] = "program"
    """Who gives the reward: the program, by what it returns, prints last or sends to /v1/reward; or the environment, by
    the text that the program returns or prints."""
    limit_s: float = Field(default=300.0, gt=0)
    """Longest time of an episode, below `actors.lease_s`; the program is then killed, with all that it started."""
    processes: int = Field(default=8, ge=1)
    """Most programs at once in an actor."""

    several: ClassVar[bool] = True

    @property
    def at_once(self) -> int:
        """As many as programs may run."""
        return self.processes

    @property
    def role(self) -> Role:
        """Of a turn whose request names none."""
        return Role.ACTION if self.kind == "actions" else Role.ATTEMPT

    @property
    def facts(self) -> RolloutFacts:
        return RolloutFacts(acts=True, requests=True, own_roles=self.roles)

    @model_validator(mode="after")
    def _runs(self):
        twice = [name for n, name in enumerate(self.roles) if name in (*self.roles[:n], *KNOWN_ROLES)]
        if twice:
            raise ValueError(f"rollout.roles: {twice[0]} is there already; leave it out")
        words = [self.run] if isinstance(self.run, str) else list(self.run)
        if not words or not words[0] or (isinstance(self.run, str) and ":" not in self.run):
            raise ValueError("rollout.run is FILE.py:Name of a function, or a command as a list of words")
        if self.system is not None:
            raise ValueError("rollout.system has no effect: the program says what the model is told")
        return self

    def tested(self, turns: int | None, episodes: int) -> Rollout:
        return self.model_copy(update={"episodes": episodes} | ({"turns": turns} if turns else {}))


class OwnRollout(OwnStating, Rollout):
    """A rollout of the user's own: `async def play(stage: actors.rollouts.Stage)`, or a class with such a static method
    `play` and with `facts`, a RolloutFacts, by which the recipe is checked as for a known one."""

    kind: Kind = "answers"
    """What its turns are: answers, or actions of which an episode needs many."""
    turns: int = Field(default=1, ge=1)
    """Turns in an episode."""
    episodes: int = Field(default=1, ge=1)
    """Episodes in a group."""
    _facts: RolloutFacts = PrivateAttr(default=NOT_STATED)

    @property
    def facts(self) -> RolloutFacts:
        return self._facts

    def tested(self, turns: int | None, episodes: int) -> Rollout:
        return self.model_copy(update={"episodes": episodes} | ({"turns": turns} if turns else {}))


def _planned(plan: PlanSettings | None) -> frozenset[Role]:
    return frozenset() if plan is None else frozenset({Role.REFLECTION})


KNOWN: tuple[type[Rollout], ...] = (
    AttemptSettings,
    RetrySettings,
    ActSettings,
    RollbackSettings,
    AgentSettings,
    ReflectSettings,
    VerifySettings,
    HintSettings,
    SearchSettings,
)
if TYPE_CHECKING:
    RolloutSettings = Rollout
else:
    RolloutSettings = one_of(*KNOWN, own=OwnRollout)


def names(fits: Callable[[Rollout], bool]) -> str:
    """The known rollouts that fit as they are without settings, for a person to choose from: "attempt, retry or
    act"."""
    whole = [kind for kind in KNOWN if not any(field.is_required() for field in kind.model_fields.values())]
    return either([name_of(kind) for kind in whole if fits(kind())])
