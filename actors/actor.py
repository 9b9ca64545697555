"""An actor: one engine, many groups at once. It plays leases, streams turns to replay, and keeps its weights fresh.

The controller and an actor speak through one call, `exchange(orders) -> report`, a few times a second: leases and
newly announced weights go in; what has ended, which weights are in force and what is wrong comes out. That call is
also the heartbeat. Playing and loading go on between calls.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import socket
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from actors import engines, rendering, rollouts, spans
from actors.clock import StateClock, state_of
from actors.config import Feedback, SamplingSettings
from actors.contract import Orders, Report, Spec
from actors.door import EpisodeFailure
from actors.engines.teacher import Teacher, TeacherBudget
from actors.environment_pool import EnvironmentPool
from actors.experience import Pool
from actors.group import GroupWriter
from actors.mixture import Pools
from actors.rendering import Renderer
from actors.rest import Rest
from actors.rollout_config import Rollout
from actors.step_judge import StepJudge
from actors.tally import foreign_ids, untemplated
from actors.transports import Superseded, Transports
from actors.weights import Proved
from protocols import metrics, metrics_page, nvml, traces
from protocols.errors import DeadlineError, SettingError, WeightsError, in_a_line, named
from protocols.log_facts import about
from protocols.turns import ASIDES, Close, Lease, Role, Turn, sampled_tokens
from protocols.weights import WeightRef

if TYPE_CHECKING:
    from replay.client import Producer

log = logging.getLogger("redraft.actor")
ROOM_S = 120.0
SLOWEST_BYTES_S = 50e6  # at which weights come, twice where they are tried by broadcast first: half of 1 Gbit/s
LOOK_S = 1.0  # between two looks at what it does, while a report waits
BROKEN_PAUSE_S = 1.0  # after a group that showed nothing: what is down is not asked at once, for task after task
NUMBER = re.compile(r"\d+")  # of a session, a port, a task: what differs in it alone is one cause
CAUSES = 1000  # of failures that are logged: an environment may word each of them differently


@dataclass(frozen=True, slots=True)
class Parts:
    """What an actor plays with, once it has started. `foreign` are ids that no answer should hold."""

    engine: Proved
    renderer: Renderer
    foreign: frozenset[int]
    environments: Pools
    producer: Producer
    teacher: Teacher | None
    pool: Pool | None = None
    judge: StepJudge | None = None


class Actor:
    """See the module. `files` is the node's NodeFiles as a Ray handle, `node` Ray's id of the node."""

    def __init__(self, spec: Spec, name: str, files: Any, node: str = ""):
        self._spec, self._name, self._files = spec, name, files
        self._transports = Transports(node, name, self._node_files)
        self._report = Report("starting", pid=os.getpid(), node=socket.gethostname(), node_id=node)
        self._tasks: set[asyncio.Task] = set()
        self._playing = self._evaluating = self._at_replay = 0
        self._share, self._tested, self._tested_tokens = -1, 0, 0
        self._loading = False
        self._rest = Rest(lambda: self._made.engine, self._needed)
        self._clock = StateClock()
        self._gpus: nvml.GpuWatch | None = None
        self._logged: set[str] = set()
        self._begun = False
        self._parts: Future[Parts] = Future()
        self._started = asyncio.Event()  # or failed to start
        self._untold = False  # there is something that the next report will tell
        self._wait = asyncio.Event()  # of the last call is over
        self._announced: deque[WeightRef] = deque(maxlen=1)  # the newest weights that no update has taken yet
        self._updating = False

    async def apply(self, func, *arguments, **named):
        """The call that Ray's FaultTolerantActorManager makes: `func(self)`, awaited when it has to be."""
        result = func(self, *arguments, **named)
        return await result if asyncio.iscoroutine(result) else result

    async def ping(self) -> str:
        return "pong"

    async def exchange(self, orders: Orders) -> Report:
        """Takes orders and reports what has changed since the last call: at once, or within the time that they give
        as soon as there is something to say or the next call comes."""
        self._wait.set()
        self._wait = asyncio.Event()
        self._report_engine_failure()
        self._look()
        if not self._begun:
            self._begun = True
            self._background(self._start())
        for lease in orders.leases:
            self._playing += 1
            self._background(self._play(lease))
        if orders.weights is not None:
            self._announced.append(orders.weights)
            if not self._updating:
                self._updating = True
                self._background(self._update(orders.trial))
        if orders.sleep and self._report.state == "ready":
            self._background(self._sleep())
        if orders.wait_s and not self._untold:
            await self._until(self._wait, orders.wait_s)
        return self._take_report()

    async def _until(self, over: asyncio.Event, limit_s: float) -> None:
        """Returns when a call need wait no more, or after the limit; looks meanwhile what the actor does."""
        until = time.monotonic() + limit_s
        while not over.is_set() and (left_s := until - time.monotonic()) > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(over.wait(), min(LOOK_S, left_s))
            self._look()

    def _tell(self) -> None:
        """There is something to say: the call that waits is answered."""
        self._untold = True
        self._wait.set()

    async def evaluate(
        self,
        tasks: list[dict],
        settings: Rollout,
        sampling: SamplingSettings,
        share: int,
        feedback: Feedback | None = None,
    ) -> list[list[Turn]]:
        """Plays tasks outside of training: the turns of each task, which go nowhere else. `feedback` stands in place of
        the environment's. Reports meanwhile say how far `share`, the caller's number of it, has come.

        A task that cannot be played ends with turns of role error; only a setting or an engine ends the others."""
        self._share, self._tested, self._tested_tokens = share, 0, 0
        await self._rest.end()
        own, most = self._spec.environments, settings.at_once
        lent = self._made.environments if feedback is None else Pools(own, feedback, most=most)
        try:
            return await asyncio.gather(*(self._evaluate(task, settings, sampling, lent.of(task)) for task in tasks))
        finally:
            if feedback is not None:
                await lent.close()

    async def close(self) -> None:
        """Ends everything and frees the engine's memory and files."""
        for task in self._tasks:
            task.cancel()
        if self._report.state == "ready":
            made = self._made
            await made.engine.abort()
            await made.engine.close()
            await made.environments.close()
            for asked in (made.teacher, made.judge):
                if asked is not None:
                    await asked.close()
            await asyncio.to_thread(made.producer.close, 5.0)
        await asyncio.to_thread(traces.flush)

    @property
    def _made(self) -> Parts:
        """Raises TimeoutError before it has started."""
        return self._parts.result(0)

    # Starting and weights.

    async def _start(self) -> None:
        try:
            self._parts.set_result(await self._build())
        except Exception as error:
            log.exception("%s cannot start", self._name)
            self._fail(f"cannot start: {in_a_line(error)}")
        else:
            self._report.state, self._report.version = "ready", self._spec.version
            self._tell()
        finally:
            self._started.set()

    async def _build(self) -> Parts:
        began = time.monotonic()
        from replay.client import Producer

        spec = self._spec
        base, number = spec.actors.metrics_port, int(self._name.rpartition("-")[2])
        self._report.metrics_port = metrics_page.serve(base + number if base else 0, "actors.metrics_port", spec.listen)
        self._gpus = nvml.watch(spec.actors.gpus)
        metrics.ENGINE_MAX_RUNNING.set(spec.actors.engine.max_running)
        how = spec.actors.engine, spec.seed, spec.version or 0
        sleeps = spec.actors.sleep
        engine = await engines.start(spec.model, spec.dtype, *how, tell=self._starting, sleeps=sleeps)
        log.info("the engine is up, after %.1f s", time.monotonic() - began)
        renderer = rendering.load(spec.model, spec.on_rewrite, spec.rollout.system)
        self._report.untemplated = untemplated(renderer, Path(spec.model))
        producer = Producer(f"{self._name}-{os.getpid()}", spec.keys)
        helping = {key: getattr(spec.rollout, key, None) for key in ("teacher", "experience", "step_judge")}
        return Parts(
            Proved(engine),
            renderer,
            foreign_ids(renderer),
            Pools(spec.environments, most=spec.rollout.at_once),
            producer,
            teacher=None if helping["teacher"] is None else Teacher(helping["teacher"]),
            pool=None if helping["experience"] is None else Pool(helping["experience"]),
            judge=None if helping["step_judge"] is None else StepJudge(helping["step_judge"]),
        )

    def _starting(self, phase: str) -> None:
        self._report.phase = phase

    async def _update(self, trial: WeightRef | None) -> None:
        """Brings the engine to the newest announced version, again while newer ones come."""
        try:
            await self._started.wait()
            if self._report.state != "ready":
                return
            async with asyncio.timeout(self._spec.actors.silence_s):
                await self._rest.end()
            if trial is not None and self._report.version is None:
                await self._try(trial)
            while self._report.state == "ready" and self._announced:
                ref = self._announced.pop()
                if ref.version == self._report.version:
                    continue
                try:
                    self._report.probe_difference = await self._try(ref)
                except Superseded:
                    continue  # the newer one comes with the next orders
                self._report.probe_limit = self._limit(ref)
                self._report.version = ref.version
                self._tell()
        except Superseded:
            pass  # the trial, of a learner that has ended: the next one comes with weights, and so with later orders
        except WeightsError as error:
            metrics.ACTOR_VERIFIED.set(0)
            self._report.weights_refused = True
            self._fail(str(error))
        except TimeoutError as error:
            self._fail(str(error) or f"the engine did not wake within {self._spec.actors.silence_s:g} s")
        except Exception as error:
            log.exception("%s cannot load weights", self._name)
            self._fail(f"cannot load weights: {in_a_line(error)}")
        finally:
            self._updating = False  # without a wait since the last look at what was announced, so that none is missed

    def _needed(self) -> bool:
        """Whether anything needs the engine to be awake."""
        return bool(self._playing or self._evaluating or self._updating)

    async def _sleep(self) -> None:
        try:
            async with asyncio.timeout(self._spec.actors.silence_s):
                await self._rest.begin()
        except Exception as error:
            log.exception("%s cannot put its engine to sleep", self._name)
            self._fail(f"cannot put its engine to sleep: {in_a_line(error)}")

    def _limit(self, ref: WeightRef) -> float:
        return self._spec.actors.probe_tolerance or ref.probe.limit

    async def _try(self, ref: WeightRef) -> float:
        limit_s, engine = self._spec.actors.silence_s + ref.size_bytes / SLOWEST_BYTES_S, self._made.engine
        try:
            async with asyncio.timeout(limit_s), self._transports.fetched(ref, engine, limit_s) as path:
                self._look()
                self._loading = True
                try:
                    return await engine.apply(ref, path, self._limit(ref))
                finally:
                    self._look()
                    self._loading = False
        except TimeoutError:
            raise TimeoutError(f"{ref.size_bytes:,} bytes of weights were not loaded within {limit_s:.0f} s") from None

    async def _node_files(self):
        """The owner of this node's weight files."""
        return self._files

    # Playing.

    async def _play(self, lease: Lease) -> None:
        began = time.monotonic()
        with about(group=lease.group.hex(), lease=lease.fencing_token):
            error = await self._play_group(lease)
        spans.play(lease, time.monotonic() - began, error, self._name)

    async def _play_group(self, lease: Lease) -> str:
        """Plays it, and reports how it ended; returns why it was not closed, "" where it was."""
        limit = self._spec.actors.lease_s
        try:
            lent, episodes = self._made.environments.of(lease.task), self._spec.rollout.episodes
            async with lent.room(episodes), asyncio.timeout(limit):
                await self._for_replay(self._made.producer.room(lease.shard, ROOM_S))
                writer = GroupWriter(lease, self._emit)
                await self._group(lease, writer, self._spec.rollout, self._spec.sampling, lent, self._count)
                if writer.broken:
                    await asyncio.sleep(BROKEN_PAUSE_S)
                kept = cast(Future, writer.close())  # what the producer promises
                await self._for_replay(asyncio.wrap_future(kept))
        except TimeoutError:
            return self._abandon(lease, f"not closed within actors.lease_s={limit:g}")
        except (DeadlineError, rollouts.Aborted) as error:
            return self._abandon(lease, str(error) or "aborted")
        except (SettingError, TeacherBudget) as error:  # every other group would end like this one
            self._report.fatal = True
            self._fail(str(error))
            return str(error)
        except Exception as error:
            log.exception("%s gives up group %s", self._name, lease.group.hex()[:8])
            return self._abandon(lease, named(error))
        else:
            self._report.closed.append((lease.group, lease.fencing_token, writer.success))
            self._tell()
            self._report.tally.group(writer)
            metrics.GROUPS.labels(end="closed").inc()
            return ""
        finally:
            self._playing -= 1

    async def _for_replay(self, wait) -> None:
        self._at_replay += 1
        try:
            await wait
        finally:
            self._at_replay -= 1

    def _emit(self, item: Turn | Close, lease: Lease, spread: float):
        if isinstance(item, Turn):
            self._report.turns += 1
            self._report.tokens += len(item.response)
            self._report.tally.turn(item, self._made.foreign)
            spans.turn(item)
        return self._made.producer.add(item, lease, spread)

    async def _group(
        self,
        lease: Lease,
        writer: GroupWriter,
        settings: Rollout,
        sampling: SamplingSettings,
        lent: EnvironmentPool,
        count=lambda role, tokens: None,
    ) -> None:
        stage = rollouts.Stage(
            self._made.engine,
            self._made.renderer,
            lent,
            writer,
            lease.task,
            lease.seed,
            settings,
            sampling,
            self._note,
            count,
            self._write(settings),
            self._helpers(settings),
        )
        await rollouts.find(settings.name)(stage)

    def _write(self, settings: Rollout):
        """What has the rollout's teacher write a message; None where it has none. Evaluations never have one."""
        teacher = self._made.teacher if getattr(settings, "teacher", None) is not None else None
        return None if teacher is None else teacher.write

    def _helpers(self, settings: Rollout) -> rollouts.Helpers:
        """What the rollout's settings ask for; those of evaluations ask for nothing."""
        told, judged = (getattr(settings, key, None) is not None for key in ("experience", "step_judge"))
        made, found = self._made, rollouts.Helpers()
        if told:
            found = replace(found, pool=made.pool, rescore=made.engine.scored)
        return replace(found, judge=made.judge) if judged else found

    async def _evaluate(
        self, task: dict, settings: Rollout, sampling: SamplingSettings, lent: EnvironmentPool
    ) -> list[Turn]:
        lease = Lease(bytes(16), 0, 0, task, self._spec.seed)
        turns: list[Turn] = []

        def keep(turn: Turn | Close, lease: Lease, spread: float) -> None:
            if isinstance(turn, Close):
                return
            turns.append(turn)
            self._tested_tokens += sampled_tokens(turn)

        writer = GroupWriter(lease, keep)
        self._evaluating += 1
        limit = self._spec.actors.lease_s
        try:
            async with lent.room(settings.episodes), asyncio.timeout(limit):
                await self._group(lease, writer, settings, sampling, lent)
        except (SettingError, TeacherBudget, rollouts.Aborted):
            raise
        except TimeoutError:
            self._break_off(writer, settings, EpisodeFailure("hung", f"not played within actors.lease_s={limit:g}"))
        except Exception as error:
            if self._made.engine.error is not None:  # the tasks are played again by another actor
                raise
            log.exception("%s cannot play the test task %s", self._name, task["id"])
            self._break_off(writer, settings, EpisodeFailure("raised", named(error)))
        finally:
            self._evaluating -= 1
        self._tested += 1
        return turns

    def _break_off(self, writer: GroupWriter, settings: Rollout, failure: EpisodeFailure) -> None:
        """Ends the episodes of a group that have not come to an end."""
        self._note(failure)
        for number in range(settings.episodes):
            if number not in writer.finished:
                writer.error(number, str(failure), failure.kind)

    def _count(self, role: Role, tokens: int) -> None:
        self._report.generations += 1
        self._report.generated_tokens += tokens
        self._report.attempts += role not in ASIDES

    # Reporting.

    def _look(self) -> None:
        """Adds the time since the last look to what the actor is doing now."""
        ready = self._report.state == "ready"
        running = self._made.engine.running if ready else 0
        playing = self._playing + self._evaluating
        self._clock.see(state_of(ready, self._loading, running, playing, self._at_replay))

    def _take_report(self) -> Report:
        report = self._report
        self._untold = False
        report.playing, report.asleep = self._playing, self._rest.asleep
        report.share, report.tested, report.tested_tokens = self._share, self._tested, self._tested_tokens
        report.gpus = () if self._gpus is None else self._gpus.newest
        if report.state == "ready":
            report.running = self._made.engine.running
            metrics.ENGINE_RUNNING.set(report.running)
        self._report = Report(
            report.state,
            report.version,
            report.probe_difference,
            report.probe_limit,
            untemplated=report.untemplated,
            phase=report.phase,
            error=report.error,
            fatal=report.fatal,
            weights_refused=report.weights_refused,
            pid=report.pid,
            node=report.node,
            node_id=report.node_id,
            address=report.address,
            metrics_port=report.metrics_port,
        )
        return report

    def _report_engine_failure(self) -> None:
        if self._report.state != "ready":
            return
        if self._made.engine.error is not None:
            self._fail(f"the engine has stopped: {in_a_line(self._made.engine.error)}")
        elif not self._made.producer.alive:
            self._fail("the replay producer's thread has stopped; see the log")

    def _fail(self, error: str) -> None:
        """Says that this actor has to be replaced, and why: the first cause counts."""
        if self._report.state != "failed":
            self._report.state, self._report.error = "failed", error
            self._tell()

    def _note(self, failure: EpisodeFailure) -> None:
        metrics.ENVIRONMENT_ERRORS.labels(kind=failure.kind).inc()
        cause = NUMBER.sub("", str(failure))
        if cause not in self._logged and len(self._logged) < CAUSES:
            self._logged.add(cause)
            log.warning("an episode ended (%s): %s; this cause is logged once, and counted", failure.kind, failure)

    def _abandon(self, lease: Lease, reason: str) -> str:
        metrics.GROUPS.labels(end="abandoned").inc()
        self._report.abandoned.append((lease.group, lease.fencing_token, reason))
        self._tell()
        return reason

    def _background(self, work) -> asyncio.Task:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
