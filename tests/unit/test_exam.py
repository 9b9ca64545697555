"""An exam is played whole, whoever comes and goes meanwhile."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from protocols.errors import RedraftError
from redraft.exam import SHARE, TRIES, Exam

PASSES = [("sampled", None, None)]
TASKS = [{"id": str(n)} for n in range(SHARE + 1)]  # two shares


class Crew:
    """A fleet of actors that end a share, or lose it, when the test says so; each turn is the task that was played."""

    def __init__(self, *numbers: int):
        self.members = {number: SimpleNamespace(draining=None) for number in numbers}
        self.playing: dict[int, list[dict]] = {}
        self._ended: list[tuple[int, list | None]] = []

    def ready(self) -> list[int]:
        return [number for number, member in self.members.items() if member.draining is None]

    def evaluate(self, number, tasks, rollout, sampling) -> None:
        self.playing[number] = tasks

    def end(self, number: int, lost: bool = False) -> None:
        tasks = self.playing.pop(number)
        self._ended.append((number, None if lost else [[task["id"]] for task in tasks]))

    def evaluated(self) -> list:
        ended, self._ended = self._ended, []
        return ended


def begun(crew: Crew) -> Exam:
    exam = Exam(TASKS, PASSES, crew, SimpleNamespace(progress=lambda done, total: None, last_event="gone"))
    assert not exam.advance()
    return exam


def finish(exam: Exam, crew: Crew) -> None:
    while not exam.advance():
        for number in list(crew.playing):
            crew.end(number)


def test_a_share_that_is_taken_from_actors_that_leave_is_played_by_another_however_often():
    crew = Crew(0)
    exam = begun(crew)
    for newcomer in range(1, TRIES + 3):
        crew.members[newcomer - 1].draining = 1.0
        crew.end(newcomer - 1, lost=True)
        crew.members[newcomer] = SimpleNamespace(draining=None)
        assert not exam.advance() and list(crew.playing) == [newcomer]
    finish(exam, crew)
    assert exam.played() == {"sampled": [[task["id"]] for task in TASKS]}


def test_actors_that_come_take_their_part():
    crew = Crew(0)
    exam = begun(crew)
    crew.members[1] = SimpleNamespace(draining=None)
    assert not exam.advance() and [len(tasks) for tasks in crew.playing.values()] == [SHARE, 1]
    finish(exam, crew)
    assert exam.played() == {"sampled": [[task["id"]] for task in TASKS]}


def test_a_share_whose_actors_die_again_and_again_ends_the_exam():
    crew = Crew(0)
    exam = begun(crew)
    with pytest.raises(RedraftError, match="tasks 0 to 250 were lost"):
        for _ in range(2 * TRIES):
            crew.end(0, lost=True)
            exam.advance()
