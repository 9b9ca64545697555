"""`redraft replay serve`: the service alone, and what works beside it."""

from __future__ import annotations

import json
import random
import re
import signal
import socket
import tempfile
import threading
import urllib.request
from pathlib import Path

import pytest
from support.spool_house import (
    DEADLINE_S,
    READY,
    Serving,
    play,
    redraft,
)
from support.waiting import deadline_s

from protocols.errors import SettingError
from replay.client import Client, Producer
from replay.config import Endpoints, ReplaySettings
from replay.disk.reader import SpoolReader
from replay.server.store import Store
from replay.tools import standalone


def test_the_service_alone_says_when_it_is_ready_and_ends_cleanly_with_all_that_it_acknowledged(tmp_path, spool):
    with Serving(tmp_path / "new", "--metrics-port", 0, "max_uses=2") as serving:
        assert all(word in serving.ready for word in ("run run", serving.endpoints.ingest, serving.endpoints.serve))
        port = re.search(r"metrics on port (\d+)", serving.ready).group(1)
        producer = Producer("actor")
        play(producer, serving, READY).result(deadline_s(DEADLINE_S))
        page = (
            urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=deadline_s(DEADLINE_S)).read().decode()
        )
        assert 'redraft_replay_rows_total{outcome="stored"} 4.0' in page
        live = json.loads(redraft("stats", "--at", serving.endpoints.serve, "--json").stdout)
        assert (live["ready"], live["rows"]) == (1, 4)
        producer.close(deadline_s(DEADLINE_S))
        code, said, log = serving.end(signal.SIGTERM)
    assert (
        (code, said) == (0, "")
        and "Traceback" not in log
        and all(" run redraft: " in line for line in log.splitlines())
    )
    assert json.loads(redraft("stats", tmp_path / "new", "--json").stdout)["ready"] == 1
    with Serving(tmp_path / "new") as serving:
        assert serving.end(signal.SIGINT)[0] == 0


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


def test_a_second_service_on_a_folder_ends_with_one_line_and_the_first_goes_on(tmp_path):
    with Serving(tmp_path / "new") as serving:
        code, said, error = Serving(tmp_path / "new").end()
        assert (code, said) == (2, "") and error.startswith("redraft: replay.folder: another replay service")
        assert len(error.splitlines()) == 1 and serving.end(signal.SIGTERM)[0] == 0


def test_a_service_that_fails_ends_its_process_with_the_cause(tmp_path):
    program = """
import threading
from replay.server import request_handler
from redraft.cli.main import main
def fail(self):
    raise ZeroDivisionError("the tick broke")
request_handler.RequestHandler.tick = fail
main()
"""
    with Serving(tmp_path / "new", program=("-c", program)) as serving:
        code, _, error = serving.end()
    assert code != 0 and "redraft: the replay service failed: ZeroDivisionError('the tick broke')" in error


def test_reading_beside_a_live_service_sees_one_moment_and_disturbs_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Serving("spool", "max_bytes=50000000") as serving:
        producer, client = Producer("actor"), Client([serving.endpoints], "learner")
        play(producer, serving, READY).result(deadline_s(DEADLINE_S))
        stop, played = threading.Event(), []

        def go_on():
            """Groups come, are used and forgotten, so that pages are freed and used again."""
            while not stop.is_set():
                groups = [random.Random(len(played) + n).randbytes(16) for n in range(8)]
                for done in [play(producer, serving, group, size=500) for group in groups]:
                    done.result(deadline_s(DEADLINE_S))
                played.extend(groups)
                client.commit(groups, len(played))
                client.checkpoint(len(played))

        going = threading.Thread(target=go_on)
        going.start()
        try:
            with SpoolReader(Path("spool")) as opened:
                before, rows, count = dict(opened.groups()), opened.rows(READY), len(played)
                for _ in range(2):
                    result = redraft("verify", "spool")
                    assert result.exit_code == 0, result.output
                assert redraft("export", "spool", "out.parquet").exit_code == 0
                assert len(played) > count, "the service was held up"
                assert (dict(opened.groups()), opened.rows(READY)) == (before, rows)
        finally:
            stop.set()
            going.join()
        live = json.loads(redraft("stats", "--at", serving.endpoints.serve, "--json").stdout)
        assert live["stored"] == 4 * (len(played) + 1) and live["step"] == len(played)
        producer.close(deadline_s(DEADLINE_S))
        client.close()
        assert serving.end(signal.SIGTERM)[0] == 0
