"""Weight versions: how they are numbered, what is announced, and how a copy is checked.

Version numbers never repeat. A learner that resumes from step s counts on from s, in a new *incarnation*, so that
`version = incarnation * INCARNATION + step`: 57 is step 57 of the first, 1000050 step 50 of the second. Staleness is a
difference of steps, also between incarnations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from protocols.checksum import Sums, Unit, summed

INCARNATION = 1_000_000
TRIAL = -1  # the version of perturbed weights that prove an engine follows; nothing is sampled from it


def version_of(incarnation: int, step: int) -> int:
    """The version that `incarnation` publishes after optimizer step `step` (0 = the weights it started from)."""
    return incarnation * INCARNATION + step


def step_of(version: int) -> int:
    return version % INCARNATION


def incarnation_of(version: int) -> int:
    return version // INCARNATION


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
class Bucket:
    """So many tensors, one after the other as they lie in the version's bytes, and the sums of their words."""

    tensors: int
    sums: Sums


@dataclass(frozen=True, slots=True)
class WeightRef:
    """An announced version: what proves a copy of it, and where one is to be had.

    Its bytes are laid out as a safetensors file of `size_bytes`; `head` are the sums of its header. On the learner's
    `node` (Ray's id) they are memory that other processes map by its `path`, as long as the learner has not replaced
    them; `stamp` is in their header. With a `handle` they lie on a GPU, and are mapped by that (protocols.cuda_ipc);
    `path` is then what is locked meanwhile, and holds their first bytes only. For other nodes `source`, a Ray handle of
    the learner, puts them into the object store: see `Rank.blob`.

    Engines' live parameters are compared with the buckets' sums where they can be read back; of an adapter the weights
    that it leaves alone, with `rest`, by the unit in which they are summed.
    """

    version: int
    size_bytes: int
    head: Sums
    buckets: tuple[Bucket, ...]
    probe: Probe
    node: str = ""
    path: str = ""
    stamp: str = ""
    source: Any = None
    rest: Mapping[Unit, Sums] | None = None
    handle: bytes = b""

    @property
    def sums(self) -> Sums:
        """Of all its tensors."""
        return summed(bucket.sums for bucket in self.buckets)

    @property
    def digest(self) -> str:
        """The same for two versions whose values are the same."""
        return str(self.sums)
