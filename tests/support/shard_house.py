"""What the tests of several replay shards share: services with one producer and one client over all of them."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np

from protocols.replay_stats import ReplayStats
from protocols.turns import Close, Group, Lease, Role, Turn
from replay.client import Claim, Client, Producer
from replay.client.shares import shard_of
from replay.config import Endpoints, ReplaySettings
from replay.server.service import Service
from support.waiting import deadline_s

ANY = 1000  # a staleness that nothing exceeds


def gid(number: int) -> bytes:
    return number.to_bytes(16, "big")


def numbers(groups: list[Group]) -> list[int]:
    return [int.from_bytes(group.id, "big") for group in groups]


def turn(group: bytes, number: int = 0, lease: int = 0, version: int = 0) -> Turn:
    """Its ids follow from group and number, so that whoever gets it can tell whether they are right."""
    ids = np.random.default_rng([int.from_bytes(group, "big"), number]).integers(0, 50_000, 8, dtype=np.int32)
    logprobs = -ids.astype(np.float32) / 50_000
    return Turn(group, lease, number, number - 1, ids[:2], ids, logprobs, ((0, version),), Role.ATTEMPT, reward=1.0)


class House:
    """Services with one producer and one client over all of them, each its own folder and endpoints."""

    def __init__(self, folder: Path, shards: int, **settings):
        self.folder, self.settings = folder, ReplaySettings(**settings)
        self.endpoints: list[Endpoints] = []
        self.services: list[Service] = []
        for _ in range(shards):
            self.join()
        self.producer = Producer("actor")
        self.clients: list[Client] = []
        self.client = self.client_of("learner")

    def join(self) -> None:
        """One more service, which nobody knows yet."""
        number = len(self.services)
        self.endpoints.append(Endpoints(f"ipc://{self.folder}/{number}/i", f"ipc://{self.folder}/{number}/s"))
        self.services.append(self._service(number))

    def restart(self) -> None:
        for number, service in enumerate(self.services):
            service.stop()
            self.services[number] = self._service(number)

    def _service(self, number: int) -> Service:
        service = Service(self.folder / f"spool-{number}", self.endpoints[number], self.settings, "run")
        service.start()
        return service

    def client_of(self, name: str, shard: int | None = None, timeout_s: float = 10.0) -> Client:
        """Over all shards, or of one; closed with the house."""
        chosen = self.endpoints if shard is None else [self.endpoints[shard]]
        client = Client(chosen, name, timeout_s=deadline_s(timeout_s))
        client._random = np.random.default_rng(1)  # which shard gives how many
        self.clients.append(client)
        return client

    def lease(self, number: int, lease: int = 0, shards: int = 0) -> Lease:
        """As the controller makes it: for the group's shard among those that it knows."""
        shard = shard_of(gid(number), shards or len(self.endpoints))
        return Lease(gid(number), lease, number, {}, 0, self.endpoints[shard].ingest)

    def play(self, number: int, lease: int = 0, version: int = 0, turns: int = 2, shards: int = 0) -> Future:
        """A whole group; the future of its close row."""
        given = self.lease(number, lease, shards)
        for place_of_turn in range(turns):
            self.producer.add(turn(given.group, place_of_turn, lease, version), given)
        return self.producer.add(Close(given.group, lease, turns), given, 1.0)

    def fill(self, count: int) -> None:
        """Groups 0.., in an order of time that is not that of their leases."""
        order = list(range(count))
        random.Random(1).shuffle(order)
        for done in [self.play(number) for number in order]:
            done.result(deadline_s(10))

    def claim(self, count: int = 1, step: int = 0, max_staleness: int = ANY, wait_s: float = 0.0) -> Claim:
        return self.client.claim(count, step, max_staleness, wait_s)

    def held_by(self, count: int) -> list[set[int]]:
        """Which of the groups 0..count each shard knows as closed."""
        found = []
        for shard in range(len(self.endpoints)):
            known = self.client_of("test", shard).known([gid(number) for number in range(count)])
            found.append({int.from_bytes(group, "big") for group in known})
        return found

    def stats_of(self, shard: int) -> ReplayStats:
        return self.client_of("test", shard).stats()

    def close(self) -> None:
        for client in self.clients:
            client.close()
        try:
            self.producer.close(10)
        finally:
            for service in self.services:
                service.stop()


@contextmanager
def a_house(shards: int = 3, **settings) -> Iterator[House]:
    """In a folder with a short path: ipc paths end at 107 characters."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder, closing(House(Path(folder), shards, **settings)) as house:
        yield house
