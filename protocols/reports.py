"""What the parts of a run tell each other and people about it: one step, the state of the run, how it ended.

    learner      LearnerReady, LearnerEnded ----> controller
    learner      StepReport ----> controller    adds what it knows: StepLine ----> metrics.jsonl, trackers
    controller   RunStatus  ----> the live view, `redraft top`, `redraft status`
    controller   RunEnded   ----> summary.json, and the same readers from then on

Each is a frozen dataclass with `to_json`, and `from_json` where a file or another process is read. A figure over
nothing is None, never 0. To add a metric, see protocols/measured.py: one field here, filled where its report is made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from protocols.evaluation import EvaluationSummary
from protocols.measured import Ages, ByEnvironment, ByPart, ByPhase, ByRole, ByTurn, Reported, Value, measured
from protocols.replay_stats import ReplayStats
from protocols.responses import Responses


@dataclass(frozen=True, slots=True)
class LearnerReady:
    """Where a learner that is up goes on from, and how many parameters it trains. `cursor` is what the controller said
    when the checkpoint was written, empty without one; `last` is the report of the checkpoint's step. `bound` is the
    staleness bound that is in force."""

    step: int
    incarnation: int
    trained: int
    cursor: Mapping[str, Any] = field(default_factory=dict)
    last: StepReport | None = None
    bound: int = field(kw_only=True)


@dataclass(frozen=True, slots=True)
class LearnerEnded:
    """After which step a learner has ended, and why: done or stopped."""

    step: int
    reason: str


@dataclass(frozen=True, slots=True)
class FitReport(Reported):
    """What the loss and the log-probs of a batch say, of the tokens that were trained."""

    loss: float | None = measured("Loss of the last step", Value("learner_loss"))
    trained_tokens: int = measured(
        "Tokens that the last step trained", Value("learner_trained_tokens"), unit="tokens", default=0
    )
    mismatch_mean: float | None = measured(
        "Mean |log-prob of trainer - sampler| on trained tokens", Value("learner_logprob_mismatch"), unit="nats"
    )
    mismatch_max: float | None = measured("Largest of those differences", unit="nats")
    effective_samples: float | None = measured(
        "Effective sample size of the weights, as a share", Value("learner_effective_sample_share")
    )
    masked_share: float | None = measured(
        "Share of trained tokens masked by a correction", Value("learner_masked_share")
    )
    entropy: float | None = measured("Mean entropy of trained tokens, in nats", Value("learner_entropy"), unit="nats")
    kl: float | None = measured(
        "Mean divergence from the start model on trained tokens that were sampled", Value("learner_kl"), unit="nats"
    )
    anchor_kl: float | None = measured("The same on anchored tokens, which are not trained", unit="nats")


@dataclass(frozen=True, slots=True)
class BatchReport(Reported):
    """What a batch holds. Rewards are of the model's own attempts; staleness is that of a group's oldest token."""

    groups: int = measured("Groups", group="batch", default=0)
    turns: int = measured("Turns", group="batch", default=0)
    sampled_tokens: int = measured("Tokens that the policy sampled", unit="tokens", group="batch", default=0)
    reward: float | None = measured("Mean reward", tracked="reward/mean")
    reward_by_index: list[float] = measured(
        "Mean reward by turn number",
        ByTurn("learner_reward", "Mean reward of the last batch by turn number"),
        tracked="reward_by_index",
        factory=list,
    )
    success_by_index: list[float] = measured(
        "Share of successes by turn number",
        ByTurn("learner_accuracy", "Share of successes in the last batch by turn number"),
        tracked="success_by_index",
        factory=list,
    )
    reward_by_role: dict[str, float] = measured(
        "Mean reward by role",
        ByRole("learner_role_reward", "Mean reward of the last batch by role"),
        tracked="reward_by_role",
        factory=dict,
    )
    reward_parts: dict[str, float] = measured(
        "Mean of each named part of the reward",
        ByPart("learner_reward_part", "Mean of each named part of the reward in the last batch"),
        tracked="reward_parts",
        factory=dict,
    )
    groups_by_environment: dict[str, int] = measured(
        "Groups by environment, of a run of several",
        ByEnvironment("learner_environment_groups", "Groups of the last batch by environment"),
        tracked="groups_by_environment",
        factory=dict,
    )
    reward_by_environment: dict[str, float] = measured(
        "Mean reward by environment, of a run of several",
        ByEnvironment("learner_environment_reward", "Mean reward of the last batch by environment"),
        tracked="reward_by_environment",
        factory=dict,
    )
    success_by_environment: dict[str, float] = measured(
        "Share of successes by environment, of a run of several",
        ByEnvironment("learner_environment_accuracy", "Share of successes by environment, of a run of several"),
        tracked="success_by_environment",
        factory=dict,
    )
    flagged_share: float | None = measured(
        "Share of steps that were flagged good or bad, with credit attributing", Value("learner_flagged_share")
    )
    good_share: float | None = measured("Share of flagged steps that were good", Value("learner_good_share"))
    navigated_share: float | None = measured(
        "Share of turns that were told experience", Value("learner_navigated_share")
    )
    staleness_mean: float | None = measured("Mean staleness of groups", unit="steps", tracked="staleness/mean")
    staleness_max: int | None = measured("Largest staleness", unit="steps", tracked="staleness/max")
    staleness_counts: dict[str, int] = measured(
        "Groups by staleness",
        Ages("learner_staleness_steps", "Staleness of trained groups"),
        tracked="staleness/groups",
        factory=dict,
    )
    responses: Responses = field(default_factory=Responses)
    sequences: int = measured("Sequences with a trained token", group="batch", default=0)
    trained_turns: dict[str, int] = measured("Trained turns by role", group="batch", factory=dict)
    tokens: int = measured(
        "Tokens that were forwarded",
        Value("learner_forwarded_tokens", "Tokens that the last step forwarded, padding included"),
        unit="tokens",
        group="batch",
        default=0,
    )
    padding_share: float | None = measured("Share of padding in them", group="batch")
    truncated_sequences: int = measured("Sequences cut to the longest that may be trained", group="batch", default=0)
    errors: int = measured("Episodes that ended with an error", group="batch", default=0)


@dataclass(frozen=True, slots=True)
class StepReport(Reported):
    """The learner's report of one step."""

    step: int = measured("Steps of the run that are done", Value("learner_step"), tracked="", default=0)
    version: int = measured("Version published last", group="run", default=0)
    fit: FitReport = field(default_factory=FitReport)
    gradient_norm: float | None = measured(
        "Gradient norm of the last step, before clipping", Value("learner_gradient_norm")
    )
    """None where the gradient was not finite, so that the weights stayed as they were."""
    lr: float | None = measured("Learning rate", Value("learner_learning_rate", "Learning rate of the last step"))
    batch: BatchReport = field(default_factory=BatchReport)
    skipped_updates: int = measured("Steps of this incarnation whose gradient was not finite", default=0)
    probe_noise: float | None = measured("How far rounding moves the probe's log-probs", unit="nats")
    wait_reason: str = measured(
        "What the learner waited for last: groups, straggler, staleness, replay, evaluation", default="groups"
    )
    held_share: float | None = measured(
        "Share of the step that was waited while the staleness bound held actors back", Value("learner_held_share")
    )
    max_staleness: int | None = measured("Staleness bound from now on", unit="steps", tracked="staleness/bound")
    seconds: dict[str, float] = measured(
        "Seconds by phase; `pack` passes beside the others",
        ByPhase("learner_phase_seconds", "Seconds a step spends by phase"),
        unit="s",
        tracked="seconds",
        factory=dict,
    )


@dataclass(frozen=True, slots=True)
class StepLine(Reported):
    """A line of metrics.jsonl: the learner's report of a step, and what the controller saw since the one before."""

    report: StepReport = field(default_factory=StepReport)
    time_s: float = measured("Since the run began, pauses left out", unit="s", group="run", default=0.0)
    tokens_per_s: float = measured("Sampled for training", unit="tokens/s", group="run", default=0.0)
    turns_per_s: float = measured("Played for training", unit="turns/s", group="run", default=0.0)
    generations: int = measured("Responses sampled for training, also what no turn keeps", group="run", default=0)
    attempts: int = measured("Those of them that are no reflections", group="run", default=0)
    generated_tokens: int = measured("Tokens of all those responses", unit="tokens", group="run", default=0)
    actors: int = measured("Actors that there are", group="run", default=0)
    leases: int = measured("Leases out", group="run", default=0)


@dataclass(frozen=True, slots=True)
class Finding:
    """A cause why a run cannot learn. `since_s` and `until_s` are seconds since the run began; None while it lasts."""

    cause: str
    problem: str
    cure: str
    since_s: float
    step: int
    until_s: float | None = None

    @property
    def text(self) -> str:
        return f"{self.problem} {self.cure}"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class ActorStatus:
    """One actor, as the controller knows it: `playing` groups, `running` requests of its engine."""

    name: str
    state: str = "starting"
    version: int | None = None
    playing: int = 0
    running: int = 0
    pid: int = 0
    node: str = ""
    metrics_port: int = 0
    probe_difference: float = 0.0
    probe_limit: float = 0.0


@dataclass(frozen=True, slots=True)
class GpuStatus:
    """A GPU that a process was given, by NVML's number on its node: share of the last moment in which it computed,
    memory in use by whomever, power. None where it does not tell."""

    name: str
    """Of the process."""
    number: int
    busy: float | None
    used_bytes: int
    bytes: int
    watts: float | None


@dataclass(frozen=True, slots=True)
class RunStatus:
    """What is known about a run that goes on."""

    run: str
    steps: int = 0
    step: int = 0
    state: str = "starting"
    detail: str = ""
    progress: tuple[int, int] | None = None
    """Tasks of an evaluation that have ended, of how many; None where none is played."""
    elapsed_s: float = 0.0
    tokens_per_s: float | None = None
    """Of the phase that the run is in, like `turns_per_s`; None before it is known."""
    turns_per_s: float | None = None
    sd: str = ""
    """Where Prometheus finds the processes."""
    trained_parameters: int | None = None
    adapter: str = ""
    """What is trained in place of all weights, in a few words."""
    leases: int = 0
    actors_target: int = 0
    actors: tuple[ActorStatus, ...] = ()
    gpus: tuple[GpuStatus, ...] = ()
    replay: ReplayStats | None = None
    """Counts over all shards; None before the first."""
    waits: Mapping[str, str] = field(default_factory=dict)
    """What a part waited for in the last step, in words."""
    findings: tuple[Finding, ...] = ()
    reward_history: tuple[float, ...] = ()
    events: tuple[str, ...] = ()
    last: StepLine | None = None
    """The newest step of this incarnation."""

    def to_json(self) -> dict[str, Any]:
        """The keys of the last step lie beside the others."""
        return {
            **({} if self.last is None else self.last.to_json()),
            **{name: getattr(self, name) for name in self.__slots__ if name != "last"},
            "actors": [asdict(actor) for actor in self.actors],
            "gpus": [asdict(gpu) for gpu in self.gpus],
            "replay": None if self.replay is None else self.replay.to_json(),
            "findings": [finding.to_json() for finding in self.findings],
        }

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> RunStatus:
        own = {name: found[name] for name in cls.__slots__ if name in found}
        for name in ("reward_history", "events"):
            own[name] = tuple(found[name])
        own["progress"] = None if found["progress"] is None else tuple(found["progress"])
        own["actors"] = tuple(ActorStatus(**actor) for actor in found["actors"])
        own["gpus"] = tuple(GpuStatus(**gpu) for gpu in found["gpus"])
        own["replay"] = None if found["replay"] is None else ReplayStats.from_json(found["replay"])
        own["findings"] = tuple(Finding(**finding) for finding in found["findings"])
        shared = {"actors": len(found["actors"]), "tokens_per_s": found["tokens_per_s"] or 0.0}
        own["last"] = StepLine.from_json({**found, **shared}) if "time_s" in found else None
        return cls(**own)


@dataclass(frozen=True, slots=True)
class RunEnded:
    """How a run ended: summary.json."""

    name: str
    state: str
    """done, stopped, failed, or crashed where no controller was left to say how it ended."""
    error: str = ""
    early: str = ""
    """Why it was done before its steps were: what evaluations in its course have solved (`evaluation.stop`), or what
    was sampled (`sampled_tokens`)."""
    try_again: bool = False
    """Whether the same command may go on: a fault of processes or machines, or who takes the machine away, ended it."""
    checkpoint: int | None = None
    """The step of the newest checkpoint; None before the first."""
    before: EvaluationSummary | None = None
    """The evaluation before training, None where there was none."""
    after: EvaluationSummary | None = None
    steps: int = 0
    seconds: float = 0.0
    findings: tuple[Finding, ...] = ()
    generations: int = 0
    attempts: int = 0
    trained_parameters: int | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            **{name: getattr(self, name) for name in self.__slots__},
            "before": None if self.before is None else self.before.to_json(),
            "after": None if self.after is None else self.after.to_json(),
            "findings": [finding.to_json() for finding in self.findings],
        }

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> RunEnded:
        known = {name: found[name] for name in cls.__slots__ if name in found}
        evaluated = {name: found[name] for name in ("before", "after") if found.get(name) is not None}
        known |= {name: EvaluationSummary.from_json(one) for name, one in evaluated.items()}
        known["findings"] = tuple(Finding(**finding) for finding in found.get("findings", ()))
        return cls(**known)


def status_to_json(status: RunStatus | RunEnded) -> dict[str, Any]:
    """For `redraft status --json`: of a run that has ended {"summary": ...}."""
    return {"summary": status.to_json()} if isinstance(status, RunEnded) else status.to_json()


def status_from_json(found: Mapping[str, Any]) -> RunStatus | RunEnded:
    return RunEnded.from_json(found["summary"]) if "summary" in found else RunStatus.from_json(found)
