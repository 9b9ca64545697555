"""A real model is trained with tools through the whole loop: the page's recipe, a few steps of it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from support.places import ROOT
from support.run_house import Command
from support.smollm2 import smollm2

pytestmark = [pytest.mark.prove, pytest.mark.ray, pytest.mark.vllm, pytest.mark.real_model]
STEPS = 2
SMALL = {
    "steps": STEPS,
    "actors.groups": 4,
    "actors.engine.kv_cache_gb": 0.2,
    "learner.batch_groups": 4,
    "learner.micro_tokens": 1536,
    "rollout.episodes": 4,
    "evaluation.n": 4,
    "evaluation.independent": 1,
}


def test_the_recipe_of_the_page_trains_and_its_model_hears_what_tools_answer(tmp_path: Path):
    page = (ROOT / "docs" / "tools.md").read_text(encoding="utf-8")
    values = yaml.safe_load(re.search(r"```yaml\n(.*?)```", page, re.DOTALL)[1])
    values["model"]["template"]["path"] = str(ROOT / "recipes/chatml-tools.jinja")
    values["model"] = {key: value for key, value in values["model"].items() if key != "pretrained"}
    values["model"]["path"] = str(smollm2())
    (tmp_path / "products.py").write_text(re.search(r"```python\n(.*?)```", page, re.DOTALL)[1])
    (tmp_path / "products.yaml").write_text(yaml.safe_dump(values))
    run = Command(tmp_path, "train", "products.yaml", *(f"{key}={value}" for key, value in SMALL.items()))
    said = run.wait(600)
    assert run.process.returncode == 0 and run.steps("products") == list(range(1, STEPS + 1)), said[-3000:]
    again = [line["reward_by_index"] for line in run.lines("products", "metrics.jsonl")]
    assert max(map(len, again)) >= 2, "a call that is answered is followed by another turn"
    assert all(line["errors"] == 0 for line in run.lines("products", "metrics.jsonl"))
