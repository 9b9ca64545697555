"""The chaos hour: what it draws, and what it says of a folder."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.checked_house import group_of, kept_run, read_here
from support.spool_house import edit

from benchmarks import chaos
from benchmarks.chaos_parts import FAULTS, Cost, Storm, possible, schedule
from redraft.recipe import build


def test_each_kind_comes_once_before_any_comes_again_in_an_order_of_the_seed():
    kinds = tuple(FAULTS)
    drawn = schedule(7, 2 * len(kinds), kinds)
    assert sorted(drawn[: len(kinds)]) == sorted(drawn[len(kinds) :]) == sorted(kinds)
    assert drawn == schedule(7, 2 * len(kinds), kinds) != schedule(8, 2 * len(kinds), kinds)


def test_its_recipe_is_one():
    assert build(chaos.recipe()).learner.checkpoint_every == 10
    assert build(chaos.recipe(machines=True)).actors.resources == {"work": 0.1}


def test_no_disk_is_filled_and_no_network_cut_where_there_is_none_to_spare(storm):
    assert set(FAULTS) - set(possible(storm, mounted=False)) == {"full disk", "cut network"}
    assert set(FAULTS) - set(possible(storm, mounted=True)) == {"cut network"}


@pytest.fixture
def storm(tmp_path, monkeypatch):
    read_here(monkeypatch)
    found = Storm(tmp_path, chaos.recipe())
    kept_run(found.run)
    found.costs = [Cost("kill rank", 20.0, 3), Cost("kill rank", 30.0, 1), Cost("slow environment", 10.0, 0)]
    return found


def test_it_tells_what_each_fault_cost_and_what_share_of_the_time_made_steps(storm, tmp_path):
    kept_run(tmp_path / "calm")
    line = chaos.summary(storm, 8.0, tmp_path / "calm", possible(storm, mounted=True))
    assert line["faults"]["kill rank"] == {
        "times": 2, "recovery_p50_s": 25.0, "recovery_p99_s": 30.0, "steps_anew": 4
    }  # fmt: skip
    assert line["effective"] == 0.5, "4 steps of a second each in 8 seconds"
    assert line["lost_by_a_fault_s"] == 1.3, "4 seconds over 3 faults"
    assert line["broken"] == {} and line["groups_lost"] == line["groups_twice"] == 0
    assert line["accuracy"] == {"chaos": 0.5, "chaos_se": 0.1, "calm": 0.5, "calm_se": 0.1}
    came, no_time, not_here = line["kinds"].values()
    assert came == ["kill rank", "slow environment"] and not_here == ["cut network"]
    assert set(came + no_time + not_here) == set(FAULTS), "each kind is told"
    chaos.show(line)


def test_a_group_that_was_used_twice_and_one_that_was_lost_are_told(storm):
    edit(storm.run / "spool" / "0", lambda txn, names: txn.put(group_of(0), b"trained 1 2", db=names["marks"]))
    edit(storm.run / "spool" / "0", lambda txn, names: txn.delete(group_of(1), db=names["marks"]))
    found = chaos.promises(storm.run)
    assert (found["groups_lost"], found["groups_twice"]) == (1, 1)
    assert {"groups", "skipped"} <= set(found["broken"])


def test_a_fault_costs_the_steps_that_were_done_before_and_are_done_again(storm, monkeypatch):
    written = iter([[1, 2, 3, 4], [1, 2, 3, 4, 3, 4, 5]])
    monkeypatch.setattr(Storm, "written", lambda self: next(written))
    monkeypatch.setattr(Storm, "steps", lambda self: None)
    monkeypatch.setitem(FAULTS, "nothing", lambda storm: None)
    assert replace(storm.do("nothing"), seconds=0.0) == Cost("nothing", 0.0, 2)
