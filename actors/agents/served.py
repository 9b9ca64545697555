"""A model that is served to whoever has the key: no episode, nothing is trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from actors.agents.dialogues import Dialogues
from actors.agents.paths import Paths
from actors.agents.requests import Asked, Refused, Terms, read
from actors.engines import Completion, PromptTooLong, Sampler
from actors.rendering import Renderer
from protocols.turns import Role, Stop

KEPT = 1024
"""Answers whose tokens are kept for requests that go on from them; older ones are spelled anew."""


class Served:
    """What an endpoint answers. Requests may choose how they are sampled; rewards are taken and forgotten, so that the
    same agent runs as in training."""

    def __init__(self, engine: Sampler, renderer: Renderer, terms: Terms, name: str):
        self._engine, self._terms, self._name = engine, terms, name
        self._dialogues = Dialogues(renderer, Paths(renderer, KEPT))

    @property
    def models(self) -> list[str]:
        """The name of what is served first, then those that a program in training may use."""
        return [self._name, *self._terms.models]

    async def complete(self, body: Any, text: bool) -> tuple[Asked, Mapping[str, Any]]:
        """Raises Refused."""
        asked = read(body, self._terms, text)

        async def generate(ids: np.ndarray) -> Completion:
            try:
                completion = await self._engine.generate(ids, asked.sampling)
            except PromptTooLong as error:
                raise Refused(str(error), "messages", "context_length_exceeded") from None
            except Exception as error:  # the engine's end
                raise Refused(f"The engine has ended: {error}", status=503) from None
            if completion.stop is Stop.ABORTED:
                raise Refused("The engine gave the request up", status=503)
            return completion

        return asked, await self._dialogues.answer(asked, Role.ACTION, generate)

    def reward(self, given: Any) -> None:
        pass

    def heard(self, asked: Asked, there: bool) -> None:
        pass
