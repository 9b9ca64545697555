"""Counts of what spools hold, read from the disk, and of what a live service says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import zmq

from protocols.errors import DeadlineError, SettingError
from protocols.weights import step_of
from protocols.wire import NO_VERSION
from replay.client import Client, shares
from replay.config import ClientKeys, Endpoints
from replay.disk.reader import SpoolReader
from replay.disk.spool import reason_of
from replay.server.groups import TORN, TRAINED, Record, State
from replay.tools.verify import unpacked

ANSWER_S = 10.0


def of_spools(folders: Sequence[Path], run_id: str | None = None) -> Iterator[dict]:
    """Yields the counts of each spool, named as those of `replay.server.store.Store.stats` where they mean the same.

    Besides: `abandoned` and `aside` groups, `unreadable` records, and the versions of the smallest and the largest step
    that sampled in a held group (None without any; of each turn its oldest token counts).
    """
    for folder in folders:
        with SpoolReader(folder, run_id) as reader:
            found = [(group, unpacked(packed)) for group, packed in reader.records()]
            records = [(group, record) for group, record in found if record is not None]
            marks = Counter(reason_of(mark) for _, mark in reader.marks())
            facts = {"step": reader.step(), "unreadable": len(found) - len(records)}
            yield {"run": reader.run_id, **_counts(records, marks), **facts}


def _counts(records: list[tuple[bytes, Record]], marks: Counter[str]) -> dict:
    states = Counter(record.state for _, record in records)
    torn = [[g.hex(), r.lease, r.order] for g, r in records if r.state is State.ABANDONED and r.reason == TORN]
    aside = Counter(record.reason for _, record in records if record.state is State.ASIDE)
    versions = [v for _, record in records for v in (record.low, record.high) if v != NO_VERSION]
    return {
        **{state.name.lower(): states[state] for state in State},
        "trained_total": states[State.USED] + marks[TRAINED],
        "dropped": {reason: n for reason, n in (marks + aside + Counter(torn=len(torn))).items() if reason != TRAINED},
        "torn": torn,
        "rows": sum(record.rows for _, record in records),
        "bytes": sum(record.size for _, record in records),
        "oldest_version": min(versions, key=step_of, default=None),
        "newest_version": max(versions, key=step_of, default=None),
    }


def total(spools: Sequence[dict]) -> dict:
    """The counts of several spools of one run as one."""
    names = {"oldest_version": min, "newest_version": max}
    kept = [{key: value for key, value in spool.items() if key not in (*names, "run")} for spool in spools]
    versions = {name: [spool[name] for spool in spools if spool[name] is not None] for name in names}
    extremes = {name: choose(versions[name], key=step_of, default=None) for name, choose in names.items()}
    return {"run": spools[0]["run"], **shares.total(kept), **extremes}


def ask(endpoint: str, keys: ClientKeys | None) -> dict:
    """The counts of a live service, see `Store.stats`; SettingError when nobody answers at `endpoint`."""
    cure = "Give the serve endpoint of a service that runs, ipc://... or tcp://..., and its keys where it wants some"
    try:
        if not endpoint.startswith(("ipc://", "tcp://")):
            raise SettingError("--at", f"{endpoint!r} is no endpoint", cure)
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
