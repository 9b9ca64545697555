"""The layouts of docs/gpus.md are what `redraft plan` computes."""

from __future__ import annotations

import re
import shlex

import pytest
from support.places import RECIPES, ROOT
from transformers import Qwen2Config

from redraft import recipe as recipes
from redraft.launch.plan import GIB, plan

PAGE = (ROOT / "docs" / "gpus.md").read_text()
SHARED = {"vocab_size": 152064, "max_position_embeddings": 32768, "tie_word_embeddings": False}
SHAPES = {
    "7B": {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
    },
    "32B": {
        "hidden_size": 5120,
        "intermediate_size": 27648,
        "num_hidden_layers": 64,
        "num_attention_heads": 40,
        "num_key_value_heads": 8,
    },
}
"""Those of Qwen2.5."""
ROWS = re.findall(r"^\| (\d+) \| (\d+B) \| `(.+?)` \| (.+?) \| (.+?) \| (.+?) \|$", PAGE, re.MULTILINE)
BASE = re.findall(r"[a-z_.]+=[a-z0-9]+", PAGE.split("All begin from")[1].split("and `model.path=`")[0])


@pytest.mark.parametrize("row", ROWS, ids=[f"{gpus} GPUs, {model}" for gpus, model, *_ in ROWS])
def test_a_row_of_the_page_is_what_the_plan_says(row):
    gpus, model, settings, rank, room, tokens = row
    config = Qwen2Config.from_dict(SHARED | SHAPES[model])
    found = plan(recipes.load(RECIPES / "gsm8k-grpo.yaml", [*BASE, *shlex.split(settings)]), config, 80 * GIB)
    learner, actors = found.parts
    cache = re.match(r"([\d,]+) tokens", actors.shares[-1].how)
    assert cache and found.fits and learner.room is not None
    computed = (str(found.gpus), f"{learner.bytes / GIB:.1f}", f"{learner.room / GIB:.1f}", cache[1])
    assert (gpus, rank, room, tokens) == computed


def test_the_page_has_layouts_for_1_2_8_and_16_gpus():
    assert {int(gpus) for gpus, *_ in ROWS} == {1, 2, 8, 16}
