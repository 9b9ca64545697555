"""Leases are given by what replay holds, and what holds them back is told."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.places import ROOT

from protocols.replay_stats import ReplayStats
from redraft import recipe as recipes
from redraft.control.admission import Admission, groups_at_once

HELD = ReplayStats(fullest=0.5, claimed=8, ready=4, step=2)


@pytest.mark.parametrize(
    ("changed", "running", "room", "wait"),
    [
        ({}, 1, 3, "groups"),
        ({}, 4, 0, "staleness"),
        ({"full": True}, 0, 0, "replay"),
        ({"fullest": 0.95}, 0, 0, "replay"),
    ],
)
def test_groups_are_admitted_up_to_the_staleness_bound_while_replay_has_room(changed, running, room, wait):
    told = []
    admission = Admission(8, 1, told.append)
    assert admission.room(version=2, stats=replace(HELD, **changed), running=running) == room
    assert told == [wait]


def test_without_a_ready_actor_none_is_admitted_and_the_learner_waits_for_groups():
    told = []
    admission = Admission(8, 1, told.append)
    assert admission.close() == 0 and told == ["groups"]


@pytest.mark.parametrize(("instances", "groups"), [(None, 100), (1000, 100), (16, 4), (7, 1), (2, 1)])
def test_no_actor_plays_more_groups_than_there_are_environments_for(instances, groups):
    settings = ["rollout.episodes=4", "actors.groups=100"]
    settings += [] if instances is None else [f"environment.instances={instances}"]
    assert groups_at_once(recipes.load(ROOT / "recipes" / "quickstart.yaml", settings)) == groups
