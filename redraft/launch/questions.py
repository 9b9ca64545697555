"""Tasks that an environment finds for itself (self-questioning of AgentEvolver, arXiv 2511.10395).

    explore -> propose -> has a reference? like none before? -> its reference is played: kept where that succeeds

What is kept has the actions that led to the success as its reference, whatever else was proposed. Each exploration
draws from a stream of its own number, so that what was cut off goes on as if it had not been.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from actors import environments, synthetic
from actors.distinct import Distinct
from actors.door import EpisodeFailure
from actors.environment_pool import EnvironmentPool
from actors.environments.base import Questions
from actors.mixture import Pools
from protocols import strict_json
from protocols.errors import SettingError
from redraft.recipe import Recipe

CHUNK = 64  # explorations between two times that what was found is kept
DONE = ".progress"  # beside the file: how far it is, and of what
ABOUT = ("id", "query", "reference", "confidence", "proved")


@dataclass(slots=True)
class Counts:
    """What became of what was proposed."""

    explored: int = 0
    proposed: int = 0
    empty: int = 0
    alike: int = 0
    infeasible: int = 0
    kept: int = 0


def make(recipe: Recipe, file: Path, explorations: int, tell: Callable[[str], None]) -> Counts:
    """Adds tasks to the file until so many explorations were made, those of earlier calls included. Raises SettingError
    where the environment cannot explore, or the file was made with other settings."""
    if recipe.environments:
        raise SettingError("environments", "questions are those of one environment", "Name one, as environment")
    made = environments.make(recipe.environment)
    if not isinstance(made, Questions):
        problem = f"{recipe.environment.name} has no `explore` and `propose`"
        raise SettingError("environment.name", problem, "Add them (actors/environments/base.py), or name another one")
    known = synthetic.read(file) if file.exists() else []
    progress = Progress(file, recipe)
    counts, seen = Counts(), Distinct()
    for task in known:
        seen.take(task["query"].split())
    file.parent.mkdir(parents=True, exist_ok=True)
    for start in range(progress.done, explorations, CHUNK):
        numbers = range(start, min(start + CHUNK, explorations))
        found = [task for number in numbers for task in _proposed(made, recipe.seed, number)]
        fresh = _filtered(found, seen, counts)
        proved = asyncio.run(_proved(recipe, fresh))
        possible = [task for task in proved if task is not None]
        kept = [task for task in possible if seen.take(task["query"].split())]
        with file.open("a", encoding="ascii") as output:
            output.write("".join(strict_json.dumps(task) + "\n" for task in kept))
        progress.write(numbers.stop)
        counts.explored += len(numbers)
        counts.infeasible += len(proved) - len(possible)
        counts.alike += len(possible) - len(kept)
        counts.kept += len(kept)
        tell(f"{numbers.stop} of {explorations} explored, {counts.kept} tasks kept")
    made.close()
    return counts


class Progress:
    """How many explorations a file holds what came of."""

    def __init__(self, file: Path, recipe: Recipe):
        self._path = file.with_name(file.name + DONE)
        settings = [recipe.environment.model_dump(mode="json"), recipe.seed]
        self._of = hashlib.blake2b(json.dumps(settings).encode(), digest_size=10).hexdigest()
        self.done = 0
        if self._path.exists():
            found = json.loads(self._path.read_text())
            if found["of"] != self._of:
                problem = f"{file} was made with another environment, options or seed"
                raise SettingError("FILE", problem, "Name another file, or remove it with its progress")
            self.done = found["explored"]

    def write(self, done: int) -> None:
        aside = self._path.with_name("." + self._path.name)
        aside.write_text(strict_json.dumps({"of": self._of, "explored": done}))
        aside.replace(self._path)
        self.done = done


def _proposed(made: Questions, seed: int, number: int) -> list[dict]:
    """What one exploration suggests, the surest first."""
    found = made.propose(made.explore(np.random.default_rng([seed, number])))
    return sorted(found, key=lambda task: -task.get("confidence", 1.0))


def _filtered(found: Sequence[dict], seen: Distinct, counts: Counts) -> list[dict]:
    """Those with a reference that are like none that was kept."""
    counts.proposed += len(found)
    solved = [task for task in found if task.get("reference")]
    fresh = [task for task in solved if seen.new(task["query"].split())]
    counts.empty += len(found) - len(solved)
    counts.alike += len(solved) - len(fresh)
    return fresh


async def _proved(recipe: Recipe, tasks: Sequence[dict]) -> list[dict | None]:
    """Each task as it is kept; None where its reference does not succeed, or the environment breaks on it."""
    pools = Pools(recipe.mixture)
    try:
        return await asyncio.gather(*(_prove(pools.of(task), task, recipe.seed) for task in tasks))
    finally:
        await pools.close()


async def _prove(pool: EnvironmentPool, task: dict, seed: int) -> dict | None:
    own = {key: value for key, value in task.items() if key not in ABOUT}
    about = {"query": task["query"], "reference": list(task["reference"])}
    named = own | about | {"id": synthetic.identity(**about)}
    done: list[str] = []
    try:
        async with pool.one(named, seed) as environment:
            for action in task["reference"]:
                outcome = await environment.step(action)
                done.append(action)
                if outcome.success:
                    about["reference"] = done
                    return own | about | {"id": synthetic.identity(**about), "proved": True}
                if outcome.over:
                    return None
    except EpisodeFailure:
        return None
    return None
