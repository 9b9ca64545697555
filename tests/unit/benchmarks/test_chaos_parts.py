"""Faults to a run: in which order they come, and what each is said to cost."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.chaos_parts import FAULTS, Cost, Storm, schedule


def test_each_kind_comes_once_before_any_comes_again_in_an_order_of_the_seed():
    kinds = tuple(FAULTS)
    drawn = schedule(7, 2 * len(kinds), kinds)
    assert sorted(drawn[: len(kinds)]) == sorted(drawn[len(kinds) :]) == sorted(kinds)
    assert drawn == schedule(7, 2 * len(kinds), kinds) != schedule(8, 2 * len(kinds), kinds)


def test_a_fault_costs_the_steps_that_were_done_before_and_are_done_again(tmp_path, monkeypatch):
    written = iter([[1, 2, 3, 4], [1, 2, 3, 4, 3, 4, 5]])
    monkeypatch.setattr(Storm, "written", lambda self: next(written))
    monkeypatch.setattr(Storm, "steps", lambda self: None)
    monkeypatch.setitem(FAULTS, "nothing", lambda storm: None)
    assert replace(Storm(tmp_path, {}).do("nothing"), seconds=0.0) == Cost("nothing", 0.0, 2)
