"""Runs agents one after the other, in a process group of its own: the program behind programs.py.

It hears {"run", "code"} once and says `"ready"`, or what went wrong; then {"task", "url", "key"} for each episode, and
says {"value", "output"} or {"failed", "output"}. Once its input closes, be it since its parent died, it ends with all
that it has started, whatever the agent is at.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import os
import queue
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from typing import IO, Any

from actors import answering
from actors.messages import LONGEST_TEXT
from protocols import own_code

NICE = 5  # engines come first
KEPT = 4096  # bytes of an agent's last output
WIDEST = 4  # bytes of a character
SHOWN = 500  # characters of an error
FIELD = re.compile(r"\{task\.(\w+)\}")


class Failed(Exception):
    """The agent ended badly; the message says how."""


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    os.nice(NICE)
    questions, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    heard: queue.Queue[Any] = queue.Queue()
    first = json.loads(questions.readline())
    commands = _Command(first["run"]) if isinstance(first["run"], list) else None
    threading.Thread(target=_hear, args=(questions, heard, commands), daemon=True).start()
    try:
        agent = commands or _Function(first["run"], first["code"])
    except BaseException as error:
        print(json.dumps(answering.told(error)), file=answers)
        return
    print(json.dumps("ready"), file=answers)
    while True:
        print(json.dumps(_played(agent, heard.get())), file=answers)


def _hear(questions: IO[str], heard: queue.Queue[Any], commands: _Command | None) -> None:
    for line in questions:
        heard.put(json.loads(line))
    if commands is not None:
        commands.end()
    os.killpg(0, signal.SIGKILL)


def _played(agent: _Command | _Function, question: Mapping[str, Any]) -> dict[str, Any]:
    names = {"OPENAI_BASE_URL": question["url"], "OPENAI_API_KEY": question["key"]}
    names["REDRAFT_TASK"] = json.dumps(question["task"])
    with tempfile.TemporaryFile() as output:
        try:
            found: dict[str, Any] = {"value": answering.plain(agent.play(question["task"], names, output))}
        except BaseException as error:
            found = {"failed": str(error) if isinstance(error, Failed) else answering.told(error)}
        return found | {"output": _tail(output)}


class _Function:
    """The user's `async def solve(task, client)`, or one that is not async. All its plays share one event loop and one
    pool of connections."""

    def __init__(self, name: str, code: Mapping[str, str]):
        own_code.install(code)
        self._function = own_code.load(name)
        if not callable(self._function):
            raise TypeError(f"{self._function!r} is no function")
        self._asynchronous = inspect.iscoroutinefunction(self._function)
        taken = inspect.signature(self._function).parameters.values()
        self._any = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in taken)
        self._names = {one.name for one in taken}
        if self._any or "client" in self._names:
            import openai  # noqa: F401 - it takes longest: before the process is ready, not within its first episode
        self._runner, self._client = asyncio.Runner(), None

    def play(self, task: Mapping[str, Any], names: Mapping[str, str], output: IO[bytes]) -> Any:
        os.environ.update(names)
        given = {"task": dict(task)}
        if self._any or "client" in self._names:
            given["client"] = self._connected(names)
        with _printed(output):
            returned = self._function(**{key: value for key, value in given.items() if self._any or key in self._names})
            return self._runner.run(returned) if inspect.iscoroutine(returned) else returned

    def _connected(self, names: Mapping[str, str]) -> Any:
        import openai

        if self._client is None:
            kind = openai.AsyncOpenAI if self._asynchronous else openai.OpenAI
            self._client = kind(base_url=names["OPENAI_BASE_URL"], api_key=names["OPENAI_API_KEY"])
        return self._client.with_options(base_url=names["OPENAI_BASE_URL"], api_key=names["OPENAI_API_KEY"])


class _Command:
    """A command of the user's, started anew for each episode, in a process group of its own."""

    def __init__(self, command: Sequence[str]):
        self._command, self._running = list(command), None

    def play(self, task: Mapping[str, Any], names: Mapping[str, str], output: IO[bytes]) -> Any:
        command = [FIELD.sub(lambda found: _field(task, found[1]), word) for word in self._command]
        with tempfile.TemporaryFile() as said:
            try:
                self._running = subprocess.Popen(
                    command,
                    env=os.environ | names,
                    stdin=subprocess.DEVNULL,
                    stdout=said,
                    stderr=output,
                    start_new_session=True,
                )
            except OSError as error:
                raise Failed(f"{command[0]} cannot be run: {error.strerror}") from None
            try:
                status = self._running.wait()
            finally:
                self.end()
            if status:
                last = ((_tail(output).strip() or _tail(said).strip()).splitlines() or [""])[-1][:SHOWN]
                how = f"signal {-status}" if status < 0 else f"exit status {status}"
                raise Failed(f"{how}{': ' if last else ''}{last}")
            text = _tail(said, WIDEST * (LONGEST_TEXT + 1))
            if len(text) > LONGEST_TEXT:
                raise Failed(f"it printed more than {LONGEST_TEXT:,} characters")
            return _read(text.strip().splitlines())

    def end(self) -> None:
        """Kills what the command has started, too."""
        if self._running is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._running.pid, signal.SIGKILL)


@contextlib.contextmanager
def _printed(output: IO[bytes]):
    """What is written to standard output and error meanwhile goes there."""
    before = os.dup(1), os.dup(2)
    sys.stdout.flush()
    os.dup2(output.fileno(), 1)
    os.dup2(output.fileno(), 2)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for place, kept in zip((1, 2), before, strict=True):
            os.dup2(kept, place)
            os.close(kept)


def _field(task: Mapping[str, Any], key: str) -> str:
    if key not in task:
        raise Failed(f"rollout.run names {{task.{key}}}, and the task has only {', '.join(map(str, task))}")
    return value if isinstance(value := task[key], str) else json.dumps(value)


def _read(lines: Sequence[str]) -> Any:
    """What a command says: its last line where that is JSON, else all of it as a text."""
    try:
        return json.loads(lines[-1]) if lines else None
    except ValueError:
        return "\n".join(lines)


def _tail(file: IO[bytes], most: int = KEPT) -> str:
    """What was written last, of so many bytes at most."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - most))
    return file.read().decode(errors="replace")


if __name__ == "__main__":
    main()
