"""The dashboard Learning: whether the model gets better, and what the numbers of the loss say."""

from __future__ import annotations

from grafana_foundation_sdk.builders import timeseries
from grafana_foundation_sdk.models.dashboard import Dashboard
from overview import accuracy, findings, reward
from panels import BAD, CARE, board, by_role, gauge, lines


def _held_out():
    found = 'max by (occasion, index) (redraft_evaluation_accuracy{run="$run"})'
    error = 'max by (occasion, index) (redraft_evaluation_accuracy_error{run="$run"})'
    return lines(
        "Held-out accuracy",
        "Of test tasks, by the evaluation and the number of the turn, with one standard error either way. Of episodes "
        "of many actions it is the share that reached the goal, under turn 0.",
        "percentunit",
        (found, "{{occasion}}, turn {{index}}"),
        (f"{found} + {error}", "{{occasion}}, turn {{index}}: + error"),
        (f"{found} - {error}", "{{occasion}}, turn {{index}}: - error"),
    )


def by_environment(title: str, description: str, name: str) -> timeseries.Panel:
    """A gauge that the learner has for each environment, of a run of several."""
    return lines(title, description, "none", (f'max by (environment) ({name}{{run="$run"}})', "{{environment}}"))


def learning() -> Dashboard:
    return board(
        "learning",
        "Learning",
        "Whether the model gets better, and better at correcting itself.",
        ("Can it learn?", (findings(), _held_out())),
        (
            "Turn after turn",
            (
                reward(),
                accuracy(),
                lines(
                    "Gain over the first turn",
                    "Reward of the best turn less that of the first.",
                    "none",
                    (
                        'max(redraft_learner_reward{run="$run"}) - max(redraft_learner_reward{run="$run",index="0"})',
                        "gain",
                    ),
                ),
                by_role("Reward by role", "Mean of the last batch.", "none", "redraft_learner_role_reward"),
                lines(
                    "Parts of the reward",
                    "Mean of each named part in the last batch, of rewards that have them.",
                    "none",
                    ('max by (component) (redraft_learner_reward_part{run="$run"})', "{{component}}"),
                ),
            ),
        ),
        (
            "Environment by environment",
            (
                by_environment("Reward by environment", "Mean of the batch.", "redraft_learner_environment_reward"),
                lines(
                    "Held-out accuracy by environment",
                    "Of its test tasks at the last turn, by the evaluation.",
                    "percentunit",
                    (
                        'max by (occasion, environment) (redraft_evaluation_environment_accuracy{run="$run"})',
                        "{{occasion}}, {{environment}}",
                    ),
                ),
                by_environment("Groups by environment", "In the last batch.", "redraft_learner_environment_groups"),
            ),
        ),
        (
            "The loss",
            (
                gauge("Loss", "Of the last step.", "none", "redraft_learner_loss"),
                gauge("Gradient norm", "Before clipping.", "none", "redraft_learner_gradient_norm"),
                gauge("Learning rate", "Of the last step.", "sci", "redraft_learner_learning_rate"),
                gauge(
                    "Entropy",
                    "Mean of trained tokens, in nats. Near 0 the model has stopped to explore.",
                    "none",
                    "redraft_learner_entropy",
                ),
            ),
        ),
        (
            "How far from where it began, and from who sampled",
            (
                gauge(
                    "KL",
                    "Mean divergence from the start model, in nats a token. Empty where no objective asks for it.",
                    "none",
                    "redraft_learner_kl",
                ),
                gauge(
                    "Clipped or masked",
                    "Share of trained tokens whose gradient a clip has ended or a correction has masked.",
                    "percentunit",
                    "redraft_learner_masked_share",
                ),
                gauge(
                    "Effective sample size",
                    "Share of the batch that the weights leave.",
                    "percentunit",
                    "redraft_learner_effective_sample_share",
                ),
                gauge(
                    "Trainer and sampler",
                    "Mean difference of their log-probs of trained tokens.",
                    "none",
                    "redraft_learner_logprob_mismatch",
                ),
            ),
        ),
        (
            "The responses",
            (
                by_role(
                    "Cut",
                    "Share of the last batch that ran into sampling.max_tokens. Above 80% it is a cause not to learn.",
                    "percentunit",
                    "redraft_learner_cut_share",
                    ((0.5, CARE), (0.8, BAD)),
                ),
                by_role(
                    "Not parsed",
                    "Share from which the environment could parse no answer. Empty where it does not say.",
                    "percentunit",
                    "redraft_learner_unparsed_share",
                    ((0.5, CARE), (0.8, BAD)),
                ),
                lines(
                    "Length",
                    "Tokens of a response of the last batch: mean, and the longest.",
                    "none",
                    ('max by (role) (redraft_learner_response_tokens{run="$run"})', "{{role}} mean"),
                    ('max by (role) (redraft_learner_longest_response_tokens{run="$run"})', "{{role}} most"),
                ),
            ),
        ),
    )
