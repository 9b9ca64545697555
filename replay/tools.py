"""Tools beside a run: serve replay alone, count what a spool or a live service holds. See also verify and parquet."""

from __future__ import annotations

import logging
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import lmdb
import zmq
from pydantic import ValidationError

from protocols import metrics
from protocols.errors import DeadlineError, RedraftError, SettingError
from protocols.weights import step_of
from protocols.wire import NO_VERSION
from replay import shares
from replay.config import ClientKeys, Endpoints, ReplaySettings
from replay.groups import TORN, TRAINED, Record, State
from replay.reader import SpoolReader
from replay.spool import reason_of
from replay.verify import unpacked

log = logging.getLogger("redraft.replay")
ANSWER_S = 10.0
STOPS = (signal.SIGTERM, signal.SIGINT)
LOOK_S = 0.2  # between two looks at whether the service still lives


def stats(folders: Sequence[Path], run_id: str | None = None) -> Iterator[dict]:
    """Yields the counts of each spool, named as those of `replay.store.Store.stats` where they mean the same.

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
    """The counts of a live service, see `replay.store.Store.stats`; SettingError when nobody answers at `endpoint`."""
    from replay.client import Client

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


def settings(texts: Sequence[str]) -> ReplaySettings:
    """The settings that these key=value texts make. Raises SettingError, naming the key."""
    values = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise SettingError(text, "is not key=value", "Write, for example, max_uses=2")
        values[key] = value
    try:
        return ReplaySettings.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0])
        if first["type"] == "extra_forbidden":
            allowed = ", ".join(ReplaySettings.model_fields)
            raise SettingError(key, "there is no such key", f"Allowed here: {allowed}") from None
        raise SettingError(key, f"{first['msg']} (found {first['input']!r})") from None


def serve(
    folder: Path,
    endpoints: Endpoints,
    chosen: ReplaySettings,
    run_id: str,
    keys: Path | None,
    metrics_port: int | None,
    ready: Callable[[str], None],
) -> None:
    """Runs a service until SIGTERM or SIGINT; tells `ready` in one line when it answers.

    Raises SettingError when something it needs cannot be used, RedraftError with the cause when the service fails.
    """
    from replay.service import Service

    if not run_id:
        raise SettingError("--run-id", "is empty", "Name the run whose turns are kept")
    with _stops() as heard:
        port = None if metrics_port is None else metrics.serve(metrics_port, "--metrics-port", _listen(endpoints))
        service = Service(folder, endpoints, chosen, run_id, keys)
        with usable(folder):
            service.start()
        told = "" if port is None else f", metrics on port {port}"
        ready(f"replay of run {run_id} is ready: ingest {endpoints.ingest}, serve {endpoints.serve}{told}")
        try:
            while service.alive and not heard:
                service.join(LOOK_S)
            service.stop()
        except Exception as error:
            raise RedraftError(f"the replay service failed: {error!r}") from error
        log.info("the replay service stopped")


def _listen(endpoints: Endpoints) -> str:
    """Where metrics are served: for all where replay itself is reached from other machines."""
    scheme, _, host = endpoints.serve.rpartition(":")[0].partition("://")
    return metrics.EVERYWHERE if scheme == "tcp" and host not in (metrics.LOOPBACK, "localhost") else metrics.LOOPBACK


@contextmanager
def _stops() -> Iterator[list[int]]:
    """The signals to stop that came; they interrupt nothing."""
    heard: list[int] = []
    before = {number: signal.signal(number, lambda number, _: heard.append(number)) for number in STOPS}
    try:
        yield heard
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def usable(folder: Path) -> Iterator[None]:
    """Says in one line why the spool in `folder` cannot be opened for writing."""
    try:
        yield
    except OSError as error:
        raise SettingError("replay.folder", f"{folder} cannot be used: {error}", "Choose another") from None
    except lmdb.Error as error:
        problem = f"{folder} cannot be opened: {error}"
        raise SettingError("replay.folder", problem, "See `redraft replay verify`") from None
