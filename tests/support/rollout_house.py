"""What tests of rollouts play with: an engine that says what a function tells it to, and a list of what was written."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import numpy as np

from actors import environments, rollouts
from actors.config import EnvironmentSettings, SamplingSettings
from actors.door import EpisodeFailure
from actors.engines import Completion, PromptTooLong
from actors.environment_pool import EnvironmentPool
from actors.group import GroupWriter
from actors.rendering import Renderer
from actors.rollout_config import Rollout
from actors.tools.toolbox import Toolbox
from protocols.turns import LOGPROBS, TOKENS, Lease, Stop
from redraft.models.make import build_tokenizer


class Speaker:
    """Answers each prompt with the text that `says(prompt text)` gives, and an end token; keeps what it was asked."""

    def __init__(self, tokenizer, says: Callable[[str], str], version: int = 4, longest: int = 10_000):
        self.version, self.running, self.error = version, 0, None
        self._tokenizer, self._says, self._longest = tokenizer, says, longest
        self.prompts: list[str] = []

    async def generate(self, prompt_ids: np.ndarray, sampling: SamplingSettings) -> Completion:
        if len(prompt_ids) > self._longest:
            raise PromptTooLong("too long")
        prompt = self._tokenizer.decode(prompt_ids)
        self.prompts.append(prompt)
        text = self._tokenizer.encode(self._says(prompt), add_special_tokens=False)
        ids = np.array([*text, self._tokenizer.eos_token_id][: sampling.max_tokens], TOKENS)
        stop = Stop.END if ids[-1] == self._tokenizer.eos_token_id else Stop.LENGTH
        return Completion(ids, np.full(len(ids), -1.0, LOGPROBS), ((0, self.version),), stop, 0.01)


class House:
    """One group's play: `turns`, the `close` row, the `prompts` that the engine saw, and how often it was `asked`."""

    def __init__(
        self,
        settings: Rollout,
        engine,
        environment: Callable | str,
        task: dict,
        *,
        tokenizer=None,
        seed: int = 0,
        max_tokens: int = 64,
        sampling: SamplingSettings | None = None,
        limit_s: float = 5.0,
        teacher: Callable | None = None,
        on_rewrite: str = "refuse",
        tools: Sequence = (),
        helpers: rollouts.Helpers | None = None,
    ):
        self.tokenizer = tokenizer or build_tokenizer("characters", 4096)
        self.engine = Speaker(self.tokenizer, engine) if callable(engine) else engine
        self.asked, self.tokens, self.failures, self.items = 0, 0, [], []
        named = EnvironmentSettings(name=environment) if isinstance(environment, str) else None
        make = environment if named is None else lambda: environments.make(named)

        def sink(item, lease, spread: float) -> None:
            self.items.append(item)
            self.spread = spread

        writer = GroupWriter(Lease(bytes(16), 0, 0, task, seed), sink)

        async def play() -> None:
            lent = EnvironmentPool(
                make,
                limit_s,
                32,
                toolbox=Toolbox(EnvironmentSettings(name="played", tools=list(tools)).tools, limit_s, 32),
            )
            stage = rollouts.Stage(
                self.engine,
                Renderer(self.tokenizer, on_rewrite),
                lent,
                writer,
                task,
                seed,
                settings,
                sampling or SamplingSettings(max_tokens=max_tokens),
                self._failed,
                self._count,
                teacher,
                helpers or rollouts.Helpers(),
            )
            await rollouts.find(settings.name)(stage)
            writer.close()
            await lent.close()

        asyncio.run(play())
        *self.turns, self.close = self.items
        self.success = writer.success

    @property
    def prompts(self) -> list[str]:
        return self.engine.prompts

    def text(self, turn) -> str:
        return self.tokenizer.decode(turn.response)

    def context(self, turn) -> str:
        """All that the turn was sampled after, by its ancestors."""
        parts = [turn.prompt]
        while turn.parent >= 0:
            turn = self.turns[turn.parent]
            parts = [turn.prompt, turn.response, *parts]
        return self.tokenizer.decode(np.concatenate(parts))

    def _failed(self, failure: EpisodeFailure) -> None:
        self.failures.append(failure)

    def _count(self, role, tokens) -> None:
        self.asked += 1
        self.tokens += tokens
