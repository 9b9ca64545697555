"""SkyPilot's task: what each machine runs, with stubs in the place of Ray and of the run."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import psutil
import pytest
import yaml
from support.ports import free_port
from support.sky_machines import Machines, task
from support.waiting import deadline_s, until
from typer.testing import CliRunner

from redraft.cli.main import app

STUBS = {
    "ray": f"#!{sys.executable}"
    """
import json, os, pathlib, signal, socket, sys
pathlib.Path("ray.json").write_text(json.dumps(sys.argv[1:]))
given = dict(word.split("=", 1) for word in sys.argv if "=" in word)
if "--head" in sys.argv:
    listening = socket.create_server((given["--node-ip-address"], int(given["--port"])))
    listening.listen(64)
signal.pause()
""",
    "redraft": f"#!{sys.executable}"
    """
import json, os, pathlib, signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
os.mkfifo("over")
pathlib.Path("redraft.json").write_text(json.dumps(sys.argv[1:]))
sys.exit(int(pathlib.Path("over").read_text()))
""",
    "python": "#!/bin/sh\nexit 0\n",
}


@pytest.fixture
def machines(tmp_path: Path) -> Machines:
    programs = tmp_path / "venv" / "bin"
    programs.mkdir(parents=True)
    for name, text in STUBS.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    variables = {"NAME": "exp-1", "STORE": "s3://bucket/runs", "FIRST_PORT": str(free_port())}
    return Machines(tmp_path, ["127.0.0.1", "127.0.0.2"], programs.parent, variables)


def told(machines: Machines, rank: int, program: str) -> list[str]:
    """What the stub was told on that machine, once it was."""
    file = machines.folders[rank] / f"{program}.json"
    until(lambda: file.exists() and file.read_text(), lambda: f"{program}: {machines.said(rank)}", 60)
    return json.loads(file.read_text())


@pytest.mark.parametrize("code", [0, 75])
def test_the_first_machine_runs_and_says_how_it_ended_and_the_others_end_with_it(machines, code, tmp_path):
    first, other = machines.start(0), machines.start(1)
    head, node = told(machines, 0, "ray"), told(machines, 1, "ray")
    (port,) = [word.removeprefix("--port=") for word in head if word.startswith("--port=")]
    assert {"--head", "--block", "--node-ip-address=127.0.0.1"} <= set(head)
    assert {f"--address=127.0.0.1:{port}", "--block", "--node-ip-address=127.0.0.2"} <= set(node)
    assert (machines.folders[1] / "runs" / "exp-1" / "logs").is_dir(), "actors write their logs there"

    command, recipe, *words = told(machines, 0, "redraft")
    assert (command, recipe) == ("train", task()["envs"]["RECIPE"]) and words[words.index("--run") + 1] == "exp-1"
    (tmp_path / "store").mkdir()
    words = [word.replace("s3://bucket/runs", f"file://{tmp_path}/store") for word in words]
    tried = CliRunner().invoke(app, [command, recipe, *words, "--dry-run"])
    assert tried.exit_code == 0, tried.output
    built = yaml.safe_load(tried.output)
    assert built["storage"]["url"] == f"file://{tmp_path}/store"
    (only,) = built["learner"]["resources"]
    assert f'--resources={{"{only}": 1}}' in head and only not in str(node), "ranks are on the first machine"

    assert first.poll() is None and other.poll() is None
    (machines.folders[0] / "over").write_text(str(code))
    assert first.wait(deadline_s(60)) == code, machines.said(0)
    assert other.wait(deadline_s(60)) == 0, machines.said(1)


def test_a_machine_whose_ray_is_gone_while_the_run_goes_on_ends_as_a_fault(machines):
    first, other = machines.start(0), machines.start(1)
    told(machines, 0, "redraft")
    told(machines, 1, "ray")
    (ray,) = [child for child in psutil.Process(other.pid).children(recursive=True) if "ray" in child.cmdline()[1]]
    ray.kill()
    assert other.wait(deadline_s(60)) == 75, machines.said(1)
    first.terminate()  # which the run is told, so that it ends with a checkpoint
    assert first.wait(deadline_s(60)) == 75, machines.said(0)


def test_what_the_task_leaves_open_has_to_be_said_and_its_faults_begin_again_elsewhere():
    described = task()
    assert [name for name, value in described["envs"].items() if value is None] == ["NAME", "STORE"]
    assert described["secrets"] == {"RAY_AUTH_TOKEN": None}
    assert described["resources"]["job_recovery"]["recover_on_exit_codes"] == [75]
