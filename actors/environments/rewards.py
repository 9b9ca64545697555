"""Rewards of `rows`: a function of the user's own, in processes that can be killed, or a judge by name.

reward: "mine.py:score"                          own          reward_worker.py, a process of its own
reward: exact | number | math | choice | json_schema          judges.py
reward: {judge: {endpoint, model, prompt}}       asked        asked_judge.py: a model, or a service
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import Any

from actors import door
from actors.door import EpisodeFailure, Judged
from actors.environments import judges
from actors.environments.judges import Answered, Judge
from actors.environments.killable import Killable, Lost
from protocols import own_code
from protocols.errors import SettingError

SETTING = "environment.options.reward"
QUEUE_S = 15.0


def find(reward: Any, limit_s: float, processes: int) -> Judge:
    """What judges answers. Raises SettingError where `environment.options.reward` names nothing that can."""
    cure = f"Name {', '.join(judges.NAMES)}, FILE.py:function, or {{judge: {{endpoint, model, prompt}}}}"
    if isinstance(reward, dict):
        from actors.environments import asked_judge

        return asked_judge.find(reward, cure)
    if not isinstance(reward, str):
        raise SettingError(SETTING, f"{reward!r} names no reward", cure)
    if ":" in reward:
        sources = tuple(sorted(own_code.sources(reward).items())) if own_code.is_file(reward) else ()
        return _own(reward, sources, limit_s, processes)
    return judges.find(reward, SETTING, cure)


def is_own(reward: Any) -> bool:
    """Whether it names a function of the user's own."""
    return isinstance(reward, str) and ":" in reward


@lru_cache(None)
def _own(name: str, sources: tuple[tuple[str, str], ...], limit_s: float, processes: int) -> OwnReward:
    """One for all environments of this process."""
    return OwnReward(name, dict(sources), limit_s, processes)


class OwnReward:
    """A function `score(text, **row)` of the user's. Raises SettingError where it cannot be loaded."""

    needs_answer = False

    def __init__(self, name: str, sources: dict[str, str], limit_s: float, processes: int):
        self._name, self._limit_s = name, limit_s
        self.longest_s = QUEUE_S + limit_s
        program = Path(__file__).with_name("reward_worker.py")
        orphan_s = limit_s * (os.cpu_count() or 1)  # of computing, which several threads of it may do at once
        first = {"name": name, "code": sources}
        self._workers = Killable(program, [str(orphan_s)], processes=processes, queue_s=QUEUE_S, first=first)
        try:
            self._workers.start()
        except RuntimeError as error:
            cure = "Write `def score(text, **row)` there, which returns a number"
            raise SettingError(SETTING, f"{name!r} cannot be used: {error}", cure) from None

    def judge(self, answered: Answered) -> Judged:
        """Raises EpisodeFailure where the function raises, takes too long, dies, or returns no reward."""
        more = {"cut": answered.cut, "turn": answered.turn}
        question = {"text": answered.text, "row": answered.row, "more": more}
        try:
            found = self._workers.ask(self._name, question, self._limit_s)
        except Lost as lost:
            if not lost.hung:
                raise EpisodeFailure("raised", f"{self._name} ended its process") from None
            problem = f"{self._name} gave no reward within environment.options.limit_s={self._limit_s:g}"
            raise EpisodeFailure("hung", problem) from None
        if "raised" in found:
            raise EpisodeFailure("raised", f"{self._name} raised {found['raised']}")
        return door.judged(self._name, found["value"])
