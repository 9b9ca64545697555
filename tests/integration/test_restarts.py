"""A supervised run on a cluster of two nodes outlives each of its parts: every step is in its history once."""

import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest
import yaml
from support import processes
from support.ray_nodes import RayNodes, kill
from support.waiting import deadline_s, until
from test_run import RECIPE

from redraft import records

pytestmark = [pytest.mark.ray, pytest.mark.prove]

ON_NODE = ("--resources", json.dumps({"work": 1}))
PLACED = {"resources": {"work": 0.1}, "cpus": 0.5}


@pytest.fixture
def short():
    with tempfile.TemporaryDirectory(prefix="r", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def part(nodes: list[subprocess.Popen], title: str) -> psutil.Process | None:
    """The worker process that Ray has named after a class, on any of these nodes."""
    workers = [child for node in nodes for child in psutil.Process(node.pid).children(recursive=True)]
    return next((worker for worker in workers if title in " ".join(worker.cmdline())), None)


class Supervised:
    """`redraft train --restarts` on these nodes, and what it has done."""

    def __init__(self, folder: Path, nodes: RayNodes):
        self.run, self.log = folder / "runs" / "tiny", folder / "said.log"
        learner = RECIPE["learner"] | PLACED | {"restarts": 0}  # each death ends the command, which is supervised
        parts = {"actors": RECIPE["actors"] | PLACED, "learner": learner}
        (folder / "r.yaml").write_text(yaml.safe_dump(RECIPE | parts | {"steps": 100_000, "start_s": 120}))
        self.folder = folder
        self.environment = nodes.environment | {"RAY_ADDRESS": nodes.address}
        command = [sys.executable, "-m", "redraft", "train", "r.yaml", "--restarts", "4"]
        with open(self.log, "wb") as said:
            self.process = processes.start(
                command, cwd=folder, env=self.environment, stdout=said, stderr=subprocess.STDOUT
            )

    def redraft(self, *arguments: str) -> str:
        command = [sys.executable, "-m", "redraft", *arguments]
        said = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=deadline_s(120)
        )
        assert said.returncode == 0, said
        return said.stdout

    def history(self) -> list[int]:
        """The steps that the checkpoints and what goes on now keep."""
        return [line.report.step for line in records.steps(records.step_lines(self.run))]

    def goes_on(self, what: str, restarts: int, killed: float) -> None:
        """Waits until there have been so many restarts, and steps after the last; prints the seconds since `killed`."""

        def restarted() -> bool:
            assert self.process.poll() is None, self.log.read_text()[-4000:]
            return len(records.lines(self.run / "restarts.jsonl")) >= restarts

        until(restarted, lambda: f"{what}: a restart; {self.log.read_text()[-3000:]}", 240)
        written = len(records.step_lines(self.run))
        noticed = records.lines(self.run / "restarts.jsonl")[-1]["at"]

        def steps() -> bool:
            assert self.process.poll() is None, self.log.read_text()[-4000:]
            return len(records.step_lines(self.run)) >= written + 3

        until(steps, lambda: f"{what}: steps; {self.log.read_text()[-3000:]}", 240)
        print(f"{what} killed: noticed after {noticed - killed:.0f} s, three steps after {time.time() - killed:.0f} s")


def test_rank_controller_node_and_head_die_in_turn_and_each_step_is_done_once(short):
    nodes = RayNodes(short)
    node = nodes.join(*ON_NODE)
    run = Supervised(short, nodes)
    until(lambda: len(run.history()) >= 3 if run.run.exists() else False, lambda: run.log.read_text()[-3000:], 240)

    killed = time.time()
    part([node], "ray::RankPart").send_signal(signal.SIGKILL)
    run.goes_on("rank", 1, killed)
    killed = time.time()
    part([nodes.head], "ray::Controller").send_signal(signal.SIGKILL)
    run.goes_on("controller", 2, killed)
    killed = time.time()
    kill(node)
    node = nodes.join(*ON_NODE)
    run.goes_on("node", 3, killed)
    killed = time.time()
    kill(nodes.head)
    crashed = until(
        lambda: run.process.poll() is None and records.lines(run.run / "restarts.jsonl")[3:], "noticed", 240
    )
    assert crashed
    kill(node)
    nodes.begin_head()
    nodes.join(*ON_NODE)
    run.goes_on("head", 4, killed)

    run.redraft("stop", "tiny", "--wait", "300")
    assert run.process.wait(deadline_s(60)) == 0, run.log.read_text()[-3000:]
    history = run.history()
    assert history == list(range(1, len(history) + 1)) and len(history) > 12
    kept = json.loads(run.redraft("replay", "stats", "tiny", "--json"))
    assert kept["trained_total"] == 16 * len(history), "no group was used twice, none is missing"
