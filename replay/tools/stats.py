"""Counts of what spools hold, read from the disk, and of what a live service says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import zmq

from protocols.errors import DeadlineError, SettingError
from protocols.replay_stats import HeldStats, ReplayStats, figure
from protocols.weights import step_of
from protocols.wire import NO_VERSION
from replay.client import Client
from replay.config import ClientKeys, Endpoints
from replay.disk.reader import SpoolReader
from replay.disk.spool import reason_of
from replay.server.groups import TRAINED, HeldGroup, State
from replay.server.store import corrupt_of, dropped
from replay.tools.verify import unpacked

ANSWER_S = 10.0


@dataclass(frozen=True, slots=True)
class SpoolStats(HeldStats):
    """What a spool of `run` holds, read from the disk; corrupt groups are counted that wait to be played again.

    `unreadable` are groups whose state is corrupt, so that they are counted nowhere else. `oldest_version` and
    `newest_version` are those of the smallest and the largest step that sampled in a held group (None without any; of
    each turn its oldest token counts).
    """

    abandoned: int = figure("sum")
    filtered: int = figure("sum")
    unreadable: int = figure("sum")
    oldest_version: int | None = figure("oldest", default=None)
    newest_version: int | None = figure("newest", default=None)
    run: str = figure("max", default="")  # spools of one run: the same

    def to_json(self) -> dict[str, Any]:
        return {"run": self.run, **HeldStats.to_json(self)}


def of_spools(folders: Sequence[Path], run_id: str | None = None) -> Iterator[SpoolStats]:
    """Yields the counts of each spool."""
    for folder in folders:
        with SpoolReader(folder, run_id) as reader:
            found = [(group, unpacked(packed)) for group, packed in reader.groups()]
            held = [(group, known) for group, known in found if known is not None]
            marks = Counter(reason_of(mark) for _, mark in reader.marks())
            stats = _of_groups(held, marks)
            yield replace(stats, run=reader.run_id, step=reader.step(), unreadable=len(found) - len(held))


def _of_groups(groups: list[tuple[bytes, HeldGroup]], marks: Counter[str]) -> SpoolStats:
    states = {state: [(group, held) for group, held in groups if held.state is state] for state in State}
    corrupt = corrupt_of(states[State.ABANDONED])
    versions = [v for _, held in groups for v in (held.low, held.high) if v != NO_VERSION]
    return SpoolStats(
        open=len(states[State.OPEN]),
        ready=len(states[State.READY]),
        claimed=len(states[State.CLAIMED]),
        used=len(states[State.USED]),
        abandoned=len(states[State.ABANDONED]),
        filtered=len(states[State.FILTERED]),
        trained_total=len(states[State.USED]) + marks[TRAINED],
        dropped=dropped(states[State.FILTERED], marks, len(corrupt)),
        corrupt=corrupt,
        rows=sum(held.rows for _, held in groups),
        bytes=sum(held.size for _, held in groups),
        oldest_version=min(versions, key=step_of, default=None),
        newest_version=max(versions, key=step_of, default=None),
    )


def ask(endpoint: str, keys: ClientKeys | None) -> ReplayStats:
    """The counts of a live service; SettingError when nobody answers at `endpoint`."""
    cure = "Give the serve endpoint of a running service, ipc://... or tcp://..., and its keys if it needs some"
    try:
        if not endpoint.startswith(("ipc://", "tcp://")):
            raise SettingError("--at", f"{endpoint!r} is not an endpoint", cure)
        with zmq.Context() as context, context.socket(zmq.DEALER) as probe:  # a client that cannot connect cannot end
            probe.connect(endpoint)
    except zmq.ZMQError as error:
        raise SettingError("--at", f"{endpoint}: {error}", cure) from None
    client = Client([Endpoints("", endpoint)], "stats", keys, ANSWER_S)
    try:
        return client.stats()
    except DeadlineError as error:
        raise SettingError("--at", str(error), cure) from None
    finally:
        client.close()
