"""`agentgym`: an environment server of AgentGym (arXiv 2406.04151), or another that speaks its protocol over HTTP.

The protocol is in agentgym_session.py. `data.path` says which tasks the server's `data_idx` are:
"0-199", a fifth of which are held out for testing, or "0-159/160-199" for training and testing.
"""

from __future__ import annotations

import re

from actors.config import DataSettings
from actors.environments import react
from actors.environments.agentgym_session import Session
from actors.environments.base import TextEnvironment
from actors.environments.files import held_out
from protocols.errors import SettingError


class AgentGym(TextEnvironment):
    """Reward at the end only: what the episode is worth, as a share of `full`; 1 is a success. That is the server's
    `score` where it tells one (ScienceWorld: `full: 100`), else the sum of its rewards; `info["score"]` is that so far.
    After `steps` actions the episode is over.

    A session is asked for again for `patience_s` where the server is full or does not answer; `timeout_s` bounds a
    single answer. Both have to stay below `environment.time_limit_s`. An action is not sent twice: whether the first
    one counted cannot be known. `environment.instances` keeps an actor within the sessions that a server allows.
    """

    feedbacks = ("binary",)

    def __init__(
        self,
        feedback: str = "binary",
        server: str = "",
        instructions: str = react.FORM,
        steps: int = 100,
        full: float = 1.0,
        timeout_s: float = 20.0,
        patience_s: float = 5.0,
    ) -> None:
        super().__init__(feedback)
        if not str(server).startswith(("http://", "https://")):
            cure = "Give the address of the server, such as http://127.0.0.1:36001"
            raise SettingError("environment.options.server", f"{server!r} is no address", cure)
        for name, value in {"steps": steps, "full": full, "timeout_s": timeout_s, "patience_s": patience_s}.items():
            if not isinstance(value, int | float) or value <= 0:
                raise SettingError(f"environment.options.{name}", f"must be a number above 0, got {value!r}")
        self._instructions, self._limit, self._full = instructions, steps, full
        self._session = Session(server, timeout_s, patience_s)

    @classmethod
    def tasks(cls, data: DataSettings, split: str) -> list[dict]:
        numbers = _numbers(data.path)
        if len(numbers) == 2:
            found = list(numbers[split == "test"])
        else:
            found = [n for n in numbers[0] if held_out(f"agentgym/{n}") == (split == "test")]
        return [{"id": f"agentgym/{n}", "number": n} for n in found]

    def start(self, task: dict) -> str:
        self._steps, self._worth = 0, 0.0
        said = self._session.reset(task["number"])
        described = said.get("task_description")
        return "\n\n".join(part for part in (self._instructions, described, _observation(said)) if part)

    def act(self, text: str) -> tuple[str, float, bool, bool, dict]:
        self._steps += 1
        action = react.action(text)
        said = self._session.post("step", action=action)
        score = said.get("score")
        self._worth = (self._worth + said["reward"] / self._full) if score is None else score / self._full
        over = bool(said["done"]) or self._steps >= self._limit
        info = {"success": over and self._worth >= 1, "answer": action, "score": self._worth}
        return _observation(said), self._worth if over else 0.0, over, False, info

    def close(self) -> None:
        self._session.close()


def _observation(said: dict) -> str:
    return said["observation"] if "observation" in said else said["state"]


def _numbers(path: str | None) -> list[range]:
    parts = (path or "").split("/")
    found = [re.fullmatch(r"\s*(\d+)\s*-\s*(\d+)\s*", part) for part in parts]
    if not all(found) or len(found) > 2:
        cure = 'Give "0-199" (a fifth for testing) or "0-159/160-199" (for training, for testing)'
        raise SettingError("data.path", f"agentgym needs the numbers of its tasks, got {path!r}", cure)
    return [range(int(one[1]), int(one[2]) + 1) for one in found if one]
