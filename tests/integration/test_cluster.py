"""Where no cluster is named, a run has a Ray of its own, whatever else runs on the machine."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from support.places import PYTHONPATH, RECIPES
from support.waiting import deadline_s

pytestmark = pytest.mark.ray

CODE = f"""
from pathlib import Path
from redraft import recipe
from redraft.control.cluster import ray_for
with ray_for(recipe.load(Path({str(RECIPES / "quickstart.yaml")!r}), [])) as address:
    print("at", address)
"""


@pytest.fixture
def short():
    """A folder whose name leaves Ray's sockets room: theirs may have 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="r") as folder:
        yield Path(folder)


def test_a_run_does_not_join_a_ray_that_somebody_else_has_started_here(short):
    """`ray start --head` leaves its address in this file."""
    known = short / "ray" / "ray_current_cluster"
    known.parent.mkdir()
    known.write_text("127.0.0.1:9")
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        env=environment | {"RAY_TMPDIR": str(short), "PYTHONPATH": PYTHONPATH},
        capture_output=True,
        text=True,
        timeout=deadline_s(120),
        check=False,
    )
    assert done.returncode == 0 and "at " in done.stdout and ":9\n" not in done.stdout, done.stderr[-2000:]
