"""Runs one replay service alone, without a run."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import lmdb
from pydantic import ValidationError

from protocols import metrics_page
from protocols.errors import RedraftError, SettingError
from protocols.metrics_page import EVERYWHERE, LOOPBACK, TOKEN, Listen
from replay.config import Endpoints, ReplaySettings

log = logging.getLogger("redraft.replay")
STOPS = (signal.SIGTERM, signal.SIGINT)
LOOK_S = 0.2  # between two looks at whether the service still lives


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
        raise SettingError(key, f"{first['msg']} (found {first['input']!r})", "Correct it") from None


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
    from replay.server.service import Service

    if not run_id:
        raise SettingError("--run-id", "is empty", "Name the run whose turns are kept")
    with _stops() as heard:
        port = None
        if metrics_port is not None:
            port = metrics_page.serve(metrics_port, "--metrics-port", _listen(endpoints, keys))
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


def _listen(endpoints: Endpoints, keys: Path | None) -> Listen:
    """Where metrics are served: open to other machines where replay itself is, to who has the token among the keys.
    Raises SettingError where there is none."""
    scheme, _, host = endpoints.serve.rpartition(":")[0].partition("://")
    if scheme != "tcp" or host in (LOOPBACK, "localhost"):
        return Listen()
    if keys is None:
        problem = f"others reach {endpoints.serve}, and no keys were given, with the token that metrics ask for"
        raise SettingError("--metrics-port", problem, "Make keys with `redraft keys new FOLDER`, or leave it out")
    return Listen(EVERYWHERE, metrics_page.read(keys / TOKEN, "--keys"))


@contextmanager
def _stops() -> Iterator[list[int]]:
    """Collects the signals to stop, which then interrupt nothing."""
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
