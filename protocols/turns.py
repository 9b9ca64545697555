"""Turns and groups: what actors make, replay keeps and the learner uses.

A group is everything that was played for one lease of a task, as a graph of turns. Each turn names its parent and
carries only the tokens that its parent lacks, so a dialogue is a path and a search is a tree. Two turns of `signs`:

    turn 0  parent -1   prompt "7128>12\\n"  response "7+1-2-8\\n"   reward 0     index 0  role attempt
    turn 1  parent  0   prompt "?-14\\n"     response "18\\n"        reward 1     index 1  role reflection
    turn 2  parent  1   prompt ""            response "7-1-2+8\\n"   reward 1     index 1  role attempt

The tokens that turn 2 was sampled after are the prompts and responses of 0 and 1, then its own prompt.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np

TOO_LONG = "too_long"
"""The `kind` of an episode that ended since nothing more fitted the model's context; of all kinds of error it alone is
the model's own doing. See Turn.extra of role error."""
MIXED_FROM = "mixed_from"
"""The key of a task, and of a group's facts, that names the environment in a run of several."""
OWN_ROLE = "own_role"
"""The key of a turn's extra that names a role of the program's own: one of rollout.roles, beside Turn.role."""
TEMPERATURE = "temperature"
"""The key of a turn's extra that says how it was sampled, where that is not the recipe's temperature."""
INTERNALISED = "internalised"
"""The key of a turn's extra that says: this is an answer of its episode once more, as if it had followed the question
alone, for imitation. It is worth its reward, whatever a credit compares, and takes part in no mean."""
TOKENS = np.dtype("<i4")
LOGPROBS = np.dtype("<f4")


class Role(IntEnum):
    """What kind of turn it is; recipes say which roles are trained."""

    ATTEMPT = 0
    REFLECTION = 1
    RETRY = 2
    ACTION = 3
    REVISION = 4
    ERROR = 5  # the environment raised or hung: the episode ended here, nothing was sampled
    VERIFICATION = 6  # says whether the answer before it is right


ASIDES = frozenset({Role.REFLECTION, Role.VERIFICATION})
"""Roles of what the model says about its answers: no answer or action themselves."""


class Stop(IntEnum):
    """Why a response ended."""

    END = 0  # the model's end token, or a stop sequence that its agent asked for
    LENGTH = 1
    ABORTED = 2
    AUTHORED = 3  # not sampled


@dataclass(frozen=True, slots=True)
class Turn:
    """One response and what led to it: prompt int32[P], response int32[R], logprobs float32[R].

    `versions` are (start, version) stretches of the response, `start` rising from 0: an update may land inside it.
    `logprobs` are under the policy that sampled, at the temperature of the recipe or of `extra`, NaN where authored;
    where `extra` says `navigated`, the model was told experience that is left out here, and they are those that the
    policy of `versions` gives these ids. `timing` is seconds queued, generating, in the environment. `after` is the
    turn that this one answers in time; `index` its number in the episode, where a reflection counts with the attempt
    that it leads to, a verification with the answer that it judges.
    """

    group: bytes
    lease: int
    turn: int
    parent: int
    prompt: np.ndarray
    response: np.ndarray
    logprobs: np.ndarray
    versions: tuple[tuple[int, int], ...]
    role: Role
    episode: int = 0
    index: int = 0
    after: int = -1
    reward: float = 0.0
    terminated: bool = False
    truncated: bool = False
    stop: Stop = Stop.END
    timing: tuple[float, float, float] = (0.0, 0.0, 0.0)
    extra: dict = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Close:
    """Ends a group: it has exactly `turns` turns. `rewards` sets the reward of turns where it was known late."""

    group: bytes
    lease: int
    turns: int
    rewards: dict[int, float] = field(default_factory=dict)
    extra: dict = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Group:
    """A closed, whole group, turns in order of their numbers, rewards final."""

    id: bytes
    lease: int
    turns: tuple[Turn, ...]
    extra: dict = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Lease:
    """Leave to play one task once.

    `fencing_token` shuts out earlier plays of its group: rows carry it as `lease`, and replay takes none under a lower
    one. `order` is the place of this group among all that are leased. `shard` is the ingest endpoint of the replay
    service that keeps the group ("" where nothing is kept).
    """

    group: bytes
    fencing_token: int
    order: int
    task: dict
    seed: int
    shard: str = ""


def role_name(turn: Turn) -> str:
    """What a turn is called: the role that its program names, else its own in small letters."""
    return turn.extra.get(OWN_ROLE) or turn.role.name.lower()


def sampled_tokens(turn: Turn) -> int:
    """How many tokens of the response the policy sampled."""
    return int((~np.isnan(turn.logprobs)).sum())
