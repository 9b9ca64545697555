"""Names of groups: deterministic, so that a second play of the same thing is a duplicate and not new data."""

from __future__ import annotations

import hashlib

GROUP_BYTES = 16


def group_id(run: str, epoch: int, task: str) -> bytes:
    """The 16-byte id of `task` in `epoch` of `run` (the run's identity, not its folder's name)."""
    text = "\x1f".join((run, str(epoch), task))
    return hashlib.blake2b(text.encode(), digest_size=GROUP_BYTES).digest()
