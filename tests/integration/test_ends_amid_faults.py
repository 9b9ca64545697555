"""How a run ends that is told to stop amid a fault, and one whose controller dies: by exit code, in one line, and with
nothing left behind. Scripted engines; the run is resumed from one fault to the next."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml
from support import places
from support.run_house import Command, leftovers
from support.storm_house import RECIPE
from support.waiting import deadline_s

from learner import checkpoint

pytestmark = [pytest.mark.ray, pytest.mark.prove]

NAME = "told"
LEARNER = RECIPE["learner"] | {"checkpoint_every": 2}
TOLD = RECIPE | {"name": NAME, "learner": LEARNER, "replay": {"shards": 2}}


class House:
    """One run in a folder of its own, with a folder of its own for temporary files."""

    def __init__(self, place: Path):
        self.place, self.temporary = place, place / "t"
        self.temporary.mkdir()
        (place / "told.yaml").write_text(yaml.safe_dump(TOLD))
        variables = {"TMPDIR": str(self.temporary), "RAY_TMPDIR": str(place), "CHAOS_SLOW": str(place / "slow")}
        self.environment = os.environ | {"PYTHONPATH": places.PYTHONPATH} | variables

    def goes_on(self) -> Command:
        """The run, begun or gone on with; it has done steps, and has a checkpoint."""
        run = Command(self.place, "train", "told.yaml", "--resume-if-begun", environment=self.environment)
        before = len(run.steps(NAME))
        run.until(lambda: len(run.steps(NAME)) >= before + 3, 200)
        return run

    def left(self, processes: list[psutil.Process]) -> list:
        """What is there still of a run that has ended."""
        _, alive = psutil.wait_procs(processes, timeout=deadline_s(30))
        return [*alive, *leftovers(), *self.temporary.glob("redraft-*")]


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="e", ignore_cleanup_errors=True) as folder:
        yield House(Path(folder))


@pytest.mark.parametrize("part", ["ray::RankPart", "ray::ReplayPart", "ray::ActorPart"])
def test_ctrl_c_while_a_part_starts_anew_stops_the_run_with_a_checkpoint(house, part):
    run = house.goes_on()
    processes = run.children()
    restarts = len(run.lines(NAME, "restarts.jsonl"))
    run.part(part).send_signal(signal.SIGKILL)
    if "Rank" in part:
        run.until(lambda: len(run.lines(NAME, "restarts.jsonl")) > restarts, 60)
    run.process.send_signal(signal.SIGINT)
    output = run.wait(200)
    summary = run.summary(NAME)
    assert (run.process.returncode, summary["state"], summary["error"]) == (0, "stopped", ""), output[-3000:]
    assert summary["checkpoint"] == checkpoint.step_of(checkpoint.newest(house.place / "runs" / NAME))
    assert f"Go on with: redraft train runs/{NAME}/recipe.yaml --run {NAME} --resume" in output
    assert not house.left(processes)


def test_a_controller_that_dies_ends_the_command_in_a_line_with_the_one_that_goes_on(house):
    run = house.goes_on()
    processes = run.children()
    run.part("ray::Controller").send_signal(signal.SIGKILL)
    output = run.wait(100)
    assert run.process.returncode == 75, output[-3000:]
    said = output.strip().splitlines()[-1]
    assert said.startswith("redraft: the controller's process died"), output[-3000:]
    assert said.endswith(f"Go on with: redraft train runs/{NAME}/recipe.yaml --run {NAME} --resume")
    assert "Traceback" not in output and not house.left(processes)
    house.goes_on().process.send_signal(signal.SIGINT)
