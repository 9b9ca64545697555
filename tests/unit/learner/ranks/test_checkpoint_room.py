"""A checkpoint on a full disk: it waits for room, and the run ends only where the last one finds none."""

from __future__ import annotations

import inspect
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from learner import checkpoint
from learner.config import LearnerSettings
from learner.ranks import lead as leads
from learner.ranks.lead import Lead, Waits
from learner.ranks.progress import Progress
from protocols.errors import FaultError

Usage = namedtuple("Usage", "total used free")
MODEL_BYTES = 4 << 20


@pytest.fixture
def disk(monkeypatch):
    """What the disk has left."""
    left = {"bytes": 0}
    monkeypatch.setattr(leads.shutil, "disk_usage", lambda place: Usage(0, 0, left["bytes"]))
    return left


@pytest.fixture
def lead(tmp_path: Path) -> Lead:
    """One that goes on from a checkpoint of step 2, at step 4; whatever it asks of others fails."""
    aside = checkpoint.begin(tmp_path, 2)
    (aside / "model.safetensors").write_bytes(bytes(MODEL_BYTES))
    checkpoint.finish(aside, checkpoint.RunState("run", 2, 0, {}, 1, 0), keep=2)
    asked = inspect.signature(Lead).parameters.values()
    nobody: dict[str, Any] = {one.name: None for one in asked if one.kind is one.KEYWORD_ONLY}
    facts = {"steps": 9, "progress": Progress(0, 4, 4), "waits": Waits(), "saved": 2}
    return Lead(LearnerSettings(), tmp_path, "run", 1, **nobody | facts)


def test_it_waits_for_room_for_one_as_large_as_the_newest_and_says_so_once(lead, disk, caplog):
    disk["bytes"] = MODEL_BYTES
    for _ in range(3):
        lead._checkpoint({})
    assert caplog.text.count("no checkpoint of step 4") == 1
    disk["bytes"] = 2 * MODEL_BYTES
    assert lead._has_room()


def test_replay_that_needs_room_after_a_checkpoint_is_told_of_it_again(lead, disk):
    """It knows of one by its word alone, which is lost where it or the learner dies then."""
    told = []
    lead._client = SimpleNamespace(checkpoint=told.append)
    lead._saved = 4
    lead._checkpoint({})
    assert told == [4]
    lead._checkpoint({}, last=True)
    assert told == [4], "the run ends"


def test_the_last_one_ends_the_run_so_that_it_may_go_on(lead, disk):
    with pytest.raises(FaultError, match="no room for the checkpoint of step 4. Make room, and go on with --resume"):
        lead._checkpoint({}, last=True)


def test_what_fails_beside_a_disk_with_room_is_no_matter_of_the_disk(lead, disk):
    disk["bytes"] = 2 * MODEL_BYTES
    with pytest.raises(AttributeError):
        lead._checkpoint({})
