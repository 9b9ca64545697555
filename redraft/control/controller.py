"""The controller: a named Ray actor that runs the loops of one run.

     tasks --lease--> actors --turns--> replay --groups--> learner
       ^                ^                                     |
       |                +------------- weights v+1 -----------+
       +---- admission: (eta + version + 1) * batch - (accepted + running)

It holds no turn and no weights. Twenty times a second it takes the actors' reports, counts what replay holds, and sends
each actor its orders: leases for as many groups as admission allows, and the newest weights. The learner calls it
after each step. Everything else flows past it.

    who waits             for what                      what ends the wait                     at the latest
    --------------------  ----------------------------  -------------------------------------  ------------------------
    learner (claim)       a batch of closed groups      a close row; a straggler that closes   learner.claim_deadline_s
    actor (before play)   room in replay                acknowledgements; space on the disk    120 s, then abandons
    actor (in play)       engine, environment           a completion; environment.time_limit_s actors.lease_s
    actor (new weights)   a node's file                 the object store delivers              actors.silence_s
    controller (start)    all parts                     their first report                     start_s
    controller (leases)   admission                     a step; a lost lease                   the learner's deadline
    controller (actor)    its report                    the report, or replacing the actor     actors.silence_s
    an actor that leaves  what it still plays           it ends, or others play it anew        actors.drain_s
    an actor without room resources of the cluster      a node; a smaller `redraft scale`      no limit: others play
    ranks 1..             an order of rank 0            the order                              the learner's + 300 s

When a wait runs out, the run stops with an error that names who was waited for; `redraft train --resume` goes on.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import replace

import ray
from ray.exceptions import RayTaskError

from actors import environments
from actors.actor import Orders, Report
from actors.tasks import TaskOrder
from protocols import metrics
from protocols.errors import DeadlineError, RedraftError, SettingError
from protocols.weights import WeightRef, step_of
from redraft import logs
from redraft.control import discovery, workers
from redraft.control.admission import Limit
from redraft.control.autoscale import Autoscaler
from redraft.control.evaluator import Exam, chosen
from redraft.control.fleet import Fleet
from redraft.control.leases import PLAYS, LeaseBook, admissible
from redraft.control.shards import Shards
from redraft.control.status import Status
from redraft.evaluation.measures import plays
from redraft.recipe import Recipe
from redraft.run import Run
from redraft.tracking.queue import Trackers
from replay.client import Client

log = logging.getLogger("redraft.controller")
TICK_S = 0.05
WAIT_S = 1.0  # between two looks while a part starts
PHASES = {"before": ("evaluating", "before"), "after": ("ending", "evaluation of what was learned")}
FACTS = ("label", "step", "version", "seconds")  # what a line of evaluations.jsonl says beside the figures
GIVEN_UP = 10  # groups that could not be played, before the run stops
FULL_SHARE = 0.9  # of replay.max_bytes: above it no new group is leased
BLAMELESS = ("actor", "drained")  # reasons for which a lease is lost, where the group is not to blame


class Controller:
    """One run from start to end. `run` is called once, in a thread of its own; the other methods at any time."""

    def __init__(self, run: Run, recipe: Recipe, resume: bool):
        logs.to_file(run.folder, run.name, "controller")
        self._run, self._recipe, self._resume = run, recipe, resume
        self._status = Status(run, recipe)
        self._trackers = Trackers(run, recipe, self._status.event)
        self._stopping = threading.Event()
        self._growing = threading.Lock()
        self._weights: WeightRef | None = None
        self._trial: WeightRef | None = None
        self._book: LeaseBook | None = None
        self._fleet: Fleet | None = None
        self._shards: Shards | None = None
        self._client: Client | None = None
        self._limit: Limit | None = None
        self._files: workers.Files | None = None
        self._ranks: list = []
        self._serving: list[discovery.Process] = []  # the ranks
        self._learning: list = []
        actors = recipe.actors
        self._size = actors.count
        self._autoscaler = Autoscaler(actors.autoscale, actors.count) if actors.autoscale else None
        self._reported: deque[tuple[float, dict]] = deque()  # steps that the autoscaler has not seen

    def run(self) -> dict:
        """Starts the parts, trains, evaluates before and after; returns the summary, as written to the run folder."""
        summary = {"name": self._run.name, "state": "failed", "error": ""}
        try:
            self._start()
            summary |= self._train_and_evaluate()
        except Exception as error:  # whatever ends a run is said in its summary
            cause = error.cause if isinstance(error, RayTaskError) else error
            summary["error"] = " ".join(str(cause).split())
            log.error("the run stops: %s", summary["error"], exc_info=not isinstance(cause, RedraftError))
            self._hear_out()
        finally:
            self._close()
        self._status.look()
        summary |= {
            "steps": self._status.step,
            "seconds": round(self._status.elapsed_s, 1),
            "findings": self._status.findings,
            **self._status.made,
            "trained_parameters": self._status.trained,
        }
        self._run.write("summary.json", summary)
        self._status.phase(summary["state"], summary["error"])
        self._trackers.close(summary["state"])
        return summary

    # Called by the learner, the command line and the live view.

    def announce(self, ref: WeightRef) -> None:
        """New weights: actors get them with their next orders."""
        self._status.published(ref)
        self._weights = ref

    def announce_trial(self, ref: WeightRef) -> None:
        """Perturbed weights: an actor must follow them before it may play."""
        self._trial = ref

    def step_done(self, report: dict) -> None:
        """The learner's line about one step."""
        self._trackers.step(self._status.step_done(report))
        if self._autoscaler is not None:
            self._reported.append((time.monotonic(), report))

    def cursor(self) -> dict:
        """Where in the order of tasks a run resumed from now would go on."""
        return self._book.state if self._book else {"position": 0}

    def add_shard(self) -> int:
        """One more replay service, for groups that are not leased yet; nothing restarts. Returns how many there are.

        Raises SettingError before training began.
        """
        if self._book is None or self._stopping.is_set():
            raise SettingError("RUN", "is not training", "Wait until it trains")
        with self._growing:
            self._shards.grow(self._recipe.start_s)
            shards = self._shards.endpoints
            self._client.grow(shards)
            self._wait(self._ranks[0].grow.remote(shards), "learner rank 0", self._recipe.start_s)
            self._shards.open()
        return len(shards)

    def scale(self, count: int) -> int:
        """How many actors there should be from now on; returns how many there should be before. Raises SettingError."""
        if self._fleet is None or self._stopping.is_set():
            raise SettingError("RUN", "has no actors now", "Wait until it trains")
        if self._autoscaler is not None:
            raise SettingError("RUN", "sizes itself, by actors.autoscale", "Resume it with other bounds, or without")
        before, self._size = self._size, count
        return before

    def status(self) -> dict:
        return self._status.snapshot()

    def stop(self) -> None:
        """Finish the step, write a checkpoint, end all parts."""
        if not self._stopping.is_set():
            self._stopping.set()
            self._status.phase("stopping", "finishing the step and writing a checkpoint")
            for rank in self._ranks:
                rank.stop.remote()

    # The run.

    def _start(self) -> None:
        """Starts every part. Raises SettingError, or DeadlineError naming the part that did not come up."""
        recipe, run = self._recipe, self._run
        self._status.phase("starting", "tasks")
        tasks = environments.tasks(recipe.environment, recipe.data, "train")
        self._tests = environments.tasks(recipe.environment, recipe.data, "test")
        self._status.phase("starting", "replay, learner, actors")
        self._shards = Shards(run, recipe)
        self._serve_metrics()
        self._shards.start()
        self._files = workers.Files(run)
        self._ranks = workers.start_ranks(run, recipe, self._shards.endpoints, self._shards.keys)
        maker = workers.actor_maker(run, recipe, self._shards.keys)
        self._fleet = Fleet(maker, recipe.actors, recipe.start_s, self._lost)
        for number in self._fleet.idle():
            self._fleet.send(number, Orders())  # so that their engines start while the learner does
        self._status.tasks(tasks, self._tests)
        self._shards.wait(recipe.start_s)
        self._client = Client(self._shards.endpoints, "controller", self._shards.keys)
        master = self._wait(self._ranks[0].address.remote(), "learner rank 0", recipe.start_s)
        states = [rank.setup.remote(master, self._resume) for rank in self._ranks]
        self._wait_for_all({state: f"learner rank {number}" for number, state in enumerate(states)}, recipe.start_s)
        state = ray.get(states[0])
        self._status.started(state["step"], state["trained"])
        listen = recipe.metrics.listen(self._run.cluster)
        for number, rank in enumerate(self._ranks):
            where = self._wait(rank.serves.remote(listen), f"learner rank {number}", recipe.start_s)
            self._serving.append(("learner", f"learner-{number}", *where))
        self._trackers.start(state["step"])
        self._book = LeaseBook(
            TaskOrder(tasks, recipe.seed, recipe.curriculum, state["cursor"]),
            run.id,
            recipe.seed,
            state["cursor"].get("position", 0),
            state["incarnation"],
            self._client.known,
            self._shards.of,
        )
        log.info("started: step %d, incarnation %d, %d training tasks", state["step"], state["incarnation"], len(tasks))

    def _serve_metrics(self) -> None:
        """Begins to serve this process's metrics, and the list of all processes that do."""
        for part in ("actor", "replay"):
            metrics.RESTARTS.labels(part=part)
        for reason in ("actor", "abandoned", "expired"):
            metrics.LEASES_LOST.labels(reason=reason)
        address = ray.util.get_node_ip_address() if self._run.cluster else None
        url = discovery.serve(self._run.name, self._recipe.metrics, address, self._processes)
        self._status.discovery(url)
        replace(self._run, sd=url).save()

    def _processes(self) -> Iterator[discovery.Process]:
        """All others that serve metrics now."""
        yield from self._serving
        for shard, where in list(self._shards.served.items()):
            yield "replay", f"replay-{shard}", *where
        for member in list(self._fleet.members.values()) if self._fleet else ():
            if member.report.metrics_port:
                yield "actor", member.name, member.report.address, member.report.metrics_port
        for node in ray.nodes():
            if node["Alive"] and node["MetricsExportPort"]:
                name = f"ray-{node['NodeManagerAddress']}"
                yield "ray", name, node["NodeManagerAddress"], node["MetricsExportPort"]

    def _train_and_evaluate(self) -> dict:
        me = ray.get_runtime_context().current_actor
        for rank in [rank.announce.remote(me) for rank in self._ranks]:
            self._wait(rank, "learner", self._recipe.start_s)
        self._fleet.begin()
        self._until(self._fleet_is_ready, "actors", "an engine with verified weights")
        before = self._before() or self._evaluation("before")
        if self._stopping.is_set():
            return {"state": "stopped", "before": before}
        self._limit = Limit(self._ranks[0].held.remote)
        self._status.phase("training")
        self._learning = [rank.run.remote(me, self._recipe.steps) for rank in self._ranks]
        self._serve(self._learner_ended, leasing=True)
        if ray.get(self._learning[0])["reason"] != "done":
            return {"state": "stopped", "before": before}
        self._until(self._fleet_is_newest, "actors", "the last weights")
        return {"state": "done", "before": before, "after": self._evaluation("after")}

    def _serve(self, until, leasing: bool = False, deadline_s: float | None = None) -> bool:
        """The loop: reports in, orders out, until the condition holds (True) or the deadline passes (False)."""
        began = time.monotonic()
        while not until():
            self._tick(leasing)
            if deadline_s is not None and time.monotonic() - began > deadline_s:
                return False
            time.sleep(TICK_S)
        return True

    def _tick(self, leasing: bool) -> None:
        self._files.look(self._fleet)
        for number, report in self._fleet.receive():
            self._take(number, report)
        self._resize()
        if restarted := self._shards.look():
            metrics.RESTARTS.labels(part="replay").inc(restarted)
        room = 0
        if leasing and not self._stopping.is_set():
            room, limit = self._room()
            self._limit.note(limit)
        self._give_orders(room)

    def _take(self, number: int, report: Report) -> None:
        """What one actor reports."""
        if self._book is None:
            return
        self._book.closed(report.closed)
        for group, lease, why in report.abandoned:
            self._abandon(group, lease, why)
        self._status.played(number, report)

    def _lost(self, number: int, why: str) -> None:
        """An actor is gone: its leases are given again."""
        self._status.replaced(number, why)
        metrics.RESTARTS.labels(part="actor").inc()
        for group, lease in self._book.of(number) if self._book else ():
            self._abandon(group, lease, why, "actor")

    def _resize(self) -> None:
        """Brings the fleet to its size. Who leaves has its leases until they end; then, or after a while, it goes."""
        while self._reported:
            self._size = self._autoscaler.step(*self._reported.popleft())
        if self._size != self._fleet.target:
            self._status.event(f"{self._size} actors asked for, {self._fleet.target} before")
            self._fleet.resize(self._size)
        for number in self._fleet.leaving():
            member = self._fleet.members[number]
            for group, lease in self._book.of(number) if member.late else ():
                self._abandon(group, lease, "its actor left", "drained")
            if not member.evaluating and not self._book.of(number):
                self._fleet.remove(number)
                self._files.forget(member.name)

    def _abandon(self, group: bytes, number: int, why: str, reason: str = "abandoned") -> None:
        """Takes a lease back and has replay drop its rows. Raises RedraftError when groups fail again and again."""
        blamed = reason not in BLAMELESS
        lease = self._book.lost(group, number, blamed)
        if lease is None:
            return
        metrics.LEASES_LOST.labels(reason=reason).inc()
        if blamed:
            self._status.event(f"group {group.hex()[:8]} abandoned: {why}", once=why)
        self._client.abandon(group, lease.number, lease.shard)
        if self._book.given_up >= GIVEN_UP:
            raise RedraftError(f"{GIVEN_UP} groups could not be played, in {PLAYS} tries each; the last: {why}")

    def _room(self) -> tuple[int, str]:
        """How many groups may be leased now, derived from what replay holds, never counted here; and what limits it
        (see redraft.control.admission)."""
        limit_s = self._recipe.actors.lease_s + self._recipe.actors.silence_s
        for group, lease in self._book.overdue(time.monotonic() - limit_s):
            self._abandon(group, lease, f"no word of it for {limit_s:.0f} s", "expired")
        learner = self._recipe.learner
        ready = self._fleet.ready()
        if not ready:
            return 0, "actors"
        stats = self._client.stats()
        self._status.replay(stats)
        played = self._client.known([bytes.fromhex(torn[0]) for torn in stats["torn"]]) if stats["torn"] else ()
        for group, lease, position, shard in stats["torn"]:
            if bytes.fromhex(group) in played:  # elsewhere, since a shard joined
                continue
            if self._book.again(bytes.fromhex(group), lease, position, shard):
                self._status.event(f"group {group[:8]} was torn on the disk; it is played again")
        if stats["full"]:
            self._status.event(
                "replay: the disk of the run folder is full; nothing is leased until there is room", once="full"
            )
        if stats["full"] or stats["fullest"] > FULL_SHARE:
            return 0, "replay"
        version = min(step_of(self._fleet.members[number].report.version) for number in ready)
        held = stats["claimed"] + stats["ready"]
        room = admissible(
            learner.max_staleness, version, stats["step"], learner.batch_groups, held, len(self._book.live)
        )
        return room, "none" if room else "staleness"

    def _give_orders(self, room: int) -> None:
        """Sends every idle actor its orders; the room is shared out, the least busy first."""
        busy, ready = self._book.busy(), set(self._fleet.ready())
        idle = sorted(self._fleet.idle(), key=busy.__getitem__)
        left = len(ready.intersection(idle))
        for number in idle:
            member, leases = self._fleet.members[number], []
            if number in ready and room:
                share = math.ceil(room / left)
                leases = self._book.give(
                    number, min(share, self._recipe.actors.groups - busy[number]), time.monotonic()
                )
                room -= len(leases)
                busy[number] += len(leases)
            left -= number in ready
            new = self._weights if self._weights and member.report.version != self._weights.version else None
            trial = self._trial if new and member.report.version is None else None
            self._fleet.send(number, Orders(tuple(leases), new, trial))
        if self._autoscaler is not None:
            without = sum(not busy[number] for number in ready) if not room else 0
            self._autoscaler.look(time.monotonic(), without, self._fleet.settled)
        self._status.fleet(self._fleet.members, self._fleet.target, len(self._book.live))

    # Conditions.

    def _learner_ended(self) -> bool:
        """True when all ranks have returned; raises what one of them raised."""
        ended, running = ray.wait(self._learning, num_returns=len(self._learning), timeout=0)
        for result in ended:
            ray.get(result)
        return not running

    def _fleet_is_ready(self) -> bool:
        return bool(self._fleet.ready()) or self._stopping.is_set()

    def _fleet_is_newest(self) -> bool:
        if self._stopping.is_set():
            return True
        ready = self._fleet.ready()
        return bool(ready) and all(self._fleet.members[n].report.version == self._weights.version for n in ready)

    def _until(self, condition, culprit: str, what: str) -> None:
        if not self._serve(condition, deadline_s=self._recipe.start_s):
            waiting = [f"{member.name} is {member.state}" for member in self._fleet.members.values() if member.waiting]
            hint = ", ".join(waiting) or "see logs/ in the run"
            raise DeadlineError("the controller", culprit, self._recipe.start_s, f"{what} did not come; {hint}")

    def _wait(self, reference, culprit: str, limit_s: float):
        self._wait_for_all({reference: culprit}, limit_s)
        return ray.get(reference)

    def _wait_for_all(self, culprits: dict, limit_s: float) -> None:
        """Until all references have come, in any order: one that fails may be what the others wait for."""
        waiting, deadline = dict(culprits), time.monotonic() + limit_s
        while waiting:
            ended = ray.wait(list(waiting), timeout=WAIT_S)[0]
            for reference in ended:
                ray.get(reference)
                del waiting[reference]
            self._files.look(self._fleet)
            if waiting and not ended and time.monotonic() > deadline:
                culprit = next(iter(waiting.values()))
                raise DeadlineError("the controller", culprit, limit_s, "it did not start; see logs/ in the run")

    # Evaluation.

    def _before(self) -> dict | None:
        """The evaluation with which a resumed run began."""
        lines = [line for line in self._run.lines("evaluations.jsonl") if line["label"] == "before"]
        return {key: value for key, value in lines[0].items() if key not in FACTS} if lines else None

    def _evaluation(self, label: str) -> dict | None:
        """Plays the test tasks on all actors with the weights now in force; writes a line of evaluations.jsonl.

        None when the run is stopped meanwhile.
        """
        began = time.monotonic()
        self._status.phase(*PHASES[label])
        recipe = self._recipe
        passes = plays(recipe.evaluation, recipe.rollout, recipe.sampling)
        exam = Exam(chosen(self._tests, recipe.evaluation.n), passes, self._fleet, self._status)
        self._serve(lambda: self._stopping.is_set() or exam.advance())
        if self._stopping.is_set():
            return None
        line = exam.summary()
        facts = {"label": label, "step": self._status.step, "version": self._weights.version}
        if recipe.learner.record.groups:
            exam.record(self._run.folder, facts)
        self._run.append("evaluations.jsonl", facts | {"seconds": round(time.monotonic() - began, 1)} | line)
        self._trackers.evaluation(self._status.step, line)
        self._status.evaluated(line)
        return line

    # The end.

    def _hear_out(self) -> None:
        """Takes the actors' reports once more where the run has failed: they may say why."""
        if self._fleet is not None and self._book is not None:
            with contextlib.suppress(Exception):
                self._serve(lambda: False, deadline_s=WAIT_S)

    def _close(self) -> None:
        """Ends what was started, in the order in which turns flow. Nothing here may keep the rest from ending."""
        self._stopping.set()
        if self._fleet is not None:
            self._fleet.close(5.0)
        for rank in self._ranks:
            ray.kill(rank)
        if self._files is not None:
            self._files.close(5.0)
        if self._client is not None:
            self._client.close()
        if self._shards is not None:
            self._shards.close()
