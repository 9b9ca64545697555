"""`redraft replay stats` and `grow`: counts of spools and live services; one more shard."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from support.ports import tcp_endpoints
from support.spool_house import (
    READY,
    ROOT,
    Serving,
    a_run,
    edit,
    flip,
    redraft,
    stored,
)

from protocols.errors import RedraftError, SettingError
from replay import keys
from replay.config import ReplaySettings
from replay.server.store import Store
from replay.tools import stats


def test_stats_count_what_is_there(spool, tmp_path):
    store = Store(spool, "run", ReplaySettings())
    known = store.stats().to_json()
    store.close()
    got = json.loads(redraft("stats", spool, "--json").stdout)
    same = ("open", "ready", "claimed", "used", "step", "trained_total", "corrupt", "rows", "bytes")
    assert {key: got[key] for key in same} == {key: known[key] for key in same}
    assert (got["used"], got["trained_total"], got["step"], got["rows"]) == (1, 2, 12, 19)
    assert (got["filtered"], got["abandoned"], got["dropped"]) == (1, 1, {"stale": 1, "corrupt": 1})
    assert (got["oldest_version"], got["newest_version"], got["run"]) == (3, 3, "run")
    edit(spool, lambda txn, of: txn.put(READY, b"nonsense", db=of["groups"]))
    got = json.loads(redraft("stats", spool, "--json").stdout)
    assert (got["unreadable"], got["ready"]) == (1, 0)


def test_a_run_is_all_its_shards(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = a_run(tmp_path)
    got = json.loads(redraft("stats", "r", "--json").stdout)
    assert (got["ready"], got["rows"], got["step"], got["dropped"]) == (2, 38, 12, {"stale": 2, "corrupt": 2})
    assert [shard["ready"] for shard in got["shards"]] == [1, 1] and got["oldest_version"] == 3
    table = {line.split("  ")[0].strip(): line.split() for line in redraft("stats", folder).stdout.splitlines()}
    assert table["rows"][1:] == ["19", "19", "38"] and table["oldest version"][2:] == ["3", "3", "3"]
    flip(folder / "spool" / "1", stored(folder / "spool" / "1", READY)[1], 60)
    result = redraft("verify", "r")
    assert result.exit_code == 1 and "spool/1: group " + READY.hex() in result.output and "12 groups" in result.output
    assert redraft("export", "r", "out.parquet").exit_code == 1
    assert pq.read_table("out.parquet").num_rows == 7 * 3
    edit(folder / "spool" / "0", lambda txn, of: txn.put(b"run", b"3:other", db=of["meta"]))
    with pytest.raises(SettingError, match="spool/0 belongs to run other, not to run"):
        redraft("stats", "r")
    with pytest.raises(SettingError, match="spool/0 belongs to run other"):
        redraft("export", "r", "other.parquet")
    assert sorted(path.name for path in Path().iterdir()) == ["out.parquet", "runs"]


def test_stats_of_a_live_service_are_asked_with_keys(tmp_path, monkeypatch):
    keys.new(tmp_path / "keys")
    where = tcp_endpoints()
    serve = where.serve
    with Serving(tmp_path / "new", "--keys", tmp_path / "keys", ingest=where.ingest, serve=serve):
        said = redraft("stats", "--at", serve, "--keys", tmp_path / "keys").stdout
        assert re.search(r"ready +0", said)
        monkeypatch.setattr(stats, "ANSWER_S", 0.5)
        with pytest.raises(SettingError, match=f"--at: .*{serve}.* its keys"):
            redraft("stats", "--at", serve)
    for wrong in ("nonsense", "tcp://nonsense"):
        with pytest.raises(SettingError, match=f"--at: '?{wrong}"):
            redraft("stats", "--at", wrong)
    with pytest.raises(SettingError, match="SOURCE: give either a source or --at"):
        redraft("stats")


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
