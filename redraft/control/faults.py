"""Which errors are faults of processes, machines or the network, after which the same command may go on."""

from __future__ import annotations

from protocols.errors import FaultError

LOST = {"ray.RayError", "torch.DistError", "torch.AcceleratorError"}
"""What Ray, a process group and a GPU raise, by package and class: neither package is imported for it."""
MISTAKES = {"ray.RuntimeEnvSetupError", "ray.AuthenticationError", "torch.OutOfMemoryError"}


def is_fault(error: BaseException) -> bool:
    """Whether processes, machines or the network failed, and nothing that a person wrote. An error that a call of Ray
    carried is looked at itself."""
    kinds = {f"{kind.__module__.partition('.')[0]}.{kind.__name__}" for kind in type(error).__mro__}
    if "ray.RayTaskError" in kinds:
        cause = getattr(error, "cause", None)
        return isinstance(cause, Exception) and cause is not error and is_fault(cause)
    if kinds & MISTAKES:
        return False
    return isinstance(error, FaultError | ConnectionError | TimeoutError) or bool(kinds & LOST)
