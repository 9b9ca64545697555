"""Tasks that a model finds in an environment that cannot find its own (AgentEvolver, arXiv 2511.10395).

    a training task, as where to start -> the model plays on, curious -> what it did and saw -> tasks with references

Who makes tasks is not shown the question of the task that was the start, but what was found from there before.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass

from actors.door import EpisodeFailure
from actors.engines.teacher import Teacher
from actors.environments.base import Poses
from actors.messages import asked, message
from actors.mixture import Pools
from actors.question_config import Profile, QuestionerSettings, profile
from actors.step_judge import LONGEST
from redraft.recipe import Recipe

log = logging.getLogger("redraft.questions")
ACTION = re.compile(r"<action>(.*?)</action>", re.DOTALL)
TASK = re.compile(r"<task>(.*?)</task>", re.DOTALL)
FOUND = "found"  # of a task: where it is from
RELATIONS = {
    1: "each is about one entity",
    2: "each is about several entities, which do not depend on each other",
    3: "each is about several entities, where one step's result is needed for another",
}

EXPLORE = """\
You are new in an environment, and curious: find out what can be done there and how it behaves.

{profile}

How to explore:
- Do nothing twice; let each action build on what the last one has shown.
- Begin broadly: in your first three to five actions try different kinds of things.
- Then go deep: use what one action gave you in the next, try limits, combine actions.
- At last look for rules: what leads to what, and what has to come before.
- You may be shown a task. It says where you are and how to act; do not set out to solve it.

In each message say what you see, what you think of it, and what you want to find out. Then give one action, exactly \
as the environment takes it:
<action>...</action>
"""
NO_ACTION = "That held no action. Give one between <action> and </action>."
SUMMARISE = """\
Somebody has explored an environment. Make tasks of what that has shown.

{profile}

What is wanted: about {entities} entities and {opts} kinds of actions a task; {relation}.
{rubrics}
Rules:
- A task is what a person would want done there, needs several actions, and says exactly what is to be reached, so \
that it can be checked.
- Use only what the steps below have shown to work.
- The actions of a task are those that solve it from the very start, exactly as they are given to the environment. \
Leave out what was only tried.
- Do not repeat tasks that were found already.

Found already:
{known}

The steps:
{steps}

Write any number of tasks, each as JSON in this form, where confidence from 0 to 1 says how sure you are that the \
actions solve it:
<task>{{"query": "...", "confidence": 0.9, "action_sequence": ["...", "..."]}}</task>
"""

Step = tuple[str, str]


@dataclass(slots=True)
class Unusable:
    """What brought no task."""

    unanswered: int = 0
    """Requests without an answer."""
    unparsed: int = 0
    """Tasks that could not be read, and answers without one."""
    unposed: int = 0
    """Tasks that the environment cannot judge."""


def tasks_of(answer: str) -> tuple[list[dict], int]:
    """The tasks that an answer holds (query, confidence, reference), and how many could not be read."""
    pieces = TASK.findall(answer)
    read = [_task(piece) for piece in pieces]
    found = [task for task in read if task is not None]
    return found, len(read) - len(found) if pieces else 1


def _task(piece: str) -> dict | None:
    try:
        said = json.loads(piece)
        query, sure, actions = said["query"], said["confidence"], said["action_sequence"]
    except (ValueError, KeyError, TypeError):
        return None
    if not isinstance(query, str) or not query.strip() or not isinstance(actions, list):
        return None
    if isinstance(sure, bool) or not isinstance(sure, int | float) or not 0 <= sure <= 1:
        return None
    if not all(isinstance(action, str) for action in actions):
        return None
    return {"query": query.strip(), "confidence": float(sure), "reference": [one for one in actions if one.strip()]}


def told(about: Profile) -> str:
    """A profile, as a model reads it."""
    lines = [f"The environment: {about.name}. {about.background}"]
    for entity in about.entities:
        lines.append(f"- {entity.name}: {entity.description}")
        lines += [f"  has {name}: {meaning}" for name, meaning in entity.attrs.items()]
        lines += [f"  can {option.name}: {option.description}" for option in entity.opts]
    return "\n".join(lines)


def summary_prompt(about: Profile, steps: Sequence[Step], known: Sequence[str]) -> str:
    """What is asked of who makes tasks: of steps (action, what was said to it), beside tasks that are known."""
    wanted = about.task_preference
    shown = [
        f"Step {n}\nAction: {did[:LONGEST]}\nObservation: {said[:LONGEST]}" for n, (did, said) in enumerate(steps, 1)
    ]
    return SUMMARISE.format(
        profile=told(about),
        entities=wanted.num_entities,
        opts=wanted.num_opts,
        relation=RELATIONS[wanted.relation_difficulty],
        rubrics="".join(f"{rubric}\n" for rubric in about.rubrics),
        known="\n".join(f"- {query}" for query in known) or "nothing",
        steps="\n\n".join(shown),
    )


class Questioner:
    """Explores from training tasks, each in its turn. Belongs to one event loop. Raises SettingError where there is no
    key, or the profile is none."""

    def __init__(self, recipe: Recipe, settings: QuestionerSettings, made: Poses, seeds: Sequence[dict]):
        self._recipe, self._settings, self._made = recipe, settings, made
        self._seeds = [dict(seed) for seed in seeds]
        self._profile = profile(settings.profile)
        self._teacher = Teacher(settings)
        self._explorer = self._teacher if settings.explorer is None else Teacher(settings.explorer)
        self.unusable = Unusable()

    @property
    def chunk(self) -> int:
        """Most explorations at once: no two from the same task, so that each is told what was found before."""
        return len(self._seeds)

    @property
    def identity(self) -> list:
        """All that the tasks depend on, beside the environment and the seed of the recipe."""
        said = {"profile": self._profile.model_dump(mode="json"), "turns": self._settings.turns}
        asked_ones = [self._settings, *([self._settings.explorer] if self._settings.explorer else [])]
        models = [[one.model, one.temperature, one.max_tokens] for one in asked_ones]
        return [said, models, [seed["id"] for seed in self._seeds]]

    async def found(self, numbers: range, kept: Sequence[dict]) -> list[dict]:
        """What these explorations suggest, in their order; `kept` are the tasks of the file. Raises SettingError when
        no answer ever will come, TeacherBudget."""
        pools = Pools(self._recipe.mixture)
        try:
            async with asyncio.TaskGroup() as group:
                made = [group.create_task(self._one(pools, number, numbers.start, kept)) for number in numbers]
        except BaseExceptionGroup as several:
            raise several.exceptions[0] from None
        finally:
            await pools.close()
        return [task for one in made for task in one.result()]

    async def close(self) -> None:
        """Closes the connections."""
        await self._teacher.close()
        await self._explorer.close()

    async def _one(self, pools: Pools, number: int, start: int, kept: Sequence[dict]) -> list[dict]:
        seed = self._seeds[number % len(self._seeds)]
        steps = await self._explore(pools, seed, number)
        if not steps:
            return []
        places = [(task, task.get(FOUND) or {}) for task in kept]
        known = [task["query"] for task, of in places if of.get("seed") == seed["id"] and of["exploration"] < start]
        answer = await self._said(self._teacher, [message("user", summary_prompt(self._profile, steps, known))])
        if answer is None:
            return []
        proposed, unread = tasks_of(answer)
        self.unusable.unparsed += unread
        return self._posed(seed, number, proposed)

    def _posed(self, seed: dict, number: int, proposed: Sequence[dict]) -> list[dict]:
        """The tasks that the environment can judge, the surest first."""
        found = []
        for task in sorted(proposed, key=lambda task: -task["confidence"]):
            own = self._made.posed(seed, task["query"])
            if own is None:
                self.unusable.unposed += 1
                continue
            own = {key: value for key, value in own.items() if key != "id"}
            found.append(own | task | {FOUND: {"seed": seed["id"], "exploration": number}})
        return found

    async def _explore(self, pools: Pools, seed: dict, number: int) -> list[Step]:
        """What was done and what was said to it; as far as it came where somebody failed."""
        steps: list[Step] = []
        try:
            async with pools.of(seed).one(seed, self._recipe.seed + number) as environment:
                heard = asked(environment.observation)
                dialogue = [message("system", EXPLORE.format(profile=told(self._profile))), message("user", heard)]
                for _ in range(self._settings.turns):
                    said = await self._said(self._explorer, dialogue)
                    if said is None:
                        break
                    actions = ACTION.findall(said)
                    dialogue.append(message("assistant", said))
                    if not actions:
                        dialogue.append(message("user", NO_ACTION))
                        continue
                    outcome = await environment.step(actions[-1].strip())
                    heard = asked(environment.observation)
                    steps.append((actions[-1].strip(), heard))
                    dialogue.append(message("user", heard))
                    if outcome.over:
                        break
        except EpisodeFailure as failure:
            log.warning("%s", failure)
        return steps

    async def _said(self, teacher: Teacher, dialogue: list[dict]) -> str | None:
        try:
            return await teacher.write(dialogue)
        except EpisodeFailure as failure:
            log.warning("%s", failure)
            self.unusable.unanswered += 1
            return None
