"""Stages: which one of DeepSpeed's runs, and what DeepSpeed is told of it.

A stage shards over ranks. One rank has nothing to shard, so there the cheapest stage runs, whatever `learner.zero`
says: in float32 stage 0, which is torch's own optimizer on the model's own weights, in bfloat16 stage 1, whose
optimizer alone keeps a float32 copy of the weights in one piece. Nothing is reduced there. An optimizer in host memory
is for stages 2 and 3: in bfloat16 the second still sums the gradients up on the GPU, the third in host memory.
"""

from __future__ import annotations

from typing import Any

MOST_BUCKET = 500_000_000
"""Elements that a collective takes at most, as by DeepSpeed's defaults."""
LIVE = 1_000_000_000
"""Weights of stage 3 that are whole at once, at most: DeepSpeed's `stage3_max_live_parameters`."""


def stage_of(zero: int, ranks: int, float32: bool, offload: bool = False) -> int:
    """The stage that runs with `learner.zero` and so many ranks, in float32 or else in bfloat16; `offload` is whether
    the optimizer is in host memory."""
    if offload:
        return max(2, zero)
    if ranks > 1:
        return zero
    return 0 if float32 else 1


def bucket_of(trained: int) -> int:
    """Elements of a bucket: one collective for all gradients where they are few. Stages 2 and 3 make room for the
    whole bucket, however small the model is."""
    return max(1, min(MOST_BUCKET, trained))


def config_of(
    stage: int, ranks: int, float32: bool, clip: float, trained: int, pin: bool | None = None
) -> dict[str, Any]:
    """DeepSpeed's configuration of a rank that trains so many parameters; `clip` is 0 where it is not to clip. With
    `pin` the optimizer is in host memory, in pages that stay there or not."""
    # Reducing beside the backward pass needs gradients that are dealt out during it.
    zero: dict[str, Any] = {"stage": stage, "overlap_comm": ranks > 1 and stage > 1}
    if stage:
        zero |= {"reduce_bucket_size": bucket_of(trained), "allgather_bucket_size": bucket_of(trained)}
    if pin is not None:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": pin}
    return {
        "train_micro_batch_size_per_gpu": 1,  # required, and without effect: micro-batches are ours
        "managed_gradient_accumulation": False,  # step() ends the batch, however many micro-batches it had
        "gradient_clipping": clip,
        "zero_force_ds_cpu_optimizer": False,  # torch's AdamW, instead of one that is compiled at first use
        # A gradient that is added to the sums is given back at once, and need not be set to 0 before the next pass.
        "bf16": {"enabled": not float32, "check_grad_overflow": True, "immediate_grad_update": True},
        # Micro-batches add up in float32. Stage 0 refuses the setting: there torch itself does it.
        "data_types": {"grad_accum_dtype": "fp32"} if stage else {},
        "communication_data_type": "fp32",  # so do ranks
        "zero_optimization": zero,
    }
