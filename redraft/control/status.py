"""What is known about a run while it goes on: for the live view, `redraft status`, and metrics.jsonl."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from actors.contract import Report
from actors.tally import Tally
from protocols import log_facts, metrics
from protocols.evaluation import AnswerFigures, EvaluationSummary, Figure, PassFigures
from protocols.nvml import Gpu
from protocols.replay_stats import ReplayStats
from protocols.reports import ActorStatus, Finding, GpuStatus, RunStatus, StepLine, StepReport
from protocols.weights import WeightRef, step_of
from redraft import logs, records
from redraft.control.fleet import Member
from redraft.diagnosis.causes import CAUSES as FINDINGS
from redraft.diagnosis.causes import Diagnosis
from redraft.recipe import Recipe
from redraft.run import Run, newest_step

log = logging.getLogger("redraft.controller")
EVENTS = 50
UNWRITTEN = 10_000  # lines that wait for room on the disk; beyond that the oldest are lost
HISTORY = 200
CAUSES = 1000  # of events that are told once each: groups may be abandoned for causes that are all worded differently
LOOK_S = 1.0  # between two looks for causes why the run cannot learn, and at what changes as slowly
MISSING = 4  # parts that are named while the run waits for more
MADE = ("generations", "attempts", "generated_tokens")


class Status:
    """Safe to use from any thread. Every step becomes a line of metrics.jsonl."""

    def __init__(self, run: Run, recipe: Recipe):
        self._run, self._lock = run, threading.Lock()
        earlier = [StepLine.from_json(line) for line in run.lines("metrics.jsonl")]  # of a run that is resumed
        self._written = {line.report.step for line in records.steps(earlier)}
        self._last_step = time.monotonic()
        self._began = self._last_step - (earlier[-1].time_s if earlier else 0.0)
        self._since: Counter[str] = Counter()  # what actors made since the last step
        self._made = Counter({key: sum(getattr(line, key) for line in earlier) for key in MADE})
        self._stepped, self._budget = self._made["generated_tokens"], recipe.sampled_tokens
        self._said: set[str] = set()
        self._events: deque[str] = deque(maxlen=EVENTS)
        self._rewards: deque[float] = deque(maxlen=HISTORY)
        self._lora, self._stop_s = recipe.model.lora, recipe.stop_s
        self._rank_gpus: Mapping[str, tuple[Gpu, ...]] = {}
        self._newest = 0  # step of the weights that were published last
        self._gpus, self._held_s = (recipe.learner.gpus * recipe.learner.ranks, recipe.actors.gpus), self._last_step
        self._now = RunStatus(run.name, recipe.steps, step=newest_step(run.folder) or 0)  # until all parts are up
        self.last_event = ""
        self._diagnosis, self._looked_s = Diagnosis(recipe), -LOOK_S
        self._ended: list[Finding] = []
        self._files, self._unwritten = threading.Lock(), deque[tuple[str, Mapping[str, Any]]](maxlen=UNWRITTEN)

    @property
    def elapsed_s(self) -> float:
        """Seconds since the run began; a resumed run goes on counting where its last step ended."""
        return time.monotonic() - self._began

    @property
    def trained(self) -> int | None:
        """How many parameters are trained, once that is known."""
        return self._now.trained_parameters

    @property
    def step(self) -> int:
        return self._now.step

    def phase(self, state: str, detail: str = "") -> None:
        metrics.PHASE.labels(phase=self._now.state).set(0)
        metrics.PHASE.labels(phase=state).set(1)
        rates = {"tokens_per_s": None, "turns_per_s": None}  # those known are of the phase before
        with self._lock:
            self._now = replace(self._now, state=state, detail=detail, progress=None, **rates)
            self._last_step = time.monotonic()
        log.info("%s%s", state, f": {detail}" if detail else "")

    def missing(self, parts: Sequence[str]) -> None:
        """Parts for which the start of the run waits."""
        more = f" and {len(parts) - MISSING} more" if len(parts) > MISSING else ""
        detail = f"waiting for {', '.join(parts[:MISSING])}{more}" if parts else ""
        if detail == self._now.detail:
            return
        self._update(detail=detail)
        if detail:
            log.info("%s", detail)

    def progress(self, done: int, total: int, tokens_per_s: float | None = None) -> None:
        """Of an evaluation: tasks that have ended, of how many, and how fast all actors sample for it."""
        speed = {} if tokens_per_s is None else {"tokens_per_s": round(tokens_per_s, 1)}
        self._update(progress=(done, total), **speed)

    def about(self, detail: str) -> None:
        """What goes on beside training, for people, or what it has come to; no evaluation is played any more, or one
        begins."""
        self._update(detail=detail, progress=None)

    def keeps(self, kept: bool) -> None:
        """Whether actors keep their weights for now, since they are evaluated."""
        with self._lock:
            self._diagnosis.kept = kept

    def discovery(self, url: str) -> None:
        """Where Prometheus finds the processes."""
        self._update(sd=url)

    def started(self, step: int, trained: int, last: StepReport | None = None) -> None:
        """All parts are up, `step` steps were done before, so many parameters are `trained`. The checkpoint may hold
        a step whose report, `last`, no controller lived to write: it is written now."""
        self._written = {written for written in self._written if written <= step}
        if last is not None and step not in self._written:
            self.step_done(last)
        adapter = f"LoRA of rank {self._lora.rank}, {trained:,} parameters" if self._lora is not None else ""
        metrics.STEPS_ASKED.set(self._now.steps)
        metrics.TRAINED.set(trained)
        self._held_s = time.monotonic()
        self._update(step=step, trained_parameters=trained, adapter=adapter)

    def restarting(self, why: str, checkpoint: int | None, in_a_row: int, most: int) -> None:
        """A rank has died, and all are started anew: said, counted, and a line of restarts.jsonl."""
        behind = (
            f"the checkpoint of step {checkpoint}" if checkpoint is not None else "the start: there is no checkpoint"
        )
        self.phase("restarting")
        self.event(
            f"the learner goes back from step {self.step} to {behind}, restart {in_a_row} of {most} in a row: {why}"
        )
        metrics.RESTARTS.labels(process="learner").inc()
        line = {"at": time.time(), "why": why, "checkpoint": checkpoint, "pause_s": 0.0, "part": "learner"}
        self._write("restarts.jsonl", line)

    def restarted(self, step: int, trained: int, last: StepReport | None) -> None:
        """The ranks are up again, and go on after `step`; see `started`."""
        with self._lock:
            self._diagnosis.restarted()
        self.started(step, trained, last)

    def ends_at(self, step: int) -> None:
        """The run ends with the checkpoint of this step: those after it, which were told, are lost."""
        self._update(step=step)

    def event(self, text: str, once: str | None = None) -> None:
        """Something that a person should know, logged; with `once`, the first time for that cause only."""
        text = logs.printable(text)
        if once is not None and (once in self._said or len(self._said) >= CAUSES):
            return
        if once is not None:
            self._said.add(once)
        log.warning("%s", text)
        self.last_event = text
        self._events.append(f"{time.strftime('%H:%M:%S')} {text}")

    def replaced(self, actor: int, why: str) -> None:
        self.event(f"actor-{actor} replaced: {why}")

    @property
    def generations(self) -> int:
        """Responses sampled for training from the run's beginning, also what no turn keeps."""
        return self._made["generations"]

    @property
    def attempts(self) -> int:
        """Those of them that were no reflections."""
        return self._made["attempts"]

    @property
    def spent(self) -> str:
        """Why training is to end by what was sampled up to the last step; "" where it is to go on."""
        if self._budget is None or self._stepped < self._budget:
            return ""
        return f"{self._stepped:,} tokens were sampled (sampled_tokens={self._budget})"

    def tasks(self, training: Sequence[dict], tests: Sequence[dict]) -> None:
        with self._lock:
            self._diagnosis.tasks(training, tests)

    def published(self, ref: WeightRef) -> None:
        with self._lock:
            self._newest = step_of(ref.version)
            self._diagnosis.published(ref.version, ref.digest, ref.probe.logprobs, self.elapsed_s)

    def evaluated(self, tally: Tally) -> None:
        """What broke in an evaluation."""
        with self._lock:
            self._diagnosis.evaluated(tally)

    def played(self, actor: int, report: Report) -> None:
        """What an actor made since its last report."""
        with self._lock:
            self._diagnosis.played(f"actor-{actor}", report)
            since = Counter({key: getattr(report, key) for key in ("turns", "tokens", *MADE)})
            self._since += since
            self._made += since

    def replay(self, stats: ReplayStats) -> None:
        self._update(replay=stats)

    def gpus(self, of_ranks: Mapping[str, tuple[Gpu, ...]]) -> None:
        """What ranks say of theirs; actors report it themselves."""
        self._rank_gpus = of_ranks

    def fleet(self, members: Mapping[int, Member], target: int, leases: int) -> None:
        metrics.LEASES.set(leases)
        metrics.ACTORS_TARGET.set(target)
        states = Counter(_metric_state(member) for member in members.values())
        for state in ("starting", "waiting", "ready", "draining"):
            metrics.ACTORS.labels(state=state).set(states[state])
        self._tell_gpus(sum(not member.waiting for member in members.values()))
        found = {**self._rank_gpus, **{member.name: member.report.gpus for member in members.values()}}
        gpus = tuple(_gpu(name, gpu) for name, several in found.items() for gpu in several)
        self._update(leases=leases, actors_target=target, actors=tuple(map(_actor, members.values())), gpus=gpus)
        with self._lock:
            self._diagnosis.fleet({member.name: member.report for member in members.values()}, self.elapsed_s)
        if self.elapsed_s - self._looked_s >= LOOK_S:
            self._tell_behind(members)
            self.look()

    def _tell_behind(self, members: Mapping[int, Member]) -> None:
        """How old the weights of each actor are, by what this process knows now of both."""
        versions = {member.name: member.report.version for member in members.values()}
        behind = {
            name: max(0, self._newest - step_of(version)) for name, version in versions.items() if version is not None
        }
        metrics.ACTORS_BEHIND.set_only(behind)

    def _tell_gpus(self, actors: int) -> None:
        """What ranks, and so many actors, hold, and what they have held since the last time."""
        (of_ranks, of_actor), now = self._gpus, time.monotonic()
        held = of_ranks + of_actor * actors
        metrics.GPUS_HELD.set(held)
        metrics.GPU_SECONDS.inc(held * (now - self._held_s))
        self._held_s = now

    def look(self) -> None:
        """Says which causes of a run that cannot learn have been found since the last look, and which are gone."""
        with self._lock:
            self._looked_s = self.elapsed_s
            begun, ended = self._diagnosis.look(self._looked_s)
            lasting = tuple(self._diagnosis.findings.values())
            self._now = replace(self._now, findings=lasting)
            self._ended += ended
        metrics.tell_disk(self._run.folder)
        self._write_again()
        causes = {finding.cause for finding in lasting}
        for cause in FINDINGS:
            metrics.FINDING.labels(cause=cause).set(cause in causes)
        for finding in begun:
            self._note(finding, finding.text)
        for finding in ended:
            self._note(finding, f"no longer: {finding.problem}")

    def _note(self, finding: Finding, text: str) -> None:
        self.event(text)
        self._write("findings.jsonl", finding.to_json())

    @property
    def findings(self) -> tuple[Finding, ...]:
        """All of this incarnation of the run, in the order in which they began; those that last have no `until_s`."""
        found = [*self._ended, *self._diagnosis.findings.values()]
        return tuple(sorted(found, key=lambda finding: finding.since_s))

    def step_done(self, report: StepReport) -> StepLine:
        """The learner's report of one step: kept, and written as a line of metrics.jsonl, which is returned."""
        with self._lock:
            now = time.monotonic()
            seconds = max(now - self._last_step, 1e-9)
            line = StepLine(
                report,
                time_s=round(self.elapsed_s, 3),
                tokens_per_s=round(self._since["tokens"] / seconds, 1),
                turns_per_s=round(self._since["turns"] / seconds, 1),
                generations=self._since["generations"],
                attempts=self._since["attempts"],
                generated_tokens=self._since["generated_tokens"],
                actors=len(self._now.actors),
                leases=self._now.leases,
            )
            self._last_step, self._since = now, Counter()
            self._stepped += line.generated_tokens
            if report.batch.reward is not None:
                self._rewards.append(report.batch.reward)
            rates = {"tokens_per_s": line.tokens_per_s, "turns_per_s": line.turns_per_s}
            waits = {"learner": _waits(report)}
            self._now = replace(self._now, step=report.step, last=line, waits=waits, **rates)
            self._diagnosis.stepped(report)
        self._written.add(report.step)
        log_facts.now(step=report.step)
        self._write("metrics.jsonl", line.to_json())
        self._tell_slow_stop(report.seconds)
        return line

    def _tell_slow_stop(self, seconds: Mapping[str, float]) -> None:
        """Says once where a run that is told to end would be killed before its checkpoint is whole, by what the last
        step and its checkpoint took."""
        checkpoint_s = seconds.get("checkpoint", 0.0)
        step_s = sum(seconds.get(phase, 0.0) for phase in ("train", "commit", "gather", "publish"))
        if checkpoint_s and step_s + checkpoint_s > self._stop_s:
            self.event(
                f"a step takes {step_s:.1f} s and a checkpoint {checkpoint_s:.1f} s, together more than "
                f"stop_s={self._stop_s:g}: told to end, the run would be killed before its checkpoint is whole, and "
                "lose the steps since the one before. Raise stop_s, and the grace of who sends SIGTERM, or keep the "
                "run on a faster disk",
                once="stop_s",
            )

    def _update(self, **facts: Any) -> None:
        with self._lock:
            self._now = replace(self._now, **facts)

    def _write(self, file: str, line: Mapping[str, Any]) -> None:
        """Adds a line to a file of the run. What the disk does not take is written when it does, in its order."""
        self._unwritten.append((file, line))
        self._write_again()

    def _write_again(self) -> None:
        with self._files:
            while self._unwritten:
                file, line = self._unwritten[0]
                try:
                    self._run.append(file, line)
                except OSError as error:
                    self.event(f"{file} cannot be written until there is room: {error}", once=file)
                    return
                self._unwritten.popleft()

    def snapshot(self) -> RunStatus:
        """Everything, for people; see redraft.watch.live."""
        with self._lock:
            lists = {"reward_history": tuple(self._rewards), "events": tuple(self._events)}
            return replace(self._now, elapsed_s=self.elapsed_s, **lists)


def tell_accuracy(occasion: str, summary: EvaluationSummary) -> None:
    """Exports what was solved of the test tasks: at each turn, or by episodes of many actions, as turn 0.
    Of several environments also what was solved of each."""
    for index, figure in enumerate(_solved(summary.sampled)):
        exported = ((metrics.EVALUATION_ACCURACY, figure.value), (metrics.EVALUATION_ERROR, figure.error))
        for metric, value in exported:
            metric.labels(occasion=occasion, index=str(index)).set(math.nan if value is None else value)
    for label, own in summary.environments.items():
        value = _solved(own.figures)[-1].value
        told = metrics.EVALUATION_OF_ENVIRONMENT.labels(occasion=occasion, environment=label)
        told.set(math.nan if value is None else value)


def _solved(figures: PassFigures) -> tuple[Figure, ...]:
    """At each turn, or by episodes of many actions."""
    return figures.accuracy_by_turn if isinstance(figures, AnswerFigures) else (figures.success,)


def _actor(member: Member) -> ActorStatus:
    report = member.report
    return ActorStatus(
        name=member.name,
        state=member.state,
        version=report.version,
        playing=report.playing,
        running=report.running,
        pid=report.pid,
        node=report.node,
        metrics_port=report.metrics_port,
        probe_difference=report.probe_difference,
        probe_limit=report.probe_limit,
    )


def _gpu(name: str, gpu: Gpu) -> GpuStatus:
    return GpuStatus(name, gpu.number, gpu.busy, gpu.used_bytes, gpu.bytes, gpu.watts)


def _metric_state(member: Member) -> str:
    if member.draining is not None:
        return "draining"
    return "ready" if member.ready else "waiting" if member.waiting else "starting"


def _waits(report: StepReport) -> str:
    """What the learner waited for in its last step, in words."""
    waited_s = report.seconds.get("wait", 0.0)
    return f"{report.wait_reason} {waited_s:.1f} s/step" if waited_s >= 0.05 else "nothing"
