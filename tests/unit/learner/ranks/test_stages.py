"""What DeepSpeed is told: nothing to shard or to reduce on one rank, buckets as large as the model, and no more."""

from __future__ import annotations

import pytest

from learner.config import LearnerSettings
from learner.ranks.stages import MOST_BUCKET, config_of, stage_of


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_one_rank_runs_the_cheapest_stage_and_several_run_the_one_that_is_set(zero):
    assert stage_of(zero, 1, float32=True) == 0 and stage_of(zero, 1, float32=False) == 1
    assert stage_of(zero, 2, float32=True) == stage_of(zero, 2, float32=False) == zero


@pytest.mark.parametrize("zero, stage", [(0, 2), (1, 2), (2, 2), (3, 3)])
def test_an_optimizer_in_host_memory_needs_stage_2(zero, stage):
    assert {stage_of(zero, ranks, float32=False, offload=True) for ranks in (1, 2)} == {stage}


def test_a_bucket_is_as_large_as_what_is_trained_up_to_a_bound():
    def buckets(trained: int) -> set[int]:
        zero = config_of(2, 2, False, 1.0, trained)["zero_optimization"]
        return {zero["reduce_bucket_size"], zero["allgather_bucket_size"]}

    assert buckets(1000) == {1000} and buckets(10**10) == {MOST_BUCKET}


@pytest.mark.parametrize("stage, ranks, beside", [(1, 2, False), (2, 1, False), (2, 2, True), (3, 2, True)])
def test_reducing_goes_on_beside_the_backward_pass_where_ranks_share_gradients(stage, ranks, beside):
    assert config_of(stage, ranks, False, 1.0, 9)["zero_optimization"]["overlap_comm"] is beside


@pytest.mark.parametrize("pin", [True, False])
def test_the_optimizer_is_in_host_memory_where_it_is_asked_for(pin):
    found = config_of(2, 1, False, 1.0, 9, pin)
    assert found["zero_optimization"]["offload_optimizer"] == {"device": "cpu", "pin_memory": pin}
    assert found["zero_force_ds_cpu_optimizer"] is False, "torch's AdamW needs nothing compiled"
    assert "offload_optimizer" not in config_of(2, 1, False, 1.0, 9)["zero_optimization"]


def test_an_optimizer_in_host_memory_is_refused_where_ranks_train_on_cpus():
    with pytest.raises(ValueError, match="offload: optimizer does nothing where ranks train on CPUs.*set gpus to 1"):
        LearnerSettings(offload="optimizer")
    assert LearnerSettings(offload="optimizer", gpus=0.5).offload == "optimizer"
