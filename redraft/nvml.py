"""What NVIDIA's management library says of this machine's GPUs. Without the package nvidia-ml-py, or without a driver,
there is nothing to say."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Gpu:
    """One of them, now. What a GPU does not tell is None."""

    name: str
    bytes: int
    used_bytes: int
    busy: float | None
    """Share of the last moment in which it computed."""
    watts: float | None


class Nvml:
    """A started library. `module` has the functions of pynvml; raises its NVMLError where there is no driver."""

    def __init__(self, module: Any):
        self._module = module
        module.nvmlInit()

    @property
    def driver(self) -> str:
        """Its version."""
        return _text(self._module.nvmlSystemGetDriverVersion())

    def gpus(self) -> list[Gpu]:
        count = self._module.nvmlDeviceGetCount()
        return [self._gpu(self._module.nvmlDeviceGetHandleByIndex(number)) for number in range(count)]

    def _gpu(self, handle: Any) -> Gpu:
        module = self._module
        memory = module.nvmlDeviceGetMemoryInfo(handle)
        return Gpu(
            name=_text(module.nvmlDeviceGetName(handle)),
            bytes=memory.total,
            used_bytes=memory.used,
            busy=self._asked(lambda: module.nvmlDeviceGetUtilizationRates(handle).gpu / 100),
            watts=self._asked(lambda: module.nvmlDeviceGetPowerUsage(handle) / 1000),
        )

    def _asked(self, ask) -> float | None:
        try:
            return ask()
        except self._module.NVMLError:  # not supported: parts of a GPU, and some of them whole
            return None


def find() -> tuple[Nvml | None, str]:
    """The library, or None and why there is none."""
    try:
        module = importlib.import_module("pynvml")
    except ImportError:
        return None, "nvidia-ml-py is not installed"
    try:
        return Nvml(module), ""
    except module.NVMLError as error:
        return None, str(error)


def _text(found: str | bytes) -> str:
    """Older versions of the package return bytes."""
    return found.decode() if isinstance(found, bytes) else found
