"""The lead's loop: what rank 0 does beside its own part of each step.

take the batch that the prefetch thread packed; with `actors.sleep` wait until engines on this GPU sleep
command "step"  ------------ micro-batches ----->  all ranks: forward, backward, step, `learner.updates` times
commit the groups to replay
command "weights", at the end of a round ------->  all ranks take part in the gather and the probe
which writes them into shared memory; announce
command "wait" where it waits: nothing, but that it lives
command "checkpoint" now and then -------------->  each rank writes its own part
"""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError

from learner import checkpoint
from learner.batches.batch import Batch
from learner.batches.prefetch import Prefetch
from learner.bound import Bound
from learner.config import LearnerSettings
from learner.journal import Journal
from learner.objectives import report
from learner.ranks.commands import Commands
from learner.ranks.progress import Progress
from learner.ranks.publisher import Publisher
from learner.ranks.timing import timed
from learner.transcripts.store import TranscriptStore
from protocols import metrics, traces
from protocols.errors import DeadlineError, FaultError, RedraftError
from protocols.reports import StepReport
from protocols.weights import TRIAL, version_of
from replay.client import Client

log = logging.getLogger("redraft.learner")

CURSOR_S = 60.0  # longest wait for the controller's cursor
POLL_S = 1.0  # how often a lead that waits for a batch looks up
FULL_BYTES = 1 << 20  # with less left a disk is full, whatever a library says of it
BAD_STEPS = 3  # so many gradients in a row that are not finite end the run


Meanwhile = Callable[[], object]
"""Called every POLL_S of a wait."""


class Waits:
    """What a wait for groups is in truth a wait for; set from another thread."""

    def __init__(self):
        self.held, self._change = "groups", 0
        self._since, self._held_s = time.monotonic(), 0.0
        self._rested, self._taken, self._changed = TRIAL, TRIAL, threading.Condition()

    def hold(self, limit: str, change: int) -> None:
        """That is what holds leases back from now on, and what a wait is for; unless a later change has been told."""
        with self._changed:
            if change < self._change:
                return
            self._count()
            self.held, self._change = limit, change

    def held_s(self) -> float:
        """Seconds since it was asked last in which the staleness bound kept actors from playing."""
        with self._changed:
            self._count()
            held_s, self._held_s = self._held_s, 0.0
        return held_s

    def _count(self) -> None:
        now = time.monotonic()
        self._held_s += now - self._since if self.held == "staleness" else 0.0
        self._since = now

    def rested(self, version: int) -> None:
        """Engines on the learner's GPU sleep, until there is a newer version than that."""
        with self._changed:
            self._rested = version
            self._changed.notify()

    def rest(self, version: int, limit_s: float, meanwhile: Meanwhile) -> bool:
        """Whether they do within so long, evaluations left out."""
        return self._until(lambda: self._rested == version, limit_s, meanwhile)

    def arrived(self, version: int) -> None:
        """Actors have that version, which is evaluated."""
        with self._changed:
            self._taken = version
            self._changed.notify()

    def taken(self, version: int, limit_s: float, stopping: threading.Event, meanwhile: Meanwhile) -> bool:
        """Whether they have within so long, or the run is stopped."""
        return self._until(lambda: self._taken == version or stopping.is_set(), limit_s, meanwhile)

    def evaluating(self) -> bool:
        """Whether a wait is one for the end of an evaluation, which takes as long as its tasks do."""
        return self.held == "evaluation"

    def _until(self, condition: Callable[[], bool], limit_s: float, meanwhile: Meanwhile) -> bool:
        until = time.monotonic() + limit_s
        while True:
            with self._changed:
                if self._changed.wait_for(condition, max(0.0, min(POLL_S, until - time.monotonic()))):
                    return True
            if self.evaluating():
                until = time.monotonic() + limit_s
            if time.monotonic() >= until:
                return False
            meanwhile()

    def of(self, prefetch: Prefetch) -> str:
        return prefetch.reason if prefetch.reason == "straggler" else self.held


def wait(prefetch: Prefetch, waits: Waits, seconds: dict[str, float]) -> tuple[bool, str]:
    """Waits up to POLL_S for the next batch: whether it is there, and what the wait was for."""
    with timed(seconds, "wait") as waited:
        ready = prefetch.ready(POLL_S)
        waited.state = waits.of(prefetch)
    return ready, waited.state


def rest(
    controller, waits: Waits, version: int, limit_s: float, seconds: dict[str, float], meanwhile: Meanwhile
) -> None:
    """Waits until engines on this GPU sleep, with the version that was published last. Raises DeadlineError."""
    with timed(seconds, "wait") as waited:
        waited.state = "sleep"
        controller.rest.remote(version)
        if not waits.rest(version, limit_s, meanwhile):
            raise DeadlineError("learner", "engines on its GPU, to sleep (actors.sleep)", limit_s)


class Lead:
    """One `run` of rank 0, from the step that was done last."""

    def __init__(
        self,
        settings: LearnerSettings,
        run_dir: Path,
        run_id: str,
        world: int,
        *,
        steps: int,
        progress: Progress,
        bound: Bound,
        commands: Commands,
        publisher: Publisher,
        controller,
        client: Client,
        prefetch: Prefetch,
        waits: Waits,
        rests: bool,
        evaluated: bool,
        saved: int | None,
        stopping: threading.Event,
        ended: threading.Event,
    ):
        """`steps` of the whole run; `client` and `prefetch` are the lead's to use, not to close; with `rests` engines
        on its GPU sleep while it trains; with `evaluated` some versions are in the course of training; `saved` is the
        step of the newest checkpoint; `stopping` is set when the run is to end, `ended` before it where its recipe says
        so."""
        self._settings, self._run_dir, self._run_id, self._world = settings, run_dir, run_id, world
        self._steps, self._progress, self._commands, self._publisher = steps, progress, commands, publisher
        self._controller, self._client, self._prefetch, self._waits = controller, client, prefetch, waits
        self._bound = bound
        self._transcripts = TranscriptStore(run_dir, settings.record)
        self._journal = Journal(run_dir, steps, world)
        self._rests, self._evaluated, self._saved = rests, evaluated, saved
        self._stopping, self._ended = stopping, ended
        self._last: StepReport | None = None  # of the step that was done last, in this run
        self._waited_for = "groups"
        self._bad_steps = self._skipped = 0
        newest = checkpoint.newest(run_dir)
        self._size = 0 if newest is None else checkpoint.size(newest)
        self._said_full = False

    def run(self, until_step: int) -> str:
        """Trains until `until_step` steps are done or the run is stopping: "done" or "stopped".

        Raises DeadlineError when a batch does not come in time, RedraftError when gradients are not finite again and
        again.
        """
        metrics.CHECKPOINT_TIME.set_to_current_time()
        metrics.STALENESS_BOUND.set(self._bound.now)
        progress, prefetch = self._progress, self._prefetch
        self._waits.held_s()
        if progress.step < until_step:
            prefetch.start(progress.step, self._bound.of_claims)
        while progress.step < until_step and not self._stopping.is_set():
            began, seconds = time.monotonic(), {"gather": 0.0, "publish": 0.0, "checkpoint": 0.0}
            batch = self._batch(seconds)
            if batch is None:
                break
            if progress.step + 1 < until_step:
                prefetch.start(progress.step + 1, self._bound.of_claims)
            done = self._train(batch, seconds)
            self._last = done = self._find_bound(done, time.monotonic() - began)
            if progress.step % self._settings.checkpoint_every == 0 or prefetch.crowded:
                self._checkpoint(seconds)
            done.export()
            self._controller.step_done.remote(done)
            self._trace(batch, seconds, time.monotonic() - began)
        if self._ended.is_set() and self._amid_round():
            self._let_sleep({})
            self._publish({})
        self._checkpoint({}, last=True)
        if self._ended.is_set() or progress.step >= until_step:
            self._told()
        return "done" if progress.step >= until_step else "stopped"

    def _trace(self, batch: Batch, seconds: dict[str, float], lasted_s: float) -> None:
        """The span of the step that was done last, with where its time went."""
        progress = self._progress
        parts: dict[str, Any] = {f"{phase}_s": spent for phase, spent in seconds.items()}
        span = traces.stepped(self._run_id, version_of(progress.incarnation, progress.step))
        traces.record("step", span, lasted_s, links=map(traces.closed, batch.ids), step=progress.step, **parts)

    def _batch(self, seconds: dict[str, float]) -> Batch | None:
        """The next one; None when the run is stopping. Meanwhile a checkpoint where replay needs room."""
        while True:
            ready, self._waited_for = wait(self._prefetch, self._waits, seconds)
            if ready:
                return self._prefetch.take()
            if self._prefetch.crowded:
                self._checkpoint(seconds)
            self._commands.wait()

    def _train(self, batch: Batch, seconds: dict[str, float]) -> StepReport:
        progress = self._progress
        seconds["pack"] = batch.pack_s
        self._let_sleep(seconds)
        with timed(seconds, "train"):
            result = self._commands.give("step", each=batch.micros)
        if result.gradient_norm is not None:
            self._count_bad(result.applied)
        with timed(seconds, "commit"):
            self._client.commit(batch.ids, progress.step, batch.priorities)
        if published := self._ended_round():
            self._publish(seconds)
        self._transcripts.write(progress.step, version_of(progress.incarnation, progress.step), batch.kept)
        if batch.journal is not None:
            digest = self._publisher.digest if published else ""
            self._journal.write(progress.step, progress.version, digest, batch.journal)
        return StepReport(
            step=progress.step,
            version=progress.version,
            fit=report(result.stats),
            gradient_norm=result.gradient_norm if result.applied else None,
            lr=result.lr,
            batch=batch.report,
            skipped_updates=self._skipped,
            probe_noise=self._publisher.proof.noise,
            wait_reason=self._waited_for,
            seconds=seconds,
        )

    def _find_bound(self, done: StepReport, lasted_s: float) -> StepReport:
        """The report with the bound that it has led to. What was waited counts as far as actors were held back in
        this step: so much more could they have played with a larger bound."""
        before = self._bound.now
        held_share = min(done.seconds["wait"], self._waits.held_s()) / lasted_s
        self._bound.stepped(done.step, done.fit.effective_samples, held_share)
        if self._bound.now != before:
            log.info("the staleness bound is %d after step %d, %d before", self._bound.now, done.step, before)
        metrics.STALENESS_BOUND.set(self._bound.now)
        return replace(done, held_share=held_share, max_staleness=self._bound.now)

    def _let_sleep(self, seconds: dict[str, float]) -> None:
        if self._rests:
            limit_s, version = self._settings.claim_deadline_s, self._progress.version
            rest(self._controller, self._waits, version, limit_s, seconds, self._commands.wait)

    def _publish(self, seconds: dict[str, float]) -> None:
        if self._evaluated:
            self._let_actors_take(seconds)
        self._publisher.publish(seconds)

    def _told(self) -> bool:
        """Waits until the controller has the version that was announced last: whether that is evaluated in the course
        of training. Raises DeadlineError."""
        limit_s = self._settings.claim_deadline_s
        try:
            return ray.get(self._publisher.announced, timeout=limit_s)
        except GetTimeoutError:
            raise DeadlineError("learner", "the controller, to take weights", limit_s) from None

    def _let_actors_take(self, seconds: dict[str, float]) -> None:
        """Where an evaluation plays with the version before, actors must have it before the next one takes its
        place. Raises DeadlineError."""
        if not self._told():
            return
        limit_s = self._settings.claim_deadline_s
        with timed(seconds, "wait") as waited:
            waited.state = "evaluation"
            stops = threading.Event() if self._ended.is_set() else self._stopping  # what its recipe ends is whole
            if not self._waits.taken(self._progress.version, limit_s, stops, self._commands.wait):
                raise DeadlineError("learner", "actors, to take the weights that are evaluated", limit_s)

    def _ended_round(self) -> bool:
        """Whether the last step was the last of a round, or of the run."""
        rounds, step = self._settings.rounds, self._progress.step
        return rounds is None or step % rounds.steps == 0 or step == self._steps

    def _amid_round(self) -> bool:
        """Whether what was trained last is not published, and would be worth it: not what just began from the base."""
        rounds, progress = self._settings.rounds, self._progress
        return rounds is not None and not rounds.from_base and progress.published != progress.step

    def _count_bad(self, applied: bool) -> None:
        self._bad_steps = 0 if applied else self._bad_steps + 1
        if applied:
            return
        self._skipped += 1
        log.warning("step %d: a gradient is not finite, so its optimizer step moves nothing", self._progress.step)
        if self._bad_steps == BAD_STEPS:
            objective = self._settings.objective.model_dump()
            raise RedraftError(
                f"learner: {BAD_STEPS} gradients in a row were not finite. Lower learner.optimizer.lr "
                f"({self._settings.optimizer.lr:g}), or look at learner.objective: {objective}"
            )

    def _checkpoint(self, seconds: dict[str, float], last: bool = False) -> None:
        """Of the step that was done last, where there is none of it; then replay may forget. Where the disk has no room
        for one as large as the newest, it waits for the next time. Raises FaultError where the `last` does not fit."""
        if self._saved == self._progress.step:
            if not last:  # replay needs room still, and may have ended before it heard of it, or forgot
                self._client.checkpoint(self._progress.step)
            return
        if not (last or self._has_room()):
            return
        try:
            self._write_checkpoint(seconds)
        except Exception as error:  # of a full disk each library says something else
            if isinstance(error, RedraftError) or shutil.disk_usage(self._run_dir).free > max(self._size, FULL_BYTES):
                raise
            problem = f"learner: the disk of {self._run_dir} has no room for the checkpoint of step"
            raise FaultError(f"{problem} {self._progress.step}. Make room, and go on with --resume") from error

    def _has_room(self) -> bool:
        free = shutil.disk_usage(self._run_dir).free
        if fits := free > self._size:
            self._said_full = False
        elif not self._said_full:
            self._said_full = True
            log.warning("no checkpoint of step %d: the disk has %d bytes left", self._progress.step, free)
        return fits

    def _write_checkpoint(self, seconds: dict[str, float]) -> None:
        progress, settings = self._progress, self._settings
        self._journal.flush()
        with timed(seconds, "checkpoint"):
            try:
                cursor: dict = ray.get(self._controller.cursor.remote(), timeout=CURSOR_S)
            except GetTimeoutError:
                raise DeadlineError("learner", "the controller's cursor", CURSOR_S) from None
            state = checkpoint.RunState(
                run_id=self._run_id,
                step=progress.step,
                incarnation=progress.incarnation,
                cursor=cursor,
                ranks=self._world,
                zero=settings.zero,
                published=progress.published,
                offload=settings.offload,
                report={} if self._last is None else self._last.to_json(),
                bound=self._bound.state,
            )
            with checkpoint.writing(self._run_dir, self._run_id, progress.step) as folder:
                self._commands.give("checkpoint", str(folder))
                self._publisher.keep(folder)
                path = checkpoint.finish(folder, state, settings.keep_checkpoints)
            self._client.checkpoint(progress.step)
            metrics.CHECKPOINT_TIME.set_to_current_time()
            log.info("checkpoint %s", path)
        self._saved, self._size = progress.step, checkpoint.size(path)
