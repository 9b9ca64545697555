"""`redraft replay verify`: every byte of a spool is read, and what is not as it was written is named."""

from __future__ import annotations

import os
import random
import re
import signal
import zlib
from pathlib import Path

import lmdb
import msgpack
import numpy as np
import pandas as pd
import pytest
from support.spool_house import (
    CLAIMED,
    CLOSED,
    CORRUPT,
    FORGOTTEN,
    OPEN,
    READY,
    STALE,
    USED,
    Serving,
    damages,
    edit,
    flip,
    put,
    redraft,
    stored,
    turns_of,
)

from protocols.errors import SettingError
from protocols.wire import ENTRY, Row, row_of
from replay.config import ReplaySettings
from replay.disk import reader
from replay.disk.reader import SpoolReader, UnreadableError
from replay.server.store import Store
from replay.tools.verify import Progress, apart, read_all


def test_a_spool_with_groups_in_all_states_is_whole_and_not_written_to(spool):
    before = (spool / "data.mdb").read_bytes()
    assert damages(spool) == []
    end = [found for found in read_all(Progress(spool), None) if isinstance(found, Progress)][-1]
    sizes = [len(value) for group in (*CLOSED, OPEN, CORRUPT) for value in stored(spool, group)[1:]]
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
    assert READY.hex() in first and "its state fails its checksum" in first
    assert f"{CLAIMED.hex()} (claimed, lease 1, order 2): " in second and "of lease 1 fails its checksum" in second
    assert "2 found corrupt" in summary and "6 groups, 19 rows" in summary


def delete_row(txn, of):
    with txn.cursor(of["rows"]) as cursor:
        assert cursor.set_range(READY) and cursor.delete()


def delete_record(txn, of):
    assert txn.delete(READY, db=of["groups"])


def add_row_of_another_lease(txn, of):
    entry, record = row_of(turns_of(READY, lease=0)[0], 0)
    assert txn.put(entry[:24], entry + record, db=of["rows"])


def swap_records(txn, of):
    ready, opened = txn.get(READY, db=of["groups"]), txn.get(OPEN, db=of["groups"])
    assert ready and opened and txn.put(READY, opened, db=of["groups"])


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
        (delete_record, "no state"),
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
    assert not any(group.hex() in result.output for group in (READY, STALE, OPEN, CORRUPT))
    assert "found corrupt: 6 groups, 15 rows" in summary
    assert "2 groups, 6 turns" in redraft("export", spool, "out.parquet").output
    assert sorted(path.name for path in Path().iterdir()) == ["out.parquet", "spool"]


def test_a_file_that_is_no_lmdb_is_damage_and_no_traceback(spool):
    (spool / "data.mdb").write_bytes(b"x" * 8192)
    result = redraft("verify", spool)
    assert result.exit_code == 1 and "LMDB cannot read" in result.output
    with pytest.raises(UnreadableError):
        redraft("stats", spool)


def test_a_reader_apart_brings_its_errors_home_and_its_death_and_ends_with_who_asked():
    wrong = "__import__('protocols').errors.SettingError('a.b', 'is wrong', 'Do this')"
    with pytest.raises(SettingError, match="a.b: is wrong. Do this"):
        list(apart(eval, f"(_ for _ in ()).throw({wrong})"))
    with pytest.raises(UnreadableError, match="SIGSEGV"):
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
    with pytest.raises(SettingError, match="empty is not a spool"):
        SpoolReader(tmp_path / "empty")


def test_where_the_lock_cannot_be_written_no_service_may_run_meanwhile(spool, monkeypatch):
    writable = os.access
    monkeypatch.setattr(reader.os, "access", lambda path, mode: mode != os.W_OK and writable(path, mode))
    with SpoolReader(spool) as opened:
        assert len(list(opened.groups())) == 6
        with pytest.raises(SettingError, match="another replay service"):
            Store(spool, "run", ReplaySettings())
    with Serving(spool), pytest.raises(SettingError, match="while no service works on it"):
        SpoolReader(spool)
