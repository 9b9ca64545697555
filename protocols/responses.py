"""What the responses look like that the policy sampled: a part of the report of a step, and of an evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

from protocols.measured import ByRole, Reported, measured


class Lengths(TypedDict):
    """Tokens of responses."""

    mean: float
    p50: float
    max: int


@dataclass(frozen=True, slots=True)
class Responses(Reported):
    """What the responses look like that the policy sampled, by role in small letters; see learner.batches.responses."""

    cut_share: dict[str, float] = measured(
        "Share that ran into sampling.max_tokens or the end of the context",
        ByRole("learner_cut_share", "Share of the last batch's responses that were cut"),
        group="responses",
        factory=dict,
    )
    unparsed_share: dict[str, float] = measured(
        "Share from which the environment could parse no answer; only roles that it judges and says so of",
        ByRole("learner_unparsed_share", "Share of those that nothing could be parsed from"),
        group="responses",
        factory=dict,
    )
    response_tokens: dict[str, Lengths] = measured(
        "Lengths, the end token counted",
        ByRole("learner_response_tokens", "Mean length of the last batch's responses", of="mean"),
        ByRole("learner_longest_response_tokens", "Longest response of the last batch", of="max"),
        unit="tokens",
        group="responses",
        factory=dict,
    )
