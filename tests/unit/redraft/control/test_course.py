"""Evaluations in the course of training: when they are due, with which weights, what becomes of their figures."""

from __future__ import annotations

import errno
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from actors import mixture
from actors.contract import Report
from learner import checkpoint
from learner.checkpoint import RunState
from protocols.checksum import Sums
from protocols.evaluation import Figure
from protocols.turns import LOGPROBS, TOKENS, Role, Turn
from protocols.weights import Bucket, Probe, WeightRef, version_of
from redraft import recipe as recipes
from redraft import records
from redraft.config import StopSettings
from redraft.control.course import Course, Examiner, ends
from redraft.control.exchange import Announced
from redraft.control.status import Status
from redraft.run import Run

RECIPE = {
    "name": "seen",
    "steps": 9,
    "model": {"make": {}},
    "environment": {"name": "signs"},
    "rollout": {"name": "attempt", "episodes": 2},
    "learner": {"checkpoint_every": 2, "keep_checkpoints": 1, "record": {"groups": 0}},
    "evaluation": {"n": 4, "independent": 1, "greedy": False, "every": 2},
}
NOTHING = np.empty(0, TOKENS)


def answered(right: bool | None) -> list[Turn]:
    """The one answer to a task; None where the environment failed."""
    ids, role = np.ones(1, TOKENS), Role.ATTEMPT if right is not None else Role.ERROR
    extra = {"success": right} if right is not None else {"error": "it is down", "kind": "raised"}
    return [Turn(bytes(16), 0, 0, -1, NOTHING, ids, np.zeros(1, LOGPROBS), (), role, extra=extra)]


class Crew:
    """Actors that have a version, and end what they were given when the test says so."""

    def __init__(self, *versions: int):
        reports = [Report("ready", version) for version in versions]
        self.members = {
            n: SimpleNamespace(draining=None, evaluating=False, report=report) for n, report in enumerate(reports)
        }
        self.playing: dict[int, list[dict]] = {}
        self._ended: list[tuple[int, list | None]] = []

    def ready(self) -> list[int]:
        return list(self.members)

    def take(self, version: int) -> None:
        for member in self.members.values():
            member.report = Report("ready", version)

    def evaluate(self, number, tasks, one, share) -> None:
        self.playing[number], self.members[number].evaluating = tasks, True

    def end(self, *right: bool | None) -> None:
        [number] = self.playing
        self.members[number].evaluating = False
        assert len(self.playing.pop(number)) == len(right)
        self._ended.append((number, [answered(one) for one in right]))

    def lose(self) -> None:
        [number] = self.playing
        del self.playing[number]
        self.members[number].evaluating, self.members[number].report = False, Report("starting")
        self._ended.append((number, None))

    def evaluated(self) -> list:
        ended, self._ended = self._ended, []
        return ended


class House:
    """A course of a run in a folder, from `step` on."""

    def __init__(self, folder, step: int = 0, **changed):
        values = {
            key: RECIPE[key] | changed.pop(key, {}) if isinstance(RECIPE[key], dict) else RECIPE[key] for key in RECIPE
        }
        self.recipe = recipes.build(values | changed)
        self.run, self.crew, self.announced = Run(folder, "id", "model"), Crew(version_of(0, step)), Announced()
        self.status, self.told, self.tracked = Status(self.run, self.recipe), list[int](), list[int]()
        parts = SimpleNamespace(fleet=self.crew, tests=mixture.tasks(self.recipe.mixture, "test"))
        exchange = SimpleNamespace(versions=self._versions, parts=parts)
        trackers = SimpleNamespace(evaluation=lambda step, summary: self.tracked.append(step))
        examiner = Examiner(self.run, self.recipe, exchange, self.status, trackers)
        self.course = Course(examiner, self.announced, self.told.append, step)

    def _versions(self) -> set[int | None]:
        return {member.report.version for member in self.crew.members.values()}

    def publish(self, step: int, incarnation: int = 0) -> bool:
        """As the controller is told of new weights, in a thread beside its loop, and as its checkpoint comes after."""
        version = version_of(incarnation, step)
        ref = WeightRef(version, 4, Sums(), (Bucket(1, Sums(version)),), Probe((1, 2), (-1.0,), 0.1))
        due = self.course.announced(ref)
        self.look()
        self.announced.newest = ref
        if step and step % self.recipe.learner.checkpoint_every == 0:
            self.checkpoint(step)
        return due

    def checkpoint(self, step: int) -> None:
        checkpoint.finish(checkpoint.begin(self.run.folder, step), RunState("id", step, 0, {}, 1, 1), keep=1)

    def look(self) -> None:
        """Two rounds of the controller's loop: in the first an exam may begin, in the next it hands out its tasks."""
        for _ in range(2):
            self.course.look()

    def play(self, step: int, *right: bool | None) -> None:
        """A step whose weights come, are evaluated, and solve so much."""
        assert self.publish(step)
        self.crew.take(version_of(0, step))
        self.look()
        self.crew.end(*right)
        self.look()

    def lines(self) -> list[tuple[str, int, float]]:
        found = records.evaluations(self.run.folder).lines
        return [(line.label, line.step, line.summary.solved.value) for line in found]


def test_actors_keep_the_weights_that_are_evaluated_until_all_tasks_are_played(tmp_path):
    house = House(tmp_path)
    assert [house.publish(step) for step in (0, 1, 2)] == [False, False, True]
    house.look()
    assert house.told == [] and not house.crew.playing, "nobody has them yet"
    house.crew.take(2)
    house.look()
    assert house.told == [2] and len(house.crew.playing[0]) == 4, "the learner may publish the next"
    assert house.status.snapshot().detail == "evaluating step 2"
    assert not house.publish(3)
    assert house.announced.orders(2) == (None, None), "who plays keeps them"
    assert house.announced.orders(1) == (house.announced.newest, None) == house.announced.orders(1)
    house.crew.end(True, True, False, False)
    house.look()
    assert house.announced.orders(2) == (house.announced.newest, None)
    assert house.lines() == [("during", 2, 0.5)] and house.tracked == [2]
    said = house.status.snapshot()
    assert said.detail.startswith("step 2: 50.0 ± ") and said.progress is None


def test_a_full_disk_on_which_nothing_can_be_marked_ends_no_training(tmp_path, monkeypatch, caplog):
    house = House(tmp_path, learner={"keep_best": True})

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "mark", full)
    house.play(2, True, True, False, False)
    assert house.lines() == [("during", 2, 0.5)] and not house.course.going_on
    assert "which checkpoints are kept is not written: [Errno 28]" in caplog.text


def test_actors_of_an_evaluation_that_was_given_up_are_free_when_they_have_ended_it(tmp_path):
    house = House(tmp_path)
    house.publish(2)
    house.crew.take(2)
    house.look()
    house.course.back(0)  # a rank has died
    house.crew.end(True, True, False, False)
    house.look()
    assert house.crew.evaluated() == [], "asked for, although no evaluation is played"
    assert house.lines() == []


def test_weights_that_come_due_meanwhile_are_evaluated_next(tmp_path):
    house = House(tmp_path)
    house.publish(2)
    house.crew.take(2)
    house.look()
    assert house.publish(4), "the learner waits before it publishes another"
    house.crew.end(True, False, False, False)
    house.look()
    assert house.announced.held == 4 and house.told == [2] and house.course.going_on
    house.crew.take(4)
    house.look()
    house.crew.end(True, True, False, False)
    house.look()
    assert house.lines() == [("during", 2, 0.25), ("during", 4, 0.5)] and house.told == [2, 4]
    assert not house.course.going_on


def test_an_evaluation_that_fails_is_told_and_is_no_figure_and_training_goes_on(tmp_path):
    house = House(tmp_path)
    house.play(2, None, None, None, None)
    assert house.lines() == [] and house.announced.held is None
    told = house.status.snapshot().events[-1]
    assert "after step 2 has failed, and training goes on: all 4 episodes" in told and "it is down" in told
    assert not house.publish(3), "it is not tried again with other weights"
    assert house.publish(4)
    house.crew.take(4)
    house.look()
    house.crew.lose()
    house.look()
    assert "no actor has version 4 any more" in house.status.snapshot().events[-1]


def test_the_checkpoint_that_has_solved_most_is_kept_and_found(tmp_path):
    house = House(tmp_path, learner={"keep_best": True})
    house.play(2, True, False, False, False)
    house.play(4, True, True, True, False)
    house.play(6, True, True, False, False)
    house.checkpoint(8)
    assert checkpoint.best(tmp_path).name == "step-000004"
    assert [int(path.name[5:]) for path in sorted((tmp_path / "checkpoints").glob("step-*"))] == [4, 8]
    assert "75.0" in house.status.snapshot().detail and "after step 4" in house.status.snapshot().detail


def test_a_resumed_run_forgets_what_came_after_its_checkpoint_and_evaluates_what_was_cut_off(tmp_path):
    first = House(tmp_path, learner={"keep_best": True})
    first.play(2, True, True, False, False)
    first.play(4, True, True, True, False)
    again = House(tmp_path, step=3, learner={"keep_best": True})
    assert [int(path.name[5:]) for path in sorted(tmp_path.glob("checkpoints/step-*"))] == [2, 4]
    assert not again.publish(3, incarnation=1), "step 2 was evaluated"
    later = House(tmp_path, step=7)
    assert later.publish(7, incarnation=2), "the evaluation after step 6 never ended"


@pytest.mark.parametrize(
    ("settings", "solved", "why"),
    [
        ({"patience": 2}, (0.1, 0.3, 0.2), ""),
        ({"patience": 2}, (0.1, 0.3, 0.2, 0.3), "2 evaluations have solved no more than one before"),
        ({"patience": 1}, (0.1, 0.2, 0.3), ""),
        ({"reach": 0.5}, (0.1, 0.4), ""),
        ({"reach": 0.5}, (0.1, 0.5), "50 % of the test tasks are solved"),
        ({"reach": 0.5, "patience": 9}, (None, None), ""),
    ],
)
def test_training_ends_by_what_was_solved(settings, solved, why):
    said = ends(StopSettings(**settings), [Figure(value) for value in solved])
    assert said.startswith(why) and bool(said) == bool(why)


def test_the_start_model_is_what_the_first_evaluation_is_compared_with_and_ends_nothing_alone(tmp_path):
    house = House(tmp_path, evaluation={"stop": {"patience": 1, "reach": 0.9}})
    before = replace(house_summary(tmp_path / "other"), n=4)
    house.course.judge(0, before)
    assert house.course.enough == ""
    house.play(2, True, False, False, False)
    assert house.course.enough.startswith("1 evaluations have solved no more")


def house_summary(folder):
    """The figures of three of four tasks solved."""
    folder.mkdir()
    house = House(folder)
    house.play(2, True, True, True, False)
    return records.evaluations(folder).lines[0].summary


def test_weights_that_a_learner_which_is_told_to_end_has_passed_over_are_not_waited_for(tmp_path):
    house = House(tmp_path)
    assert house.publish(2) and not house.publish(3)
    house.look()
    assert not house.course.going_on and house.announced.held is None
    assert "after step 2 has failed, and training goes on: no actor took these" in house.status.snapshot().events[-1]
    house.publish(4)
    house.crew.take(4)
    house.publish(5)
    house.look()
    assert house.course.going_on and house.crew.playing, "who has them plays"


def test_an_evaluation_is_given_up_when_the_learner_goes_back_and_its_step_is_due_again(tmp_path):
    house = House(tmp_path)
    house.play(2, True, True, False, False)
    assert house.publish(3) is False and house.publish(4)
    house.crew.take(4)
    house.look()
    assert house.crew.playing, "it is played when the learner dies"
    house.announced.forget()
    house.course.back(3)
    assert not house.course.going_on and house.announced.held is None
    house.crew.end(True, True, True, True)  # of an exam that nobody waits for
    assert house.publish(3, incarnation=1) is False and house.publish(4, incarnation=1), "4 is due again, 2 is known"
    house.crew.take(version_of(1, 4))
    house.look()
    house.crew.end(True, True, True, False)
    house.look()
    assert house.lines() == [("during", 2, 0.5), ("during", 4, 0.75)]
