"""`trl`: a class as TRL's GRPOTrainer takes for `environment_factory`, as it is: its methods are tools.

    environment: {name: trl, options: {factory: "mine.py:Wordle", reward: "mine.py:score"}}
    data: {path: train.jsonl}                              rows, with a column `prompt`

TRL itself is not needed. The class is made without arguments; `reset(**row)` begins an episode and may return what
follows the prompt. A model calls its public methods, which need types and a docstring, in rollouts `act` and `search`;
the first message without a call ends the episode.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from actors import door, messages
from actors.config import DataSettings
from actors.environments import rows_data
from actors.environments.base import TextEnvironment
from actors.environments.rows_columns import Columns, of_split
from actors.messages import Question
from protocols import named
from protocols.errors import SettingError

OPTIONS = "environment.options"
NO_TOOLS = ("reset", "get_reward")


class TRL(TextEnvironment):
    """`factory`: FILE.py:Class. `reward`: FILE.py:function as TRL calls it, with lists of one:
    `score(prompts, completions, environments, **columns)`; a completion is its last message. Without it the class has
    `get_reward()`. A reward of 1 or more is a success.
    `prompt`, `system` and `id` are those of environment `rows`, from which the tasks come.
    """

    feedbacks = ("binary",)
    reads = ("test", "config")
    many_actions = False

    def __init__(
        self,
        feedback: str = "binary",
        factory: str = "",
        reward: str | None = None,
        prompt: str = "prompt",
        system: str | None = None,
        id: str | None = None,
    ):
        super().__init__(feedback)
        Columns(prompt=prompt, system=system, id=id)
        made = named.load(f"{OPTIONS}.factory", factory, {})
        try:
            self._inner = made()
        except Exception as error:
            problem = f"{factory} cannot be made: {type(error).__name__}: {error}"
            raise SettingError(f"{OPTIONS}.factory", problem, "It is called without arguments") from None
        if not callable(getattr(self._inner, "reset", None)):
            raise SettingError(f"{OPTIONS}.factory", f"{factory} has no reset", "Write `def reset(self, **row)`")
        self._factory, self._reward = factory, reward
        self._score: Callable | None = named.function(f"{OPTIONS}.reward", reward, {}, "score") if reward else None
        if self._score is None and not callable(getattr(self._inner, "get_reward", None)):
            cure = "Name FILE.py:function, or write `def get_reward(self)`"
            raise SettingError(f"{OPTIONS}.reward", f"{factory} says no reward itself", cure)

    @classmethod
    def tasks(cls, data: DataSettings, split: str) -> list[dict]:
        return cls.tasks_with({}, data, split)

    @classmethod
    def tasks_with(cls, options: Mapping[str, Any], data: DataSettings, split: str) -> list[dict]:
        columns = Columns(**{key: options[key] for key in ("prompt", "system", "id") if key in options})
        placed, undivided = rows_data.read(data, split)
        tasks = columns.tasks(placed)
        return of_split(tasks, split) if undivided else tasks

    def tools(self) -> Sequence[Callable]:
        found = inspect.getmembers(self._inner, inspect.ismethod)
        return [method for name, method in found if not name.startswith("_") and name not in NO_TOOLS]

    def start(self, task: dict) -> Question:
        said = self._inner.reset(**task["row"])
        if said is not None and not isinstance(said, str):
            raise TypeError(f"{self._factory}.reset returned {type(said).__name__}, neither a text nor None")
        return messages.added(task["question"], said or "")

    def act(self, text: str) -> tuple[str, float, bool, bool, dict]:
        if self._score is None:
            source, found = f"{self._factory}.get_reward", self._inner.get_reward()
        else:
            columns = {name: [value] for name, value in self.task["row"].items()}
            given = {
                "prompts": [self.task["question"]],
                "completions": [[messages.message("assistant", text)]],
                "environments": [self._inner],
            }
            source, found = str(self._reward), self._score(**(columns | given))
            if not isinstance(found, Sequence) or isinstance(found, str) or len(found) != 1:
                raise TypeError(f"{source} returned {found!r}, no list of one reward")
            found = found[0]
        judged = door.judged(source, found)
        return "", judged.reward, True, False, {"success": judged.success, "parts": judged.parts}
