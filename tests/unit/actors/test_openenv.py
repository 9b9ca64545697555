"""An environment behind an OpenEnv server that these tests start: played, full, slow, killed, started again."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support import processes
from support.rollout_house import House
from support.tokenizers import hermes
from support.waiting import deadline_s

from actors import environments
from actors.config import DataSettings, EnvironmentSettings
from actors.door import EpisodeFailure
from actors.environment_pool import EnvironmentPool
from actors.rollout_config import ActSettings, SearchSettings
from protocols.errors import SettingError
from protocols.turns import Role

SERVER = Path(__file__).parents[2] / "support/openenv_server.py"
TASK = {"id": "openenv/7", "seed": 7}


def started(*options: str) -> tuple[subprocess.Popen, str]:
    """A server and its address."""
    process = processes.start([sys.executable, str(SERVER), *options], stdout=subprocess.PIPE, text=True)
    return process, f"http://127.0.0.1:{int(process.stdout.readline())}"


@pytest.fixture(scope="module")
def address():
    since = processes.mark()
    yield started("--sessions", "100")[1]
    processes.end(since)


def settings(address: str, **options) -> EnvironmentSettings:
    given = {"url": address, "action": "guess", "observation": "text", "wait_s": deadline_s(10)} | options
    return EnvironmentSettings(name="openenv", options=given)


def house(make: EnvironmentSettings, rollout, says) -> House:
    limit = deadline_s(30)
    return House(rollout, says, lambda: environments.make(make), TASK, tokenizer=hermes(), limit_s=limit)


def played(address: str, *said: str, rollout=None, **options) -> House:
    left = iter(said)
    make = settings(address, **options)
    rollout = rollout or ActSettings(turns=len(said))
    return house(make, rollout, lambda prompt: next(left))


def test_an_episode_is_played_to_its_end(address):
    found = played(address, "4", "7", ask="Which digit? ")
    assert "Which digit? guess 7" in found.prompts[0]
    assert [(turn.reward, turn.terminated) for turn in found.turns] == [(0.0, False), (1.0, True)]
    assert [turn.extra["score"] for turn in found.turns] == [0.0, 1.0] and found.success == 1.0


def test_an_episode_without_a_right_guess_ends_as_no_success(address):
    found = played(address, "1", "2", "3", "never asked")
    assert len(found.turns) == 3 and found.turns[-1].terminated and found.success == 0.0


def test_an_action_may_be_a_whole_json_object_and_what_is_none_is_refused(address):
    found = played(address, "7", '{"other": 1}', '{"guess": "7"}', action="")
    told = [found.tokenizer.decode(turn.prompt) for turn in found.turns]
    assert [bool(turn.extra.get("refused")) for turn in found.turns] == [True, True, False]
    assert "Error: an action is a JSON object" in told[1] and "Error: an action has a guess" in told[2]
    assert found.success == 1.0


def test_an_action_that_the_environment_raises_at_is_refused_and_the_session_goes_on(address):
    found = played(address, "crash", "7")
    assert found.turns[0].extra["refused"] and found.success == 1.0


def test_a_search_goes_back_by_playing_the_same_seed_again(address):
    said = iter(["1", "7", "2", "7"] * 10)
    make = settings(address)
    rollout = SearchSettings(turns=3, simulations=2, expansions=2)
    found = house(make, rollout, lambda prompt: next(said))
    assert not found.failures and found.close.extra["root"][0] >= 2 and found.success


@pytest.mark.parametrize(
    ("guess", "kind", "cause"),
    [
        ("lost", "raised", "has failed: the session is lost"),
        ("odd", "raised", "does not speak OpenEnv's protocol"),
        ("hang", "hung", "no answer of ws://127.0.0.1:.* within wait_s=0.2"),
    ],
)
def test_what_the_server_gets_wrong_breaks_the_episode_off(address, guess, kind, cause):
    found = played(address, guess, wait_s=0.2 if guess == "hang" else deadline_s(10))
    (failure,) = found.failures
    assert failure.kind == kind and re.search(cause, str(failure))
    assert [turn.role for turn in found.turns] == [Role.ERROR] and found.success is None


def test_a_field_that_observations_lack_is_named(address):
    found = played(address, "7", observation="words")
    assert "has no 'words': it is {'text': 'guess 7'}" in str(found.failures[0])


@pytest.mark.parametrize("options", [(), ("--silent",)])
def test_more_episodes_than_the_server_has_sessions_wait_for_one_another(options):
    since = processes.mark()
    try:
        _, address = started("--sessions", "2", *options)
        make = settings(address, wait_s=deadline_s(20))
        found = house(make, ActSettings(turns=3, episodes=8), lambda prompt: "7")
        assert not found.failures and len(found.turns) == 8 and found.success == 1.0
    finally:
        processes.end(since)


def test_a_server_that_stays_full_is_waited_for_no_longer_than_said():
    since = processes.mark()
    try:
        _, address = started("--sessions", "0")
        (failure,) = played(address, "7", wait_s=0.3).failures
        assert failure.kind == "hung" and "within wait_s=0.3: it is full, or ends" in str(failure)
    finally:
        processes.end(since)


def test_a_killed_server_costs_its_episodes_and_one_that_comes_again_plays_on():
    since = processes.mark()

    async def main() -> None:
        process, address = started()
        make, limit = settings(address), deadline_s(20)
        lent = EnvironmentPool(lambda: environments.make(make), limit, 8)
        with pytest.raises(EpisodeFailure, match="has ended the session") as failure:
            async with lent.one(TASK, 0) as playing:
                await playing.step("1")
                process.kill()
                process.wait()
                await playing.step("7")
        assert failure.value.kind == "raised"
        processes.start([sys.executable, str(SERVER), "--port", address.rpartition(":")[2]], stdout=subprocess.DEVNULL)
        async with lent.one(TASK, 1) as playing:  # which waits until it listens
            assert (await playing.step("7")).success
        await lent.close()

    try:
        asyncio.run(main())
    finally:
        processes.end(since)


def test_an_address_that_is_none_is_refused_before_work_starts():
    with pytest.raises(SettingError, match=r"^environment\.options\.url: 'localhost:8000' is no address"):
        environments.make(settings("localhost:8000"))


def test_splits_have_no_seed_in_common():
    train, test = (environments.tasks(settings("http://x"), DataSettings(), split) for split in ("train", "test"))
    assert test and not {task["seed"] for task in train} & {task["seed"] for task in test}
