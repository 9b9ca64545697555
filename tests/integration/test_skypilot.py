"""SkyPilot's task: its own parser takes it; a run whose machine is taken away goes on on another one."""

import json
import os
import secrets
import signal
import subprocess
import tempfile

import pytest
import ray
import yaml
from support import needs
from support.places import PYTHONPATH, ROOT
from support.ports import free_port
from support.sky_machines import TASK, Machines, task
from support.waiting import deadline_s, until
from test_run import RECIPE

from redraft import records

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


def taken_away(machines: Machines, begun: int) -> list[int]:
    """The steps of a run on one machine that has `begun` already, when it has done three more and the machine goes."""
    run, process = machines.folders[0] / "runs" / "exp-1", machines.start(0)

    def trained() -> bool:
        assert process.poll() is None, machines.said(0)[-3000:]
        return run.exists() and len(records.step_lines(run)) >= begun + 3

    until(trained, lambda: machines.said(0)[-3000:], 300)
    process.send_signal(signal.SIGTERM)
    assert process.wait(deadline_s(120)) == 75, machines.said(0)[-3000:]
    steps = [line.report.step for line in records.steps(records.step_lines(run))]
    print(f"{len(steps)} steps, {begun} of them on another machine")
    assert json.loads((run / "summary.json").read_text())["checkpoint"] == len(steps) >= begun + 3
    return steps


@pytest.mark.ray
def test_a_run_whose_machine_is_taken_away_goes_on_on_an_empty_one_from_its_copy(tmp_path):
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(RECIPE | {"steps": 100_000}))
    (tmp_path / "store").mkdir()
    with tempfile.TemporaryDirectory(prefix="r", ignore_cleanup_errors=True) as short:
        variables = {
            "NAME": "exp-1",
            "STORE": f"file://{tmp_path}/store",
            "RECIPE": str(tmp_path / "tiny.yaml"),
            "ARGUMENTS": "metrics.port=0",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_TMPDIR": short,
            "PYTHONPATH": PYTHONPATH,
        }
        here = ray.util.get_node_ip_address()  # Ray takes no loopback address for a node's
        steps: list[int] = []
        for place in ("first", "second"):
            own = variables | {"FIRST_PORT": str(free_port())}
            steps = taken_away(Machines(tmp_path / place, [here], ROOT / ".venv", own), len(steps))
    assert steps == list(range(1, len(steps) + 1)), "each step once"
