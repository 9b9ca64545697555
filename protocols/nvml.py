"""What NVIDIA's management library says of GPUs: all of a machine, and those that this process was given, as metrics.

Without the package nvidia-ml-py, which vLLM's CUDA build brings along, or without a driver there is nothing to say.
"""

from __future__ import annotations

import importlib
import logging
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from protocols import metrics

log = logging.getLogger("redraft.nvml")
EVERY_S = 2.0  # between two looks; NVML's own figures are means over up to a second
DEVICES = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True, slots=True)
class Gpu:
    """One of them, now. What a GPU does not tell is None."""

    name: str
    bytes: int
    used_bytes: int
    busy: float | None
    """Share of the last moment in which it computed."""
    watts: float | None
    number: int = 0
    """NVML's, on its machine."""
    own_bytes: int | None = None
    """What the asked processes use of it; in a container whose processes have other numbers NVML cannot tell."""


class Nvml:
    """A started library. `module` has the functions of pynvml; raises its NVMLError where there is no driver."""

    def __init__(self, module: Any):
        self._module = module
        module.nvmlInit()

    @property
    def error(self) -> type[Exception]:
        """What it raises where a GPU is gone."""
        return self._module.NVMLError

    @property
    def driver(self) -> str:
        """Its version."""
        return _text(self._module.nvmlSystemGetDriverVersion())

    def gpus(self, given: Sequence[str] | None = None, processes: Sequence[int] = ()) -> list[Gpu]:
        """Those that are `given`, as numbers or UUIDs like in CUDA_VISIBLE_DEVICES (None: all), and what these
        `processes` use of them."""
        if given is None:
            given = [str(number) for number in range(self._module.nvmlDeviceGetCount())]
        return [self._gpu(self._handle(one), place, processes) for place, one in enumerate(given)]

    def _handle(self, given: str) -> Any:
        if given.isdigit():
            return self._module.nvmlDeviceGetHandleByIndex(int(given))
        return self._module.nvmlDeviceGetHandleByUUID(given)

    def _gpu(self, handle: Any, place: int, processes: Sequence[int]) -> Gpu:
        module = self._module
        memory = module.nvmlDeviceGetMemoryInfo(handle)
        number = self._asked(lambda: module.nvmlDeviceGetIndex(handle))
        return Gpu(
            name=_text(module.nvmlDeviceGetName(handle)),
            bytes=memory.total,
            used_bytes=memory.used,
            busy=self._asked(lambda: module.nvmlDeviceGetUtilizationRates(handle).gpu / 100),
            watts=self._asked(lambda: module.nvmlDeviceGetPowerUsage(handle) / 1000),
            number=place if number is None else int(number),
            own_bytes=self._own(handle, processes) if processes else None,
        )

    def _own(self, handle: Any, processes: Sequence[int]) -> int | None:
        running = self._asked(lambda: self._module.nvmlDeviceGetComputeRunningProcesses(handle)) or ()
        found = [one.usedGpuMemory for one in running if one.pid in processes and one.usedGpuMemory is not None]
        return sum(found) if found else None

    def _asked(self, ask: Callable[[], Any]) -> Any:
        try:
            return ask()
        except self._module.NVMLError:  # not supported: parts of a GPU, and some of them whole
            return None


class GpuWatch:
    """The GPUs that this process was given: `look` reads them, exports what they say, and keeps it as `newest`."""

    def __init__(self, library: Nvml, given: Sequence[str] | None):
        self._library, self._given, self._lost = library, given, False
        self.newest: tuple[Gpu, ...] = ()

    def look(self) -> None:
        """A GPU that is gone is said once; until it is back there are no figures."""
        try:
            self.newest = tuple(self._library.gpus(self._given, family()))
        except self._library.error as error:
            if not self._lost:
                log.warning("NVML says nothing of the GPUs of this process: %s", error)
            self.newest = ()
        self._lost = not self.newest
        for metric, of in EXPORTED.items():
            values = {str(gpu.number): of(gpu) for gpu in self.newest}
            metric.set_only({number: value for number, value in values.items() if value is not None})

    def start(self) -> GpuWatch:
        """Looks now and again, for as long as the process lives."""
        threading.Thread(target=self._run, name="nvml", daemon=True).start()
        return self

    def _run(self) -> None:
        pause = threading.Event()
        while True:
            self.look()
            pause.wait(EVERY_S)


EXPORTED: dict[metrics.Metric, Callable[[Gpu], float | None]] = {
    metrics.GPU_BUSY: lambda gpu: gpu.busy,
    metrics.GPU_USED: lambda gpu: gpu.used_bytes,
    metrics.GPU_MEMORY: lambda gpu: gpu.bytes,
    metrics.GPU_OWN: lambda gpu: gpu.own_bytes,
    metrics.GPU_WATTS: lambda gpu: gpu.watts,
}


def watch(gpus: float) -> GpuWatch | None:
    """Begins to watch this process's GPUs, of which it was given so many; None where there are none, or no NVML."""
    if not gpus:
        return None
    library, why = find()
    if library is None:
        log.info("no figures of GPUs: %s", why)
        return None
    return GpuWatch(library, given()).start()


def given() -> list[str] | None:
    """The GPUs of this process by number or UUID, as CUDA and Ray say it; None: all of the machine."""
    text = os.environ.get(DEVICES)
    return None if text is None else [one for one in text.split(",") if one]


def family() -> list[int]:
    """This process and all that it has started, such as an engine's."""
    found, ahead = [], [os.getpid()]
    while ahead:
        process = ahead.pop()
        found.append(process)
        for children in Path(f"/proc/{process}/task").glob("*/children"):
            try:
                ahead += map(int, children.read_text().split())
            except OSError:  # it has ended
                continue
    return found


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
