"""Steps compute with as many threads as do most, which is tried anew after a while and when steps become slow."""

from __future__ import annotations

from redraft.models.threads import AGAIN, TRIES, Threads, up_to


def steps(threads: Threads, count: int, rates: dict[int, float]) -> list[int]:
    """The numbers with which so many steps compute, at such rates."""
    used = []
    for _ in range(count):
        used.append(threads.next())
        threads.took(used[-1], rates[used[-1]])
    return used


def test_what_does_more_is_used_until_it_is_tried_again():
    threads = Threads([4, 1])
    assert steps(threads, AGAIN, {4: 3.0, 1: 1.0}) == [4, 1] * TRIES + [4] * (AGAIN - 2 * TRIES)
    assert steps(threads, AGAIN, {4: 0.5, 1: 1.0})[2 * TRIES :] == [1] * (AGAIN - 2 * TRIES)


def test_a_step_that_is_much_slower_has_all_tried_at_once():
    threads = Threads([4, 1])
    steps(threads, 50, {4: 3.0, 1: 1.0})
    assert steps(threads, 10, {4: 2.0, 1: 1.0}) == [4] * 10, "a little slower is no reason"
    assert steps(threads, 2 * TRIES + 5, {4: 0.4, 1: 0.9}) == [4] + [4, 1] * TRIES + [1] * 4


def test_powers_of_two_are_tried_below_all_cores():
    assert [up_to(cores) for cores in (1, 2, 6, 8)] == [[1], [2, 1], [6, 4, 2, 1], [8, 4, 2, 1]]


def test_one_number_is_used_whatever_it_does():
    assert steps(Threads([2]), 3 * AGAIN, {2: 1.0}) == [2] * 3 * AGAIN
    assert steps(Threads([1, 1]), AGAIN, {1: 1.0}) == [1] * AGAIN
