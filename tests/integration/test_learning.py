"""The quickstart learns: the real system, from a base model made anew, gets better at correcting itself."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.places import ROOT
from support.waiting import deadline_s

pytestmark = pytest.mark.ray


def train(folder: Path, *arguments: str, limit_s: float) -> dict:
    """The summary of a run in `folder`; models are cached there."""
    command = [sys.executable, "-m", "redraft", "train", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with open(folder / "output.txt", "w") as output:
        ended = subprocess.run(command, cwd=folder, stdout=output, stderr=output, timeout=limit_s, env=environment)
    text = (folder / "output.txt").read_text()
    assert ended.returncode == 0, text[-3000:]
    (summary,) = folder.glob("runs/*/summary.json")
    return json.loads(summary.read_text())


def figures(label: str, found: dict) -> str:
    turns = " ".join(f"{accuracy:.2f}" for accuracy in found["accuracy_by_turn"])
    rates = " ".join(
        f"{key} {found[key]:.2f}" for key in ("keep_rate", "fix_rate", "majority_turns", "any_turn", "pass_k")
    )
    return f"{label}: turns {turns}, {rates}, n {found['n']}"


def check_rise(summary: dict) -> None:
    before, after = summary["before"], summary["after"]
    print("\n" + figures("before", before) + "\n" + figures("after", after))
    first, last = ([found["accuracy_by_turn"][turn] for found in (before, after)] for turn in (0, 4))
    assert after["n"] >= 500
    assert last[1] - last[0] >= 0.15
    assert after["keep_rate"] - before["keep_rate"] >= 0.3
    assert first[1] - first[0] >= 0.08
    assert after["accuracy_by_turn"][4] > after["accuracy_by_turn"][0], "later answers are better than the first"


def test_rise_turnwise_on_signs_learns_to_correct_itself(tmp_path):
    """25 iterations of 512 problems: 100 steps of 128. After 60 the last answers are hardly better than the first yet,
    in some runs not at all."""
    recipe = str(ROOT / "recipes" / "quickstart.yaml")
    check_rise(train(tmp_path, recipe, "steps=100", "evaluation.greedy=false", limit_s=deadline_s(900)))


@pytest.mark.prove
@pytest.mark.parametrize("seed", [1, 2])
def test_rise_turnwise_learns_with_other_seeds_too(tmp_path, seed):
    recipe = str(ROOT / "recipes" / "quickstart.yaml")
    summary = train(tmp_path, recipe, f"seed={seed}", f"model.make.seed={seed}", limit_s=1800)
    check_rise(summary)
    assert summary["after"]["accuracy_by_turn"][4] >= 0.6


@pytest.mark.prove
def test_grpo_on_signs_sharpens_the_first_answer(tmp_path):
    summary = train(tmp_path, str(ROOT / "recipes" / "signs-grpo.yaml"), limit_s=1800)
    before, after = summary["before"]["accuracy_by_turn"][0], summary["after"]["accuracy_by_turn"][0]
    print(f"\nfirst try {before:.2f} -> {after:.2f}, n {summary['after']['n']}")
    assert after - before >= 0.10
