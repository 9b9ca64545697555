"""The dashboard Run against run: the same figures of several runs. Steps side by side are in `redraft compare`."""

from __future__ import annotations

from grafana_foundation_sdk.models.dashboard import Dashboard
from panels import board, lines


def against() -> Dashboard:
    return board(
        "against",
        "Run against run",
        "Several runs beside each other, chosen above. `redraft compare` has them step by step, with their errors.",
        (
            "What they learn",
            (
                _each("Reward", "Mean over turns of the last batch.", "none", "avg", "redraft_learner_reward"),
                _each(
                    "Accuracy",
                    "Share of successes of the last batch, mean over turns.",
                    "percentunit",
                    "avg",
                    "redraft_learner_accuracy",
                ),
                lines(
                    "Held-out accuracy",
                    "Of test tasks, by the evaluation and the number of the turn.",
                    "percentunit",
                    (
                        'max by (run, occasion, index) (redraft_evaluation_accuracy{run=~"$run"})',
                        "{{run}} {{occasion}}, turn {{index}}",
                    ),
                ),
            ),
        ),
        (
            "How",
            (
                _each("Entropy", "Nats a token.", "none", "max", "redraft_learner_entropy"),
                _each("KL", "From the start model, nats a token.", "none", "max", "redraft_learner_kl"),
                _each("Gradient norm", "Before clipping.", "none", "max", "redraft_learner_gradient_norm"),
                _each("Learning rate", "Of the last step.", "sci", "max", "redraft_learner_learning_rate"),
            ),
        ),
        (
            "How fast",
            (
                _each("Step", "Optimizer steps done.", "none", "max", "redraft_learner_step"),
                lines(
                    "Tokens a second",
                    "Sampled or authored, all actors.",
                    "none",
                    ('sum by (run) (rate(redraft_tokens_total{run=~"$run"}[$__rate_interval]))', "{{run}}"),
                ),
                lines(
                    "The learner waits",
                    "Share of its time in which it does not train.",
                    "percentunit",
                    (
                        "1 - sum by (run) (rate(redraft_learner_state_seconds_total"
                        '{run=~"$run",state="training"}[$__rate_interval]))'
                        ' / sum by (run) (rate(redraft_learner_state_seconds_total{run=~"$run"}[$__rate_interval]))',
                        "{{run}}",
                    ),
                ),
                _each("Actors", "That are ready.", "none", "sum", "redraft_controller_actors", ',state="ready"'),
            ),
        ),
    )


def _each(title: str, description: str, unit: str, how: str, name: str, of: str = ""):
    return lines(title, description, unit, (f'{how} by (run) ({name}{{run=~"$run"{of}}})', "{{run}}"))
