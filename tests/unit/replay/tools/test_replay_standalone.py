"""`redraft replay serve` names what it cannot use, and starts nothing then."""

from __future__ import annotations

import socket
import tempfile
from pathlib import Path

import pytest

from protocols.errors import SettingError
from replay.config import Endpoints, ReplaySettings
from replay.server.store import Store
from replay.tools import standalone


@pytest.fixture(scope="module")
def taken():
    """A port on which somebody else listens."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield listening.getsockname()[1]


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ({"ingest": "tcp://127.0.0.1:{taken}"}, "replay.keys: .*redraft keys new"),
        ({"ingest": "tcp://127.0.0.1:{taken}", "settings": ["curve=false"]}, "replay.endpoint: .*{taken}: port in use"),
        ({"serve": "nonsense", "settings": ["curve=false"]}, "replay.endpoint: nonsense"),
        ({"port": "{taken}"}, "--metrics-port: port {taken} cannot be used"),
        ({"port": "0", "serve": "tcp://0.0.0.0:0"}, "--metrics-port: .*no keys were given, .*redraft keys new FOLDER"),
        ({"run_id": ""}, "--run-id: is empty"),
        ({"run_id": "other"}, "replay.folder: .*schema:run 3:run, not 3:other"),
        ({"folder": "spool/data.mdb"}, "replay.folder: spool/data.mdb cannot be used"),
        ({"settings": ["max_uses=0"]}, "max_uses: .*0"),
        ({"settings": ["max_usses=2"]}, "max_usses: there is no such key.*max_uses"),
        ({"settings": ["max_uses"]}, "max_uses: is not key=value"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_what_a_service_cannot_use_is_named_and_nothing_started(spool, taken, named, words):
    given = {name: value.format(taken=taken) if isinstance(value, str) else value for name, value in named.items()}
    with tempfile.TemporaryDirectory(dir="/tmp") as place, pytest.raises(SettingError, match=words.format(taken=taken)):
        standalone.serve(
            Path(given.get("folder", "spool")),
            Endpoints(given.get("ingest", f"ipc://{place}/i"), given.get("serve", f"ipc://{place}/s")),
            standalone.settings(given.get("settings", ())),
            given.get("run_id", "run"),
            None,
            int(given["port"]) if "port" in given else None,
            pytest.fail,
        )
    Store(spool, "run", ReplaySettings()).close()
