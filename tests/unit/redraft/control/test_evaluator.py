"""An exam is played whole, whoever comes and goes meanwhile."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from support.places import RECIPES

from actors.contract import Report
from actors.rollout_config import AttemptSettings
from protocols.errors import RedraftError
from protocols.turns import TOO_LONG, Role
from redraft import recipe as recipes
from redraft.control.evaluator import SHARE, TRIES, Exam, findings_of
from redraft.evaluation.measures import Pass

PASSES = [Pass("sampled", None, None)]
TASKS = [{"id": str(n)} for n in range(SHARE + 1)]  # two shares


def member() -> SimpleNamespace:
    return SimpleNamespace(draining=None, evaluating=False, report=Report("ready"))


def task_turn(task: dict) -> SimpleNamespace:
    """A turn of two sampled tokens, and a fact by which its task is known."""
    return SimpleNamespace(logprobs=np.zeros(2, np.float32), task=task["id"])


class Told:
    """The progress that was told last."""

    last_event = "gone"

    def progress(self, done: int, total: int, tokens_per_s: float | None) -> None:
        self.done, self.total, self.tokens_per_s = done, total, tokens_per_s


class Crew:
    """A fleet of actors that end a share, or lose it, when the test says so; each turn is the task that was played."""

    def __init__(self, *numbers: int):
        self.members = {number: member() for number in numbers}
        self.playing: dict[int, list[dict]] = {}
        self.shares: dict[int, int] = {}
        self._ended: list[tuple[int, list | None]] = []

    def ready(self) -> list[int]:
        return [number for number, member in self.members.items() if member.draining is None]

    def evaluate(self, number, tasks, one, share) -> None:
        self.playing[number], self.shares[number] = tasks, share
        self.members[number].evaluating = True

    def tells(self, number: int, tested: int, tokens: int = 0) -> None:
        """The actor's next report."""
        self.members[number].report = Report("ready", share=self.shares[number], tested=tested, tested_tokens=tokens)

    def end(self, number: int, lost: bool = False) -> None:
        tasks = self.playing.pop(number)
        self.members[number].evaluating = False
        self._ended.append((number, None if lost else [[task_turn(task)] for task in tasks]))

    def evaluated(self) -> list:
        ended, self._ended = self._ended, []
        return ended


def begun(crew: Crew, status: Told | None = None) -> Exam:
    exam = Exam(TASKS, PASSES, crew, status or Told())
    assert not exam.advance()
    return exam


def names(exam: Exam) -> list[list[str]]:
    return [[turn.task for turn in turns] for turns in exam.played()["sampled"]]


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
        crew.members[newcomer] = member()
        assert not exam.advance() and list(crew.playing) == [newcomer]
    finish(exam, crew)
    assert names(exam) == [[task["id"]] for task in TASKS]


def test_actors_that_come_take_their_part():
    crew = Crew(0)
    exam = begun(crew)
    crew.members[1] = member()
    assert not exam.advance() and [len(tasks) for tasks in crew.playing.values()] == [SHARE, 1]
    finish(exam, crew)
    assert names(exam) == [[task["id"]] for task in TASKS]


def test_a_share_whose_actors_die_again_and_again_ends_the_exam():
    crew = Crew(0)
    exam = begun(crew)
    with pytest.raises(RedraftError, match="tasks 0 to 249 were lost"):
        for _ in range(2 * TRIES):
            crew.end(0, lost=True)
            exam.advance()


def test_progress_moves_with_each_task_that_ends_and_counts_none_twice():
    crew, told = Crew(0), Told()
    exam = begun(crew, told)
    assert (told.done, told.total) == (0, SHARE + 1)
    crew.tells(0, 7, tokens=21)
    assert not exam.advance() and told.done == 7 and told.tokens_per_s > 0
    crew.tells(0, SHARE)
    crew.end(0)
    assert not exam.advance() and told.done == SHARE, "the next share is given; the last report was of the one before"
    crew.tells(0, 1)
    crew.end(0)
    assert exam.advance() and told.done == SHARE + 1


def test_what_an_actor_played_of_a_share_that_is_lost_with_it_does_not_count():
    crew, told = Crew(0), Told()
    exam = begun(crew, told)
    crew.tells(0, 99)
    assert not exam.advance() and told.done == 99
    crew.end(0, lost=True)
    assert not exam.advance() and told.done == 0


def broken(kind: str) -> SimpleNamespace:
    """A turn of an episode that ended with an error."""
    extra = {"error": "it is down", "kind": kind}
    return SimpleNamespace(role=Role.ERROR, extra=extra, logprobs=np.zeros(0, np.float32))


def played(*kinds: str) -> Exam:
    """An exam of one episode a task, each of which ended with an error of that kind, or as it should ("")."""
    crew, one = Crew(0), [Pass("sampled", AttemptSettings(), None)]
    exam = Exam([{"id": str(n)} for n in range(len(kinds))], one, crew, Told())
    exam.advance()
    crew._ended.append((0, [[broken(kind)] if kind else [] for kind in kinds]))
    exam.advance()
    return exam


def test_an_exam_of_which_every_episode_broke_off_has_no_figures_and_says_of_what():
    with pytest.raises(RedraftError, match="all 3 episodes of the evaluation broke off. The last error: it is down"):
        played("raised", "hung", "raised").check()
    played("raised", "hung", "").check()
    played(TOO_LONG, TOO_LONG).check()  # the model's own doing


def test_one_of_which_most_broke_off_says_so_as_a_run_does_in_training():
    recipe = recipes.load(RECIPES / "quickstart.yaml")
    assert findings_of(played(*["raised"] * 3, *[""] * 9).tally(), recipe) == []
    [found] = findings_of(played(*["raised"] * 12).tally(), recipe)
    assert found.cause == "episodes_broken" and "all 12 episodes ended with an error" in found.problem
