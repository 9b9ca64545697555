"""A learner and engine workers that share a GPU's memory, on a machine without one: only the driver is another."""

from __future__ import annotations

import asyncio
import itertools
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from actors.transports import Transports
from protocols import cuda_ipc
from protocols.broadcast import REFUSED
from protocols.weights import Probe, WeightRef
from support import processes
from support.places import ROOT
from support.waiting import deadline_s

SOURCE = Path(__file__).resolve().parent / "cuda_driver.c"
PROBE = Probe((), (), 0.0)
HERE = "this node"


def built(folder: Path) -> Path:
    """The driver's library. Its tests bear the marker `compiler`."""
    library = folder / cuda_ipc.LIBRARY
    if not library.exists():
        command = ["cc", "-O2", "-shared", "-fPIC", "-o", library, SOURCE]
        subprocess.run(command, check=True, timeout=deadline_s(60))
    return library


def use(library: Path, patch: pytest.MonkeyPatch) -> None:
    """Has this process, and those that it starts, find that driver."""
    patch.setattr(cuda_ipc, "LIBRARY", str(library))
    patch.setenv("LD_LIBRARY_PATH", str(library.parent))


def of(value: float, count: int = 1000) -> dict[str, torch.Tensor]:
    return {"a": torch.full((count,), value), "b": torch.arange(7, dtype=torch.int64)}


class Learner:
    """Publishes in a process of its own, which ends with this object's `close`, or is killed: on a GPU that is none,
    with the driver of such, or without a `library` on a real one."""

    def __init__(self, library: Path | None, environment: dict[str, str] | None = None):
        self._line, other = Pipe()
        device = "cpu" if library else "cuda"
        command = [sys.executable, "-m", "support.card_house", str(other.fileno()), device]
        paths = {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests")))}
        paths |= {"LD_LIBRARY_PATH": str(library.parent)} if library else {}
        own = os.environ | paths | (environment or {})
        self.process = processes.start(command, env=own, pass_fds=[other.fileno()])
        other.close()
        self._versions = itertools.count(1)

    def write(self, weights: float | Path, probe: Probe = PROBE) -> WeightRef:
        """What is announced of a new version, all of whose weights are that number, or those of a file, by a learner
        that broadcasts none."""
        ref = self._asked("write", weights, next(self._versions), probe)
        return replace(ref, source=SimpleNamespace(seat=SimpleNamespace(remote=_refused)))

    def blob(self, version: int) -> bytes | None:
        return self._asked("blob", version)

    def said(self) -> list[str]:
        """Warnings of the learner."""
        return self._asked("said")

    def close(self) -> None:
        self._line.close()
        self.process.wait(deadline_s(10))

    def _asked(self, *question: Any) -> Any:
        self._line.send(question)
        return self._line.recv()


def transports(filed: list[int] | None = None) -> Transports:
    """An actor's. Versions that are to come from a node's files are noted, and are not there."""

    async def provide(ref: WeightRef, reader: str) -> None:
        if filed is not None:
            filed.append(ref.version)

    async def done(reader: str) -> None:
        """Nothing was kept."""

    async def files() -> Any:
        return SimpleNamespace(provide=SimpleNamespace(remote=provide), done=SimpleNamespace(remote=done))

    return Transports(HERE, "actor-0", files)


async def _refused(*asked: Any) -> str:
    return REFUSED


def _serve(line: Connection, device: str) -> None:
    import logging

    from safetensors.torch import load_file

    from learner.weights.card import Card
    from learner.weights.publish import Versions

    said: list[str] = []
    logging.getLogger("redraft.weights").addFilter(lambda record: said.append(record.getMessage()) is None)
    versions = Versions(HERE, card=Card(device))

    def blob(version: int) -> bytes | None:
        try:
            with versions.reading(version) as data:
                return data.cpu().numpy().tobytes()
        except KeyError:
            return None

    while True:
        try:
            kind, *facts = line.recv()
        except EOFError:
            return
        if kind == "write":
            weights, version, probe = facts
            state = load_file(weights) if isinstance(weights, Path) else of(weights)
            versions.write({name: tensor.to(device) for name, tensor in state.items()}, version)
            line.send(versions.ref(version, probe))
        else:
            line.send(blob(*facts) if kind == "blob" else said)


class Workers:
    """Those of an engine, in this process, as far as they hold weights."""

    def __init__(self, count: int = 1):
        from actors.engines.vllm_held import Held

        self.held = [Held(torch.device("cpu"), rank) for rank in range(count)]
        self.workers = count

    async def ask(self, method: str, *arguments: Any) -> list[Any]:
        asked = [partial(getattr(held, method.removeprefix("redraft_")), *arguments) for held in self.held]
        return [await asyncio.to_thread(one) for one in asked]


if __name__ == "__main__":
    _serve(Connection(int(sys.argv[1])), sys.argv[2])
