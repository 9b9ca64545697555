"""`redraft replay`: the service alone, and tools for what it keeps, on real spools and services."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import socket
import tempfile
import threading
import urllib.request
import zlib
from pathlib import Path

import lmdb
import msgpack
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from support.spool_house import (
    CLAIMED,
    CLOSED,
    DEADLINE_S,
    FORGOTTEN,
    OPEN,
    READY,
    ROOT,
    STALE,
    TORN,
    USED,
    Serving,
    a_run,
    damages,
    edit,
    fill,
    flip,
    play,
    put,
    redraft,
    stored,
    turns_of,
)

from protocols.errors import RedraftError, SettingError
from protocols.wire import ENTRY, Row, row_of
from replay import keys, reader, tools
from replay.client import Client, Producer
from replay.config import Endpoints, ReplaySettings
from replay.reader import DamagedError, SpoolReader
from replay.store import Store
from replay.verify import At, apart, read_all


@pytest.fixture
def spool(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return fill(tmp_path / "spool")


# -- verify


def test_a_spool_with_groups_in_all_states_is_whole_and_not_written_to(spool):
    before = (spool / "data.mdb").read_bytes()
    assert damages(spool) == []
    end = [found for found in read_all(At(spool), None) if isinstance(found, At)][-1]
    sizes = [len(value) for group in (*CLOSED, OPEN, TORN) for value in stored(spool, group)[1:]]
    assert (end.groups, end.total, end.rows, end.size) == (6, 6, len(sizes), sum(sizes)) and len(sizes) == 19
    result = redraft("verify", spool)
    assert result.exit_code == 0 and len(result.output.splitlines()) == 1
    assert f"6 groups, 19 rows, {sum(sizes)} bytes" in result.output
    assert (spool / "data.mdb").read_bytes() == before


@pytest.mark.parametrize("group", [READY, OPEN], ids=["closed", "open"])
def test_each_flipped_byte_of_what_is_stored_is_found_and_its_group_named(spool, group):
    whole = (spool / "data.mdb").read_bytes()
    dice = random.Random(0)
    record, *_, row = stored(spool, group)
    for value in (record, row):
        for place in range(len(value)):
            flip(spool, value, place, dice.randrange(1, 256))
            assert {found.group for found in damages(spool)} == {group}, f"byte {place} of {len(value)}"
            (spool / "data.mdb").write_bytes(whole)
    assert damages(spool) == []


def test_a_flipped_byte_in_large_rows_and_in_a_mark_is_found(spool):
    whole = (spool / "data.mdb").read_bytes()
    dice = random.Random(0)
    _, *rows = stored(spool, USED)
    large = max(rows, key=len)
    assert len(large) > 3 * 4096
    for place in (0, len(large) - 1, *dice.sample(range(len(large)), 20)):
        flip(spool, large, place)
        assert {found.group for found in damages(spool)} == {USED}
        (spool / "data.mdb").write_bytes(whole)
    flip(spool, FORGOTTEN + b"trained", 18)
    assert [found.group for found in damages(spool)] == [FORGOTTEN]


def test_the_command_names_the_group_and_what_is_wrong_and_exits_with_1(spool):
    flip(spool, stored(spool, CLAIMED)[2], 60)
    flip(spool, stored(spool, READY)[0], 10)
    result = redraft("verify", spool)
    assert result.exit_code == 1
    first, second, summary = result.output.splitlines()
    assert READY.hex() in first and "its record fails its checksum" in first
    assert f"{CLAIMED.hex()} (claimed, lease 1, order 2): " in second and "of lease 1 fails its checksum" in second
    assert "2 found damaged" in summary and "6 groups, 19 rows" in summary


def delete_row(txn, of):
    with txn.cursor(of["rows"]) as cursor:
        assert cursor.set_range(READY) and cursor.delete()


def delete_record(txn, of):
    assert txn.delete(READY, db=of["records"])


def add_row_of_another_lease(txn, of):
    entry, record = row_of(turns_of(READY, lease=0)[0], 0)
    assert txn.put(entry[:24], entry + record, db=of["rows"])


def swap_records(txn, of):
    ready, opened = txn.get(READY, db=of["records"]), txn.get(OPEN, db=of["records"])
    assert ready and opened and txn.put(READY, opened, db=of["records"])


def put_nonsense_with_a_right_checksum(txn, of):
    with txn.cursor(of["rows"]) as cursor:
        assert cursor.set_range(READY)
        key, value = cursor.item()
        record = msgpack.packb(("nonsense",)) + bytes(len(value) - ENTRY.size - 10)
        row = Row._make(ENTRY.unpack(value[: ENTRY.size]))
        unsummed = ENTRY.pack(*row[:-1], 0)[:-4]
        crc = zlib.crc32(unsummed, zlib.crc32(record))
        assert txn.put(key, unsummed + crc.to_bytes(4, "big") + record, db=of["rows"])


def forget_what_is_held(txn, of):
    assert txn.put(READY, b"trained", db=of["marks"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (delete_row, "3 rows where 4"),
        (delete_record, "no record"),
        (add_row_of_another_lease, "lease 0"),
        (swap_records, "rows"),
        (put_nonsense_with_a_right_checksum, "turn 0 of group"),
        (forget_what_is_held, "forgotten"),
    ],
)
def test_what_is_sound_and_does_not_fit_together_is_found(spool, change, words):
    edit(spool, change)
    (found,) = damages(spool)
    assert found.group == READY and words in found.problem


def test_a_last_step_before_that_of_a_use_is_found_and_one_that_is_no_number(spool):
    edit(spool, lambda txn, of: txn.put(b"step", b"11", db=of["meta"]))
    (found,) = damages(spool)
    assert "last step is 11" in found.problem and "step 12" in found.problem
    edit(spool, lambda txn, of: txn.put(b"step", b"1x", db=of["meta"]))
    assert ["1x" in found.problem for found in damages(spool)] == [True]


def places(data, value):
    """Where it begins, in pages that are in use and in those that are not."""
    return [found.start() for found in re.finditer(re.escape(value), data)]


def is_node(data, at):
    """Whether the value there belongs to its page, and is not what lay there before."""
    page = at // 4096 * 4096
    end = int.from_bytes(data[page + 12 : page + 14], "little")
    return at - page - 32 in np.frombuffer(data[page + 16 : page + end], "<u2")  # behind 8 bytes and its key


def test_where_a_page_ends_the_process_its_groups_are_named_and_all_others_are_read(spool, capfd):
    store, large = Store(spool, "run", ReplaySettings()), b"0" * 16  # before all others
    put(store, *turns_of(large, turns=30, size=100))
    store.close()
    data = bytearray((spool / "data.mdb").read_bytes())
    for at in filter(lambda at: is_node(data, at), places(data, stored(spool, large)[15])):
        data[at // 4096 * 4096 + 10] = 0  # the kind of page
    (spool / "data.mdb").write_bytes(data)
    result = redraft("verify", spool)
    assert result.exit_code == 1 and "Traceback" not in capfd.readouterr().err
    assert f"{large.hex()}: the process that read it was ended by SIG" in result.stdout
    assert READY.hex() not in result.stdout
    assert redraft("export", spool, "out.parquet", "--state", "used,ready").output.endswith("(1)\n")
    assert set(pd.read_parquet("out.parquet").group) == {USED.hex(), READY.hex()}


@pytest.mark.parametrize(
    ("first", "last", "put", "words"),
    [
        (-6, -4, b"\xff\x3f", "was ended by SIG"),  # the length of the value: far beyond the file
        (24, 32, b"\xff\xff\xff\xff\0\0\0\0", "LMDB cannot read"),  # the number of the page where it lies
    ],
    ids=["length", "page"],
)
def test_a_row_that_cannot_be_reached_is_reported_and_the_other_groups_are_read(spool, first, last, put, words):
    large = max(stored(spool, USED)[1:], key=len)
    data = bytearray((spool / "data.mdb").read_bytes())
    for at in places(data, large[:24]):
        if data[at - 2] == 24:  # of a node: its length, flags and key size, then the key
            data[at + first : at + last] = put
    (spool / "data.mdb").write_bytes(data)
    flip(spool, stored(spool, CLAIMED)[1], 60)
    result = redraft("verify", spool)
    found, other, *_, summary = result.output.splitlines()
    assert result.exit_code == 1 and USED.hex() in found and words in found and CLAIMED.hex() in other
    assert not any(group.hex() in result.output for group in (READY, STALE, OPEN, TORN))
    assert "found damaged: 6 groups, 15 rows" in summary
    assert "2 groups, 6 turns" in redraft("export", spool, "out.parquet").output
    assert sorted(path.name for path in Path().iterdir()) == ["out.parquet", "spool"]


def test_a_file_that_is_no_lmdb_is_damage_and_no_traceback(spool):
    (spool / "data.mdb").write_bytes(b"x" * 8192)
    result = redraft("verify", spool)
    assert result.exit_code == 1 and "LMDB cannot read" in result.output
    with pytest.raises(DamagedError):
        redraft("stats", spool)


# -- who reads


def test_a_reader_apart_brings_its_errors_home_and_its_death_and_ends_with_who_asked():
    wrong = "__import__('protocols').errors.SettingError('a.b', 'is wrong', 'Do this')"
    with pytest.raises(SettingError, match="a.b: is wrong. Do this"):
        list(apart(eval, f"(_ for _ in ()).throw({wrong})"))
    with pytest.raises(DamagedError, match="SIGSEGV"):
        list(apart(eval, f"(__import__('os').kill(__import__('os').getpid(), {signal.SIGSEGV:d}) for _ in 'x')"))
    asked = apart(eval, "((__import__('os').getpid(), n) for n in range(10**12))")
    (process, _), (_, second) = next(asked), next(asked)
    assert second == 1 and process != os.getpid()
    asked.close()
    assert not Path(f"/proc/{process}").exists(), "the process went on"


def other_schema(txn, of):
    txn.put(b"run", b"1:run", db=of["meta"])


def test_a_source_that_cannot_be_read_is_named_with_its_cure(spool, tmp_path):
    (tmp_path / "empty").mkdir()
    for command in (("verify",), ("stats",), ("export", "out")):
        with pytest.raises(SettingError, match=r"SOURCE: empty is neither a spool .* nor a run\. Known: none yet"):
            redraft(command[0], "empty", *command[1:])
    assert not list((tmp_path / "empty").iterdir())
    with pytest.raises(SettingError, match=f"{spool} belongs to run run, not to other"):
        SpoolReader(spool, "other")
    edit(spool, other_schema)
    with pytest.raises(SettingError, match=f"{spool} holds schema 1, .* reads"):
        SpoolReader(spool)
    with lmdb.open(str(tmp_path / "empty"), max_dbs=4) as env:
        env.open_db(b"other")
    with pytest.raises(SettingError, match="empty is no spool"):
        SpoolReader(tmp_path / "empty")


def test_where_the_lock_cannot_be_written_no_service_may_run_meanwhile(spool, monkeypatch):
    writable = os.access
    monkeypatch.setattr(reader.os, "access", lambda path, mode: mode != os.W_OK and writable(path, mode))
    with SpoolReader(spool) as opened:
        assert len(list(opened.records())) == 6
        with pytest.raises(SettingError, match="another replay service"):
            Store(spool, "run", ReplaySettings())
    with Serving(spool), pytest.raises(SettingError, match="while no service works on it"):
        SpoolReader(spool)


# -- serve


def test_the_service_alone_says_when_it_is_ready_and_ends_cleanly_with_all_that_it_acknowledged(tmp_path, spool):
    with Serving(tmp_path / "new", "--metrics-port", 0, "max_uses=2") as serving:
        assert all(word in serving.ready for word in ("run run", serving.endpoints.ingest, serving.endpoints.serve))
        port = re.search(r"metrics on port (\d+)", serving.ready).group(1)
        producer = Producer("actor")
        play(producer, serving, READY).result(DEADLINE_S)
        page = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=DEADLINE_S).read().decode()
        assert 'redraft_replay_rows_total{outcome="stored"} 4.0' in page
        live = json.loads(redraft("stats", "--at", serving.endpoints.serve, "--json").stdout)
        assert (live["ready"], live["rows"]) == (1, 4)
        producer.close(DEADLINE_S)
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
        ({"run_id": "other"}, "replay.folder: .*schema:run 2:run, not 2:other"),
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
        tools.serve(
            Path(given.get("folder", "spool")),
            Endpoints(given.get("ingest", f"ipc://{place}/i"), given.get("serve", f"ipc://{place}/s")),
            tools.settings(given.get("settings", ())),
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
from replay import request_handler
from redraft.cli.main import main
def fail(self):
    raise ZeroDivisionError("the tick broke")
request_handler.RequestHandler.tick = fail
main()
"""
    with Serving(tmp_path / "new", program=("-c", program)) as serving:
        code, _, error = serving.end()
    assert code != 0 and "redraft: the replay service failed: ZeroDivisionError('the tick broke')" in error


# -- beside a live service


def test_reading_beside_a_live_service_sees_one_moment_and_disturbs_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Serving("spool", "max_bytes=50000000") as serving:
        producer, client = Producer("actor"), Client([serving.endpoints], "learner")
        play(producer, serving, READY).result(DEADLINE_S)
        stop, played = threading.Event(), []

        def go_on():
            """Groups come, are used and forgotten, so that pages are freed and used again."""
            while not stop.is_set():
                groups = [random.Random(len(played) + n).randbytes(16) for n in range(8)]
                for done in [play(producer, serving, group, size=500) for group in groups]:
                    done.result(DEADLINE_S)
                played.extend(groups)
                client.commit(groups, len(played))
                client.checkpoint(len(played))

        going = threading.Thread(target=go_on)
        going.start()
        try:
            with SpoolReader(Path("spool")) as opened:
                before, rows, count = dict(opened.records()), opened.rows(READY), len(played)
                for _ in range(2):
                    result = redraft("verify", "spool")
                    assert result.exit_code == 0, result.output
                assert redraft("export", "spool", "out.parquet").exit_code == 0
                assert len(played) > count, "the service was held up"
                assert (dict(opened.records()), opened.rows(READY)) == (before, rows)
        finally:
            stop.set()
            going.join()
        live = json.loads(redraft("stats", "--at", serving.endpoints.serve, "--json").stdout)
        assert live["stored"] == 4 * (len(played) + 1) and live["step"] == len(played)
        producer.close(DEADLINE_S)
        client.close()
        assert serving.end(signal.SIGTERM)[0] == 0


# -- stats


def test_stats_count_what_is_there(spool, tmp_path):
    store = Store(spool, "run", ReplaySettings())
    known = store.stats()
    store.close()
    got = json.loads(redraft("stats", spool, "--json").stdout)
    same = ("open", "ready", "claimed", "used", "step", "trained_total", "torn", "rows", "bytes")
    assert {key: got[key] for key in same} == {key: known[key] for key in same}
    assert (got["used"], got["trained_total"], got["step"], got["rows"]) == (1, 2, 12, 19)
    assert (got["aside"], got["abandoned"], got["dropped"]) == (1, 1, {"stale": 1, "torn": 1})
    assert (got["oldest_version"], got["newest_version"], got["run"]) == (3, 3, "run")
    edit(spool, lambda txn, of: txn.put(READY, b"nonsense", db=of["records"]))
    got = json.loads(redraft("stats", spool, "--json").stdout)
    assert (got["unreadable"], got["ready"]) == (1, 0)


def test_a_run_is_all_its_shards(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = a_run(tmp_path)
    got = json.loads(redraft("stats", "r", "--json").stdout)
    assert (got["ready"], got["rows"], got["step"], got["dropped"]) == (2, 38, 12, {"stale": 2, "torn": 2})
    assert [shard["ready"] for shard in got["shards"]] == [1, 1] and got["oldest_version"] == 3
    table = {line.split("  ")[0].strip(): line.split() for line in redraft("stats", folder).stdout.splitlines()}
    assert table["rows"][1:] == ["19", "19", "38"] and table["oldest version"][2:] == ["3", "3", "3"]
    flip(folder / "spool" / "1", stored(folder / "spool" / "1", READY)[1], 60)
    result = redraft("verify", "r")
    assert result.exit_code == 1 and "spool/1: group " + READY.hex() in result.output and "12 groups" in result.output
    assert redraft("export", "r", "out.parquet").exit_code == 1
    assert pq.read_table("out.parquet").num_rows == 7 * 3
    edit(folder / "spool" / "0", lambda txn, of: txn.put(b"run", b"2:other", db=of["meta"]))
    with pytest.raises(SettingError, match="spool/0 belongs to run other, not to run"):
        redraft("stats", "r")
    with pytest.raises(SettingError, match="spool/0 belongs to run other"):
        redraft("export", "r", "other.parquet")
    assert sorted(path.name for path in Path().iterdir()) == ["out.parquet", "runs"]


def test_stats_of_a_live_service_are_asked_with_keys(tmp_path, monkeypatch):
    keys.new(tmp_path / "keys")
    with socket.socket() as first, socket.socket() as second:
        first.bind(("127.0.0.1", 0)), second.bind(("127.0.0.1", 0))
        ingest, serve = (f"tcp://127.0.0.1:{chosen.getsockname()[1]}" for chosen in (first, second))
    with Serving(tmp_path / "new", "--keys", tmp_path / "keys", ingest=ingest, serve=serve):
        said = redraft("stats", "--at", serve, "--keys", tmp_path / "keys").stdout
        assert re.search(r"ready +0", said)
        monkeypatch.setattr(tools, "ANSWER_S", 0.5)
        with pytest.raises(SettingError, match=f"--at: .*{serve}.* its keys"):
            redraft("stats", "--at", serve)
    for wrong in ("nonsense", "tcp://nonsense"):
        with pytest.raises(SettingError, match=f"--at: '?{wrong}"):
            redraft("stats", "--at", wrong)
    with pytest.raises(SettingError, match="SOURCE: give it or --at"):
        redraft("stats")


# -- grow


class Controller:
    """Stands for the actor of a run that goes on."""

    def __init__(self, answer):
        self._answer = answer
        self.add_shard = self

    def remote(self):
        return self._answer


def test_grow_asks_the_controller_for_a_shard_and_says_how_many_there_are(tmp_path, monkeypatch):
    import ray

    from redraft.control import client

    monkeypatch.chdir(tmp_path)
    folder = a_run(tmp_path, shards=1)
    (folder / "recipe.yaml").write_text((ROOT / "recipes" / "quickstart.yaml").read_text())
    with pytest.raises(RedraftError, match="r is not running"):
        redraft("grow", "r")
    with pytest.raises(SettingError, match="there is no run 'x'"):
        redraft("grow", "x")
    monkeypatch.setattr(client, "_controller", lambda run: Controller(run.id))
    monkeypatch.setattr(ray, "get", lambda ref, timeout: {"run": 3}[ref])
    assert redraft("grow", "r").output == "r has 3 shards of replay\n"

    def fail(ref, timeout):
        raise ray.exceptions.RayTaskError("add_shard", "a traceback", SettingError("RUN", "is not training", "Wait"))

    monkeypatch.setattr(ray, "get", fail)
    with pytest.raises(SettingError, match="RUN: is not training. Wait"):
        redraft("grow", "r")
