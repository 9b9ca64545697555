"""NVIDIA's management library as pynvml gives it, of a machine that has none."""

from __future__ import annotations

from types import SimpleNamespace

UUIDS = ("GPU-aa", "GPU-bb")


class Library:
    """The functions of pynvml, of two GPUs of which one does not tell its power."""

    class NVMLError(Exception):
        pass

    def __init__(self):
        self.gone = False
        self.running: dict[int, list[tuple[int, int | None]]] = {}
        """Of each GPU, processes and the bytes that they use."""

    def nvmlInit(self):
        pass

    def nvmlSystemGetDriverVersion(self):
        return b"580.1"

    def nvmlDeviceGetCount(self):
        return 2

    def nvmlDeviceGetHandleByIndex(self, number):
        if self.gone:
            raise self.NVMLError("GPU is lost")
        return number

    def nvmlDeviceGetHandleByUUID(self, uuid):
        return UUIDS.index(uuid)

    def nvmlDeviceGetComputeRunningProcesses(self, handle):
        return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in self.running.get(handle, ())]

    def nvmlDeviceGetIndex(self, handle):
        return handle

    def nvmlDeviceGetName(self, handle):
        return f"Card {handle}"

    def nvmlDeviceGetMemoryInfo(self, handle):
        return SimpleNamespace(total=80 << 30, used=(handle + 1) << 30)

    def nvmlDeviceGetUtilizationRates(self, handle):
        return SimpleNamespace(gpu=40)

    def nvmlDeviceGetPowerUsage(self, handle):
        if handle:
            raise self.NVMLError("Not Supported")
        return 350_000
