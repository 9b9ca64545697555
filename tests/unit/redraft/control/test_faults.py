"""What is a fault, after which the same command may go on, and what a mistake, after which it would fail again."""

import pytest

from learner.config import LearnerSettings
from protocols.errors import DeadlineError, FaultError, RedraftError, SettingError, WeightsError
from redraft.control import cluster  # noqa: F401  sets what Ray reads when it is imported
from redraft.control.faults import is_fault, told

import ray.exceptions as ray_errors  # isort: skip
import torch  # isort: skip


def of_a_call(cause: Exception) -> Exception:
    return ray_errors.RayTaskError("f", "Traceback", cause).as_instanceof_cause()


@pytest.mark.parametrize(
    "error",
    [
        FaultError("a process died"),
        DeadlineError("learner", "replay", 3),
        ray_errors.RayActorError(),
        ray_errors.GetTimeoutError(),
        ray_errors.LocalRayletDiedError(),
        ConnectionRefusedError("no head yet"),
        torch.distributed.DistBackendError("NCCL"),
        of_a_call(torch.distributed.DistNetworkError("peer")),
        of_a_call(DeadlineError("learner", "replay", 3)),
    ],
    ids=lambda error: type(error).__name__,
)
def test_faults(error):
    assert is_fault(error)


@pytest.mark.parametrize(
    "error",
    [
        SettingError("steps", "is wrong"),
        RedraftError("30 gradients in a row were not finite"),
        WeightsError("refused"),
        ValueError("a bug"),
        FileNotFoundError("data.json"),
        torch.OutOfMemoryError("it does not fit"),
        of_a_call(ValueError("a bug")),
        of_a_call(SettingError("steps", "is wrong")),
        ray_errors.RuntimeEnvSetupError("no such folder"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_mistakes(error):
    assert not is_fault(error)


@pytest.mark.parametrize(
    ("settings", "cures"),
    [
        (
            {"micro_tokens": 2048, "row_tokens": 1024, "gpus": 0.5},
            "learner.micro_tokens=1024, learner.gradient_checkpointing=true, learner.offload=optimizer, a lower "
            "actors.engine.gpu_memory or model.lora={}",
        ),
        (
            {"micro_tokens": 1024, "gradient_checkpointing": True, "gpus": 1, "offload": "optimizer"},
            "model.lora={}",
        ),
    ],
)
def test_a_learner_without_memory_names_the_settings_that_take_less(settings, cures):
    said = told(torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB"), LearnerSettings(**settings))
    assert said.startswith(f"learner: the GPU's memory ran out. Set {cures}; `redraft plan` says")
    assert said.endswith("CUDA out of memory. Tried to allocate 2 GiB") and told(ValueError("a\nb"), None) == "a b"
