"""Requests to a model and its answers, on the paths that were played: what an episode and a server have in common."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np

from actors.agents import answers
from actors.agents.paths import Answer, Paths
from actors.agents.requests import Asked, Refused
from actors.engines import Completion
from actors.rendering import Renderer
from actors.spelled import pieces
from protocols.errors import SettingError
from protocols.turns import Role


class Dialogues:
    """Answers requests, and adds what was answered to the paths."""

    def __init__(self, renderer: Renderer, paths: Paths):
        self._renderer, self._paths = renderer, paths

    async def answer(
        self, asked: Asked, role: Role, generate: Callable[[np.ndarray], Awaitable[Completion]]
    ) -> dict[str, Any]:
        """The whole answer as a body. Raises Refused, and what `generate` raises."""
        try:
            if asked.is_text:
                place = self._paths.text(asked.messages[0], asked.ids)
            else:
                place = self._paths.place(asked.messages, asked.tools)
        except SettingError as error:
            raise Refused(str(error), "messages") from None
        ids, made = self._paths.ids(place), []
        for whole in await asyncio.gather(*(generate(ids) for _ in range(asked.choices))):
            completion, text = answers.stopped(whole, asked.stops, self._renderer)
            said = answers.said(text, asked.tools)
            made.append(Answer(asked, place, completion, said, text, role))
            self._paths.add(made[-1])
        names = [self._names(answer) if asked.logprobs else [] for answer in made]
        identity = f"{'cmpl' if asked.is_text else 'chatcmpl'}-{secrets.token_hex(12)}"
        return answers.whole(asked, made, names, identity, len(ids))

    def _names(self, answer: Answer) -> list[str]:
        """The text of each token; a character of several tokens stands at the last of them."""
        how = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
        decode = self._renderer.tokenizer.decode
        found = pieces(answer.completion.ids.tolist(), lambda ids: decode(list(ids), **how))
        return [piece or "" for piece in found]
