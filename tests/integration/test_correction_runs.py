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
    ("name", "pretrained", "turns", "trained"),
    [
        ("signs-pag", 20, 2, {"attempt", "verification"}),
        ("signs-critique-grpo", 100, 2, {"attempt", "reflection"}),
        ("signs-rloo", 200, 1, {"attempt"}),
        ("signs-reinforce-pp", 200, 1, {"attempt"}),
        ("signs-ufo", 200, 5, {"attempt"}),
        ("signs-score", 200, 2, {"attempt"}),
        ("signs-sdpo", 200, 2, {"attempt"}),
        ("minicraft-gigpo", 450, 8, {"action"}),
        ("signs-erl", 200, 2, {"attempt", "reflection", "retry"}),
        ("minicraft-leafe", 450, 8, {"action", "revision"}),
    ],
)
def test_its_roles_are_played_and_trained(tmp_path, name, pretrained, turns, trained):
    run = Command(
        tmp_path,
        "train",
        str(RECIPES / f"{name}.yaml"),
        *SMALL,
        f"model.make.pretrain.steps={pretrained}",
        *(["learner.credit.hold_steps=1"] if name == "signs-score" else []),
        "--run",
        name,
    )
    output = run.wait(LIMIT_S)
    assert run.process.returncode == 0 and "Traceback" not in output, output[-3000:]
    summary, lines = run.summary(name), run.lines(name, "metrics.jsonl")
    assert (summary["state"], run.steps(name)) == ("done", [1, 2])
    assert summary["after"]["errors"] == 0 and summary["after"]["turns"] == turns
    assert set().union(*(line["trained_turns"] for line in lines)) == trained
    assert any(line["gradient_norm"] > 0 for line in lines)
