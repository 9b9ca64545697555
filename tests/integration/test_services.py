"""Replay services that run elsewhere serve the run that they were started for, as its recipe says, and no other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.ports import tcp_endpoints
from support.shard_house import gid, turn
from support.waiting import deadline_s

from protocols.errors import RedraftError, SettingError
from protocols.turns import Close, Lease
from redraft.control import services
from replay import keys
from replay.client import Producer
from replay.config import ReplaySettings, RunReplaySettings
from replay.server.service import Service


@contextmanager
def served(folder: Path, run_id: str = "exp-1", **settings) -> Iterator[RunReplaySettings]:
    """A service with keys, and what a recipe that knows it says."""
    if not (folder / "keys").exists():
        keys.new(folder / "keys")
    where = tcp_endpoints()
    with Service(folder / "spool", where, ReplaySettings(**settings), run_id, folder / "keys"):
        yield RunReplaySettings(services=(where,), keys=str(folder / "keys"))


def play(replay: RunReplaySettings) -> None:
    """One group, whole."""
    producer = Producer("actor", services.keys_of(replay))
    lease = Lease(gid(1), 0, 1, {}, 0, replay.services[0].ingest)
    producer.add(turn(gid(1)), lease)
    producer.add(Close(gid(1), 0, 1), lease, 1.0).result(timeout=deadline_s(20))
    producer.close(5.0)


def test_a_new_run_takes_the_identity_of_empty_services_and_is_then_the_only_one_that_may(tmp_path):
    with served(tmp_path) as replay:
        assert services.unused(replay) == "exp-1"
        services.check(replay, "exp-1", 0)
        play(replay)
        services.check(replay, "exp-1", 0)
        with pytest.raises(SettingError, match=r"replay\.services: they keep turns of the run exp-1\..*--resume"):
            services.unused(replay)
        with pytest.raises(SettingError, match="serves the run exp-1, not exp-2"):
            services.check(replay, "exp-2", 0)


def test_services_whose_settings_are_not_those_of_the_recipe_are_refused(tmp_path):
    with served(tmp_path, max_uses=2) as replay:
        with pytest.raises(SettingError, match=r"replay\.max_uses: .* has 2, the recipe 1\. Start it with max_uses=1"):
            services.check(replay, "exp-1", 0)
        services.check(replay.model_copy(update={"max_uses": 2}), "exp-1", 0)


def test_an_identity_that_could_not_name_files_is_refused(tmp_path):
    with served(tmp_path, run_id="../exp") as replay, pytest.raises(SettingError, match="cannot name a run"):
        services.unused(replay)


def test_keys_that_are_missing_are_named_before_anything_waits(tmp_path):
    with served(tmp_path) as replay, pytest.raises(RedraftError, match=r"replay\.keys: .*redraft keys new"):
        services.unused(replay.model_copy(update={"keys": str(tmp_path / "none")}))


def test_services_that_have_lost_what_the_run_has_trained_are_refused(tmp_path):
    with served(tmp_path) as replay:
        play(replay)
        with pytest.raises(SettingError, match="they know of 0 steps, and the run goes on from step 7. Serve"):
            services.check(replay, "exp-1", 7)
