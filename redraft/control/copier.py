"""The process that copies a run to its store, beside the controller: what it has done, and what keeps it from it."""

from __future__ import annotations

import time
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError

from protocols import metrics
from redraft import logs
from redraft.control import workers
from redraft.control.status import Status
from redraft.recipe import Recipe
from redraft.run import Run
from redraft.storage.copies import Copies
from redraft.storage.keeper import CopyReport, Keeper

LOOK_S = 1.0


class CopyPart:
    """Copies in a process of its own, so that neither the controller nor the learner waits for a store."""

    def __init__(self, run: Run, recipe: Recipe):
        logs.to_file(run.folder, run.name, "storage", recipe.logs.format)
        storage, keep = recipe.storage, recipe.learner.keep_checkpoints
        assert storage is not None, "it is started for a store"
        self._keeper = Keeper(run, lambda: Copies(run, storage, keep))

    def report(self) -> CopyReport:
        return self._keeper.report


class Copier:
    """Of a run with `storage`, such a process; of another none. Nothing here waits for it."""

    def __init__(self, run: Run, recipe: Recipe, status: Status):
        self._status, self._last = status, CopyReport()
        self._part: Any = None
        self._asked: Any = None
        self._look_at = 0.0
        if recipe.storage is not None:
            part = ray.remote(CopyPart).options(
                num_cpus=0,
                max_restarts=-1,
                scheduling_strategy=workers.here(),
                runtime_env=workers.worker_environment(1),
            )
            self._part = part.remote(run, recipe)
            metrics.STORAGE_FAILURES.inc(0)  # so that it is exported

    def look(self) -> None:
        """Learns every LOOK_S how far copies are; to be called often."""
        if self._part is None or time.monotonic() < self._look_at:
            return
        if self._asked is None:
            self._asked = self._part.report.remote()
        elif ray.wait([self._asked], timeout=0)[0]:
            try:
                self._take(ray.get(self._asked))
            except RayActorError:  # Ray starts it again, and it counts anew
                self._last = CopyReport(error=self._last.error)
            except RayError as error:
                self._status.event(f"the run is not copied: {error}", once="storage")
            self._asked, self._look_at = None, time.monotonic() + LOOK_S

    def close(self) -> None:
        if self._part is not None:
            ray.kill(self._part)

    def _take(self, report: CopyReport) -> None:
        metrics.STORAGE_FAILURES.inc(max(0, report.failures - self._last.failures))
        if report.at:
            metrics.STORAGE_TIME.set(report.at)
            metrics.STORAGE_STEP.set(report.step)
        if report.error and not self._last.error:
            self._status.event(f"the run is not copied, and goes on: {report.error}", once="storage")
        self._last = report
