"""agent: an episode is whatever a program of the user's does with the model behind an OpenAI-compatible endpoint.

    task --> program, with a key --> requests --> paths of the turn graph --> turns, once the program has ended
    rewards: the program's POST /v1/reward in between, what it returns or prints last, or the environment's judgement

The program brings its own tools and loop; the environment gives its tasks, and judges with `judge: environment`.
"""

from __future__ import annotations

import asyncio
import contextlib

from actors import door, messages
from actors.agents.conversation import AGENT, Conversation
from actors.agents.endpoint import Endpoint
from actors.agents.programs import Programs
from actors.door import EpisodeFailure, Judged
from actors.environment_pool import Playing
from actors.rollout_config import AgentSettings
from actors.rollouts import Stage

SHOWN = 2000  # characters of an agent's output beside its last turn


class House:
    """The endpoint and the processes that all episodes of an actor share."""

    def __init__(self, settings: AgentSettings):
        self.endpoint = Endpoint()
        self.programs = Programs(settings.run, settings.processes)

    @classmethod
    async def make(cls, settings: AgentSettings) -> House:
        house = cls(settings)
        await house.endpoint.start()
        return house

    async def close(self) -> None:
        await self.programs.close()
        await self.endpoint.close()


async def play(stage: Stage[AgentSettings]) -> None:
    house = await stage.environments.beside("agents", lambda: House.make(stage.settings))

    async def episode(stage: Stage[AgentSettings], environment: Playing, number: int) -> None:
        await _episode(stage, environment, number, house)

    await stage.each_episode(episode)


async def _episode(stage: Stage[AgentSettings], environment: Playing, number: int, house: House) -> None:
    conversation = Conversation(stage, number)
    key = house.endpoint.open(conversation)
    task = stage.task | {"question": messages.asked(environment.observation)}
    limit_s = stage.settings.limit_s
    playing = asyncio.create_task(house.programs.play(task, house.endpoint.url, key, limit_s))
    over = asyncio.create_task(conversation.over.wait())
    try:
        await asyncio.wait({playing, over}, return_when=asyncio.FIRST_COMPLETED)
        conversation.check()
        if not playing.done():  # it asked for more than `turns` answers
            conversation.write(cut=True)
            # A program that ends of being refused keeps its process, and one that is killed costs the start of
            # another: waiting for longer than that would cost more than it can save.
            await asyncio.wait({playing}, timeout=house.programs.start_s)
            return
        value = await playing
        output = value.output[-SHOWN:]
        if stage.settings.judge == "environment":
            text = value.value if isinstance(value.value, str) else "" if value.value is None else str(value.value)
            came = await environment.step(text)
            judged = Judged(came.reward, came.success, came.answer, None, came.parts)
            conversation.score(judged)
        elif value.value is not None or not conversation.scored:
            conversation.score(door.judged(AGENT, value.value))
        conversation.write(output)
    except EpisodeFailure as failure:
        conversation.check()
        conversation.write(broken=True)
        raise conversation.too_long or failure from None
    finally:
        over.cancel()
        playing.cancel()
        house.endpoint.end(key)
        with contextlib.suppress(EpisodeFailure, asyncio.CancelledError):
            await playing
