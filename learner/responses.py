"""What responses look like, by role: how many were cut, how many nothing could be parsed from, how long they are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import numpy as np

from learner.credits import scored
from protocols.turns import Role, Stop, Turn


def responses_of(turns: Iterable[Turn]) -> dict[str, dict]:
    """Figures of the responses that the policy sampled, each a map from the role's name in small letters.

    cut_share: of those that ran into `sampling.max_tokens` or the end of the context; unparsed_share: of those from
    which the environment could parse no answer (without the roles that it does not judge, and empty where it does not
    say); response_tokens: {"mean", "p50", "max"} tokens, the end token counted.
    """
    cut, unparsed, tokens = defaultdict(list), defaultdict(list), defaultdict(list)
    for turn in turns:
        if not sampled(turn):
            continue
        role = turn.role.name.lower()
        cut[role].append(turn.stop is Stop.LENGTH)
        tokens[role].append(len(turn.response))
        if scored(turn) and "parsed" in turn.extra:
            unparsed[role].append(not turn.extra["parsed"])
    return {
        "cut_share": _means(cut),
        "unparsed_share": _means(unparsed),
        "response_tokens": {
            role: {"mean": float(np.mean(lengths)), "p50": float(np.median(lengths)), "max": max(lengths)}
            for role, lengths in sorted(tokens.items())
        },
    }


def sampled(turn: Turn) -> bool:
    """Whether the policy sampled this response, or a part of it."""
    return turn.role is not Role.ERROR and len(turn.response) > 0 and not np.isnan(turn.logprobs).all()


def _means(by_role: dict[str, list[bool]]) -> dict[str, float]:
    return {role: float(np.mean(found)) for role, found in sorted(by_role.items())}


def told(figures: dict) -> str:
    """The figures in words, "" where there are none: "attempt 73% cut, 97% unparsed, 210 tokens (most 256)"."""
    lengths = figures.get("response_tokens") or {}
    return "; ".join(f"{role} {', '.join(_told(figures, role, lengths[role]))}" for role in lengths)


def _told(figures: dict, role: str, tokens: dict) -> list[str]:
    shares = (("cut", "cut_share"), ("unparsed", "unparsed_share"))
    found = [f"{figures[key][role]:.0%} {word}" for word, key in shares if role in (figures.get(key) or {})]
    return [*found, f"{tokens['mean']:,.0f} tokens (most {tokens['max']:,})"]
