"""What is known about a run while it goes on: for the live view, `redraft status`, and metrics.jsonl."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Sequence

from actors.actor import Report
from protocols import metrics
from protocols.weights import WeightRef
from redraft import logs
from redraft.diagnosis.causes import CAUSES as FINDINGS
from redraft.diagnosis.causes import Diagnosis, Finding
from redraft.recipe import Recipe
from redraft.run import Run

log = logging.getLogger("redraft.controller")
EVENTS = 50
HISTORY = 200
CAUSES = 1000  # of events that are told once each: groups may be abandoned for causes that are all worded differently
LOOK_S = 1.0  # between two looks for causes why the run cannot learn
MADE = ("generations", "attempts")


class Status:
    """Safe to use from any thread. Every step becomes a line of metrics.jsonl."""

    def __init__(self, run: Run, recipe: Recipe):
        self._run, self._lock = run, threading.Lock()
        earlier = run.lines("metrics.jsonl")  # of a run that is resumed
        self._last_step = time.monotonic()
        self._began = self._last_step - (earlier[-1]["time_s"] if earlier else 0.0)
        self._since: Counter[str] = Counter()  # what actors made since the last step
        self._made = Counter({key: sum(line.get(key, 0) for line in earlier) for key in MADE})
        self._said: set[str] = set()
        self._events: deque[str] = deque(maxlen=EVENTS)
        self._rewards: deque[float] = deque(maxlen=HISTORY)
        self._adapter = recipe.model.lora
        self._facts: dict = {"run": run.name, "steps": recipe.steps, "step": 0, "state": "starting", "detail": ""}
        self.last_event = ""
        self._diagnosis, self._looked_s = Diagnosis(recipe), -LOOK_S
        self._ended: list[Finding] = []

    @property
    def elapsed_s(self) -> float:
        """Seconds since the run began; a resumed run goes on counting where its last step ended."""
        return time.monotonic() - self._began

    @property
    def trained(self) -> int | None:
        """How many parameters are trained, once that is known."""
        return self._facts.get("trained_parameters")

    @property
    def step(self) -> int:
        return self._facts["step"]

    def phase(self, state: str, detail: str = "") -> None:
        metrics.PHASE.labels(phase=self._facts["state"]).set(0)
        metrics.PHASE.labels(phase=state).set(1)
        with self._lock:
            self._facts |= {"state": state, "detail": detail, "progress": None}
            for rate in ("tokens_per_s", "turns_per_s"):  # of the phase before
                self._facts.pop(rate, None)
            self._last_step = time.monotonic()
        log.info("%s%s", state, f": {detail}" if detail else "")

    def progress(self, done: int, total: int, tokens_per_s: float | None = None) -> None:
        """Of an evaluation: tasks that have ended, of how many, and how fast all actors sample for it."""
        with self._lock:
            self._facts["progress"] = [done, total]
            if tokens_per_s is not None:
                self._facts["tokens_per_s"] = round(tokens_per_s, 1)

    def discovery(self, url: str) -> None:
        """Where Prometheus finds the processes."""
        with self._lock:
            self._facts["sd"] = url

    def started(self, step: int, trained: int) -> None:
        """All parts are up, `step` steps were done before, and so many parameters are `trained`."""
        with self._lock:
            self._facts |= {"step": step, "trained_parameters": trained}
            if self._adapter is not None:
                self._facts["adapter"] = f"LoRA of rank {self._adapter.rank}, {trained:,} parameters"

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
    def made(self) -> dict[str, int]:
        """Sampled for training from the run's beginning, also what no turn keeps: all `generations`, and those of them
        that were `attempts` (no reflections)."""
        return {key: self._made[key] for key in MADE}

    def tasks(self, training: Sequence[dict], tests: Sequence[dict]) -> None:
        with self._lock:
            self._diagnosis.tasks(training, tests)

    def published(self, ref: WeightRef) -> None:
        with self._lock:
            self._diagnosis.published(ref.version, ref.digest, ref.probe.logprobs, self.elapsed_s)

    def evaluated(self, figures: dict) -> None:
        with self._lock:
            self._diagnosis.evaluated(figures)

    def played(self, actor: int, report: Report) -> None:
        """What an actor made since its last report."""
        with self._lock:
            self._diagnosis.played(f"actor-{actor}", report)
            since = Counter({key: getattr(report, key) for key in ("turns", "tokens", *MADE)})
            self._since += since
            self._made += since

    def replay(self, stats: dict) -> None:
        with self._lock:
            self._facts["replay"] = stats

    def fleet(self, members: dict, target: int, leases: int) -> None:
        metrics.LEASES.set(leases)
        metrics.ACTORS_TARGET.set(target)
        states = Counter(_metric_state(member) for member in members.values())
        for state in ("starting", "waiting", "ready", "draining"):
            metrics.ACTORS.labels(state=state).set(states[state])
        with self._lock:
            self._facts |= {"leases": leases, "actors_target": target}
            self._facts["actors"] = [
                {
                    "name": member.name,
                    "state": member.state,
                    "version": member.report.version,
                    "playing": member.report.playing,
                    "running": member.report.running,
                    "pid": member.report.pid,
                    "node": member.report.node,
                    "metrics_port": member.report.metrics_port,
                    "probe_difference": member.report.probe_difference,
                    "probe_limit": member.report.probe_limit,
                }
                for member in members.values()
            ]
            self._diagnosis.fleet({member.name: member.report for member in members.values()}, self.elapsed_s)
        if self.elapsed_s - self._looked_s >= LOOK_S:
            self.look()

    def look(self) -> None:
        """Says which causes of a run that cannot learn have been found since the last look, and which are gone."""
        with self._lock:
            self._looked_s = self.elapsed_s
            begun, ended = self._diagnosis.look(self._looked_s)
            lasting = self._diagnosis.findings
            self._facts["findings"] = [finding.facts for finding in lasting.values()]
            self._ended += ended
        for cause in FINDINGS:
            metrics.FINDING.labels(cause=cause).set(cause in lasting)
        for finding in (*begun, *ended):
            self.event(finding.text if finding in begun else f"no longer: {finding.problem}")
            self._write("findings.jsonl", finding.facts)

    @property
    def findings(self) -> list[dict]:
        """All of this incarnation of the run, in the order in which they began; those that last have no `until_s`."""
        found = [*self._ended, *self._diagnosis.findings.values()]
        return [finding.facts for finding in sorted(found, key=lambda finding: finding.since_s)]

    def step_done(self, report: dict) -> dict:
        """The learner's report of one step: kept, and written as a line of metrics.jsonl, which is returned."""
        with self._lock:
            now = time.monotonic()
            seconds = max(now - self._last_step, 1e-9)
            line = report | {
                "time_s": round(self.elapsed_s, 3),
                "tokens_per_s": round(self._since["tokens"] / seconds, 1),
                "turns_per_s": round(self._since["turns"] / seconds, 1),
                **{key: self._since[key] for key in MADE},
                "actors": len(self._facts.get("actors", ())),
                "leases": self._facts.get("leases", 0),
            }
            self._last_step, self._since = now, Counter()
            if report.get("reward") is not None:
                self._rewards.append(report["reward"])
            self._facts |= {key: value for key, value in line.items() if key not in ("actors", "leases", "seconds")}
            self._facts["waits"] = {"learner": _waits(report)}
            self._diagnosis.stepped(line)
        self._write("metrics.jsonl", line)
        return line

    def _write(self, file: str, line: dict) -> None:
        try:
            self._run.append(file, line)
        except OSError as error:
            self.event(f"{file} cannot be written: {error}", once=file)

    def snapshot(self) -> dict:
        """Everything, for people; see redraft.watch.live."""
        with self._lock:
            return self._facts | {
                "elapsed_s": self.elapsed_s,
                "reward_history": list(self._rewards),
                "events": list(self._events),
            }


def _metric_state(member) -> str:
    if member.draining is not None:
        return "draining"
    return "ready" if member.ready else "waiting" if member.waiting else "starting"


def _waits(report: dict) -> str:
    """What the learner waited for in its last step, in words."""
    waited = report.get("seconds", {}).get("wait", 0.0)
    reason = report.get("wait_reason") or "groups"
    return f"{reason} {waited:.1f} s/step" if waited >= 0.05 else "nothing"
