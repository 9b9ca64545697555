"""Ready groups: a sampler over them, and buckets by version in which those that became too stale are found."""

from __future__ import annotations

from collections.abc import Iterable

from replay.server.groups import HeldGroup, staleness_of
from replay.server.samplers import Sampler

NEVER = 2**63 - 1  # later than any lease


class Ready:
    """What claims choose from; the table of groups keeps it up to date."""

    def __init__(self, sampler: Sampler):
        self.sampler = sampler
        self._buckets: dict[tuple[int, int], dict[bytes, None]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._buckets.values()))

    def add(self, group: bytes, held: HeldGroup) -> None:
        self._buckets.setdefault((held.low, held.high), {})[group] = None
        self.sampler.add(group, held)

    def remove(self, group: bytes, held: HeldGroup) -> None:
        bucket = self._buckets[held.low, held.high]
        del bucket[group]
        if not bucket:
            del self._buckets[held.low, held.high]
        self.sampler.remove(group)

    def stale(self, step: int, max_staleness: int) -> list[bytes]:
        """The groups staler than that for the trainer at `step`; looks at versions, not at groups."""
        late = [
            bucket for (low, high), bucket in self._buckets.items() if staleness_of(low, high, step) > max_staleness
        ]
        return [group for bucket in late for group in bucket]

    def pick(self, opened: Iterable[HeldGroup], count: int, step: int, max_staleness: int) -> tuple[list[bytes], str]:
        """`count` ready groups, or none and the reason: "groups" (too few) or "straggler".

        A straggler is an open group, with rows or only leased, that came before one of them and would be too stale
        after this step. The wait for it ends when it closes, is abandoned or is leased again: the controller's lease
        deadline bounds it.
        """
        if len(self) < count:
            return [], "groups"
        last = self.sampler.last(count)
        if last >= 0 and self.straggler(opened, step, max_staleness) < last:
            return [], "straggler"
        return self.sampler.pick(count), ""

    def straggler(self, opened: Iterable[HeldGroup], step: int, max_staleness: int) -> int:
        """The order of the lease of the first open group that would be too stale after this step; NEVER without one."""
        late = (
            held.order
            for held in opened
            if held.expected_staleness(step) <= max_staleness < held.expected_staleness(step + 1)
        )
        return min(late, default=NEVER)
