"""The journal gives back what a step trained on, to the last bit, or says that it cannot."""

from __future__ import annotations

import numpy as np
import pytest
from support.spool_house import turns_of

from learner import journal
from protocols.errors import RedraftError
from protocols.turns import Group
from protocols.wire import encode_turn, pack


def groups() -> list[Group]:
    made = []
    for number in range(3):
        *turns, close = turns_of(bytes([65 + number]) * 16, lease=number)
        made.append(Group(close.group, number, tuple(turns), close.extra))
    return made


def test_a_step_comes_back_as_it_was_trained(tmp_path):
    importance = np.array([1.0, 0.1, 0.7], np.float32)
    given = groups()
    journal.Journal(tmp_path, 9, 2).write(4, 1_000_004, "d", journal.packed(given, importance))
    found = journal.read(tmp_path, 4)
    assert (found.step, found.version, found.digest, found.steps, found.ranks) == (4, 1_000_004, "d", 9, 2)
    assert found.importance.tobytes() == importance.tobytes() and journal.steps(tmp_path) == [4]
    for before, after in zip(given, found.groups, strict=True):
        assert (before.id, before.lease, pack(before.extra)) == (after.id, after.lease, pack(after.extra))
        assert [encode_turn(turn) for turn in before.turns] == [encode_turn(turn) for turn in after.turns]


def test_a_step_that_is_played_again_takes_the_place_of_the_first(tmp_path):
    written = journal.Journal(tmp_path, 9, 1)
    for digest in ("first", "second"):
        written.write(1, 1, digest, journal.packed(groups(), None))
    assert journal.read(tmp_path, 1).digest == "second"
    assert [path.name for path in (tmp_path / journal.FOLDER).iterdir()] == ["step-000001.batch"]


def test_what_the_disk_does_not_take_is_said_once_and_written_when_there_is_room(tmp_path, caplog):
    (tmp_path / journal.FOLDER).write_text("no folder")
    written = journal.Journal(tmp_path, 9, 1)
    for step in (1, 2):
        written.write(step, step, "", journal.packed(groups(), None))
    assert len(caplog.records) == 1 and "step 1 waits for room" in caplog.text
    (tmp_path / journal.FOLDER).unlink()
    written.write(3, 3, "", journal.packed(groups(), None))
    assert journal.steps(tmp_path) == [1, 2, 3] and journal.read(tmp_path, 1).step == 1


def test_where_too_much_waits_the_oldest_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(journal, "WAITING", 2)
    (tmp_path / journal.FOLDER).write_text("no folder")
    written = journal.Journal(tmp_path, 9, 1)
    for step in (1, 2, 3):
        written.write(step, step, "", journal.packed(groups(), None))
    (tmp_path / journal.FOLDER).unlink()
    written.flush()
    assert journal.steps(tmp_path) == [2, 3]


@pytest.mark.parametrize("place", [0, 3, 40, -1])
def test_a_file_that_is_not_as_it_was_written_is_refused_by_name(tmp_path, place):
    journal.Journal(tmp_path, 9, 1).write(1, 1, "", journal.packed(groups(), None))
    file = journal.path(tmp_path, 1)
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)
    with pytest.raises(RedraftError, match=r"step-000001\.batch cannot be read: it fails its checksum"):
        journal.read(tmp_path, 1)


def test_a_step_that_is_not_there_is_named(tmp_path):
    with pytest.raises(RedraftError, match=r"step-000007\.batch cannot be read: No such file"):
        journal.read(tmp_path, 7)
