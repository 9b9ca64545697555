"""A judge of steps is asked through the teacher's client: again after a failure, once for the same episode."""

from __future__ import annotations

import asyncio

import pytest
from prometheus_client import REGISTRY
from support.places import RECIPES
from support.rollout_house import House
from test_teacher import completion, endpoint

from actors import environments
from actors.episode_config import StepJudgeSettings
from actors.rollout_config import ActSettings
from actors.rollouts import Helpers
from actors.step_judge import StepJudge
from learner import credits
from protocols.turns import Group
from redraft import recipe as recipes
from redraft.launch import preflight
from redraft.models.make import build_tokenizer

BYTES = build_tokenizer("bytes", 8192)
STEPS = [("go", "there"), ("stay", "ok")]


def counted(result: str) -> float:
    return REGISTRY.get_sample_value("redraft_step_judgements_total", {"result": result}) or 0.0


def test_flags_come_from_one_answer_an_episode_and_its_absence_is_counted():
    said = iter(["Step 1 Judgment: GOOD\nStep 2 Judgment: BAD", "I cannot tell."])

    def reply(number, handler):
        if number == 0:
            return 503, {}, b"{}"
        if number == 3:
            return 400, {}, b"{}"
        assert handler.asked["temperature"] == 0 and len(handler.asked["messages"]) == 1
        return completion(next(said))

    async def judged(settings):
        judge = StepJudge(settings)
        try:
            return [await judge(*episode) for episode in ([task, STEPS, 1.0] for task in ("a", "a", "b", "c"))]
        finally:
            await judge.close()

    before = {result: counted(result) for result in ("judged", "unparsed", "failed")}
    with endpoint(reply) as server:
        settings = StepJudgeSettings(url=server.url, model="any", timeout_s=5, retries=1)
        found = asyncio.run(judged(settings))
    assert found == [[True, False], [True, False], None, None]
    assert {result: counted(result) - before[result] for result in before} == {"judged": 1, "unparsed": 1, "failed": 1}


CRAFT = {
    "id": "textcraft/stick",
    "goal": "stick",
    "level": 1,
    "commands": [["stick", 1, {"bamboo": 2}]],
    "tags": {},
    "raw": ["bamboo"],
}


@pytest.mark.parametrize(
    ("name", "task", "actions", "reads"),
    [
        ("textcraft", CRAFT, ["get 1 apple", "get 2 bamboo", "craft 1 stick using 2 bamboo"], "Crafting commands"),
        ("webshop", None, ["search[]", "search[lamp]", "click[Back to Search]"], "Instruction"),
    ],
    ids=["textcraft", "webshop"],
)
def test_the_recipes_of_real_models_have_each_episode_judged_once_and_its_good_steps_are_worth_more(
    name, task, actions, reads
):
    asked = []

    def reply(number, handler):
        asked.append(handler.asked)
        return completion("Step 1 Judgment: BAD\nStep 2 Judgment: GOOD\nStep 3 Judgment: BAD")

    async def judge(*episode):
        assert settings.step_judge is not None
        asking = StepJudge(settings.step_judge)
        try:
            return await asking(*episode)
        finally:
            await asking.close()

    said = iter(actions)
    with endpoint(reply) as server:
        recipe = recipes.load(RECIPES / f"{name}-attributing.yaml", [f"rollout.step_judge.url={server.url}"])
        if task is None:
            preflight.check_environment(recipe)
            task = environments.tasks(recipe.environment, recipe.data, "train")[0]
        assert isinstance(recipe.rollout, ActSettings)
        settings = recipe.rollout.model_copy(update={"episodes": 1, "turns": len(actions)})
        house = House(settings, lambda prompt: next(said), name, task, tokenizer=BYTES, helpers=Helpers(judge=judge))
    assert [turn.extra["good"] for turn in house.turns] == [False, True, False]
    [request] = asked
    assert request["model"] == "Qwen/Qwen2.5-72B-Instruct"
    [heard] = request["messages"]
    assert reads in heard["content"] and f"Action: {actions[1]}" in heard["content"]
    [worth] = credits.credit([Group(bytes(16), 0, tuple(house.turns))], recipe.learner.credit.at(0))
    assert worth[1] > worth[0] > worth[2], "what is still to come counts too"
