"""The keeper: a copy after each checkpoint, again where one failed, and nothing of it ends the run."""

import pytest
from support.store_house import a_run, rough, save, settings
from support.waiting import until

from redraft.storage import copies, keeper
from redraft.storage.copies import Copies, newest
from redraft.storage.keeper import Keeper
from redraft.storage.store import Store


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(keeper, "LOOK_S", 0.01)
    monkeypatch.setattr(keeper, "FIRST_PAUSE_S", 0.02)


def test_each_checkpoint_is_copied_and_what_fails_is_counted_and_made_again(tmp_path):
    run, storage = a_run(tmp_path), settings(tmp_path)
    made = Copies(run, storage, 9)
    client = rough(made)
    kept = Keeper(run, lambda: made)
    until(lambda: kept.report.at, "the first copy, before any checkpoint", 20)
    assert newest(Store(storage, "r")).step is None
    client.plan = {"put_file": [OSError("down"), OSError("down")]}
    save(run, 2)
    until(lambda: kept.report.step == 2, "the copy of step 2", 20)
    assert kept.report.failures == 2 and kept.report.error == ""
    assert copies.numbers(Store(storage, "r")) == [1, 2]
    kept.close()


def test_who_is_taken_over_says_so_and_copies_no_more(tmp_path):
    run, storage = a_run(tmp_path, 2), settings(tmp_path)
    Copies(run, storage, 9).copy()
    manifest = tmp_path / "bucket" / "r" / "copies" / "000001.json"
    manifest.write_text(manifest.read_text().replace(copies.sessions(run)[-1], "another"))
    kept = Keeper(run, lambda: Copies(run, storage, 9))
    until(lambda: kept.report.failures, "the keeper sees it", 20)
    assert "goes on elsewhere" in kept.report.error
    kept._thread.join(20)
    assert not kept._thread.is_alive() and copies.numbers(Store(storage, "r")) == [1]
