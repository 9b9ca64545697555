"""The recipe of five drafts, which nobody has run yet, is rehearsed: it fits on its GPU, is played and weighed."""

from __future__ import annotations

import json

import numpy as np
from support.places import RECIPES
from support.rollout_house import House
from support.tokenizers import family
from typer.testing import CliRunner

from actors import environments
from learner import credits
from learner.batches.batch import prepare
from protocols.turns import Group, Role
from redraft import recipe as recipes
from redraft.cli.main import app

FILE = RECIPES / "five-drafts.yaml"
QWEN3 = {
    "model_type": "qwen3",
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "tie_word_embeddings": True,
}
"""The architecture of Qwen3-1.7B."""


def test_it_is_labelled_as_not_run_and_a_dry_run_reads_it():
    assert "NOT RUN" in FILE.read_text()
    printed = CliRunner().invoke(app, ["train", str(FILE), "--dry-run"])
    assert printed.exit_code == 0 and "on_rewrite: new_root" in printed.output


def test_it_fits_on_one_gpu_of_80_gib(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(QWEN3))
    words = ["plan", str(FILE), "--config", str(tmp_path / "config.json"), "--gpu-memory", "80"]
    planned = CliRunner().invoke(app, words)
    assert planned.exit_code == 0, planned.output
    assert CliRunner().invoke(app, [*words[:-1], "16"]).exit_code == 1, "the plan knows what does not fit"


def test_a_group_of_it_is_played_and_each_draft_weighed_against_those_of_its_number():
    recipe = recipes.load(FILE)
    assert (recipe.learner.batch_groups, recipe.rollout.episodes, recipe.rollout.turns) == (64, 8, 5)
    assert (recipe.evaluation.n, recipe.evaluation.independent) == (500, 5)
    task = {"id": "one", "nums": [1, 2, 4], "target": 6, "solution": "1*2+4"}
    first, told = [], []

    def says(prompt: str) -> str:
        """Half of the episodes are right at once, the others once they have heard what they came to."""
        if "Your expression" not in prompt:
            first.append(prompt)
            return "<answer>1*2+4</answer>" if len(first) % 2 else "<answer>1+2+4</answer>"
        told.append(prompt)
        return "<answer>1*2+4</answer>"

    named = {"tokenizer": family("qwen3"), "on_rewrite": recipe.model.on_rewrite, "limit_s": 60.0}
    house = House(recipe.rollout, says, lambda: environments.make(recipe.environment), task, **named)
    assert len(house.turns) == 8 * 5 and {turn.role for turn in house.turns} == {Role.ATTEMPT}
    assert any("Your expression makes 7, not 6." in prompt for prompt in told)
    group = Group(bytes(16), 0, tuple(house.turns))
    (worth,) = credits.credit([group], recipe.learner.credit)
    firsts = [value for turn, value in zip(house.turns, worth, strict=True) if turn.index == 0]
    assert sorted(firsts) == [-0.5] * 4 + [0.5] * 4
    others = [value for turn, value in zip(house.turns, worth, strict=True) if turn.index]
    assert not np.any(others), "where all are right there is nothing to learn"
    assert prepare([group], 0, recipe.learner).report.sequences >= 8
