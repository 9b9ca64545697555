"""The Slurm script on a real Slurm of two nodes on this machine."""

import os
import subprocess

import pytest
from support import needs
from support.places import PYTHONPATH, ROOT
from support.waiting import deadline_s, slowness


@pytest.mark.prove
@pytest.mark.slurm
@pytest.mark.ray
def test_a_job_comes_over_a_ray_that_fails_at_first_is_queued_again_with_a_checkpoint_and_ends_with_one():
    if os.geteuid():
        needs.missing("deploy/slurm/try.sh makes networks of its own: only root may")
    environment = os.environ | {"PYTHONPATH": PYTHONPATH, "TIMES": str(round(slowness()))}
    tried = subprocess.run(
        [ROOT / "deploy" / "slurm" / "try.sh"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=deadline_s(1200),
    )
    print(tried.stdout[-5000:])
    assert tried.returncode == 0 and "none missing and none twice" in tried.stdout
