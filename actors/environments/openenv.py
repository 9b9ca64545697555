"""`openenv`: an environment of somebody else, behind a server that speaks OpenEnv's WebSocket protocol (0.3 to 0.10).

    here   {"type": "reset", "data": {"seed": 7}}   {"type": "step", "data": {the action's fields}}   {"type": "close"}
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

from websockets.exceptions import ConnectionClosed, WebSocketException
from websockets.sync.client import connect

from actors.config import DataSettings
from actors.door import EpisodeFailure
from actors.environments.base import TextEnvironment
from protocols.errors import SettingError

TRAIN, TEST = 10_000, 1_000  # seeds of each split
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 1.0  # between two tries for a session, each twice as long
FULL, FULL_SAID = "CAPACITY_REACHED", "it is full, or ends each new session"
OF_ACTIONS = ("VALIDATION_ERROR", "EXECUTION_ERROR")  # after which the session goes on


class OpenEnv(TextEnvironment):
    """A task is a seed. Options: `url` of the server. `action`: the field of an action that holds what the model says;
    without it the model writes an action as a JSON object. `observation`: the field of an observation that is shown;
    without it all, as JSON. `ask`: what stands before the first. `success`: what rewards of a success add up to, or
    more. `wait_s`: longest wait for an answer, or a session; below environment.time_limit_s, so that errors say which.
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
        try:
            kind, data = self._said({"type": "step", "data": action})
        except TimeoutError:
            raise EpisodeFailure("hung", f"no answer of {self._url} within wait_s={self._wait:g}") from None
        except ConnectionClosed as error:
            raise EpisodeFailure("raised", f"{self._url} has ended the session: {error}") from None
        if kind == "error" and data.get("code") in OF_ACTIONS:
            return self._refused(str(data.get("message")))
        if kind == "error":
            raise EpisodeFailure("raised", f"{self._url} has failed: {data.get('message', data)}")
        done, reward = bool(data.get("done")), float(data.get("reward") or 0.0)
        self._total += reward
        if done:
            self.close()  # the session may be another's
        info = {"success": done and self._total >= self._wanted, "score": self._total}
        return self._shown(data), reward, done, False, info

    def close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            with contextlib.suppress(Exception):  # it may be gone
                session.send(json.dumps({"type": "close"}))
            session.close()

    def _refused(self, why: str) -> tuple[str, float, bool, bool, dict]:
        return f"Error: {why}", 0.0, False, False, {"success": False, "refused": True, "score": self._total}

    def _begin(self, data: dict) -> dict:
        """The first observation of a new episode. Raises EpisodeFailure where no session is to be had in time."""
        until, pause = time.monotonic() + self._wait, FIRST_PAUSE_S
        while True:
            try:
                kind, found = self._said({"type": "reset", "data": data})
                if kind == "observation":
                    return found
                if found.get("code") != FULL:
                    raise RuntimeError(f"the server cannot begin an episode: {found.get('message', found)}")
                why = FULL_SAID
            except ConnectionClosed:
                why = FULL_SAID
            except (OSError, WebSocketException) as error:
                why = str(error) or type(error).__name__
            self.close()
            if time.monotonic() + pause > until:
                raise EpisodeFailure("hung", f"no session of {self._url} within wait_s={self._wait:g}: {why}")
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_S)

    def _said(self, message: dict) -> tuple[str, dict]:
        """What the server says to a message: "observation" or "error", and its data."""
        if self._session is None:
            self._session = connect(self._url, open_timeout=self._wait, close_timeout=1.0, max_size=None)
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
                raise ValueError(f"an observation has no {self._observation!r}: it is {str(found)[:200]}")
            found = found[self._observation]
        return found if isinstance(found, str) else json.dumps(found, ensure_ascii=False)


def _object(text: str | bytes) -> dict | None:
    """A JSON object; None where the text is none."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
