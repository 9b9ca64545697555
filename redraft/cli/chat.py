"""`redraft chat`: talk to the model of a run, or watch it play a task of the run's environment, turn by turn.

The model hears and answers as in training: the same rendering, engine and sampling; with `--task` the environment asks,
judges and answers, and what the rollout says between its turns is said here, too. A person may say something else in
place of what the environment answered. What is typed is read line by line, so that a pipe can type as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from actors import engines, environments, messages, mixture, rendering
from actors.config import SamplingSettings
from actors.door import EpisodeFailure, Outcome
from actors.environment_pool import EnvironmentPool, Playing
from actors.messages import Question
from actors.tools import Offered
from actors.tools.toolbox import Toolbox
from protocols.errors import RedraftError, SettingError
from protocols.turns import Stop
from redraft import logs
from redraft import recipe as recipes
from redraft import run as runs
from redraft.models import make as models
from redraft.recipe import Recipe

NEW, QUIT = "/new", "/quit"
MATTERS = ("actors.engine", "data", "environment", "environments", "model.dtype", "rollout", "sampling", "seed")
"""What a conversation looks at in a run's recipe; the model is the checkpoint's."""
HELP = f"{NEW} begins a new conversation, {QUIT} or Ctrl-D leaves"


def chat(name: str, overrides: Sequence[str], step: int | None, best: bool, task: str | None, cache: Path) -> None:
    """Talks until the person leaves. Raises SettingError for a run, a step or a task that is not there."""
    with runs.reading(name) as run:
        recipe = recipes.reload(run.folder, overrides, "chat", MATTERS)
        checkpoint = runs.checkpoint_at(run, step, best)
        found = None if task is None else task_of(recipe, task)
        model = models.of_checkpoint(checkpoint, run, cache)
        print(f"{run.name}, {checkpoint.name}. {HELP}.", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(_talk(recipe, model, found))


def task_of(recipe: Recipe, wanted: str) -> dict:
    """The test or training task of that id. Raises SettingError where there is none."""
    known = []
    for split in ("test", "train"):
        for task in mixture.tasks(recipe.mixture, split):
            if task["id"] == wanted:
                return task
            if len(known) < 3:
                known.append(task["id"])
    problem = f"{recipe.played} has no task {wanted!r}"
    raise SettingError("--task", problem, f"Such as {', '.join(known)}; `redraft view RUN` shows what was played")


async def _talk(recipe: Recipe, model: Path, task: dict | None) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # asyncio's own would wait for the line to be typed
    renderer = rendering.load(model, "new_root", recipe.rollout.system)
    settings = recipe.actors.engine.model_copy(update={"max_running": 1})
    engine = await engines.start(str(model), recipe.model.dtype, settings, recipe.seed)
    try:
        talk = Talk(renderer, engine, recipe.sampling)
        await (converse(talk) if task is None else play(talk, recipe, task))
    finally:
        await engine.close()


@dataclass(slots=True)
class Talk:
    """One conversation: all its tokens so far, and for templates that rewrite what was said, its texts."""

    renderer: rendering.Renderer
    engine: engines.Engine
    sampling: SamplingSettings
    tools: Offered | None = None
    _ids: list[np.ndarray] = field(default_factory=list)  # of answers, and of what was heard before each
    _said: list[tuple[Question, str]] = field(default_factory=list)  # (heard, answered)

    def typed(self, line: str) -> str:
        """A person's message as the model hears it: without a template, messages are told apart by the line's end."""
        return line if self.renderer.tokenizer.chat_template else line + "\n"

    def forget(self) -> None:
        self._ids.clear()
        self._said.clear()

    async def answer(self, heard: Question) -> str | None:
        """What the model says to `heard`; None, said to the person, where that cannot be. Then nothing was heard."""
        try:
            prompt = self._prompt(heard)
            made = await self.engine.generate(np.concatenate([*self._ids, prompt]), self.sampling)
        except (engines.PromptTooLong, SettingError) as error:
            _show("redraft", f"{error}. {NEW} begins a new conversation")
            return None
        self._ids += [prompt, made.ids]
        text = self.renderer.text(made.ids)
        self._said.append((heard, text))
        _show("model", text)
        if made.stop is Stop.LENGTH:
            _show("redraft", f"cut at sampling.max_tokens={self.sampling.max_tokens}")
        return text

    def _prompt(self, heard: Question) -> np.ndarray:
        """int32 ids that `heard` adds to the conversation, or all of it where the template rewrites what was said."""
        if self.renderer.anew(self._said[0][0] if self._said else heard, heard, self.tools):
            self._ids.clear()
            return self.renderer.first(heard, self._said, self.tools)
        if not self._said:
            return self.renderer.first(heard, tools=self.tools)
        if not messages.are_results(heard):
            heard = messages.asked(heard)
        return self.renderer.next(heard, self.renderer.ended(self._ids[-1]), self.tools)


async def converse(talk: Talk) -> None:
    """A conversation, or several, until the person leaves."""
    for line in _lines("you"):
        if line == NEW:
            talk.forget()
            _show("redraft", "a new conversation")
        elif line:
            await talk.answer(talk.typed(line))


async def play(talk: Talk, recipe: Recipe, task: dict) -> None:
    """Episodes of one task, one after the other, until the person leaves. Raises RedraftError where it cannot be."""
    settings = mixture.of(recipe.mixture, task)
    box = Toolbox(settings.tools, settings.time_limit_s, 1)
    lent = EnvironmentPool(lambda: environments.make(settings), settings.time_limit_s, 1, toolbox=box)
    typed = _lines("you, or Enter for what the environment says")
    again = True
    while again:
        talk.forget()
        try:
            async with lent.one(task, recipe.seed) as playing:
                talk.tools = playing.tools
                again = await _episode(talk, recipe, playing, typed)
        except EpisodeFailure as error:
            raise RedraftError(f"the environment failed ({error.kind}): {error}") from None
        finally:
            box.close()


async def _episode(talk: Talk, recipe: Recipe, playing: Playing, typed: Iterator[str]) -> bool:
    """One episode, until the person wants another one (True) or leaves. A person's words stand in for the
    environment's; after its end they are all that is left."""
    _show("environment", messages.asked(playing.observation))
    answer, over = await _answer(talk, recipe.rollout.opening(playing.observation)), False
    while True:
        if answer is not None and not over:
            outcome = await playing.step(answer)
            over = outcome.over
            _show("environment", f"[{_verdict(outcome)}] {messages.asked(playing.observation)}")
            if over:
                _show("redraft", f"the episode has ended: {NEW} plays it again")
        line = next(typed, QUIT)
        if line in (NEW, QUIT):
            return line == NEW
        if line:
            answer = await talk.answer(talk.typed(line))
        elif answer is None or over:
            _show("redraft", f"there is nothing to go on with: {HELP}")
        else:
            again, said = recipe.rollout.tested(turns=2, episodes=1), playing.observation
            told = [said] if messages.are_results(said) else again.following(messages.asked(said))
            answer = await _answer(talk, told)


async def _answer(talk: Talk, told: Sequence[Question]) -> str | None:
    """What the model says to the last of these messages, after what it said to those before: a plan, a reflection."""
    answer = None
    for heard in told:
        answer = await talk.answer(heard)
        if answer is None:
            break
    return answer


def _verdict(outcome: Outcome) -> str:
    found = "" if outcome.answer is None else f", answer {outcome.answer!r}"
    unparsed = ", no answer was found in it" if outcome.parsed is False else ""
    return f"{'right' if outcome.success else 'not right'}, reward {outcome.reward:g}{found}{unparsed}"


def _lines(prompt: str) -> Iterator[str]:
    """What the person types, without blanks around it, until /quit or the end."""
    asked = sys.stdin.isatty()
    while True:
        if asked:
            print(f"{prompt}> ", end="", flush=True)
        line = sys.stdin.readline()
        if not line or line.strip() == QUIT:
            return
        yield line.strip()


def _show(who: str, text: str) -> None:
    print(f"{who}: {logs.printable(text.rstrip())}", flush=True)
