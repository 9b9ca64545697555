"""Shards: the replay services of a run, as many as the recipe says or as have joined since."""

from __future__ import annotations

import shutil

import ray

from protocols.errors import DeadlineError
from redraft import parts
from redraft.recipe import Recipe
from redraft.run import Run
from replay import keys
from replay.config import Endpoints
from replay.shares import place


class Shards:
    """Starts and ends them. A group belongs to the shard that its lease names; who joins takes new groups only."""

    def __init__(self, run: Run, recipe: Recipe):
        self._run, self._recipe = run, recipe
        self._nodes = len([node for node in ray.nodes() if node["Alive"]])
        self._parts: list = []
        self.endpoints: tuple[Endpoints, ...] = ()
        self._open = self.endpoints
        self.keys: keys.ClientKeys | None = None

    def start(self) -> None:
        """One service for each shard of the recipe, or for each spool that the run folder has. Returns before they are
        up: see `wait`."""
        if self._nodes > 1 and self._recipe.replay.curve:
            shutil.rmtree(self._run.keys, ignore_errors=True)
            keys.new(self._run.keys)  # good for this life of the run only
            self.keys = keys.client_keys(self._run.keys)
        for _ in range(max(self._recipe.replay.shards, self._run.shards)):
            self._add()
        self.open()

    def wait(self, limit_s: float) -> None:
        """Returns when all are up. Raises DeadlineError naming replay, or the SettingError of the one that is not."""
        try:
            ray.get([part.metrics_port.remote() for part in self._parts], timeout=limit_s)
        except ray.exceptions.GetTimeoutError:
            detail = "it did not start; see logs/ in the run"
            raise DeadlineError("the controller", "replay", limit_s, detail) from None

    def grow(self, limit_s: float) -> None:
        """One more shard, empty; returns when it is up. New groups go there after `open`."""
        self._add()
        self.wait(limit_s)

    def open(self) -> None:
        """All that claim groups know all shards: new groups are spread over all of them."""
        self._open = self.endpoints

    def ports(self, limit_s: float) -> dict[str, int]:
        """Where each shard serves its metrics."""
        found = ray.get([part.metrics_port.remote() for part in self._parts], timeout=limit_s)
        return {f"replay-{shard}": port for shard, port in enumerate(found)}

    def of(self, group: bytes) -> str:
        """The ingest endpoint of the shard that a new play of `group` belongs to."""
        return self._open[place(group, len(self._open))].ingest

    def close(self) -> None:
        """Ends the services, each after what it is doing."""
        ray.wait([part.close.remote() for part in self._parts], num_returns=len(self._parts), timeout=10.0)
        for part, where in zip(self._parts, self.endpoints, strict=True):
            ray.kill(part)
            parts.forget(where)
        shutil.rmtree(self._run.keys, ignore_errors=True)

    def _add(self) -> None:
        where = parts.endpoints(self._nodes)
        self._parts.append(parts.start_replay(self._run, self._recipe, len(self._parts), where))
        self.endpoints = (*self.endpoints, where)
