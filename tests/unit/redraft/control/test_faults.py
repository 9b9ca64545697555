"""What is a fault, after which the same command may go on, and what a mistake, after which it would fail again."""

import pytest

from protocols.errors import DeadlineError, FaultError, RedraftError, SettingError, WeightsError
from redraft.control import cluster  # noqa: F401  sets what Ray reads when it is imported
from redraft.control.faults import is_fault

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
