"""What the Slurm script says to Slurm, to Ray and to the run: stubs in their places write it down."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import processes
from support.places import ROOT
from support.ports import free_port
from support.waiting import deadline_s

SCRIPT = ROOT / "deploy" / "slurm" / "redraft.sbatch"
TOLD = (
    f"#!{sys.executable}"
    + """
import json, os, sys
kept = {name: os.environ.get(name) for name in ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME", "RAY_AUTH_MODE")}
with open(os.environ["TOLD"], "a") as out:
    print(json.dumps({"words": [os.path.basename(sys.argv[0]), *sys.argv[1:]], **kept}), file=out)
"""
)
STUBS = {
    "scontrol": TOLD + 'print("n1\\nn2")',
    # What is to run on a node is run here, and `ip` says where the node is.
    "srun": TOLD + 'rest = sys.argv[1:]\nwhile rest[0].startswith("--"):\n    del rest[0]\nos.execvp(rest[0], rest)',
    "ip": f"#!{sys.executable}\n" + 'print("2: ib0    inet 127.0.0.1/8 scope global ib0")',
    "box": TOLD + "os.execvp(sys.argv[2], sys.argv[2:])",
    "ray": TOLD
    + """
import signal, socket
given = dict(word.split("=", 1) for word in sys.argv if "=" in word)
if "--head" in sys.argv:
    listening = socket.create_server((given["--node-ip-address"], int(given["--port"])))
signal.pause()
""",
    "redraft": TOLD,
    # Says where this node is, or whether both have joined.
    "python": """#!/bin/sh
case "$*" in
*ray.init*) [ "$(grep -c '"words": ."ray"' "$TOLD")" = 2 ] ;;
*) echo 127.0.0.1 ;;
esac
""",
}


@pytest.fixture
def submitted(tmp_path: Path):
    """A function that runs the script with these variables as on the first of two nodes; returns what was told whom."""
    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name, text in STUBS.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)

    def run(**variables: str) -> list[dict]:
        told = tmp_path / "told.jsonl"
        slurm = {"SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]"}
        slurm |= {"SLURM_CPUS_ON_NODE": "4", "TOLD": str(told), "NAME": "exp-1", "FIRST_PORT": str(free_port())}
        ended = processes.start(
            ["bash", SCRIPT, "recipe.yaml", "steps=3"],
            env=os.environ | slurm | variables | {"PATH": f"{programs}:{os.environ['PATH']}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        said, _ = ended.communicate(timeout=deadline_s(60))
        assert ended.returncode == 0, said
        assert not list(tmp_path.glob(".ray-7-*")), "the token goes with the job"
        return [json.loads(line) for line in told.read_text().splitlines()]

    return run


def of(told: list[dict], program: str) -> list[list[str]]:
    return [line["words"][1:] for line in told if line["words"][0] == program]


def test_every_command_of_the_job_runs_in_its_container(submitted):
    told = submitted(INSIDE="box --nv")
    inside = [words[1:] for words in of(told, "box")]
    assert [words[0] for words in inside].count("ray") == len(of(told, "ray")) == 2
    assert [words for words in inside if words[0] == "redraft"] == [["redraft", *of(told, "redraft")[0]]]
    assert {words[0] for words in inside} == {"ray", "redraft", "python"}


def test_ray_and_nccl_use_the_interface_that_is_chosen(submitted):
    told = submitted(INTERFACE="ib0")
    head, node = sorted(of(told, "ray"), key=lambda words: "--head" not in words)
    assert "--node-ip-address=127.0.0.1" in head and "--node-ip-address=127.0.0.1" in node
    (run,) = [line for line in told if line["words"][0] == "redraft"]
    assert (run["NCCL_SOCKET_IFNAME"], run["GLOO_SOCKET_IFNAME"], run["RAY_AUTH_MODE"]) == ("ib0", "ib0", "token")
    asked = [words for words in of(told, "srun") if "ip" in words]
    assert [words[words.index("dev") + 1] for words in asked] == ["ib0", "ib0"]
    assert ["--nodelist=n1" in asked[0], "--nodelist=n2" in asked[1]] == [True, True]


def test_the_run_goes_on_by_itself_under_its_name(submitted):
    (words,) = of(submitted(RESTARTS="2"), "redraft")
    assert words == ["train", "recipe.yaml", "steps=3", "--run", "exp-1", "--resume-if-begun", "--restarts", "2"]
