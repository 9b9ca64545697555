"""What an environment is: a gymnasium.Env that is told text and answers with text."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

import gymnasium

from actors import messages
from actors.config import DataSettings
from actors.messages import LONGEST_TEXT, Question
from protocols.errors import SettingError

if TYPE_CHECKING:
    from actors.tools import Answer, Tool


class Cut(str):
    """A response that ran into its longest length instead of ending: text like any other, and not a whole answer."""


class AnyText(gymnasium.spaces.Text):
    """Text of any characters: gymnasium's own space lists the allowed ones, and people's questions hold others."""

    def contains(self, x: Any) -> bool:
        return isinstance(x, str) and len(x) <= self.max_length


class TextEnvironment(gymnasium.Env, ABC):
    """One episode of one task at a time. A subclass gives `tasks`, `start` and `act`; a one-answer task is a OneAnswer.

    `reset(seed=, options={"task": task})` returns (observation, info). `step(text)` returns (observation, reward,
    terminated, truncated, info), where info holds `success` (bool) and `answer` (the answer in its canonical form, so
    that equal answers are equal strings, or None where nothing could be parsed; an environment that parses nothing
    leaves it out). Where an episode is many actions, it may also hold `refused` (bool): the action could not be done,
    which is what an error is to a search; and `score`: what the episode is worth so far, by which a search values it
    where that is not the reward of its last step. `parts` are the numbers, by name, that the reward is made of;
    `state` is a text for the state that it leads to, the same for the same state (credit `anchor_state`).
    What else it returns ends the episode (actors/door.py).
    `close()` is called when it is not needed any more, also after a failure.
    """

    feedbacks: ClassVar[tuple[str, ...]] = ("binary", "blank")
    """Values of `environment.feedback` that this environment knows."""
    reads: ClassVar[tuple[str, ...]] = ()
    """Keys of `data` that its tasks depend on, beside path, sizes and failures: "test", "config"."""
    many_actions: bool = True
    """An episode may need more than one step: False for a OneAnswer, which no search or `act` can play."""
    flags_steps: ClassVar[bool] = False
    """Whether the info of its steps says `good` (bool): whether the step was a good one, for credit attributing."""
    blocking: ClassVar[bool] = True
    """False: its calls take no time and may be made on the event loop; else they run in threads, with a time limit."""
    instances: ClassVar[int | None] = None
    """How many may be alive at once in one actor where `environment.instances` does not say (None: as many as play)."""

    def __init__(self, feedback: str = "binary"):
        if feedback not in self.feedbacks:
            known = ", ".join(self.feedbacks)
            raise SettingError("environment.feedback", f"{type(self).__name__} has no {feedback!r}", f"Use {known}")
        self.feedback = feedback
        self.observation_space = AnyText(LONGEST_TEXT, min_length=0)
        self.action_space = AnyText(LONGEST_TEXT, min_length=0)
        self._actions: list[str | tuple] = []

    @classmethod
    def at_once(cls, options: Mapping[str, Any]) -> int | None:
        """How many of its steps one actor may have under way, by its options; others wait, and their time does not run
        (None: `environment.threads`)."""
        return None

    @classmethod
    @abstractmethod
    def tasks(cls, data: DataSettings, split: str) -> Sequence[dict]:
        """The tasks of split "train" or "test": maps that msgpack can carry, each with a unique str `id`."""

    @classmethod
    def tasks_with(cls, options: Mapping[str, Any], data: DataSettings, split: str) -> Sequence[dict]:
        """The same, of an environment whose options say what its tasks are."""
        return cls.tasks(data, split)

    @abstractmethod
    def start(self, task: dict) -> Question:
        """Begins `task`, with `self.np_random` as the only source of chance; returns the first observation: a text, or
        chat messages that end with the user's."""

    @abstractmethod
    def act(self, text: str) -> tuple[str, float, bool, bool, dict]:
        """What `step` returns; may use `self.task`."""

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Question, dict]:
        if not options or "task" not in options:
            raise ValueError('reset needs options={"task": task}')
        if seed is None:  # drawn, so that a snapshot can replay the episode
            seed = int(self.np_random.integers(2**31))
        super().reset(seed=seed)
        self.task, self._seed, self._actions = options["task"], seed, []
        return self.start(self.task), {}

    def step(self, text: str) -> tuple[str, float, bool, bool, dict]:
        self._actions.append(text)
        return self.act(text)

    def tools(self) -> Sequence[Callable | dict]:
        """Tools that a model may call in rollouts `act` and `search`: typed methods with docstrings, or descriptions in
        OpenAI's form, whose calls `call` answers. Asked once, when the environment was made."""
        return ()

    def call(self, name: str, arguments: dict) -> Any:
        """What a tool answers of which `tools` gave a description: a text, or what JSON can say."""
        raise NotImplementedError(f"{type(self).__name__}.call")

    @cached_property
    def own_tools(self) -> dict[str, Tool]:
        """What `tools` offers, by name. Raises SettingError where one is none."""
        from actors.tools import toolbox

        return {tool.name: tool for tool in toolbox.own(self)}

    def use(self, name: str, arguments: dict) -> Answer:
        """What a tool of its own answers; noted as an action, so that `restore` does it again."""
        self._actions.append((name, arguments))
        return self.own_tools[name].run(arguments)

    def snapshot(self) -> Any:
        """The state of the episode, for `restore` in this or another environment of the same settings."""
        return {"task": self.task, "seed": self._seed, "actions": tuple(self._actions)}

    def restore(self, state: Any) -> None:
        """Back to a snapshot. This default replays the actions; override both where an environment can copy itself."""
        self.reset(seed=state["seed"], options={"task": state["task"]})
        for action in state["actions"]:
            if isinstance(action, str):
                self.step(action)
            else:
                self.use(*action)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one answer is worth; `answer` is its canonical form, None or "" where nothing could be parsed.

    Where any text is an answer, give the text: the share of answers from which nothing could be parsed is reported.
    """

    reward: float
    answer: str | None = None

    @property
    def success(self) -> bool:
        return self.reward >= 1


class OneAnswer(TextEnvironment):
    """A question that is answered in one step, right or wrong. A subclass gives `tasks`, `question` and `judge`.

    An episode never terminates by itself: the rollout says how many attempts there are and whether a success ends it.
    With feedback `blank` the same sentence follows every answer, so that nothing leaks (RISE, arXiv 2407.18219).
    """

    many_actions: bool = False
    right: ClassVar[str] = "Your answer is correct. Write the same answer again."
    """What follows a right answer. It asks for that answer again, since evaluation and rollouts may play on: told only
    that it was right, a chat model begins to chat, and has given up what was right."""
    wrong: ClassVar[str] = "Your answer is incorrect. Think again and try once more."

    @abstractmethod
    def question(self, task: dict) -> Question:
        """What the model is asked: a text, or chat messages that end with the user's."""

    @abstractmethod
    def judge(self, task: dict, text: str) -> Verdict:
        """The score of an answer."""

    def say(self, verdict: Verdict) -> str:
        """The observation after an answer."""
        if verdict.success and self.feedback != "blank":
            return self.right
        return f"{self.wrong}\n\n{messages.asked(self.question(self.task))}"

    def start(self, task: dict) -> Question:
        return self.question(task)

    def act(self, text: str) -> tuple[str, float, bool, bool, dict]:
        verdict = self.judge(self.task, text)
        return self.say(verdict), verdict.reward, False, False, {"success": verdict.success, "answer": verdict.answer}


class Hints(Protocol):
    """An environment that can tell the answer, so that a failed try can be repeated with it (STaR)."""

    def hint(self) -> str | None:
        """What is added to the observation after a wrong answer, so that the next one can be right; None where nothing
        leads there."""


@dataclass(frozen=True, slots=True)
class Played:
    """One episode as it was: what was done at each step, and what was said to it ("" after the last one)."""

    steps: tuple[tuple[str, str], ...]
    worth: float
    success: bool


@runtime_checkable
class Teaches(Protocol):
    """An environment that can say what episodes have shown, so that `redraft experience` needs no model for it."""

    def lesson(self, task: dict, played: Sequence[Played]) -> list[dict]:
        """What these episodes of one task have shown: maps of texts `when_to_use` (may be empty) and `content`."""
        ...


@runtime_checkable
class Questions(Protocol):
    """An environment that can find tasks of its own, for `redraft question`."""

    def explore(self, rng: Any) -> Sequence[tuple[str, str]]:
        """What somebody curious does in it, and what is said to that; `rng` is the only source of chance."""
        ...

    def propose(self, trajectory: Sequence[tuple[str, str]]) -> list[dict]:
        """Tasks that what was explored suggests: as `tasks` gives them but without an id, with `query` (the question),
        `reference` (actions that should solve it) and, if it knows, `confidence` from 0 to 1."""
        ...


@runtime_checkable
class Poses(Protocol):
    """An environment that can be asked for something else than its tasks ask for, and judges whether it was done, so
    that a model can find tasks for `redraft question`."""

    def posed(self, task: dict, query: str) -> dict | None:
        """The task that starts as `task` does and asks for `query`, without an id; None where it could not judge it, or
        it is one of its own test tasks."""
        ...


class Refers(Protocol):
    """An environment that knows a right answer to its tasks, so that `redraft doctor` can have it scored."""

    def reference(self, task: dict) -> str | None:
        """A right answer, as a model may write it; None where the task holds none."""


@runtime_checkable
class Revises(Protocol):
    """An environment with its own way to say that one was wrong; others get one of a list of sentences."""

    def revision(self, good: Sequence[str], rng: Any) -> str:
        """The text of a revision before the actions `good`, as the model would have written it."""
        ...


class Demonstrates(Protocol):
    """An environment that can show how its dialogues look, so that a model can be made for it."""

    def demonstrations(self, rng: Any, count: int, turns: int) -> list[list[tuple[str, bool]]]:
        """`count` dialogues of `turns` attempts, as (text, the model's own) pieces; own ones lack their end token."""
        ...
