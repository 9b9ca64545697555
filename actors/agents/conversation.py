"""One episode of an agent: what it is answered, what it is paid, and the turns that come of both."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from actors import door
from actors.agents.dialogues import Dialogues
from actors.agents.paths import Answer, Paths
from actors.agents.requests import MODEL, Asked, Refused, Terms, read
from actors.door import EpisodeFailure, Judged
from actors.engines import Completion
from actors.rollout_config import AgentSettings
from actors.rollouts import Aborted, Stage
from protocols.turns import OWN_ROLE, Role

AGENT = "the agent"
log = logging.getLogger("redraft.agents")


class Conversation:
    """What an episode has said and heard so far."""

    def __init__(self, stage: Stage[AgentSettings], number: int):
        self._stage, self._number = stage, number
        self._terms = Terms(stage.sampling, stage.settings.roles)
        self._paths = Paths(stage.renderer)
        self._dialogues = Dialogues(stage.renderer, self._paths)
        self._judged: dict[int, Judged] = {}  # by the place of the answer that it is about
        self._given = 0  # answers that were begun, reflections aside
        self._lost: list[Asked] = []  # requests whose answers nobody was there to hear
        self._fault: BaseException | None = None
        self.over = asyncio.Event()
        """The episode cannot go on, or has had all its answers."""
        self.too_long: EpisodeFailure | None = None
        """Why its newest request was refused, where that left no room for an answer."""

    @property
    def models(self) -> Sequence[str]:
        return self._terms.models

    @property
    def scored(self) -> int:
        return len(self._judged)

    def check(self) -> None:
        """Raises what ended the whole group, if anything did."""
        if self._fault is not None:
            raise self._fault

    async def complete(self, body: Any, text: bool) -> tuple[Asked, Mapping[str, Any]]:
        """Raises Refused. A request that is refused is none of the answers."""
        asked = read(body, self._terms, text)
        role = self._stage.settings.role if asked.role is None else asked.role
        counts = 0 if role is Role.REFLECTION else asked.choices
        if counts and self._given + counts > self._stage.settings.turns:
            self.over.set()
            raise Refused(
                f"The episode has had its {self._stage.settings.turns} answers", code="invalid_api_key", status=401
            )
        for key in asked.noted:
            _overruled(key)
        self._given += counts
        try:
            return asked, await self._dialogues.answer(asked, role, functools.partial(self._generate, asked, role))
        except BaseException:
            self._given -= counts
            raise

    async def _generate(self, asked: Asked, role: Role, ids: np.ndarray) -> Completion:
        try:
            completion = await self._stage.generate(ids, role, asked.sampling)
        except EpisodeFailure as failure:
            self.too_long = failure
            raise Refused(str(failure), "messages", "context_length_exceeded") from None
        except Exception as error:  # the engine's end, or that it gave the request up, ends the group
            self._fault = error
            self.over.set()
            said = "gave the request up" if isinstance(error, Aborted) else "has ended"
            raise Refused(f"The engine {said}", status=503) from None
        self.too_long = None  # it went on with less
        return completion

    def heard(self, asked: Asked, there: bool) -> None:
        """Whether the client was there when the request was answered; it may ask for the same answer again."""
        self._lost = [one for one in self._lost if one is not asked] + [asked] * (not there)

    def _kept(self) -> list[int]:
        """Places of the answers that the client heard, or that one which it heard goes on from."""
        answers = self._paths.answers
        lost = {place for place, answer in enumerate(answers) if any(answer.asked is one for one in self._lost)}
        kept = {place for place in range(len(answers)) if place not in lost}
        places = {id(answer): place for place, answer in enumerate(answers)}
        for place in sorted(kept, reverse=True):  # who goes on comes after
            parent = answers[place].place.parent
            while parent is not None and places[id(parent)] not in kept:
                kept.add(places[id(parent)])
                parent = parent.place.parent
        return sorted(kept)

    def reward(self, given: Any) -> None:
        """Raises Refused."""
        try:
            self.score(door.judged(AGENT, given))
        except EpisodeFailure as failure:
            raise Refused(str(failure)) from None

    def score(self, judged: Judged) -> None:
        """Of the newest answer. Raises EpisodeFailure where there is none that was not scored yet."""
        newest = max(self._kept(), default=-1)
        if newest < 0 or newest in self._judged:
            said = "has asked for nothing" if newest < 0 else "gave two rewards for one answer"
            raise EpisodeFailure("returned", f"{AGENT} {said}")
        self._judged[newest] = judged

    def write(self, output: str = "", cut: bool = False, broken: bool = False) -> None:
        """The turns, in the order in which they came. A reflection carries the reward of what it led to; an answer that
        was not scored has none. Where the episode was `cut`, reflections that led to nothing are left out. Where it was
        `broken` off no turn is its end. An answer that nobody heard is no turn."""
        numbers: dict[Answer, int] = {}
        answers, kept = self._paths.answers, self._kept()
        while cut and kept and answers[kept[-1]].role is Role.REFLECTION:
            kept.pop()
        last, index, after = max(kept, default=-1), 0, -1
        for place in kept:
            answer = answers[place]
            judged = self._of(place, kept)
            parent = -1 if answer.place.parent is None else numbers[answer.place.parent]
            extra = _facts(answer) | {"success": judged.success, "answer": judged.answer}
            if judged.parts:
                extra["parts"] = dict(judged.parts)
            if place == last and output:
                extra["output"] = output
            after = numbers[answer] = self._stage.group.turn(
                answer.role,
                parent,
                answer.place.prompt,
                answer.completion,
                episode=self._number,
                index=index,
                after=after,
                reward=judged.reward,
                terminated=place == last and not cut and not broken,
                truncated=place == last and cut and not broken,
                extra=extra,
            )
            index += answer.role is not Role.REFLECTION

    def _of(self, place: int, kept: list[int]) -> Judged:
        """What is known of the answer at that place; of a reflection, of that among the `kept` that it led to."""
        answers = self._paths.answers
        if answers[place].role is Role.REFLECTION and place not in self._judged:
            later = (n for n in kept if n >= place)
            place = next((n for n in later if answers[n].role is not Role.REFLECTION), place)
        return self._judged.get(place, Judged(0.0, False))


def _facts(answer: Answer) -> dict[str, Any]:
    """What a turn's extra says of the request."""
    asked = answer.asked
    facts: dict[str, Any] = {} if asked.model == MODEL else {"model": asked.model}
    facts |= {OWN_ROLE: asked.own_role} if asked.own_role else {}
    facts |= {"new_root": answer.place.why} if answer.place.why else {}
    facts |= asked.own  # TEMPERATURE among them, by which the learner scores the turn
    return facts | ({"overruled": dict(asked.noted)} if asked.noted else {})


@functools.cache
def _overruled(key: str) -> None:
    """Said once in a process."""
    log.warning("an agent sets %s itself: the recipe says how it is sampled, and its turns say overruled", key)
