"""`redraft replay export` and `import`: what replay keeps as Parquet, and back."""

from __future__ import annotations

import json
from pathlib import Path

import msgpack
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.spool_house import (
    CLAIMED,
    CLOSED,
    READY,
    STALE,
    USED,
    damages,
    do,
    flip,
    put,
    redraft,
    stored,
    turns_of,
)

from protocols.errors import SettingError
from protocols.turns import Turn
from protocols.wire import whole_group
from replay.config import ReplaySettings
from replay.disk.reader import SpoolReader
from replay.disk.spool import read_row
from replay.server.groups import PLAYED, HeldGroup
from replay.server.store import Store
from replay.tools import parquet
from replay.tools.verify import Corruption


def groups_of(folder):
    """Every closed group, decoded."""
    with SpoolReader(folder) as opened:
        ready = [group for group, packed in opened.groups() if HeldGroup.unpack(packed).state not in PLAYED]
        return {group: whole_group(read_row(*row) for row in opened.rows(group)) for group in ready}


def comparable(value):
    return value.tobytes() if isinstance(value, np.ndarray) else value


def facts(group):
    names = [name for name in Turn.__slots__]
    return group.lease, group.extra, [[comparable(getattr(turn, name)) for name in names] for turn in group.turns]


def test_an_export_says_what_was_played(spool):
    result = redraft("export", spool, "out.parquet")
    assert result.exit_code == 0 and "4 groups, 12 turns" in result.output
    frame = pd.read_parquet("out.parquet")
    assert list(frame.columns) == parquet.COLUMNS.names
    assert dict(zip(frame.group, frame.state, strict=True)) == {g.hex(): state for g, state in CLOSED.items()}
    turns = frame[frame.group == USED.hex()]
    first, second, third = (turns.iloc[n] for n in range(3))
    _, sent, last, _ = turns_of(USED, size=3000)
    assert (first.reward, second.reward, third.reward) == (0.75, 0.1, 0.2), "final rewards"
    assert second.response.tobytes() == sent.response.tobytes() and second.prompt.tobytes() == sent.prompt.tobytes()
    assert second.logprobs.tobytes() == sent.logprobs.tobytes()
    assert (second.role, second.stop, third.role) == ("reflection", "length", "retry")
    assert (second.turn, second.parent, second.after, second["index"], second.episode) == (1, 0, 0, 0, 1)
    assert list(second.versions) == [{"start": 0, "version": 3}, {"start": 5, "version": 1_000_004}]
    assert (second.queue_s, second.generation_s, second.environment_s) == sent.timing
    assert (first.truncated, third.terminated, second.terminated) == (True, True, False)
    assert (first.lease, first.order, list(first.uses), first.turns, first.spread) == (1, 0, [12], 3, 0.75)
    assert msgpack.unpackb(second.extra, strict_map_key=False) == sent.extra
    assert msgpack.unpackb(first.close_extra) == {"value": 1.5, "tree": [1, 2]} and second.close_extra is None
    described = pq.read_metadata("out.parquet").metadata
    assert described[b"redraft.run"] == b"run" and int(described[b"redraft.schema"]) > 0


def test_an_export_loads_as_a_dataset(spool, tmp_path):
    import datasets

    redraft("export", spool, "out.parquet", "--state", "used,ready")
    rows = datasets.load_dataset("parquet", data_files="out.parquet", split="train", cache_dir=str(tmp_path / "cache"))
    assert len(rows) == 6 and set(rows["state"]) == {"used", "ready"}
    assert rows[1]["response"] == turns_of(USED, size=3000)[1].response.tolist()
    assert rows[1]["versions"] == [{"start": 0, "version": 3}, {"start": 5, "version": 1_000_004}]


def test_an_export_comes_back_the_same_and_ready_and_a_second_time_as_duplicates(spool, tmp_path):
    redraft("export", spool, "out.parquet")
    result = redraft("import", "out.parquet", "back", "--run-id", "other")
    assert result.exit_code == 0 and "4 stored, 0 duplicate" in result.output
    before, after = groups_of(spool), groups_of(tmp_path / "back")
    assert set(before) == set(after) == set(CLOSED)
    assert {group: facts(before[group]) for group in before} == {group: facts(after[group]) for group in after}
    assert damages(tmp_path / "back", run_id="other") == []
    store = Store(tmp_path / "back", "other", ReplaySettings())
    assert store.stats().ready == 4 and store.ready.pick([], 4, 12, 10**9)[0] == list(CLOSED), "in order, to be served"
    assert store.groups.get(READY).spread == 0.75
    do(store, "claim", READY, b"learner/1", 1)
    do(store, "commit", READY, 1)
    store.close()
    redraft("export", tmp_path / "back", "again.parquet")
    first, second = (pq.read_table(name).drop_columns(["state", "uses"]) for name in ("out.parquet", "again.parquet"))
    assert first.drop_columns("logprobs").equals(second.drop_columns("logprobs"))
    logprobs = [table["logprobs"].combine_chunks().values.to_numpy().tobytes() for table in (first, second)]
    assert logprobs[0] == logprobs[1] and first["logprobs"].combine_chunks().offsets == second[
        "logprobs"
    ].combine_chunks().offsets.cast(pa.int32())
    assert "0 stored, 4 duplicate" in redraft("import", "out.parquet", "back", "--run-id", "other").output
    assert json.loads(redraft("stats", "back", "--json").stdout)["used"] == 1, "what is there stays as it is"


def test_a_corrupt_group_is_named_and_left_out_of_an_export(spool):
    flip(spool, stored(spool, READY)[2], 70)
    result = redraft("export", spool, "out.parquet")
    assert result.exit_code == 1 and READY.hex() in result.output and "3 groups, 9 turns" in result.output
    assert READY.hex() not in set(pd.read_parquet("out.parquet").group)
    with pytest.raises(SettingError, match="OUT: out.parquet exists"):
        redraft("export", spool, "out.parquet")
    with pytest.raises(SettingError, match="--state: 'open'"):
        redraft("export", spool, "other.parquet", "--state", "ready,open")
    with pytest.raises(SettingError, match="OUT: .*nowhere"):
        redraft("export", spool, "nowhere/out.parquet")


def test_an_export_holds_few_groups_in_memory(spool, monkeypatch):
    monkeypatch.setattr(parquet, "ROW_GROUP_TURNS", 4)
    found = list(parquet.export([spool], "run", Path("turns.parquet"), parquet.CLOSED))
    assert not any(isinstance(one, Corruption) for one in found) and (found[-1].groups, found[-1].rows) == (4, 16)
    assert [pq.ParquetFile("turns.parquet").metadata.row_group(n).num_rows for n in range(2)] == [6, 6]
    monkeypatch.setattr(parquet, "ROW_GROUP_BYTES", 30_000)
    monkeypatch.setattr(parquet, "ROW_GROUP_TURNS", 1000)
    list(parquet.export([spool], "run", Path("bytes.parquet"), parquet.CLOSED))
    assert pq.ParquetFile("bytes.parquet").num_row_groups == 2, "the large group is written at once"


def test_what_is_not_whole_is_not_imported_and_named(spool, tmp_path):
    redraft("export", spool, "out.parquet")
    frame = pd.read_parquet("out.parquet")
    rows = frame[frame.group != CLAIMED.hex()].sort_values("turn", kind="stable").sort_values("group", kind="stable")
    rows = rows.drop(rows[(rows.group == READY.hex()) & (rows.turn == 1)].index)
    rows.loc[(rows.group == STALE.hex()) & (rows.turn == 2), "role"] = "dreamer"
    rows.to_parquet("less.parquet")
    result = redraft("import", "less.parquet", "back", "--run-id", "run")
    assert result.exit_code == 1 and "1 stored" in result.output
    corrupt = [line for line in result.output.splitlines() if line.startswith("corrupt")]
    assert (
        READY.hex() in corrupt[0] and "[0, 2]" in corrupt[0] and STALE.hex() in corrupt[1] and "DREAMER" in corrupt[1]
    )
    assert set(groups_of(tmp_path / "back")) == {USED} and damages(tmp_path / "back") == []


def test_an_import_goes_by_the_rules_of_what_is_there(spool, tmp_path):
    redraft("export", spool, "out.parquet")
    store = Store(tmp_path / "back", "run", ReplaySettings())
    put(store, turns_of(USED, lease=4)[0])  # open, under a higher lease
    put(store, turns_of(READY, lease=0)[0])  # open, under a lower one
    put(store, turns_of(CLAIMED, turns=9)[7])  # open under the same one, and of another play
    store.close()
    result = redraft("import", "out.parquet", "back", "--run-id", "run")
    assert "2 stored, 0 duplicate, 1 fenced" in result.output
    assert result.exit_code == 1 and CLAIMED.hex() in result.output and "other rows" in result.output
    assert set(groups_of(tmp_path / "back")) == {READY, STALE} and damages(tmp_path / "back") == []
    got = json.loads(redraft("stats", "back", "--json").stdout)
    assert (got["ready"], got["open"]) == (2, 2)


def test_an_import_larger_than_the_map_makes_room(spool, tmp_path, monkeypatch):
    redraft("export", spool, "out.parquet")
    monkeypatch.setattr(ReplaySettings, "map_bytes", 1 << 16)
    monkeypatch.setattr("replay.disk.spool.GROWTH_BYTES", 1 << 14)
    assert "4 stored" in redraft("import", "out.parquet", "back", "--run-id", "run").output
    assert (tmp_path / "back" / "data.mdb").stat().st_size > 1 << 16


def test_a_file_or_folder_that_cannot_be_imported_is_named(spool, tmp_path):
    Path("nonsense.parquet").write_bytes(b"nonsense")
    pq.write_table(pa.table({"group": ["a"]}), "other.parquet")
    redraft("export", spool, "out.parquet")
    for file, words in (("nonsense", "cannot be read"), ("missing", "cannot be read"), ("other", "lacks the columns")):
        with pytest.raises(SettingError, match=f"FILE: {file}.parquet {words}"):
            redraft("import", f"{file}.parquet", "back", "--run-id", "run")
    assert not (tmp_path / "back").exists()
    with pytest.raises(SettingError, match="holds schema:run"):
        redraft("import", "out.parquet", spool, "--run-id", "other")
    data = bytearray(Path("out.parquet").read_bytes())
    data[len(data) // 3] ^= 1
    Path("out.parquet").write_bytes(data)
    with pytest.raises(SettingError, match="FILE: out.parquet cannot be read"):
        redraft("import", "out.parquet", "back", "--run-id", "run")
