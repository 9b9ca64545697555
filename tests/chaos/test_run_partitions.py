"""A run whose parts live on three machines is cut apart, link by link: it goes on where it was, and loses nothing.

The machines are network namespaces: `head` has Ray's head, the command, the controller and the learner, `node` the
actor, `store` replay. What crosses a link that is cut is lost without a word, as by a switch that fails.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import needs
from support.storm_house import RECIPE, told
from support.waiting import deadline_s, pause

from benchmarks.chaos_network import WORK, Machines, lacking
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


@pytest.fixture
def storm() -> Iterator[Storm]:
    if why := lacking():
        needs.missing(why)
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="p", ignore_cleanup_errors=True) as folder:
        place = Path(folder)
        (place / "runs").mkdir()
        machines = Machines(place, others=("store",))
        ingest, serve = (f"tcp://{machines.network.addresses['store']}:{port}" for port in (5555, 5556))
        replay = {"services": [{"ingest": ingest, "serve": serve}], "keys": f"{place}/keys"}
        actors = RECIPE["actors"] | {"count": 1, "resources": {WORK: 0.1}}
        found = Storm(
            place,
            RECIPE | {"replay": replay, "actors": actors},
            limit_s=deadline_s(200.0),
            variables=machines.variables,
            network=machines.network,
        )
        try:
            keys = found.command("keys", "new", str(place / "keys"))
            assert keys.returncode == 0, keys.stderr
            options = ["--folder", str(place / "spool"), "--run-id", RUN_ID, "--keys", str(place / "keys")]
            serves = [
                sys.executable,
                "-m",
                "redraft",
                "replay",
                "serve",
                *options,
                "--ingest",
                ingest,
                "--serve",
                serve,
            ]
            machines.start("store", serves, "is ready", found.environment)
            machines.begin(found.environment)
            found.start()
            yield found
        finally:
            found.close()
            machines.close()


def test_each_link_is_cut_and_the_run_goes_on_where_it_was(storm):
    with told(storm, ", ".join(LINKS), f"pytest -m prove -s {__file__}"):
        for what, links in LINKS.items():
            before, began = storm.written(), time.monotonic()
            with storm.network.without(*links):
                pause(CUT_S)  # it is what is done, not a wait for anything
            storm.steps()
            done = storm.written()[len(before) :]
            anew = sum(step <= max(before, default=0) for step in done)
            print(f"  {what}: {CUT_S:g} s, steps again after {time.monotonic() - began:.1f} s, {anew} steps done anew")
        storm.stop()
        assert storm.process.returncode == 0, storm.said()
        (storm.run / "spool").mkdir(exist_ok=True)
        (storm.run / "spool" / "0").symlink_to(storm.place / "spool")  # so that the check reads it, too
        checked = storm.command("check", NAME)
        print(checked.stdout)
        assert checked.returncode == 0, checked.stdout + checked.stderr
