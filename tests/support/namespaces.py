"""A network of its own on this machine: namespaces with an address each, and links between any two that can be cut."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence

from support import needs

WRONG = "02:00:00:00:00:99"  # an address that nobody has: what is sent there is lost without a word


class Network:
    """A namespace for each name, all on one switch; as root only. What is cut is lost silently, as by a partition."""

    def __init__(self, names: Sequence[str]):
        self._spaces = {name: f"rd{os.getpid()}{name}" for name in names}
        self._hub = f"rd{os.getpid()}hub"
        self.addresses = {name: f"10.231.7.{number}" for number, name in enumerate(names, 1)}
        self._run("netns", "add", self._hub)
        self._run("-n", self._hub, "link", "add", "switch", "type", "bridge")
        self._run("-n", self._hub, "link", "set", "switch", "up")
        for name in names:
            self._join(name)

    def _join(self, name: str) -> None:
        space = self._spaces[name]
        self._run("netns", "add", space)
        self._run("-n", space, "link", "add", "eth0", "type", "veth", "peer", "name", name, "netns", self._hub)
        self._run("-n", self._hub, "link", "set", name, "master", "switch", "up")
        self._run("-n", space, "addr", "add", f"{self.addresses[name]}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            self._run("-n", space, "link", "set", device, "up")
        self._run("-n", space, "route", "add", "default", "dev", "eth0")  # by which programs find their own address

    def inside(self, name: str) -> tuple[str, ...]:
        """What runs a command in that namespace."""
        return ("ip", "netns", "exec", self._spaces[name])

    def cut(self, one: str, other: str) -> None:
        """Nothing passes between the two, in either direction."""
        for near, far in ((one, other), (other, one)):
            self._neighbour(near, far, "replace", "lladdr", WRONG, "nud", "permanent")

    def heal(self, one: str, other: str) -> None:
        for near, far in ((one, other), (other, one)):
            self._neighbour(near, far, "del")

    def _neighbour(self, near: str, far: str, what: str, *how: str) -> None:
        self._run("-n", self._spaces[near], "neigh", what, self.addresses[far], *how, "dev", "eth0")

    def close(self) -> None:
        for space in (*self._spaces.values(), self._hub):
            subprocess.run(["ip", "netns", "del", space], capture_output=True)

    @staticmethod
    def _run(*arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


def needed() -> None:
    """Skips the test where no namespaces can be made."""
    if shutil.which("ip") is None:
        needs.missing("there is no ip here: apt-get install iproute2")
    probe = f"rd{os.getpid()}probe"
    tried = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True)
    if tried.returncode:
        needs.missing(f"run as root to make network namespaces: {tried.stderr.strip()}")
    subprocess.run(["ip", "netns", "del", probe], check=True, capture_output=True)
