"""Leases: nothing is skipped, nothing is played twice, and staleness is bounded before it arises."""

from hypothesis import given
from hypothesis import strategies as st

from actors.tasks import TaskOrder
from redraft.leases import LIFE_NUMBERS, PLAYS, LeaseBook, admissible

TASKS = [{"id": str(n)} for n in range(10)]


def book(cursor=0, life=0, known=lambda ids: set()) -> LeaseBook:
    return LeaseBook(TaskOrder(TASKS, seed=1), "run", 0, cursor, life, known, lambda group: "shard")


def test_leases_follow_the_order_of_tasks_and_their_order_rises():
    leases = book().give(actor=0, count=20, now=0.0)
    assert sorted(lease.task["id"] for lease in leases[:10]) == [task["id"] for task in TASKS]
    assert [lease.order for lease in leases] == list(range(20))
    assert len({lease.group for lease in leases}) == 20


def test_a_lost_group_is_leased_again_first_under_a_higher_number_and_its_old_order():
    leases = book()
    first, second = leases.give(0, 2, 0.0)
    assert leases.lost(first.group, first.number) == first
    again, new = leases.give(1, 2, 1.0)
    assert (again.group, again.number, again.order) == (first.group, first.number + 1, first.order)
    assert new.order == 2
    assert leases.of(1) == [(first.group, 1), (new.group, 0)] and leases.of(0) == [(second.group, 0)]


def test_a_group_that_is_lost_again_and_again_is_given_up():
    leases = book()
    (lease,) = leases.give(0, 1, 0.0)
    last = lease
    for _ in range(PLAYS):
        leases.lost(last.group, last.number)
        (last,) = leases.give(0, 1, 0.0)
    assert leases.given_up == 1 and last.group != lease.group


def test_a_group_whose_actors_die_is_never_given_up():
    leases = book()
    (last,) = leases.give(0, 1, 0.0)
    for _ in range(PLAYS + 1):
        leases.lost(last.group, last.number, blamed=False)
        (again,) = leases.give(0, 1, 0.0)
        assert again.group == last.group
        last = again


def test_a_late_word_of_an_older_play_changes_nothing():
    leases = book()
    (lease,) = leases.give(0, 1, 0.0)
    leases.lost(lease.group, lease.number)
    (again,) = leases.give(1, 1, 1.0)
    leases.closed([(lease.group, lease.number)])
    assert leases.lost(lease.group, lease.number) is None
    assert leases.of(1) == [(again.group, again.number)]


def test_losing_what_is_not_leased_changes_nothing():
    leases = book()
    (lease,) = leases.give(0, 1, 0.0)
    leases.closed([(lease.group, lease.number)])
    assert leases.lost(lease.group, lease.number) is None and leases.give(0, 1, 0.0)[0].order == 1


def test_the_cursor_is_the_first_position_that_is_not_closed():
    leases = book()
    first, second, third = leases.give(0, 3, 0.0)
    leases.closed([(second.group, 0)])
    assert leases.cursor == 0
    leases.lost(first.group, 0)
    assert leases.cursor == 0
    leases.closed([(third.group, 0)])
    leases.closed([(leases.give(0, 1, 0.0)[0].group, 1)])
    assert leases.cursor == 3


def test_a_resumed_run_skips_what_replay_holds_and_leases_the_rest():
    before = book()
    leases = before.give(0, 6, 0.0)
    closed = {lease.group for lease in leases[::2]}
    resumed = book(cursor=0, life=1, known=lambda ids: closed & set(ids))
    played = resumed.give(0, 5, 0.0)
    assert [lease.order for lease in played] == [1, 3, 5, 6, 7]
    assert all(lease.number >= LIFE_NUMBERS for lease in played)


def test_a_torn_group_is_leased_again_once_under_a_higher_number_and_the_cursor_covers_it():
    leases = book()
    first, torn, third = leases.give(0, 3, 0.0)
    leases.closed([(lease.group, lease.number) for lease in (first, torn, third)])
    assert leases.cursor == 3
    assert leases.again(torn.group, torn.number, torn.order, "there") and leases.cursor == 1
    assert not leases.again(torn.group, torn.number, torn.order, "there"), "it waits for an actor already"
    again, new = leases.give(1, 2, 1.0)
    assert (again.group, again.order, again.task) == (torn.group, torn.order, torn.task)
    assert again.number > torn.number and new.order == 3
    assert not leases.again(torn.group, torn.number, torn.order, "there") and leases.cursor == 1, "it is being played"
    leases.closed([(torn.group, torn.number)])
    assert leases.cursor == 1, "a late word of the torn play"
    leases.closed([(again.group, again.number), (new.group, new.number)])
    assert leases.cursor == 4


def test_a_play_that_was_torn_in_an_earlier_life_is_fenced_off_by_the_new_one():
    (torn,) = book().give(0, 1, 0.0)
    resumed = book(cursor=5, life=2)
    assert resumed.again(torn.group, 1 * LIFE_NUMBERS + 3, torn.order, "there") and resumed.cursor == 0
    assert resumed.give(0, 1, 0.0)[0].number == 2 * LIFE_NUMBERS
    assert resumed.again(b"later" + bytes(11), 2 * LIFE_NUMBERS + 3, 4, "there")
    assert resumed.give(0, 1, 0.0)[0].number == 2 * LIFE_NUMBERS + 4


def test_overdue_leases_are_found():
    leases = book()
    (old,) = leases.give(0, 1, 10.0)
    leases.give(0, 1, 20.0)
    assert leases.overdue(before=15.0) == [(old.group, 0)]


@given(st.integers(0, 8), st.integers(1, 64), st.integers(1, 30))
def test_admission_bounds_staleness(eta, batch, steps):
    """A worst-case pipeline: actors start whatever they may under the newest weights, the learner takes in order."""
    leased: list[int] = []  # version at which each group was leased
    used = 0
    for version in range(steps):
        leased += [version] * admissible(eta, version, version, batch, len(leased) - used, 0)
        taken = leased[used : used + batch]
        assert len(taken) == batch, "the learner never lacks a batch"
        assert version - min(taken) <= eta
        used += batch
