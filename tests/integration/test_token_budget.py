"""A run ends with the tokens that it may sample, and with an evaluation of what they have taught."""

import pytest
from support.places import RECIPES
from support.run_house import Command

pytestmark = [pytest.mark.ray, pytest.mark.prove]

BUDGET = 2000
SMALL = (
    "steps=500",
    "learner.batch_groups=4",
    "learner.max_staleness=1",
    "actors.groups=8",
    "evaluation.n=8",
    "model.make.pretrain.steps=20",
)


def test_training_ends_with_the_step_that_has_sampled_its_tokens(tmp_path):
    recipe = str(RECIPES / "signs-grpo.yaml")
    run = Command(tmp_path, "train", recipe, *SMALL, f"sampled_tokens={BUDGET}", "--run", "spent")
    output = run.wait(300.0)
    assert run.process.returncode == 0 and "Traceback" not in output, output[-3000:]
    summary, lines = run.summary("spent"), run.lines("spent", "metrics.jsonl")
    assert summary["state"] == "done" and summary["after"]["n"] == 8
    assert f"tokens were sampled (sampled_tokens={BUDGET})" in summary["early"]
    sampled = [line["generated_tokens"] for line in lines]
    assert sum(sampled) >= BUDGET and len(lines) < 500
    reached = next(n for n in range(1, len(sampled) + 1) if sum(sampled[:n]) >= BUDGET)
    assert len(lines) - reached <= 20, "what the learner did until it was told"
