"""`redraft replay serve` in a process of its own: how it begins and ends, and what works beside it."""

from __future__ import annotations

import json
import random
import re
import signal
import threading
import urllib.request
from pathlib import Path

from support.spool_house import (
    DEADLINE_S,
    READY,
    Serving,
    play,
    redraft,
)
from support.waiting import deadline_s

from replay.client import Client, Producer
from replay.disk.reader import SpoolReader


def test_the_service_alone_says_when_it_is_ready_and_ends_cleanly_with_all_that_it_acknowledged(tmp_path):
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
        (code, said) == (0, "") and "Traceback" not in log and all(" run replay: " in line for line in log.splitlines())
    )
    assert json.loads(redraft("stats", tmp_path / "new", "--json").stdout)["ready"] == 1
    with Serving(tmp_path / "new", "--logs", "json") as serving:
        code, _, log = serving.end(signal.SIGINT)
    lines = [json.loads(line) for line in log.splitlines()]
    assert code == 0 and {(line["run"], line["part"], line["level"]) for line in lines} == {("run", "replay", "info")}


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
