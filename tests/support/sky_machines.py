"""SkyPilot's task on machines that are folders here: each runs what it says, told who it is as SkyPilot tells it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from support import processes
from support.places import ROOT

TASK = ROOT / "deploy" / "skypilot" / "redraft.yaml"


def task() -> dict:
    return yaml.safe_load(TASK.read_text())


class Machines:
    """One for each address, with these variables; `venv` is what .venv of each is."""

    def __init__(self, folder: Path, addresses: Sequence[str], venv: Path, variables: Mapping[str, str]):
        self._addresses, count = list(addresses), len(addresses)
        self._variables = {name: value for name, value in task()["envs"].items() if value is not None} | variables
        self.folders = [folder / f"machine-{rank}" for rank in range(count)]
        for machine in self.folders:
            machine.mkdir(parents=True)
            (machine / ".venv").symlink_to(venv)  # whole: Python finds its packages from there
            shutil.copytree(TASK.parent, machine / "deploy" / "skypilot")

    def start(self, rank: int) -> subprocess.Popen:
        told = {"SKYPILOT_NODE_RANK": str(rank), "SKYPILOT_NODE_IPS": "\n".join(self._addresses)}
        usual = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        with open(self.folders[rank] / "said.txt", "wb") as said:
            return processes.start(
                ["bash", "-c", task()["run"]],
                cwd=self.folders[rank],
                env=usual | self._variables | told,
                stdout=said,
                stderr=subprocess.STDOUT,
            )

    def said(self, rank: int) -> str:
        return (self.folders[rank] / "said.txt").read_text()
