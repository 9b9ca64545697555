"""What responses look like, by role: how many were cut, how many nothing could be parsed from, how long they are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import numpy as np

from learner.credits import scored
from protocols.responses import Lengths, Responses
from protocols.turns import Role, Stop, Turn, role_name


def responses_of(turns: Iterable[Turn]) -> Responses:
    """Figures of the responses that the policy sampled, each a map from the role's name in small letters.

    cut_share: of those that ran into `sampling.max_tokens` or the end of the context; unparsed_share: of those from
    which the environment could parse no answer (without the roles that it does not judge, and empty where it does not
    say); response_tokens: {"mean", "p50", "max"} tokens, the end token counted.
    """
    cut, unparsed, tokens = defaultdict(list), defaultdict(list), defaultdict(list)
    for turn in turns:
        if not sampled(turn):
            continue
        role = role_name(turn)
        cut[role].append(turn.stop is Stop.LENGTH)
        tokens[role].append(len(turn.response))
        if scored(turn) and "parsed" in turn.extra:
            unparsed[role].append(not turn.extra["parsed"])
    lengths = {role: _lengths(found) for role, found in sorted(tokens.items())}
    return Responses(_means(cut), _means(unparsed), lengths)


def _lengths(tokens: list[int]) -> Lengths:
    return {"mean": float(np.mean(tokens)), "p50": float(np.median(tokens)), "max": max(tokens)}


def sampled(turn: Turn) -> bool:
    """Whether the policy sampled this response, or a part of it."""
    return turn.role is not Role.ERROR and len(turn.response) > 0 and not np.isnan(turn.logprobs).all()


def _means(by_role: dict[str, list[bool]]) -> dict[str, float]:
    return {role: float(np.mean(found)) for role, found in sorted(by_role.items())}


def told(responses: Responses) -> str:
    """The figures in words, "" where there are none: "attempt 73% cut, 97% unparsed, 210 tokens (most 256)"."""
    return "; ".join(f"{role} {', '.join(_told(responses, role))}" for role in responses.response_tokens)


def _told(responses: Responses, role: str) -> list[str]:
    shares = (("cut", responses.cut_share), ("unparsed", responses.unparsed_share))
    tokens = responses.response_tokens[role]
    found = [f"{share[role]:.0%} {word}" for word, share in shares if role in share]
    return [*found, f"{tokens['mean']:,.0f} tokens (most {tokens['max']:,})"]
