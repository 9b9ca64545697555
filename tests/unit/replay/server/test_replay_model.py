"""Replay against a model: any history of rows, claims, commits, checkpoints, resumes and crashes keeps its promises.

A hypothesis state machine drives a store and its request handler as the service does, and dictionaries beside them. A
crash is played by opening a copy of the folder: what a killed process leaves behind is what is in the page cache.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import lmdb
import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from protocols.turns import Close, Role, Turn
from protocols.weights import version_of
from protocols.wire import ENTRY, SCHEMA, Row, pack, row_of, split, unpack, whole_group
from replay.config import ReplaySettings
from replay.server.request_handler import RequestHandler
from replay.server.store import Store

GROUPS, LEASES, ANY = 10, 4, 1000
CLOSE = -1
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
CONSUMERS = (b"learner/1", b"learner/2", b"second/1")  # two clients of one consumer, and another


def gid(number: int) -> bytes:
    return bytes([number]) * 16


def turns_of(number: int, lease: int) -> int:
    """Plays of a group differ in length; one is empty."""
    return 0 if (number, lease) == (4, 2) else 1 + (number + lease) % 3


def step_sampled(number: int, lease: int) -> int:
    return (2 * number + lease) % 4


def order_of(number: int, lease: int) -> int:
    return number + 6 * lease


def packed(number: int, lease: int, turn: int) -> tuple[bytes, bytes]:
    if turn == CLOSE:
        return row_of(Close(gid(number), lease, turns_of(number, lease)), order_of(number, lease), 1.0)
    ids = np.array([number, lease, turn], np.int32)
    versions = ((0, version_of(lease, step_sampled(number, lease))),)
    item = Turn(gid(number), lease, turn, turn - 1, ids, ids, -ids.astype(np.float32), versions, Role.ATTEMPT)
    return row_of(item, order_of(number, lease))


class Subject:
    """A store with its request handler, and the folder they are in."""

    def __init__(self, folder: Path, choices: ReplaySettings):
        self._folder, self._settings, self._incarnations = folder, choices, 0
        self._open()

    def _place(self) -> Path:
        return self._folder / str(self._incarnations)

    def _open(self) -> None:
        self._sent: list[tuple[bytes, list[bytes]]] = []
        self.store = Store(self._place(), "run", self._settings)
        self._desk = RequestHandler(self.store, lambda identity, frames: self._sent.append((identity, frames)))

    def put(self, rows: list[tuple[int, int, int]], before_commit=lambda: None) -> list[str]:
        """Stores these rows in one transaction; their outcomes."""
        ready = [packed(*row) for row in rows]

        def work(draft) -> list[str]:
            outcomes = [draft.store(Row._make(ENTRY.unpack(each[0])), each) for each in ready]
            before_commit()
            return outcomes

        return self.store.change(work, may_grow=False)

    def ask(self, identity: bytes, request: int, op: str, tick: bool = True, **fields) -> list[bytes]:
        """The frames of the reply, if it comes at once."""
        self._sent.clear()
        message = {"schema": SCHEMA, "id": request, "op": op, "wait_s": 0.0, **fields}
        self._desk.receive([identity, pack(message)])
        if tick:
            self._desk.tick()
        assert [(to, unpack(frames[0])["id"]) for to, frames in self._sent] in ([(identity, request)], [])
        return self._sent[0][1] if self._sent else []

    def snapshot(self) -> None:
        """What a process that is killed now would leave."""
        after = self._folder / str(self._incarnations + 1)
        shutil.rmtree(after, ignore_errors=True)
        shutil.copytree(self._place(), after, ignore=shutil.ignore_patterns("*lock*"))

    def crash(self) -> None:
        """Goes on from the last snapshot."""
        self.store.close()
        shutil.rmtree(self._place())
        self._incarnations += 1
        self._open()

    def restart(self) -> None:
        self.store.close()
        self._open()

    def close(self) -> int:
        """How many rows the folder holds, whether anything names them or not."""
        self.store.close()
        with lmdb.open(str(self._place()), max_dbs=4, readonly=True, lock=False) as env, env.begin() as txn:
            return txn.stat(env.open_db(b"rows", txn, create=False))["entries"]


@dataclass
class Held:
    """What the model knows of one group. `history` are the steps that used it, in the history that stands."""

    state: str = "none"
    lease: int = -1
    order: int = 0
    rows: set[int] = field(default_factory=set)
    history: list[int] = field(default_factory=list)
    holder: tuple[bytes, int] | None = None
    filtered_at: int = 0
    why: str = ""
    leased: int | None = None

    def version(self, number: int) -> int | None:
        """The step that sampled it, once a turn has come; until then, that of the actor to which it was leased."""
        return step_sampled(number, self.lease) if self.rows - {CLOSE} else self.leased


class Model:
    """All groups, as plainly as possible."""

    def __init__(self, max_uses: int):
        self.max_uses = max_uses
        self.groups = {number: Held() for number in range(GROUPS)}
        self.step = 0

    def of(self, *states: str) -> dict[int, Held]:
        return {number: held for number, held in self.groups.items() if held.state in states}

    def store(self, number: int, lease: int, turn: int) -> str:
        held = self.groups[number]
        if held.state not in ("none", "open", "abandoned"):
            return "duplicate"
        if lease < held.lease or (lease == held.lease and held.state == "abandoned"):
            return "fenced"
        if lease > held.lease:
            held.lease, held.order, held.rows, held.leased = lease, order_of(number, lease), set(), None
        held.state = "open"
        if turn in held.rows:
            return "duplicate"
        held.rows.add(turn)
        if held.rows == set(range(CLOSE, turns_of(number, lease))):
            held.state = "ready"
            if not turns_of(number, lease):
                self.forget(held, "empty")
        return "stored"

    def leases(self, number: int, lease: int, step: int) -> None:
        held = self.groups[number]
        if held.state in ("none", "open", "abandoned") and lease > held.lease:
            held.state, held.lease, held.order = "open", lease, order_of(number, lease)
            held.rows, held.leased = set(), step

    def forget(self, held: Held, why: str) -> None:
        held.state, held.why, held.rows = "forgotten", why, set()

    def claim(self, count: int, step: int, bound: int) -> list[int]:
        """Filters stale groups; the groups that a fifo claim gets."""
        for number, held in self.of("ready").items():
            if abs(step - held.version(number)) > bound:
                held.state, held.why, held.filtered_at = ("used" if held.history else "filtered"), "stale", step
        ready = sorted((held.order, number) for number, held in self.of("ready").items())
        if len(ready) < count:
            return []
        for number, held in self.of("open").items():
            version = held.version(number)
            fits_only_now = version is not None and abs(step - version) <= bound < abs(step + 1 - version)
            if fits_only_now and held.order < ready[count - 1][0]:
                return []
        return [number for _, number in ready[:count]]

    def commit(self, numbers: list[int], step: int) -> tuple[bool, list[int]]:
        """Whether it may be, and the groups that are not known."""
        fresh = [n for n in numbers if step not in self.groups[n].history]  # the others are a commit sent again
        unknown = [n for n in fresh if self.groups[n].state in ("none", "open", "abandoned")]
        known = [self.groups[n] for n in fresh if n not in unknown]
        if any(held.state not in ("ready", "claimed") for held in known):
            return False, []
        for held in known:
            held.history.append(step)
            held.holder = None
            held.state = self.after(held)
            self.step = max(self.step, step)
        return True, unknown

    def after(self, held: Held) -> str:
        return "used" if len(held.history) >= self.max_uses else "ready"

    def checkpoint(self, step: int) -> None:
        for held in self.of("used", "filtered").values():
            if max(held.history, default=held.filtered_at) <= step:
                self.forget(held, "stale" if held.state == "filtered" else "trained")

    def resume(self, step: int) -> None:
        for held in self.of("open").values():
            held.state, held.rows = "abandoned", set()
        for held in self.of("ready", "claimed", "used", "filtered").values():
            if held.state != "filtered" or held.filtered_at > step:
                held.history = [use for use in held.history if use <= step]
                held.holder, held.state = None, self.after(held)
        self.step = min(self.step, step)

    def abandon(self, number: int, lease: int) -> None:
        held = self.groups[number]
        if held.state in ("none", "open", "abandoned") and lease >= held.lease:
            held.state, held.lease, held.rows = "abandoned", lease, set()


def same_consumer(one: bytes, other: bytes) -> bool:
    return one.split(b"/")[0] == other.split(b"/")[0]


numbers = st.integers(0, GROUPS - 1)
leases = st.integers(0, LEASES - 1)
consumers = st.sampled_from(CONSUMERS)


class ReplayMachine(RuleBasedStateMachine):
    """Every rule does the same to replay and to the model and compares what they say; invariants compare the rest."""

    @initialize(sampler=st.sampled_from(["fifo", "uniform"]), max_uses=st.integers(1, 2))
    def begin(self, sampler, max_uses):
        self.folder = Path(tempfile.mkdtemp(dir=MEMORY))
        self.fifo = sampler == "fifo"
        self.subject = Subject(self.folder, ReplaySettings(sampler=sampler, max_uses=max_uses, max_bytes=1 << 20))
        self.model = Model(max_uses)
        self.requests: Counter[bytes] = Counter()
        self.claimed: dict[bytes, dict] = {}  # the last request of a client, where it was a claim that got something
        self.checkpointed = 0

    def ask(self, identity: bytes, op: str, tick: bool = True, **fields) -> dict:
        self.requests[identity] += 1
        self.claimed.pop(identity, None)
        frames = self.subject.ask(identity, self.requests[identity], op, tick, **fields)
        return unpack(frames[0])

    # -- rows

    @rule(rows=st.lists(st.tuples(numbers, leases, st.integers(CLOSE, 2)), min_size=1, max_size=6))
    def rows_come(self, rows):
        """Also a turn more than the play has: such a play never becomes whole."""
        self.store([row for row in rows if row[2] <= turns_of(*row[:2])])

    @precondition(lambda self: self.model.of("none", "open", "abandoned"))
    @rule(data=st.data())
    def whole_plays_come_in_any_order(self, data):
        wanted = st.sampled_from(sorted(self.model.of("none", "open", "abandoned")))
        rows = []
        for number in data.draw(st.lists(wanted, min_size=1, max_size=3, unique=True)):
            lease = data.draw(st.integers(max(self.model.groups[number].lease, 0), LEASES - 1))
            rows += [(number, lease, turn) for turn in range(CLOSE, turns_of(number, lease))]
        self.store(data.draw(st.permutations(rows + rows[:1])))

    def store(self, rows):
        assert self.subject.put(rows) == [self.model.store(*row) for row in rows]

    # -- learners

    @precondition(lambda self: self.model.of("ready"))
    @rule(identity=consumers, count=st.sampled_from([1, 1, 2, 3]), bound=st.sampled_from([ANY, ANY, ANY, 3, 1]))
    def someone_claims(self, identity, count, bound):
        self.claim(identity, count, bound)

    @precondition(lambda self: self.model.of("ready"))
    @rule(identity=consumers, count=st.sampled_from([1, 1, 2, 3]))
    def a_learner_takes_a_step(self, identity, count):
        self.commit(identity, self.claim(identity, count, ANY), self.model.step + 1)

    def claim(self, identity, count, bound) -> list[int]:
        """The groups that it gets."""
        self.requests[identity] += 1
        step = self.model.step
        asked = {"count": count, "step": step, "max_staleness": bound}
        served = self.served(self.subject.ask(identity, self.requests[identity], "claim", **asked))
        if self.fifo:
            expected = self.model.claim(count, step, bound)
            assert served == sorted(expected, key=lambda number: self.model.groups[number].order)
        else:
            self.check_uniform(served, count, step, bound)
        for number in served:
            held = self.model.groups[number]
            assert held.state == "ready" and held.holder is None and len(held.history) < self.model.max_uses
            held.state, held.holder = "claimed", (identity, self.requests[identity])
        self.claimed[identity] = asked if served else {}
        return served

    def check_uniform(self, served, count, step, bound):
        self.model.claim(GROUPS + 1, step, bound)  # filters stale groups, and takes none
        ready = set(self.model.of("ready"))
        assert len(served) == len(set(served)) == (count if len(ready) >= count else 0) and set(served) <= ready

    @precondition(lambda self: self.model.of("claimed"))
    @rule(identity=consumers, died=st.booleans())
    def the_same_claim_comes_again(self, identity, died):
        """A resend: the same groups, where they are still held; or nothing, while they may still be on their way."""
        mine = {n for n, held in self.model.groups.items() if held.holder == (identity, self.requests[identity])}
        if not (self.claimed.get(identity) and mine):
            return
        if died:
            self.crash()
        frames = self.subject.ask(identity, self.requests[identity], "claim", **self.claimed[identity])
        assert frames or not died
        assert not frames or set(self.served(frames)) == mine

    def served(self, frames) -> list[int]:
        """The groups of a reply, each of which is whole and as it was played."""
        rows: dict[bytes, list] = {}
        for row, each in split(frames[1], frames[2]) if len(frames) == 3 else ():
            rows.setdefault(row.group, []).append((row, each))
        for group, of_group in rows.items():
            got, number = whole_group(of_group), group[0]
            lease = self.model.groups[number].lease
            assert (got.id, got.lease, len(got.turns)) == (gid(number), lease, turns_of(number, lease))
            for turn in got.turns:
                assert turn.response.tolist() == turn.prompt.tolist() == [number, lease, turn.turn]
        return [group[0] for group in rows]

    @precondition(lambda self: self.model.of("claimed"))
    @rule(identity=consumers, most=st.integers(1, 3))
    def a_learner_commits_what_it_holds(self, identity, most):
        mine = [n for n, held in self.model.of("claimed").items() if same_consumer(held.holder[0], identity)]
        self.commit(identity, mine[:most], self.model.step + 1)

    @rule(identity=consumers, some=st.sets(numbers, min_size=1, max_size=3), again=st.booleans())
    def someone_commits_anything(self, identity, some, again):
        """Groups it does not hold, or has committed before."""
        self.commit(identity, sorted(some), self.model.step + (not again))

    def commit(self, identity, chosen, step):
        reply = self.ask(identity, "commit", ids=[gid(n) for n in chosen], step=step, priorities=None)
        may, unknown = self.model.commit(chosen, step)
        assert ("error" in reply) == (not may), reply
        assert not may or sorted(reply["unknown"]) == [gid(n) for n in unknown]

    @precondition(lambda self: self.model.of("claimed"))
    @rule(identity=consumers, some=st.sets(numbers, min_size=1))
    def release(self, identity, some):
        self.ask(identity, "release", ids=[gid(n) for n in sorted(some)])
        for held in (self.model.groups[n] for n in some):
            if held.state == "claimed" and same_consumer(held.holder[0], identity):
                held.state, held.holder = "ready", None

    @precondition(lambda self: self.model.of("used", "filtered"))
    @rule(back=st.integers(0, 2), died=st.booleans())
    def checkpoint(self, back, died):
        """Replay may die between its answer and its forgetting; then it forgets at the next checkpoint."""
        step = max(self.model.step - back, self.checkpointed)
        self.checkpointed = min(step, self.model.step)
        self.ask(b"controller/1", "checkpoint", tick=not died, step=step)
        if died:
            self.crash()
        else:
            self.model.checkpoint(step)

    @precondition(lambda self: self.model.of("claimed", "used", "filtered"))
    @rule(back=st.integers(0, 4))
    def resume(self, back):
        step = max(self.model.step - back, self.checkpointed)
        self.ask(b"controller/1", "resume", step=step)
        self.model.resume(step)
        self.claimed.clear()

    @rule(given=st.lists(st.tuples(numbers, leases, st.integers(0, 3)), min_size=1, max_size=3))
    def leases_are_given(self, given):
        """Their orders fit the rows that will come."""
        self.ask(
            b"controller/1",
            "lease",
            ids=[gid(number) for number, *_ in given],
            leases=[lease for _, lease, _ in given],
            orders=[order_of(number, lease) for number, lease, _ in given],
            versions=[step for *_, step in given],
        )
        for leased in given:
            self.model.leases(*leased)

    @rule(number=numbers, lease=leases)
    def abandon(self, number, lease):
        self.ask(b"controller/1", "abandon", group=gid(number), lease=lease)
        self.model.abandon(number, lease)

    # -- the service

    @rule()
    def crash(self):
        self.subject.snapshot()
        self.subject.crash()

    @rule(rows=st.lists(st.tuples(numbers, leases, st.just(0)), min_size=1, max_size=4))
    def crash_in_the_midst_of_a_transaction(self, rows):
        """It changed nothing."""
        self.subject.put([row for row in rows if turns_of(*row[:2])], before_commit=self.subject.snapshot)
        self.subject.crash()

    @rule()
    def restart(self):
        self.subject.restart()

    # -- what always holds

    @precondition(lambda self: hasattr(self, "model"))
    @invariant()
    def counts_agree(self):
        groups, stats = self.model.groups.values(), self.subject.store.stats()
        states = Counter(held.state for held in groups)
        forgotten = Counter(held.why for held in groups if held.state == "forgotten")
        dropped = {"stale": states["filtered"] + forgotten["stale"], "empty": forgotten["empty"]}
        assert [getattr(stats, name) for name in ("open", "ready", "claimed", "used")] == [
            states[name] for name in ("open", "ready", "claimed", "used")
        ]
        assert stats.rows == sum(len(held.rows) for held in groups)
        assert stats.step == self.model.step
        assert stats.trained_total == states["used"] + forgotten["trained"]
        assert stats.dropped == {why: count for why, count in dropped.items() if count}

    @precondition(lambda self: hasattr(self, "model"))
    @invariant()
    def closed_groups_are_known(self):
        reply = self.ask(b"controller/1", "known", ids=[gid(number) for number in range(GROUPS)])
        closed = self.model.of("ready", "claimed", "used", "filtered", "forgotten")
        assert set(reply["ids"]) == {gid(number) for number in closed}

    def teardown(self):
        if hasattr(self, "subject"):
            rows = self.subject.close()
            shutil.rmtree(self.folder)
            assert rows == sum(len(held.rows) for held in self.model.groups.values()), "rows that nobody knows of"


def check(examples: int) -> None:
    limits = settings(
        max_examples=examples,
        stateful_step_count=40,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(ReplayMachine, settings=limits)


def test_any_history_keeps_the_promises():
    check(300)


@pytest.mark.prove
def test_very_many_histories_keep_the_promises():
    check(5000)
