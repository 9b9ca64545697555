"""`scienceworld`: experiments of primary-school science in a simulated house (arXiv 2203.07540).

The simulator is the extra `scienceworld`, which runs in Java (scienceworld_jvm.py). The prompt lists the actions, then
the task and the room. Actions are plain, or in ReAct form:

    Thought: The water is in the kitchen.
    Action: open door to kitchen               "The door is now open."
    Action: pick up it                         "Ambiguous request: ...", to which the next action is a number
    Action: dance                              "No known action matches that input."

`data.path` says which of the 30 tasks are played: none named is all, `agentgym` the 23 of AgentGym, or their names. The
splits are the official ones. A task is a map of its name and a variation.
"""

from __future__ import annotations

import re
from typing import Any

from actors.config import DataSettings
from actors.environments import react, scienceworld_jvm, scienceworld_tasks
from actors.environments.base import TextEnvironment
from protocols.errors import SettingError

SIMPLIFICATIONS = (
    "easy",
    "teleportAction",
    "openDoors",
    "openContainers",
    "selfWateringFlowerPots",
    "noElectricalAction",
)
REFUSALS = ("No known action matches that input.", "Unknown action", "Ambiguous request")
"""How the simulator begins where it did not do what was asked."""
FULL = 100  # the score of a task that is done
INSTRUCTIONS = f"""\
You are in a house with a garden, and do the task that follows step by step. {react.FORM}
The actions are, with names of things in place of OBJ:
look around, look at OBJ, look in OBJ, read OBJ
inventory, task (says again what the task is)
go to OBJ (a room; its door has to be open), open OBJ, close OBJ
pick up OBJ, put down OBJ, move OBJ to OBJ
activate OBJ, deactivate OBJ, use OBJ, use OBJ on OBJ
connect OBJ to OBJ, disconnect OBJ
pour OBJ into OBJ, dunk OBJ into OBJ, mix OBJ
eat OBJ, flush OBJ
focus on OBJ (says that it is the thing which the task is about: a wrong one ends the task)
wait (ten moments), wait1 (one moment)
a number, where one is asked for"""


class ScienceWorld(TextEnvironment):
    """Reward at the end only: the final score from 0 to 1, 0 where a wrong focus made it negative; 1 is a success.

    It ends when the task is done or failed, or after `steps` actions: `terminated`, the limit is a rule of the game.
    `info["score"]` is the score so far. With `nearest`, what is no valid action is replaced by the valid one that has
    most words in common with it, as Agent-R plays (arXiv 2501.11425): scores with and without are not comparable.
    """

    feedbacks = ("binary",)
    instances = scienceworld_jvm.SESSIONS

    def __init__(
        self, feedback: str = "binary", steps: int = 100, simplifications: str = "", nearest: bool = False
    ) -> None:
        super().__init__(feedback)
        if not isinstance(steps, int) or steps < 1:
            raise SettingError("environment.options.steps", f"must be a whole number of at least 1, got {steps!r}")
        wanted = [name.strip() for name in str(simplifications).split(",") if name.strip()]
        if unknown := [name for name in wanted if name not in SIMPLIFICATIONS]:
            problem = f"there is no simplification {unknown[0]!r}"
            raise SettingError("environment.options.simplifications", problem, f"Use {', '.join(SIMPLIFICATIONS)}")
        self._limit, self._nearest, self._simplifications = steps, nearest, ",".join(wanted)
        self._session: scienceworld_jvm.Session | None = None

    @classmethod
    def tasks(cls, data: DataSettings, split: str) -> list[dict]:
        scienceworld_jvm.check()
        return scienceworld_tasks.read(data.path, split)

    def start(self, task: dict) -> str:
        if self._session is None or not self._session.alive:
            self.close()
            self._session = scienceworld_jvm.session(self._simplifications)
        self._steps = 0
        self._ask("load", task["task"], task["variation"], self._simplifications, False)
        return f"{INSTRUCTIONS}\n\n{self._ask('getTaskDescription')}\n\n{self._ask('step', 'look around')}"

    def act(self, text: str) -> tuple[str, float, bool, bool, dict]:
        self._steps += 1
        action = react.action(text)
        if self._nearest:
            action = nearest(action, self._ask("getValidActionObjectCombinations"), self._in_sight())
        said = self._ask("step", action)
        score = round(FULL * self._ask("getScore"))
        worth, success = max(0, score) / FULL, score >= FULL
        over = score < 0 or self._ask("getCompleted") or self._steps >= self._limit
        info = {"success": success, "answer": action, "refused": said.startswith(REFUSALS), "score": worth}
        return said, worth if over else 0.0, over, False, info

    def close(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None

    def _in_sight(self) -> str:
        return f"{self._ask('freeActionLook')}\n{self._ask('freeActionInventory')}".lower()

    def _ask(self, name: str, *arguments: Any) -> Any:
        if self._session is None:
            raise RuntimeError("this ScienceWorld is closed")
        said = self._session.ask(name, *arguments)
        if isinstance(said, str) and said.startswith("ERROR:"):  # a bad argument does not raise
            raise ValueError(f"ScienceWorld answered {said!r} to {name}{arguments}")
        return said


def nearest(action: str, valid: list[str], in_sight: str) -> str:
    """The action where it is valid, else the valid one with most words in common, the shortest of several; itself where
    none has any. Of doors only to open them, and of what is not in sight no focus, are offered in its place."""
    offered = [each for each in valid if _offered(each, in_sight)]
    words = _words(action)
    best = min(offered, key=lambda each: (-len(words & _words(each)), len(each), each), default=action)
    return action if action in offered or not words & _words(best) else best


def _offered(action: str, in_sight: str) -> bool:
    if action.startswith("reset"):  # throws away what was reached
        return False
    if action.startswith("focus on "):
        return action.removeprefix("focus on ").lower() in in_sight
    return "door" not in action.split() or action.startswith("open ")


def _words(text: str) -> set[str]:
    return set(re.sub(r"[^\w\s]", " ", text.lower()).split())
