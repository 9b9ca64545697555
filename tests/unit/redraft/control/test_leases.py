"""Leases: nothing is skipped, nothing is played twice, and staleness is bounded before it arises."""

import json

from hypothesis import given
from hypothesis import strategies as st

from actors.config import CurriculumSettings
from actors.tasks import TaskOrder
from redraft.control.admission import admissible
from redraft.control.leases import INCARNATION_LEASES, PLAYS, LeaseBook

TASKS = [{"id": str(n)} for n in range(10)]
LEVELLED = [{"id": str(n), "level": n % 3} for n in range(12)]
CURRICULUM = CurriculumSettings(threshold=0.75, window=4)


def book(cursor=0, incarnation=0, known=lambda ids: set()) -> LeaseBook:
    return LeaseBook(TaskOrder(TASKS, seed=1), "run", 0, cursor, incarnation, known, lambda group: "shard")


def climbing(state=None, incarnation=0, known=lambda ids: set()) -> LeaseBook:
    """A book with a curriculum, resumed from `state`."""
    state = json.loads(json.dumps(state or {"position": 0}))
    order = TaskOrder(LEVELLED, 1, CURRICULUM, state)
    return LeaseBook(order, "run", 0, state["position"], incarnation, known, lambda group: "shard")


def play(leases: LeaseBook, count: int, success: float) -> list:
    """Leases groups and closes them all."""
    given = leases.give(0, count, 0.0)
    leases.closed((lease.group, lease.fencing_token, success) for lease in given)
    return given


def levels(given) -> set[int]:
    return {lease.task["level"] for lease in given}


def test_leases_follow_the_order_of_tasks_and_their_order_rises():
    leases = book().give(actor=0, count=20, now=0.0)
    assert sorted(lease.task["id"] for lease in leases[:10]) == [task["id"] for task in TASKS]
    assert [lease.order for lease in leases] == list(range(20))
    assert len({lease.group for lease in leases}) == 20


def test_a_lost_group_is_leased_again_first_under_a_higher_number_and_its_old_order():
    leases = book()
    first, second = leases.give(0, 2, 0.0)
    assert leases.lost(first.group, first.fencing_token) == first
    again, new = leases.give(1, 2, 1.0)
    assert (again.group, again.fencing_token, again.order) == (first.group, first.fencing_token + 1, first.order)
    assert new.order == 2
    assert leases.of(1) == [(first.group, 1), (new.group, 0)] and leases.of(0) == [(second.group, 0)]


def test_a_group_that_is_lost_again_and_again_is_given_up():
    leases = book()
    (lease,) = leases.give(0, 1, 0.0)
    last = lease
    for _ in range(PLAYS):
        leases.lost(last.group, last.fencing_token)
        (last,) = leases.give(0, 1, 0.0)
    assert leases.given_up == 1 and last.group != lease.group


def test_a_group_whose_actors_die_is_never_given_up():
    leases = book()
    (last,) = leases.give(0, 1, 0.0)
    for _ in range(PLAYS + 1):
        leases.lost(last.group, last.fencing_token, blamed=False)
        (again,) = leases.give(0, 1, 0.0)
        assert again.group == last.group
        last = again


def test_the_deaths_of_actors_do_not_count_among_the_failures_of_a_group():
    leases = book()
    (lease,) = leases.give(0, 1, 0.0)
    for blamed in [False] * PLAYS + [True] * (PLAYS - 1):
        leases.lost(lease.group, leases.of(0)[0][1], blamed)
        leases.give(0, 1, 0.0)
        assert leases.given_up == 0 and leases.of(0)[0][0] == lease.group
    leases.lost(lease.group, leases.of(0)[0][1])
    assert leases.given_up == 1


def test_a_late_word_of_an_older_play_changes_nothing():
    leases = book()
    (lease,) = leases.give(0, 1, 0.0)
    leases.lost(lease.group, lease.fencing_token)
    (again,) = leases.give(1, 1, 1.0)
    leases.closed([(lease.group, lease.fencing_token)])
    assert leases.lost(lease.group, lease.fencing_token) is None
    assert leases.of(1) == [(again.group, again.fencing_token)]


def test_losing_what_is_not_leased_changes_nothing():
    leases = book()
    (lease,) = leases.give(0, 1, 0.0)
    leases.closed([(lease.group, lease.fencing_token)])
    assert leases.lost(lease.group, lease.fencing_token) is None and leases.give(0, 1, 0.0)[0].order == 1


def test_the_cursor_is_the_first_position_that_is_not_closed():
    leases = book()
    first, second, third = leases.give(0, 3, 0.0)
    leases.closed([(second.group, 0)])
    assert leases.state["position"] == 0
    leases.lost(first.group, 0)
    assert leases.state["position"] == 0
    leases.closed([(third.group, 0)])
    leases.closed([(leases.give(0, 1, 0.0)[0].group, 1)])
    assert leases.state["position"] == 3


def test_a_resumed_run_skips_what_replay_holds_and_leases_the_rest():
    before = book()
    leases = before.give(0, 6, 0.0)
    closed = {lease.group for lease in leases[::2]}
    resumed = book(cursor=0, incarnation=1, known=lambda ids: closed & set(ids))
    played = resumed.give(0, 5, 0.0)
    assert [lease.order for lease in played] == [1, 3, 5, 6, 7]
    assert all(lease.fencing_token >= INCARNATION_LEASES for lease in played)


def test_a_torn_group_is_leased_again_once_under_a_higher_number_and_the_cursor_covers_it():
    leases = book()
    first, corrupt, third = leases.give(0, 3, 0.0)
    leases.closed([(lease.group, lease.fencing_token) for lease in (first, corrupt, third)])
    assert leases.state["position"] == 3
    assert leases.again(corrupt.group, corrupt.fencing_token, corrupt.order, "there") and leases.state["position"] == 1
    assert not leases.again(corrupt.group, corrupt.fencing_token, corrupt.order, "there"), (
        "it waits for an actor already"
    )
    again, new = leases.give(1, 2, 1.0)
    assert (again.group, again.order, again.task) == (corrupt.group, corrupt.order, corrupt.task)
    assert again.fencing_token > corrupt.fencing_token and new.order == 3
    assert (
        not leases.again(corrupt.group, corrupt.fencing_token, corrupt.order, "there") and leases.state["position"] == 1
    ), "it is being played"
    leases.closed([(corrupt.group, corrupt.fencing_token)])
    assert leases.state["position"] == 1, "a late word of the corrupt play"
    leases.closed([(again.group, again.fencing_token), (new.group, new.fencing_token)])
    assert leases.state["position"] == 4


def test_a_play_that_was_torn_in_an_earlier_incarnation_is_fenced_off_by_the_new_one():
    (corrupt,) = book().give(0, 1, 0.0)
    resumed = book(cursor=5, incarnation=2)
    assert (
        resumed.again(corrupt.group, 1 * INCARNATION_LEASES + 3, corrupt.order, "there")
        and resumed.state["position"] == 0
    )
    assert resumed.give(0, 1, 0.0)[0].fencing_token == 2 * INCARNATION_LEASES
    later = book().give(0, 5, 0.0)[4]
    assert resumed.again(later.group, 2 * INCARNATION_LEASES + 3, later.order, "there")
    assert resumed.give(0, 1, 0.0)[0].fencing_token == 2 * INCARNATION_LEASES + 4


def test_without_a_curriculum_the_state_is_the_cursor():
    leases = book()
    play(leases, 20, 1.0)
    assert leases.state == {"position": 20}


def test_levels_unlock_at_the_threshold_for_groups_that_are_not_leased_yet():
    leases = climbing()
    assert levels(play(leases, 8, 0.5)) == {0}, "below the threshold"
    first, *rest = leases.give(0, 6, 0.0)
    leases.closed((lease.group, lease.fencing_token, 1.0) for lease in rest[:4])
    leases.lost(first.group, first.fencing_token)
    again, *new = leases.give(0, 21, 0.0)
    assert again.group == first.group and again.task == first.task, "what was leased before keeps its task"
    assert [lease.order for lease in new] == list(range(14, 34)) and levels(new) == {0, 1}


def test_a_report_without_success_closes_groups_and_unlocks_nothing():
    leases = climbing()
    for number in range(8):
        (lease,) = leases.give(0, 1, 0.0)
        leases.closed([(lease.group, lease.fencing_token) if number % 2 else (lease.group, lease.fencing_token, None)])
    assert leases.state["position"] == 8 and not leases.live and levels(leases.give(0, 8, 0.0)) == {0}


def test_a_late_word_of_an_older_play_does_not_count_towards_a_level():
    leases = climbing()
    play(leases, 3, 1.0)
    (lease,) = leases.give(0, 1, 0.0)
    leases.lost(lease.group, lease.fencing_token)
    leases.give(0, 1, 0.0)
    leases.closed([(lease.group, lease.fencing_token, 1.0)])
    assert levels(leases.give(0, 8, 0.0)) == {0}


def test_ids_are_unique_across_level_spans():
    leases = climbing()
    played = [*play(leases, 7, 1.0), *play(leases, 30, 1.0), *play(leases, 60, 1.0)]
    assert [levels(stage) for stage in (played[:7], played[7:37], played[37:])] == [{0}, {0, 1}, {0, 1, 2}]
    assert len({lease.group for lease in played}) == len(played)


def test_a_resumed_book_continues_the_same_spans_and_leases_the_same_groups():
    leases = climbing()
    closed = {lease.group for lease in play(leases, 7, 1.0)}
    open_, *rest = leases.give(0, 10, 0.0)
    leases.closed((lease.group, lease.fencing_token, 0.5) for lease in rest)
    closed |= {lease.group for lease in rest}
    state = leases.state
    assert state["position"] == 7 and state["spans"] == [[0, 0], [7, 1]]
    resumed = climbing(state, incarnation=1, known=lambda ids: closed & set(ids))
    leases.lost(open_.group, open_.fencing_token, blamed=False)
    there, here = (side.give(0, 25, 0.0) for side in (leases, resumed))
    assert [(a.group, a.order, a.task, a.seed) for a in here] == [(b.group, b.order, b.task, b.seed) for b in there]
    for side, given_leases in ((leases, there), (resumed, here)):
        side.closed((lease.group, lease.fencing_token, 1.0) for lease in given_leases)
    assert resumed.state == leases.state and len(leases.state["spans"]) == 3


def test_a_book_resumed_from_before_a_level_rose_plays_no_group_twice():
    leases = climbing()
    play(leases, 3, 1.0)
    state = leases.state
    lost = [*play(leases, 2, 1.0), *play(leases, 9, 0.0)]
    closed = {lease.group for lease in lost}
    resumed = climbing(state, incarnation=1, known=lambda ids: closed & set(ids))
    played = [*play(resumed, 10, 0.5), *play(resumed, 6, 1.0), *play(resumed, 30, 0.0)]
    assert not closed & {lease.group for lease in played}
    assert len({lease.group for lease in played}) == len(played)
    assert levels(played[:10]) == {0} and levels(played[16:]) == {0, 1}
    corrupt = lost[-1]
    assert not resumed.again(corrupt.group, corrupt.fencing_token, corrupt.order, "there"), (
        "that position is another group's now"
    )


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
