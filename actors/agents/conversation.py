"""One episode of an agent: what it is answered, what it is paid, and the turns that come of both."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping
from typing import Any

import numpy as np

from actors import door
from actors.agents import chat
from actors.agents.paths import Answer, Paths, Place
from actors.door import EpisodeFailure, Judged
from actors.rollout_config import AgentSettings
from actors.rollouts import Aborted, Stage
from protocols.errors import SettingError
from protocols.turns import Role

AGENT = "the agent"


class Conversation:
    """What an episode has said and heard so far."""

    def __init__(self, stage: Stage[AgentSettings], number: int):
        self._stage, self._number = stage, number
        self._paths = Paths(stage.renderer)
        self._judged: dict[int, Judged] = {}  # by the place of the answer that it is about
        self._given = 0  # answers that were begun, reflections aside
        self._fault: BaseException | None = None
        self.over = asyncio.Event()
        """The episode cannot go on, or has had all its answers."""
        self.too_long: EpisodeFailure | None = None
        """Why its newest request was refused, where that left no room for an answer."""

    @property
    def scored(self) -> int:
        return len(self._judged)

    def check(self) -> None:
        """Raises what ended the whole group, if anything did."""
        if self._fault is not None:
            raise self._fault

    async def complete(self, body: Any) -> tuple[chat.Asked, Mapping[str, Any]]:
        """Raises Refused."""
        asked = chat.read(body, self._stage.sampling)
        role = self._stage.settings.role if asked.role is None else asked.role
        if role is not Role.REFLECTION:
            self._given += asked.choices
            if self._given > self._stage.settings.turns:
                self.over.set()
                raise chat.Refused(
                    f"The episode has had its {self._stage.settings.turns} answers", code="invalid_api_key", status=401
                )
        try:
            place = self._paths.place(asked.messages, asked.tools)
        except SettingError as error:
            raise chat.Refused(str(error), "messages") from None
        ids = self._paths.ids(place)
        came = await asyncio.gather(*(self._answer(asked, place, ids, role) for _ in range(asked.choices)))
        for answer in came:
            self._paths.add(answer)
        names = [self._names(answer) if asked.logprobs else [] for answer in came]
        return asked, chat.completion(asked, came, names, f"chatcmpl-{secrets.token_hex(12)}", len(ids))

    async def _answer(self, asked: chat.Asked, place: Place, ids: np.ndarray, role: Role) -> Answer:
        try:
            completion = await self._stage.generate(ids, role, asked.sampling)
        except EpisodeFailure as failure:
            self.too_long = failure
            raise chat.Refused(str(failure), "messages", "context_length_exceeded") from None
        except Exception as error:  # the engine's end, or that it gave the request up, ends the group
            self._fault = error
            self.over.set()
            said = "gave the request up" if isinstance(error, Aborted) else "has ended"
            raise chat.Refused(f"The engine {said}", status=503) from None
        self.too_long = None  # it went on with less
        text = self._stage.renderer.text(completion.ids)
        facts: dict[str, Any] = {} if asked.model == chat.MODEL else {"model": asked.model}
        facts |= {"new_root": place.why} if place.why else {}
        facts |= {"overruled": dict(asked.noted)} if asked.noted else {}
        known = "" if asked.tools is None else asked.tools.text
        said = chat.answer_of(text, asked.tools)
        return Answer(asked.messages, known, place, completion, said, text, role, facts)

    def reward(self, given: Any) -> None:
        """Raises Refused."""
        try:
            self.score(door.judged(AGENT, given))
        except EpisodeFailure as failure:
            raise chat.Refused(str(failure)) from None

    def score(self, judged: Judged) -> None:
        """Of the newest answer. Raises EpisodeFailure where there is none that was not scored yet."""
        newest = len(self._paths.answers) - 1
        if newest < 0 or newest in self._judged:
            said = "has asked for nothing" if newest < 0 else "gave two rewards for one answer"
            raise EpisodeFailure("returned", f"{AGENT} {said}")
        self._judged[newest] = judged

    def write(self, output: str = "", cut: bool = False) -> None:
        """The turns, in the order in which they came. A reflection carries the reward of what it led to; an answer that
        was not scored has none. Where the episode was `cut`, reflections that led to nothing are left out."""
        numbers: dict[Answer, int] = {}
        answers = list(self._paths.answers)
        while cut and answers and answers[-1].role is Role.REFLECTION:
            answers.pop()
        last, index, after = len(answers) - 1, 0, -1
        for place, answer in enumerate(answers):
            judged = self._of(place)
            parent = -1 if answer.place.parent is None else numbers[answer.place.parent]
            extra = answer.facts | {"success": judged.success, "answer": judged.answer}
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
                terminated=place == last and not cut,
                truncated=place == last and cut,
                extra=extra,
            )
            index += answer.role is not Role.REFLECTION

    def _of(self, place: int) -> Judged:
        """What is known of the answer at that place; of a reflection, of the answer that it led to."""
        answers = self._paths.answers
        if answers[place].role is Role.REFLECTION and place not in self._judged:
            later = range(place, len(answers))
            place = next((n for n in later if answers[n].role is not Role.REFLECTION), place)
        return self._judged.get(place, Judged(0.0, False))

    def _names(self, answer: Answer) -> list[str]:
        return [self._stage.renderer.tokenizer.decode([int(n)]) for n in answer.completion.ids]
