"""A learner that goes back to its checkpoint in a run that goes on: what is counted, taken back and told again."""

from __future__ import annotations

import threading
from collections import deque
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError
from support.places import RECIPES

from actors.tasks import TaskOrder
from protocols.checksum import Sums
from protocols.errors import FaultError
from protocols.reports import LearnerReady, StepReport
from protocols.weights import Bucket, Probe, WeightRef, version_of
from redraft import recipe as recipes
from redraft import records
from redraft.control.controller import Controller
from redraft.control.exchange import Announced, Exchange
from redraft.control.leases import LeaseBook
from redraft.control.restarts import RankDiedError, Restarts
from redraft.control.status import Status
from redraft.run import Run

QUICKSTART = RECIPES / "quickstart.yaml"
DEATH = RankDiedError("the process of learner rank 1 died")


@pytest.fixture
def run(tmp_path) -> Run:
    return Run(tmp_path, "0123456789abcdef", "no/model")


def weights(version: int) -> WeightRef:
    return WeightRef(version, 4, Sums(), (Bucket(1, Sums(version)),), Probe((1, 2), (-1.0,), 0.1))


def report(step: int, incarnation: int = 0) -> StepReport:
    return StepReport(step=step, version=version_of(incarnation, step))


# What is told.


@pytest.mark.parametrize(
    ("heard", "step", "lost_report"),
    [([1, 2, 3, 4, 5], 3, False), ([1, 2, 3], 3, False), ([1, 2], 3, True), ([], 0, False)],
    ids=["ahead of it", "told", "not told", "before any"],
)
def test_each_step_is_in_the_history_once_after_the_learner_went_back(run, heard, step, lost_report):
    status = Status(run, recipes.load(QUICKSTART))
    for done in heard:
        status.step_done(report(done))
    status.restarting("it died", step or None, 1, 3)
    status.restarted(step, 1, report(step) if step else None)
    assert status.step == step
    status.step_done(report(step + 1, 1))
    kept = records.steps(records.step_lines(run.folder))
    assert [line.report.step for line in kept] == list(range(1, step + 2))
    assert lost_report == (len(run.lines("metrics.jsonl")) > len(heard) + 1)


def test_a_report_that_only_a_future_had_that_is_lost_is_told_again(run):
    status = Status(run, recipes.load(QUICKSTART))
    for done in range(1, 8):
        status.step_done(report(done))
    status.restarted(4, 1, report(4))
    status.step_done(report(5, 1))
    status.restarted(6, 1, report(6, 1))  # its checkpoint was written, and then it died
    kept = records.steps(records.step_lines(run.folder))
    assert [line.report.version for line in kept] == [1, 2, 3, 4, version_of(1, 5), version_of(1, 6)]


def test_a_restart_is_said_once_with_its_cause_and_where_it_goes_back_to(run):
    status = Status(run, recipes.load(QUICKSTART))
    status.step_done(report(7))
    status.restarting("the process of learner rank 1 died", 5, 1, 3)
    (said,) = status.snapshot().events
    assert said.endswith(
        "the learner goes back from step 7 to the checkpoint of step 5, restart 1 of 3 in a row: the process of "
        "learner rank 1 died"
    )
    (line,) = run.lines("restarts.jsonl")
    assert (line["why"], line["checkpoint"], line["part"]) == ("the process of learner rank 1 died", 5, "learner")
    assert status.snapshot().state == "restarting"


def test_late_word_of_a_learner_that_has_died_counts_for_nothing(run):
    (run.folder / "logs").mkdir()
    made = Controller(run, recipes.load(QUICKSTART), resume=False)
    made.announce(weights(3))
    made._announced.forget()
    made.announce(weights(4))
    made.step_done(report(4))
    assert made._announced.newest is None and made._announced.orders(3) == (None, None)
    made.announce(weights(version_of(1, 2)))
    made._status.restarted(2, 0, None)
    made.step_done(report(3, 1))
    assert made._announced.version == version_of(1, 2)
    assert [line["version"] for line in run.lines("metrics.jsonl")] == [version_of(1, 3)]


# What is taken back.


def test_leases_are_taken_back_but_for_closed_groups_and_given_again_under_higher_numbers(run):
    tasks = [{"id": str(n)} for n in range(8)]
    book = LeaseBook(TaskOrder(tasks, seed=1), "run", 0, 0, 0, lambda ids: set(), lambda group: "shard")
    given = book.give(0, 3, 0.0) + book.give(1, 2, 0.0)
    closed, abandoned = {given[0].group}, []
    client = SimpleNamespace(
        known=lambda ids: closed.intersection(ids), abandon=lambda *refused: abandoned.append(refused)
    )
    parts: Any = SimpleNamespace(book=book, client=client, ranks=[], fleet=None, lost=deque())
    recipe = recipes.load(QUICKSTART)
    exchange = Exchange(parts, recipe, Status(run, recipe), Announced())
    exchange.recall("the learner went back")
    assert abandoned == [(lease.group, lease.fencing_token, "shard") for lease in given[1:]]
    book.closed((lease.group, lease.fencing_token) for lease in given)  # the first is right, the others come too late
    assert not book.live and book.state["position"] == given[1].order
    again = book.give(0, 5, 1.0)
    assert [(lease.group, lease.fencing_token) for lease in again[:4]] == [(lease.group, 1) for lease in given[1:]]
    assert again[4].order == 5, "and the order of tasks goes on where it was"


# How often.


class Ranks:
    """Those whose start fails as often as it is said, before one that goes well."""

    def __init__(self, failures: int):
        self.failures, self.starts = failures, 0

    def kill(self) -> None:
        pass

    def start(self, meanwhile) -> None:
        self.starts += 1
        meanwhile(["learner rank 0"])
        if self.starts <= self.failures:
            raise ActorDiedError()

    def set_up(self, resume: bool, meanwhile) -> LearnerReady:
        assert resume
        return LearnerReady(2, 1, 10, bound=1)

    def announce(self, controller, meanwhile) -> None:
        controller.newest = weights(version_of(1, 2))


class House:
    """Restarts of a run whose ranks fail so often."""

    def __init__(self, run: Run, failures: int, restarts: int):
        recipe = recipes.load(QUICKSTART, [f"learner.restarts={restarts}"])
        self.run, self.ranks, self.announced = run, Ranks(failures), Announced()
        self.announced.newest = weights(5)
        self.status, self.stopping, self.back = Status(run, recipe), threading.Event(), []
        parts = SimpleNamespace(ranks=self.ranks)
        exchange: Any = SimpleNamespace(
            parts=parts, recall=lambda why: None, tick=lambda: None, arrived=lambda: self.announced.newest is not None
        )
        course: Any = SimpleNamespace(back=self.back.append)
        self.restarts = Restarts(run, recipe, exchange, course, self.status, self.announced, self.stopping)

    def lose_a_rank(self) -> bool:
        return self.restarts.again(DEATH, self.announced)


def test_a_rank_that_dies_again_while_it_starts_is_tried_as_often_as_the_recipe_says(run):
    house = House(run, failures=2, restarts=3)
    house.lose_a_rank()
    assert house.ranks.starts == 3 and house.back == [2] and house.status.step == 2
    assert house.announced.version == version_of(1, 2)
    with pytest.raises(FaultError, match=r"4 times in a row without a new checkpoint \(learner.restarts=3\); the last"):
        house.lose_a_rank()


def test_a_checkpoint_between_two_deaths_begins_the_count_anew(run):
    house = House(run, failures=0, restarts=1)
    house.lose_a_rank()
    (run.checkpoints / "step-000003").mkdir(parents=True)
    house.lose_a_rank()
    with pytest.raises(FaultError, match="2 times in a row"):
        house.lose_a_rank()
    assert house.ranks.starts == 2


def test_without_restarts_the_death_ends_the_run(run):
    house = House(run, 0, restarts=0)
    with pytest.raises(RankDiedError) as ended:
        house.lose_a_rank()
    assert ended.value is DEATH and not house.ranks.starts


@pytest.mark.parametrize("restarts", [0, 3])
def test_a_run_that_was_told_to_stop_ends_with_the_newest_checkpoint_where_a_rank_dies_meanwhile(run, restarts):
    (run.checkpoints / "step-000003").mkdir(parents=True)
    house = House(run, 0, restarts)
    house.status.step_done(report(5))
    house.stopping.set()
    assert not house.lose_a_rank() and not house.ranks.starts
    assert house.status.last_event.endswith("The run was told to stop, and ends with the checkpoint of step 3")
    assert house.status.step == 3, "which the summary says"


def test_a_run_that_is_told_to_stop_while_its_ranks_start_waits_for_them_no_longer(run):
    house = House(run, failures=0, restarts=3)
    house.ranks.start = lambda meanwhile: (house.stopping.set(), meanwhile(["learner rank 0"]))
    assert not house.lose_a_rank() and house.back == []
    assert house.status.last_event.endswith("ends without a checkpoint")


def test_a_run_that_is_told_to_stop_ends_so_where_its_ranks_fail_to_start_as_well(run):
    house = House(run, failures=1, restarts=3)
    tell = house.ranks.start

    def start(meanwhile) -> None:
        try:
            tell(meanwhile)
        finally:
            house.stopping.set()

    house.ranks.start = start
    assert not house.lose_a_rank() and house.ranks.starts == 1
