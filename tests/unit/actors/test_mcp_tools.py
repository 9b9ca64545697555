"""Tools of an MCP server that these tests start: what it answers, and what episodes meet when it dies or hangs."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from support import processes
from support.ports import free_port
from support.rollout_house import House
from support.sums import TASK, Sums, call
from support.tokenizers import hermes
from support.waiting import deadline_s, until

from actors.door import EpisodeFailure
from actors.environment_pool import EnvironmentPool
from actors.rollout_config import ActSettings
from actors.tool_config import McpSettings, ToolSource
from actors.tools import toolbox
from actors.tools.toolbox import Toolbox
from protocols.errors import SettingError

SERVER = Path(__file__).parents[2] / "support/sums_server.py"


def source(*more: str, **settings) -> ToolSource:
    return ToolSource(mcp=McpSettings(command=[sys.executable, str(SERVER), *more], **settings))


def children() -> set[int]:
    """The servers that run now."""
    return {one.pid for one in psutil.Process().children() if str(SERVER) in one.cmdline()}


def with_pool(work, *sources: ToolSource, limit_s: float | None = None) -> None:
    """Runs `work(pool)` with the tools of these servers."""

    async def main() -> None:
        limit = limit_s or deadline_s(20)
        lent = EnvironmentPool(Sums, limit, 8, toolbox=Toolbox(sources or (source(),), limit, 8))
        try:
            await work(lent)
        finally:
            await lent.close()

    asyncio.run(main())


async def said(playing, name: str, /, **arguments) -> str:
    await playing.step(call(name, **arguments))
    return playing.observation[0]["content"]


def test_an_episode_calls_the_tools_of_a_server():
    answers = iter([call("add", a=17, b=25), call("divide", a=1, b=0), call("add", a="x", b=1), call("no"), "42"])
    settings, limit = ActSettings(turns=5), deadline_s(20)
    house = House(
        settings,
        lambda prompt: next(answers),
        Sums,
        TASK,
        tokenizer=hermes(),
        tools=[source()],
        max_tokens=400,
        limit_s=limit,
    )
    heard = [house.tokenizer.decode(turn.prompt) for turn in house.turns]
    assert "Adds two numbers." in heard[0] and '"b": {"title": "B", "type": "integer"}' in heard[0]
    assert "\n42\n" in heard[1]
    assert "Error: Error executing tool divide" in heard[2] and "Error: " in heard[3] and "no tool 'no'" in heard[4]
    assert [bool(turn.extra.get("refused")) for turn in house.turns] == [False, True, True, True, False]
    assert house.success == 1.0


def test_a_server_that_is_killed_breaks_its_episode_off_and_the_next_one_has_another():
    async def work(lent) -> None:
        async with lent.one(TASK, 0) as playing:
            first = int(await said(playing, "pid"))
            os.kill(first, signal.SIGKILL)
            with pytest.raises(EpisodeFailure, match="MCP server .* has gone") as failure:
                await playing.step(call("add", a=1, b=2))
            assert failure.value.kind == "raised"
        async with lent.one(TASK, 1) as playing:
            assert await said(playing, "add", a=1, b=2) == "3" and int(await said(playing, "pid")) != first

    with_pool(work)


def test_an_answer_that_is_not_as_its_tools_schema_says_costs_its_episode_and_closes_nothing():
    async def work(lent) -> None:
        async with lent.one(TASK, 0) as playing:
            first = await said(playing, "pid")
            client = lent._toolbox._servers[0]._open._client
            client.session._tool_output_schemas["add"] = {"type": "object", "required": ["other"]}
            with pytest.raises(EpisodeFailure, match="^tool add: .*other") as failure:
                await playing.step(call("add", a=1, b=2))
            assert failure.value.kind == "returned"
        async with lent.one(TASK, 1) as playing:
            assert await said(playing, "pid") == first

    with_pool(work)


def test_a_server_that_hangs_in_a_call_breaks_its_episode_off_and_is_replaced():
    async def work(lent) -> None:
        async with lent.one(TASK, 0) as playing:
            first = int(await said(playing, "pid"))
            lent._toolbox._servers[0]._open._limit = 0.5  # not of the start, which takes what it takes
            with pytest.raises(EpisodeFailure, match=r"^tool sleep: no answer within") as failure:
                await playing.step(call("sleep"))
            assert failure.value.kind == "hung"
        async with lent.one(TASK, 1) as playing:
            assert int(await said(playing, "pid")) != first
        await asyncio.to_thread(until, lambda: not psutil.pid_exists(first), "the end of the one that hangs")

    with_pool(work)


def test_a_server_behind_an_address_is_connected_to_and_again_once_it_has_come_back():
    since, port = processes.mark(), free_port()
    box = Toolbox([ToolSource(mcp=McpSettings(url=f"http://127.0.0.1:{port}/mcp"))], deadline_s(20), 1)

    def offered() -> dict:
        try:
            return {tool.name: tool for tool in box.offered()}
        except EpisodeFailure:  # it does not listen yet
            return {}

    try:
        for _ in range(2):
            server = processes.start([sys.executable, str(SERVER), "--port", str(port)], stderr=subprocess.DEVNULL)
            tools = until(offered, "the server's tools")
            assert tools["add"].run({"a": 1, "b": 2}).value == "3"
            server.kill()
            server.wait()
            with pytest.raises(EpisodeFailure, match="MCP server http.* has gone"):
                tools["add"].run({"a": 1, "b": 2})
    finally:
        box.close()
        processes.end(since)


def test_one_server_serves_all_episodes_and_ends_with_them():
    async def work(lent) -> None:
        async with lent.one(TASK, 0) as one, lent.one(TASK, 1) as other:
            pids = await asyncio.gather(*(said(playing, "pid") for playing in (one, other, one, other)))
            assert len(set(pids)) == 1 and children() == {int(pids[0])}

    with_pool(work)
    until(lambda: not children(), "the server's end")


def test_a_server_gets_only_the_variables_that_it_inherits_and_offers_only_the_tools_that_are_asked_for(monkeypatch):
    monkeypatch.setenv("KEY", "secret")

    monkeypatch.setenv("OTHER", "secret")

    async def work(lent) -> None:
        async with lent.one(TASK, 0) as playing:
            assert (await said(playing, "variable", name="KEY"), await said(playing, "variable", name="OTHER")) == (
                "secret",
                "none",
            )
            assert [one["function"]["name"] for one in playing.tools.schemas] == ["variable"]

    with_pool(work, source(only=["variable"], inherit=["KEY"]))


@pytest.mark.parametrize(
    ("made", "limit_s", "problem"),
    [
        (lambda: source(only=["nothing"]), None, "has no tool 'nothing'; it has: add, divide"),
        (lambda: source("--late"), 0.3, r"no answer within environment\.time_limit_s=0\.3"),
        (lambda: ToolSource(mcp=McpSettings(command=["/no/such/program"])), None, "cannot be used: FileNotFoundError"),
        (lambda: ToolSource(mcp=McpSettings(command=["false"])), None, "cannot be used: "),
        (lambda: ToolSource(mcp=McpSettings(url="http://127.0.0.1:9/mcp")), None, "cannot be used: "),
    ],
)
def test_a_server_that_cannot_be_used_is_named_before_work_starts(made, limit_s, problem):
    with pytest.raises(SettingError, match=rf"^environment\.tools: .*{problem}"):
        toolbox.check([made()], [], limit_s or deadline_s(20))
    until(lambda: not children(), "the server's end")
