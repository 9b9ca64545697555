"""Ready groups: a sampler's index of them, and buckets by version in which those that became too stale are found."""

from __future__ import annotations

from collections.abc import Iterable

from replay.server.groups import Record, staleness_of
from replay.server.samplers import Sampler

NEVER = 2**63 - 1  # later than any place in time


class Ready:
    """What claims choose from; the table of groups keeps it up to date."""

    def __init__(self, sampler: Sampler):
        self.sampler = sampler
        self._buckets: dict[tuple[int, int], dict[bytes, None]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._buckets.values()))

    def add(self, group: bytes, record: Record) -> None:
        self._buckets.setdefault((record.low, record.high), {})[group] = None
        self.sampler.add(group, record)

    def discard(self, group: bytes, record: Record) -> None:
        bucket = self._buckets[record.low, record.high]
        del bucket[group]
        if not bucket:
            del self._buckets[record.low, record.high]
        self.sampler.discard(group)

    def stale(self, step: int, max_staleness: int) -> list[bytes]:
        """The groups staler than that for the trainer at `step`; looks at versions, not at groups."""
        late = [
            bucket for (low, high), bucket in self._buckets.items() if staleness_of(low, high, step) > max_staleness
        ]
        return [group for bucket in late for group in bucket]

    def pick(self, opened: Iterable[Record], count: int, step: int, max_staleness: int) -> tuple[list[bytes], str]:
        """`count` ready groups, or none and the reason: "groups" (too few) or "straggler".

        A straggler is an open group that came before one of them and would be too stale after this step. The wait for
        it ends when it closes, is abandoned or is leased again: the controller's lease deadline bounds it.
        """
        if len(self) < count:
            return [], "groups"
        last = self.sampler.last(count)
        if last >= 0 and self.straggler(opened, step, max_staleness) < last:
            return [], "straggler"
        return self.sampler.pick(count), ""

    def straggler(self, opened: Iterable[Record], step: int, max_staleness: int) -> int:
        """The place in time of the first open group that would be too stale after this step; NEVER without one."""
        late = (r.order for r in opened if r.staleness(step) <= max_staleness < r.staleness(step + 1))
        return min(late, default=NEVER)
