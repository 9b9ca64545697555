"""Weight versions: how they are numbered, what is announced, and how a copy is checked.

Version numbers never repeat. A learner that resumes from step s counts on from s, in a new *incarnation*, so that
`version = incarnation * INCARNATION + step`: 57 is step 57 of the first, 1000050 step 50 of the second. Staleness is a
difference of steps, also between incarnations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

INCARNATION = 1_000_000
TRIAL = -1  # the version of perturbed weights that prove an engine follows; nothing is sampled from it


def version_of(incarnation: int, step: int) -> int:
    """The version that `incarnation` publishes after optimizer step `step` (0 = the weights it started from)."""
    return incarnation * INCARNATION + step


def step_of(version: int) -> int:
    return version % INCARNATION


def staleness(step: int, version: int) -> int:
    """Steps between the trainer at `step` and the weights `version` that sampled, from either side of a resume."""
    return abs(step - step_of(version))


@dataclass(frozen=True, slots=True)
class Probe:
    """A short fixed sequence and the learner's log-probs of its tokens 1.. under this version (len = tokens - 1).

    `limit` is the largest median difference from them that rounding explains, as the learner measured it.
    """

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    limit: float


@dataclass(frozen=True, slots=True)
class WeightRef:
    """An announced version. `blob` is the Ray reference of the safetensors bytes; `digest` their blake3, in hex.

    `elements` is their order-free checksum, which fusing and padding leave unchanged: it is compared with the live
    parameters of an engine where they can be read back. Of an adapter it is that of the weights which it leaves alone.
    """

    version: int
    digest: str
    size_bytes: int
    blob: Any
    probe: Probe
    elements: str
