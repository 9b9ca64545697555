"""Tasks that an environment finds for itself (self-questioning of AgentEvolver, arXiv 2511.10395).

    explore -> propose -> has a reference? like none before? -> its reference is played: kept where that succeeds

The environment does both by itself, or a model does (questioner.py). What is kept has the actions that led to the
success as its reference, whatever else was proposed. Each exploration depends on its number and on what was kept before
its chunk alone, so that what was cut off goes on as if it had not been.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from actors import environments, synthetic
from actors.distinct import Distinct
from actors.door import EpisodeFailure
from actors.environment_pool import EnvironmentPool
from actors.environments.base import Poses, Questions, TextEnvironment
from actors.mixture import Pools
from protocols import strict_json
from protocols.errors import SettingError
from redraft.diagnosis.evidence import overlap
from redraft.launch.questioner import Questioner, Unusable
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
    broken: int = 0
    """Tasks on which the environment failed, which says nothing of them."""
    kept: int = 0
    unusable: Unusable | None = None
    """Of a model that is asked."""

    def __str__(self) -> str:
        dropped = f"{self.empty} without a reference, {self.alike} like others, {self.infeasible} not possible"
        dropped += f", {self.broken} on which the environment failed" if self.broken else ""
        if (asked := self.unusable) is not None:
            dropped += f"; {asked.unparsed} could not be read, {asked.unposed} cannot be judged by the environment, "
            dropped += f"{asked.unanswered} requests without an answer"
        return f"{self.kept} tasks of {self.proposed} proposed; {dropped}"


class Source(Protocol):
    """Who explores and proposes."""

    @property
    def chunk(self) -> int: ...
    @property
    def identity(self) -> list: ...
    @property
    def unusable(self) -> Unusable | None: ...

    async def found(self, numbers: range, kept: Sequence[dict]) -> list[dict]:
        """What these explorations suggest, in their order, those of each by confidence."""
        ...

    async def close(self) -> None:
        """Lets go of what it holds."""
        ...


class Itself:
    """The environment, which explores and proposes."""

    chunk, identity, unusable = CHUNK, [], None

    def __init__(self, made: Questions, seed: int):
        self._made, self._seed = made, seed

    async def found(self, numbers: range, kept: Sequence[dict]) -> list[dict]:
        return [task for number in numbers for task in self._proposed(number)]

    def _proposed(self, number: int) -> list[dict]:
        found = self._made.propose(self._made.explore(np.random.default_rng([self._seed, number])))
        return sorted(found, key=lambda task: -task.get("confidence", 1.0))

    async def close(self) -> None:
        pass


def make(recipe: Recipe, file: Path, explorations: int, tell: Callable[[str], None]) -> Counts:
    """Adds tasks to the file until so many explorations were made, those of earlier calls included. Raises SettingError
    where nobody can explore, or the file was made with other settings; TeacherBudget, after which the same call goes
    on from the last chunk that was kept."""
    if recipe.environments:
        raise SettingError("environments", "questions are those of one environment", "Name one, as environment")
    made = environments.make(recipe.environment)
    try:
        with asyncio.Runner() as runner:  # one loop: connections and budgets are a loop's
            source = _source(recipe, made)
            try:
                return _made(recipe, source, runner, file, explorations, tell)
            finally:
                runner.run(source.close())
    finally:
        made.close()


def _made(
    recipe: Recipe, source: Source, runner: asyncio.Runner, file: Path, explorations: int, tell: Callable[[str], None]
) -> Counts:
    known = synthetic.read(file) if file.exists() else []
    progress = Progress(file, recipe, source.identity)
    counts, seen = Counts(unusable=source.unusable), Distinct()
    for task in known:
        seen.take(task["query"].split())
    file.parent.mkdir(parents=True, exist_ok=True)
    chunk = min(CHUNK, source.chunk)
    tests = _tests(recipe)
    for start in range(progress.done, explorations, chunk):
        numbers = range(start, min(start + chunk, explorations))
        fresh = _untested(_filtered(runner.run(source.found(numbers, known)), seen, counts), tests, counts)
        possible = runner.run(_proved(recipe, fresh, counts))
        kept = [task for task in possible if seen.take(task["query"].split())]
        known += kept
        replace_whole(file, "".join(strict_json.dumps(task) + "\n" for task in known))
        progress.write(numbers.stop)
        counts.explored += len(numbers)
        counts.alike += len(possible) - len(kept)
        counts.kept += len(kept)
        tell(f"{numbers.stop} of {explorations} explored, {counts.kept} tasks kept")
    return counts


def _tests(recipe: Recipe) -> Sequence[dict]:
    """Of the recipe; none where there are none yet."""
    try:
        return environments.tasks(recipe.environment, recipe.data.model_copy(update={"synthetic": None}), "test")
    except SettingError:
        return ()


def _untested(fresh: list[dict], tests: Sequence[dict], counts: Counts) -> list[dict]:
    """Without those that ask what a test task asks, where tasks are told apart by a text."""
    asked = set(overlap(tests, [task | {"id": str(place)} for place, task in enumerate(fresh)]))
    counts.alike += len(asked)
    return [task for place, task in enumerate(fresh) if str(place) not in asked]


def _source(recipe: Recipe, made: TextEnvironment) -> Source:
    name = recipe.environment.name
    asked = recipe.data.synthetic.questioner if recipe.data.synthetic else None
    if asked is not None:
        if not isinstance(made, Poses):
            problem = f"{name} has no `posed`: it could not judge what a model asks for"
            raise SettingError("environment.name", problem, "Add it (actors/environments/base.py), or name another one")
        own = recipe.data.model_copy(update={"synthetic": None})
        return Questioner(recipe, asked, made, environments.tasks(recipe.environment, own, "train"))
    if not isinstance(made, Questions):
        problem = f"{name} has no `explore` and `propose`"
        cure = "Add them (actors/environments/base.py), have a model find tasks by data.synthetic.questioner, or name "
        raise SettingError("environment.name", problem, f"{cure}another one")
    return Itself(made, recipe.seed)


def replace_whole(file: Path, text: str) -> None:
    """Writes a file so that it is never seen, nor left, in part."""
    aside = file.with_name("." + file.name)
    aside.write_text(text, "ascii")
    aside.replace(file)


class Progress:
    """How many explorations a file holds what came of."""

    def __init__(self, file: Path, recipe: Recipe, identity: list):
        self._path = file.with_name(file.name + DONE)
        settings = [recipe.environment.model_dump(mode="json"), recipe.seed, *identity]
        self._of = hashlib.blake2b(json.dumps(settings).encode(), digest_size=10).hexdigest()
        self.done = 0
        if self._path.exists():
            found = json.loads(self._path.read_text())
            if found["of"] != self._of:
                problem = f"{file} was made with another environment, options, seed or questioner"
                raise SettingError("FILE", problem, "Name another file, or remove it with its progress")
            self.done = found["explored"]

    def write(self, done: int) -> None:
        replace_whole(self._path, strict_json.dumps({"of": self._of, "explored": done}))
        self.done = done


def _filtered(found: Sequence[dict], seen: Distinct, counts: Counts) -> list[dict]:
    """Those with a reference that are like none that was kept."""
    counts.proposed += len(found)
    solved = [task for task in found if task.get("reference")]
    fresh = [task for task in solved if seen.new(task["query"].split())]
    counts.empty += len(found) - len(solved)
    counts.alike += len(solved) - len(fresh)
    return fresh


async def _proved(recipe: Recipe, tasks: Sequence[dict], counts: Counts) -> list[dict]:
    """The tasks whose reference succeeds, as they are kept."""
    pools = Pools(recipe.mixture)
    try:
        played = await asyncio.gather(
            *(_prove(pools.of(task), task, recipe.seed) for task in tasks), return_exceptions=True
        )
    finally:
        await pools.close()
    counts.infeasible += played.count(None)
    counts.broken += sum(isinstance(one, EpisodeFailure) for one in played)
    for one in played:
        if isinstance(one, BaseException) and not isinstance(one, EpisodeFailure):
            raise one
    return [one for one in played if isinstance(one, dict)]


async def _prove(pool: EnvironmentPool, task: dict, seed: int) -> dict | None:
    """The task with the actions that led to its success; None where its reference leads to none. The environment is not
    told the reference. Raises EpisodeFailure where it breaks."""
    own = {key: value for key, value in task.items() if key not in ABOUT}
    query, done = task["query"], []
    named = own | {"query": query, "id": synthetic.identity(query, task["reference"])}
    async with pool.one(named, seed) as environment:
        for action in task["reference"]:
            outcome = await environment.step(action)
            done.append(action)
            if outcome.success:
                about = {"query": query, "reference": done}
                return own | about | {"id": synthetic.identity(**about), "proved": True}
            if outcome.over:
                break
    return None
