"""The figures from which causes.py tells why a run does not learn, and the tests that tell much from chance.

Everything is counted over recent play: twice as many groups as may be in play at once. Less would be unfair, for
answers that are cut end together and late, and short ones early.
"""

from __future__ import annotations

import json
import math
import re
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from actors import mixture
from actors.tally import Tally
from redraft.recipe import Recipe

PARTS = 32  # in which recent play is kept: of so many, the oldest is forgotten at a time
ALPHA = 1e-3  # how likely a finding about a share may be where the share is in truth at its limit, not above it


def beyond(count: int, total: int, share: float) -> bool:
    """Whether `count` of `total` show a true share above `share`: so many or more would come up with a chance below
    ALPHA if it were `share` (exact binomial test, one-sided). Of all alike, 31 are enough for 0.8, 10 for a half."""
    if total == 0 or count <= share * total:
        return False
    chance, term = 0.0, _binomial(count, total, share)
    for more in range(count, total + 1):
        chance += term
        if chance > ALPHA:
            return False
        term *= (total - more) / (more + 1) * share / (1 - share)
    return True


def _binomial(count: int, total: int, share: float) -> float:
    log = math.lgamma(total + 1) - math.lgamma(count + 1) - math.lgamma(total - count + 1)
    return math.exp(log + count * math.log(share) + (total - count) * math.log1p(-share))


def in_play(recipe: Recipe) -> int:
    """Most groups that are played at once: what the actors have room for, or admission allows."""
    actors, learner = recipe.actors, recipe.learner
    count = actors.autoscale.max if actors.autoscale else actors.count
    most = count * mixture.groups_at_once(recipe.mixture, recipe.rollout, actors.groups)
    if learner.max_staleness == "auto":
        return most
    return min(most, (learner.max_staleness + 1) * learner.batch_groups)


class RecentPlay:
    """Tallies of the actors' newest reports, which hold at least `groups` groups together."""

    def __init__(self, groups: int):
        self._groups = groups
        self._kept: deque[Tally] = deque()
        self.total = Tally()

    def add(self, tally: Tally) -> None:
        if tally.empty:
            return
        if not self._kept or self._kept[-1].groups * PARTS >= self._groups:
            self._kept.append(Tally())
        self._kept[-1].add(tally)
        self._sum_up()
        while self.total.groups - self._kept[0].groups >= self._groups:
            self._kept.popleft()
            self._sum_up()

    def _sum_up(self) -> None:
        self.total = Tally()
        for tally in self._kept:
            self.total.add(tally)


@dataclass(slots=True)
class Published:
    """A version as the learner announced it; `change` is how far its log-probs of the probe are from the first one's,
    in nats, on average."""

    version: int
    digest: str
    change: float


@dataclass(slots=True)
class Arrival:
    """What an actor says of its weights. `ready_s` is when its engine was up, `behind_s` since when there is a newer
    version than its own; `refused` is what it found wrong with weights since it last had some."""

    version: int | None = None
    difference: float = 0.0
    ready_s: float | None = None
    behind_s: float | None = None
    refused: str = ""


@dataclass(slots=True)
class Weights:
    """Versions published and where they have arrived."""

    published: deque[Published] = field(default_factory=lambda: deque(maxlen=8))
    arrivals: dict[str, Arrival] = field(default_factory=dict)
    noise: float | None = None
    """The largest difference between an engine's and the learner's log-probs of the probe at the first version."""
    longest_load_s: float = 0.0
    """From an engine that is up to its first version."""
    _first: tuple[int, np.ndarray] | None = None

    def publish(self, version: int, digest: str, logprobs: Sequence[float], at_s: float) -> None:
        values = np.asarray(logprobs, np.float64)
        if self._first is None:
            self._first = version, values
        change = float(np.abs(values - self._first[1]).mean())
        self.published.append(Published(version, digest, change))
        for arrival in self.arrivals.values():
            if arrival.version is not None and arrival.behind_s is None:
                arrival.behind_s = at_s

    def arrive(self, name: str, ready: bool, version: int | None, difference: float, at_s: float) -> None:
        """What an actor's report says."""
        known = self.arrivals.setdefault(name, Arrival())
        if version is None and known.version is not None:  # another process by now
            known = self.arrivals[name] = Arrival()
        if ready and known.ready_s is None:
            known.ready_s = at_s
        if version is not None and version != known.version:
            if known.version is None and known.ready_s is not None:
                self.longest_load_s = max(self.longest_load_s, at_s - known.ready_s)
            newest = not self.published or version == self.published[-1].version
            known.version, known.behind_s, known.refused = version, None if newest else at_s, ""
        known.difference = difference
        if self._first is not None and version == self._first[0]:
            self.noise = max(self.noise or 0.0, difference)

    def refuse(self, name: str, why: str) -> None:
        self.arrivals[name] = Arrival(refused=why)

    def wait(self, at_s: float) -> None:
        """Nobody is to take newer weights before that time."""
        for arrival in self.arrivals.values():
            if arrival.behind_s is not None:
                arrival.behind_s = at_s

    def stay(self, living: Collection[str], members: Collection[str]) -> None:
        """Only these actors live; of others that are still of the fleet one knows what they refused."""
        known = {*living, *(name for name in members if name in self.arrivals and self.arrivals[name].refused)}
        self.arrivals = {name: one for name, one in self.arrivals.items() if name in known}


def overlap(training: Sequence[dict], tests: Sequence[dict]) -> list[str]:
    """Ids of test tasks that are among the training tasks under whatever id.

    Tasks are compared by their question, where they have one and it is not the same for most; else by a text that is
    each one's own, or by all that they hold. Letter case and white space do not count, nor do ids, levels, answers and
    rows.
    """
    if not len(training) or not len(tests):
        return []
    key = _question(training)
    known = {_content(task, key) for task in training}
    return [str(task.get("id", "")) for task in tests if _content(task, key) in known]


BLANK = re.compile(r"(?:\\[nrt]|\s)+")  # in JSON
BLANK_AT_ENDS = re.compile(r' ?" ?')
BESIDE = ("id", "level", "attempt", "tokenizer")
NO_QUESTION = (*BESIDE, "answer", "reference", "row")
QUESTION = "question"


def _question(tasks: Sequence[dict]) -> str | None:
    """The question where tasks have one, else the field with the longest texts among those that differ from task to
    task; None where there is none."""
    asked = [_text(task[QUESTION]) for task in tasks if QUESTION in task]
    if len(asked) == len(tasks) and len(set(asked)) > len(asked) / 2:
        return QUESTION
    found = {}
    for name in tasks[0].keys() - set(NO_QUESTION):
        texts = [text for task in tasks if isinstance(text := task.get(name), str)]
        if len(texts) == len(tasks) == len(set(texts)):
            found[name] = sum(map(len, texts))
    return max(sorted(found), key=lambda name: found[name], default=None)


def _text(value: Any) -> str:
    """Of a question of several messages what the user says last; anything else as JSON."""
    said = value[-1] if isinstance(value, list) and value else None
    if isinstance(said, dict) and isinstance(said.get("content"), str):
        return said["content"]
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=repr)


def _content(task: dict, key: str | None) -> str:
    kept = {name: task[name] for name in task if name not in BESIDE} if key is None else _text(task.get(key))
    text = json.dumps(kept, sort_keys=True, ensure_ascii=False, default=repr).casefold()
    return BLANK_AT_ENDS.sub('"', BLANK.sub(" ", text))
