"""Makes and scores puzzles of reasoning-gym: the program behind actors/environments/reasoning.py.

It is asked {"of": [dataset, config, seed], "make": [first, last]} or "score": {number, question, answer}, and answers
as actors/answering.py says.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from actors import answering

SIZE = 10_000
"""Of a dataset: some prepare all of it when they are made. The package draws puzzle n of seed s from s + n, so that
seeds as far apart have none in common."""
KEPT = 64  # puzzles that are not made anew for each of their answers


def begin(first: Any) -> Callable[[dict], Any]:
    import numpy
    import reasoning_gym  # pyright: ignore[reportMissingImports]  an extra

    @lru_cache(8)
    def dataset(name: str, config: str, seed: int) -> Any:
        settings = json.loads(config)
        if {"seed", "size"} & set(settings):
            raise ValueError("config holds a seed or a size: set environment.options.seed, and sizes in data")
        return reasoning_gym.create_dataset(name, seed=seed * SIZE, size=SIZE, **settings)

    @lru_cache(KEPT)
    def puzzle(name: str, config: str, seed: int, number: int) -> dict:
        """The same ones in every process, also of kinds that draw from the numbers of all."""
        random.seed(f"{seed}/{number}")
        numpy.random.seed(number)
        return dataset(name, config, seed)[number]

    def answer(asked: dict) -> Any:
        of = asked["of"]
        if "make" in asked:
            numbers = range(asked["make"][0], min(asked["make"][1], len(dataset(*of))))
            return [(found["question"], _text(found["answer"])) for found in (puzzle(*of, n) for n in numbers)]
        about = asked["score"]
        found = puzzle(*of, about["number"])
        if found["question"] != about["question"]:
            return f"puzzle {about['number']} of {of[0]} is another one here than in the task: versions differ"
        return _plain(dataset(*of).score_answer(about["answer"], found))

    return answer


def _text(answer: Any) -> str | None:
    return answer if isinstance(answer, str) else None


def _plain(score: Any) -> float | None:
    return None if score is None else float(score)


if __name__ == "__main__":
    answering.serve(begin, float(sys.argv[1]))
