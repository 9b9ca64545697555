"""The dashboards that one looks at first: Overview, and Why idle."""

from __future__ import annotations

from grafana_foundation_sdk.models.dashboard import Dashboard
from panels import board, lines, number, quantiles, shares


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


def overview() -> Dashboard:
    return board(
        "overview",
        "Overview",
        "How the run is doing.",
        (
            "Now",
            (
                number(
                    "Phase",
                    "What the run is doing.",
                    "none",
                    ('redraft_controller_phase{run="$run"} == 1', "{{phase}}"),
                    True,
                ),
                number("Step", "Optimizer steps done.", "none", ('max(redraft_learner_step{run="$run"})', "")),
                number(
                    "Actors ready",
                    "Of the target, as a share.",
                    "percentunit",
                    (
                        'sum(redraft_controller_actors{run="$run",state="ready"})'
                        ' / max(redraft_controller_actors_target{run="$run"})',
                        "",
                    ),
                ),
                number(
                    "Tokens a second",
                    "Sampled or authored, all actors.",
                    "none",
                    ('sum(rate(redraft_tokens_total{run="$run"}[$__rate_interval]))', ""),
                ),
                number(
                    "Replay filled",
                    "Share of replay.max_bytes that the fullest shard holds.",
                    "percentunit",
                    ('max(redraft_replay_held_bytes{run="$run"} / redraft_replay_max_bytes{run="$run"})', ""),
                ),
                number(
                    "Since the last checkpoint",
                    "Seconds of work that a crash would cost.",
                    "s",
                    ('time() - max(redraft_learner_checkpoint_time_seconds{run="$run"})', ""),
                ),
            ),
        ),
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
                lines(
                    "What went wrong",
                    "Over five minutes: processes replaced, leases lost, episodes ended by errors, weights refused.",
                    "none",
                    (
                        'sum by (part) (increase(redraft_controller_restarts_total{run="$run"}[5m]))',
                        "restarts: {{part}}",
                    ),
                    ('sum(increase(redraft_controller_leases_lost_total{run="$run"}[5m]))', "leases lost"),
                    ('sum(increase(redraft_environment_errors_total{run="$run"}[5m]))', "environment errors"),
                    ('sum(increase(redraft_controller_weights_refused_total{run="$run"}[5m]))', "weights refused"),
                ),
            ),
        ),
    )


def why_idle() -> Dashboard:
    return board(
        "why-idle",
        "Why idle",
        "What the learner and the actors wait for. Read the first row from left to right: docs/watching.md.",
        ("Why is it idle?", (learner_time(), actor_time(), leases())),
        (
            "One by one",
            (
                lines(
                    "Share of time that each actor generates",
                    "One that is far below the others has a slow node, or long environments.",
                    "percentunit",
                    (
                        'sum by (name) (rate(redraft_actor_state_seconds_total{run="$run",state="generating"}'
                        "[$__rate_interval]))",
                        "{{name}}",
                    ),
                ),
                lines(
                    "Versions behind",
                    "Steps between the learner and the weights of each actor: what admission counts from.",
                    "none",
                    (
                        'scalar(max(redraft_learner_step{run="$run"}))'
                        ' - max by (name) (redraft_actor_weights_version{run="$run"}) % 1000000',
                        "{{name}}",
                    ),
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
