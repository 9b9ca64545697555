"""`redraft serve RUN`: a checkpoint behind the endpoint that agents were trained at, until Ctrl-C.

The model hears and answers as in training: the same rendering, engine and, unless a request says otherwise, sampling.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path

from actors import engines, rendering
from actors.agents.endpoint import Endpoint, new_key
from actors.agents.requests import Terms
from actors.agents.served import Served
from protocols.errors import FaultError
from redraft import logs
from redraft import recipe as recipes
from redraft import run as runs
from redraft.models import make as models
from redraft.recipe import Recipe
from redraft.watch.viewer.serve import address, listen

MATTERS = ("actors.engine", "model.dtype", "sampling", "seed")
"""What a server looks at in a run's recipe; the model is the checkpoint's."""
KEY = "REDRAFT_SERVE_KEY"
"""What requests bring, from the environment: a command line is seen by all users of a machine."""
LOOK_S = 1.0  # between two looks whether the engine lives


def serve(
    name: str,
    overrides: Sequence[str],
    step: int | None,
    best: bool,
    place: tuple[str, int],
    cache: Path,
) -> None:
    """Prints where it is and answers until it is interrupted. Raises SettingError for a run, a step, or a `place` (host
    and port) that cannot be had, FaultError where the engine ends."""
    with runs.reading(name) as run:
        recipe = recipes.reload(run.folder, overrides, "serve", MATTERS)
        checkpoint = runs.checkpoint_at(run, step, best)
        listening, _ = listen(*place)
        logs.to_terminal(run.name)
        model = models.of_checkpoint(checkpoint, run, cache)
        at = address(place[0], listening.getsockname()[1], None) + "v1"
        served = f"{run.name}/{checkpoint.name}"
        with listening:
            asyncio.run(_serve(recipe, model, served, listening, at, os.environ.get(KEY) or new_key()))


async def _serve(recipe: Recipe, model: Path, name: str, listening, at: str, key: str) -> None:
    asked = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, asked.set)
    renderer = rendering.load(model, "new_root", recipe.rollout.system)
    print(f"{name} is loaded", flush=True)
    engine = await engines.start(str(model), recipe.model.dtype, recipe.actors.engine, recipe.seed)
    endpoint = Endpoint()
    try:
        if asked.is_set():
            return
        terms = Terms(recipe.sampling, recipe.rollout.facts.own_roles, free=True)
        endpoint.open(Served(engine, renderer, terms, name), key)
        await endpoint.start(listening)
        print(told(name, at, key), flush=True)
        while not asked.is_set() and engine.error is None:
            try:
                async with asyncio.timeout(LOOK_S):
                    await asked.wait()
            except TimeoutError:
                pass
        await endpoint.close()
    finally:
        error = engine.error
        await engine.close()
    if error is not None:
        raise FaultError(f"the engine has ended: {error}")
    print("ended", flush=True)


def told(name: str, at: str, key: str) -> str:
    """What a person needs to use it: where it is, its key, and a request that can be tried at once."""
    body = json.dumps({"model": name, "messages": [{"role": "user", "content": "hello"}]})
    return "\n".join(
        [
            f"{name} answers at {at}, until Ctrl-C",
            f"  export OPENAI_BASE_URL={at} OPENAI_API_KEY={key}",
            '  curl $OPENAI_BASE_URL/chat/completions -H "Authorization: Bearer $OPENAI_API_KEY" '
            f"-H 'Content-Type: application/json' -d '{body}'",
        ]
    )
