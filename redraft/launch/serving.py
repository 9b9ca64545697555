"""`redraft serve RUN`: a checkpoint behind the endpoint that agents were trained at, until Ctrl-C.

The model hears and answers as in training: the same rendering, engine and, unless a request says otherwise, sampling.
Requests bring a key. Where other machines reach the endpoint, keys and texts go over TLS, or over a network that
whoever starts it has said to trust.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from actors import engines, rendering
from actors.agents.endpoint import Endpoint, new_key
from actors.agents.requests import Terms
from actors.agents.served import Served
from protocols.errors import FaultError, SettingError
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


@dataclass(frozen=True, slots=True)
class Door:
    """Where requests come in. `tls` are the PEM files of a certificate and its key; `trusted` says that the network
    of `host` keeps others out."""

    host: str
    port: int
    tls: tuple[Path, Path] | None = None
    trusted: bool = False

    @classmethod
    def of(cls, host: str, port: int, certificate: Path | None, key: Path | None, trusted: bool) -> Door:
        """Raises SettingError where the files are not two that belong together."""
        if certificate is None or key is None:
            if certificate is not key:
                other = "--tls-key" if key is None else "--tls-certificate"
                raise SettingError(other, "a certificate has no effect without its key, nor that alone", "Give both")
            return cls(host, port, None, trusted)
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password="")
        except (OSError, ValueError) as error:
            cure = "Give PEM files of a certificate and of its key, the key without a password"
            raise SettingError("--tls-certificate", f"{certificate} and {key} cannot be used: {error}", cure) from None
        return cls(host, port, (certificate, key), trusted)

    def listen(self) -> socket.socket:
        """Raises SettingError where that cannot be, or would tell keys to whoever listens along."""
        listening, loopback = listen(self.host, self.port)
        found = None
        if self.trusted and (loopback or self.tls):
            problem = f"has no effect {'with TLS' if self.tls else f'at {self.host}, which no other machine reaches'}"
            found = SettingError("--trust-network", problem, "Leave it out")
        elif not (loopback or self.tls or self.trusted):
            problem = f"other machines reach {self.host}, and keys and texts would go there in the clear"
            cure = "Give --tls-certificate and --tls-key, or say with --trust-network that its network keeps others out"
            found = SettingError("--host", problem, cure)
        if found is not None:
            listening.close()
            raise found
        return listening

    def url(self, port: int) -> str:
        return address(self.host, port, None, "https" if self.tls else "http") + "v1"


def serve(
    name: str,
    overrides: Sequence[str],
    step: int | None,
    best: bool,
    door: Door,
    cache: Path,
) -> None:
    """Prints where it is and answers until it is interrupted. Raises SettingError for a run, a step, or a door that
    cannot be had, FaultError where the engine ends."""
    with runs.reading(name) as run:
        recipe = recipes.reload(run.folder, overrides, "serve", MATTERS)
        checkpoint = runs.checkpoint_at(run, step, best)
        listening = door.listen()
        logs.to_terminal(run.name)
        model = models.of_checkpoint(checkpoint, run, cache)
        at = door.url(listening.getsockname()[1])
        served = f"{run.name}/{checkpoint.name}"
        with listening:
            asyncio.run(_serve(recipe, model, served, listening, door.tls, at, os.environ.get(KEY) or new_key()))


async def _serve(recipe: Recipe, model: Path, name: str, listening, tls, at: str, key: str) -> None:
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
        await endpoint.start(listening, tls)
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
