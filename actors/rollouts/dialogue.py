"""A dialogue: one path of turns, its tokens so far, and what was said but not yet scored."""

from __future__ import annotations

import hashlib
from copy import copy
from dataclasses import dataclass, replace

import numpy as np

from actors.door import EpisodeFailure, Outcome
from actors.engines import Completion
from actors.environments.base import Cut
from actors.group import NO_TOKENS
from actors.messages import Message, Question, asked, preceded
from actors.rollouts import Stage
from actors.spelling import CannotSpell
from actors.tools import Offered
from protocols.errors import SettingError
from protocols.turns import LOGPROBS, Role, Stop


@dataclass(frozen=True, slots=True)
class Said:
    """One message of the model. `prompt` are the tokens before it that its parent lacks (all, where it is a `root`),
    `heard` those that came new; `turn` is its number once it is written."""

    role: Role
    root: bool
    prompt: np.ndarray
    heard: np.ndarray
    completion: Completion
    asked: Question
    text: str
    turn: int = -1


class Dialogue:
    """One linear episode. `answers` limits what an answer sees: the question, and that many of the last answers.

    Tokens are only ever put together anew, never made from text again: with such a limit, a turn that no longer sees
    all that came before is a new root, whose prompt holds the tokens that it sees. Only where the chat template
    rewrites what came before, and the recipe allows it, is each turn a new root that the template renders from text.

    `tools` are told to the model at its head. Where its stage has experience, the model reads that before the question,
    and the turns are written as if it had not. Raises EpisodeFailure where the template cannot render the messages of a
    question, or the tokenizer cannot spell them.
    """

    def __init__(
        self,
        stage: Stage,
        question: Question,
        episode: int = 0,
        answers: int | None = None,
        tools: Offered | None = None,
    ):
        self._stage, self._answers, self._tools = stage, answers, tools
        self.episode = episode
        self._asked = preceded(question, stage.experience)
        try:
            self._first = self._heard = self._prompt = stage.renderer.first(self._asked, tools=tools)
            self._plain = stage.renderer.first(question, tools=tools) if stage.experience else self._first
        except CannotSpell as error:
            raise EpisodeFailure("returned", f"the environment asked what cannot be read: {error}") from None
        except SettingError as error:
            if isinstance(question, str):  # no other question would do better
                raise
            raise EpisodeFailure("raised", str(error)) from None
        self._history: list[Said] = []
        self._scored = 0  # how many of them are written
        self._start = 0  # the first of them that the next message sees
        self._rooted = True  # the next message is a new root

    def branch(self, episode: int) -> Dialogue:
        """The same dialogue so far, to be continued in another way."""
        other = copy(self)
        other.episode, other._history = episode, list(self._history)
        return other

    @property
    def last(self) -> Said:
        return self._history[-1]

    @property
    def ids(self) -> np.ndarray:
        """int32 ids that the next message is sampled after."""
        if self._rooted:
            return self._prompt
        seen = [part for said in self._history[self._start :] for part in (said.prompt, said.completion.ids)]
        return np.concatenate([*seen, self._prompt])

    async def say(self, role: Role) -> str:
        """Samples the model's next message and returns its text, a `Cut` where it ran into the longest length. It is
        written when it is scored."""
        completion = await self._stage.generate(self.ids, role)
        text = self._stage.renderer.text(completion.ids)
        return self._add(role, completion, Cut(text) if completion.stop is Stop.LENGTH else text)

    async def hand_over(self, role: Role) -> str:
        """Has the teacher write the next message. Raises EpisodeFailure where the tokenizer cannot spell it."""
        if self._stage.teacher is None:
            raise ValueError("the rollout has no teacher")
        text = await self._stage.teacher(self._messages())
        try:
            return self.author(role, text)
        except SettingError as error:
            raise EpisodeFailure("teacher", f"what the teacher wrote cannot be used: {error}") from None

    def author(self, role: Role, text: str) -> str:
        """The next message is this text, not sampled."""
        return self._add(role, authored(self._stage.renderer.answer(text)), text)

    def repeat(self, role: Role, ids: np.ndarray) -> str:
        """The next message is these int32 ids, sampled elsewhere."""
        return self._add(role, authored(ids), self._stage.renderer.text(ids))

    def hear(self, heard: Question) -> None:
        """The next message to the model, a text of the user's or what tools answered: the tokens between its last one
        and its next. Raises EpisodeFailure where the tokenizer cannot spell it: what the recipe itself says was tried
        before the start."""
        try:
            self._take(heard)
        except CannotSpell as error:
            raise EpisodeFailure("returned", f"the environment said what cannot be read: {error}") from None

    def _take(self, heard: Question) -> None:
        renderer, self._asked = self._stage.renderer, heard
        question = self._history[0].asked
        if renderer.anew(question, heard, self._tools):
            seen = self._seen()
            told = [(question, seen[0].text), *((said.asked, said.text) for said in seen[1:])]
            self._heard = self._prompt = renderer.first(heard, told, self._tools)
            self._rooted = True
            return
        self._heard = self._prompt = renderer.next(heard, renderer.ended(self.last.completion.ids), self._tools)
        if self._answers is not None and self._scored == len(self._history):
            self._forget()

    def score(self, index: int, outcome: Outcome, ended: bool = False, **facts) -> None:
        """Writes what was said since the last score. A reflection carries the reward of the answer it led to.

        `ended`: the rollout stops here of its own accord. `facts` go into the turn's `extra`.
        """
        extra = {"success": outcome.success, "answer": outcome.answer, **facts}
        if outcome.refused:
            extra["refused"] = True
        if outcome.parsed is not None:
            extra["parsed"] = outcome.parsed
        if outcome.score is not None:
            extra["score"] = outcome.score
        if outcome.parts:
            extra["parts"] = dict(outcome.parts)
        if outcome.good is not None:
            extra["good"] = outcome.good
        if outcome.state is not None:
            extra["state"] = hashlib.blake2b(outcome.state.encode(), digest_size=8).hexdigest()
        if self._stage.experience:
            extra["navigated"] = True
        for position in range(self._scored, len(self._history)):
            said = self._history[position]
            number = self._stage.group.turn(
                said.role,
                -1 if said.root else self._history[position - 1].turn,
                said.prompt if position else self._plain,
                said.completion,
                episode=self.episode,
                index=index,
                after=self._history[position - 1].turn if position else -1,
                reward=outcome.reward,
                environment_s=outcome.seconds,
                terminated=outcome.terminated,
                truncated=outcome.truncated or ended,
                extra=extra,
            )
            self._history[position] = replace(said, turn=number)
        self._scored = len(self._history)

    def _add(self, role: Role, completion: Completion, text: str) -> str:
        if self._rooted:
            self._start = len(self._history)
        self._history.append(Said(role, self._rooted, self._prompt, self._heard, completion, self._asked, text))
        self._rooted, self._prompt, self._heard = False, NO_TOKENS, NO_TOKENS
        return text

    def _seen(self) -> list[Said]:
        """The messages that an answer sees; it sees the first question before them."""
        answers = [position for position, said in enumerate(self._history) if said.role is not Role.REFLECTION]
        if self._answers is None or len(answers) <= self._answers:
            return self._history
        return self._history[answers[-self._answers] :]

    def _forget(self) -> None:
        """Makes the next message a new root, where it may no longer see every answer."""
        seen = self._seen()
        if len(seen) == len(self._history):
            return
        between = [part for said in seen[1:] for part in (said.heard, said.completion.ids)]
        self._prompt = np.concatenate([self._first, seen[0].completion.ids, *between, self._heard])
        self._rooted = True

    def _messages(self) -> list[Message]:
        """The dialogue as chat messages, for a teacher."""
        return self._stage.renderer.messages(self._asked, [(said.asked, said.text) for said in self._history])


async def begin(stage: Stage, question: Question, episode: int = 0, answers: int | None = None) -> Dialogue:
    """A dialogue up to its first answer: after a plan, a turn of role reflection, where the rollout wants one."""
    first, *others = stage.settings.opening(question)
    dialogue = Dialogue(stage, first, episode, answers)
    for told in others:
        await dialogue.say(Role.REFLECTION)
        dialogue.hear(asked(told))
    return dialogue


def authored(ids: np.ndarray) -> Completion:
    """A response that the policy did not sample: its log-probs are NaN."""
    return Completion(ids, np.full(len(ids), np.nan, LOGPROBS), (), Stop.AUTHORED, 0.0)
