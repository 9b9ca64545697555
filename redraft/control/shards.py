"""Shards: the replay services of a run, as many as the recipe says or as have joined since."""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayActorError

from protocols import process_folder
from protocols.errors import DeadlineError, SettingError
from redraft.control import services, workers
from redraft.recipe import Recipe
from redraft.run import Run, newest_step
from replay import keys
from replay.client.shares import shard_of
from replay.config import Endpoints

LOOK_S = 1.0
AGAIN_S = 0.1  # between two questions to a service that Ray starts again


class Shards:
    """Starts and stops them. A group belongs to the shard that its lease names; one that joins later takes new groups
    only."""

    def __init__(self, run: Run, recipe: Recipe):
        self._run, self._recipe = run, recipe
        self._parts: list = []
        self.served: dict[int, tuple[str, int]] = {}
        """Address and port at which each shard that is up serves its metrics."""
        self._known: dict[int, tuple[str, int]] = {}  # the same, those that were up before included
        self._asked: dict = {}
        self._look_at = 0.0
        self.endpoints: tuple[Endpoints, ...] = ()
        self._open = self.endpoints
        self.keys: keys.ClientKeys | None = None
        self._sockets: Path | None = None

    def start(self) -> None:
        """Starts a service for each shard of the recipe, or for each spool in the run folder; none where they run
        elsewhere. Returns before they are up: see `wait`."""
        if self._recipe.replay.services:
            self.keys = services.keys_of(self._recipe.replay)
            services.check(self._recipe.replay, self._run.id, newest_step(self._run.folder) or 0)
            self.endpoints = self._recipe.replay.services
            self.open()
            return
        if not self._run.cluster:
            self._sockets = process_folder.made(Path(tempfile.gettempdir()), self._run.id)
        elif self._recipe.replay.curve:
            shutil.rmtree(self._run.keys, ignore_errors=True)
            keys.new(self._run.keys)  # good for this incarnation of the run only
            self.keys = keys.client_keys(self._run.keys)
        for _ in range(max(self._recipe.replay.shards, self._run.shards)):
            self._add()
        self.open()

    def wait(self, limit_s: float) -> None:
        """Returns when all are up. Raises DeadlineError naming replay, or the SettingError of the one that is not."""
        began = time.monotonic()
        self.served = {shard: where_it_serves(part, began, limit_s) for shard, part in enumerate(self._parts)}

    def grow(self, limit_s: float) -> None:
        """Adds an empty shard; returns when it is up, whatever the others do meanwhile. New groups go there after
        `open`.

        Raises SettingError where the services of the run are not its own, DeadlineError when it does not come up; then
        there are as many as before.
        """
        if self._recipe.replay.services:
            raise SettingError("RUN", "its replay services run elsewhere", "Stop it, add one, and --resume")
        shard, endpoints = len(self._parts), self.endpoints
        self._add()
        try:
            self.served[shard] = where_it_serves(self._parts[shard], time.monotonic(), limit_s)
        except Exception:
            ray.kill(self._parts.pop())
            workers.forget(self.endpoints[shard])
            self.endpoints = endpoints
            raise

    def open(self) -> None:
        """Spreads new groups over all shards, once whoever claims groups knows them all."""
        self._open = self.endpoints

    def look(self) -> int:
        """Learns every LOOK_S which shards are up and where they serve their metrics; returns how many were restarted
        since the last look. Does not wait."""
        restarted = 0
        for answer in ray.wait(list(self._asked), num_returns=len(self._asked), timeout=0)[0] if self._asked else ():
            shard = self._asked.pop(answer)
            try:
                where = ray.get(answer)
            except RayActorError:  # Ray starts it again
                self.served.pop(shard, None)
                continue
            restarted += self._known.get(shard, where) != where
            self.served[shard] = self._known[shard] = where
        if not self._asked and time.monotonic() >= self._look_at:
            self._look_at = time.monotonic() + LOOK_S
            self._asked = {part.serves.remote(): shard for shard, part in enumerate(self._parts)}
        return restarted

    def of(self, group: bytes) -> str:
        """The ingest endpoint of the shard that a new play of `group` belongs to."""
        return self._open[shard_of(group, len(self._open))].ingest

    def close(self) -> None:
        """Stops the services that `start` began, each after what it is doing."""
        if not self._parts:
            return
        ray.wait([part.close.remote() for part in self._parts], num_returns=len(self._parts), timeout=10.0)
        for part, where in zip(self._parts, self.endpoints, strict=True):
            ray.kill(part)
            workers.forget(where)
        shutil.rmtree(self._run.keys, ignore_errors=True)
        if self._sockets is not None:
            shutil.rmtree(self._sockets, ignore_errors=True)

    def _add(self) -> None:
        where = workers.endpoints(self._sockets)
        self._parts.append(workers.start_replay(self._run, self._recipe, len(self._parts), where))
        self.endpoints = (*self.endpoints, where)


def where_it_serves(part: Any, began: float, limit_s: float) -> tuple[str, int]:
    """Where a replay service serves its metrics, once it is up: one that has died is started again by Ray. The wait
    `began` at a time of time.monotonic. Raises DeadlineError, or what kept the service from starting."""
    deadline = began + limit_s
    while True:
        try:
            return ray.get(part.serves.remote(), timeout=max(0.0, deadline - time.monotonic()))
        except (ActorUnavailableError, GetTimeoutError):
            if time.monotonic() >= deadline:
                detail = "it did not start; see logs/ in the run"
                raise DeadlineError("the controller", "replay", limit_s, detail) from None
            time.sleep(AGAIN_S)
