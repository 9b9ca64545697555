"""An endpoint without an episode, over real HTTP, for tests of what it takes and answers."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai

from actors.agents.endpoint import Endpoint
from actors.agents.requests import Terms
from actors.agents.served import Served
from actors.config import SamplingSettings
from actors.rendering import Renderer
from redraft.models.make import build_tokenizer
from support.rollout_house import Speaker

NAME = "run/step-000001"


@dataclass(frozen=True, slots=True)
class Desk:
    """`client` is OpenAI's, without retries; `sampled` are the settings of each generation."""

    client: openai.AsyncOpenAI
    url: str
    key: str
    engine: Speaker
    sampled: list[SamplingSettings]

    def prompts(self) -> list[str]:
        return self.engine.prompts


@contextlib.asynccontextmanager
async def desk(
    says: Callable[[str], str],
    tokenizer=None,
    roles: tuple[str, ...] = (),
    tls: tuple[Path, Path] | None = None,
) -> AsyncIterator[Desk]:
    tokenizer = tokenizer or build_tokenizer("characters", 4096)
    sampled: list[SamplingSettings] = []

    class Listening(Speaker):
        async def generate(self, prompt_ids, sampling):
            sampled.append(sampling)
            return await super().generate(prompt_ids, sampling)

    engine, endpoint = Listening(tokenizer, says), Endpoint()
    terms = Terms(SamplingSettings(max_tokens=64), roles, free=True)
    key = endpoint.open(Served(engine, Renderer(tokenizer), terms, NAME))
    await endpoint.start(tls=tls)
    knows = ssl.create_default_context(cafile=str(tls[0])) if tls else True
    try:
        async with (
            httpx.AsyncClient(verify=knows) as http,
            openai.AsyncOpenAI(base_url=endpoint.url, api_key=key, max_retries=0, http_client=http) as client,
        ):
            yield Desk(client, endpoint.url, key, engine, sampled)
    finally:
        await endpoint.close()
