"""A judge of steps is asked through the teacher's client: again after a failure, once for the same episode."""

from __future__ import annotations

import asyncio

from prometheus_client import REGISTRY
from test_teacher import completion, endpoint

from actors.episode_config import StepJudgeSettings
from actors.step_judge import StepJudge

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
