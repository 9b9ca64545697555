"""A run whose parts live on three machines is cut apart, link by link: it notices, and goes on where it was.

The machines are network namespaces: `head` has Ray's head, the command, the controller and the learner, `node` the
actor, `store` replay. What crosses a link that is cut is lost without a word, as by a switch that fails.
"""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest
from support import namespaces, processes
from support.ray_nodes import RAY
from support.waiting import deadline_s, pause, until
from test_run_chaos import RECIPE

from benchmarks.chaos_parts import NAME, Storm

pytestmark = [pytest.mark.ray, pytest.mark.prove]

CUT_S = 10.0
RUN_ID = "partitioned"
LINKS = {
    "the actor from replay": [("node", "store")],
    "the actor from the controller": [("node", "head")],
    "the learner from replay": [("head", "store")],
    "the head from all": [("head", "node"), ("head", "store")],
}


class Machines:
    """The three, with what runs on them beside the run."""

    def __init__(self, place: Path):
        self.place, self.network = place, namespaces.Network(("head", "node", "store"))
        (place / "token").write_text(secrets.token_hex(32))
        self.variables = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(place / "token"),
            "RAY_TMPDIR": str(place),
            "RAY_ADDRESS": f"{self.network.addresses['head']}:6379",
        }
        self.started: list[subprocess.Popen] = []

    def begin(self, storm: Storm) -> None:
        """Replay with its keys, and both nodes of Ray."""
        keys = [sys.executable, "-m", "redraft", "keys", "new", str(self.place / "keys")]
        subprocess.run(keys, check=True, capture_output=True, env=storm.environment)
        ingest, serve = endpoints(self.network)
        options = ["--folder", str(self.place / "spool"), "--run-id", RUN_ID, "--keys", str(self.place / "keys")]
        replay = ["-m", "redraft", "replay", "serve", *options, "--ingest", ingest, "--serve", serve]
        self._start("store", [sys.executable, *replay], "is ready", storm)
        ray = [str(RAY), "start", "--block", "--disable-usage-stats", "--num-cpus=2", "--min-worker-port=0"]
        head = ["--head", "--port=6379", "--include-dashboard=false", f"--temp-dir={self.place / 'ray'}"]
        work = [f"--address={self.variables['RAY_ADDRESS']}", "--resources", json.dumps({"work": 1})]
        for name, own in (("head", head), ("node", work)):
            address = f"--node-ip-address={self.network.addresses[name]}"
            self._start(name, [*ray, "--max-worker-port=0", address, *own], "Ray runtime started", storm)

    def _start(self, where: str, command: list[str], ready: str, storm: Storm) -> None:
        log = self.place / f"{where}-{len(self.started)}.log"
        environment = {key: value for key, value in storm.environment.items() if key != "RAY_ADDRESS"}
        with open(log, "wb") as said:
            started = processes.start(
                [*self.network.inside(where), *command],
                cwd=self.place,
                env=environment | {"PATH": f"{RAY.parent}:{environment['PATH']}"},
                stdout=said,
                stderr=subprocess.STDOUT,
            )
        self.started.append(started)
        until(lambda: ready in log.read_text(), lambda: f"{where}: {log.read_text()[-2000:]}", 90)


def endpoints(network: namespaces.Network) -> tuple[str, str]:
    """Where replay listens."""
    return tuple(f"tcp://{network.addresses['store']}:{port}" for port in (5555, 5556))  # type: ignore[return-value]


@pytest.fixture
def storm():
    namespaces.needed()
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="p", ignore_cleanup_errors=True) as folder:
        machines = Machines(Path(folder))
        ingest, serve = endpoints(machines.network)
        replay = {"services": [{"ingest": ingest, "serve": serve}], "keys": f"{folder}/keys"}
        actors = RECIPE["actors"] | {"count": 1, "resources": {"work": 0.1}}
        found = Storm(
            machines.place,
            RECIPE | {"replay": replay, "actors": actors},
            limit_s=deadline_s(200.0),
            variables=machines.variables,
            wrapper=machines.network.inside("head"),
        )
        (machines.place / "runs").mkdir()
        try:
            machines.begin(found)
            found.start()
            yield found, machines
        finally:
            found.close()
            for started in machines.started:
                for child in psutil.Process(started.pid).children(recursive=True) if started.poll() is None else ():
                    child.kill()
                processes.stop(started)
            machines.network.close()


def test_each_link_is_cut_and_the_run_goes_on_where_it_was(storm):
    run, machines = storm
    for what, links in LINKS.items():
        before, began = run.written(), time.monotonic()
        for link in links:
            machines.network.cut(*link)
        pause(CUT_S)  # it is what is done, not a wait for anything
        for link in links:
            machines.network.heal(*link)
        run.steps()
        done = run.written()[len(before) :]
        anew = sum(step <= max(before, default=0) for step in done)
        print(f"  {what}: {CUT_S:g} s, steps again after {time.monotonic() - began:.1f} s, {anew} steps done anew")
    run.stop()
    assert run.process.returncode == 0, run.said()
    (run.run / "spool").mkdir(exist_ok=True)
    (run.run / "spool" / "0").symlink_to(machines.place / "spool")
    checked = run.command("check", NAME)
    assert checked.returncode == 0, checked.stdout + checked.stderr
