"""The controller: a named Ray actor that runs the loops of one run.

     tasks --lease--> actors --turns--> replay --groups--> learner
       ^                ^                                     |
       |                +------------- weights v+1 -----------+
       +---- admission: (eta + version + 1) * batch - (accepted + running)     version: the step of the weights in use

It holds no turn and no weights. Twenty times a second it takes the actors' reports, counts what replay holds, and sends
those who have reported their orders: leases for as many groups as admission allows, and the newest weights. A few
actors report each time; of many, each when it has something to say, and they hear of what is new to them meanwhile. The
learner calls it after each step. No other data passes through it.

    who waits             for what                      what ends the wait                     at the latest
    --------------------  ----------------------------  -------------------------------------  ------------------------
    learner (claim)       a batch of closed groups      a close row; a straggler that closes   learner.claim_deadline_s
    learner (one GPU)     engines that sleep            the last one does (actors.sleep)       learner.claim_deadline_s
    actor (before play)   room in replay                acknowledgements; space on the disk    120 s, then abandons
    actor (in play)       engine, environment           a completion; environment.time_limit_s actors.lease_s
    actor (in play)       a teacher                     its answer                             teacher.timeout_s a try
    actor (new weights)   a version's bytes elsewhere   a broadcast, or the object store       actors.silence_s, by size
    controller (start)    all parts                     their first report                     start_s
    controller (leases)   admission                     a step; a lost lease                   the learner's deadline
    controller (actor)    its report                    the report, or replacing the actor     actors.silence_s
    an actor that leaves  what it still plays           it ends, or others play it anew        actors.drain_s
    an actor without room resources of the cluster      a node; a smaller `redraft scale`      no limit: others play
    learner (to publish)  actors, an evaluation's       all that are ready have its weights    learner.claim_deadline_s
    ranks 1..             a command of rank 0           the command                            the learner's + 300 s
    train (told to stop)  the learner                   the end of its step; a checkpoint      stop_s; a second Ctrl-C

When the process of a rank dies, all ranks are started anew while actors go on (restarts.py). When a wait of the
learner, of a start or of a stop runs out, the run ends with an error that names who was waited for, and
`redraft train --resume` goes on (by itself with --restarts: launch/supervise.py). When one of an actor runs out,
its group is played anew, or it is replaced.

parts.py starts all parts, exchange.py has one round of the loop, admission.py says how many groups may be leased,
leases.py which ones, fleet.py which actors are alive. What is told to people and files is in protocols/reports.py.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import RayTaskError

from protocols import metrics, own_code, traces
from protocols.errors import DeadlineError, RedraftError
from protocols.evaluation import EvaluationLine, EvaluationSummary
from protocols.reports import LearnerEnded, RunEnded, RunStatus, StepReport
from protocols.weights import WeightRef, step_of
from redraft import logs
from redraft import run as runs
from redraft.control import discovery, faults
from redraft.control.admission import Admission
from redraft.control.course import Course, Examiner
from redraft.control.exchange import TICK_S, Announced, Exchange, Starting
from redraft.control.fleet import Fleet
from redraft.control.parts import start
from redraft.control.places import Scaled
from redraft.control.restarts import RankDiedError, Restarts, have_ended
from redraft.control.status import Status, tell_accuracy
from redraft.recipe import Recipe
from redraft.run import Run, newest_step
from redraft.tracking.queue import Trackers

log = logging.getLogger("redraft.controller")
CALLS_AT_ONCE = 16  # that the controller takes
HEAR_OUT_S = 1.0  # for the reports of actors when the run has failed
PHASES = {
    "before": ("evaluating", "before training, to compare with"),
    "after": ("ending", "evaluation of what was learned"),
}
EARLY = "training ends early: "


class Controller:
    """One run from start to end. `run` is called once, in a thread of its own; the other methods at any time."""

    EXCHANGE = Exchange

    def __init__(self, run: Run, recipe: Recipe, resume: bool):
        run.check()
        logs.of_part(run.folder, run.name, "controller", recipe.logs)
        own_code.install(runs.code(run.folder, recipe))
        self._run, self._recipe, self._resume = run, recipe, resume
        self._status = Status(run, recipe)
        self._trackers = Trackers(run, recipe, self._status.event)
        self._stopping, self._try_again = threading.Event(), False
        self._announced = Announced()
        self._course: Course | None = None
        self._admission: Admission | None = None
        self._announcing = threading.Lock()
        self._reporting, self._early = threading.Lock(), dict[int, StepReport]()
        self._state: Starting | Exchange = Starting()
        self._closing = contextlib.ExitStack()

    def run(self) -> RunEnded:
        """Starts the parts, trains, evaluates before and after; returns how it ended, as written to the run folder."""
        end = RunEnded(self._run.name, "failed")
        try:
            end = self._train_and_evaluate(self._start())
        except Exception as error:  # whatever ends a run is said in its summary
            cause = error.cause if isinstance(error, RayTaskError) else error
            said = faults.told(cause, self._recipe.learner)
            end = replace(end, error=said, try_again=faults.is_fault(cause))
            log.error("the run stops: %s", end.error, exc_info=not isinstance(cause, RedraftError))
            self._hear_out()
        finally:
            self._take_held()
            self._close()
        status = self._status
        status.look()
        end = replace(
            end,
            steps=status.step,
            checkpoint=newest_step(self._run.folder),
            seconds=round(status.elapsed_s, 1),
            findings=status.findings,
            generations=status.generations,
            attempts=status.attempts,
            trained_parameters=status.trained,
        )
        try:
            self._run.write("summary.json", end.to_json())
        except OSError as error:  # a full disk, which may be why it ends
            log.error("summary.json is not written: %s", error)
        status.phase(end.state, end.error)
        self._trackers.close(end.state)
        return end

    # Called by the learner, the command line and the live view.

    def announce(self, ref: WeightRef) -> bool:
        """New weights: actors get them with their next orders. Returns whether they are to be evaluated in the course
        of training, so that actors must have them before there are newer ones. Calls that come at once may overtake
        each other: those of weights that are no longer the newest change nothing."""
        with self._announcing:
            if not self._announced.is_new(ref.version):
                return False
            self._status.published(ref)
            evaluated = self._course is not None and self._course.announced(ref)
            self._announced.newest = ref
            return evaluated

    def announce_trial(self, ref: WeightRef) -> None:
        """Perturbed weights: an actor must follow them before it may play."""
        self._announced.trial = ref

    def step_done(self, report: StepReport) -> None:
        """The learner has done a step. Calls that come at once may overtake each other: a report waits for those of the
        steps before it, as long as they can still come."""
        with self._reporting:
            self._early[report.step] = report
            while self._early and (
                min(self._early) <= self._status.step + 1 or len(self._early) >= CALLS_AT_ONCE  # one has been lost
            ):
                self._step_done(self._early.pop(min(self._early)))

    def _take_held(self) -> None:
        """Takes the reports that still wait, when none can come before them any more: one was lost, or its rank died
        with it."""
        with self._reporting:
            for step in sorted(self._early):
                self._step_done(self._early.pop(step))

    def _step_done(self, report: StepReport) -> None:
        if not self._announced.counts(report.version):
            return
        if self._admission is not None and report.max_staleness is not None:
            self._admission.bound = report.max_staleness
        self._trackers.step(self._status.step_done(report))
        self._state.stepped(report)

    def rest(self, version: int) -> None:
        """The learner has a batch, and published that version last: engines on its GPU are to sleep while it trains."""
        self._state.rest(version)

    def cursor(self) -> dict[str, Any]:
        """Where in the order of tasks a run resumed from now would go on."""
        return dict(self._state.cursor)

    def add_shard(self) -> int:
        """One more replay service, for groups that are not leased yet; nothing restarts. Returns how many there are.

        Raises SettingError before training began, and when it is over.
        """
        return self._going_on.grow()

    def scale(self, count: int) -> Scaled:
        """How many actors there should be from now on; returns how many there should be before, and what to know of
        the new number. Raises SettingError."""
        return self._going_on.scale(count, self._run.cluster)

    def status(self) -> RunStatus:
        return self._status.snapshot()

    def stop(self, try_again: bool = False) -> None:
        """Finish the step, write a checkpoint, end all parts; `try_again` becomes part of how it ended."""
        self._try_again |= try_again
        if not self._stopping.is_set():
            self._stopping.set()
            self._status.phase("stopping", "finishing the step and writing a checkpoint")
            self._state.stop()

    @property
    def _going_on(self) -> Starting | Exchange:
        return Starting() if self._stopping.is_set() else self._state

    # The run.

    def _start(self) -> Exchange:
        """Starts every part. Raises SettingError, or DeadlineError naming the part that did not come up."""
        self._serve_metrics()
        parts = start(self._run, self._recipe, self._resume, self._status, self._closing)
        self._trackers.start(parts.step)
        self._state = exchange = self.EXCHANGE(parts, self._recipe, self._status, self._announced)
        return exchange

    def _serve_metrics(self) -> None:
        """Begins to serve this process's metrics, and the list of all processes that do."""
        for process in ("actor", "replay", "learner"):
            metrics.RESTARTS.labels(process=process)
        for reason in ("actor", "abandoned", "expired", "drained", "learner"):
            metrics.LEASES_LOST.labels(reason=reason)
        address = ray.util.get_node_ip_address() if self._run.cluster else None
        at = discovery.listen(self._run, self._recipe.metrics)
        url = discovery.serve(self._run.name, self._recipe.metrics, at, address, self._processes)
        self._status.discovery(url)
        replace(self._run, sd=url).save()

    def _processes(self) -> Iterator[discovery.Process]:
        """All others that serve metrics now."""
        yield from self._state.processes()
        for node in ray.nodes():
            if node["Alive"] and node["MetricsExportPort"]:
                name = f"ray-{node['NodeManagerAddress']}"
                yield "ray", name, node["NodeManagerAddress"], node["MetricsExportPort"]

    def _train_and_evaluate(self, exchange: Exchange) -> RunEnded:
        me, parts = ray.get_runtime_context().current_actor, exchange.parts
        examiner = Examiner(self._run, self._recipe, exchange, self._status, self._trackers)
        self._course = course = Course(
            examiner, self._announced, lambda version: parts.ranks[0].arrived.remote(version), parts.step
        )
        parts.ranks.announce(me, lambda _: parts.files.look(parts.fleet))
        parts.fleet.begin()
        self._until(exchange, lambda: self._can_play(parts.fleet), "actors", "an engine with verified weights")
        before = self._before() or self._evaluation(examiner, "before")
        if self._stopping.is_set():
            return self._stopped(before)
        if before is not None:
            course.judge(0, before)
        ended, early = self._learn(exchange, course, me)
        if self._stopping.is_set() or (ended.reason != "done" and not early):
            return self._stopped(before)
        self._until(exchange, exchange.arrived, "actors", "the last weights")
        after = self._evaluation(examiner, "after")
        if self._stopping.is_set() and after is None:
            return self._stopped(before)
        if after is not None:
            course.judge(step_of(self._announced.version), after)
        return RunEnded(
            self._run.name, "done", before=before, after=after, early=early if ended.reason != "done" else ""
        )

    def _learn(self, exchange: Exchange, course: Course, me: Any) -> tuple[LearnerEnded, str]:
        """Trains to the end, by other ranks where one dies: how the learner has ended, and see `_train`."""
        ranks = exchange.parts.ranks
        restarts = Restarts(self._run, self._recipe, exchange, course, self._status, self._announced, self._stopping)
        while True:
            bound, batch_groups = ranks.begins.bound, self._recipe.learner.batch_groups
            self._admission = admission = Admission(batch_groups, bound, ranks[0].held.remote)
            self._status.phase("training")
            learning = [rank.run.remote(me, self._recipe.steps) for rank in ranks]
            if self._stopping.is_set():
                exchange.stop()
            try:
                early = self._train(exchange, learning, course, admission)
                return ray.get(learning[0]), early
            except RankDiedError as death:
                if not restarts.again(death, me):
                    return LearnerEnded(self._status.step, "stopped"), ""

    def _train(self, exchange: Exchange, learning: list[Any], course: Course, admission: Admission) -> str:
        """Serves until the learner has ended, and with it the last evaluation in the course of training. Returns why
        that was before all steps were done, "" where the recipe did not ask for it."""
        early = ""

        def ended() -> bool:
            nonlocal early
            if self._stopping.is_set():
                return have_ended(learning)
            course.look()
            if not early and (early := course.enough or self._status.spent):
                self._status.event(EARLY + early)
                exchange.stop(ended=True)
            return have_ended(learning) and not course.going_on

        self._serve(exchange, ended, admission)
        return early

    def _stopped(self, before: EvaluationSummary | None) -> RunEnded:
        return RunEnded(self._run.name, "stopped", before=before, try_again=self._try_again)

    def _can_play(self, fleet: Fleet) -> bool:
        """Whether an actor is ready. Until one is, the status says what each lacks."""
        ready = bool(fleet.ready())
        self._status.missing([] if ready else fleet.lacking())
        return ready

    def _serve(
        self,
        exchange: Exchange,
        until: Callable[[], bool],
        admission: Admission | None = None,
        deadline_s: float = math.inf,
    ) -> bool:
        """The loop: reports in, orders out, until the condition holds (True) or the deadline passes (False)."""
        deadline = time.monotonic() + deadline_s
        while not until():
            exchange.tick(None if self._stopping.is_set() else admission)
            if time.monotonic() > deadline:
                return False
            time.sleep(TICK_S)
        return True

    def _until(self, exchange: Exchange, condition: Callable[[], bool], culprit: str, what: str) -> None:
        """Serves until the condition holds or the run is stopped. Raises DeadlineError."""
        start_s = self._recipe.start_s
        if not self._serve(exchange, lambda: self._stopping.is_set() or condition(), deadline_s=start_s):
            members = exchange.parts.fleet.members.values()
            waiting = [f"{member.name} is {member.state}" for member in members if member.waiting]
            hint = ", ".join(waiting) or "see logs/ in the run"
            raise DeadlineError("the controller", culprit, start_s, f"still missing: {what}; {hint}")

    # Evaluation.

    def _before(self) -> EvaluationSummary | None:
        """The evaluation with which a resumed run began."""
        lines = map(EvaluationLine.from_json, self._run.lines("evaluations.jsonl"))
        summary = next((line.summary for line in lines if line.label == "before"), None)
        if summary is not None:
            tell_accuracy("before", summary)
        return summary

    def _evaluation(self, examiner: Examiner, label: str) -> EvaluationSummary | None:
        """Plays the test tasks on all actors with the weights now in force; writes a line of evaluations.jsonl.

        None when the run is stopped meanwhile.
        """
        self._status.phase(*PHASES[label])
        sitting = examiner.begin(label, self._announced.version)
        self._serve(examiner.exchange, lambda: self._stopping.is_set() or sitting.exam.advance())
        return None if self._stopping.is_set() else examiner.end(sitting)

    # The end.

    def _hear_out(self) -> None:
        """Takes the actors' reports once more where the run has failed: they may say why."""
        exchange = self._state
        if isinstance(exchange, Exchange):
            with contextlib.suppress(Exception):
                self._serve(exchange, lambda: False, deadline_s=HEAR_OUT_S)

    def _close(self) -> None:
        """Ends what was started, in the order in which turns flow. Nothing here keeps the rest from ending."""
        self._stopping.set()
        try:
            self._closing.close()
        except Exception:
            log.exception("a part did not end as it should")
        traces.flush()
