"""`minicraft`: a crafting game in miniature, where an error shows itself before the end and can be made good.

    abdfh;1dhc;2fab>    five base items and two recipes; one of the two needs something that cannot be had (c)
    @1                  thought: names a recipe, always answered "."
    +d                  takes a base item
    *1                  crafts a recipe whose three ingredients were taken

The answer is "." for done and "!" for could not: no base item, missing ingredients, malformed. Each message is one
step, thoughts too, and there are 8: enough to see the bad recipe fail and still craft the other one, mostly. Train and
test have no set of base items in common. Option `read`: how often demonstrations begin with experience.
Each step is flagged (`good` in its info): whether it takes an ingredient of the good recipe that is still missing, or
crafts that recipe.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from actors.config import DataSettings
from actors.environments.base import Played, TextEnvironment
from actors.environments.minicraft_tasks import ITEMS, SIZES, generate, hindsight, made, question

STEPS = 8
STRAYS = 0.5  # of those that read the good recipe: how many begin with the other one
THOUGHT_FIRST = 0.4  # demonstrations: how often they begin with the thought
DONE, REFUSED = ".\n", "!\n"


class Minicraft(TextEnvironment):
    """Reward 1 for a craft, which ends the episode. After 8 steps without one it is over, too, with reward 0.

    That end is `terminated`, not `truncated`: the steps that are left decide what is still possible, so they are part
    of the game, and its value at the end is 0 rather than unknown.
    """

    blocking = False
    feedbacks = ("binary",)
    flags_steps = True

    def __init__(self, feedback: str = "binary", read: float = 0.0):
        super().__init__(feedback)
        self._read = read

    @classmethod
    def tasks(cls, data: DataSettings, split: str) -> tuple[dict, ...]:
        return made(split, (data.train_size if split == "train" else data.test_size) or SIZES[split])

    def start(self, task: dict) -> str:
        self._taken, self._steps = "", 0
        return question(task)

    def act(self, text: str) -> tuple[str, float, bool, bool, dict]:
        action = text.removesuffix("\n")
        self._steps += 1
        good = self._good(action)
        form = re.fullmatch(r"\+[a-z]|[*@][12]", action)
        done = form is not None and self._do(*action)
        success = done and action[0] == "*"
        info = {"success": success, "answer": action if form else None, "refused": not done, "good": good}
        info["state"] = f"{''.join(sorted(self._taken))} after {self._steps}"
        return DONE if done else REFUSED, float(success), success or self._steps >= STEPS, False, info

    def _do(self, kind: str, what: str) -> bool:
        if kind == "@":
            return True
        if kind == "*":
            return set(self.task["recipes"][int(what) - 1]) <= set(self._taken)
        if what not in self.task["base"]:
            return False
        self._taken += what
        return True

    def _good(self, action: str) -> bool:
        """Whether it takes what the good recipe still lacks, or crafts that."""
        good = self.task["good"]
        lacking = set(self.task["recipes"][good]) - set(self._taken)
        return action[:1] == "+" and action[1:] in lacking or action == f"*{good + 1}" and not lacking

    def snapshot(self) -> dict:
        return {"task": self.task, "taken": self._taken, "steps": self._steps}

    def restore(self, state: dict) -> None:
        self.task, self._taken, self._steps = state["task"], state["taken"], state["steps"]

    def revision(self, good: Sequence[str], rng: Any) -> str:
        """The thought that names the recipe which the actions `good` craft. Raises ValueError without a craft."""
        crafts = [action for action in good if action.startswith("*")]
        if not crafts:
            raise ValueError("these actions craft nothing")
        return f"@{crafts[-1][1]}"

    def lesson(self, task: dict, played: Sequence[Played]) -> list[dict]:
        """The thought that names the recipe to follow: one that was crafted, else the other one of a recipe whose
        ingredient was refused; nothing where no episode shows it."""
        crafted = [action for one in played if one.success for action, _ in one.steps[-1:]]
        refused = {action[1:] for one in played for action, said in one.steps if said.startswith(REFUSED[0])}
        failed = [n for n, recipe in enumerate(task["recipes"]) if refused & set(recipe)]
        if crafted:
            good = crafted[0][1:2]
        elif len(failed) == 1:
            good = str(2 - failed[0])
        else:
            return []
        return [{"when_to_use": "", "content": f"@{good}"}]

    def explore(self, rng: np.random.Generator) -> list[tuple[str, str]]:
        """Reaches for every item once, in the world of a training task, without a look at its recipes."""
        player = Minicraft()
        player.reset(seed=0, options={"task": generate(rng, "train")})
        actions = [f"+{ITEMS[n]}" for n in rng.permutation(len(ITEMS))]
        return [(action, player.act(action)[0].removesuffix("\n")) for action in actions]

    def propose(self, trajectory: Sequence[tuple[str, str]]) -> list[dict]:
        """In hindsight: a recipe of what was had, beside one with something that was not."""
        return [hindsight([(action[1:], said == DONE[0]) for action, said in trajectory])]

    def demonstrations(self, rng: np.random.Generator, count: int, turns: int) -> list[list[tuple[str, bool]]]:
        """`count` dialogues about training tasks, as (text, the model's own) pieces; `turns` is not used.

        They pick a recipe blindly, so half of them the bad one, and never revise: with probability THOUGHT_FIRST the
        thought, then its ingredients in order, then the craft, whatever is answered; a refused craft is tried again
        until the steps are over. With probability `read` the thought stands before the question, as experience does, so
        that a model learns to go by it; half of those that name the good one do so from the other's refusal on.
        """
        draws = 3 if self._read else 2
        return [self._dialogue(generate(rng, "train"), *rng.random(draws)) for _ in range(count)]

    def _dialogue(self, task: dict, which: float, thinks: float, reads: float = 1.0) -> list[tuple[str, bool]]:
        recipe = int(which < 0.5)
        first, actions = recipe, [f"+{item}" for item in task["recipes"][recipe]]
        if reads < STRAYS * self._read and recipe == task["good"]:
            first = 1 - recipe
            refused = next(n for n, item in enumerate(task["recipes"][first]) if item not in task["base"])
            actions = [*(f"+{item}" for item in task["recipes"][first][: refused + 1]), *actions]
        if thinks < THOUGHT_FIRST:
            actions.insert(0, f"@{first + 1}")
        player = Minicraft()
        said = player.reset(seed=0, options={"task": task})[0]
        said = f"@{recipe + 1};{said}" if reads < self._read else said
        pieces, ended = [], False
        while not ended:
            action = actions.pop(0) if actions else f"*{recipe + 1}"
            pieces += [(said, False), (action, True)]
            said, _, ended, _, _ = player.step(action)
        return pieces
