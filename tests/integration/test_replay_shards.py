"""Several replay services as one: claims, commits and counts over shards, shards that join and shards that die."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import pytest
from support import processes
from support.shard_house import ANY, House, a_house, gid, numbers, turn
from support.waiting import deadline_s, until

from actors.tasks import TaskOrder
from protocols.errors import RedraftError
from protocols.turns import Close, Group, Lease
from redraft.control.leases import LeaseBook
from replay.client.shares import shard_of
from replay.config import Endpoints

SERVE = """
import sys
from replay.config import Endpoints, ReplaySettings
from replay.server.service import Service
service = Service(sys.argv[1], Endpoints(*sys.argv[2:4]), ReplaySettings(), "run")
service.start()
print("ready", flush=True)
service.join()
"""


@pytest.fixture
def house(request) -> Iterator[House]:
    with a_house(**getattr(request, "param", {})) as made:
        yield made


# -- claims


def test_claims_follow_the_order_of_the_leases_over_all_shards(house):
    house.fill(60)
    held = house.held_by(60)
    assert sorted(number for shard in held for number in shard) == list(range(60)) and all(held), "each on one shard"
    assert held == [{n for n in range(60) if shard_of(gid(n), 3) == shard} for shard in range(3)]
    for first in range(0, 60, 12):
        groups = house.claim(12).groups
        assert sorted(numbers(groups)) == list(range(first, first + 12))
        for group in groups:
            for got in group.turns:
                sent = turn(group.id, got.turn)
                assert got.response.tobytes() == sent.response.tobytes()
                assert got.logprobs.tobytes() == sent.logprobs.tobytes()
    assert house.claim(1).groups == []


def test_a_claim_is_all_or_nothing_over_shards(house):
    house.fill(10)
    claim = house.claim(11, wait_s=0.2)
    assert (claim.groups, claim.reason) == ([], "groups")
    assert (claim.stats.ready, claim.stats.claimed) == (10, 0)
    got: list[Group] = []
    waiting = threading.Thread(target=lambda: got.extend(house.claim(11, wait_s=15).groups))
    waiting.start()
    house.play(10)
    waiting.join()
    assert sorted(numbers(got)) == list(range(11)), "a claim that waits is served when the sum suffices"


def test_where_a_shard_lacks_its_part_after_all_nobody_keeps_groups(house):
    """A rival is quicker between the last shard's offer and the claim there."""
    house.fill(12)
    link, rival, taken = house.client._links[2], house.client_of("rival", 2), house.held_by(12)[2]
    ask = link.ask

    def late(op: str, *args, **fields):
        if op == "claim" and not rivals:
            rivals.extend(rival.claim(len(taken), 0, ANY, 0.0).groups)
        return ask(op, *args, **fields)

    rivals: list[Group] = []
    link.ask = late
    assert house.claim(12).groups == [] and set(numbers(rivals)) == taken
    stats = house.client.stats()
    assert (stats.claimed, stats.ready) == (len(taken), 12 - len(taken)), "only the rival's are claimed"
    rival.release([group.id for group in rivals])
    assert sorted(numbers(house.claim(12).groups)) == list(range(12))


def test_a_straggler_on_another_shard_is_waited_for(house):
    """As on one shard: a group that came before, and that only this step can still use, is not overtaken."""
    straggler = next(n for n in range(1, 50) if shard_of(gid(n), 3) == 0)
    later = [n for n in range(50, 90) if shard_of(gid(n), 3) == 1][:2]
    house.producer.add(turn(gid(straggler), 0, version=3), house.lease(straggler))
    for number in later:
        house.play(number, version=4).result(deadline_s(10))
    until(lambda: house.client.stats().open == 1, "the first row of the straggler")
    claim = house.claim(2, step=5, max_staleness=2)
    assert (numbers(claim.groups), claim.reason) == ([], "straggler")


def between_offers(house: House, happens: Callable[[], object]) -> None:
    """Has something happen when the last shard is asked what it has, once: the others have answered."""
    link, waits = house.client._links[2], [happens]
    ask = link.ask

    def late(op: str, *args, **fields):
        if op == "offer" and waits:
            waits.pop()()
        return ask(op, *args, **fields)

    link.ask = late


def of_shards(first: int = 0) -> list[list[int]]:
    """Numbers of groups from `first` on, by the shard that keeps them."""
    return [[n for n in range(first, first + 40) if shard_of(gid(n), 3) == shard] for shard in range(3)]


def test_a_group_that_is_leased_while_the_shards_are_asked_is_not_overtaken(house):
    """As where a shard starts again meanwhile: what the others have said of themselves is of before."""
    one, leased, *_ = of_shards()[0]
    later = of_shards(50)[2][0]
    house.play(one, version=0).result(deadline_s(10))

    def happens() -> None:
        house.client_of("controller").lease([(house.lease(leased), 0)])
        house.play(later, version=1).result(deadline_s(10))

    between_offers(house, happens)
    claim = house.claim(2, step=1, max_staleness=1)
    assert (numbers(claim.groups), claim.reason) == ([], "straggler")
    house.play(leased, version=0).result(deadline_s(10))
    assert sorted(numbers(house.claim(2, step=1, max_staleness=1).groups)) == [one, leased]
    assert not house.client.stats().dropped


def test_a_group_that_closes_while_the_shards_are_asked_takes_the_place_of_no_other(house):
    """Its shard would give it for the next one that it has, which only this step can still use."""
    early, late, *_ = of_shards()[0]
    other = of_shards(50)[1][0]
    house.play(late, version=0).result(deadline_s(10))
    house.play(other, version=1).result(deadline_s(10))
    between_offers(house, lambda: house.play(early, version=1).result(deadline_s(10)))
    assert house.claim(2, step=1, max_staleness=1).groups == [], "what was said is old"
    assert sorted(numbers(house.claim(2, step=1, max_staleness=1).groups)) == [early, late]
    assert house.client.stats().claimed == 2


@pytest.mark.parametrize("house", [{"max_bytes": 1 << 20}], indirect=True)
def test_a_leased_group_is_waited_for_unless_what_is_to_be_used_leaves_no_room_for_it_to_begin(house):
    late, large, *_ = (n for n in range(1, 90) if shard_of(gid(n), 3) == 0)
    later = next(n for n in range(late, 90) if shard_of(gid(n), 3) == 1)
    house.client.lease([(house.lease(late), 3)])
    house.play(later, version=4).result(deadline_s(10))
    claim = house.claim(1, step=5, max_staleness=2)
    assert (numbers(claim.groups), claim.reason) == ([], "straggler")
    assert [house.stats_of(shard).open for shard in range(3)] == [1, 0, 0], "its own shard knows of it"
    page = replace(turn(gid(large), 0, version=4), extra={"page": "x" * (1 << 20)})
    house.producer.add(page, house.lease(large))
    house.producer.add(Close(gid(large), 0, 1), house.lease(large), 1.0).result(deadline_s(10))
    assert numbers(house.claim(1, step=5, max_staleness=2).groups) == [min(later, large)]


# -- everything else that a client asks


def test_the_history_of_a_run_over_shards_skips_nothing_and_uses_nothing_twice(house):
    house.fill(36)
    history = {}

    def train(step: int) -> None:
        history[step] = [group.id for group in house.claim(4, step, wait_s=5).groups]
        for _ in range(2):
            house.client.commit(history[step], step)

    for step in range(1, 5):
        train(step)
    house.client.checkpoint(2)
    until(lambda: house.client.stats().used == 8, "the groups of two steps are forgotten")
    ahead = [group.id for group in house.claim(4, 5).groups]
    house.restart()
    stats = house.client.stats()
    assert (stats.ready, stats.claimed, stats.used, stats.trained_total, stats.step) == (16, 4, 8, 16, 4)
    house.client.resume(2)
    stats = house.client.stats()
    assert (stats.ready, stats.claimed, stats.used, stats.trained_total, stats.step) == (28, 0, 0, 8, 2)
    lost = [set(history.pop(step)) for step in (3, 4)] + [set(ahead)]
    for step in range(3, 10):
        train(step)
    assert [set(history[step]) for step in (3, 4, 5)] == lost, "the same again, in the same order"
    assert sorted(group for groups in history.values() for group in groups) == [gid(n) for n in range(36)]
    house.client.checkpoint(9)
    until(lambda: house.client.stats().rows == 0, "everything is forgotten")
    house.play(3).result(deadline_s(10))
    assert house.client.known([gid(n) for n in range(40)]) == {gid(n) for n in range(36)}
    stats = house.client.stats()
    assert (stats.trained_total, stats.open, stats.ready, stats.duplicate) == (36, 0, 0, 3)


def test_release_gives_back_on_every_shard(house):
    house.fill(12)
    groups = house.claim(12).groups
    stranger = house.client_of("stranger")
    stranger.release([group.id for group in groups])
    assert house.client.stats().claimed == 12, "only to whom a claim belongs"
    house.client.release([group.id for group in groups[:7]])
    stats = house.client.stats()
    assert (stats.claimed, stats.ready) == (5, 7)
    assert set(numbers(house.claim(7).groups)) == set(numbers(groups[:7]))


def test_a_commit_that_some_shard_cannot_make_says_so(house):
    house.fill(6)
    ids = [group.id for group in house.claim(6).groups]
    with pytest.raises(RedraftError, match="cannot commit 1 groups that replay does not know"):
        house.client.commit([*ids, gid(99)], 1)
    rival = house.client_of("rival")
    house.client.resume(0)
    rival.commit([group.id for group in rival.claim(6, 0, ANY, 0.0).groups], 1)
    with pytest.raises(RedraftError, match="claim was lost"):
        house.client.commit(ids, 2)


def test_an_abandoned_play_is_dropped_wherever_it_lies(house):
    for number in range(6):
        house.producer.add(turn(gid(number)), house.lease(number))
    house.producer.flush(10)
    assert house.client.stats().open == 6
    for number in range(6):
        house.client.abandon(gid(number), 0)
    assert (house.client.stats().open, house.client.stats().rows) == (0, 0)
    for number in range(6):
        house.producer.add(turn(gid(number), 1), house.lease(number))
        house.play(number, lease=1).result(deadline_s(10))
    stats = house.client.stats()
    assert (stats.ready, stats.fenced) == (6, 6), "late rows are refused, a new play is taken"
    assert sorted(numbers(house.claim(6).groups)) == list(range(6))


def test_counts_are_those_of_all_shards_together(house):
    house.fill(20)
    house.play(0).result(deadline_s(10))
    house.client.commit([group.id for group in house.claim(5, 3).groups], 3)
    house.claim(4, 4)
    parts, whole = [house.stats_of(shard) for shard in range(3)], house.client.stats()
    for key in ("ready", "claimed", "used", "rows", "bytes", "max_bytes", "stored", "duplicate", "trained_total"):
        assert getattr(whole, key) == sum(getattr(part, key) for part in parts) > 0, key
    assert (whole.ready, whole.claimed, whole.used, whole.step) == (11, 4, 5, 3)
    assert not whole.full and whole.corrupt == () and whole.dropped == {}


def test_a_client_that_nobody_closed_does_not_hold_its_process(house):
    """As one does that an error left behind: a traceback and what it holds are a cycle."""
    drop = """
import gc, sys
from replay.client import Client
from replay.config import Endpoints
client = Client([Endpoints(*sys.argv[1:3])], "left")
client.stats()
print("dropped", flush=True)
client.me = client
del client
gc.collect()
"""
    command = [sys.executable, "-c", drop, house.endpoints[0].ingest, house.endpoints[0].serve]
    paths = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with processes.start(command, stdout=subprocess.PIPE, env=paths) as process:
        assert process.stdout.readline() == b"dropped\n"
        try:
            assert process.wait(deadline_s(3)) == 0
        finally:
            process.kill()


# -- a shard that joins


@pytest.mark.parametrize("house", [{"shards": 2}], indirect=True)
def test_a_shard_that_joins_gets_its_part_of_the_new_groups_and_nothing_moves(house):
    """The producer streams all the time: it is told of the third shard by the leases alone."""
    shards, stopped, closed, placed = [2], threading.Event(), [], {}
    unfinished = range(1000, 1012)
    for number in unfinished:
        house.producer.add(turn(gid(number)), house.lease(number))

    def stream() -> None:
        for number in range(1000):
            if stopped.is_set():
                break
            placed[number] = shard_of(gid(number), shards[0])
            closed.append(number)
            house.play(number, shards=shards[0]).result(deadline_s(10))

    streaming = threading.Thread(target=stream)
    streaming.start()
    until(lambda: len(closed) > 60, "groups before the third shard")
    claimed = numbers(house.claim(20, wait_s=10).groups)
    house.join()
    house.client.grow(house.endpoints)
    shards[0] = 3
    joined = len(closed)
    claimed += numbers(house.claim(20, wait_s=10).groups)
    until(lambda: len(closed) > joined + 90, "groups after it")
    stopped.set()
    streaming.join()
    for number in unfinished:
        given = house.lease(number, shards=2)
        house.producer.add(turn(given.group, 1), given)
        house.producer.add(Close(given.group, 0, 2), given).result(deadline_s(10))
        placed[number] = shard_of(gid(number), 2)
    assert house.held_by(2000) == [{n for n, shard in placed.items() if shard == which} for which in range(3)]
    new = Counter(shard for number, shard in placed.items() if joined < number < 1000)
    assert 0.15 < new[2] / new.total() < 0.53 and min(number for number, shard in placed.items() if shard == 2) >= 60
    stats = house.client.stats()
    assert (stats.duplicate, stats.fenced, stats.open) == (0, 0, 0), "nothing was sent again"
    claimed += numbers(house.claim(len(placed) - 40).groups)
    assert sorted(claimed) == sorted(placed), "over old and new shards, each once"
    print(f"{len(placed)} groups, {joined} before the third shard joined; of {new.total()} after, {new[2]} are there")


@dataclass(frozen=True, slots=True)
class Joining:
    """The endpoints of a shard, at which something happens while a client connects to it."""

    where: Endpoints
    happens: Callable[[], object]

    @property
    def ingest(self) -> str:
        return self.where.ingest

    @property
    def serve(self) -> str:
        self.happens()
        return self.where.serve


def test_leases_are_told_while_a_shard_joins(house):
    """The controller's loop goes on while a person asks for one more."""
    house.join()
    leases = [(house.lease(number, shards=3), 0) for number in range(6)]

    def happens() -> None:
        house.client.lease(leases)
        house.client.abandon(gid(0), 0)

    house.client.grow([*house.endpoints[:3], cast(Endpoints, Joining(house.endpoints[3], happens))])
    assert house.client.stats().open == 5


@pytest.mark.parametrize("house", [{"shards": 2}], indirect=True)
def test_a_group_found_corrupt_before_a_shard_joined_is_played_again_once(house):
    book = LeaseBook(
        TaskOrder([{"id": str(n)} for n in range(40)], 1), "run", 0, 0, 0, house.client.known,
        lambda group: house.endpoints[shard_of(group, len(house.endpoints))].ingest,
    )  # fmt: skip
    for lease in book.give(0, 40, 0.0):
        _play_lease(house, lease)
        book.closed([(lease.group, lease.fencing_token)])
    corrupt = next(g.id for g in house.claim(40).groups if shard_of(g.id, 3) == 2)
    for link in house.client._links:
        link.ask("corrupt", ids=[corrupt])
    house.join()
    house.client.grow(house.endpoints)
    plays = 0
    for _ in range(3):
        for found in house.client.stats().corrupt:
            assert bytes.fromhex(found.group) == corrupt and book.again(corrupt, found.lease, found.order, found.shard)
            (lease,) = book.give(0, 1, 0.0)
            _play_lease(house, lease)
            book.closed([(lease.group, lease.fencing_token)])
            plays += 1
    assert plays == 1 and house.client.known([corrupt]) == {corrupt}


def _play_lease(house: House, lease: Lease) -> None:
    house.producer.add(turn(lease.group, 0, lease.fencing_token), lease)
    house.producer.add(Close(lease.group, lease.fencing_token, 1), lease, 1.0).result(deadline_s(10))


def test_a_group_that_was_abandoned_everywhere_and_played_again_can_be_committed(house):
    """A shard that only knows it as abandoned is not who decides."""
    house.client.abandon(gid(1), 0)
    house.play(1, lease=1).result(deadline_s(10))
    assert numbers(house.claim(1).groups) == [1]
    house.client.commit([gid(1)], 1)
    assert house.client.stats().used == 1


@pytest.mark.parametrize("house", [{"shards": 1}], indirect=True)
def test_a_corrupt_group_whose_second_play_is_lost_with_the_run_is_still_to_be_played(house):
    """The checkpoint's cursor is past it, so replay alone knows."""
    house.play(1).result(deadline_s(10))
    house.claim(1)
    house.client._links[0].ask("corrupt", ids=[gid(1)])
    assert [group.group for group in house.client.stats().corrupt] == [gid(1).hex()]
    house.producer.add(turn(gid(1), 0, lease=1), house.lease(1, lease=1))
    house.producer.flush(10)
    house.client.resume(0)
    assert [group.group for group in house.client.stats().corrupt] == [gid(1).hex()]


# -- a shard that dies


class Elsewhere:
    """A service in its own process, in the place of one of the house's."""

    def __init__(self, house: House, number: int):
        self.house, self.number = house, number
        house.services[number].stop()
        house.services[number] = self
        self.start()

    def start(self) -> None:
        where = self.house.endpoints[self.number]
        spool = self.house.folder / f"spool-{self.number}"
        self.process = processes.start(
            [sys.executable, "-c", SERVE, str(spool), where.ingest, where.serve],
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert self.process.stdout.readline() == b"ready\n"

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.process.stdout.close()

    stop = kill


def test_a_claim_waits_for_a_shard_that_was_killed_and_goes_on_when_it_is_back(house):
    elsewhere = Elsewhere(house, 1)
    house.fill(30)
    first = house.claim(10).groups
    elsewhere.kill()
    got: list[Group] = []
    claiming = threading.Thread(target=lambda: got.extend(house.claim(10).groups))
    claiming.start()
    later = {number: house.play(number) for number in range(30, 60)}
    for number, done in later.items():
        if shard_of(gid(number), 3) != 1:
            done.result(deadline_s(10))
    assert claiming.is_alive() and got == [], "it waits: the groups next in order may lie there"
    waiting = [number for number, done in later.items() if not done.done()]
    assert waiting == [n for n in later if shard_of(gid(n), 3) == 1] and waiting
    elsewhere.start()
    claiming.join(deadline_s(20))
    assert sorted(numbers(got)) == list(range(10, 20))
    for done in later.values():
        done.result(deadline_s(10))
    assert house.client.stats().claimed == 20, "claims outlive the kill"
    for step, groups in enumerate((first, got), 1):
        house.client.commit([group.id for group in groups], step)
    rest = numbers(house.claim(40, wait_s=10).groups)
    assert sorted(numbers(first) + numbers(got) + rest) == list(range(60))


def test_a_shard_that_stays_away_is_named_and_the_others_keep_their_groups(house):
    elsewhere = Elsewhere(house, 1)
    house.fill(12)
    elsewhere.kill()
    hasty = house.client_of("hasty", timeout_s=0.5)
    with pytest.raises(RedraftError, match=f"replay at ipc://{house.folder}/1/s"):
        hasty.claim(6, 0, ANY, 0.0)
    assert [house.stats_of(shard).claimed for shard in (0, 2)] == [0, 0]
    elsewhere.start()
    assert sorted(numbers(house.claim(12, wait_s=10).groups)) == list(range(12))


# -- where groups go


@pytest.mark.parametrize("shards", [1, 2, 3, 8])
def test_one_more_shard_takes_over_its_part_of_the_groups_and_no_other_moves(shards):
    ids = [np.random.default_rng(n).bytes(16) for n in range(6000)]
    moved = [shard_of(group, shards + 1) for group in ids if shard_of(group, shards + 1) != shard_of(group, shards)]
    assert set(moved) == {shards}, "they go to the new one only"
    share, error = 1 / (shards + 1), np.sqrt(shards / (shards + 1) ** 2 / len(ids))
    print(f"{len(moved) / len(ids):.3f} of the groups moved, {share:.3f} +- {error:.3f} expected")
    assert abs(len(moved) / len(ids) - share) < 5 * error
    counts = Counter(shard_of(group, shards) for group in ids)
    assert all(abs(count - len(ids) / shards) < 5 * np.sqrt(len(ids) / shards) for count in counts.values())
