"""Copies of a run: complete or not there, no more than is kept, nothing written twice, and never over another's."""

import json
import shutil

import pytest
from support.spool_house import CLOSED
from support.store_house import a_run, files, rough, save, settings

from learner import checkpoint
from protocols.errors import FaultError, RedraftError, SettingError
from redraft import run as runs
from redraft.storage import copies, snapshot
from redraft.storage.copies import Copies, TakenOverError, newest
from redraft.storage.fetch import fetch
from redraft.storage.store import Store, StoreError
from replay.disk.reader import SpoolReader


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def elsewhere(tmp_path, monkeypatch, storage):
    """The run as it is fetched in another, empty folder; None where there is none."""
    other = tmp_path / f"elsewhere-{len(list(tmp_path.glob('elsewhere-*')))}"
    other.mkdir()
    monkeypatch.chdir(other)
    return runs.find("r") if fetch(storage, "r", lambda line: None) else None


def test_a_fetched_run_has_its_newest_checkpoint_its_lines_and_what_replay_had_stored(tmp_path, monkeypatch):
    run, storage = a_run(tmp_path, 2, 4), settings(tmp_path)
    (run.folder / "logs" / "controller.log").write_text("a line\n")
    assert Copies(run, storage, 2).copy().step == 4
    found = elsewhere(tmp_path, monkeypatch, storage)
    before, after = files(run.folder), files(found.folder)
    for gone in [name for name in before if name.startswith("checkpoints/step-000002")]:
        del before[gone]
    assert int(after.pop("checkpoints/incarnation")) > int(before.pop("checkpoints/incarnation"))
    assert before.pop("spool/0/data.mdb") and after.pop("spool/0/data.mdb")
    assert before == after
    with SpoolReader(run.spool(0)) as was, SpoolReader(found.spool(0)) as now:
        assert list(was.groups()) == list(now.groups()) and list(was.marks()) == list(now.marks())
        assert all(was.rows(group) == now.rows(group) for group in CLOSED)


def test_a_copy_that_fails_midway_leaves_the_one_before_as_it_was(tmp_path, monkeypatch):
    run, storage = a_run(tmp_path, 2), settings(tmp_path)
    made = Copies(run, storage, 1)
    made.copy()
    save(run, 4)
    shutil.copytree(tmp_path / "bucket", tmp_path / "as-it-was")
    for nth in range(len(files(run.folder)) + 1):
        shutil.rmtree(tmp_path / "bucket")
        shutil.copytree(tmp_path / "as-it-was", tmp_path / "bucket")
        broken = Copies(run, storage, 1)
        client = rough(broken)
        client.plan = dict.fromkeys(("pipe_file", "put_file"), [*[lambda *_: None] * nth, OSError("the line is cut")])
        try:
            broken.copy()
        except StoreError as error:
            assert "the line is cut" in str(error)
            assert newest(Store(storage, "r")).step == 2 and elsewhere(tmp_path, monkeypatch, storage) is not None
        else:
            break
    assert nth > 3 and newest(Store(storage, "r")).step == 4, "each write was cut once, then there was none left to cut"


def test_the_manifest_is_written_last_and_a_torn_one_is_no_copy(tmp_path):
    run, storage = a_run(tmp_path, 2), settings(tmp_path)
    made = Copies(run, storage, 2)
    client = rough(made)
    made.copy()
    assert client.written()[-1] == "000001.json"
    file = tmp_path / "bucket" / "r" / "copies" / "000001.json"
    text = file.read_text()
    json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    file.with_name("000002.json").write_text(text[:-7])
    assert newest(Store(storage, "r")).number == 1
    file.with_name("000002.json").write_text(text.replace('"run.json"', '"../run.json"').replace(": 1,", ": 2,", 1))
    assert newest(Store(storage, "r")).number == 1, "a manifest whose files leave the folder is none"


def test_what_is_there_is_not_written_again_and_what_no_copy_needs_is_removed(tmp_path):
    run, storage = a_run(tmp_path, 2), settings(tmp_path)
    made = Copies(run, storage, 2)
    made.copy()
    for step in (4, 6, 8):
        save(run, step)
        client = rough(made)
        last = made.copy()
    assert last.files["checkpoints/step-000008/tokenizer.json"][0] not in client.written()
    bucket = tmp_path / "bucket" / "r"
    assert sorted(path.name for path in (bucket / "copies").iterdir()) == ["000003.json", "000004.json"]
    kept = {digest for number in (3, 4) for digest in copies.read(Store(storage, "r"), number).objects}
    assert {path.name for path in (bucket / "objects").iterdir()} == kept
    (bucket / "objects" / ("0" * 64)).write_text("of one that died within a copy")
    Copies(run, storage, 2).copy()
    assert not (bucket / "objects" / ("0" * 64)).exists()


def test_a_damaged_copy_is_passed_over_for_the_one_before(tmp_path, monkeypatch):
    run, storage = a_run(tmp_path, 2), settings(tmp_path)
    made = Copies(run, storage, 2)
    made.copy()
    save(run, 4)
    weights = made.copy().files["checkpoints/step-000004/engine/weights"][0]
    file = tmp_path / "bucket" / "r" / "objects" / weights
    file.write_bytes(file.read_bytes()[::-1])
    assert runs.newest_step(elsewhere(tmp_path, monkeypatch, storage).folder) == 2
    for manifest in (tmp_path / "bucket" / "r" / "copies").iterdir():
        manifest.write_text(manifest.read_text().replace(weights, "f" * 64))
    for one in (tmp_path / "bucket" / "r" / "objects").iterdir():
        one.unlink()
    with pytest.raises(RedraftError, match="none of its 2 copies is whole"):
        elsewhere(tmp_path, monkeypatch, storage)
    assert not list((tmp_path / "elsewhere-1" / "runs").glob("*")), "and nothing is left of the tries"


def test_who_is_taken_over_copies_no_more_and_may_not_go_on(tmp_path, monkeypatch):
    run, storage = a_run(tmp_path, 2), settings(tmp_path)
    lost = Copies(run, storage, 2)
    lost.copy()
    taken = elsewhere(tmp_path, monkeypatch, storage)
    copies.check(taken.folder, storage, resume=True, again=False)
    copies.begin(taken)
    Copies(taken, storage, 2).copy()
    save(run, 4)
    with pytest.raises(TakenOverError, match="goes on elsewhere"):
        lost.copy()
    with pytest.raises(SettingError, match="gone on elsewhere, to step 2.*Move .* away"):
        copies.check(run.folder, storage, resume=True, again=False)
    with pytest.raises(SettingError, match="keeps a run of this name. Add --resume"):
        copies.check(run.folder, storage, resume=False, again=False)
    copies.check(run.folder, storage, resume=False, again=True)


def test_a_store_that_took_copies_before_keeps_no_run_from_going_on_when_it_is_down(tmp_path, caplog):
    run, storage = a_run(tmp_path, 2), settings(tmp_path)
    Copies(run, storage, 2).copy()
    shutil.rmtree(tmp_path / "bucket")
    (tmp_path / "bucket").write_text("no folder")
    (run.folder / "recipe.yaml").write_text(f"storage: {{url: '{storage.url}'}}")
    copies.check(run.folder, storage, resume=True, again=False)
    assert "may not be copied" in caplog.text
    (run.folder / "recipe.yaml").write_text("storage: {url: 'file:///elsewhere'}")
    with pytest.raises(SettingError, match="storage.url: cannot write"):
        copies.check(run.folder, storage, resume=True, again=False)
    shutil.rmtree(run.folder)
    with pytest.raises(FaultError, match="storage.url: cannot list copies at .* Try again"):
        fetch(storage, "r", lambda line: None)


def test_a_copy_during_which_another_is_made_does_not_count(tmp_path):
    run, storage = a_run(tmp_path, 2), settings(tmp_path)
    made, other = Copies(run, storage, 2), Copies(run, storage, 2)
    rough(made).plan = {"pipe_file": [lambda *_: other.copy()]}
    with pytest.raises(RedraftError, match="another copy was made"):
        made.copy()
    assert newest(Store(storage, "r")).number == 1


def test_a_spool_is_copied_with_the_checkpoint_that_it_goes_with(tmp_path, monkeypatch):
    run = a_run(tmp_path, 2)
    copied, spools = SpoolReader.copy, []

    def slow(self, folder):  # the learner writes a checkpoint meanwhile, and replay forgets for it
        copied(self, folder)
        spools.append(folder)
        if len(spools) == 1:
            save(run, 4, keep=1)

    monkeypatch.setattr(SpoolReader, "copy", slow)
    with snapshot.taken(run, 20) as found:
        assert found.step == 4 and len(spools) == 2
        assert {name.split("/")[1] for name in found.still if name.startswith("checkpoints/")} == {
            "step-000004",
            "incarnation",
        }
        save(run, 6, keep=1)
        assert all(path.exists() for path in found.still.values()), "what is copied stays until it is"
    assert not (run.folder / ".copying").exists()


@pytest.mark.parametrize("left_out", [(), snapshot.LEFT_OUT], ids=["a copy of before", "a copy of today"])
def test_the_lease_of_who_made_a_copy_is_not_that_of_who_fetches_it(tmp_path, monkeypatch, left_out):
    """It is there on file systems without locks; who found another's in its folder would end."""
    run, storage = a_run(tmp_path, 2), settings(tmp_path)
    (run.folder / "lease").write_text("another's")
    monkeypatch.setattr(snapshot, "LEFT_OUT", left_out or tuple(set(snapshot.LEFT_OUT) - {"lease"}))
    assert ("lease" in Copies(run, storage, 2).copy().files) == (not left_out)
    assert not (elsewhere(tmp_path, monkeypatch, storage).folder / "lease").exists()


def test_the_best_checkpoint_is_copied_beside_the_newest(tmp_path, monkeypatch):
    run, storage = a_run(tmp_path, 2), settings(tmp_path)
    checkpoint.mark(run.folder, best=2, evaluated=None)
    for step in (4, 6):
        save(run, step, keep=1)
    Copies(run, storage, 1).copy()
    fetched = elsewhere(tmp_path, monkeypatch, storage).folder
    assert checkpoint.steps(fetched) == [2, 6] and checkpoint.best(fetched).name == "step-000002"
