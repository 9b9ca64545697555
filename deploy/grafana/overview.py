"""The dashboards that one looks at first: Overview, and Why idle."""

from __future__ import annotations

from grafana_foundation_sdk.models.dashboard import Dashboard
from panels import ANY, BAD, CARE, GOOD, NEUTRAL, board, lines, number, quantiles, shares, word


def learner_time():
    return shares(
        "The learner's time",
        "training: it works. groups: actors are too slow. straggler: one old group is still open. staleness: all "
        "groups that the bound allows are in play. replay: its cap keeps actors from new groups. weights: gathering "
        "and publishing. checkpoint: writing one.",
        (
            'sum by (state) (rate(redraft_learner_state_seconds_total{run="$run"}[$__rate_interval]))'
            ' / scalar(sum(rate(redraft_learner_state_seconds_total{run="$run"}[$__rate_interval])))',
            "{{state}}",
        ),
    )


def actor_time():
    return shares(
        "The actors' time",
        "generating: the engine works. environment: all groups are in environments, or with a teacher. no_lease: "
        "there is nothing to play, see what holds leases back. replay: it takes no rows. weights: a version is loaded. "
        "start: the engine is built.",
        (
            'sum by (state) (rate(redraft_actor_state_seconds_total{run="$run"}[$__rate_interval]))'
            ' / scalar(sum(rate(redraft_actor_state_seconds_total{run="$run"}[$__rate_interval])))',
            "{{state}}",
        ),
    )


def leases():
    return shares(
        "What holds leases back",
        "none: actors get as many groups as they have places. staleness: learner.max_staleness. replay: "
        "replay.max_bytes, or a full disk. actors: none is ready. Counted while the run trains.",
        (
            'sum by (limit) (rate(redraft_controller_admission_seconds_total{run="$run"}[$__rate_interval]))'
            ' / scalar(sum(rate(redraft_controller_admission_seconds_total{run="$run"}[$__rate_interval])))',
            "{{limit}}",
        ),
    )


def reward():
    return lines(
        "Reward by turn",
        "Mean reward of the last batch, by the number of the turn.",
        "none",
        ('redraft_learner_reward{run="$run"}', "turn {{index}}"),
    )


def accuracy():
    return lines(
        "Accuracy by turn",
        "Share of successes in the last batch, by the number of the turn.",
        "percentunit",
        ('redraft_learner_accuracy{run="$run"}', "turn {{index}}"),
    )


def findings():
    return lines(
        "Why it cannot learn",
        "1 while the run sees this cause, else 0. `redraft status` has the figures and the cure.",
        "none",
        ('max by (cause) (redraft_finding{run="$run"})', "{{cause}}"),
    )


def gpu_time():
    return lines(
        "The GPUs' time",
        "Share of time in which the GPUs of each process computed, as NVML tells it; empty where there are none. Low "
        "while the process is busy: batches are too small, or it waits within a step.",
        "percentunit",
        ('max by (name, gpu) (redraft_gpu_busy_share{run="$run"})', "{{name}} gpu {{gpu}}"),
    )


def _now():
    return (
        number(
            "Controller",
            "Whether it answers. It ends with the run, well or not.",
            "none",
            ('max(up{run="$run",part="controller"})', ""),
            ((0, BAD), (1, GOOD)),
            {0: "down", 1: "up"},
        ),
        word(
            "Phase",
            "What the run is doing.",
            ('topk(1, redraft_controller_phase{run="$run"} == 1)', "{{phase}}"),
            {"training": GOOD, "done": GOOD, "stopping": CARE, "stopped": CARE, "failed": BAD},
        ),
        number("Step", "Optimizer steps done.", "none", ('max(redraft_learner_step{run="$run"})', ""), ANY),
        number(
            "Done",
            "Share of the steps that the run is to do.",
            "percentunit",
            ('max(redraft_learner_step{run="$run"}) / max(redraft_controller_steps{run="$run"} > 0)', ""),
            ((0, NEUTRAL), (1, GOOD)),
        ),
        number(
            "Time left",
            "At the pace of the last ten minutes, evaluations left out.",
            "s",
            (
                '(max(redraft_controller_steps{run="$run"}) - max(redraft_learner_step{run="$run"}))'
                ' / max(deriv(redraft_learner_step{run="$run"}[10m]) > 0)',
                "",
            ),
            ANY,
        ),
        number(
            "Cannot learn",
            "Causes that the run sees why it cannot learn. `redraft status` has the figures and the cure.",
            "none",
            ('sum(max by (cause) (redraft_finding{run="$run"}))', ""),
            ((0, GOOD), (1, BAD)),
        ),
    )


def _well():
    return (
        number(
            "Not answering",
            "Processes that the controller lists and that Prometheus cannot scrape.",
            "none",
            ('sum(1 - up{run="$run"})', ""),
            ((0, GOOD), (1, BAD)),
        ),
        number(
            "Actors ready",
            "Of the target, as a share.",
            "percentunit",
            (
                'sum(redraft_controller_actors{run="$run",state="ready"})'
                ' / max(redraft_controller_actors_target{run="$run"})',
                "",
            ),
            ((0, BAD), (0.5, CARE), (1, GOOD)),
        ),
        number(
            "Tokens a second",
            "Sampled or authored, all actors.",
            "none",
            ('sum(rate(redraft_tokens_total{run="$run"}[$__rate_interval]))', ""),
            ((0, CARE), (1, GOOD)),
        ),
        number(
            "Replay filled",
            "Share of replay.max_bytes that the fullest shard holds.",
            "percentunit",
            ('max(redraft_replay_held_bytes{run="$run"} / redraft_replay_max_bytes{run="$run"})', ""),
            ((0, GOOD), (0.7, CARE), (0.85, BAD)),
        ),
        number(
            "Disk free",
            "Share, of the fullest disk that holds the run folder or a spool.",
            "percentunit",
            ('min(redraft_disk_free_bytes{run="$run"} / redraft_disk_bytes{run="$run"})', ""),
            ((0, BAD), (0.1, CARE), (0.2, GOOD)),
        ),
        number(
            "Since the last checkpoint",
            "Seconds of work that a crash would cost.",
            "s",
            ('time() - max(redraft_learner_checkpoint_time_seconds{run="$run"})', ""),
            ((0, GOOD), (1800, CARE), (3600, BAD)),
        ),
    )


def errors():
    return lines(
        "What went wrong",
        "Over five minutes, by cause: processes replaced, leases lost, episodes ended by errors, weights refused, "
        "answers that a teacher did not give.",
        "none",
        _lately("redraft_controller_restarts_total", "process", "replaced: {{process}}"),
        _lately("redraft_controller_leases_lost_total", "reason", "lease lost: {{reason}}"),
        _lately("redraft_environment_errors_total", "kind", "episode: {{kind}}"),
        _lately("redraft_controller_weights_refused_total", "run", "weights refused"),
        _lately("redraft_teacher_failures_total", "reason", "teacher: {{reason}}"),
    )


def _lately(counter: str, label: str, legend: str) -> tuple[str, str]:
    """What a counter that is still exported grew by in five minutes."""
    return f'sum by ({label}) (increase({counter}{{run="$run"}}[5m]) and {counter}{{run="$run"}})', legend


def overview() -> Dashboard:
    return board(
        "overview",
        "Overview",
        "How the run is doing.",
        ("Now", _now()),
        ("", _well()),
        ("Does it learn?", (reward(), accuracy(), findings())),
        ("Is it busy?", (learner_time(), actor_time(), leases())),
        (
            "Is it well?",
            (
                lines(
                    "Staleness",
                    "Mean of trained groups, in steps, and the bound.",
                    "none",
                    (
                        'sum(rate(redraft_learner_staleness_steps_sum{run="$run"}[$__rate_interval]))'
                        ' / sum(rate(redraft_learner_staleness_steps_count{run="$run"}[$__rate_interval]))',
                        "mean",
                    ),
                    ('max(redraft_learner_max_staleness_steps{run="$run"})', "bound"),
                ),
                errors(),
            ),
        ),
    )


def why_idle() -> Dashboard:
    return board(
        "why-idle",
        "Why idle",
        "What the learner and the actors wait for. Read the first row from left to right: docs/watching.md.",
        ("Why is it idle?", (learner_time(), actor_time(), leases(), gpu_time())),
        (
            "One by one",
            (
                lines(
                    "Share of time that each actor generates",
                    "One that is far below the others has a slow node, or long environments.",
                    "percentunit",
                    (
                        'sum by (name) (rate(redraft_actor_state_seconds_total{run="$run",name=~"$actor",'
                        'state="generating"}[$__rate_interval]))',
                        "{{name}}",
                    ),
                ),
                lines(
                    "Versions behind",
                    "Steps from the weights of each actor to the newest, as the controller sees both: what admission "
                    "counts from.",
                    "none",
                    ('max by (actor) (redraft_controller_actor_versions_behind{run="$run"})', "{{actor}}"),
                    ('max(redraft_learner_max_staleness_steps{run="$run"})', "bound"),
                ),
            ),
        ),
        (
            "How long it takes",
            (
                quantiles("Queue", "Until a request has a place in the batch.", "s", "redraft_queue_seconds"),
                quantiles("Generation", "From there to its last token.", "s", "redraft_generation_seconds"),
                quantiles("Environment", "One step.", "s", "redraft_environment_seconds"),
                quantiles(
                    "Loading weights",
                    "One version on one actor, checks included.",
                    "s",
                    "redraft_weights_apply_seconds",
                ),
            ),
        ),
        (
            "What is held",
            (
                lines(
                    "Groups in replay",
                    "By state, all shards.",
                    "none",
                    ('sum by (state) (redraft_replay_groups{run="$run"})', "{{state}}"),
                    ('max(redraft_controller_leases{run="$run"})', "leases out"),
                ),
                lines(
                    "Producers held back",
                    "Times a second that an actor had to wait for room in replay before a group.",
                    "none",
                    (
                        'sum by (name) (rate(redraft_replay_credit_stalls_total{run="$run"}[$__rate_interval]))',
                        "{{name}}",
                    ),
                ),
            ),
        ),
    )
