"""SkyPilot's own parser takes our task; tests/unit/repository/test_sky_task.py has what it runs."""

import os
import subprocess

import pytest
from support import needs
from support.places import ROOT
from support.sky_machines import TASK, task
from support.waiting import deadline_s

pytestmark = pytest.mark.prove

PARSED = """
import sys, sky
task = sky.Task.from_yaml_config(
    sky.utils.yaml_utils.read_yaml(sys.argv[1]),
    env_overrides=[("NAME", "exp-1"), ("STORE", "s3://bucket/runs")],
    secrets_overrides=[("RAY_AUTH_TOKEN", "secret")],
)
(resources,) = task.resources
print(task.num_nodes, task.run, resources.use_spot, resources.job_recovery["recover_on_exit_codes"])
"""


def test_skypilots_own_parser_takes_the_task(tmp_path):
    """In a virtual environment of its own: it brings other versions of what is here."""
    python = os.environ.get("REDRAFT_SKYPILOT")
    if python is None:
        needs.missing("no SkyPilot: pip install skypilot==0.14.1 elsewhere, REDRAFT_SKYPILOT names its Python")
    environment = os.environ | {"HOME": str(tmp_path), "SKYPILOT_DISABLE_USAGE_COLLECTION": "1"}
    parsed = subprocess.run(
        [python, "-c", PARSED, TASK], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=deadline_s(120)
    )
    assert parsed.returncode == 0, parsed.stderr[-3000:]
    assert parsed.stdout.split() == ["1", task()["run"], "True", "[75]"]
