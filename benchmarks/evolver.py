"""What AgentEvolver's mechanisms are compared with: environments whose flags, questions or tasks are spoilt on purpose,
and pools of experience that tell of other tasks."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np

from actors import experience
from actors.config import DataSettings
from actors.environments.minicraft import Minicraft
from actors.environments.signs import Signs
from actors.environments.signs_tasks import SIGNS, attempt_of, value
from actors.episode_config import ExperienceSettings

FLIPPED = 0.2  # share of flags that are turned round
RECENT = 1000  # flags from which random ones are drawn, so that as many of them are good


class Flagged(Minicraft):
    """Its flags are random, turned round, a fifth of them turned round, or left to the outcome."""

    recent: deque[bool] = deque(maxlen=RECENT)

    def __init__(self, feedback: str = "binary", read: float = 0.0, flags: str = "flipped"):
        super().__init__(feedback, read)
        self._flags = flags

    def act(self, text: str) -> tuple[str, float, bool, bool, dict]:
        observation, reward, terminated, truncated, info = super().act(text)
        good = info.pop("good")
        self.recent.append(good)
        if self._flags == "random":
            info["good"] = self.recent[int(self.np_random.integers(len(self.recent)))]
        elif self._flags == "inverted":
            info["good"] = not good
        elif self._flags == "flipped":
            info["good"] = good != bool(self.np_random.random() < FLIPPED)
        return observation, reward, terminated, truncated, info


class Told(Minicraft):
    """Half of its training episodes are told experience in their question, and trained with it."""

    def __init__(self, feedback: str = "binary", read: float = 0.0, pool: str = "", share: float = 0.5):
        super().__init__(feedback, read)
        self._pool, self._share = pool, share

    def start(self, task: dict) -> str:
        question = super().start(task)
        if "/train/" not in task["id"] or self.np_random.random() >= self._share:
            return question
        return _pool(self._pool).told(question) + question


@cache
def _pool(path: str) -> experience.Pool:
    return experience.Pool(ExperienceSettings(path=path, top=1, template="{experience};"))


class Guessed(Signs):
    """Targets drawn from all that lie within the range of the digits: what questions are without being proved."""

    @classmethod
    def tasks(cls, data: DataSettings, split: str) -> tuple[dict, ...]:
        found = super().tasks(data, split)
        return found if split == "test" else _guessed(found)


def _guessed(tasks: Sequence[dict]) -> tuple[dict, ...]:
    rng, seen = np.random.default_rng(0), {}
    for task in tasks:
        digits = task["digits"]
        values = [value(attempt_of(digits, signs)) for signs in SIGNS]
        target = int(rng.integers(min(values), max(values) + 1))
        seen.setdefault(f"guessed/{digits}>{target}", {"digits": digits, "target": target, "level": 0})
    return tuple({"id": name, **task} for name, task in seen.items())


def shuffled(pool: Path, into: Path) -> None:
    """The same experience, each of another task than it was made of."""
    found = [json.loads(line) for line in pool.read_text().splitlines()]
    order = np.random.default_rng(0).permutation(len(found))
    others = dict(zip(order.tolist(), np.roll(order, 1).tolist(), strict=True))
    experience.write(into, [one | {"content": found[others[n]]["content"]} for n, one in enumerate(found)])
