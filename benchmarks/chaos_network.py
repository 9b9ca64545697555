"""A network of its own on this machine, whose links can be cut: a namespace a machine, for who may make them (root).

What crosses a link that is cut is lost without a word, as by a switch that fails: its ends send to an address that
nobody has.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

WRONG = "02:00:00:00:00:99"
RAY_PORT = 6379
UP_S = 120.0  # within which a process of a machine is ready
WORK = "work"
"""The Ray resource of all machines but the head."""


class Network:
    """A machine for each name, all on one switch. `close` removes them."""

    def __init__(self, names: Sequence[str]):
        self._spaces = {name: f"rd{os.getpid()}{name}" for name in names}
        self._hub = f"rd{os.getpid()}hub"
        self.addresses = {name: f"10.231.7.{number}" for number, name in enumerate(names, 1)}
        _ip("netns", "add", self._hub)
        _ip("-n", self._hub, "link", "add", "switch", "type", "bridge")
        _ip("-n", self._hub, "link", "set", "switch", "up")
        for name in names:
            self._join(name)

    def _join(self, name: str) -> None:
        space = self._spaces[name]
        _ip("netns", "add", space)
        _ip("-n", space, "link", "add", "eth0", "type", "veth", "peer", "name", name, "netns", self._hub)
        _ip("-n", self._hub, "link", "set", name, "master", "switch", "up")
        _ip("-n", space, "addr", "add", f"{self.addresses[name]}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            _ip("-n", space, "link", "set", device, "up")
        _ip("-n", space, "route", "add", "default", "dev", "eth0")  # by which programs find their own address

    def inside(self, name: str) -> tuple[str, ...]:
        """What runs a command on that machine."""
        return ("ip", "netns", "exec", self._spaces[name])

    @contextmanager
    def without(self, *links: tuple[str, str]) -> Iterator[None]:
        """Within it nothing passes between the two of each link, in either direction."""
        ends = [end for one, other in links for end in ((one, other), (other, one))]
        try:
            for near, far in ends:
                self._neighbour(near, far, "replace", "lladdr", WRONG, "nud", "permanent")
            yield
        finally:
            for near, far in ends:
                self._neighbour(near, far, "del")

    def _neighbour(self, near: str, far: str, what: str, *how: str) -> None:
        _ip("-n", self._spaces[near], "neigh", what, self.addresses[far], *how, "dev", "eth0")

    def close(self) -> None:
        for space in (*self._spaces.values(), self._hub):
            subprocess.run(["ip", "netns", "del", space], capture_output=True)


def lacking() -> str:
    """Why no such network can be made here; "" where it can."""
    if shutil.which("ip") is None:
        return "there is no ip here: apt-get install iproute2"
    probe = f"rd{os.getpid()}probe"
    tried = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True)
    if tried.returncode:
        return f"only root can make network namespaces: {tried.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", probe], check=True, capture_output=True)
    return ""


class Machines:
    """A network with a Ray cluster: its head on the machine `head`, a node with the resource WORK on `node`; others are
    left to who asks for them. `variables` are what a command has to be given to join the cluster."""

    def __init__(self, place: Path, others: Sequence[str] = ()):
        self._place, self.network = place, Network(("head", "node", *others))
        (place / "token").write_text(secrets.token_hex(32))
        self.variables = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(place / "token"),
            "RAY_TMPDIR": str(place),
            "RAY_ADDRESS": f"{self.network.addresses['head']}:{RAY_PORT}",
        }
        self._started: list[subprocess.Popen] = []

    def begin(self, environment: Mapping[str, str]) -> None:
        """Starts Ray on both."""
        ray = [str(Path(sys.executable).parent / "ray"), "start", "--block", "--disable-usage-stats", "--num-cpus=4"]
        ray += ["--min-worker-port=0", "--max-worker-port=0"]
        head = ["--head", f"--port={RAY_PORT}", "--include-dashboard=false", f"--temp-dir={self._place / 'ray'}"]
        work = [f"--address={self.variables['RAY_ADDRESS']}", "--resources", json.dumps({WORK: 1})]
        for name, own in (("head", head), ("node", work)):
            address = f"--node-ip-address={self.network.addresses[name]}"
            self.start(name, [*ray, address, *own], "Ray runtime started", environment)

    def start(self, where: str, command: list[str], ready: str, environment: Mapping[str, str]) -> None:
        """Starts a process on a machine, and waits until it says that it is `ready`."""
        log = self._place / f"{where}-{len(self._started)}.log"
        variables = {key: value for key, value in environment.items() if key != "RAY_ADDRESS"}
        with open(log, "wb") as said:
            started = subprocess.Popen(
                [*self.network.inside(where), *command],
                cwd=self._place,
                env=variables | {"PATH": f"{Path(sys.executable).parent}:{variables['PATH']}"},
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._started.append(started)
        deadline = time.monotonic() + UP_S
        while ready not in (text := log.read_text(errors="replace")):
            if started.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{where} is not up: {text[-2000:]}")
            time.sleep(0.1)

    def close(self) -> None:
        """Waits for what was started to have ended, by whoever ends it, and removes the network."""
        for started in self._started:
            started.kill()
            started.wait()
        self.network.close()


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)
