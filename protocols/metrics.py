"""Every metric that Redraft exports, by its only name. A process exports a metric once it has used it.

Those of a step's report are declared with the report, in protocols/reports.py. METRICS has them all once that is
imported.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

from prometheus_client import Counter, Gauge, Histogram, disable_created_metrics

disable_created_metrics()  # a series for each series, which nothing here asks for
PREFIX = "redraft_"
SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 180, 600, 1800)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
STEPS = (0, 1, 2, 3, 4, 6, 8, 12, 16)
METRICS: list[Metric] = []


class Metric:
    """A metric that registers itself when first touched, so that a process exports only what it measures."""

    def __init__(self, kind: type, name: str, help: str, labels: tuple[str, ...] = (), **options):
        self.kind, self.name, self.help, self.label_names, self.options = kind, PREFIX + name, help, labels, options
        self._values: set[str] = set()
        METRICS.append(self)

    @cached_property
    def _live(self):
        return self.kind(self.name, self.help, self.label_names, **self.options)

    def labels(self, **values: str):
        return self._live.labels(**values)

    def inc(self, amount: float = 1) -> None:
        self._live.inc(amount)

    def set(self, value: float) -> None:
        self._live.set(value)

    def set_to_current_time(self) -> None:
        self._live.set_to_current_time()

    def set_only(self, values: Mapping[str, float]) -> None:
        """A gauge with one label has these values now, and no others: those of an earlier call are dropped."""
        for gone in self._values - values.keys():
            self._live.remove(gone)
        for label, value in values.items():
            self._live.labels(label).set(value)
        self._values = set(values)

    def observe(self, value: float) -> None:
        self._live.observe(value)


# actors
TURNS = Metric(Counter, "turns_total", "Turns played", ("role",))
TOKENS = Metric(Counter, "tokens_total", "Tokens of responses, sampled or authored", ("role",))
EPISODES = Metric(Counter, "episodes_total", "Episodes ended")
GROUPS = Metric(Counter, "groups_total", "Groups ended by this actor", ("end",))  # closed, abandoned
QUEUE_SECONDS = Metric(Histogram, "queue_seconds", "From request to a place in the engine's batch", buckets=SECONDS)
GENERATION_SECONDS = Metric(Histogram, "generation_seconds", "From there to the last token", buckets=SECONDS)
ENVIRONMENT_SECONDS = Metric(Histogram, "environment_seconds", "One step of an environment", buckets=SECONDS)
ENVIRONMENT_ERRORS = Metric(Counter, "environment_errors_total", "Environments that raised or hung", ("kind",))
AGENT_REQUESTS = Metric(Counter, "agent_requests_total", "Requests of agents, by HTTP status", ("status",))
ENGINE_RUNNING = Metric(Gauge, "engine_running_requests", "Requests in the engine, those that queue included")
ENGINE_MAX_RUNNING = Metric(Gauge, "engine_max_running_requests", "Most requests in its batch at once")
PREFIX_QUERIES = Metric(Counter, "engine_prefix_cache_queries_total", "Prompt tokens looked up in the prefix cache")
PREFIX_HITS = Metric(Counter, "engine_prefix_cache_hits_total", "Prompt tokens found there")
ACTOR_SECONDS = Metric(Counter, "actor_state_seconds_total", "Seconds of this actor by what it does", ("state",))
ACTOR_VERSION = Metric(Gauge, "actor_weights_version", "Version that this actor generates with")
ACTOR_VERIFIED = Metric(Gauge, "actor_weights_verified", "1 when digest, elements and probe of the last version agreed")
PROBE_DIFFERENCE = Metric(Gauge, "actor_probe_difference", "Median |log-prob of engine - learner| on the probe")
PROBE_LIMIT = Metric(Gauge, "actor_probe_limit", "Largest difference on the probe that rounding explains")
WEIGHTS_FETCHED = Metric(Counter, "weights_fetched_total", "Versions that have come, by how", ("transport",))
WEIGHTS_APPLIED_SECONDS = Metric(Histogram, "weights_apply_seconds", "Load and check of one version", buckets=SECONDS)

# teacher
TEACHER_REQUESTS = Metric(Counter, "teacher_requests_total", "Answers asked of the teacher; tries are not told apart")
TEACHER_TOKENS = Metric(Counter, "teacher_tokens_total", "Tokens that the endpoint counted", ("kind",))
TEACHER_SECONDS = Metric(Histogram, "teacher_answer_seconds", "From request to answer, all tries", buckets=SECONDS)
TEACHER_FAILURES = Metric(Counter, "teacher_failures_total", "Answers that did not come", ("reason",))
STEP_JUDGEMENTS = Metric(
    Counter, "step_judgements_total", "Episodes whose steps a judge was asked about", ("result",)
)  # judged, unparsed, failed
GRADED_MARKS = Metric(
    Counter, "graded_marks_total", "Answers of a judge of rows that grades", ("result",)
)  # judged, unparsed

# replay
REPLAY_ROWS = Metric(Counter, "replay_rows_total", "Rows received", ("outcome",))  # stored, duplicate, fenced
REPLAY_REFUSED = Metric(Counter, "replay_refused_total", "Messages refused", ("reason",))
REPLAY_GROUPS = Metric(Gauge, "replay_groups", "Groups held", ("state",))  # replay.server.groups.State
REPLAY_DROPPED = Metric(Counter, "replay_dropped_total", "Groups that will not be trained", ("reason",))
REPLAY_BYTES = Metric(Gauge, "replay_held_bytes", "Bytes of records held")
REPLAY_MAX_BYTES = Metric(Gauge, "replay_max_bytes", "replay.max_bytes: from there on no new group is taken")
REPLAY_COMMIT_SECONDS = Metric(Histogram, "replay_commit_seconds", "One spool transaction", buckets=SECONDS)
REPLAY_ROWS_PER_COMMIT = Metric(Histogram, "replay_rows_per_commit", "Rows in one transaction of ingest", buckets=ROWS)
REPLAY_STALENESS = Metric(
    Histogram, "replay_staleness_steps", "Staleness of groups when they are claimed", buckets=STEPS
)
REPLAY_CLAIMS_EXPIRED = Metric(Counter, "replay_claims_expired_total", "Groups taken back from silent consumers")
REPLAY_IDLE = Metric(Gauge, "replay_idle_share", "Share of the last seconds in which the service had nothing to do")
REPLAY_STALLS = Metric(Counter, "replay_credit_stalls_total", "Times a producer was held back")

# learner, beside what protocols/reports.py declares
LEARNER_SECONDS = Metric(Counter, "learner_state_seconds_total", "Seconds of the learner by what it does", ("state",))
PROBE_NOISE = Metric(Gauge, "learner_probe_noise", "How far rounding moves the probe's log-probs, as measured last")
STALENESS_BOUND = Metric(Gauge, "learner_max_staleness_steps", "Staleness bound in force")
PUBLISHED = Metric(Gauge, "learner_weights_version", "Version published last")
CHECKPOINT_TIME = Metric(
    Gauge, "learner_checkpoint_time_seconds", "Unix time of the last checkpoint; before any, of the start of training"
)
RECORD_FAILURES = Metric(Counter, "learner_record_failures_total", "Steps whose turns could not be kept for people")

# controller
PHASE = Metric(Gauge, "controller_phase", "1 for the phase that the run is in", ("phase",))
FINDING = Metric(Gauge, "finding", "1 while this cause why the run cannot learn is seen", ("cause",))
ADMISSION_SECONDS = Metric(
    Counter, "controller_admission_seconds_total", "Seconds of training by what holds new leases back", ("limit",)
)
LEASES = Metric(Gauge, "controller_leases", "Leases out")
LEASES_LOST = Metric(
    Counter, "controller_leases_lost_total", "Plays that ended without closing their group", ("reason",)
)
ACTORS = Metric(Gauge, "controller_actors", "Actors", ("state",))  # starting, waiting, ready, draining
ACTORS_TARGET = Metric(Gauge, "controller_actors_target", "Actors that there should be")
TRACKER_LOST = Metric(Counter, "controller_tracker_lost_total", "Lines that a tracker did not take", ("tracker",))
RESTARTS = Metric(Counter, "controller_restarts_total", "Processes replaced", ("process",))  # actor, replay, learner
ACTORS_BEHIND = Metric(
    Gauge, "controller_actor_versions_behind", "Steps from an actor's weights to the newest", ("actor",)
)
STEPS_ASKED = Metric(Gauge, "controller_steps", "Steps that the run is to do")
TRAINED = Metric(Gauge, "controller_trained_parameters", "Parameters that are trained")
GPUS_HELD = Metric(Gauge, "controller_gpus", "GPUs that ranks and actors hold")
GPU_SECONDS = Metric(Counter, "controller_gpu_seconds_total", "Seconds that they have held each of them")
EVALUATION_ACCURACY = Metric(
    Gauge, "evaluation_accuracy", "Share of test tasks solved by turn number", ("occasion", "index")
)  # before, during, after
EVALUATION_ERROR = Metric(Gauge, "evaluation_accuracy_error", "Standard error of that share", ("occasion", "index"))
EVALUATION_OF_ENVIRONMENT = Metric(
    Gauge,
    "evaluation_environment_accuracy",
    "Share of test tasks solved at the last turn, of each environment of several",
    ("occasion", "environment"),
)
EVALUATION_BEST_STEP = Metric(Gauge, "evaluation_best_step", "Step of the checkpoint that is kept as the best")
EVALUATIONS_FAILED = Metric(
    Counter, "evaluations_failed_total", "Evaluations in the course of training that came to no figures"
)
WEIGHTS_REFUSED = Metric(
    Counter, "controller_weights_refused_total", "Versions whose digest, elements or probe did not agree on an actor"
)

# copies of the run, where `storage` says where
STORAGE_FAILURES = Metric(Counter, "storage_failures_total", "Copies of the run that could not be made")
STORAGE_TIME = Metric(Gauge, "storage_copy_time_seconds", "Unix time of the last copy of the run")
STORAGE_STEP = Metric(Gauge, "storage_copied_step", "Step of the checkpoint in the last copy of the run")

# the disk of the run folder (controller) and of a spool (replay)
DISK_BYTES = Metric(Gauge, "disk_bytes", "Size of the disk that this process writes to")
DISK_FREE = Metric(Gauge, "disk_free_bytes", "Bytes of it that this process may still write")

# each process that was given GPUs, of each of them, by NVML
GPU_BUSY = Metric(Gauge, "gpu_busy_share", "Share of the last moment in which this GPU computed", ("gpu",))
GPU_USED = Metric(Gauge, "gpu_used_bytes", "Memory of this GPU that is in use, by whomever", ("gpu",))
GPU_MEMORY = Metric(Gauge, "gpu_memory_bytes", "Memory of this GPU", ("gpu",))
GPU_OWN = Metric(Gauge, "gpu_process_bytes", "Memory of this GPU that this process and its own use", ("gpu",))
GPU_WATTS = Metric(Gauge, "gpu_watts", "Power that this GPU draws", ("gpu",))


def tell_disk(folder: Path) -> None:
    """Sets this process's figures of the disk that holds a folder; one that does not answer keeps those it had."""
    try:
        found = os.statvfs(folder)
    except OSError:
        return
    DISK_BYTES.set(found.f_blocks * found.f_frsize)
    DISK_FREE.set(found.f_bavail * found.f_frsize)
