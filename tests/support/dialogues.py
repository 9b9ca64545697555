"""Groups for tests of the learner: three dialogues of two turns each, of random lengths and rewards."""

from __future__ import annotations

import numpy as np

from protocols.turns import Group, Role, Turn


def groups(count: int, vocabulary: int | None = None) -> list[Group]:
    """All tokens of a group lie in the hundred that belongs to it, or below `vocabulary`."""
    random = np.random.default_rng(5)
    made = []
    for number in range(count):
        name = number.to_bytes(16, "big")
        tokens = range(100 * number, 100 * (number + 1)) if vocabulary is None else range(vocabulary)
        made.append(Group(name, 0, tuple(_turn(name, turn, tokens, random) for turn in range(6))))
    return made


def _turn(name: bytes, number: int, tokens: range, random: np.random.Generator) -> Turn:
    prompt, response = (random.integers(tokens.start, tokens.stop, size) for size in random.integers(2, 6, 2))
    logprobs = -random.random(len(response), dtype=np.float32)
    arrays = (prompt.astype(np.int32), response.astype(np.int32), logprobs)
    facts = {"episode": number // 2, "index": number % 2, "reward": float(random.random())}
    parent = number - 1 if number % 2 else -1
    return Turn(name, 0, number, parent, *arrays, ((0, 0),), Role.ATTEMPT, **facts)
