"""`redraft replay train` says before it starts what it cannot train again; that it can is proved by whole runs."""

from __future__ import annotations

import shutil

import pytest
from support.checked_house import kept_run

from learner import journal
from protocols.errors import SettingError
from redraft.launch import again


@pytest.fixture
def run(tmp_path):
    return kept_run(tmp_path / "r")[0]


def test_all_that_was_done_is_trained_again_or_up_to_a_step(run):
    assert again.check(run, None) == 4 and again.check(run, 3) == 3


@pytest.mark.parametrize("to", [0, 5])
def test_a_step_that_was_not_done_is_refused_with_those_that_were(run, to):
    with pytest.raises(SettingError, match="has done 4 steps. Choose 1 to 4"):
        again.check(run, to)


def test_a_step_whose_batch_is_not_kept_is_named_with_the_way_to_stop_before_it(run):
    journal.path(run.folder, 3).unlink()
    with pytest.raises(SettingError, match="not kept the batch of step 3. Stop before it, with --to 2"):
        again.check(run, None)
    assert again.check(run, 2) == 2


def test_a_run_that_kept_none_is_told_the_setting(run):
    shutil.rmtree(run.folder / journal.FOLDER)
    with pytest.raises(SettingError, match="learner.record.batches=true"):
        again.check(run, None)
