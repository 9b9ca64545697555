"""What `redraft doctor RECIPE` looks at: a few tasks, their answers scored by hand, and played as the run would.

Reference and empty answers need no model. The tasks are then played in this process, without Ray and replay; what was
played goes through replay's own codec and the learner's own batch, so that it is what a step would train.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from actors import engines, environments, mixture, rendering, rollouts
from actors.door import EpisodeFailure, Outcome
from actors.environment_pool import EnvironmentPool
from actors.group import GroupWriter
from actors.mixture import Pools
from actors.rendering import Renderer
from protocols.errors import RedraftError
from protocols.turns import Close, Group, Lease, Turn
from protocols.wire import ENTRY, Row, row_of, whole_group
from redraft.recipe import Recipe

TASKS = 20
EPISODES = 4  # of a group, at most: enough to see whether they differ
AT_ONCE = 8  # groups
Tell = Callable[[str, int, int], None]
"""What is done now, how much of it, and how much there is."""


@dataclass(slots=True)
class Scored:
    """What one task pays for an empty answer and for its reference answer, which is None where it has none. A failure
    stands in the place of an outcome."""

    task: str
    reference: str | None
    empty: Outcome | EpisodeFailure
    right: Outcome | EpisodeFailure | None


@dataclass(slots=True)
class Played:
    """What was seen. `kept` are heads and turns as transcripts keep them: of each token its weight in the loss;
    `problem` says why nothing would be trained."""

    scored: list[Scored] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)
    spreads: list[float] = field(default_factory=list)
    asked: int = 0
    seconds: float = 0.0
    kept: list[tuple[dict, list[dict]]] = field(default_factory=list)
    longest: int = 0
    """Sequences that are cut at the longest that may be trained."""
    problem: str = ""

    @property
    def turns(self) -> list[Turn]:
        return [turn for group in self.groups for turn in group.turns]


def tasks_of(recipe: Recipe, count: int = TASKS) -> list[dict]:
    """The first training tasks of the run."""
    tasks = mixture.tasks(recipe.mixture, "train")
    order = mixture.order(recipe.mixture, tasks, recipe.seed, recipe.curriculum)
    return [order.task(position)[1] for position in range(min(count, len(tasks)))]


async def look(recipe: Recipe, model: Path, limit_s: float, tell: Tell) -> Played:
    """Scores and plays; groups that have not ended after `limit_s` of playing are left out."""
    played, tasks = Played(), tasks_of(recipe)
    renderer = rendering.load(model, recipe.model.on_rewrite, recipe.rollout.system)
    pools = Pools(recipe.mixture)
    try:
        for number, task in enumerate(tasks, 1):
            tell("scoring reference and empty answers", number, len(tasks))
            played.scored.append(await _scored(recipe, pools, task))
        tell("starting the engine", 0, 1)
        settings = recipe.actors.engine
        with _quiet():
            engine = await engines.start(str(model), recipe.model.dtype, settings, recipe.seed)
        try:
            await _play(recipe, engine, renderer, pools, tasks, limit_s, tell, played)
        finally:
            await engine.close()
    finally:
        await pools.close()
    return played


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps what libraries write on stderr while they start, their own processes included, for an error alone."""
    with tempfile.TemporaryFile() as kept:
        sys.stderr.flush()
        shown = os.dup(2)
        os.dup2(kept.fileno(), 2)
        try:
            yield
        except BaseException:
            kept.seek(0)
            os.write(shown, kept.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(shown, 2)
            os.close(shown)


async def _scored(recipe: Recipe, pools: Pools, task: dict) -> Scored:
    environment = await asyncio.to_thread(environments.make, mixture.of(recipe.mixture, task))
    try:
        reference = getattr(environment, "reference", lambda task: None)(task)
    finally:
        await asyncio.to_thread(environment.close)
    right = None if reference is None else await _outcome(recipe, pools, task, reference)
    return Scored(task["id"], reference, await _outcome(recipe, pools, task, ""), right)


async def _outcome(recipe: Recipe, pools: Pools, task: dict, text: str) -> Outcome | EpisodeFailure:
    try:
        async with pools.of(task).one(task, recipe.seed) as environment:
            return await environment.step(text)
    except EpisodeFailure as failure:
        return failure


async def _play(
    recipe: Recipe,
    engine: engines.Engine,
    renderer: Renderer,
    pools: Pools,
    tasks: Sequence[dict],
    limit_s: float,
    tell: Tell,
    played: Played,
) -> None:
    settings = recipe.rollout.model_copy(update={"episodes": min(recipe.rollout.episodes, EPISODES)})
    began, room, ended = time.monotonic(), asyncio.Semaphore(AT_ONCE), 0

    async def one(number: int, task: dict) -> tuple[Group, float]:
        nonlocal ended
        async with room:
            found = await _group(recipe, engine, renderer, pools.of(task), settings, number, task)
        ended += 1
        tell("playing", ended, len(tasks))
        return found

    tell("playing", 0, len(tasks))
    works = [asyncio.ensure_future(one(number, task)) for number, task in enumerate(tasks)]
    done, late = await asyncio.wait(works, timeout=limit_s)
    for work in late:
        work.cancel()
    await asyncio.gather(*late, return_exceptions=True)
    played.asked, played.seconds = len(tasks), time.monotonic() - began
    for work in works:
        if work in done:
            group, spread = work.result()
            played.groups.append(group)
            played.spreads.append(spread)


async def _group(
    recipe: Recipe, engine: engines.Engine, renderer: Renderer, pool: EnvironmentPool, settings, number: int, task: dict
) -> tuple[Group, float]:
    """One group as replay would hand it to the learner, and how far apart its rewards are."""
    rows, lease = [], Lease(number.to_bytes(16, "big"), 0, number, task, recipe.seed + number * settings.episodes)

    def keep(item: Turn | Close, lease: Lease, spread: float) -> None:
        packed = row_of(item, 0)
        rows.append((Row._make(ENTRY.unpack(packed[0])), packed))

    teacher = getattr(settings, "teacher", None)
    writes = None
    if teacher is not None:
        from actors.engines.teacher import Teacher

        writes = Teacher(teacher)
    writer = GroupWriter(lease, keep)
    stage = rollouts.Stage(
        engine,
        renderer,
        pool,
        writer,
        task,
        lease.seed,
        settings,
        recipe.sampling,
        lambda failure: None,
        lambda role, tokens: None,
        None if writes is None else writes.write,
    )
    try:
        await rollouts.find(settings.name)(stage)
    finally:
        if writes is not None:
            await writes.close()
    writer.close()
    return whole_group(rows), writer.spread


def train(recipe: Recipe, played: Played) -> None:
    """Adds what a step of the learner would make of the groups: `kept`, `longest`, `problem`."""
    from learner.transcripts import transcript

    if recipe.steps and played.groups:
        from learner.batches.batch import prepare

        record = recipe.learner.record.model_copy(update={"groups": len(played.groups)})
        settings = recipe.learner.model_copy(update={"record": record})
        try:
            batch = prepare(played.groups, 0, settings, seed=recipe.seed)
        except RedraftError as error:
            played.problem = str(error)
        else:
            played.kept, played.longest = batch.kept, batch.report.truncated_sequences
            if not batch.report.sequences:
                played.problem = "no token has a weight in the loss"
            return
    played.kept = [
        (transcript.head(group.turns), [transcript.told(turn) for turn in group.turns]) for group in played.groups
    ]


def chosen(played: Played, count: int = 2) -> list[tuple[str, list[dict]]]:
    """(task, turns of one episode) of that many dialogues: right and wrong ones first, of different groups, trained
    before untrained."""
    found = []
    for group, (head, turns) in zip(played.groups, played.kept, strict=True):
        for episode, marks in enumerate(head["marks"]):
            own = [turn for turn in turns if turn["episode"] == episode and turn["response"]]
            if own:
                trained = any(turn["weights"] is not None for turn in own)
                found.append((marks[-1:], not trained, group.extra.get("task", ""), own))
    picked: list[tuple[str, list[dict]]] = []
    for mark in ("r", "w", None):
        left = [one for one in found if one[2] not in {task for task, _ in picked} and mark in (one[0], None)]
        wanted = 1 if mark else count - len(picked)
        picked += [(task, own) for _, _, task, own in sorted(left, key=lambda one: one[1])[:wanted]]
    return picked[:count]
