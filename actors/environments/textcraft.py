"""`textcraft`: craft a goal item by text commands, from raw items through intermediate ones (arXiv 2311.05772).

`data.path` names a folder with recipes in the Minecraft format and a list of goals with their crafting depth. The
prompt lists the commands that the goal needs among others that it does not. Actions are plain, or in ReAct form:

    Thought: I need planks, and planks are made of a log.
    Action: get 1 oak log                       raw items only            "Got 1 oak log."
    Action: craft 4 oak planks using 1 oak log  as listed                 "Crafted 4 oak planks."
    Action: inventory                                                     "You have 4 oak planks."
    Action: wait                                                          "ok."

What cannot be done is answered with "Could not ..." and changes nothing. A task is a map that holds all that an
episode needs: goal, commands [output, count, {name: count}], tags {name: items}, raw items, level (depth - 1).
"""

from __future__ import annotations

import re
from collections import Counter

from actors.config import DataSettings
from actors.environments.base import TextEnvironment
from actors.environments.files import held_out
from actors.environments.textcraft_actions import Action, parse
from actors.environments.textcraft_recipes import Recipe, read
from protocols.errors import SettingError

INSTRUCTIONS = """\
Craft the goal item. In each message you give one action, after a thought if you like:
Thought: <what you think>
Action: <one action>
The actions are:
get <count> <item> (raw items only, not what has to be crafted)
craft <count> <item> using <count> <item>, <count> <item> (one of the crafting commands)
inventory
wait"""


class Textcraft(TextEnvironment):
    """Reward 1 once the goal is in the inventory, which ends the episode.

    After `steps` actions without it the episode is over with reward 0: `terminated`, the limit is a rule of the game.
    """

    blocking = False
    feedbacks = ("binary",)

    def __init__(self, feedback: str = "binary", steps: int = 100):
        super().__init__(feedback)
        if not isinstance(steps, int) or steps < 1:
            raise SettingError("environment.options.steps", f"must be a whole number of at least 1, got {steps!r}")
        self._limit = steps

    @classmethod
    def tasks(cls, data: DataSettings, split: str) -> list[dict]:
        return read(data.path, split)

    def start(self, task: dict) -> str:
        self._held: Counter[str] = Counter()
        self._steps = 0
        commands = "\n".join(str(Recipe(*command)) for command in task["commands"])
        tags = "".join(f"\nThis counts as {tag}: {', '.join(i)}." for tag, i in task["tags"].items() if i)
        return f"{INSTRUCTIONS}\n\nCrafting commands:\n{commands}{tags}\n\nGoal: craft {task['goal']}."

    def act(self, text: str) -> tuple[str, float, bool, bool, dict]:
        self._steps += 1
        action = parse(text)
        said = self._do(action)
        success = self._held[self.task["goal"]] > 0
        refused = said.startswith("Could not")
        info = {"success": success, "answer": action and str(action), "refused": refused}
        return said, float(success), success or self._steps >= self._limit, False, info

    def _do(self, action: Action | None) -> str:
        if action is None:
            return "Could not understand: give one action, such as get, craft, inventory or wait."
        if action.kind == "wait":
            return "ok."
        if action.kind == "inventory":
            held = ", ".join(f"{count} {item}" for item, count in sorted(self._held.items()) if count)
            return f"You have {held or 'nothing'}."
        if action.kind == "craft":
            return self._craft(action)
        if action.item not in self.task["raw"]:
            return f"Could not get {action.item}: it is no raw item here."
        self._held[action.item] += action.count
        return f"Got {action.count} {action.item}."

    def _craft(self, action: Action) -> str:
        what = f"{action.count} {action.item}"
        outputs = [needs for *output, needs in self.task["commands"] if output == [action.item, action.count]]
        if not any(self._fits(action.using, needs) for needs in outputs):
            return f"Could not craft {what}: no listed command makes it in this way."
        if not action.using <= self._held:
            return f"Could not craft {what}: ingredients are missing."
        self._held -= action.using
        self._held[action.item] += action.count
        return f"Crafted {what}."

    def _fits(self, using: Counter[str], needs: dict[str, int]) -> bool:
        """Whether these are the ingredients that a command needs, with any items of a tag in its place."""
        tags = self.task["tags"]
        plain = Counter({name: count for name, count in needs.items() if name not in tags})
        left = using - plain
        in_tags = all(sum(left.pop(item, 0) for item in tags[tag]) == needs[tag] for tag in needs if tag in tags)
        return plain <= using and in_tags and not left

    def posed(self, task: dict, query: str) -> dict | None:
        """The same start with another goal: the one item that the query names of those that the commands make."""
        words = f" {' '.join(re.findall('[a-z]+', query.lower()))} "
        named = {output for output, *_ in task["commands"] if f" {output} " in words}
        goals = [item for item in named if not any(f" {item} " in f" {other} " for other in named - {item})]
        if len(goals) != 1 or held_out(goals[0]):
            return None
        return {key: value for key, value in task.items() if key not in ("id", "level")} | {"goal": goals[0]}

    def snapshot(self) -> dict:
        return {"task": self.task, "held": dict(self._held), "steps": self._steps}

    def restore(self, state: dict) -> None:
        self.task, self._held, self._steps = state["task"], Counter(state["held"]), state["steps"]
