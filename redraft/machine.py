"""What machine this is, in a few words, without waking its GPUs."""

from __future__ import annotations

import math
import os
import platform
import re
from collections import Counter
from pathlib import Path

PROC = Path("/proc")
QUOTA = Path("/sys/fs/cgroup/cpu.max")


def described(proc: Path = PROC) -> str:
    """CPU model, cores that this process may use, memory, and GPUs: "Xeon 8481C, 2 cores, 24 GiB, no GPU".

    GPUs are NVIDIA's, as their driver lists them: asking CUDA would take memory on each of them.
    """
    memory = re.search(r"^MemTotal:\s+(\d+) kB", _text(proc / "meminfo"), re.MULTILINE)
    count = cores()
    parts = [_cpu(proc), f"{count} core{'s' * (count != 1)}"]
    parts += [f"{int(memory[1]) / 2**20:.0f} GiB"] if memory else []
    return ", ".join([*parts, _gpus(proc) or "no GPU"])


def cores(quota: Path = QUOTA) -> int:
    """The cores that this process may use: those of its affinity, or fewer where its control group has a quota, as
    containers with a limit have."""
    most = len(os.sched_getaffinity(0))
    given = re.fullmatch(r"(\d+) (\d+)\n?", _text(quota))
    return min(most, max(1, math.ceil(int(given[1]) / int(given[2])))) if given else most


def multiplies_bfloat16() -> bool:
    """Whether the processor does so faster than float32: one with AVX2 alone takes some hundred times as long."""
    import torch

    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _cpu(proc: Path) -> str:
    model = re.search(r"^model name\s*:\s*(.+)$", _text(proc / "cpuinfo"), re.MULTILINE)
    name = re.sub(r"\((?:R|TM)\)|\s+CPU\b|\s*@.*", "", model[1]) if model else ""
    return " ".join(name.split()) or platform.machine()  # where /proc names no model, the architecture


def _gpus(proc: Path) -> str:
    texts = (_text(path) for path in sorted((proc / "driver" / "nvidia" / "gpus").glob("*/information")))
    models = Counter(found[1].strip() for text in texts if (found := re.search(r"^Model:\s*(.+)$", text, re.MULTILINE)))
    return ", ".join(f"{count} x {model}" if count > 1 else model for model, count in models.items())


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
