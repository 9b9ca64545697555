"""Ray nodes of a test's own on this machine, each with `ray start`: their ports, folder and token are nobody else's."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import psutil

from support import processes
from support.places import PYTHONPATH
from support.ports import free_ports
from support.waiting import until

RAY = Path(sys.executable).parent / "ray"


class RayNodes:
    """A head and nodes that join it, with these variables. `folder` must have a short name: Ray's sockets may have 107
    bytes."""

    def __init__(self, folder: Path, variables: Mapping[str, str] | None = None):
        self._folder = folder
        self.port, self.dashboard_port = free_ports(2)
        self.address = f"127.0.0.1:{self.port}"
        self.token = secrets.token_hex(32)
        (folder / "token").write_text(self.token)
        self.environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")} | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
            "RAY_TMPDIR": str(folder),
            "PYTHONPATH": PYTHONPATH,
            "PATH": f"{RAY.parent}:{os.environ['PATH']}",
            **(variables or {}),
        }
        self.begin_head()

    def begin_head(self) -> None:
        """Starts a head at the same address as the one before, which must have ended."""
        client, agent = free_ports(2)
        options = [f"--port={self.port}", f"--temp-dir={self._folder / 'ray'}", f"--ray-client-server-port={client}"]
        options += ["--include-dashboard=true", f"--dashboard-port={self.dashboard_port}"]
        self.head = self._start("head", "--head", f"--dashboard-agent-listen-port={agent}", *options)

    def join(self, *options: str) -> subprocess.Popen:
        """Starts a node beside the head."""
        (agent,) = free_ports(1)
        return self._start("node", f"--address={self.address}", f"--dashboard-agent-listen-port={agent}", *options)

    def _start(self, name: str, *options: str) -> subprocess.Popen:
        """`ray start`, once it says that its node is up."""
        log = self._folder / f"{name}-{len(list(self._folder.glob('*.txt')))}.txt"
        command = [RAY, "start", "--block", "--disable-usage-stats", "--node-ip-address=127.0.0.1", "--num-cpus=2"]
        command += ["--min-worker-port=0", "--max-worker-port=0", *options]
        with open(log, "wb") as said:
            node = processes.start(
                command,
                cwd=self._folder,
                env=self.environment,
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

        def up() -> bool:
            assert node.poll() is None, log.read_text()
            return "Ray runtime started" in log.read_text()

        until(up, f"{name} is up", 60)
        return node


def kill(node: subprocess.Popen) -> None:
    """Ends a node as a lost machine ends: all that runs on it at once, by SIGKILL."""
    family = [psutil.Process(node.pid), *psutil.Process(node.pid).children(recursive=True)]
    for process in family:
        process.send_signal(signal.SIGSTOP)  # so that none sees another one end
    for process in family:
        process.kill()
    node.wait()
