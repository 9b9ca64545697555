"""Agent-R on WebShop through the whole system: the recipe of the repository, with a tiny model that shops at random."""

import pytest
from support import little_shop
from support.places import RECIPES
from support.run_house import Command

from learner.checkpoint import newest

pytestmark = [pytest.mark.ray, pytest.mark.prove]

LIMIT_S = 300.0
TINY = (
    "steps=4",
    "model={dtype: float32, make: {tokenizer: bytes, max_length: 4096}}",
    "environment.name=support.little_shop:AnyWords",
    "rollout.turns=8",
    "rollout.judge=environment",
    "sampling.max_tokens=6",
    "actors={count: 1, groups: 8, engine: {max_running: 64, max_length: 4096}}",
    "learner={batch_groups: 4, row_tokens: 4096, micro_tokens: 4096, max_staleness: 4, "
    "rounds: {steps: 2}, credit: {name: trajectory}, objective: {name: sft}, optimizer: {lr: 0.001}}",
    "evaluation.n=2",
)


def test_corrected_purchases_of_a_shop_are_trained_in_rounds(tmp_path):
    shop = tmp_path / "shop"
    shop.mkdir()
    run = Command(
        tmp_path, "train", str(RECIPES / "webshop-agent-r.yaml"), *TINY, f"data.path={little_shop.write(shop)}"
    )
    output = run.wait(LIMIT_S)
    assert run.process.returncode == 0 and "Traceback" not in output, output[-3000:]
    summary, lines = run.summary("webshop-agent-r"), run.lines("webshop-agent-r", "metrics.jsonl")
    assert (summary["state"], run.steps("webshop-agent-r")) == ("done", [1, 2, 3, 4])
    assert summary["before"]["errors"] == summary["after"]["errors"] == 0
    for line in lines:
        trained = line["trained_turns"]
        assert set(trained) <= {"action", "revision"} and sum(trained.values()) < line["turns"]
        assert line["gradient_norm"] > 0
    assert sum(line["trained_turns"].get("revision", 0) for line in lines) > 0, "bad branches were left and corrected"
    assert newest(tmp_path / "runs" / "webshop-agent-r") is not None
