"""The endpoint that agents speak to: one HTTP server an actor, a key an episode.

    POST /v1/chat/completions      in OpenAI's form, whole or as a stream        GET /v1/models
    POST /v1/completions           the same for a text that goes on
    POST /v1/reward                a number, or a map as a reward function returns it, for what was said since the last

An actor's listens on the loopback address only, by plain HTTP; `redraft serve` may have it listen elsewhere, by TLS. A
key opens its episode and nothing else, and dies with it. Each generation is a task of its own, so a client that lost
its connection and asks again gets the same answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import secrets
import socket
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import uvicorn
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from actors.agents.answers import pieces
from actors.agents.requests import MODEL, Refused
from protocols import metrics

log = logging.getLogger("redraft.agents")
LONGEST_BODY = 1 << 25  # bytes
AGAIN = 1024
"""Requests of a key, the newest, that may be made again."""
CLOSE_S = 5.0
RETRIES = "x-stainless-retry-count"
"""What OpenAI's clients send with a request that they make again."""


class Conversation(Protocol):
    """What an episode answers."""

    @property
    def models(self) -> Sequence[str]:
        """Names that a request may give its model."""
        ...

    async def complete(self, body: Any, text: bool) -> tuple[Any, Mapping[str, Any]]:
        """What was asked for, chat completions or with `text` completions, and the whole answer as a body. Raises
        Refused."""
        ...

    def reward(self, given: Any) -> None:
        """Raises Refused."""

    def heard(self, asked: Any, there: bool) -> None:
        """Whether the client was there when what it asked for was answered."""


class Endpoint:
    """`url` is what a client takes as its base; there once it was started."""

    def __init__(self) -> None:
        self._open: dict[str, _Episode] = {}
        self.url = ""

    async def start(self, listening: socket.socket | None = None, tls: tuple[Path, Path] | None = None) -> None:
        """On a socket that listens (None: one of its own on the loopback address); with `tls`, PEM files of a
        certificate and its key, by TLS."""
        listening = listening or socket.create_server(("127.0.0.1", 0), backlog=1024)
        # An answer is sent in two pieces; without this the second waits 40 ms for the first to be acknowledged. asyncio
        # sets it only on sockets that say they are TCP, and those accepted here do not.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.url = f"http{'s' if tls else ''}://127.0.0.1:{listening.getsockname()[1]}/v1"
        routes = [
            Route("/v1/chat/completions", self._door(self._chat), methods=["POST"]),
            Route("/v1/completions", self._door(self._text), methods=["POST"]),
            Route("/v1/reward", self._door(self._reward), methods=["POST"]),
            Route("/v1/models", self._door(self._models), methods=["GET"]),
            Route("/{path:path}", self._door(self._nothing), methods=["GET", "POST"]),
        ]
        certificate, key = tls or (None, None)
        config = uvicorn.Config(
            Starlette(routes=routes),
            lifespan="off",
            log_config=None,
            access_log=False,
            ssl_certfile=certificate,
            ssl_keyfile=key,
        )
        self._server = _Server(config)
        self._serving = asyncio.create_task(self._server.serve(sockets=[listening]))

    def open(self, conversation: Conversation, key: str | None = None) -> str:
        """A key that opens it (None: a new one), until it is closed."""
        key = key or new_key()
        self._open[key] = _Episode(conversation)
        return key

    def end(self, key: str) -> None:
        """The key opens nothing any more; what it still generates is given up."""
        for task in self._open.pop(key).running:
            task.cancel()

    async def close(self) -> None:
        for key in list(self._open):
            self.end(key)
        self._server.should_exit = True
        try:
            async with asyncio.timeout(CLOSE_S):
                await self._serving
        except TimeoutError:
            self._server.force_exit = True

    def _door(self, answer: Callable[[_Episode, Request], Awaitable[Response]]):
        async def answered(request: Request) -> Response:
            try:
                found = await answer(self._episode(request), request)
            except Refused as refused:
                found = _json(refused.body, refused.status)
            except RecursionError:
                found = _json(Refused("The body is nested too deeply").body, 400)
            except ClientDisconnect:  # nobody hears the answer
                found = _json({}, 400)
            except Exception:
                log.exception("a request of an agent could not be answered")
                found = _json(Refused("The request could not be answered", status=500).body, 500)
            metrics.AGENT_REQUESTS.labels(status=str(found.status_code)).inc()
            return found

        return answered

    def _episode(self, request: Request) -> _Episode:
        kind, _, key = request.headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and key in self._open:
            return self._open[key]
        raise Refused("This key opens no episode: it never did, or it has ended", code="invalid_api_key", status=401)

    async def _chat(self, episode: _Episode, request: Request) -> Response:
        return await self._complete(episode, request, text=False)

    async def _text(self, episode: _Episode, request: Request) -> Response:
        return await self._complete(episode, request, text=True)

    async def _complete(self, episode: _Episode, request: Request, text: bool) -> Response:
        raw = await _body(request)
        digest = hashlib.blake2b(raw, digest_size=16, salt=b"text" if text else b"").digest()
        task = episode.asked.get(digest) if request.headers.get(RETRIES, "0") != "0" else None
        if task is None:
            task = episode.begin(digest, episode.conversation.complete(_parsed(raw), text))
        try:
            asked, whole = await asyncio.shield(task)
        except asyncio.CancelledError:
            if not task.cancelled():
                raise
            raise Refused("The episode of this key has ended", code="invalid_api_key", status=401) from None
        episode.conversation.heard(asked, not await request.is_disconnected())
        if not asked.stream:
            return _json(whole)
        told = [f"data: {json.dumps(piece)}\n\n" for piece in pieces(asked, whole)]
        return StreamingResponse(iter([*told, "data: [DONE]\n\n"]), media_type="text/event-stream")

    async def _reward(self, episode: _Episode, request: Request) -> Response:
        episode.conversation.reward(_parsed(await _body(request)))
        return _json({})

    async def _models(self, episode: _Episode, request: Request) -> Response:
        models = [
            {"id": name, "object": "model", "created": 0, "owned_by": MODEL} for name in episode.conversation.models
        ]
        return _json({"object": "list", "data": models})

    async def _nothing(self, episode: _Episode, request: Request) -> Response:
        raise Refused(f"There is no {request.method} {request.url.path} here", code="unknown_url", status=404)


def new_key() -> str:
    return f"sk-redraft-{secrets.token_urlsafe(24)}"


class _Episode:
    """A conversation, what it is answering, and of each body the newest request, so many in all."""

    def __init__(self, conversation: Conversation):
        self.conversation = conversation
        self.running: set[asyncio.Task[Any]] = set()
        self.asked: dict[bytes, asyncio.Task[Any]] = {}

    def begin(self, digest: bytes, answering: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(answering)
        self.running.add(task)
        task.add_done_callback(self.running.discard)
        self.asked.pop(digest, None)
        self.asked[digest] = task
        if len(self.asked) > AGAIN:
            del self.asked[next(iter(self.asked))]
        return task


class _Server(uvicorn.Server):
    """Leaves signals to the actor."""

    @contextlib.contextmanager
    def capture_signals(self):
        yield


async def _body(request: Request) -> bytes:
    if int(request.headers.get("content-length") or 0) > LONGEST_BODY:
        raise Refused(f"The body is longer than {LONGEST_BODY} bytes", code="request_too_large", status=413)
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > LONGEST_BODY:
            raise Refused(f"The body is longer than {LONGEST_BODY} bytes", code="request_too_large", status=413)
        parts.append(part)
    return b"".join(parts)


def _json(body: Mapping[str, Any], status: int = 200) -> Response:
    """In ASCII: what a client wrote, and is told of, may be no UTF-8."""
    return Response(json.dumps(body), status, media_type="application/json")


def _parsed(raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        raise Refused("The body is not valid JSON") from None
