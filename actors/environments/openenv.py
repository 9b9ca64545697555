"""`openenv`: an environment of somebody else, behind a server that speaks OpenEnv's WebSocket protocol (0.3 to 0.10).

    here   {"type": "reset", "data": {"seed": 7}}    {"type": "step", "data": {the action's fields}}    {"type": "close"}
    there  {"type": "observation", "data": {"observation": {...}, "reward": 0.5, "done": false}}
           {"type": "error", "data": {"message": "...", "code": "..."}}

A connection is a session. A server has few of them (one, if nobody says otherwise) and closes what comes beyond: an
episode then waits until another one gives its session back, which each does at its end.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Sequence
from typing import Any

from actors.config import DataSettings
from actors.environments.base import TextEnvironment
from protocols.errors import SettingError

TRAIN, TEST = 10_000, 1_000  # seeds of each split
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 1.0  # between two tries for a session, each twice as long
FULL = "CAPACITY_REACHED"


class OpenEnv(TextEnvironment):
    """A task is a seed. Options: `url` of the server. `action`: the field of an action that holds what the model says,
    as text; without it the model writes the action as a JSON object. `observation`: the field of an observation that
    is shown; without it all of it, as JSON. `ask`: what stands before the first one. `success`: rewards of an
    episode add up to this or more where it is one. `wait_s`: longest wait for an answer, or for a free session; below
    environment.time_limit_s, so that the error says which.
    """

    feedbacks = ("binary",)

    def __init__(
        self,
        feedback: str = "binary",
        url: str = "",
        action: str = "",
        observation: str = "",
        ask: str = "",
        success: float = 1.0,
        wait_s: float = 25.0,
    ):
        super().__init__(feedback)
        scheme, found, rest = url.partition("://")
        if not found or scheme not in ("http", "https", "ws", "wss"):
            raise SettingError("environment.options.url", f"{url!r} is no address", "Such as http://localhost:8000")
        self._url = f"{scheme.replace('http', 'ws')}://{rest.rstrip('/').removesuffix('/ws')}/ws"
        self._action, self._observation, self._ask = action, observation, ask
        self._wanted, self._wait = success, wait_s
        self._session: Any = None

    @classmethod
    def tasks(cls, data: DataSettings, split: str) -> Sequence[dict]:
        seeds = range(TRAIN) if split == "train" else range(TRAIN, TRAIN + TEST)
        return [{"id": f"openenv/{seed}", "seed": seed} for seed in seeds]

    def start(self, task: dict) -> str:
        self._total = 0.0
        first = self._begin({"seed": task["seed"], "episode_id": f"{task['id']}/{self._seed}"})
        return self._ask + self._shown(first)

    def act(self, text: str) -> tuple[str, float, bool, bool, dict]:
        action = {self._action: text} if self._action else _object(text)
        if action is None:
            return self._refused("an action is a JSON object")
        kind, data = self._said({"type": "step", "data": action})
        if kind == "error":
            return self._refused(str(data.get("message", data)))
        done, reward = bool(data.get("done")), data.get("reward")
        self._total += 0.0 if reward is None else float(reward)
        if done:
            self.close()  # the session may be another's
        success = done and self._total >= self._wanted
        info = {"success": success, "score": self._total}
        return self._shown(data), 0.0 if reward is None else reward, done, False, info

    def close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            with contextlib.suppress(Exception):  # it may be gone
                session.send(json.dumps({"type": "close"}))
            session.close()

    def _refused(self, why: str) -> tuple[str, float, bool, bool, dict]:
        return f"Error: {why}", 0.0, False, False, {"success": False, "refused": True, "score": self._total}

    def _begin(self, data: dict) -> dict:
        """The first observation of a new episode. Raises TimeoutError where no session is to be had in time."""
        from websockets.exceptions import ConnectionClosed, WebSocketException

        until, pause = time.monotonic() + self._wait, FIRST_PAUSE_S
        while True:
            try:
                kind, found = self._said({"type": "reset", "data": data})
                if kind == "observation":
                    return found
                if found.get("code") != FULL:
                    raise RuntimeError(f"the server cannot begin an episode: {found.get('message', found)}")
                why = "it is full"
            except ConnectionClosed:
                why = "it closes each new session: is it full?"
            except (OSError, WebSocketException) as error:
                why = str(error) or type(error).__name__
            self.close()
            if time.monotonic() + pause > until:
                raise TimeoutError(f"no session of {self._url} within {self._wait:g} s: {why}")
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_S)

    def _said(self, message: dict) -> tuple[str, dict]:
        """What the server says to a message: "observation" or "error", and its data."""
        from websockets.sync.client import connect

        if self._session is None:
            self._session = connect(self._url, open_timeout=self._wait, close_timeout=1.0, max_size=None, proxy=None)
        self._session.send(json.dumps(message))
        answer = _object(self._session.recv(timeout=self._wait))
        data = None if answer is None else answer.get("data")
        if answer is None or answer.get("type") not in ("observation", "error") or not isinstance(data, dict):
            raise ValueError(f"{self._url} does not speak OpenEnv's protocol: it said {str(answer)[:200]}")
        return answer["type"], data

    def _shown(self, data: dict) -> str:
        found = data.get("observation")
        if self._observation:
            if not isinstance(found, dict) or self._observation not in found:
                raise ValueError(
                    f"an observation of {self._url} has no field {self._observation!r}: {str(found)[:200]}"
                )
            found = found[self._observation]
        return found if isinstance(found, str) else json.dumps(found, ensure_ascii=False)


def _object(text: str | bytes) -> dict | None:
    """A JSON object; None where the text is none."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
