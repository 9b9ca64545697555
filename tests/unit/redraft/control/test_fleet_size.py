"""Who leaves when a fleet shrinks, who comes when it grows, and that nobody's number is given again."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from actors.config import ActorSettings
from actors.contract import Report
from redraft.control import workers as parts
from redraft.control.fleet import Fleet


@pytest.fixture
def fleet() -> Fleet:
    """Four actors: 1 starts, the others play; their processes are not there."""
    close = SimpleNamespace(remote=lambda: "closing")
    made = Fleet(lambda name: SimpleNamespace(close=close), ActorSettings(count=4, drain_s=0.0), 60.0, lambda *_: None)
    for number, playing in {0: 5, 2: 9, 3: 5}.items():
        made.members[number].report = Report("ready", version=0, playing=playing, pid=1)
    return made


@pytest.mark.parametrize(("size", "leave"), [(4, []), (3, [1]), (2, [1, 3]), (1, [0, 1, 3])])
def test_those_that_start_leave_first_then_the_least_busy_then_the_newest(fleet, size, leave):
    fleet.resize(size)
    assert fleet.leaving() == leave and not set(fleet.ready()) & set(leave)
    assert fleet.target == size and not fleet.settled


def test_an_actor_in_an_evaluation_leaves_after_one_that_only_plays(fleet):
    fleet.members[3].evaluating = True
    fleet.resize(2)
    assert fleet.leaving() == [0, 1]


def test_who_drains_stays_when_more_are_wanted_again(fleet):
    fleet.resize(1)
    fleet.resize(3)
    assert len(fleet.leaving()) == 1 and len(fleet.members) == 4


def test_numbers_are_not_given_again(fleet):
    fleet.resize(3)
    fleet.members[1].report = Report("starting", pid=1)
    fleet.remove(1)
    fleet.resize(5)
    assert [member.name for member in fleet.members.values()] == [f"actor-{n}" for n in (0, 2, 3, 4, 5)]
    assert set(fleet._manager.actor_ids()) == set(fleet.members), "Ray's manager counts in the same way"


def test_the_time_in_which_the_learner_starts_is_not_that_of_the_actors(fleet, monkeypatch):
    monkeypatch.setattr(fleet, "_look_for_room", lambda now: None)
    replaced = []
    monkeypatch.setattr(fleet, "replace", lambda number, why: replaced.append((number, why)))
    for member in fleet.members.values():
        member.began -= 61
        member.report = Report("ready", pid=1, node_id="node")  # without weights, since none were announced
    fleet.begin()
    fleet.receive()
    assert replaced == []
    fleet.members[1].began -= 61
    fleet.receive()
    assert replaced == [(1, "not ready within start_s=60")]


def test_weight_files_have_owners_where_actors_are_and_nowhere_else(fleet, monkeypatch):
    made, closed = [], []

    class Owner:
        def __init__(self, node: str):
            made.append(node)
            self.close = SimpleNamespace(remote=lambda: closed.append(node))
            self.__ray_ready__ = SimpleNamespace(remote=lambda: None)

    files = parts.Files(SimpleNamespace(id="run"))
    monkeypatch.setattr(parts, "LOOK_S", 0.0)
    monkeypatch.setattr(files, "_start", Owner)
    monkeypatch.setattr(files, "_drop_failed", lambda: None)
    for number, member in fleet.members.items():
        member.report = Report("ready", version=0, pid=1, node_id="ab"[number % 2])
    files.look(fleet)
    files.look(fleet)
    assert sorted(made) == ["a", "b"] and closed == []
    fleet.resize(1)
    for number in fleet.leaving():
        fleet.remove(number)
    (stays,) = fleet.members.values()
    files.look(fleet)
    assert closed == [], "an actor that is restarted comes back to its files"
    monkeypatch.setattr(parts, "SPARE_S", 0.0)
    files.look(fleet)
    assert {*closed, stays.report.node_id} == {"a", "b"} and len(closed) == 1


def test_an_evaluation_whose_actor_died_is_told_as_lost_also_when_the_actor_is_back_before_anybody_asks(fleet):
    fleet.members[2].evaluating = True
    fleet._gone(2, "its process died")
    fleet._heard(2, Report("ready", version=0, pid=2))
    assert fleet.members[2].ready and not fleet.members[2].evaluating, "it may be given tasks"
    assert fleet.evaluated() == [(2, None)] and fleet.evaluated() == []


def test_an_evaluation_whose_actor_died_and_left_is_told_as_lost(fleet):
    fleet.members[1].evaluating = True
    fleet._gone(1, "its process died")
    fleet.resize(3)
    fleet.members[1].report = Report("starting", pid=2)
    fleet.remove(1)
    assert fleet.evaluated() == [(1, None)]


def test_what_a_leaving_actor_evaluates_is_given_back_when_its_time_is_up(fleet):
    fleet.members[2].evaluating = fleet.members[3].evaluating = True
    assert fleet.evaluated() == []
    fleet.resize(1)
    assert fleet.members[3].late and fleet.evaluated() == [(3, None)] and fleet.evaluated() == []
