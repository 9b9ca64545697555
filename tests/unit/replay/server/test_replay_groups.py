"""The states of groups, on a real spool: single promises, and a property test against a simple model."""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from protocols.errors import RedraftError, SettingError
from protocols.turns import Close, Role, Turn
from protocols.weights import version_of
from protocols.wire import ENTRY, NO_VERSION, Row, join, row_of, split, whole_group
from replay.config import ReplaySettings
from replay.disk.spool import Spool
from replay.server.groups import NO_PRIORITY, TRAINED, HeldGroup, State
from replay.server.ready import Ready
from replay.server.samplers import Fifo, Prioritised, SumTree, Uniform
from replay.server.store import Store

A, B = b"A" * 16, b"B" * 16
DRAWS = 5000  # the rarest of seven comes 286 times, give or take 16


def turn(group=A, lease=0, number=0, version=0, size=3):
    ids = np.arange(size, dtype=np.int32)
    logprobs = -np.arange(size, dtype=np.float32)
    return Turn(group, lease, number, number - 1, ids, ids + 1, logprobs, ((0, version),), Role.ATTEMPT)


def put(store, *items, order=0, spread=1.0):
    rows = [row_of(item, order, spread if isinstance(item, Close) else 0.0) for item in items]
    return store.change(lambda draft: [draft.store(Row._make(ENTRY.unpack(packed[0])), packed) for packed in rows])


def whole(group=A, lease=0, turns=2, version=0):
    return [*(turn(group, lease, n, version) for n in range(turns)), Close(group, lease, turns)]


def played(store, group=A):
    return store.change(lambda draft: whole_group(split(*join(draft.rows(group)))))


def do(store, name, *arguments):
    return store.change(lambda draft: getattr(draft, name)(*arguments))


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path, "run", ReplaySettings())
    yield store
    store.close()


def state(store, group=A):
    record = store.groups.get(group)
    return None if record is None else record.state


def test_a_group_is_ready_only_when_whole_in_whatever_order_its_rows_come(store):
    first, second, close = whole()
    for item in (close, second):
        put(store, item)
        assert state(store) is State.OPEN
    put(store, first)
    assert state(store) is State.READY
    assert [t.turn for t in played(store).turns] == [0, 1]


def test_a_resent_row_is_a_duplicate_also_of_a_closed_and_of_a_forgotten_group(store):
    first, second, close = whole()
    assert put(store, first, first) == ["stored", "duplicate"]
    put(store, second, close)
    assert put(store, first, close) == ["duplicate"] * 2
    do(store, "claim", A, b"learner/1", 1)
    do(store, "commit", A, 1)
    do(store, "forget", A, TRAINED)
    assert put(store, first, turn(lease=5)) == ["duplicate"] * 2
    assert store.stats().trained_total == 1 and store.stats().rows == 0


def test_the_step_that_last_used_groups_outlives_the_groups_and_the_service(tmp_path):
    for expected, step in ((0, 3), (3, 4)):
        store = Store(tmp_path, "run", ReplaySettings())
        assert store.stats().step == expected
        name = step.to_bytes(16, "big")
        put(store, *whole(name))
        do(store, "claim", name, b"learner/1", 1)
        do(store, "commit", name, step)
        do(store, "forget", name, TRAINED)
        store.close()


def test_a_newer_lease_drops_the_open_rows_of_the_older_and_fences_them_off(store):
    put(store, turn(number=0), turn(number=1))
    assert put(store, turn(lease=2), turn(number=2), Close(A, 0, 3)) == ["stored", "fenced", "fenced"]
    assert store.groups.get(A).rows == 1 and store.groups.rows == 1
    put(store, Close(A, 2, 1))
    assert played(store).lease == 2
    assert put(store, turn(lease=3)) == ["duplicate"], "a closed group is final"


def test_an_abandoned_play_is_fenced_off_and_the_next_lease_is_not(store):
    put(store, turn(lease=1))
    do(store, "abandon", A, 1)
    assert store.stats().open == 0 and store.groups.bytes == 0
    assert put(store, turn(lease=1, number=1), turn(lease=2)) == ["fenced", "stored"]
    do(store, "abandon", A, 1)
    assert state(store) is State.OPEN, "a late abandon of an older play leaves the newer one"


def test_flat_and_empty_groups_are_set_aside_and_counted(tmp_path):
    store = Store(tmp_path, "run", ReplaySettings(drop_flat=True))
    put(store, *whole(), spread=0.0)
    put(store, Close(B, 0, 0))
    assert store.stats().dropped == {"flat": 1, "empty": 1}
    assert store.stats().ready == 0 and store.groups.rows == 3, "what was acknowledged stays until a checkpoint"
    do(store, "forget", A)
    assert store.stats().dropped == {"flat": 1, "empty": 1} and store.groups.rows == 0
    store.close()


def test_a_group_whose_episodes_all_broke_off_is_set_aside_whatever_the_settings(tmp_path):
    store = Store(tmp_path, "run", ReplaySettings())
    put(store, *whole(), spread=float("nan"))
    assert store.stats().dropped == {"broken": 1} and store.stats().ready == 0
    store.close()
    store = Store(tmp_path, "run", ReplaySettings())
    assert store.stats().dropped == {"broken": 1} and store.stats().ready == 0
    do(store, "forget", A)
    assert store.stats().dropped == {"broken": 1} and store.groups.rows == 0
    store.close()


def test_two_uses_are_two_steps_and_resume_undoes_those_that_came_after(tmp_path):
    store = Store(tmp_path, "run", ReplaySettings(max_uses=2))
    put(store, *whole())
    for step, after in ((4, State.READY), (6, State.USED)):
        do(store, "claim", A, b"learner/1", step)
        do(store, "commit", A, step)
        do(store, "commit", A, step)
        assert state(store) is after
    with pytest.raises(RedraftError, match="claim_lease_s"):
        do(store, "commit", A, 7)
    do(store, "resume", A, 5)
    assert state(store) is State.READY and store.groups.get(A).uses == (4,)
    do(store, "filter_stale", A, 5)
    assert state(store) is State.USED, "a use that a resume may undo is kept"
    store.close()


def test_staleness_is_that_of_the_oldest_token_across_incarnations_of_the_learner():
    record = HeldGroup(0, 0)
    assert record.staleness(9) == 0
    for number, version in enumerate((version_of(0, 57), version_of(1, 51), NO_VERSION)):
        record = record.with_row(number, version, 0, 0.0, 10)
    assert record.staleness(52) == 5
    assert HeldGroup.unpack(record.pack()) == record


def ready(sampler, *numbers, **facts):
    index = Ready(sampler)
    for n in numbers:
        index.add(bytes([n]) * 16, HeldGroup(0, n, State.READY, **facts))
    return index


def test_fifo_waits_for_the_straggler_that_overtaking_would_lose():
    index = ready(Fifo(), 5, 4, low=3, high=3)
    straggler = HeldGroup(0, 1, low=1, high=1)
    assert index.pick([straggler], 1, 3, 2) == ([], "straggler")
    assert index.pick([straggler], 1, 2, 2) == ([b"\4" * 16], "")
    assert index.pick([], 3, 2, 2) == ([], "groups")


def test_a_leased_group_is_waited_for_before_its_first_row_and_by_its_tokens_after_it(store):
    put(store, *whole(B, version=3), order=5)

    def reason(step: int) -> str:
        return store.ready.pick([held for _, held in store.groups.of(State.OPEN)], 1, step, 2)[1]

    assert reason(3) == ""
    do(store, "lease", A, 0, 1, version_of(1, 1))
    assert state(store) is State.OPEN and store.stats().open == 1
    assert (reason(2), reason(3), reason(4)) == ("", "straggler", ""), "it waits while the group can still be used"
    put(store, turn(version=2))
    assert (reason(3), reason(4)) == ("", "straggler"), "its first token was sampled by newer weights"


@pytest.mark.parametrize("ends", [("abandon", A, 1), ("resume", A, 0)])
def test_a_leased_group_that_is_abandoned_is_waited_for_no_more_until_it_is_leased_again(tmp_path, ends):
    def opened(store) -> list[int]:
        return [held.expected_staleness(9) for _, held in store.groups.of(State.OPEN)]

    for change, expected in ((("lease", A, 1, 4, 7), [2]), (ends, []), (("lease", A, 1, 4, 7), [])):
        store = Store(tmp_path, "run", ReplaySettings())  # each time anew: what was told outlives the service
        do(store, *change)
        assert opened(store) == expected
        store.close()
    store = Store(tmp_path, "run", ReplaySettings())
    assert put(store, turn(lease=1)) == ["fenced"]
    do(store, "lease", A, 2, 4, 8)
    assert opened(store) == [1] and store.groups.get(A).order == 4
    assert put(store, turn(lease=1), turn(lease=2)) == ["fenced", "stored"]
    store.close()


def test_a_late_word_of_a_lease_changes_nothing_of_rows_that_have_come(store):
    put(store, turn(lease=1), order=3)
    held = store.groups.get(A)
    for lease in (0, 1):
        do(store, "lease", A, lease, 3, 5)
    assert store.groups.get(A) == held
    put(store, Close(A, 1, 1))
    do(store, "lease", A, 2, 3, 5)
    assert state(store) is State.READY, "a closed group is final"
    do(store, "claim", A, b"learner/1", 1)
    do(store, "commit", A, 1)
    do(store, "forget", A, TRAINED)
    do(store, "lease", A, 2, 3, 5)
    assert state(store) is None


def test_groups_that_became_stale_are_found_by_their_versions():
    index = Ready(Fifo())
    records = {bytes([n]) * 16: HeldGroup(0, n, State.READY, low=n // 10, high=n // 10) for n in range(30)}
    for group, record in records.items():
        index.add(group, record)
    late = [group for group, record in records.items() if record.staleness(3) > 1]
    assert len(late) == 20 and sorted(index.stale(3, 1)) == sorted(late)
    for group in late:
        index.remove(group, records[group])
    assert len(index) == 10 and index.stale(3, 1) == []


def test_uniform_gives_all_groups_the_same_chance_and_none_twice():
    index, seen = ready(Uniform(0), *range(8)), Counter()
    for _ in range(2000):
        ids, _ = index.pick([], 2, 0, 0)
        assert len(set(ids)) == 2
        seen.update(ids)
    assert max(seen.values()) < 1.25 * min(seen.values())


def test_prioritised_picks_by_priority_and_says_how_likely_each_was():
    sampler, priorities = Prioritised(0, 1.0), np.arange(1.0, 9.0)
    for n, priority in enumerate(priorities):
        sampler.add(bytes([n]) * 16, HeldGroup(0, n, State.READY, priority=priority))
    sampler.remove(bytes(16))
    chances = priorities[1:] / priorities[1:].mean()
    seen = Counter(sampler.pick(1)[0][0] for _ in range(DRAWS))
    np.testing.assert_allclose([seen[n] / DRAWS * 7 for n in range(1, 8)], chances, rtol=0.15)
    np.testing.assert_allclose(sampler.chances([bytes([n]) * 16 for n in range(1, 8)]), chances)
    assert sorted(sampler.pick(7)) == [bytes([n]) * 16 for n in range(1, 8)], "none twice, none left out"


def test_a_group_that_was_never_used_has_the_largest_priority():
    sampler = Prioritised(0, 1.0)
    for n, priority in enumerate((0.5, 4.0, NO_PRIORITY)):
        sampler.add(bytes([n]) * 16, HeldGroup(0, n, State.READY, priority=priority))
    low, high, new = sampler.chances([bytes([n]) * 16 for n in range(3)])
    assert new == high == 8 * low


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3000), st.floats(0, 10)), min_size=1, max_size=60), st.randoms())
def test_the_sum_tree_finds_what_a_running_sum_finds(changes, random):
    tree, masses = SumTree(4), np.zeros(4096)
    for place, mass in changes:
        tree.set(np.array([place]), np.array([mass]))
        masses[place] = mass
    np.testing.assert_allclose(tree.total, masses.sum())
    if tree.total > 1e-3:
        points = np.array([random.random() * 0.999 * tree.total for _ in range(20)])
        found = tree.find(points)
        sums = np.cumsum(masses)
        assert np.all(sums[found] >= points - 1e-9) and np.all(sums[found] - masses[found] <= points + 1e-9)


def test_what_was_committed_is_there_after_reopening_and_what_failed_is_not(tmp_path):
    store = Store(tmp_path, "run", ReplaySettings())
    put(store, *whole())
    put(store, turn(B), Close(B, 0, 1))
    do(store, "claim", A, b"learner/1", 7)
    do(store, "commit", A, 3)
    do(store, "forget", B, "stale")
    with pytest.raises(LookupError):
        store.change(lambda draft: (draft.forget(A, TRAINED), draft.forget(b"?" * 16, TRAINED)))
    before = store.stats()
    assert before.used == 1
    store.close()
    store = Store(tmp_path, "run", ReplaySettings())
    fresh = {"stored": 0, "duplicate": 0}
    assert replace(store.stats(), **fresh) == replace(before, **fresh)
    assert store.groups.get(A).uses == (3,)
    store.close()


def test_a_folder_belongs_to_one_run_and_to_one_service_at_a_time(tmp_path):
    spool = Spool(tmp_path, "mine", 1 << 20)
    with pytest.raises(SettingError, match=r"replay\.folder.*another replay service"):
        Spool(tmp_path, "mine", 1 << 20)
    spool.close()
    with pytest.raises(SettingError, match="mine"):
        Spool(tmp_path, "other", 1 << 20)
    Spool(tmp_path, "mine", 1 << 20).close()


class Model:
    """One group, as plainly as possible."""

    def __init__(self, max_uses):
        self.max_uses, self.state, self.lease, self.rows, self.uses = max_uses, "none", -1, {}, set()

    def row(self, lease, number, turns):
        if self.state not in ("none", "open", "abandoned"):
            return "duplicate"
        if lease < self.lease or (lease == self.lease and self.state == "abandoned"):
            return "fenced"
        if lease > self.lease:
            self.lease, self.rows = lease, {}
        self.state = "open"
        if number in self.rows:
            return "duplicate"
        self.rows[number] = turns
        if -1 in self.rows and sorted(self.rows) == list(range(-1, self.rows[-1])):
            self.state = "ready"
        return "stored"

    def commit(self, step):
        if self.state in ("ready", "claimed") and step not in self.uses:
            self.uses.add(step)
            self.settle()

    def settle(self):
        self.state = "used" if len(self.uses) >= self.max_uses else "ready"

    def resume(self, step):
        if self.state in ("ready", "claimed", "used"):
            self.uses = {use for use in self.uses if use <= step}
            self.settle()


small = st.integers(0, 2)
actions = st.one_of(
    st.tuples(st.just("row"), small, st.integers(-1, 2)),
    st.tuples(st.sampled_from(["commit", "resume", "abandon", "lease"]), small),
    st.tuples(st.sampled_from(["claim", "give_back", "forget", "discard_corrupt"])),
)


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@example([("row", 1, 0), ("row", 1, 1), ("row", 1, -1), ("discard_corrupt",)], 1)
@given(st.lists(actions, max_size=25), st.integers(1, 2))
def test_any_history_of_a_group_agrees_with_the_model(history, max_uses):
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        store, model = Store(Path(folder), "run", ReplaySettings(max_uses=max_uses)), Model(max_uses)
        for name, *values in history:
            _act(store, model, name, values)
            held = store.groups.get(A)
            assert (held.state.name.lower() if held else "none") == model.state.replace("forgotten", "none")
            assert store.groups.rows == len(model.rows)
            if held is not None and held.state not in (State.OPEN, State.ABANDONED):
                assert set(held.uses) == model.uses
                assert [t.turn for t in played(store).turns] == list(range(held.turns))
        store.close()


def _act(store, model, name, values):
    closed = model.state in ("ready", "claimed", "used")
    if name == "row":
        lease, number = values
        item = Close(A, lease, 2) if number < 0 else turn(A, lease, number)
        assert put(store, item) == [model.row(lease, number, 2)]
    elif name == "commit":
        model.commit(*values)
        try:
            do(store, "commit", A, *values)
        except RedraftError:
            assert model.state in ("none", "open", "abandoned", "used")
    elif name == "resume" and closed:
        model.resume(*values)
        do(store, "resume", A, *values)
    elif name == "abandon":
        do(store, "abandon", A, *values)
        if model.state in ("none", "open", "abandoned") and values[0] >= model.lease:
            model.state, model.lease, model.rows = "abandoned", values[0], {}
    elif name == "lease":
        do(store, "lease", A, *values, 0, 0)
        if model.state in ("none", "open", "abandoned") and values[0] > model.lease:
            model.state, model.lease, model.rows = "open", values[0], {}
    elif name == "claim" and model.state == "ready":
        model.state = "claimed"
        do(store, "claim", A, b"learner/1", 1)
    elif name == "give_back":
        do(store, "give_back", A)
        model.state = "ready" if model.state == "claimed" else model.state
    elif name == "forget" and model.state == "used":
        do(store, "forget", A, TRAINED)
        model.state, model.rows = "forgotten", {}
    elif name == "discard_corrupt" and closed:
        do(store, "discard_corrupt", A)
        model.state, model.rows, model.uses = "abandoned", {}, set()  # to be played again, under a higher lease
