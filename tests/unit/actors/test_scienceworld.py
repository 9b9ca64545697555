"""What scienceworld promises: splits, refusals, scores; and that the death of its Java costs its episodes only."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator

import psutil
import pytest

from actors import environments, messages
from actors.config import DataSettings, EnvironmentSettings
from actors.door import EpisodeFailure
from actors.environment_pool import EnvironmentPool
from actors.environments import scienceworld_jvm, scienceworld_tasks
from actors.environments.react import action
from actors.environments.scienceworld import nearest
from protocols.errors import SettingError

GOLD = {
    ("find-living-thing", 0): 10,
    ("measure-melting-point-known-substance", 5): 20,
    ("identify-life-stages-1", 0): 39,
}
"""(task, variation) -> how many actions of its gold sequence end it."""


def make(**options):
    return environments.make(EnvironmentSettings(name="scienceworld", options=options))


def task(name: str, variation: int) -> dict:
    return {"id": f"{name}/{variation}", "task": name, "variation": variation}


@pytest.fixture(scope="module")
def gold() -> Iterator[dict[tuple[str, int], list[str]]]:
    """The simulator's own solutions. Their session keeps the JVM for the tests that follow."""
    session, found = scienceworld_jvm.session(""), {}
    for name, variation in GOLD:
        session.ask("load", name, variation, "", True)
        found[name, variation] = session.ask("getGoldActionSequence")
    yield found
    session.close()


def test_the_splits_are_the_official_ones_in_number_and_never_overlap():
    sizes = [len(scienceworld_tasks.read(None, split)) for split in ("train", "dev", "test")]
    assert sizes == [3592, 1796, 1819] and sum(scienceworld_tasks.VARIATIONS.values()) == 7207
    assert [len(scienceworld_tasks.variations("boil", split)) for split in ("train", "dev", "test")] == [14, 7, 9]


def test_the_first_tasks_hold_every_kind_equally_often():
    first = scienceworld_tasks.read(None, "test")[: 2 * 30]
    assert sorted(each["task"] for each in first) == sorted(2 * list(scienceworld_tasks.VARIATIONS))
    agentgym = {each["task"] for each in scienceworld_tasks.read("agentgym", "train")}
    assert len(agentgym) == 23 and "grow-plant" not in agentgym
    assert {each["task"] for each in scienceworld_tasks.read("boil, melt", "train")} == {"boil", "melt"}


def test_a_task_that_does_not_exist_is_refused_by_its_name():
    with pytest.raises(SettingError, match=r"data\.path.*'cook'"):
        scienceworld_tasks.read("boil,cook", "train")


@pytest.mark.parametrize("options", [{"steps": 0}, {"simplifications": "easy, magic"}])
def test_options_that_cannot_work_are_refused_by_name(options):
    with pytest.raises(SettingError, match=r"environment\.options\.(steps.*0|simplifications.*magic)"):
        make(**options)


def test_without_java_the_run_does_not_start(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SettingError, match="Java|not installed"):
        environments.tasks(EnvironmentSettings(name="scienceworld"), DataSettings(), "train")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Thought: so.\nAction: look around", "look around"),
        ("Thought: so.\n\nAction:\nlook around\nmore", "look around"),
        ("Action: wait\nAction: wait1 ", "wait1"),
        ("Action:", ""),
        (" open door ", "open door"),
    ],
)
def test_an_action_is_what_follows_the_last_word_for_it(text, found):
    assert action(text) == found


VALID = ["open door to kitchen", "close door to kitchen", "pick up orange", "focus on orange", "focus on cat", "wait"]


@pytest.mark.parametrize(
    ("said", "sent"),
    [
        ("pick up orange", "pick up orange"),
        ("pick up the orange.", "pick up orange"),
        ("open the kitchen door", "open door to kitchen"),
        ("close door to kitchen", "open door to kitchen"),
        ("focus on cat", "focus on orange"),
        ("dance", "dance"),
    ],
)
def test_the_nearest_valid_action_stands_in_for_one_that_is_not_valid(said, sent):
    assert nearest(said, VALID, "you see: an orange") == sent


@pytest.mark.java
@pytest.mark.parametrize("which", GOLD, ids=lambda which: which[0])
def test_a_gold_episode_scores_100_and_pays_once_at_its_end(gold, which):
    environment = make()
    question, _ = environment.reset(seed=0, options={"task": task(*which)})
    assert "Your task is to" in question and "This room is called" in question
    steps = [environment.step(f"Action: {one}") for one in gold[which][: GOLD[which]]]
    environment.close()
    assert [(reward, over) for _, reward, over, _, _ in steps[:-1]] == [(0.0, False)] * (len(steps) - 1)
    _, reward, terminated, truncated, info = steps[-1]
    assert (reward, terminated, truncated) == (1.0, True, False) and info["success"] and info["score"] == 1.0


@pytest.mark.java
def test_refusals_a_wrong_focus_and_the_limit_end_or_count_as_they_should(gold):
    environment = make(steps=5)
    where = {"task": task("find-living-thing", 0)}
    environment.reset(seed=0, options=where)
    refused = [environment.step(text)[4]["refused"] for text in ("dance", "Action: é", "Action: look around", "")]
    assert refused == [True, True, False, True]
    assert environment.step("wait1")[1:3] == (0.0, True)  # the fifth
    environment.reset(seed=0, options=where)
    said = environment.step("focus on picture")
    environment.close()
    assert said[1:4] == (0.0, True, False) and said[4]["score"] == 0.0


@pytest.mark.prove
@pytest.mark.java
def test_the_splits_are_those_that_the_simulator_names():
    session = scienceworld_jvm.session("")
    assert set(session.ask("getTaskNames")) == set(scienceworld_tasks.VARIATIONS)
    for name in scienceworld_tasks.VARIATIONS:
        session.ask("load", name, 0, "", False)
        for split in ("train", "dev", "test"):
            theirs = session.ask(f"getVariations{split.capitalize()}")
            assert theirs == list(scienceworld_tasks.variations(name, split)), (name, split)
    session.close()


@pytest.mark.java
def test_the_same_actions_are_answered_alike_whoever_else_plays(gold):
    """Also in chemistry-mix, whose cups stand in an order that is drawn; and so a snapshot is restored exactly."""
    actions = ["look around", "open large cupboard", "look in large cupboard", "wait1", "look around"]

    def play() -> list[str]:
        environment = make()
        said = [messages.asked(environment.reset(seed=0, options={"task": task("chemistry-mix", 1)})[0])]
        said += [environment.step(text)[0] for text in actions]
        restored = make()
        restored.restore(environment.snapshot())
        said += [each.step("look around")[0] for each in (environment, restored)]
        assert said[-1] == said[-2]
        environment.close()
        restored.close()
        return said

    async def together() -> list:
        return await asyncio.gather(*(asyncio.to_thread(play) for _ in range(3)))

    alone = play()
    assert asyncio.run(together()) == [alone] * 3


def jvms() -> list[psutil.Process]:
    children = psutil.Process().children(recursive=True)
    return [child for child in children if "scienceworld.jar" in " ".join(child.cmdline())]


@pytest.mark.java
def test_a_jvm_that_is_killed_costs_the_episodes_in_it_and_the_next_ones_play_in_another(gold):
    async def play() -> tuple:
        lent = EnvironmentPool(make, 60.0, 8)
        async with lent.one(task("find-living-thing", 0), 0), lent.one(task("boil", 0), 0):
            pass  # two that wait for their next episode
        async with lent.one(task("find-living-thing", 0), 0) as environment:
            (jvm,) = jvms()
            os.kill(jvm.pid, signal.SIGKILL)
            with pytest.raises(EpisodeFailure, match="RuntimeError: ScienceWorld's Java process has ended") as failure:
                await environment.step("look around")
            raise_as = failure.value.kind
        said = []
        for _ in range(2):
            async with lent.one(task("boil", 0), 0) as environment:
                said.append(await environment.step("look around"))
        (after,) = jvms()
        await lent.close()
        return raise_as, said, after.pid != jvm.pid

    kind, said, another = asyncio.run(play())
    assert kind == "raised" and not any(outcome.refused for outcome in said) and another
    assert not jvms()  # the last who leaves ends it


@pytest.mark.java
def test_a_call_that_does_not_end_is_ended_with_its_jvm():
    async def play() -> str:
        lent = EnvironmentPool(make, 60.0, 8)
        async with lent.one(task("boil", 0), 0):
            (jvm,) = jvms()
            jvm.suspend()
            hasty = EnvironmentPool(make, 0.2, 8)
            with pytest.raises(EpisodeFailure) as failure:
                async with hasty.one(task("boil", 1), 0):
                    pass
        await lent.close()
        return failure.value.kind

    assert asyncio.run(play()) == "hung"


@pytest.mark.prove
@pytest.mark.java
def test_who_does_not_know_its_token_has_nothing_run_in_it():
    from py4j.java_gateway import GatewayParameters, JavaGateway
    from py4j.protocol import Py4JError

    session = scienceworld_jvm.session("")
    (jvm,) = jvms()
    listens = [found.laddr for found in jvm.net_connections("tcp") if found.status == psutil.CONN_LISTEN]
    assert [found.ip.removeprefix("::ffff:") for found in listens] == ["127.0.0.1"]
    stranger = JavaGateway(gateway_parameters=GatewayParameters(port=listens[0].port))
    with pytest.raises(Py4JError):
        stranger.jvm.java.lang.System.getProperty("user.name")
    session.close()


@pytest.mark.prove
def test_eight_sessions_hold_less_than_600_mb_whatever_they_play():
    names = sorted(scienceworld_tasks.VARIATIONS)

    def play(number: int) -> None:
        environment = make()
        for n in range(20):
            name = names[(7 * number + n) % len(names)]
            variation = number % scienceworld_tasks.VARIATIONS[name]
            environment.reset(seed=0, options={"task": task(name, variation)})
            for text in ("open door to kitchen", "go to kitchen", "look around", "wait"):
                environment.step(text)
        kept.append(environment)

    async def together() -> None:
        await asyncio.gather(*(asyncio.to_thread(play, number) for number in range(scienceworld_jvm.SESSIONS)))

    kept: list = []
    asyncio.run(together())
    (jvm,) = jvms()
    used_mb = jvm.memory_info().rss / 2**20
    print(f"{len(kept)} sessions, {20 * len(kept)} episodes: {used_mb:.0f} MB")
    for environment in kept:
        environment.close()
    assert len(kept) == scienceworld_jvm.SESSIONS and used_mb < 600
