"""Processes that agents run in: at most so many at once, each with a limit, and none left behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.door import EpisodeFailure
from protocols import own_code
from protocols.errors import SettingError

PROGRAM = Path(__file__).with_name("program.py")
SETTING = "rollout.run"
START_S = 60.0
GRACE_S = 2.0  # for a process whose input closed to end what it has started
LINE = 1 << 24  # bytes of an agent's answer
READY, DIED, LATE = "ready", "it died", f"it was not ready within {START_S:g} s"


@dataclass(frozen=True, slots=True)
class Played:
    """What an agent returned or printed last, and the end of its output."""

    value: Any
    output: str


class Ended(Exception):
    """An agent's process is gone."""


class Programs:
    """Runs `run`, FILE.py:Name or a command, in at most `processes` of them; one that is lost is replaced."""

    def __init__(self, run: str | Sequence[str], processes: int):
        code = own_code.sources(run) if isinstance(run, str) and own_code.is_file(run) else {}
        self._first = {"run": run if isinstance(run, str) else list(run), "code": code}
        self._room = asyncio.Semaphore(processes)
        self.start_s = 0.0
        """How long the newest process took to be ready."""
        self._idle: list[_Process] = []
        self._alive: set[_Process] = set()

    async def play(self, task: Mapping[str, Any], url: str, key: str, limit_s: float) -> Played:
        """One episode of the agent, from the moment that a process is free for it. Raises EpisodeFailure where it
        fails, dies, or takes longer than `limit_s`, and SettingError where it cannot be run at all."""
        async with self._room:
            process = await self._one()
            whole = False
            try:
                async with asyncio.timeout(limit_s):
                    found = await process.ask({"task": task, "url": url, "key": key})
                whole = True
            except TimeoutError:
                raise EpisodeFailure("hung", f"the agent did not end within rollout.limit_s={limit_s:g}") from None
            except Ended:
                raise EpisodeFailure("raised", "the agent ended its process") from None
            finally:
                if whole:
                    self._idle.append(process)
                else:
                    await asyncio.shield(self._end(process))
        if "failed" in found:
            raise EpisodeFailure("raised", f"the agent failed: {found['failed']}")
        return Played(found["value"], found["output"])

    async def close(self) -> None:
        self._idle.clear()
        await asyncio.gather(*map(self._end, list(self._alive)))

    async def _one(self) -> _Process:
        while self._idle:
            process = self._idle.pop()
            if process.lives:
                return process
            await self._end(process)
        began = time.monotonic()
        process = await _Process.start()
        self._alive.add(process)
        answer: Any = DIED
        try:
            async with asyncio.timeout(START_S):
                answer = await process.ask(self._first)
        except TimeoutError:
            answer = LATE
        except Ended:
            pass
        finally:
            if answer != READY:
                await asyncio.shield(self._end(process))
        if answer in (DIED, LATE) and self.start_s:  # others have begun: it is no mistake
            raise EpisodeFailure("hung" if answer == LATE else "raised", f"the agent's process: {answer}")
        if answer != READY:
            cure = "Give FILE.py:Name of `async def solve(task, client)`, or a command as a list of words"
            raise SettingError(SETTING, f"{self._first['run']!r} cannot be run: {answer}", cure)
        self.start_s = time.monotonic() - began
        return process

    async def _end(self, process: _Process) -> None:
        self._alive.discard(process)
        await process.end()


class _Process:
    def __init__(self, process: asyncio.subprocess.Process):
        self._process = process

    @classmethod
    async def start(cls) -> _Process:
        pipe = asyncio.subprocess.PIPE
        command = [sys.executable, "-P", str(PROGRAM)]
        return cls(
            await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, start_new_session=True, limit=LINE)
        )

    @property
    def lives(self) -> bool:
        return self._process.returncode is None

    async def ask(self, question: Any) -> Any:
        """Raises Ended."""
        said, heard = self._process.stdin, self._process.stdout
        assert said is not None and heard is not None  # they are pipes
        try:
            said.write(json.dumps(question).encode() + b"\n")
            await said.drain()
            return json.loads(await heard.readline())
        except (ConnectionError, ValueError):  # also a line without an end
            raise Ended from None

    async def end(self) -> None:
        """With all that it has started."""
        assert self._process.stdin is not None  # a pipe
        self._process.stdin.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GRACE_S):
                await self._process.wait()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        await self._process.wait()
