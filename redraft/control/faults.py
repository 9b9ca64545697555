"""Which errors are faults of processes, machines or the network, after which the same command may go on, and what is
told of those that no part of the system has worded."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from protocols.errors import FaultError, in_a_line

if TYPE_CHECKING:
    from learner.config import LearnerSettings

LOST = {"ray.RayError", "torch.DistError", "torch.AcceleratorError"}
"""What Ray, a process group and a GPU raise, by package and class: neither package is imported for it."""
NO_MEMORY = "torch.OutOfMemoryError"
FULL = {errno.ENOSPC, errno.EDQUOT}
"""What the system says of a disk without room, which may have some again."""
MISTAKES = {"ray.RuntimeEnvSetupError", "ray.AuthenticationError", NO_MEMORY}


def is_fault(error: BaseException) -> bool:
    """Whether processes, machines or the network failed, and nothing that a person wrote. An error that a call of Ray
    carried is looked at itself."""
    kinds = _kinds(error)
    if "ray.RayTaskError" in kinds:
        cause = getattr(error, "cause", None)
        return isinstance(cause, Exception) and cause is not error and is_fault(cause)
    if kinds & MISTAKES:
        return False
    if isinstance(error, OSError) and error.errno in FULL:
        return True
    return isinstance(error, FaultError | ConnectionError | TimeoutError) or bool(kinds & LOST)


def of_a_call(error: BaseException) -> str:
    """Why a call of Ray failed, in one line: what the call raised, or what the start of its process did."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, BaseException) and cause is not error:
        return of_a_call(cause)
    if "ray.RayError" in _kinds(error) and len(lines := str(error).strip().splitlines()) > 1:
        started = getattr(error, "actor_init_failed", False) or "ray.RayTaskError" in _kinds(error)
        return lines[-1].strip() if started else " ".join(" ".join(lines).split())
    return in_a_line(error)


def told(error: BaseException, learner: LearnerSettings) -> str:
    """What people read of it, in one line: where a GPU's memory ran out for the learner, which settings take less."""
    said = in_a_line(error)
    if NO_MEMORY not in _kinds(error):
        return said
    changes = []
    if learner.micro_tokens > learner.row_tokens:
        changes.append(f"learner.micro_tokens={learner.row_tokens}")
    if not learner.gradient_checkpointing:
        changes.append("learner.gradient_checkpointing=true")
    if learner.offload == "none":
        changes.append("learner.offload=optimizer")
    if 0 < learner.gpus < 1:
        changes.append("a lower actors.engine.gpu_memory")
    changes.append("model.lora={}")
    cure = f"Set {' or '.join(filter(None, (', '.join(changes[:-1]), changes[-1])))}"
    return f"learner: the GPU's memory ran out. {cure}; `redraft plan` says what takes it. PyTorch said: {said}"


def _kinds(error: BaseException) -> set[str]:
    """Its classes, by package and name."""
    return {f"{kind.__module__.partition('.')[0]}.{kind.__name__}" for kind in type(error).__mro__}
