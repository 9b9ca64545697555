"""A dashboard for each part: Actors, Replay, Learner."""

from __future__ import annotations

from grafana_foundation_sdk.models.dashboard import Dashboard
from panels import board, gauge, lines, quantiles, rate

ONE = ',name=~"$actor"'
"""Of the chosen actors."""


def actors() -> Dashboard:
    return board(
        "actors",
        "Actors",
        "What actors make, how fast, and with which weights.",
        (
            "What they make",
            (
                rate("Tokens a second", "By role.", "redraft_tokens_total", "role", of=ONE),
                rate("Turns a second", "By role.", "redraft_turns_total", "role", of=ONE),
                lines(
                    "Groups and episodes a second",
                    "Groups by how they ended.",
                    "none",
                    (
                        'sum by (end) (rate(redraft_groups_total{run="$run",name=~"$actor"}[$__rate_interval]))',
                        "groups {{end}}",
                    ),
                    ('sum(rate(redraft_episodes_total{run="$run",name=~"$actor"}[$__rate_interval]))', "episodes"),
                ),
            ),
        ),
        (
            "The engine",
            (
                lines(
                    "Batch occupancy",
                    "Requests in the engine over places in its batch; above 100% requests queue.",
                    "percentunit",
                    (
                        'redraft_engine_running_requests{run="$run",name=~"$actor"}'
                        ' / redraft_engine_max_running_requests{run="$run",name=~"$actor"}',
                        "{{name}}",
                    ),
                ),
                lines(
                    "Prefix cache hits",
                    "Share of prompt tokens that were not computed again.",
                    "percentunit",
                    (
                        'sum by (name) (rate(redraft_engine_prefix_cache_hits_total{run="$run",name=~"$actor"}'
                        "[$__rate_interval]))"
                        ' / sum by (name) (rate(redraft_engine_prefix_cache_queries_total{run="$run",name=~"$actor"}'
                        "[$__rate_interval]))",
                        "{{name}}",
                    ),
                ),
                quantiles("Queue", "Until a request has a place in the batch.", "s", "redraft_queue_seconds", of=ONE),
                quantiles("Generation", "From there to its last token.", "s", "redraft_generation_seconds", of=ONE),
            ),
        ),
        (
            "Environments and a teacher",
            (
                quantiles("Environment", "One step.", "s", "redraft_environment_seconds", of=ONE),
                rate(
                    "Environment errors a second",
                    "By kind; each ends an episode.",
                    "redraft_environment_errors_total",
                    "kind",
                    of=ONE,
                ),
                quantiles(
                    "Teacher", "From request to answer, all tries.", "s", "redraft_teacher_answer_seconds", of=ONE
                ),
                rate("Teacher failures a second", "By reason.", "redraft_teacher_failures_total", "reason", of=ONE),
            ),
        ),
        (
            "Weights",
            (
                lines(
                    "Version",
                    "That each actor generates with.",
                    "none",
                    ('redraft_actor_weights_version{run="$run",name=~"$actor"}', "{{name}}"),
                ),
                lines(
                    "Verified",
                    "1 when digest, live parameters and probe of the last version agreed with the learner's.",
                    "none",
                    ('redraft_actor_weights_verified{run="$run",name=~"$actor"}', "{{name}}"),
                ),
                lines(
                    "Probe",
                    "Median difference of log-probs, engine and learner, on the probe, and the largest that rounding "
                    "explains.",
                    "none",
                    ('redraft_actor_probe_difference{run="$run",name=~"$actor"}', "{{name}}"),
                    ('max(redraft_actor_probe_limit{run="$run",name=~"$actor"})', "limit"),
                ),
                quantiles("Loading", "One version, checks included.", "s", "redraft_weights_apply_seconds", of=ONE),
            ),
        ),
        (
            "The fleet",
            (
                lines(
                    "Actors",
                    "By state, and how many there should be.",
                    "none",
                    ('sum by (state) (redraft_controller_actors{run="$run"})', "{{state}}"),
                    ('max(redraft_controller_actors_target{run="$run"})', "target"),
                ),
                lines("Leases", "Groups in play.", "none", ('redraft_controller_leases{run="$run"}', "out")),
                rate(
                    "Leases lost a second",
                    "By why they were leased again.",
                    "redraft_controller_leases_lost_total",
                    "reason",
                ),
                rate(
                    "Processes replaced a second", "By what they were.", "redraft_controller_restarts_total", "process"
                ),
            ),
        ),
    )


def replay() -> Dashboard:
    return board(
        "replay",
        "Replay",
        "What replay holds, takes and gives.",
        (
            "What it holds",
            (
                lines(
                    "Groups",
                    "By state, all shards.",
                    "none",
                    ('sum by (state) (redraft_replay_groups{run="$run"})', "{{state}}"),
                ),
                lines(
                    "Bytes",
                    "Of each shard, and its cap.",
                    "bytes",
                    ('redraft_replay_held_bytes{run="$run"}', "{{name}}"),
                    ('max(redraft_replay_max_bytes{run="$run"})', "cap"),
                ),
                rate(
                    "Groups dropped a second",
                    "By why nothing trains on them.",
                    "redraft_replay_dropped_total",
                    "reason",
                ),
            ),
        ),
        (
            "What it takes",
            (
                rate("Rows a second", "By outcome.", "redraft_replay_rows_total", "outcome"),
                quantiles("Rows in a transaction", "Of ingest.", "none", "redraft_replay_rows_per_commit"),
                quantiles("Commit", "One spool transaction.", "s", "redraft_replay_commit_seconds"),
            ),
        ),
        (
            "What it gives",
            (
                quantiles("Staleness of claimed groups", "In steps.", "none", "redraft_replay_staleness_steps"),
                rate(
                    "Claims taken back a second",
                    "From silent consumers.",
                    "redraft_replay_claims_expired_total",
                    "name",
                ),
            ),
        ),
        (
            "Is it well?",
            (
                lines(
                    "Idle",
                    "Share of time without work, by shard.",
                    "percentunit",
                    ('redraft_replay_idle_share{run="$run"}', "{{name}}"),
                ),
                rate("Messages refused a second", "By reason.", "redraft_replay_refused_total", "reason"),
                rate("Producers held back a second", "By actor.", "redraft_replay_credit_stalls_total", "name"),
            ),
        ),
    )


def learner() -> Dashboard:
    return board(
        "learner",
        "Learner",
        "Where a step's time goes, and what it trains on.",
        (
            "Time",
            (
                lines(
                    "Steps a minute",
                    "",
                    "none",
                    (
                        '60 * sum(rate(redraft_learner_phase_seconds_count{run="$run",phase="train"}'
                        "[$__rate_interval]))",
                        "steps",
                    ),
                ),
                lines(
                    "Seconds a step",
                    "Mean of each phase. pack runs beside the training of the step before.",
                    "s",
                    (
                        'sum by (phase) (rate(redraft_learner_phase_seconds_sum{run="$run"}[$__rate_interval]))'
                        ' / sum by (phase) (rate(redraft_learner_phase_seconds_count{run="$run"}[$__rate_interval]))',
                        "{{phase}}",
                    ),
                ),
                quantiles("Phases", "Of single steps.", "s", "redraft_learner_phase_seconds", by="phase"),
            ),
        ),
        (
            "What it trains on",
            (
                quantiles("Staleness", "Of trained groups, in steps.", "none", "redraft_learner_staleness_steps"),
                gauge(
                    "Effective sample size",
                    "Share of the batch that the weights leave.",
                    "percentunit",
                    "redraft_learner_effective_sample_share",
                ),
                gauge("Masked tokens", "Share that a correction masks.", "percentunit", "redraft_learner_masked_share"),
                gauge(
                    "Trainer and sampler",
                    "Mean difference of their log-probs of trained tokens.",
                    "none",
                    "redraft_learner_logprob_mismatch",
                ),
            ),
        ),
        (
            "What it leaves",
            (
                gauge("Step", "Optimizer steps done.", "none", "redraft_learner_step"),
                gauge(
                    "Trained tokens",
                    "Of the last step. At 0 it moved no weight: see the rewards, and learner.credit.",
                    "none",
                    "redraft_learner_trained_tokens",
                ),
                gauge("Version", "Published last.", "none", "redraft_learner_weights_version"),
                lines(
                    "Since the last checkpoint",
                    "Seconds.",
                    "s",
                    ('time() - max(redraft_learner_checkpoint_time_seconds{run="$run"})', "age"),
                ),
            ),
        ),
    )
