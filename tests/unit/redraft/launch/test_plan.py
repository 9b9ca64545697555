"""`redraft plan`: the shares of a GPU's memory are what the formulas say, computed here by hand for one model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from redraft import recipe as recipes
from redraft.cli.main import app
from redraft.launch.plan import GIB, Part, plan
from redraft.models import sizes

QWEN_7B = {
    "model_type": "qwen2",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": False,
}
"""The architecture of Qwen2.5-7B."""
PARAMETERS = 7_615_616_512
"""2 x 152,064 x 3,584 embeddings and head; in each of 28 layers 2 x 3,584 x 3,584 + 2 x 3,584 x 512 of attention with
3,584 + 2 x 512 biases, 3 x 3,584 x 18,944 of the feed-forward part and two norms of 3,584; one more norm."""
LAYER_TOKEN = 225_400
"""Bytes that a layer keeps of a token: two norms of 3,584 x (4 + 2) + 4, inputs 2 x 3,584 x 2, queries and outputs of
attention 2 x 3,584 x 2, keys and values 2 x 512 x 2, 28 float32 sums, and 4 x 18,944 x 2 of the feed-forward part."""
OUTSIDE_TOKEN = 21_508 + 8 + 512
"""The last norm, the token's id, and cosines and sines of 128 angles."""
MICRO, ROW = 4096, 1024


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("qwen") / "config.json"
    found.write_text(json.dumps(QWEN_7B))
    return found


def recipe(*overrides: str) -> recipes.Recipe:
    values = {
        "name": "seven",
        "steps": 10,
        "model": {"path": "nowhere"},
        "environment": {"name": "signs"},
        "rollout": {"name": "attempt", "episodes": 4},
        "learner": {"micro_tokens": MICRO, "row_tokens": ROW, "gpus": 1},
        "actors": {"gpus": 1},
    }
    for override in overrides:
        recipes._override(values, override)
    return recipes.build(values)


def shares(part: Part) -> dict[str, int]:
    return {share.what: share.bytes for share in part.shares}


def test_training_all_weights_of_7b_on_one_of_two_gpus_adds_up_and_does_not_fit(file):
    found = plan(recipe("learner.attention=sdpa"), sizes.config_at(file), 80 * GIB)
    rank = found.parts[0]
    assert (found.parameters, found.trained, found.gpus) == (PARAMETERS, PARAMETERS, 2)
    masks = 4 * ROW * ROW * 2  # of four rows, in each layer
    activations = MICRO * (28 * LAYER_TOKEN + OUTSIDE_TOKEN) + 28 * masks
    log_probs = MICRO * 152_064 * 2 + 152_064 * 3584 * 2 + 3 * 4 * (1 << 22)
    assert shares(rank) == {
        "weights": 15_231_233_024,
        "gradients": 30_462_466_048,
        "optimizer": 91_387_398_144,
        "communication": 0,
        "activations": activations,
        "log-probs": log_probs,
    }
    assert rank.bytes == sum(shares(rank).values()) == 165_642_914_816
    assert rank.room == 72 * GIB and not rank.fits and not found.fits
    assert {"model.lora={}", "learner.ranks=4 learner.zero=3"} <= set(rank.cures)


def test_the_engine_of_7b_fills_its_share_of_the_gpu_with_cache(file):
    actor = plan(recipe(), sizes.config_at(file), 80 * GIB).parts[1]
    token = 28 * 2 * 4 * 128 * 2  # layers, keys and values, heads, numbers of a head, bytes
    work = 2048 * (4 * 3584 + 3 * 18_944) * 2 + 2 * 4 * 256 * 152_064
    room = int(80 * GIB * 0.85)
    assert shares(actor) == {"weights": 15_231_233_024, "work": work, "cache": room - 15_231_233_024 - work}
    assert actor.fits and f"{shares(actor)['cache'] // token:,} tokens x 57,344 B" in actor.shares[-1].how


def test_an_adapter_trains_only_its_own_matrices_and_fits(file):
    rank = plan(recipe("model.lora={rank: 8}"), sizes.config_at(file), 80 * GIB).parts[0]
    layer = 8 * (2 * (3584 + 3584) + 2 * (3584 + 512) + 3 * (3584 + 18_944))
    trained = 28 * layer
    assert trained == 20_185_088
    assert shares(rank)["weights"] == 2 * (PARAMETERS + trained)
    assert (shares(rank)["gradients"], shares(rank)["optimizer"]) == (4 * trained, 12 * trained)
    assert rank.fits


def test_checkpointing_keeps_each_layers_input_and_one_layer(file):
    rank = plan(recipe("learner.gradient_checkpointing=true"), sizes.config_at(file), 80 * GIB).parts[0]
    kept = MICRO * (28 * 3584 * 2 + LAYER_TOKEN + OUTSIDE_TOKEN)
    assert shares(rank)["activations"] == kept


@pytest.mark.parametrize(
    ("zero", "weights", "gradients", "optimizer"),
    [(0, 2, 6, 12), (1, 2, 4, 3), (2, 2, 1, 3), (3, 0.5, 2, 3)],
)
def test_each_stage_shards_what_it_says_over_four_ranks(file, zero, weights, gradients, optimizer):
    rank = plan(recipe(f"learner.zero={zero}", "learner.ranks=4"), sizes.config_at(file), 80 * GIB).parts[0]
    found = [shares(rank)[what] / PARAMETERS for what in ("weights", "gradients", "optimizer")]
    assert found == [weights, gradients, optimizer]


@pytest.mark.parametrize(("zero", "gradients", "host"), [(1, 4, 18), (3, 0, 20)])
def test_an_optimizer_in_host_memory_lets_all_weights_of_7b_be_trained_on_one_gpu(file, zero, gradients, host):
    asked = ["learner.gradient_checkpointing=true", f"learner.zero={zero}"]
    rank = plan(recipe(*asked, "learner.offload=optimizer"), sizes.config_at(file), 80 * GIB).parts[0]
    found = [shares(rank)[what] / PARAMETERS for what in ("weights", "gradients", "optimizer")]
    assert found == [2, gradients, 0] and rank.fits
    assert f"{host * PARAMETERS / GIB:.1f} GiB in host memory" in rank.notes[0]
    without = plan(recipe(*asked), sizes.config_at(file), 80 * GIB).parts[0]
    assert not without.fits and "learner.offload=optimizer" in without.cures


def test_a_start_model_takes_a_copy_of_the_weights_where_it_is_asked(file):
    asked = "learner.objective={name: grpo, kl: 0.1}"
    config = sizes.config_at(file)
    assert shares(plan(recipe(asked), config, 80 * GIB).parts[0])["start model"] == 2 * PARAMETERS
    assert "start model" not in shares(plan(recipe(asked, "model.lora={}"), config, 80 * GIB).parts[0])


def test_tensor_parallelism_spreads_weights_and_cache_and_needs_its_gpus(file):
    config = sizes.config_at(file)
    whole, half = (
        plan(recipe(*these), config, 80 * GIB).parts[1]
        for these in ([], ["actors.engine.tensor_parallel=2", "actors.gpus=2"])
    )
    assert shares(half)["weights"] * 2 == shares(whole)["weights"]
    assert "x 28,672 B" in half.shares[-1].how
    wrong = plan(recipe("actors.engine.tensor_parallel=2"), config, 80 * GIB).parts[1]
    assert not wrong.fits and "set it to 2" in wrong.problem


def test_a_rank_and_an_engine_on_one_gpu_share_its_memory(file):
    fractions = ["learner.gpus=0.5", "actors.gpus=0.5", "model.lora={}", "learner.gradient_checkpointing=true"]
    config = sizes.config_at(file)
    found = plan(recipe(*fractions, "actors.engine.gpu_memory=0.35"), config, 80 * GIB)
    assert found.gpus == 1 and found.parts[0].room == int(80 * GIB * 0.55) and found.fits
    crowded = plan(recipe(*fractions, "actors.engine.gpu_memory=0.85"), config, 80 * GIB).parts[0]
    assert not crowded.fits and any("actors.engine.gpu_memory" in cure for cure in crowded.cures)


@pytest.mark.parametrize("turns", [[], ["actors.sleep=true", "learner.max_staleness=0"]], ids=["together", "in turns"])
def test_a_share_that_is_left_open_is_what_the_learner_leaves(file, turns):
    fractions = ["learner.gpus=0.5", "actors.gpus=0.5", "model.lora={}", *turns]
    found = plan(recipe(*fractions), sizes.config_at(file), 80 * GIB)
    rank, engine = found.parts
    kept = rank.bytes if not turns else sum(shares(rank)[what] for what in ("weights", "gradients", "optimizer"))
    left = 0.9 - kept / (80 * GIB)
    assert found.fits and left - 0.01 < found.engine_share <= min(0.85, left)
    assert engine.room == int(80 * GIB * found.engine_share)
    alone = plan(recipe("actors.gpus=0.5", "actors.count=2", "model.lora={}"), sizes.config_at(file), 80 * GIB)
    assert alone.engine_share == 0.42 and plan(recipe(), sizes.config_at(file), 80 * GIB).engine_share == 0.85


def test_an_engine_that_sleeps_leaves_the_learner_its_cache_and_must_find_it_again(file):
    config, both = sizes.config_at(file), ["learner.gpus=0.5", "actors.gpus=0.5", "learner.max_staleness=0"]
    half = [*both, "actors.engine.gpu_memory=0.5", "model.lora={}"]
    awake = plan(recipe(*half), config, 80 * GIB).parts[0]
    assert awake.room == int(80 * GIB * 0.4) and not awake.fits and not awake.problem.endswith("wake")
    assert "actors.sleep=true learner.max_staleness=0" in awake.cures
    asleep, engine = plan(recipe(*half, "actors.sleep=true"), config, 80 * GIB).parts
    kept = shares(engine)["weights"] + shares(engine)["work"]
    assert asleep.room == int(80 * GIB * 0.9) - kept and asleep.fits
    assert asleep.bytes == awake.bytes and shares(engine)["cache"] == engine.room - kept
    most = [*both, "actors.engine.gpu_memory=0.75", "model.lora={}", "actors.sleep=true"]
    crowded = plan(recipe(*most), config, 80 * GIB).parts[0]
    assert not crowded.fits and "keeps between two steps" in crowded.problem
    assert "actors.engine.gpu_memory=0.5" in crowded.cures


def test_weights_larger_than_the_engines_share_are_told_with_what_would_fit(file):
    actor = plan(recipe(), sizes.config_at(file), 16 * GIB).parts[1]
    assert not actor.fits and any("tensor_parallel=2" in cure for cure in actor.cures)


def test_a_family_without_dense_attention_is_counted_by_its_own_code(tmp_path):
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "mamba", "hidden_size": 64, "num_hidden_layers": 2})
    )
    found = plan(recipe(), sizes.config_at(tmp_path), 80 * GIB)
    assert shares(found.parts[0])["activations"] > 0 and found.fits


def test_the_command_says_by_its_exit_code_whether_it_fits(file, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe().dump())
    asked = ["plan", str(path), "--config", str(file), "--json"]
    result = CliRunner().invoke(app, asked)
    assert result.exit_code == 1 and json.loads(result.stdout)["parts"][0]["bytes"] == 165_408_033_792
    table = CliRunner().invoke(app, [*asked[:-1], "model.lora={}"])
    assert table.exit_code == 0 and "It fits." in table.stdout and "optimizer" in table.stdout
