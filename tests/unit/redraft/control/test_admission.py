"""Leases are given by what replay holds, and what holds them back is told."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.places import ROOT

from protocols.replay_stats import ReplayStats
from redraft import recipe as recipes
from redraft.control.admission import Admission, beyond_the_bound, groups_at_once, groups_in_play

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
    admission = Admission(8, 1, lambda *change: told.append(change))
    assert admission.room(version=2, stats=replace(HELD, **changed), running=running, free=True) == room
    assert told == [(wait, 0)]


def test_the_bound_holds_nothing_back_where_no_actor_has_a_place():
    told = []
    admission = Admission(8, 1, lambda *change: told.append(change))
    for running, free in ((4, False), (4, True), (1, True), (4, False)):
        admission.room(version=2, stats=HELD, running=running, free=free)
    assert told == [("groups", 0), ("staleness", 1), ("groups", 2)]


def test_the_bound_is_the_one_that_the_learner_said_last():
    admission = Admission(8, 1, lambda wait, change: None)
    assert admission.room(version=2, stats=HELD, running=4, free=True) == 0
    admission.bound = 3
    assert admission.room(version=2, stats=HELD, running=4, free=True) == 16
    admission.bound = 0  # what is in play under a larger one is let be
    assert admission.room(version=2, stats=HELD, running=20, free=True) == 0


def test_without_a_ready_actor_none_is_admitted_and_the_learner_waits_for_groups():
    told = []
    admission = Admission(8, 1, lambda *change: told.append(change))
    assert admission.close() == 0 and told == [("groups", 0)]


@pytest.mark.parametrize(("instances", "groups"), [(None, 100), (1000, 100), (16, 4), (7, 1), (2, 1)])
def test_no_actor_plays_more_groups_than_there_are_environments_for(instances, groups):
    settings = ["rollout.episodes=4", "actors.groups=100"]
    settings += [] if instances is None else [f"environment.instances={instances}"]
    recipe = recipes.load(ROOT / "recipes" / "quickstart.yaml", settings)
    assert groups_at_once(recipe) == groups and groups_in_play(recipe) == groups


def test_all_actors_that_there_may_be_hold_groups_in_play():
    settings = ["actors.groups=48", "actors.count=2", "actors.autoscale={max: 3}"]
    assert groups_in_play(recipes.load(ROOT / "recipes" / "signs-grpo.yaml", settings)) == 144


def test_more_actors_than_a_found_bound_lets_play_are_told_of():
    recipe = recipes.load(
        ROOT / "recipes" / "signs-grpo.yaml", ["learner.max_staleness=auto", "learner.batch_groups=48"]
    )
    assert groups_in_play(recipe) == 48 and beyond_the_bound(recipe, 1) == ""
    assert "stays at 2 or below" in beyond_the_bound(recipe, 2) and "actors.count=2" in beyond_the_bound(recipe, 2)
    assert beyond_the_bound(recipes.load(ROOT / "recipes" / "signs-grpo.yaml"), 64) == ""


def test_an_actor_plays_no_more_groups_at_once_than_its_programs_can():
    changes = ["rollout.processes=16", "rollout.episodes=8", "actors.groups=64"]
    assert groups_at_once(recipes.load(ROOT / "recipes" / "signs-agent.yaml", changes)) == 2
