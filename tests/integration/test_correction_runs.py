"""Recipes that teach a model to improve its answers train through the real loop."""

import pytest
from support.places import RECIPES
from support.run_house import Command

pytestmark = [pytest.mark.ray, pytest.mark.prove]

LIMIT_S = 300.0
SMALL = (
    "steps=2",
    "learner.batch_groups=4",
    "actors.groups=8",
    "evaluation.n=8",
)


@pytest.mark.parametrize(
    ("name", "pretrained", "trained"),
    [
        ("signs-pag", 20, {"attempt", "verification"}),
        ("signs-critique-grpo", 100, {"attempt", "reflection"}),
    ],
)
def test_its_roles_are_played_and_trained(tmp_path, name, pretrained, trained):
    run = Command(
        tmp_path,
        "train",
        str(RECIPES / f"{name}.yaml"),
        *SMALL,
        f"model.make.pretrain.steps={pretrained}",
        "--run",
        name,
    )
    output = run.wait(LIMIT_S)
    assert run.process.returncode == 0 and "Traceback" not in output, output[-3000:]
    summary, lines = run.summary(name), run.lines(name, "metrics.jsonl")
    assert (summary["state"], run.steps(name)) == ("done", [1, 2])
    assert summary["after"]["errors"] == 0 and len(summary["after"]["accuracy_by_turn"]) == 2
    assert set().union(*(line["trained_turns"] for line in lines)) == trained
    assert any(line["gradient_norm"] > 0 for line in lines)
