"""Writes the turns of one group in the order in which they come, and closes it."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable

import numpy as np

from actors.engines import Completion
from protocols import metrics
from protocols.turns import ASIDES, INTERNALISED, LOGPROBS, MIXED_FROM, TOKENS, TOO_LONG, Close, Lease, Role, Stop, Turn

Sink = Callable[[Turn | Close, Lease, float], object]
NO_TOKENS = np.empty(0, TOKENS)
NOTHING_SAMPLED = Completion(NO_TOKENS, np.empty(0, LOGPROBS), (), Stop.AUTHORED, 0.0)


def _label(task: dict) -> dict:
    return {MIXED_FROM: task[MIXED_FROM]} if MIXED_FROM in task else {}


class GroupWriter:
    """Numbers turns and hands them to `sink(item, lease, spread)`: the replay producer, or a list in an evaluation."""

    def __init__(self, lease: Lease, sink: Sink):
        self._lease, self._sink = lease, sink
        self._next = 0
        self._last: dict[int, int] = {}
        self._scores: dict[int, list[float]] = defaultdict(list)
        self._broken: set[int] = set()
        self._too_long: set[int] = set()
        self.finished: set[int] = set()
        """Numbers of the episodes that came to their end."""
        self.successes: dict[int, float] = {}
        """By episode whether its last sampled answer or action was a success; a rollout that knows better says so. One
        that was told experience shows nothing of the model itself."""
        self.facts: dict = {"task": lease.task.get("id", "")} | _label(lease.task)
        """Of the whole group, for the close row."""
        self.compared: list[float] | None = None
        """What a group without variance is told by, where that is not the returns of its episodes."""

    @property
    def success(self) -> float | None:
        """How often the model itself succeeds at the task, as far as the group shows; None where no episode shows it.
        One that broke off shows nothing."""
        shown = [success for episode, success in self.successes.items() if episode not in self._broken]
        return sum(shown) / len(shown) if shown else None

    def turn(
        self,
        role: Role,
        parent: int,
        prompt: np.ndarray,
        completion: Completion,
        *,
        episode: int,
        index: int,
        reward: float,
        after: int | None = None,
        environment_s: float = 0.0,
        **facts,
    ) -> int:
        """Emits one turn and returns its number. `after` is its parent unless it lies on another root; `facts` are
        `terminated`, `truncated` and `extra` of the turn."""
        number = self._next
        self._next += 1
        self._last[episode] = number
        if role not in ASIDES and role is not Role.ERROR and INTERNALISED not in facts.get("extra", {}):
            self._scores[episode].append(reward)
            if completion.stop is not Stop.AUTHORED and not facts.get("extra", {}).get("navigated"):
                self.successes[episode] = float(facts.get("extra", {}).get("success", False))
        turn = Turn(
            group=self._lease.group,
            lease=self._lease.fencing_token,
            turn=number,
            parent=parent,
            after=parent if after is None else after,
            index=index,
            episode=episode,
            role=role,
            prompt=prompt,
            response=completion.ids,
            logprobs=completion.logprobs,
            versions=completion.versions,
            stop=completion.stop,
            reward=reward,
            timing=(completion.queued_s, completion.seconds - completion.queued_s, environment_s),
            **facts,
        )
        self._sink(turn, self._lease, 0.0)
        if completion.stop is not Stop.AUTHORED:
            metrics.QUEUE_SECONDS.observe(completion.queued_s)
            metrics.GENERATION_SECONDS.observe(completion.seconds - completion.queued_s)
        metrics.TURNS.labels(role=role.name.lower()).inc()
        metrics.TOKENS.labels(role=role.name.lower()).inc(len(completion.ids))
        return number

    def error(self, episode: int, error: str, kind: str) -> None:
        """Ends an episode that cannot go on: a turn of role ERROR after its last one, in which nothing was sampled.

        An episode of the kind TOO_LONG failed by the model's own words and counts as wrong; any other broke off, and
        counts for nothing."""
        if kind == TOO_LONG:
            self._too_long.add(episode)
            self.successes[episode] = 0.0
        else:
            self._broken.add(episode)
        parent, extra = self._last.get(episode, -1), {"error": error, "kind": kind}
        self.turn(Role.ERROR, parent, NO_TOKENS, NOTHING_SAMPLED, episode=episode, index=0, reward=0.0, extra=extra)

    @property
    def episodes(self) -> int:
        """How many there are so far."""
        return len(self._last)

    @property
    def compared_values(self) -> list[float]:
        """The values whose spread tells groups without variance apart. Episodes that broke off have none; one that grew
        too long is worth no more than any other, nor than 0, as in learner/credits/group.py."""
        if self.compared is not None:
            return self.compared
        whole = {episode: scores for episode, scores in self._scores.items() if episode not in self._broken}
        if self.episodes < 2:
            return [score for scores in whole.values() for score in scores]
        lowest = min([0.0, *(sum(scores) for scores in whole.values())])
        ended = [sum(scores) for episode, scores in whole.items() if episode not in self._too_long]
        return ended + [lowest] * len(self._too_long)

    @property
    def broken(self) -> bool:
        """Whether every episode broke off: the group then tells nothing, and replay sets it aside."""
        return bool(self._last) and self._last.keys() <= self._broken

    @property
    def spread(self) -> float:
        """Of the compared values; not a number where the group is broken."""
        if self.broken:
            return math.nan
        return max(self.compared_values, default=0.0) - min(self.compared_values, default=0.0)

    def close(self):
        """Emits the close row; returns what the sink makes of it."""
        close = Close(self._lease.group, self._lease.fencing_token, self._next, extra=self.facts)
        return self._sink(close, self._lease, self.spread)
