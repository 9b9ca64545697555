"""What agentgym promises: the wire protocol, and that servers which die, stall or are full cost their episodes only."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from contextlib import contextmanager
from urllib.request import urlopen

import pytest
from support import processes
from support.places import PYTHONPATH
from support.waiting import until

from actors import environments
from actors.config import DataSettings, EnvironmentSettings
from actors.door import EpisodeFailure
from actors.environment_pool import EnvironmentPool
from actors.environments import react
from protocols.errors import SettingError


class Server:
    """A server in a process of its own, at an address."""

    def __init__(self, folder, kind: str):
        self._file = folder / f"{kind}-{time.monotonic_ns()}"
        command = [sys.executable, "-m", "support.agentgym_house", str(self._file), kind]
        self.process = processes.start(command, env=os.environ | {"PYTHONPATH": PYTHONPATH})
        until(self._file.exists, "the server has a port")
        self.address = f"http://127.0.0.1:{self._file.read_text()}"

    def look(self) -> dict:
        return json.loads(urlopen(self.address).read())

    def let_go(self) -> None:
        self._file.with_name(f"{self._file.name}.go").touch()

    def settings(self, **options) -> EnvironmentSettings:
        return EnvironmentSettings(name="agentgym", options={"server": self.address, **options})

    def make(self, **options):
        return environments.make(self.settings(**options))


@pytest.fixture
def serve(tmp_path):
    return lambda kind: Server(tmp_path, kind)


def task(number: int) -> dict:
    return {"id": f"agentgym/{number}", "number": number}


async def episode(lent: EnvironmentPool, number: int) -> float | str:
    """The reward of a right answer, or why the episode broke off."""
    try:
        async with lent.one(task(number), 0) as environment:
            assert f"Say {number}." in str(environment.observation)
            await environment.step("Action: hum")
            return (await environment.step(f"Thought: so be it.\nAction: say {number}")).reward
    except EpisodeFailure as failure:
        return f"{failure.kind}: {failure}"


@contextmanager
def pool(server: Server, limit_s: float = 60.0, instances: int | None = None, **options):
    yield EnvironmentPool(lambda: server.make(**options), limit_s, 8, instances)


@pytest.mark.parametrize("kind", ["plain", "webshop"])
def test_an_episode_is_played_in_either_form_of_the_protocol_and_its_session_is_used_again(serve, kind):
    server = serve(kind)
    environment = server.make()
    for number in (3, 4):
        question, _ = environment.reset(seed=0, options={"task": task(number)})
        assert question == f"{react.FORM}\n\nSay {number}."
        said = environment.step("Action: hum\nAction: ")
        assert said == ("no", 0.0, False, False, {"success": False, "answer": "", "score": 0.0})
        said = environment.step(f"Thought: I know.\nAction:\nsay {number}")
        assert said == ("yes", 1.0, True, False, {"success": True, "answer": f"say {number}", "score": 1.0})
    assert server.look()["made"] == 1
    environment.close()
    assert server.look()["open"] == (1 if kind == "webshop" else 0)  # WebShop's kind here knows no /close


def test_the_limit_of_steps_ends_an_episode_with_what_it_is_worth(serve):
    environment = serve("plain").make(steps=2)
    environment.reset(seed=0, options={"task": task(1)})
    assert [environment.step("hum")[1:3] for _ in range(2)] == [(0.0, False), (0.0, True)]


def test_a_server_that_is_killed_costs_its_episodes_and_the_next_one_is_found(serve, tmp_path):
    server = serve("plain")

    async def play() -> list:
        with pool(server, patience_s=0.1) as lent:
            before = await episode(lent, 1)
            async with lent.one(task(2), 0) as environment:
                os.kill(server.process.pid, signal.SIGKILL)
                server.process.wait()
                with pytest.raises(EpisodeFailure, match="ConnectionFailed: no answer to /step"):
                    await environment.step("say 2")
            lost = await asyncio.gather(*(episode(lent, n) for n in (3, 4)))
            server.address = serve("plain").address  # as one that a supervisor starts anew
            return [before, lost, await asyncio.gather(*(episode(lent, n) for n in (5, 6)))]

    before, lost, after = asyncio.run(play())
    assert before == 1.0 and after == [1.0, 1.0]
    assert len(set(lost)) == 1 and lost[0].startswith("raised: ConnectionFailed: no answer to /create")


def test_a_session_that_a_restarted_server_does_not_know_is_opened_anew(serve):
    server = serve("plain")
    environment = server.make()
    environment.reset(seed=0, options={"task": task(1)})
    environment._session._http.post("/close", json={"id": environment._session._id})
    assert "Say 2." in environment.reset(seed=0, options={"task": task(2)})[0]


@pytest.mark.parametrize(("limit_s", "timeout_s"), [(60.0, 0.2), (0.2, 60.0)], ids=["its own limit", "the recipe's"])
def test_a_server_that_answers_a_step_too_late_costs_that_episode_within_the_limit(serve, limit_s, timeout_s):
    server = serve("slow")

    async def play() -> list:
        with pool(server, limit_s, timeout_s=timeout_s) as lent:
            lost = await episode(lent, 1)
            server.let_go()
            with pool(server) as patient:
                return [lost, await episode(patient, 2)]

    lost, after = asyncio.run(play())
    assert after == 1.0
    assert lost.startswith("raised: ConnectionFailed: no answer to /step: ReadTimeout" if timeout_s < 1 else "hung: ")


@pytest.mark.parametrize("kind", ["full", "breaks"])
def test_the_session_that_a_server_does_not_admit_fails_and_the_four_others_play(serve, kind):
    server = serve(kind)
    inside, done = [], asyncio.Event()

    async def stay(lent: EnvironmentPool, number: int) -> float:
        async with lent.one(task(number), 0) as environment:
            inside.append(number)
            await done.wait()
            return (await environment.step(f"say {number}")).reward

    async def play() -> tuple:
        with pool(server, patience_s=0.1) as lent:
            four = [asyncio.ensure_future(stay(lent, number)) for number in range(4)]
            while len(inside) < 4:
                await asyncio.sleep(0)
            fifth = await episode(lent, 9)
            done.set()
            return await asyncio.gather(*four), fifth, await episode(lent, 9)

    four, fifth, after = asyncio.run(play())
    assert four == [1.0] * 4 and after == 1.0
    assert ("4 sessions are the most" if kind == "full" else "ConnectionFailed: no answer to /create") in fifth


def test_with_as_many_instances_as_sessions_nobody_is_turned_away(serve):
    server = serve("full")

    async def play() -> list:
        with pool(server, instances=4) as lent:
            return await asyncio.gather(*(episode(lent, n) for n in range(12)))

    assert asyncio.run(play()) == [1.0] * 12
    assert server.look()["made"] == 4


def test_tasks_are_the_numbers_that_the_path_names_and_splits_are_apart():
    def numbers(path: str, split: str) -> list[int]:
        settings = EnvironmentSettings(name="agentgym", options={"server": "http://127.0.0.1:1"})
        return [each["number"] for each in environments.tasks(settings, DataSettings(path=path), split)]

    assert numbers("0-5/8-9", "train") == [0, 1, 2, 3, 4, 5] and numbers("0-5/8-9", "test") == [8, 9]
    train, test = numbers("0-199", "train"), numbers("0-199", "test")
    assert sorted(train + test) == list(range(200)) and 20 <= len(test) <= 60
    for path in (None, "many", "1-2/3-4/5-6", "5"):
        with pytest.raises(SettingError, match=r"data\.path"):
            numbers(path, "train")


@pytest.mark.parametrize("options", [{}, {"server": "localhost:80"}, {"server": "http://a", "steps": 0}])
def test_options_that_cannot_work_are_refused_by_name(options):
    with pytest.raises(SettingError, match=r"environment\.options\.(server|steps)"):
        environments.make(EnvironmentSettings(name="agentgym", options=options))
