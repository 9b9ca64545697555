"""What is to be learnt from episodes: a pool of experience is made of them, by the environment or by a model.

Of each task's episodes a model is asked for what a success teaches, what a failure does, and what the best did that the
worst did not; then to rate what it wrote, of which only what it stands by is kept (AgentEvolver, arXiv 2511.10395).
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Sequence

from actors.door import EpisodeFailure
from actors.engines.teacher import Teacher
from actors.environments.base import Played
from actors.episode_config import ExperienceWriterSettings
from actors.messages import message
from actors.rollout_config import Rollout
from actors.step_judge import LONGEST
from redraft.evaluation.measures import Pass

log = logging.getLogger("redraft.experience")
LABEL = "played"
VALID = 0.3  # what a model must rate its own words at least
ARRAY = re.compile(r"\[.*\]", re.DOTALL)
RATING = re.compile(r"^\W*lesson\s+(\d+)\W+([01](?:\.\d+)?)", re.IGNORECASE | re.MULTILINE)

ASK = """\
{shown}

{wanted}
Each lesson must help with other tasks of this kind, too: name no detail that only this one has. Answer with a JSON \
list of maps {{"when_to_use": "...", "content": "..."}}: in which situation the lesson helps, and what to do or avoid \
there.
"""
SUCCESS = "This attempt succeeded. Write one to three lessons from what made it succeed."
FAILURE = "This attempt failed. Write one to three lessons from what made it fail, and how that can be avoided."
APART = "The first attempt did better than the second. Write one or two lessons from what they did differently."
RATE = """\
These lessons were drawn from an attempt at a task:

{lessons}

Rate each from 0 to 1: is it true by what the attempt shows, clear, and of use for other tasks? Answer with one line a \
lesson, in this form:
Lesson 1: 0.8

The attempt:

{shown}
"""


def passes(recipe, plays: int) -> list[Pass]:
    """Each task so many times, as the recipe samples."""
    rollout: Rollout = recipe.rollout
    return [Pass(LABEL, rollout.tested(turns=None, episodes=plays), recipe.sampling)]


def questions(question: str, played: Sequence[Played]) -> list[tuple[str, str]]:
    """(what is asked, the episodes as they are shown) of one task's episodes: of the best success, of the worst
    failure, and of these two where they differ in what they were worth."""
    if not played:
        return []
    best, worst = max(played, key=lambda one: one.worth), min(played, key=lambda one: one.worth)
    found = [(SUCCESS, _shown(question, best))] if best.success else []
    found += [] if worst.success else [(FAILURE, _shown(question, worst))]
    if best.worth > worst.worth:
        found.append((APART, f"{_shown(question, best)}\n\n{_shown(question, worst)}"))
    return found


def lessons_of(answer: str) -> list[dict]:
    """The lessons that an answer holds; none where it holds no such list."""
    found = ARRAY.search(answer)
    try:
        listed = json.loads(found[0]) if found else []
    except ValueError:
        return []
    return [one for one in listed if isinstance(one, dict) and {"when_to_use", "content"} <= one.keys()]


def rated(answer: str, lessons: Sequence[dict]) -> list[dict]:
    """The lessons that an answer rates high enough; one that it does not rate is none."""
    marks = {int(number): float(mark) for number, mark in RATING.findall(answer)}
    return [one for number, one in enumerate(lessons, 1) if marks.get(number, 0.0) >= VALID]


class Writer:
    """Has a model write lessons. What it does not answer is left out, and counted."""

    def __init__(self, settings: ExperienceWriterSettings):
        self._settings = settings
        self.failed = 0
        """Requests without an answer that could be used."""

    def lessons(self, asked: Sequence[tuple[str, Sequence[Played]]]) -> list[list[dict]]:
        """Of each (question, episodes). Raises SettingError when no answer ever will come, TeacherBudget."""
        return asyncio.run(self._all(asked))

    async def _all(self, asked: Sequence[tuple[str, Sequence[Played]]]) -> list[list[dict]]:
        teacher = Teacher(self._settings)
        try:
            return await asyncio.gather(*(self._of(teacher, *one) for one in asked))
        finally:
            await teacher.close()

    async def _of(self, teacher: Teacher, question: str, played: Sequence[Played]) -> list[dict]:
        found = []
        for wanted, shown in questions(question, played):
            lessons = lessons_of(await self._said(teacher, ASK.format(shown=shown, wanted=wanted)))
            if not lessons:
                self.failed += 1
                continue
            told = "\n".join(f"Lesson {n}: {json.dumps(one)}" for n, one in enumerate(lessons, 1))
            found += rated(await self._said(teacher, RATE.format(lessons=told, shown=shown)), lessons)
        return found

    async def _said(self, teacher: Teacher, prompt: str) -> str:
        try:
            return await teacher.write([message("user", prompt)])
        except EpisodeFailure as failure:
            log.warning("%s", failure)
            return ""


def _shown(question: str, played: Played) -> str:
    steps = [
        f"Step {n}\nAction: {action[:LONGEST]}\nObservation: {said[:LONGEST]}"
        for n, (action, said) in enumerate(played.steps, 1)
    ]
    return "\n\n".join([f"Task:\n{question}\n\nAn attempt at it, worth {played.worth:g}:", *steps])
